"""`kdsearch compare`: rows on fresh seeds and the test split, by as many images, resumed, and the sentence."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import conftest
import numpy as np
import pandas as pd
import pytest
import torch

import kdsearch as kd
from kdsearch.analysis.choice import Choice, choose, compared_rows
from kdsearch.augment.spec import Snapshot
from kdsearch.commands import compare as module
from kdsearch.study.run_folder import COMPARED, keep_answers, read_readings

SEEDS = 3
OWN = ["online", "schedule", "final"]


def inverted(image: torch.Tensor) -> torch.Tensor:
    return 1 - image


@pytest.fixture(scope="module")
def study(tiny_study: kd.Study) -> kd.Study:
    return replace(tiny_study, test=kd.data.digits()[2].subset(torch.arange(60)))


@pytest.fixture(scope="module")
def compared(
    finished: Any, study: kd.Study, tmp_path_factory: pytest.TempPathFactory
) -> kd.commands.compare.Comparison:  # type: ignore[name-defined]
    run = shutil.copytree(finished.folder, tmp_path_factory.mktemp("compare") / "run")
    spec = finished.best
    policies = {"mine": inverted, "a file": run / "trials" / "0000" / "policy.json", "spec": spec}
    return kd.compare(study, seeds=SEEDS, policies=policies, out=run, quiet=True)


def test_every_row_is_trained_on_every_seed_and_kept(compared: Any, study: kd.Study) -> None:
    names = [*OWN, "identity", "trivial", "rand_augment", "labels_only", "start", "mine", "a file", "spec"]
    assert [*compared.table["run"]] == names and (compared.table["seeds"] == SEEDS).all()
    rows = compared.evaluations
    assert len(rows) == SEEDS * len(names) and {*rows["split"]} == {"test"} and (rows["images"] == 60).all()
    for column in ("value", "inherited", "calibration_error", "kl", "seconds"):
        assert rows[column].notna().all()
    assert len({*rows["read_at"]}) == 1
    shown = kd.frames(compared.folder)["evaluations"].query("split == 'test'")
    assert [*shown["run"]] == [*rows["run"]]
    text = (compared.folder / "compare" / "compare.md").read_text()
    assert compared.sentence in text and text.count("\n| ") == len(names) + 2
    assert (compared.folder / "compare" / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_students_answer_on_as_many_images_policy_steps_counted(compared: Any, study: kd.Study) -> None:
    """The others of a seed on no fewer than `online`, and on less than a step an epoch more."""
    rows, budget = compared.evaluations, study.budget
    plain = budget.epochs * budget.steps * budget.batch * 2
    for _, of_seed in rows.groupby("seed"):
        images = of_seed.set_index("run")["student_images"].astype(int)
        assert images["online"] > plain  # its policy steps
        others = images.drop("online")
        assert (others >= images["online"]).all()
        assert (others < images["online"] + budget.epochs * budget.batch * 2).all()
        teacher = of_seed.set_index("run")["teacher_images"].astype(int)
        # images as they are come back, and the teacher is asked about each once
        assert (teacher.drop(["online", "identity"]) == others.drop("identity") / 2).all()
        assert teacher["identity"] == 0 and teacher["online"] == images["online"] - plain / 2


def test_rows_share_the_start_and_the_given_ones_are_what_they_say(compared: Any) -> None:
    rows = compared.evaluations.pivot_table(index="seed", columns="run", values="kl")
    assert (rows["final"] == rows["spec"]).all()  # the winner's last numbers, by another way
    winner = kd.frames(compared.folder)["studies"]["best_trial"].item()
    assert (rows["a file"] == rows["final"]).all() == (winner == 0)
    assert not (rows["mine"] == rows["identity"]).any()
    assert not (rows["final"] == rows["trivial"]).any()


def test_a_second_call_trains_nothing_and_comes_to_the_same(
    compared: Any, study: kd.Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "run_trial", None)
    policies = {"mine": inverted, "a file": compared.folder / "trials" / "0000" / "policy.json"}
    policies["spec"] = kd.PolicySpec.load(compared.folder / f"trials/{winner(compared.folder):04d}/policy.json")
    again = kd.compare(study, seeds=SEEDS, policies=policies, out=compared.folder)
    pd.testing.assert_frame_equal(again.table, compared.table)
    assert again.sentence == compared.sentence and "was read" not in capsys.readouterr().out


def winner(folder: Path) -> int:
    return int(kd.frames(folder, only=("studies",))["studies"]["best_trial"].item())


def test_interrupted_within_a_row_it_goes_on_to_the_same_numbers(
    compared: Any, study: kd.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(compared.folder, tmp_path / "run")
    (run / "test_readings.jsonl").unlink()
    shutil.rmtree(run / "compare")
    train, count = module.run_trial, []

    def ends_in_the_second_epoch(*args: Any, on_record: Any, **rest: Any) -> Any:
        def told(record: Any) -> None:
            on_record(record)
            if len(count) == 1 and record.epoch == 2:
                raise KeyboardInterrupt

        found = train(*args, on_record=told, **rest)
        count.append(found)
        return found

    monkeypatch.setattr(module, "run_trial", ends_in_the_second_epoch)
    asked = {"seeds": 1, "references": ["trivial"], "out": run}
    with pytest.raises(KeyboardInterrupt):
        kd.compare(study, **asked)
    assert len(count) == 1 and (run / "compare" / "checkpoint.pt").exists()
    monkeypatch.setattr(module, "run_trial", train)
    found = kd.compare(study, **asked)
    assert "was read before, on" in capsys.readouterr().out and not (run / "compare" / "checkpoint.pt").exists()
    known = compared.evaluations.set_index(["run", "seed"])
    for row in found.evaluations.itertuples():
        whole = known.loc[(row.run, row.seed)]
        assert (row.value, row.inherited, row.kl) == (whole["value"], whole["inherited"], whole["kl"])
    assert "Too few seeds to choose by" in found.sentence


def test_a_schedule_is_replayed_epoch_by_epoch(study: kd.Study, compared: Any, tmp_path: Path) -> None:
    """Moments that are all the same are the policy held still; one of .6 is seen by the last of three epochs alone."""
    ready = kd.study.preflight.preflight(study, tmp_path).ready  # type: ignore[attr-defined]
    spec = kd.PolicySpec.load(compared.folder / "trials" / "0000" / "policy.json")
    first, other = spec.schedule[0].settings, kd.presets.trivial([*spec.operations]).snapshot(0.0).settings
    other = {name: replace_limits(one, spec.operations[name].limit) for name, one in other.items()}

    def trained(*moments: tuple[float, Any]) -> list[float]:
        schedule = tuple(Snapshot(progress=p, settings=s) for p, s in moments)
        replayed, records = spec.model_copy(update={"schedule": schedule}), []
        module.run_trial(ready, None, policy=kd.Policy.from_spec(replayed), replayed=replayed, seed=4,
                         on_record=records.append)  # fmt: skip
        return [record.distillation_loss for record in records]

    def held(settings: Any) -> list[float]:
        records: list[Any] = []
        policy = kd.Policy.from_spec(spec.model_copy(update={"schedule": (Snapshot(progress=1.0, settings=settings),)}))
        module.run_trial(ready, None, policy=policy, seed=4, on_record=records.append)
        return [record.distillation_loss for record in records]

    assert trained((0.0, first), (1.0, first)) == held(first)
    late = trained((0.0, first), (0.6, other))
    assert late[:2] == held(first)[:2] and late[2] != held(first)[2]
    assert trained((0.0, first), (1.0, other)) == held(first)  # what it came to at the end trained nobody


def replace_limits(setting: Any, limit: float | None) -> Any:
    return setting.model_copy(update={"low": 0.0 if limit else None, "high": limit or None})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"references": ["trivail"]}, "did you mean 'trivial'"),
        ({"policies": {"online": inverted}}, "two rows are called online"),
        ({"policies": {"../x": inverted}}, "the name '../x'"),
        ({"policies": {"x": 3}}, "policies: '3' is none"),
        ({"seeds": 0}, "seeds"),
        ({"top": 0, "references": []}, "nothing to compare"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_read(
    compared: Any, study: kd.Study, changes: dict[str, Any], said: str
) -> None:
    before = (compared.folder / "test_readings.jsonl").read_bytes()
    with pytest.raises(kd.KdsearchError, match=re.escape(said)):
        kd.compare(study, **{"out": compared.folder, "quiet": True, **changes})
    assert (compared.folder / "test_readings.jsonl").read_bytes() == before


def test_another_study_no_search_and_no_test_split_are_refused(compared: Any, study: kd.Study, tmp_path: Path) -> None:
    for other, folder, said in (
        (replace(study, label_weight=0.5), compared.folder, "which differs in label weight"),
        (replace(study, test=None), compared.folder, "has no test split"),
        (study, tmp_path / "none", "not a run folder"),
    ):
        with pytest.raises(kd.KdsearchError, match=said):
            kd.compare(other, out=folder, quiet=True)


def test_a_search_of_another_seed_with_its_trials_elsewhere(
    tiny_study: kd.Study, study: kd.Study, tmp_path: Path
) -> None:
    """The seed and the epochs are those that were searched with; a metric of one's own is what the sentence is on."""
    url, budget = f"sqlite:///{tmp_path / 'elsewhere.db'}", replace(study.budget, trials=1, confirmation=0)
    mine = replace(study, budget=budget, metric=sure)
    kd.search(mine, out=tmp_path / "run", seed=7, epochs=2, storage=url, quiet=True)
    asked = {"seeds": 3, "references": ["identity"], "out": tmp_path / "run", "quiet": True}
    with pytest.raises(kd.KdsearchError, match="kept outside the folder"):
        kd.compare(mine, **asked)
    found = kd.compare(mine, **asked, storage=url)
    assert len(found.table) == 4 and "in sure" in found.sentence and "inherited" not in found.sentence
    images = 2 * budget.steps * budget.batch * 2
    assert images < found.table["student_images"].min() < 3 * images


