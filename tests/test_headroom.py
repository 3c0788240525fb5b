"""What there is for a search to find, and that its interval holds."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from kdsearch.analysis.headroom import describe_headroom, differences_of_runs, find_headroom

RUNS = ("identity", "twice", "trivial", "rand_augment")


def table(values: np.ndarray, runs: tuple[str, ...] = RUNS) -> pd.DataFrame:
    """Rows of an array (seeds, runs)."""
    rows = [(run, seed, x) for seed, row in enumerate(values) for run, x in zip(runs, row, strict=True)]
    return pd.DataFrame(rows, columns=["run", "seed", "value"])


def test_headroom_is_that_of_the_best_fixed_view_with_the_error_of_two_ways() -> None:
    found = find_headroom(table(np.array([[0.50, 0.60, 0.70, 0.66], [0.52, 0.60, 0.72, 0.70]])))
    assert found is not None and (found.best, found.over, found.seeds) == ("trivial", "twice", 2)
    rest = np.array([[0.01, 0.0, -0.01], [-0.01, 0.0, 0.01]])  # by hand: what three runs and two seeds leave
    error = math.sqrt((rest**2).sum() / 2 * 2 / 2)
    half = stats.t.ppf(0.9875, 2) * error
    assert (found.difference, found.low, found.high) == pytest.approx((0.11, 0.11 - half, 0.11 + half))


def test_without_a_base_view_the_identical_view_is_what_counts_and_other_runs_are_passed_over() -> None:
    values = np.array([[0.5, 0.7, 0.6, 0.1], [0.5, 0.7, 0.7, 0.9]])
    found = find_headroom(table(values, ("identity", "trivial", "rand_augment", "learned")))
    assert found is not None and (found.best, found.over) == ("trivial", "identity")


def test_a_seed_without_all_values_and_test_readings_are_passed_over() -> None:
    rows = table(np.array([[0.5, 0.6, 0.7, 0.6], [0.5, 0.6, 0.8, math.nan]]))
    read = rows.assign(split="test", value=0.0)
    found = find_headroom(pd.concat([rows.assign(split="search-validation"), read]))
    assert found is not None and found.seeds == 1 and math.isnan(found.low)
    assert found.difference == pytest.approx(0.1)


@pytest.mark.parametrize("rows", [pd.DataFrame(), table(np.full((2, 4), math.nan)), table(np.ones((2, 1)), ("twice",))])
def test_nothing_is_said_where_there_is_nothing_to_compare(rows: pd.DataFrame) -> None:
    assert find_headroom(rows) is None
    assert describe_headroom(rows, "accuracy") is None


def test_the_same_differences_on_all_seeds_have_no_interval() -> None:
    rows = table(np.array([[0.5, 0.6, 0.61, 0.62], [0.4, 0.5, 0.51, 0.52]]))
    found = find_headroom(rows)
    assert found is not None and found.difference == pytest.approx(0.02) and math.isnan(found.low)
    assert "(no interval)" in str(describe_headroom(rows, "accuracy"))


def test_a_measure_of_other_runs_is_left_out() -> None:
    rows = table(np.array([[0.5, 0.6, 0.61, 0.60], [0.4, 0.5, 0.53, 0.52]]))
    rows["inherited"] = rows["value"].where(rows["run"] != "twice")
    said = describe_headroom(rows, "accuracy")
    assert said is not None and "inherited" not in said and "second draw of the base view" in said


def test_one_sentence_says_that_there_is_nothing_to_find() -> None:
    level = table(np.array([[0.50, 0.60, 0.61, 0.60], [0.52, 0.62, 0.60, 0.63], [0.52, 0.62, 0.63, 0.62]]))
    said = describe_headroom(level.assign(inherited=level["value"]), "accuracy")
    assert said is not None and said.startswith(
        "Headroom over a second draw of the base view, best fixed second view, 3"
    )
    assert "in inherited competence" in said and "in accuracy" in said and "None is shown" in said
    better = level.assign(value=level["value"] + 0.2 * (level["run"] == "trivial"))
    said = describe_headroom(better, "accuracy")
    assert said is not None and "+21" not in said and "TrivialAugment's rule" in said and "None is shown" not in said


@pytest.mark.parametrize("worth", [(0.0, 0.0), (0.0, 0.5), (1.0, 1.0)])
def test_the_interval_holds_the_largest_difference_though_it_is_chosen(worth: tuple[float, float]) -> None:
    random = np.random.default_rng(0)
    truth, held, count = np.array([0.0, *worth]), 0, 3_000
    for _ in range(count):
        values = truth + random.normal(0, 0.8, (3, 1)) + random.normal(0, 0.6, (3, 3))
        differences, half = differences_of_runs(values)
        held += abs(differences.max() - max(worth)) <= half
    assert stats.binomtest(held, count, 0.95, alternative="less").pvalue > 0.01, held / count
