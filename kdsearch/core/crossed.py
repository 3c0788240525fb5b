"""Differences that vary with seeds and with images: their mean, its interval, and whether it is over 0.

A difference of two runs has a number for each seed and each image. Seeds stand for students that could have been
trained, images for images that could have been asked about; both are samples, and each crosses all of the other.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95
SAME = 1e-9  # of their size, by which differences that are equal may differ


class Crossed(NamedTuple):
    """The mean of differences over seeds and images, and how well it is known."""

    mean: float
    error: float  # standard error, for other seeds and other images; NaN of a single seed
    freedom: float  # degrees of freedom
    seeds: int
    images: int

    def interval(self) -> tuple[float, float]:
        """Its 95 % ends; NaN where there is no error to go by: a single seed, or differences that are all the same."""
        if not self.error > 0:
            return math.nan, math.nan
        half = float(stats.t.ppf((1 + LEVEL) / 2, self.freedom)) * self.error
        return self.mean - half, self.mean + half

    def turned(self) -> "Crossed":
        """The other less the one."""
        return self._replace(mean=-self.mean)

    def p_over(self) -> float:
        """One-sided: how likely so large a mean is where the true one is 0; 1 where nothing is known."""
        if not self.error > 0:
            return 1.0
        return float(stats.t.sf(self.mean / self.error, self.freedom))

    def least_shown(self, level: float) -> float:
        """The smallest mean that a one-sided test at this level would have shown, with this error; NaN of none."""
        return float(stats.t.isf(level, self.freedom)) * self.error if self.error > 0 and level > 0 else math.nan


def crossed(differences: np.ndarray) -> Crossed:
    """Mean and error of differences, by a two-way analysis of variance with both ways random.

    The variance of the mean is (MS_seeds + MS_images - MS_rest) / (S N), never less than that of either way alone, with
    Satterthwaite's degrees of freedom, at least S - 1.

    Args:
        differences: (S, N), of S seeds and N images; of a single column the error is that of seeds alone, as where it
            is not known how single images did.

    Reference:
        Satterthwaite, An approximate distribution of estimates of variance components, 1946; Searle, Casella and
        McCulloch, Variance components, 1992

    >>> found = crossed(np.array([[1.0, 2.0, 0.0], [2.0, 3.0, 1.0], [0.0, 1.0, -1.0]]))
    >>> found.mean, round(found.error, 3)
    (1.0, 0.816)
    """
    seeds, images = differences.shape
    mean = float(differences.mean())
    if seeds < 2:
        return Crossed(mean, math.nan, math.nan, seeds, images)
    if np.ptp(differences) <= SAME * np.abs(differences).max():
        return Crossed(mean, 0.0, seeds - 1.0, seeds, images)
    if images < 2:
        return Crossed(mean, float(differences.std(ddof=1)) / math.sqrt(seeds), seeds - 1.0, seeds, images)
    of_seeds, of_images = differences.mean(1), differences.mean(0)
    rest = differences - of_seeds[:, None] - of_images + mean
    freedom = np.array([seeds - 1, images - 1, (seeds - 1) * (images - 1)])
    squares = np.array([images * of_seeds.var(ddof=1), seeds * of_images.var(ddof=1), (rest**2).sum() / freedom[2]])
    together = squares[0] + squares[1] - squares[2]
    largest = max(together, squares[0], squares[1])
    satterthwaite = largest**2 / (squares**2 / freedom).sum()
    return Crossed(mean, math.sqrt(largest / (seeds * images)), max(float(satterthwaite), seeds - 1.0), seeds, images)


def holm(p: Sequence[float]) -> list[float]:
    """The same p-values corrected for their number: each at most a level holds for all of them at once.

    Reference:
        Holm, A simple sequentially rejective multiple test procedure, 1979

    >>> [round(value, 3) for value in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p)
    steps = np.maximum.accumulate([(len(p) - i) * p[place] for i, place in enumerate(order)])
    found = np.empty(len(p))
    found[order] = np.minimum(steps, 1.0)
    return [float(value) for value in found]
