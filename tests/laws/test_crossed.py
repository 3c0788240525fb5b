"""Intervals over seeds and images hold their level, and so do confirmations that look several times: simulated.

Differences are made of variance components, in points: of seeds, of images (policy times image), and the rest. Those of
inherited competence were measured on digits; of images a hard case stands beside it.
"""

import math

import numpy as np
import pytest
from scipy import stats

from kdsearch.core.crossed import Crossed, crossed, holm
from kdsearch.core.looks import conditional_power, decide, plan_looks
from tests.conftest import LONG

CLEAN, INHERITED, HARD = (0.43, 3.5, 16.0), (1.1, 2.5, 12.0), (1.1, 10.0, 12.0)
IMAGES = 300
RUNS = 20_000 if LONG else 2_000


def simulate(
    random: np.random.Generator, seeds: int, components: tuple[float, ...], difference: float = 0.0
) -> np.ndarray:
    of_seeds, of_images, rest = components
    return (
        difference
        + of_seeds * random.standard_normal((seeds, 1))
        + of_images * random.standard_normal((1, IMAGES))
        + rest * random.standard_normal((seeds, IMAGES))
    )


def error_of_share(share: float) -> float:
    return 3 * math.sqrt(share * (1 - share) / RUNS)


@pytest.mark.parametrize("components", [CLEAN, INHERITED, HARD], ids=["clean", "inherited", "hard"])
@pytest.mark.parametrize("seeds", [3, 4, 10])
def test_a_95_percent_interval_holds_the_true_difference(seeds: int, components: tuple[float, ...]) -> None:
    random, held = np.random.default_rng(seeds), 0
    for _ in range(RUNS // 2):
        low, high = crossed(simulate(random, seeds, components)).interval()
        held += low <= 0 <= high
    assert 0.94 - error_of_share(0.94) <= held / (RUNS // 2) <= 0.99 + error_of_share(0.99)


def test_an_interval_over_seeds_alone_does_not_hold() -> None:
    """What stood here before: images that are the same for all seeds are no part of a t interval over seeds."""
    random, held = np.random.default_rng(0), 0
    for _ in range(400):
        means = simulate(random, 10, HARD).mean(1)
        half = stats.t.ppf(0.975, 9) * means.std(ddof=1) / math.sqrt(10)
        held += abs(means.mean()) <= half
    assert held / 400 < 0.85


def share_of_helps(seeds: int, components: tuple[float, ...], differences: tuple[float, ...], runs: int) -> float:
    random, looks, helps = np.random.default_rng(1), plan_looks(seeds), 0
    for _ in range(runs):
        against = [simulate(random, seeds, components, difference) for difference in differences]
        for look in looks:
            verdict = decide([crossed(d[: look.seeds]) for d in against], look, looks)
            if verdict != "undecided":
                break
        helps += verdict == "helps"
    return helps / runs


@pytest.mark.parametrize("components", [INHERITED, HARD], ids=["inherited", "hard"])
@pytest.mark.parametrize("seeds", [4, 10])
def test_a_policy_that_is_as_good_as_one_reference_helps_in_a_fortieth(
    seeds: int, components: tuple[float, ...]
) -> None:
    """The other references are far below, so that they decide nothing."""
    assert share_of_helps(seeds, components, (0.0,), RUNS) <= 0.025 + error_of_share(0.025)


def test_ten_seeds_show_what_is_worth_finding() -> None:
    """Two references tied at 2.4 points of inherited competence below."""
    assert share_of_helps(10, INHERITED, (2.4, 2.4), RUNS // 8) >= 0.9
    clean = share_of_helps(10, CLEAN, (1.0, 1.0), RUNS // 8)
    print(f"a clean point over two tied references: {clean:.2f}")
    assert 0.2 < clean < 0.6


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
        assert math.isnan(found.detectable()) and conditional_power(found, 10, 0.02) == 0
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


def test_the_difference_that_could_be_seen_is_seen_in_four_of_five() -> None:
    random = np.random.default_rng(2)
    detectable = np.median([crossed(simulate(random, 10, INHERITED)).detectable() for _ in range(200)])
    seen = [crossed(simulate(random, 10, INHERITED, detectable)).p_over() <= 0.025 for _ in range(RUNS // 4)]
    assert np.mean(seen) == pytest.approx(0.8, abs=0.08)


def test_holm_corrects_for_their_number() -> None:
    assert holm([0.01, 0.02, 0.03]) == pytest.approx([0.03, 0.04, 0.04]) and holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
