"""Did it help? Paired differences between the searched policy and the references."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from kdsearch.analysis.scale import Scale
from kdsearch.core.terminal import option
from kdsearch.tasks.metrics import ACCURACY

WORDS = {  # of references, in the order in which they are told
    "identity": "an identity second view",  # both views are one draw of the base view
    "twice": "a second draw of the base view",
    "trivial": "TrivialAugment's rule",
    "rand_augment": "RandAugment's kind",
    "start": "its own unlearned start",
    "bare": "bare images without a base view",
}
ALWAYS = ("identity", "trivial", "start")  # what every folder has; the others are there where they were run
BESIDE = ("bare",)  # told, and no part of the verdict: what is gained over it is the base view's as well
SAME = 1e-9  # of their size, by which differences that are equal may differ


def paired_differences(evaluations: pd.DataFrame, run: str, of: str = "value") -> pd.DataFrame:
    """`run` against every other run, paired by seed: mean difference and its 95 % t interval.

    Args:
        evaluations: With columns `run`, `seed`, `value`; a run that diverged has no value. Rows of the test split are
            passed over: they are of one student each.
        of: The column that is compared, such as "inherited".

    Returns:
        One row per other run: `against`, `n` seeds on which both have a value, `seeds` in all, `difference`, `low`,
        `high` in the unit of the values, and a `note` where the interval is not that of all seeds. The bounds are
        missing with a single seed, and where the difference is the same on all of them.
    """
    evaluations = confirmation_rows(evaluations)
    wide = seed_table(evaluations, of)
    rows = []
    for other in wide.columns.drop(run, errors="ignore") if run in wide.columns else []:
        d = (wide[run] - wide[other]).dropna().to_numpy()
        size = float(wide[[run, other]].abs().max().max())
        alike = len(d) > 0 and float(np.ptp(d)) <= SAME * size
        low, high = (math.nan, math.nan) if len(d) < 2 or alike else map(float, t_interval(d))
        notes = [_lacking(evaluations, name) for name in (run, other)]
        notes += [_no_interval(len(d), len(wide))] if len(d) and math.isnan(low) else []
        note = "; ".join(filter(None, notes)) or None
        rows.append((other, len(d), len(wide), d.mean() if len(d) else math.nan, low, high, note))
    columns = {"against": "str", "n": "Int64", "seeds": "Int64", "difference": "float64", "low": "float64",
               "high": "float64", "note": "str"}  # fmt: skip
    return pd.DataFrame(rows, columns=list(columns)).astype(columns)


def t_interval(differences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the 95 % t interval of a mean, over the last axis (..., n), n at least 2.

    >>> [round(float(end), 2) for end in t_interval(np.array([1.0, 2.0, 3.0]))]
    [-0.48, 4.48]
    """
    n = differences.shape[-1]
    half = stats.t.ppf(0.975, n - 1) * differences.std(-1, ddof=1) / math.sqrt(n)
    return differences.mean(-1) - half, differences.mean(-1) + half


def describe_outcome(tables: Mapping[str, pd.DataFrame]) -> str:
    """By how much the searched policy beats or misses each reference, with an interval; a verdict where there is one.

    "It helped" takes values of the policy and of all references but `bare` on two seeds or more, with every lower bound
    above 0; on how many seeds a run diverged is said. A reference that the study does not run is passed over.
    """
    study, evaluations = tables["studies"].iloc[0], confirmation_rows(tables["evaluations"])
    if pd.isna(study["best_trial"]):
        ended = f"{study['pruned']} pruned, {study['failed']} failed"
        return f"No trial finished ({ended}), so there is no policy to speak of; see the column fail_reason of trials."
    name, best, scale = f"trial {study['best_trial']}", study["best_value"], Scale(study["metric"])
    nothing = tables["trials"].query("is_best.fillna(False)", engine="python")["at_chance"].dropna()
    if not nothing.empty:
        return f"{name} {nothing.iloc[0]}: nothing is confirmed."
    if evaluations.empty:
        known = [_reference(scale, row) for row in tables["trials"].query("origin == 'reference'").itertuples()]
        others = ", ".join(filter(None, known))
        return (
            f"{name} reached {_named(scale, best)} on search-validation{f' ({others})' if others else ''}; the best of "
            "several noisy trials is too good, and this is not confirmed on fresh seeds "
            f"({option('confirmation', 3)} does it)."
        )
    seeds, wanted = evaluations["seed"].nunique(), study["budget_confirmation"]
    of = "" if pd.isna(wanted) or wanted <= seeds else f" of {wanted}"
    start = f"On {seeds}{of} fresh {'seed' if f'{seeds}{of}' == '1' else 'seeds'} the searched policy ({name})"
    own = _lacking(evaluations, "learned")
    values = evaluations.query("run == 'learned'")["value"].dropna()
    if values.empty:
        return f"{start}: {own or 'learned is missing'}: nothing is confirmed.{_frozen(scale, evaluations)}"
    differences = paired_differences(evaluations, "learned").set_index("against")
    references = _references(tables["trials"], evaluations)
    parts = [_part(scale, evaluations, differences, reference) for reference in references]
    shown = [name for name in references if name in differences.index and differences.loc[name, "low"] > 0]
    rest = [WORDS[reference] for reference in references if reference not in (*shown, *BESIDE)]
    over = " or ".join(filter(None, (", ".join(rest[:-1]), *rest[-1:])))
    verdict = f"No help is shown over {over}" if rest else f"It helped{' where it ended' if own else ''}"
    if evaluations.query("run == 'learned'")["at_chance"].notna().any():
        verdict = "Nothing is confirmed"
    return (
        f"{start} brings the student to {_named(scale, values.mean())} on search-validation{f' ({own})' if own else ''}"
        f"; it {', '.join(parts)}. {verdict}.{_frozen(scale, evaluations)}"
    )


