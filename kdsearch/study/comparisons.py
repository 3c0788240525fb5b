"""Two runs of a confirmation on the same seeds and images: by how much one is better, and how well that is known."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdsearch.core.crossed import Crossed, crossed
from kdsearch.study.run_folder import read_answers
from kdsearch.tasks.metrics import ACCURACY

BESIDE = ("bare",)  # told, and no part of the verdict: what is gained over it is the base view's as well
Row = Mapping[str, Any]
Answers = Mapping[tuple[str, int], Mapping[str, np.ndarray]]  # by run and seed


def deciding(rows: Sequence[Row], metric: str) -> str:
    """What the verdict is on: inherited competence where it was measured, and the study has no metric of its own."""
    known = any(row.get("inherited") is not None and not np.isnan(row["inherited"]) for row in rows)
    return "inherited" if metric == ACCURACY and known else "value"


def answers_of(folder: Path, rows: Sequence[Row]) -> Answers:
    """What single images contributed to each row of a confirmation; empty where that was not kept."""
    return {(row["run"], row["seed"]): read_answers(folder, row["run"], row["seed"]) for row in rows}


def compare(rows: Sequence[Row], answers: Answers, run: str, other: str, of: str = "value") -> Crossed:
    """One run less another, on the seeds on which both have ended; the mean is NaN where there are none.

    By image where it is known what single images contributed to both, else by seed alone.

    Args:
        rows: Of the confirmation, each with `run`, `seed` and the column `of`.
        answers: Of these rows.
        of: "value" or "inherited".
    """
    ended = {(row["run"], row["seed"]): row.get(of) for row in rows}
    seeds = [seed for (name, seed), value in ended.items() if name == run and _known(value, ended.get((other, seed)))]
    if not seeds:
        return Crossed(np.nan, np.nan, np.nan, 0, 0)
    nothing = np.empty(0)
    mine, theirs = ([answers[name, seed].get(of, nothing) for seed in seeds] for name in (run, other))
    sizes = {len(values) for values in (*mine, *theirs)}
    if len(sizes) > 1 or 0 in sizes:
        mine, theirs = ([np.array([ended[name, seed]]) for seed in seeds] for name in (run, other))
    return crossed(np.stack(mine) - np.stack(theirs))


def _known(*values: float | None) -> bool:
    return all(value is not None and not np.isnan(value) for value in values)
