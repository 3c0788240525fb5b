"""Did it help? Paired differences between the searched policy and the references."""

import math
from collections.abc import Mapping

import pandas as pd
from scipy import stats

from kdsearch.metrics import ACCURACY, Scale

WORDS = {
    "identity": "an identity second view",
    "trivial": "TrivialAugment's rule",
    "start": "its own unlearned start",
}


def paired_differences(evaluations: pd.DataFrame, run: str) -> pd.DataFrame:
    """`run` against every other run, paired by seed: mean difference and its 95 % t interval.

    Args:
        evaluations: With columns `run`, `seed`, `value`.

    Returns:
        One row per other run: `against`, `n`, `difference`, `low`, `high`, in the unit of the values; the bounds are
        missing with a single seed.
    """
    wide = evaluations.pivot_table(index="seed", columns="run", values="value", sort=False)
    rows = []
    for other in wide.columns.drop(run, errors="ignore") if run in wide.columns else []:
        d = (wide[run] - wide[other]).dropna()
        half = math.nan
        if len(d) > 1:
            half = float(stats.t.ppf(0.975, len(d) - 1) * d.std(ddof=1) / math.sqrt(len(d)))
        rows.append((other, len(d), d.mean(), d.mean() - half, d.mean() + half))
    columns = {"against": "str", "n": "Int64", "difference": "float64", "low": "float64", "high": "float64"}
    return pd.DataFrame(rows, columns=list(columns)).astype(columns)


def sentence(tables: Mapping[str, pd.DataFrame]) -> str:
    """One sentence: by how much the searched policy beats or misses each reference, with an interval."""
    study, evaluations = tables["studies"].iloc[0], tables["evaluations"]
    if pd.isna(study["best_trial"]):
        ended = f"{study['pruned']} pruned, {study['failed']} failed"
        return f"No trial finished ({ended}), so there is no policy to speak of; see the column fail_reason of trials."
    name, best, scale = f"trial {study['best_trial']}", study["best_value"], Scale(study["metric"])
    if evaluations.empty:
        references = tables["trials"].query("origin == 'reference' and state == 'COMPLETE'")
        values = ", ".join(f"{row.run} {scale.text(row.value)}" for row in references.itertuples())
        return (
            f"{name} reached {_named(scale, best)} on search-validation ({values}); the best of several noisy trials "
            "is too good, and this is not confirmed on fresh seeds (`--confirmation 3` does it)."
        )
    seeds = evaluations["seed"].nunique()
    mean = evaluations.query("run == 'learned'")["value"].mean()
    differences = paired_differences(evaluations, "learned").set_index("against")
    against = [reference for reference in WORDS if reference in differences.index]
    parts = [_part(scale, WORDS[reference], differences.loc[reference]) for reference in against]
    shown = [reference for reference in against if differences.loc[reference, "low"] > 0]
    rest = [WORDS[reference] for reference in against if reference not in shown]
    verdict = "It helped" if not rest else f"No help is shown over {' or '.join(rest)}"
    return (
        f"On {seeds} fresh {'seed' if seeds == 1 else 'seeds'} the searched policy ({name}) brings the student to "
        f"{_named(scale, mean)} on search-validation; it {', '.join(parts)}. {verdict}."
        f"{_frozen(scale, evaluations)}"
    )


def remembered(tables: Mapping[str, pd.DataFrame]) -> str | None:
    """What to bear in mind where the teacher has learned search-validation; None where it has not, or nobody knows."""
    study = tables["studies"].iloc[0]
    if pd.isna(study["teacher_remembers"]) or not study["teacher_remembers"]:
        return None
    how = "was trained" if study["teacher_saw"] == "both" else "seems to have been trained"
    return (
        f"The teacher {how} on search-validation: what it gets right there is memory, and the regions where it alone "
        "is right are larger than they would be on new images."
    )


def _frozen(scale: Scale, evaluations: pd.DataFrame) -> str:
    """What the exported policy does for a fresh student, against the unlearned start."""
    differences = paired_differences(evaluations, "frozen").set_index("against")
    if "start" not in differences.index:
        return ""
    mean = evaluations.query("run == 'frozen'")["value"].mean()
    part = _part(scale, WORDS["start"], differences.loc["start"])
    return f" The exported policy, held fixed with fresh students, brings them to {scale.text(mean)}; it {part}."


def _named(scale: Scale, value: float) -> str:
    return scale.text(value) if scale.name == ACCURACY else f"a {scale.name} of {scale.text(value)}"


def _part(scale: Scale, words: str, row: pd.Series) -> str:
    d = row["difference"]
    how = f"equals {words}" if scale.equal(d) else f"{'beats' if d > 0 else 'misses'} {words} by {scale.by(abs(d))}"
    interval = f"95 % interval {scale.difference(row['low'])} to {scale.difference(row['high'])}"
    return f"{how} ({'one seed, no interval' if pd.isna(row['low']) else interval})"
