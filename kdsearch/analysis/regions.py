"""Disagreement regions of a run folder."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from kdsearch.analysis.frames import frames
from kdsearch.errors import KdsearchError


def regions(folder: Path | str, trial: int | None = None) -> pd.DataFrame:
    """The frame `regions` of one trial, the best one by default: strongest first.

    Raises:
        KdsearchError: no finished trial, or not that one.
    """
    return of_trial(frames(folder), str(folder), trial)


def of_trial(tables: Mapping[str, pd.DataFrame], where: str, trial: int | None = None) -> pd.DataFrame:
    """The same from the frames of one folder, which messages call `where`."""
    table = tables["regions"]
    chosen = tables["studies"]["best_trial"].iloc[0] if trial is None else trial
    rows = table[table["trial"] == chosen] if not pd.isna(chosen) else table[:0]
    if rows.empty:
        with_regions = sorted(table["trial"].dropna().unique())
        what = "no trial has finished" if trial is None else f"trial {trial} has no regions"
        raise KdsearchError(f"{where}: {what}; trials with regions: {', '.join(map(str, with_regions)) or 'none'}")
    return rows.sort_values("teacher_only_low", ascending=False, ignore_index=True)
