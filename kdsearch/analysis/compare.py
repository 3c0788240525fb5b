"""Did it help? Paired differences between the searched policy and the references."""

from collections.abc import Collection, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from kdsearch.analysis.scale import Scale
from kdsearch.core.crossed import holm
from kdsearch.core.looks import level_reached, plan_looks
from kdsearch.core.terminal import number_of, option
from kdsearch.study.comparisons import BESIDE, answers_of, compare, deciding
from kdsearch.tasks.metrics import ACCURACY

WORDS = {  # of references, in the order in which they are told
    "identity": "an identity second view",  # both views are one draw of the base view
    "twice": "a second draw of the base view",
    "trivial": "TrivialAugment's rule",
    "rand_augment": "RandAugment's kind",
    "labels_only": "labels alone (no teacher)",
    "start": "its own unlearned start",
    "bare": "bare images without a base view",
}
ALWAYS = ("identity", "trivial", "start")  # what every folder has; the others are there where they were run
RUNS = ("learned", "frozen")  # of the searched policy, that are compared with all others
TAUGHT = "rand_augment"  # the same views as `labels_only`, with the teacher


def comparison_rows(
    folder: Path, rows: Sequence[Mapping[str, Any]], metric: str, planned: int | None = None
) -> list[dict[str, Any]]:
    """Rows of the frame `comparisons`: the learned and the frozen policy less each other run of a confirmation.

    Beside them `labels_only` less the same views with the teacher: is distillation worth anything?

    Intervals of 95 % are over seeds and images (`core.crossed`), in folders of before over seeds alone; `p` is
    one-sided, `p_holm` the same corrected for the number of references; `level` is what they are held against.

    Args:
        folder: The run folder.
        rows: Of the confirmation.
        metric: The name of the study's metric.
        planned: Seeds of the confirmation; as many as there are where None.
    """
    found, decides, seeds = [], deciding(rows, metric), len({row["seed"] for row in rows})
    answers, learned = answers_of(folder, rows), len({row["seed"] for row in rows if row["run"] == "learned"})
    level = level_reached(plan_looks(max(seeds, planned or 0)), learned)
    names = list(dict.fromkeys(row["run"] for row in rows))
    columns = ["value", *(["inherited"] if any(row.get("inherited") is not None for row in rows) else [])]
    against = {run: [name for name in names if name != run] for run in RUNS}
    against["labels_only"] = [name for name in names if name == TAUGHT]
    for run, of in product([name for name in against if name in names], columns):
        made = {other: compare(rows, answers, run, other, of) for other in against[run]}
        references = [other for other in made if other in WORDS and other not in BESIDE]
        corrected = dict(zip(references, holm([made[other].p_over() for other in references]), strict=True))
        for other, one in made.items():
            low, high = one.interval()
            known = {"low": low, "high": high, "p": one.p_over(), "p_holm": corrected.get(other),
                     "least_shown": one.least_shown(level / max(1, len(references)))}  # fmt: skip
            found.append({
                "run": run, "against": other, "of": metric if of == "value" else of, "decides": of == decides,
                "seeds": one.seeds, "of_seeds": seeds, "images": one.images if one.images > 1 else None,
                "difference": one.mean, "level": level, **(known if one.error > 0 else {}),
            })  # fmt: skip
    return found