def sure(logits: torch.Tensor, labels: torch.Tensor) -> float:
    return logits.softmax(1)[torch.arange(len(labels)), labels].mean().item()


@pytest.mark.filterwarnings("ignore:.*TrivialAugmentWide translates")
def test_the_command_and_torchvisions_rows(
    compared: Any, study: kd.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kdsearch: Any
) -> None:
    monkeypatch.setattr(conftest, "STUDY", study, raising=False)
    (tmp_path / "study.py").write_text("from conftest import STUDY as study\n")
    run = shutil.copytree(compared.folder, tmp_path / "run")
    policy = run / "trials" / "0000" / "policy.json"
    said = kdsearch("compare", tmp_path / "study.py", "--out", run, "--seeds", 1, "--top", 2, "--references",
                    "trivial,trivial_augment_wide,torchvision_rand_augment", "--policy", policy)  # fmt: skip
    assert "was read before, on" in said and "by kdsearch compare" in said
    for name in (*OWN, "trivial", "trivial_augment_wide", "torchvision_rand_augment", "policy"):
        assert re.search(rf"^{name}  ", said, re.MULTILINE), name
    assert re.search(r"^online of \d  ", said, re.MULTILINE)
    assert len([row for row in read_readings(run) if row["read_at"] != compared.evaluations["read_at"][0]]) == 6


