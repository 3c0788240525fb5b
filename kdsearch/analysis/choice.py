"""Which second view to use: rows of a comparison on the test split beside the reference that the confirmation found."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kdsearch.analysis.compare import WORDS, confirmation_rows
from kdsearch.analysis.scale import Scale
from kdsearch.augment.presets import TORCHVISION
from kdsearch.core.looks import LAST, LEAST
from kdsearch.core.terminal import number_of
from kdsearch.study.comparisons import BESIDE, compare, deciding
from kdsearch.study.run_folder import COMPARED, read_answers
from kdsearch.tasks.metrics import ACCURACY

SEARCHED = ("online", "schedule", "final")  # rows of a searched policy
CONFIRMED = {"learned": "online", "frozen": "final"}  # rows of the confirmation, as they are called here
HOURS = 3600
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Choice:
    """What is held against what, decided before the test split was read."""

    searched: str | None  # the row of the searched policy; None where there is none
    reference: str | None
    by: str  # what decided, in words

    def describe(self, table: pd.DataFrame, metric: str) -> str:
        """The sentence a user needs: on inherited competence, or on the study's own metric where it has one."""
        rows = table.set_index("run")
        if self.reference is None or self.reference not in rows.index:
            return "No reference was measured, so that there is nothing to hold the others against."
        words = WORDS.get(self.reference, self.reference)
        if self.searched is None or self.searched not in rows.index:
            return (
                f"The differences are to {words}, the best reference {self.by}; no searched policy is among the rows."
            )
        row = rows.loc[self.searched]
        of = "inherited" if metric == ACCURACY and not pd.isna(row["inherited_difference"]) else "value"
        scale, named = (Scale(ACCURACY), "inherited competence") if of == "inherited" else (Scale(metric), metric)
        difference, low, high = (row[f"{of}_{name}"] for name in ("difference", "low", "high"))
        if pd.isna(difference):
            return f"Nothing is said of the searched policy: no seed has both {self.searched} and {words}."
        by = f"{scale.difference(difference)} in {named}"
        if pd.isna(low) or row["seeds"] < LEAST:
            return (
                f"Too few seeds to choose by: {self.searched} is {by} over {words}, the best reference {self.by}, "
                f"on {number_of(int(row['seeds']), 'seed')}, and {LEAST} are needed."
            )
        by += f" (95 % interval {scale.interval(low, high)})"
        beside = ""
        if of == "inherited" and not pd.isna(row["value_low"]):
            own = Scale(metric)
            beside = (
                f" In {metric} on images as they are: {own.difference(row['value_difference'])} "
                f"({own.interval(row['value_low'], row['value_high'])})."
            )
        if row[f"{of}_better"]:
            return (
                f"Use the searched policy ({self.searched}): {by} over {words}, the best reference {self.by}.{beside}"
            )
        worse, least = row[f"{of}_worse"], row[f"{of}_least_shown"]
        verdict = "worse" if worse else "not shown to be better"
        could = "" if worse or pd.isna(least) else f"; {scale.by(least)} would have been shown"
        return (
            f"Use {words}, the best reference {self.by}: the searched policy ({self.searched}) is {verdict}, {by}"
            f"{could}.{beside}"
        )


def choose(tables: Mapping[str, pd.DataFrame], rows: Sequence[str]) -> Choice:
    """What is compared, by the confirmation; where there is none by the search's runs on search-validation.

    Args:
        tables: `trials`, `evaluations` and `comparisons` of the run folder.
        rows: The names of what was trained.
    """
    kept, by = confirmation_rows(tables["evaluations"]), "of the confirmation"
    if kept["value"].dropna().empty:
        trials = tables["trials"]
        kept, by = trials[trials["origin"] == "reference"], "on search-validation"
    numbers = [{"inherited": value} for value in kept["inherited"]]
    of = deciding(numbers, tables["studies"]["metric"].iloc[0])
    means = kept.groupby("run", sort=False)[of].mean().dropna()
    references = [name for name in rows if (name in WORDS or name in TORCHVISION) and name not in BESIDE]
    known = means[[name for name in references if name in means.index]]
    reference = str(known.idxmax()) if len(known) else next(iter(references), None)
    own = means.rename(CONFIRMED)
    own = own[[name for name in ("online", "final") if name in own.index and name in rows]]
    searched = str(own.idxmax()) if len(own) else next((name for name in rows if name == "online"), None)
    return Choice(searched, reference, by)


