"""What is said of a search: a verdict with evidence, an interval that holds, a student that learned something."""

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import kdsearch as kd
from kdsearch.analysis import plots
from kdsearch.analysis.compare import WORDS, paired_differences, sentence, t_interval
from kdsearch.analysis.frames import frame
from kdsearch.metrics import Scale, metric_value


def right(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.argmax(1) == labels).double().mean()


def test_the_jackknife_of_interleaved_classes_is_that_of_shuffled_ones() -> None:
    labels = torch.arange(1000) % 20
    logits = torch.eye(20)[labels].clone()
    logits[labels < 2] = torch.eye(20)[5]  # two classes of 20 are never right
    value, error = metric_value(right, logits, labels)
    assert value == pytest.approx(0.9)
    assert error == pytest.approx(math.sqrt(0.9 * 0.1 / 1000), rel=0.5)


def test_an_error_that_nobody_knows_is_not_written() -> None:
    assert Scale("kappa").text(0.5, math.nan) == Scale("kappa").text(0.5) == "0.500"


@pytest.mark.parametrize(
    ("low", "high", "written"),
    [
        (-0.01, 0.03, "-1.0 to +3.0"),
        (-0.0004, -0.0002, "-0.04 to -0.02"),
        (0.0, 0.0004, "+0.00 to +0.04"),
        (0.0281, 0.0284, "+2.81 to +2.84"),
        (0.0001, 0.03, "+0.01 to +3.00"),
    ],
)
def test_the_ends_of_an_interval_are_told_apart(low: float, high: float, written: str) -> None:
    assert Scale("accuracy").interval(low, high) == written


def tables(
    values: dict[str, list[float | None]], *, metric: str = "accuracy", wanted: int = 0
) -> dict[str, pd.DataFrame]:
    """Frames of a search whose winner is trial 0, with the given confirmation: None where it diverged."""
    study = {"study": "x", "metric": metric, "best_trial": 0, "best_value": 0.9, "pruned": 0, "failed": 0}
    rows = [
        {"study": "x", "run": run, "seed": seed, "value": value}
        for run, column in values.items()
        for seed, value in enumerate(column)
    ]
    wanted = wanted or max(map(len, values.values()), default=0)
    return {
        "studies": frame("studies", [{**study, "budget_confirmation": wanted}]),
        "trials": frame("trials", []),
        "evaluations": frame("evaluations", rows),
    }


GOOD = {"identity": [0.5, 0.51, 0.49], "trivial": [0.6, 0.61, 0.59], "start": [0.6, 0.62, 0.6]}


def test_it_helped_takes_values_of_the_policy_and_of_all_references() -> None:
    learned = {"learned": [0.9, 0.91, 0.9], "frozen": [0.9, 0.9, 0.91]}
    said = sentence(tables({**learned, **GOOD}))
    assert "to 90.3 % on search-validation; it beats" in said and said.count("It helped.") == 1
    for reference in GOOD:
        said = sentence(tables({**learned, **GOOD, reference: [None, None, None]}))
        assert "It helped" not in said and f"No help is shown over {WORDS[reference]}." in said
        assert f"is not compared with {WORDS[reference]} ({reference} diverged on all 3 seeds)" in said
        without = {run: column for run, column in {**learned, **GOOD}.items() if run != reference}
        said = sentence(tables(without))
        assert "It helped" not in said and f"({reference} has not run on all 3 seeds)" in said


def test_a_policy_that_diverged_everywhere_confirms_nothing() -> None:
    said = sentence(tables({"learned": [None] * 3, "frozen": [None] * 3, **GOOD}))
    assert "learned diverged on all 3 seeds: nothing is confirmed" in said
    assert "It helped" not in said and "frozen diverged on all 3 seeds" in said


