"""A study's base view: found once and kept, in every run and reference, in words, and where it cannot be."""

from kdsearch.analysis import plots
from kdsearch.analysis.compare import WORDS, describe_outcome
from kdsearch.analysis.frames import make_frame
from kdsearch.study.ready import REFERENCES

OTHERS = {"identity": [0.5, 0.51], "trivial": [0.6, 0.61], "start": [0.6, 0.62]}


def outcome(values: dict[str, list[float]], references: tuple[str, ...] = ()) -> str:
    """What is said of a confirmation on two seeds, where the policy has .9."""
    study = {"study": "x", "metric": "accuracy", "best_trial": 0, "best_value": 0.9, "budget_confirmation": 2}
    rows = [
        {"run": run, "seed": seed, "value": value}
        for run, column in {"learned": [0.9, 0.93], **values}.items()
        for seed, value in enumerate(column)
    ]
    run = [{"run": name, "state": "COMPLETE", "origin": "reference", "value": 0.5} for name in references]
    tables = {"studies": [study], "trials": run, "evaluations": rows}
    return describe_outcome({name: make_frame(name, table) for name, table in tables.items()})


def test_a_reference_is_told_where_the_study_runs_it() -> None:
    assert "base view" not in outcome(OTHERS, references=("identity", "trivial", "start"))  # bare, or an older folder
    said = outcome({**OTHERS, "twice": [0.7, 0.71]})
    assert "beats a second draw of the base view by 21.0 points" in said and said.endswith("It helped.")
    said = outcome({**OTHERS, "twice": [0.95, 0.96]})
    assert "misses a second draw" in said and said.endswith("No help is shown over a second draw of the base view.")
    said = outcome(OTHERS, references=("identity", "twice", "trivial", "start"))  # not confirmed yet
    assert "is not compared with a second draw of the base view (twice is missing on both seeds)" in said
    assert "It helped" not in said


def test_bare_is_told_beside_the_verdict() -> None:
    said = outcome({**OTHERS, "bare": [0.95, 0.96]})
    assert "misses bare images without a base view by 4.0 points" in said and said.endswith("It helped.")


def test_every_reference_has_words_and_a_colour() -> None:
    assert {*WORDS} == {*REFERENCES} == {*plots.REFERENCES}
    assert len({*plots.REFERENCES.values()}) == len(REFERENCES)