def compared_rows(folder: Path, rows: Rows, choice: Choice, metric: str) -> pd.DataFrame:
    """A line a run: means over seeds, images and hours, and its difference to the best reference.

    Intervals of 95 % are over seeds and test images (`core.crossed`), each by itself. `better` and `worse` are shown at
    the level of a confirmation of as many seeds with one look (`core.looks`): never of fewer than 3.

    Args:
        rows: As `test_readings.jsonl` has them, of one comparison.
    """
    named = [{**row, "value": _number(row.get("value")), "inherited": _number(row.get("inherited"))} for row in rows]
    answers = {
        (row["run"], row["seed"]): read_answers(folder, row["key"], row["seed"], place=COMPARED) for row in named
    }
    found = []
    for run in dict.fromkeys(row["run"] for row in named):
        own = [row for row in named if row["run"] == run]
        line: dict[str, Any] = {
            "run": run,
            "seeds": sum(not np.isnan(row["value"]) for row in own),
            "of_seeds": len(own),
        }
        for name in ("value", "inherited", "calibration_error", "kl", "student_images", "teacher_images"):
            values = [_number(row.get(name)) for row in own]
            line[name] = float(np.nanmean(values)) if not np.isnan(values).all() else np.nan
        line["hours"] = sum(_number(row.get("seconds")) for row in own) / HOURS
        for of in ("value", "inherited"):
            known: dict[str, Any] = dict.fromkeys(("difference", "low", "high", "least_shown"), np.nan)
            known |= {"better": False, "worse": False}
            if choice.reference is not None and run != choice.reference:
                one = compare(named, answers, run, choice.reference, of)
                low, high = one.interval()
                level = LAST[0] if one.seeds >= LEAST else 0.0
                known = {"difference": one.mean, "low": low, "high": high, "least_shown": one.least_shown(level),
                         "better": one.p_over() <= level, "worse": one.turned().p_over() <= level}  # fmt: skip
            line |= {f"{of}_{name}": value for name, value in known.items()}
        found.append(line)
    return pd.DataFrame(found)


def _number(value: float | None) -> float:
    return np.nan if value is None else float(value)


def table_cells(table: pd.DataFrame, metric: str) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the printed table."""
    scale, share = Scale(metric), Scale(ACCURACY)
    heads = ["row", "inherited", "difference (95 %)", metric, "difference (95 %)", "calibration error", "KL, nats",
             "student images", "teacher images", "hours"]  # fmt: skip

    def difference(of: Scale, row: Any, name: str) -> str:
        mean, low, high = (getattr(row, f"{name}_{part}") for part in ("difference", "low", "high"))
        if pd.isna(mean):
            return "-"
        return of.difference(mean) + ("" if pd.isna(low) else f" ({of.interval(low, high)})")

    def number(value: float, text: str) -> str:
        return "-" if pd.isna(value) else format(value, text)

    cells = []
    for row in table.itertuples():
        seeds = "" if row.seeds == row.of_seeds else f" ({row.seeds} of {number_of(row.of_seeds, 'seed')})"
        cells.append([
            f"{row.run}{seeds}",
            "-" if pd.isna(row.inherited) else share.text(row.inherited), difference(share, row, "inherited"),
            "-" if pd.isna(row.value) else scale.text(row.value), difference(scale, row, "value"),
            number(row.calibration_error, ".3f"), number(row.kl, ".3f"),
            number(row.student_images, ",.0f"), number(row.teacher_images, ",.0f"), f"{row.hours:.3f}",
        ])  # fmt: skip
    return heads, cells


def describe_rows(table: pd.DataFrame, metric: str) -> Iterator[str]:
    """The table in lines."""
    heads, cells = table_cells(table, metric)
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    for line in (heads, *cells):
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()


def to_markdown(table: pd.DataFrame, metric: str, sentence: str) -> str:
    """The table and the sentence, as a Markdown file has them."""
    heads, cells = table_cells(table, metric)
    lines = ["| " + " | ".join(line) + " |" for line in (heads, ["---"] * len(heads), *cells)]
    return f"{sentence}\n\n" + "\n".join(lines) + "\n"