# What is said


def frames_of(confirmed: dict[str, list[float]]) -> dict[str, pd.DataFrame]:
    rows = [{"run": run, "seed": seed, "split": "confirm", "value": 0.9, "inherited": value}
            for run, values in confirmed.items() for seed, value in enumerate(values)]  # fmt: skip
    return {
        "studies": pd.DataFrame({"metric": ["accuracy"]}),
        "evaluations": pd.DataFrame(rows, columns=["run", "seed", "split", "value", "inherited"]),
        "trials": pd.DataFrame(
            {"run": ["trivial", "identity"], "origin": ["reference"] * 2, "value": [0.8, 0.9], "inherited": [0.8, 0.9]}
        ),
    }


def test_what_is_held_against_what_is_decided_by_the_confirmation_alone() -> None:
    rows = [*OWN, "identity", "trivial", "bare"]
    tables = frames_of({"learned": [0.7], "frozen": [0.8], "identity": [0.6], "trivial": [0.75], "bare": [0.99]})
    assert choose(tables, rows) == Choice("final", "trivial", "of the confirmation")
    assert choose(frames_of({}), rows) == Choice("online", "identity", "on search-validation")
    assert choose(tables, ["trivial"]) == Choice(None, "trivial", "of the confirmation")
    assert choose(tables, ["online", "trivial_augment_wide"]).reference == "trivial_augment_wide"  # torchvision's own


@pytest.mark.parametrize(
    ("gain", "said"),
    [
        (0.05, "Use the searched policy (online): +"),
        (0.0, "Use TrivialAugment's rule, the best reference of the confirmation: the searched policy (online) is not "
         "shown to be better"),
        (-0.05, "the searched policy (online) is worse, -"),
    ],
)  # fmt: skip
def test_the_sentence_says_what_to_use(tmp_path: Path, gain: float, said: str) -> None:
    random, rows = np.random.default_rng(0), []
    for run, worth in (("online", 0.9 + gain), ("trivial", 0.9)):
        for seed in range(5):
            value = worth + 0.002 * random.standard_normal()
            by_image = value + 0.05 * random.standard_normal(400)
            rows.append({"run": run, "seed": seed, "key": run, "value": value, "inherited": by_image.mean(),
                         "seconds": 1.0})  # fmt: skip
            kept = {"inherited": torch.tensor(by_image), "value": torch.tensor(by_image)}
            keep_answers(tmp_path, run, seed, kept, place=COMPARED)
    choice = Choice("online", "trivial", "of the confirmation")
    table = compared_rows(tmp_path, rows, choice, "accuracy")
    sentence = choice.describe(table, "accuracy")
    assert said in sentence
    line = table.set_index("run").loc["online"]
    assert line["inherited_low"] < line["inherited_difference"] < line["inherited_high"]
    one = compared_rows(tmp_path, [row for row in rows if row["seed"] < 2], choice, "accuracy")
    assert "Too few seeds" in choice.describe(one, "accuracy") and json.dumps(sentence)
