"""`benchmarks/fidelity.py`: correlations, regrets and deviations that are known, and rows that are gone on with."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import kdsearch as kd
from kdsearch.study.preflight import preflight


@pytest.fixture(scope="module")
def fidelity(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("fidelity")


def table_of(worth: float, rest: float, policies: int = 34, seeds: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """True worths and a measurement of them."""
    random = np.random.default_rng(0)
    true = worth * random.standard_normal((policies, 1))
    return true + np.zeros((policies, seeds)), true + rest * random.standard_normal((policies, seeds))


def test_a_criterion_without_error_ranks_as_the_worth_does(fidelity: ModuleType) -> None:
    true, measured = table_of(2.0, 1.0)
    random = np.random.default_rng(1)
    assert fidelity.correlation(true, true) == pytest.approx(1) and fidelity.regret(true, true, 8, random) == 0
    assert fidelity.correlation(-true, true) == pytest.approx(-1)
    low, high = fidelity.bootstrap(measured, measured, random)
    assert low < fidelity.correlation(measured, measured) < high < 1
    assert fidelity.correlation(np.ones_like(true), true) == 0  # one that tells nothing apart


def test_the_winner_of_noise_falls_short_by_what_the_best_of_eight_is_worth(fidelity: ModuleType) -> None:
    true, _ = table_of(1.0, 0.0, 2000)
    noise = np.random.default_rng(2).standard_normal(true.shape)
    found = fidelity.regret(noise, true, 8, np.random.default_rng(3))
    assert found == pytest.approx(1.42, abs=0.12)  # the mean of the largest of 8 normal numbers


def test_two_equal_policies_differ_by_what_was_put_in(fidelity: ModuleType) -> None:
    _, measured = table_of(5.0, 1.5, 300, 20)
    assert fidelity.pair_deviation(measured + np.arange(20)) == pytest.approx(1.5 * 2**0.5, rel=0.05)


def test_rows_are_gone_on_with_and_shown(
    fidelity: ModuleType, tiny_study: kd.Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test = kd.data.digits()[2].subset(torch.arange(40))
    budget = replace(tiny_study.budget, epochs=fidelity.EIGHTHS, steps=1)
    ready = preflight(replace(tiny_study, test=test, budget=budget, base="auto"), tmp_path / "tiny").ready
    file, asked = tmp_path / "rows.jsonl", [(seed, number) for seed in range(2) for number in range(3)]
    rows = list(fidelity.run_rows(ready, asked[:4], file))
    again = list(fidelity.run_rows(ready, asked, file))
    assert again[:4] == rows and len(file.read_text().splitlines()) == len(asked) == len(again)
    assert all(len(row["inherited"]) == fidelity.EIGHTHS for row in again)
    fidelity.show("tiny", 8, again)
    assert f"{fidelity.EIGHTHS}/{fidelity.EIGHTHS}" in capsys.readouterr().out