def collect_notes(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """What was warned of: in the references, and in the best trial."""
    trials = tables["trials"]
    told = trials[(trials["origin"] == "reference") | trials["is_best"].fillna(False)].dropna(subset="warnings")
    return [f"{row.run}: {row.warnings}" for row in told.itertuples()]


def memory_note(tables: Mapping[str, pd.DataFrame]) -> str | None:
    """What to bear in mind where the teacher has learned search-validation; None where it has not, or nobody knows."""
    study = tables["studies"].iloc[0]
    if pd.isna(study["teacher_remembers"]) or not study["teacher_remembers"]:
        return None
    how = "was trained" if study["teacher_saw"] == "both" else "seems to have been trained"
    return (
        f"The teacher {how} on search-validation: what it gets right there is memory, and the regions where it alone "
        "is right are larger than they would be on new images."
    )


def _references(trials: pd.DataFrame, evaluations: pd.DataFrame) -> list[str]:
    """The references of a study, in the order of `WORDS`: a bare study and older folders have but three."""
    run = {*trials.query("origin == 'reference'")["run"], *evaluations["run"]}
    return [name for name in WORDS if name in ALWAYS or name in run]


def _frozen(scale: Scale, evaluations: pd.DataFrame) -> str:
    """What the exported policy does for a fresh student, against the unlearned start."""
    rows = evaluations.query("run == 'frozen'")
    if rows.empty:
        return ""
    start, lacking, values = " The exported policy, held fixed with fresh students,", "", rows["value"].dropna()
    if said := _lacking(evaluations, "frozen"):
        lacking = f" ({said})"
    if values.empty:
        return f"{start} is not measured{lacking}."
    part = _part(scale, evaluations, paired_differences(evaluations, "frozen").set_index("against"), "start")
    return f"{start} brings them to {scale.text(values.mean())}{lacking}; it {part}."


def confirmation_rows(evaluations: pd.DataFrame) -> pd.DataFrame:
    """The rows of the frame `evaluations` that are the confirmation's, on search-validation."""
    return evaluations[evaluations["split"].ne("test")] if "split" in evaluations else evaluations


def seed_table(evaluations: pd.DataFrame, of: str = "value") -> pd.DataFrame:
    """A row a seed and a column a run, as they came; runs without any value too."""
    return evaluations.pivot_table(index="seed", columns="run", values=of, sort=False, dropna=False)


def _lacking(evaluations: pd.DataFrame, run: str) -> str:
    """On how many seeds a run has no value, and why: "trivial diverged on 1 of 3 seeds"; "" where it has them all."""
    seeds, rows = evaluations["seed"].nunique(), evaluations[evaluations["run"] == run]
    diverged, absent = int(rows["value"].isna().sum()), seeds - rows["seed"].nunique()
    chance = int(rows["at_chance"].notna().sum()) if "at_chance" in rows else 0
    found = [f"{what} on {_of(count, seeds)}" for what, count in
             (("diverged", diverged), ("is missing", absent), ("is at chance", chance)) if count]  # fmt: skip
    return f"{run} {' and '.join(found)}" if found else ""


def _of(count: int, seeds: int) -> str:
    if count < seeds:
        return f"{count} of {seeds} seeds"
    return "the one seed" if seeds == 1 else f"{'both' if seeds == 2 else f'all {seeds}'} seeds"


def _no_interval(n: int, seeds: int) -> str:
    return "one seed, no interval" if n == 1 else f"the same on {_of(n, max(n, seeds))}: no interval"


def _reference(scale: Scale, row: Any) -> str | None:
    if row.state == "COMPLETE":
        return f"{row.run} {scale.text(row.value)}"
    return f"{row.run} failed" if row.state == "FAIL" else None


def _named(scale: Scale, value: float) -> str:
    return scale.text(value) if scale.name == ACCURACY else f"a {scale.name} of {scale.text(value)}"


def _part(scale: Scale, evaluations: pd.DataFrame, differences: pd.DataFrame, reference: str) -> str:
    """One comparison in words, with its interval, or why there is none."""
    words, lacking = WORDS[reference], _lacking(evaluations, reference)
    if reference not in differences.index or not differences.loc[reference, "n"]:
        return f"is not compared with {words} ({lacking or 'no seed has both'})"
    row = differences.loc[reference]
    d, n = row["difference"], int(row["n"])
    how = f"equals {words}" if scale.equal(d) else f"{'beats' if d > 0 else 'misses'} {words} by {scale.by(abs(d))}"
    if pd.isna(row["low"]):
        interval = _no_interval(n, int(row["seeds"]))
    else:
        interval = f"95 % interval {scale.interval(row['low'], row['high'])}"
        interval += f", {n} seeds" if n < row["seeds"] else ""
    return f"{how} ({'; '.join(filter(None, (interval, lacking)))})"
