"""When a confirmation looks, and when it ends: few looks at seeds as they come, each at a level of its own."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from scipy import stats

from kdsearch.core.crossed import Crossed

FUTILE = 0.10  # conditional power, under which more seeds are not worth their time
EARLY = ((4, 0.001), (7, 0.008))  # seeds and one-sided level, of looks before the last
LAST = (0.020, 0.020, 0.019)  # level of the last look, by how many were before it
APART = 3  # seeds between looks, at least
LEAST = 3  # seeds, under which nothing is shown: with two of them "helps" is wrong in nearly 4 %

Verdict = Literal["helps", "undecided", "not shown"]


class Look(NamedTuple):
    """How many seeds are looked at together, and the one-sided level of that."""

    seeds: int
    level: float


def plan_looks(seeds: int) -> tuple[Look, ...]:
    """The looks of a confirmation of so many seeds: at 4, at 7, and at all of them.

    "Helps" is said of a policy that is not better than every reference in at most 2.5 % of confirmations, as
    `tests/laws/test_crossed.py` simulates. The levels are a little under the nominal ones, since degrees of freedom are
    estimated; of fewer than 3 seeds it is 0.

    >>> plan_looks(4)
    (Look(seeds=4, level=0.02),)
    >>> [look.seeds for look in plan_looks(10)]
    [4, 7, 10]
    """
    early = [Look(*look) for look in EARLY if look[0] + APART <= seeds]
    return (*early, Look(seeds, LAST[len(early)] if seeds >= LEAST else 0.0)) if seeds else ()


def level_reached(looks: Sequence[Look], seeds: int) -> float:
    """The level of the last look that so many seeds have come to; 0 of none."""
    return max((look.level for look in looks if look.seeds <= seeds), default=0.0)


def decide(comparisons: Sequence[Crossed], look: Look, looks: Sequence[Look]) -> Verdict:
    """What is said after a look: that the policy is better than every reference, that it is not shown, or nothing yet.

    Better than every one of them, each at the level of the look: an intersection-union test, which needs no correction
    for their number. Where it is unlikely that the looks to come show it, it ends as not shown.

    Args:
        comparisons: The policy less each reference, on the seeds of the look; of none there is no verdict.
        looks: All of them.

    Reference:
        Berger, Multiparameter hypothesis testing and acceptance sampling, 1982 (intersection-union tests)
    """
    if comparisons and max(one.p_over() for one in comparisons) <= look.level:
        return "helps"
    last = looks[-1]
    if look.seeds >= last.seeds:
        return "not shown"
    likely = min((conditional_power(one, *last) for one in comparisons), default=0.0)
    return "undecided" if likely >= FUTILE else "not shown"


def conditional_power(comparison: Crossed, seeds: int, level: float) -> float:
    """How likely the last look, at so many seeds, shows a difference, if the true one is what is seen now.

    Reference:
        Lan and Wittes, The B-value: a tool for monitoring data, 1988
    """
    if not comparison.error > 0 or comparison.seeds >= seeds:
        return 0.0
    share = comparison.seeds / seeds  # of what will be known
    z, limit = comparison.mean / comparison.error, float(stats.t.isf(level, seeds - 1))
    to_come = (limit - z / math.sqrt(share)) / math.sqrt(1 - share)
    return float(stats.norm.sf(to_come))