def describe_outcome(tables: Mapping[str, pd.DataFrame]) -> str:
    """By how much the searched policy beats or misses each reference, with an interval; a verdict where there is one.

    "It helped" is said where the policy is better than every reference but `bare`, each at the level of the look at
    which the confirmation ended (`core.looks`); what is said of single references is corrected for their number. On how
    many seeds a run diverged is said. A reference that the study does not run is passed over.
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
            f"({option('confirmation', 4)} does it)."
        )
    learned = evaluations.query("run == 'learned'")
    seeds, wanted = evaluations["seed"].nunique(), study["budget_confirmation"]
    looks = plan_looks(int(seeds if pd.isna(wanted) else max(seeds, wanted)))
    looked = [look for look in looks if look.seeds <= learned["seed"].nunique()]
    of = f" of {looks[0].seeds}" if not looked else ""
    images = study["confirm_images"]
    where = f" and {number_of(int(images), 'image')} that no trial saw" if not pd.isna(images) and images else ""
    start = f"On {seeds}{of} fresh {'seed' if f'{seeds}{of}' == '1' else 'seeds'}{where} the searched policy ({name})"
    own, frozen = _lacking(evaluations, "learned"), _frozen(scale, tables)
    if learned["value"].dropna().empty:
        return f"{start}: {own or 'learned is missing'}: nothing is confirmed.{frozen}"
    lacking, compared = f" ({own})" if own else "", _comparisons(tables, "learned")
    references = _references(tables["trials"], evaluations)
    parts = [_part(scale, evaluations, compared, reference) for reference in references]
    judged = [reference for reference in references if reference not in BESIDE]
    held = compared[compared["p_holm"] <= compared["level"]].index
    shown = {name for name in judged if name in held}
    helps = {*judged} <= {*compared[compared["p"] <= compared["level"]].index}
    verdict = f"It helped{' where it ended' if own else ''}" if helps else _not_shown(compared, judged, shown)
    if learned["at_chance"].notna().any():
        verdict = "Nothing is confirmed"
    told = _brings(scale, learned, compared) + ("" if where else " on search-validation")
    beside = _beside(scale, tables, judged) + _labels_alone(tables)
    return f"{start} brings students to {told}{lacking}; it {', '.join(parts)}. {verdict}.{beside}{frozen}"


def _comparisons(tables: Mapping[str, pd.DataFrame], run: str, *, decides: bool = True) -> pd.DataFrame:
    """A run less each other, by what the verdict is on or by the other number, a row for each."""
    rows = tables["comparisons"]
    return rows[(rows["run"] == run) & (rows["decides"] == decides)].set_index("against")


def _brings(scale: Scale, learned: pd.DataFrame, compared: pd.DataFrame) -> str:
    """What students come to."""
    value = _named(scale, learned["value"].mean())
    if compared.empty or compared["of"].iloc[0] != "inherited":
        return value
    inherited = Scale(ACCURACY).text(learned["inherited"].mean())
    return f"{inherited} of what the teacher gets right on shifted images (inherited competence), {value} as they are"


def _not_shown(compared: pd.DataFrame, judged: Sequence[str], shown: Collection[str]) -> str:
    """Over which references there is help, over which none is shown, and what could have been seen."""
    rest = [reference for reference in judged if reference not in shown]
    texts = [_listed([WORDS[name] for name in judged if (name in shown) == is_shown]) for is_shown in (True, False)]
    better = f"It is better than {texts[0].replace(' or ', ' and ')}; no" if shown else "No"
    corrected = f", corrected for {len(judged)} comparisons" if len(judged) > 1 else ""
    seen = compared["least_shown"].reindex(rest).max()
    scale = Scale(ACCURACY if compared.empty or compared["of"].iloc[0] == "inherited" else compared["of"].iloc[0])
    could = "" if pd.isna(seen) else f", where {scale.by(seen)} would have been shown"
    return f"{better} help is shown over {texts[1]}{corrected}{could}"


def _beside(scale: Scale, tables: Mapping[str, pd.DataFrame], judged: Sequence[str]) -> str:
    """The same differences in the number that the verdict is not on."""
    rows = _comparisons(tables, "learned", decides=False)
    rows = rows.loc[[name for name in judged if name in rows.index]].dropna(subset="low")
    if rows.empty:
        return ""
    of = rows["of"].iloc[0]
    scale = Scale(ACCURACY) if of == "inherited" else scale
    parts = [f"{scale.difference(row.difference)} ({scale.interval(row.low, row.high)}) over {WORDS[str(row.Index)]}"
             for row in rows.itertuples()]  # fmt: skip
    return f" In {'inherited competence' if of == 'inherited' else of}: {', '.join(parts)}."


def _labels_alone(tables: Mapping[str, pd.DataFrame]) -> str:
    """That the teacher is worth less than nothing on the same views, where that is shown at the level of the look."""
    compared = _comparisons(tables, "labels_only")
    if compared.empty or not (compared["p"] <= compared["level"]).all():
        return ""
    return " Distillation does not help here: on the same views labels alone are better than with the teacher."


def _listed(words: Sequence[str]) -> str:
    """
    >>> _listed(["a", "b", "c"]), _listed(["a"])
    ('a, b or c', 'a')
    """
    return " or ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


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


def _frozen(scale: Scale, tables: Mapping[str, pd.DataFrame]) -> str:
    """What the exported policy does for a fresh student, against the unlearned start."""
    evaluations = confirmation_rows(tables["evaluations"])
    rows = evaluations.query("run == 'frozen'")
    if rows.empty:
        return ""
    start, lacking = " The exported policy, held fixed with fresh students,", ""
    if said := _lacking(evaluations, "frozen"):
        lacking = f" ({said})"
    if rows["value"].dropna().empty:
        return f"{start} is not measured{lacking}."
    compared = _comparisons(tables, "frozen")
    by_inherited = not compared.empty and compared["of"].iloc[0] == "inherited"
    value = Scale(ACCURACY).text(rows["inherited"].mean()) if by_inherited else scale.text(rows["value"].mean())
    return f"{start} brings them to {value}{lacking}; it {_part(scale, evaluations, compared, 'start')}."


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


def _part(scale: Scale, evaluations: pd.DataFrame, compared: pd.DataFrame, reference: str) -> str:
    """One comparison in words, with its interval, or why there is none."""
    words, lacking = WORDS[reference], _lacking(evaluations, reference)
    if reference not in compared.index or not compared.loc[reference, "seeds"]:
        return f"is not compared with {words} ({lacking or 'no seed has both'})"
    row = compared.loc[reference]
    scale = Scale(ACCURACY) if row["of"] == "inherited" else scale
    d, n = row["difference"], int(row["seeds"])
    how = f"equals {words}" if scale.equal(d) else f"{'beats' if d > 0 else 'misses'} {words} by {scale.by(abs(d))}"
    if pd.isna(row["low"]):
        interval = _no_interval(n, int(row["of_seeds"]))
    else:
        interval = f"95 % interval {scale.interval(row['low'], row['high'])}"
        interval += f", {n} seeds" if n < row["of_seeds"] else ""
    return f"{how} ({'; '.join(filter(None, (interval, lacking)))})"
