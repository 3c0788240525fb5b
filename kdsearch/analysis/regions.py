"""Disagreement regions of a run folder."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from kdsearch.analysis.frames import frames, regions_frame
from kdsearch.core.errors import KdsearchError
from kdsearch.core.files import as_path
from kdsearch.study.run_folder import trial_folder


def regions(folder: Path | str, trial: int | None = None, *, storage: str | None = None) -> pd.DataFrame:
    """The frame `regions` of one trial, the best one by default: strongest first.

    The strongest has the largest `teacher_only_low - clean_rate`: how far the rate at which the teacher alone is right
    exceeds that on clean images, of the same class where it is of one, at the lower end of an interval that holds for
    all regions of the trial at once.

    Args:
        storage: See `frames`.

    Raises:
        KdsearchError: no finished trial, or not that one.
    """
    folder = as_path(folder)
    return trial_regions(frames(folder, storage=storage, only=("studies", "trials")), folder, trial)


def trial_regions(tables: Mapping[str, pd.DataFrame], folder: Path, trial: int | None = None) -> pd.DataFrame:
    """The same from the frames `studies` and `trials` of a folder."""
    study, trials = tables["studies"].iloc[0], tables["trials"]
    chosen = study["best_trial"] if trial is None else trial
    numbers = [int(number) for number in trials["trial"].dropna()]
    rows = regions_frame(folder, study["study"], chosen if chosen in numbers else -1)
    if rows.empty:
        with_regions = [n for n in numbers if (trial_folder(folder, n) / "regions.json").is_file()]
        if trial is not None:
            what = f"trial {trial} has no regions"
        elif pd.isna(chosen):
            what = "no trial has finished"
        else:
            what = f"the best trial, {chosen}, has left no {trial_folder(folder, chosen) / 'regions.json'}"
        raise KdsearchError(f"{folder}: {what}; trials with regions: {', '.join(map(str, with_regions)) or 'none'}")
    return sort_regions(rows)


def sort_regions(rows: pd.DataFrame) -> pd.DataFrame:
    """By how far regions of one trial exceed clean images at the lower end; those whose rate does not come last."""
    excess = rows["teacher_only_low"] - rows["clean_rate"]
    above = rows["teacher_only_rate"] > rows["clean_rate"]
    keys = pd.DataFrame({"above": above, "excess": excess})
    order = keys.sort_values(["above", "excess"], ascending=False, kind="stable").index
    return rows.loc[order].reset_index(drop=True)
