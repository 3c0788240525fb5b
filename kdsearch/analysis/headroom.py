"""Headroom: is there anything for a search to find, by what second views that nothing is learned of do?"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from scipy import stats

from kdsearch.analysis.compare import WORDS, confirmation_rows, seed_table
from kdsearch.analysis.scale import Scale
from kdsearch.augment.presets import FIXED
from kdsearch.core.crossed import SAME
from kdsearch.core.terminal import number_of
from kdsearch.tasks.metrics import ACCURACY

LEAST = ("twice", "identity")  # what a second view has to be better than, the first of them that was run
LEVEL = 0.95
Rows: TypeAlias = pd.DataFrame | Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Headroom:
    """By how much the best fixed second view is better than a second draw of the base view."""

    best: str  # the run
    over: str  # likewise
    seeds: int
    difference: float
    low: float  # ends of its 95 % interval; NaN with a single seed
    high: float


def find_headroom(evaluations: Rows, of: str = "value") -> Headroom | None:
    """The headroom of a pair, from runs paired by seed; None where too few runs have values.

    The error of a difference is that of a two-way analysis of variance over these runs and seeds, which takes them to
    vary alike. The interval is of the largest of the differences: it holds for each of them at once (Bonferroni), so
    that taking the best costs nothing. Seeds vary in it; the images are those of the confirmation.

    Args:
        evaluations: With columns `run`, `seed` and `of`, as in the frame `evaluations`.
        of: The column: "value", or "inherited" for inherited competence.

    Reference:
        Hochberg and Tamhane, Multiple comparison procedures, 1987 (many against one control)
    """
    rows = confirmation_rows(pd.DataFrame(evaluations))
    if rows.empty or of not in rows:
        return None
    rows = rows[rows["run"].isin([*LEAST, *FIXED])]
    table = seed_table(rows.astype({of: "float64"}), of).dropna(axis=1, how="all").dropna()
    over = next((name for name in LEAST if name in table), None)
    fixed = [name for name in FIXED if name in table]
    if over is None or not fixed or table.empty:
        return None
    differences, half = differences_of_runs(table[[over, *fixed]].to_numpy())
    best, largest = int(differences.argmax()), float(differences.max())
    return Headroom(fixed[best], over, len(table), largest, largest - half, largest + half)


def differences_of_runs(values: np.ndarray) -> tuple[np.ndarray, float]:
    """Mean differences of all runs to the first, and half the width of intervals that hold all of them at once, 95 %.

    It is NaN with a single seed, and where all seeds have the same differences.

    Args:
        values: (seeds, runs).
    """
    means, (seeds, runs) = values.mean(0), values.shape
    rest = values - means - values.mean(1, keepdims=True) + values.mean()
    if seeds == 1 or np.abs(rest).max() <= SAME * np.abs(values).max():
        return means[1:] - means[0], math.nan
    freedom = (seeds - 1) * (runs - 1)
    quantile = stats.t.ppf(1 - (1 - LEVEL) / 2 / (runs - 1), freedom)
    return means[1:] - means[0], float(quantile * math.sqrt((rest**2).sum() / freedom * 2 / seeds))


def describe_headroom(evaluations: Rows, metric: str) -> str | None:
    """One sentence: what fixed second views bring, and where there is nothing for a search to find, that."""
    found = {words: (scale, headroom) for words, scale, headroom in (
        ("inherited competence", Scale(ACCURACY), find_headroom(evaluations, "inherited")),
        (metric, Scale(metric), find_headroom(evaluations)),
    ) if headroom}  # fmt: skip
    if not found:
        return None
    whole = [*found.values()][-1][1]
    found = {words: (scale, one) for words, (scale, one) in found.items()
             if (one.over, one.seeds) == (whole.over, whole.seeds)}  # fmt: skip
    parts, shown = [], False
    for words, (scale, headroom) in found.items():
        shown |= headroom.low > 0
        by = f"{scale.difference(headroom.difference)} in {words} with {WORDS[headroom.best]}"
        interval = f"95 % interval {scale.interval(headroom.low, headroom.high)}"
        parts.append(f"{by} ({'no interval' if math.isnan(headroom.low) else interval})")
    seeds = number_of(whole.seeds, "seed")
    text = f"Headroom over {WORDS[whole.over]}, best fixed second view, {seeds}: {'; '.join(parts)}"
    return text if shown or whole.seeds == 1 else f"{text}. None is shown on so many seeds"
