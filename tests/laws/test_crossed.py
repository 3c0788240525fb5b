"""Intervals over seeds and images hold their level, and so do confirmations that look several times: simulated.

Differences are made of the variance components of `benchmarks/confirmation.py`.
"""

import math
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
from scipy import stats

from kdsearch.core.crossed import Crossed, crossed, holm
from kdsearch.core.looks import LAST, conditional_power, decide, plan_looks
from tests.conftest import LONG

IMAGES = 300
RUNS = 20_000 if LONG else 2_000


@pytest.fixture(scope="module")
def simulated(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("confirmation")


def error_of_share(share: float) -> float:
    return 3 * math.sqrt(share * (1 - share) / RUNS)


@pytest.mark.parametrize("kind", ["accuracy", "inherited", "inherited, hard"])
@pytest.mark.parametrize("seeds", [3, 4, 10])
def test_a_95_percent_interval_holds_the_true_difference(simulated: ModuleType, seeds: int, kind: str) -> None:
    random, held = np.random.default_rng(seeds), 0
    for _ in range(RUNS // 2):
        low, high = crossed(simulated.draw(random, simulated.KINDS[kind], seeds, IMAGES)).interval()
        held += low <= 0 <= high
    assert 0.94 - error_of_share(0.94) <= held / (RUNS // 2) <= 0.99 + error_of_share(0.99)


def test_an_interval_over_seeds_alone_does_not_hold(simulated: ModuleType) -> None:
    """What stood here before: images that are the same for all seeds are no part of a t interval over seeds."""
    random, held = np.random.default_rng(0), 0
    for _ in range(400):
        means = simulated.draw(random, simulated.KINDS["inherited, hard"], 10, IMAGES).mean(1)
        half = stats.t.ppf(0.975, 9) * means.std(ddof=1) / math.sqrt(10)
        held += abs(means.mean()) <= half
    assert held / 400 < 0.85


@pytest.mark.parametrize("kind", ["inherited", "inherited, hard"])
@pytest.mark.parametrize("seeds", [2, 3, 4, 7, 10, 15])
def test_a_policy_that_is_as_good_as_one_reference_helps_in_a_fortieth(
    simulated: ModuleType, seeds: int, kind: str
) -> None:
    """The other references are far below, so that they decide nothing."""
    random = np.random.default_rng(1)
    share, _ = simulated.share_of_helps(random, simulated.KINDS[kind], seeds, IMAGES, (0.0,), RUNS)
    assert share <= 0.025 + error_of_share(0.025)


@pytest.mark.parametrize("kind", ["inherited", "inherited, hard"])
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_better_and_worse_are_wrong_in_a_fortieth_each(simulated: ModuleType, seeds: int, kind: str) -> None:
    """One comparison with one look: what `kdsearch compare` says, and whether distillation helps."""
    random, parts = np.random.default_rng(3), simulated.KINDS[kind]
    found = [crossed(simulated.draw(random, parts, seeds, IMAGES)) for _ in range(RUNS)]
    for share in (
        np.mean([(one if up else one.turned()).p_over() <= LAST[0] for one in found]) for up in (True, False)
    ):
        assert share <= 0.025 + error_of_share(0.025)


def test_ten_seeds_show_what_is_worth_finding(simulated: ModuleType) -> None:
    """Two references tied, 2.4 points of inherited competence below; a point of accuracy is too little."""
    random = np.random.default_rng(1)
    found = {
        kind: simulated.share_of_helps(random, parts, 10, IMAGES, (parts.worth,) * 2, RUNS // 8)[0]
        for kind, parts in simulated.KINDS.items()
    }
    assert found["inherited"] >= 0.9 and 0.2 < found["accuracy"] < 0.6


def test_the_looks_are_those_that_are_said() -> None:
    assert [[look.seeds for look in plan_looks(seeds)] for seeds in (0, 1, 4, 6, 7, 9, 10, 15)] == [
        [], [1], [4], [6], [4, 7], [4, 9], [4, 7, 10], [4, 7, 15],
    ]  # fmt: skip
    for seeds in range(1, 20):
        levels = [look.level for look in plan_looks(seeds)]
        assert levels == sorted(levels) and levels[-1] <= 0.025


def test_where_nothing_varies_nothing_is_shown() -> None:
    for values in (np.zeros((4, 9)), np.ones((4, 9))):
        found = crossed(values)
        assert found.error == 0 and math.isnan(found.interval()[0]) and found.p_over() == 1
        assert math.isnan(found.least_shown(0.02)) and conditional_power(found, 10, 0.02) == 0
    single = crossed(np.ones((1, 9)))
    assert math.isnan(single.error) and single.p_over() == 1 and single.mean == 1
    looks = plan_looks(4)
    assert decide([], looks[0], looks) == "not shown" and decide([single], *[looks[0]], looks) == "not shown"


def test_one_reference_that_is_as_good_keeps_the_verdict_back() -> None:
    looks = plan_looks(10)
    far, tied = Crossed(9.0, 1.0, 9, 10, 300), Crossed(0.0, 1.0, 9, 10, 300)
    assert decide([far], looks[-1], looks) == "helps" and decide([far, tied], looks[-1], looks) == "not shown"
    early, level = Crossed(2.0, 1.0, 3, 4, 300), Crossed(0.0, 1.0, 3, 4, 300)
    assert decide([early], looks[0], looks) == "undecided" and decide([early, level], looks[0], looks) == "not shown"


def test_the_least_that_is_shown_is_at_the_level(simulated: ModuleType) -> None:
    differences = simulated.draw(np.random.default_rng(2), simulated.KINDS["inherited"], 4, IMAGES)
    found = crossed(differences)
    for level in (0.02, 0.004):
        moved = crossed(differences - found.mean + found.least_shown(level))
        assert moved.p_over() == pytest.approx(level) and crossed(differences - found.mean).p_over() == pytest.approx(
            0.5
        )
    assert math.isnan(found.least_shown(0.0))


def test_holm_corrects_for_their_number() -> None:
    assert holm([0.01, 0.02, 0.03]) == pytest.approx([0.03, 0.04, 0.04]) and holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