def test_a_seed_without_a_value_is_said_wherever_a_mean_leaves_it_out() -> None:
    said = sentence(
        tables({"learned": [0.9, None, 0.92], "frozen": [0.9, 0.9, None], **GOOD, "trivial": [0.6, 0.6, None]})
    )
    assert "to 91.0 % on search-validation (learned diverged on 1 of 3 seeds); it" in said
    assert said.count("2 seeds") >= 2 and "one seed, no interval; trivial diverged on 1 of 3 seeds" in said
    assert "brings them to 90.0 % (frozen diverged on 1 of 3 seeds)" in said
    said = sentence(tables({"learned": [0.9, None, 0.905], **GOOD}))
    assert said.endswith("It helped where it ended.")


def test_a_confirmation_that_is_not_finished_is_said() -> None:
    said = sentence(tables({"learned": [0.9]}, wanted=3))
    assert said.startswith("On 1 of 3 fresh seeds the searched policy (trial 0)")
    assert "identity has not run on the one seed" in said


@pytest.mark.parametrize("metric", ["accuracy", "kappa"])
def test_equal_differences_have_no_interval(metric: str) -> None:
    same, above = [0.7, 0.617], [0.8, 0.717]
    values = {"learned": same, "frozen": same, "identity": same, "trivial": [0.683, 0.617], "start": above}
    said = sentence(tables(values, metric=metric))
    assert "equals an identity second view (the same on both seeds: no interval)" in said
    assert "misses its own unlearned start by " in said and "+0.0 to +0.0" not in said
    differences = paired_differences(tables(values)["evaluations"], "learned").set_index("against")
    assert differences.loc[["frozen", "identity", "start"], ["low", "high"]].isna().all(axis=None)
    assert differences.loc["trivial", ["low", "high"]].notna().all()


VALUES = st.lists(st.none() | st.sampled_from([0.5, 0.5000001, 0.51, 0.6, 1.0]), min_size=1, max_size=4)


@given(st.dictionaries(st.sampled_from(["learned", "frozen", *WORDS]), VALUES))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_no_sentence_has_a_number_that_is_none(values: dict[str, list[float | None]]) -> None:
    said = sentence(tables(values))
    assert not re.search(r"\bnan\b|None|\(\)|\+0\.0 to \+0\.0|; it \.|-0\.0 to \+0\.0", said)
    if "It helped" in said:
        n = min(sum(value is not None for value in values[run]) for run in ("learned", *WORDS))
        assert n >= 2


def test_the_interval_of_a_mean_covers_it_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    for n in (2, 3, 4, 5):
        low, high = t_interval(random.normal(0.3, 2.0, (40_000, n)))
        assert ((low <= 0.3) & (high >= 0.3)).mean() == pytest.approx(0.95, abs=0.005)


def test_values_of_an_earlier_winner_are_not_the_best_policys(finished, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    kept = json.loads((folder / "confirmation.json").read_text())
    assert len(kd.frames(folder)["evaluations"])
    (folder / "confirmation.json").write_text(json.dumps({**kept, "winner": kept["winner"] + 1}))
    assert kd.frames(folder)["evaluations"].empty


def test_the_picture_of_the_confirmation_says_where_values_are_missing() -> None:
    values = {"learned": [0.9, None, 0.9], "identity": [None] * 3, "trivial": [0.5, 0.5, 0.6]}
    figure = plots.did_it_help(tables(values))
    ticks = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert ticks == ["identity\n(3 of 3 without value)", "trivial", "learned\n(1 of 3 without value)"]
    assert not [text.get_text() for text in figure.axes[0].texts if "nan" in text.get_text()]


def test_one_trial_of_one_epoch_is_drawn_on_an_axis_that_counts(finished) -> None:
    read = kd.frames(finished.folder)
    one = {**read, "trials": read["trials"].query("trial == 0"), "epochs": read["epochs"].query("epoch == 1")}
    (low, high), ticks = plots.trials(one).axes[0].get_xlim(), plots.trials(one).axes[0].get_xticks()
    assert (low, high) == (-0.75, 0.75) and [tick for tick in ticks if low <= tick <= high] == [0]
    axes = plots.curves(one).axes[0]
    assert {line.get_marker() for line in axes.lines} == {"o"}
    assert [tick for tick in axes.get_xticks() if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]] == [1]
