"""A run folder as tidy frames: columns declared once, the same dtypes also where nothing happened yet."""

import csv
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from kdsearch.analysis.compare import comparison_rows
from kdsearch.augment.operations import TABLE as OPERATIONS
from kdsearch.augment.spec import PolicySpec
from kdsearch.core.errors import KdsearchError, unknown_name
from kdsearch.core.files import as_path, make_folder, write_bytes
from kdsearch.study.hpo import TrialRow, read_kept_trials
from kdsearch.study.run_folder import (
    ReadingRow,
    ResultFile,
    StudyFile,
    as_text,
    read_confirmation,
    read_epochs,
    read_policy,
    read_readings,
    read_regions,
    read_result,
    read_study,
    reference_folders,
    trial_folder,
)

TEXT, WHOLE, NUMBER, FLAG, TIME = "str", "Int64", "float64", "boolean", "datetime64[us, UTC]"
KEY = {"study": TEXT, "run": TEXT, "trial": WHOLE}  # `run` is "trial 3" or a reference's name; `trial` is missing there

COLUMNS: Mapping[str, Mapping[str, str]] = {
    "studies": {
        "study": TEXT, "folder": TEXT, "metric": TEXT, "direction": TEXT, "space": TEXT, "operations": TEXT,
        "dropped": TEXT, "classes": TEXT, "confirm_images": WHOLE, "teacher_accuracy": NUMBER, "teacher_loss": NUMBER,
        "teacher_train_accuracy": NUMBER, "teacher_clean_loss": NUMBER, "teacher_saw": TEXT, "teacher_remembers": FLAG,
        "sampler": TEXT, "pruner": TEXT, "seed": WHOLE, "budget_trials": WHOLE, "budget_epochs": WHOLE,
        "budget_steps": WHOLE, "budget_batch": WHOLE, "budget_policy_batch": WHOLE, "budget_parts": WHOLE,
        "budget_look_images": WHOLE, "budget_look_bins": WHOLE, "budget_look_operations": WHOLE,
        "budget_confirmation": WHOLE, "base": TEXT, "base_versions": WHOLE, "base_loss_rise": NUMBER,
        "teacher_fused": FLAG, "answers_looked_up": FLAG, "precision": TEXT, "compiled": FLAG, "complete": WHOLE,
        "pruned": WHOLE, "failed": WHOLE,
        "best_trial": WHOLE, "best_value": NUMBER, "device": TEXT, "python": TEXT, "kdsearch": TEXT, "torch": TEXT,
        "kornia": TEXT, "optuna": TEXT, "opened_at": TIME,
    },
    "trials": {
        **KEY, "state": TEXT, "value": NUMBER, "value_se": NUMBER, "inherited": NUMBER, "inherited_se": NUMBER,
        "inherited_common": NUMBER, "inherited_held_out": NUMBER, "inherited_clean": NUMBER,
        "calibration_error": NUMBER, "teacher_calibration_error": NUMBER, "kl": NUMBER, "shifted_images": WHOLE,
        "shifts_left_out": TEXT, "shifts_version": WHOLE, "is_best": FLAG, "last_epoch": WHOLE,
        "last_value": NUMBER, "origin": TEXT, "fail_reason": TEXT, "warnings": TEXT, "at_chance": TEXT,
        "seed": WHOLE, "retry_of": WHOLE, "seconds": NUMBER,
        "started_at": TIME, "ended_at": TIME,
    },
    "params": {**KEY, "name": TEXT, "value": NUMBER, "low": NUMBER, "high": NUMBER, "log": FLAG},
    "epochs": {
        **KEY, "epoch": WHOLE, "progress": NUMBER, "supervised_loss": NUMBER, "distillation_loss": NUMBER,
        "accuracy": NUMBER, "accuracy_se": NUMBER, "value": NUMBER, "value_se": NUMBER, "largest_answer": NUMBER,
        "inherited": NUMBER, "inherited_se": NUMBER, "calibration_error": NUMBER, "kl": NUMBER,
        "student_images": WHOLE, "teacher_images": WHOLE,
        "learning_rate": NUMBER, "policy_steps": WHOLE,
        "policy_objective": NUMBER, "policy_prior": NUMBER, "teacher_accuracy": NUMBER,
        "teacher_clean_accuracy": NUMBER,
        "floor_violation": NUMBER, "dual": NUMBER, "emptied": NUMBER, "saturated": NUMBER, "gates_at_bound": WHOLE,
        "ranges_at_limit": WHOLE, "gradient_norm": NUMBER, "noise_scale": NUMBER, "seconds": NUMBER,
    },
    "losses": {**KEY, "epoch": WHOLE, "loss": TEXT, "value": NUMBER},
    "policies": {
        **KEY, "progress": NUMBER, "is_final": FLAG, "operation": TEXT, "unit": TEXT, "limit": NUMBER, "range": TEXT,
        "probability": NUMBER, "rate": NUMBER, "low": NUMBER, "high": NUMBER,
    },
    "regions": {
        **KEY, "kind": TEXT, "operation": TEXT, "low": NUMBER, "high": NUMBER, "unit": TEXT, "class_name": TEXT,
        "n": WHOLE, "teacher_accuracy": NUMBER, "student_accuracy": NUMBER, "both": WHOLE, "teacher_only": WHOLE,
        "student_only": WHOLE, "neither": WHOLE, "teacher_only_rate": NUMBER, "teacher_only_low": NUMBER,
        "teacher_only_high": NUMBER, "clean_rate": NUMBER, "kl": NUMBER,
    },
    "comparisons": {
        "study": TEXT, "run": TEXT, "against": TEXT, "of": TEXT, "decides": FLAG, "seeds": WHOLE, "of_seeds": WHOLE,
        "images": WHOLE, "difference": NUMBER, "low": NUMBER, "high": NUMBER, "p": NUMBER, "p_holm": NUMBER,
        "level": NUMBER, "least_shown": NUMBER,
    },
    "evaluations": {
        "study": TEXT, "run": TEXT, "seed": WHOLE, "split": TEXT, "value": NUMBER, "value_se": NUMBER, "images": WHOLE,
        "inherited": NUMBER, "inherited_se": NUMBER, "calibration_error": NUMBER, "kl": NUMBER,
        "shifts_version": WHOLE,
        "steps": WHOLE, "student_images": WHOLE, "teacher_images": WHOLE, "seconds": NUMBER, "at_chance": TEXT,
        "fail_reason": TEXT, "read_at": TIME, "command": TEXT, "digest": TEXT, "key": TEXT,
    },
}  # fmt: skip

MEASURED = (
    "stddev_ratio", "agreement", "teacher_loss_rise", "teacher_loss", "teacher_accuracy", "teacher_confidence",
    "teacher_entropy",
)  # fmt: skip
SCORES: Mapping[str, str] = {  # what `kdsearch.rank` gives; a run folder has none
    "study": TEXT, "policy": TEXT, "kind": TEXT, "split": TEXT, "images": WHOLE, "views": WHOLE, "floor": NUMBER,
    "keeps_floor": FLAG, **{f"{name}{end}": NUMBER for name in MEASURED for end in ("", "_se")},
}  # fmt: skip

RUN = (
    "=",
    "+",
    "-",
    "@",
    "\t",
    "\r",
    "\n",
    "＝",
    "＋",
    "－",
    "＠",
    "'",
)  # what a spreadsheet takes for a formula; our mark
MISSING = (  # text that pandas.read_csv takes for nothing; its others begin with a minus
    "", "#N/A", "#N/A N/A", "#NA", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"
)  # fmt: skip

Frame = pd.DataFrame
Rows = list[dict[str, Any]]


def frames(
    folders: Path | str | Sequence[Path | str], *, storage: str | None = None, only: Collection[str] = ()
) -> dict[str, pd.DataFrame]:
    """The frames of one or several run folders, from the folders alone; keys (`study`, `run`, `trial`).

    Nothing is written, and nothing outside the folders is read unless named here.

    Args:
        storage: Database URL of a search that kept its trials outside its folder.
        only: Names of frames, to read no more than is needed; all by default.

    Raises:
        KdsearchError: not a run folder; a file in it or its database cannot be read, naming it and the field.
    """
    several = [folders] if isinstance(folders, Path | str) else list(folders)
    wanted = [name for name in COLUMNS if name in only] if only else list(COLUMNS)
    if strange := [name for name in only if name not in COLUMNS]:
        raise KdsearchError(unknown_name("frame", strange[0], COLUMNS))
    rows: dict[str, Rows] = {name: [] for name in wanted}
    for folder in several:
        for name, more in _read(as_path(folder), storage, wanted).items():
            rows[name] += more
    return {name: make_frame(name, rows[name]) for name in wanted}


def make_frame(name: str, rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows as the declared frame `name`, one of a run folder or `scores`."""
    known = {**COLUMNS, "scores": SCORES}
    if name not in known:
        raise KdsearchError(unknown_name("frame", name, known))
    rows = list(rows)
    columns = {column: pd.Series([row.get(column) for row in rows], dtype=t) for column, t in known[name].items()}
    return pd.DataFrame(columns)


def write_frame(table: pd.DataFrame, path: Path) -> None:
    """Write one frame as the format that the name of the file ends in, .csv or .parquet.

    In CSV, text that a spreadsheet would run or pandas would read as a missing value begins with an apostrophe.

    Raises:
        KdsearchError: another suffix, or a file that cannot be written.
    """
    check_table(path)
    write_bytes(path, _csv(table) if path.suffix == ".csv" else table.to_parquet(index=False))


def check_table(path: Path) -> None:
    """Is this the name of a file that a frame can be written as?

    Raises:
        KdsearchError: another suffix.
    """
    if path.suffix not in (".csv", ".parquet"):
        raise KdsearchError(f"{path}: a table's name ends in .csv or .parquet; got {path.suffix!r}")


def write_frames(tables: Mapping[str, pd.DataFrame], folder: Path, to: str) -> list[Path]:
    """Write each frame as a parquet or CSV file; see `write_frame`."""
    if to not in ("parquet", "csv"):
        raise KdsearchError(unknown_name("frame format", to, ("parquet", "csv")))
    make_folder(folder)
    paths = []
    for name, table in tables.items():
        path = folder / f"{name}.{to}"
        write_frame(table, path)
        paths.append(path)
    return paths


def _csv(table: pd.DataFrame) -> bytes:
    columns = {column: _cells(values) if values.dtype == TEXT else values for column, values in table.items()}
    return pd.DataFrame(columns).to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC).encode()


def _cells(values: pd.Series) -> pd.Series:
    """Text as a spreadsheet takes it for text and pandas for a value; an apostrophe is what spreadsheets drop."""
    marked = values.str.startswith(RUN).fillna(False).astype(bool) | values.isin(MISSING)
    return values.where(~marked, "'" + values)


def _read(folder: Path, storage: str | None, wanted: Collection[str]) -> dict[str, Rows]:
    study = read_study(folder)
    trials, stored = read_kept_trials(folder, study, storage)
    best = max((t for t in trials if t.value is not None), key=lambda t: t.value or 0.0, default=None)
    rows: dict[str, Rows] = {name: [] for name in wanted}
    runs: list[tuple[str, Path, TrialRow | None]] = [
        *((f"trial {t.number}", trial_folder(folder, t.number), t) for t in trials),
        *((as_text(path.name), path, None) for path in reference_folders(folder)),
    ]
    for run, path, trial in runs:
        key = {"study": study.study, "run": run, "trial": trial.number if trial else None}
        if "trials" in rows:
            rows["trials"].append({**key, **_trial(trial, read_result(folder, path), best)})
        if "params" in rows and trial:
            rows["params"] += [{**key, **row} for row in _params(trial)]
        if "epochs" in rows or "losses" in rows:
            epochs = read_epochs(folder, path)
            if "epochs" in rows:
                rows["epochs"] += [{**key, **row} for row in epochs]
            if "losses" in rows:
                rows["losses"] += [{**key, "epoch": row["epoch"], "loss": name, "value": value}
                                   for row in epochs for name, value in row.get("losses", {}).items()]  # fmt: skip
        if "policies" in rows and (spec := read_policy(folder, path)):
            rows["policies"] += [{**key, **row} for row in _policy(spec)]
        if "regions" in rows:
            rows["regions"] += [{**key, **row} for row in _regions(folder, path)]
    if {"evaluations", "comparisons"} & {*rows} and (confirmation := read_confirmation(folder)):
        of_best = best is not None and confirmation.winner == best.number  # not those of an earlier winner
        evaluations = confirmation.rows if of_best else []
        split = "confirm" if study.confirm_images else "search-validation"
        if "evaluations" in rows:
            rows["evaluations"] = [{**row, "study": study.study, "split": split} for row in evaluations]
        if "comparisons" in rows:
            found = comparison_rows(folder, evaluations, study.metric, study.budget_confirmation)
            rows["comparisons"] = [{"study": study.study, **row} for row in found]
    if "evaluations" in rows:
        rows["evaluations"] += reading_rows(study.study, read_readings(folder))
    if "studies" in rows:
        rows["studies"] = [_study(folder, study, stored, trials, best)]
    return rows


def reading_rows(study: str, readings: Iterable[ReadingRow]) -> Rows:
    """Readings of the test split as rows of the frame `evaluations`."""
    return [
        {**row, "study": study, "split": "test", "read_at": _utc(row["read_at"]),
         "run": as_text(row["run"]), "command": as_text(row["command"]),
         "digest": as_text(row.get("digest") or "") or None} for row in readings
    ]  # fmt: skip


def _study(
    folder: Path, study: StudyFile, stored: Mapping[str, Any], trials: Sequence[TrialRow], best: TrialRow | None
) -> dict[str, Any]:
    states = [trial.state for trial in trials]
    names = {key: as_text(stored[key]) for key in ("sampler", "pruner") if isinstance(stored.get(key), str)}
    return {
        **study.model_dump(),
        **{name: joined(getattr(study, name)) for name in ("operations", "dropped", "classes")},
        **names,
        "opened_at": _utc(study.opened_at),
        "folder": as_text(str(folder)),
        "complete": states.count("COMPLETE"),
        "pruned": states.count("PRUNED"),
        "failed": states.count("FAIL"),
        "best_trial": best.number if best else None,
        "best_value": best.value if best else None,
    }


def joined(names: Sequence[str]) -> str:
    r"""Names in one cell: a JSON list in which ", " stands between names only, as a comma of a name is written \u002c.

    >>> joined(["NA", "tench, Tinca tinca"])
    '["NA", "tench\\u002c Tinca tinca"]'
    """
    return "[" + ", ".join(json.dumps(name, ensure_ascii=False).replace(",", "\\u002c") for name in names) + "]"


def _trial(trial: TrialRow | None, result: ResultFile | None, best: TrialRow | None) -> dict[str, Any]:
    ended = result or ResultFile()
    said = {"warnings": "; ".join(ended.warnings) or None, "at_chance": ended.at_chance}
    measured = {"value": ended.value, "value_se": ended.value_se, "seconds": ended.seconds, **said}
    if shifted := ended.inheritance:
        found = shifted.model_dump(exclude={"by_shift", "left_out", "images", "views", "version"})
        measured |= {
            f"inherited_{name}" if name in ("common", "held_out", "clean") else name: v for name, v in found.items()
        }
        measured |= {
            "shifted_images": shifted.images,
            "shifts_left_out": joined(shifted.left_out),
            "shifts_version": shifted.version,
        }
    if trial is None:
        state = "RUNNING" if result is None else "FAIL" if ended.fail_reason is not None else "COMPLETE"
        return {**measured, "state": state, "fail_reason": ended.fail_reason, "is_best": False, "origin": "reference"}
    return {
        **measured,
        "state": trial.state,
        "value": trial.value,
        "is_best": best is not None and trial.number == best.number,
        "last_epoch": trial.last_epoch,
        "last_value": trial.last_value,
        "origin": as_text(trial.origin),
        "fail_reason": None if trial.fail_reason is None else as_text(trial.fail_reason),
        "seed": trial.seed,
        "retry_of": trial.retry_of,
        "started_at": _utc(trial.started_at),
        "ended_at": _utc(trial.ended_at),
    }


def _utc(time: datetime | None) -> datetime | None:
    """Optuna stores local time without a zone."""
    try:
        return None if time is None else time.astimezone(UTC)
    except (OverflowError, ValueError):  # the first and the last day of the calendar
        return None


def _params(trial: TrialRow) -> Rows:
    return [
        {"name": as_text(name), "value": value, **trial.space.get(name, {})} for name, value in trial.params.items()
    ]


def policy_frame(spec: PolicySpec) -> pd.DataFrame:
    """One policy as the frame `policies`; `study`, `run` and `trial` are missing."""
    return make_frame("policies", _policy(spec))


def _policy(spec: PolicySpec) -> Rows:
    share = spec.operations_per_image / len(spec.operations)
    return [
        {
            "progress": moment.progress,
            "is_final": moment is spec.schedule[-1],
            "operation": name,
            "unit": limits.unit,
            "limit": limits.limit,
            "range": limits.range,
            "probability": setting.probability,
            "low": setting.low,
            "high": setting.high,
            "rate": share * setting.probability,
        }
        for moment in spec.schedule
        for name, setting in moment.settings.items()
        for limits in [spec.operations[name]]
    ]


def regions_frame(folder: Path, study: str, number: int) -> pd.DataFrame:
    """The frame `regions` of one trial of a run folder; empty where its file is not there."""
    key = {"study": study, "run": f"trial {number}", "trial": number}
    return make_frame("regions", ({**key, **row} for row in _regions(folder, trial_folder(folder, number))))


def _regions(folder: Path, run: Path) -> Rows:
    rows, kept = list[dict[str, Any]](), read_regions(folder, run)
    clean = {row.get("class_name"): row["teacher_only"] / row["n"] for row in kept if row["kind"] == "clean"}
    for row in kept:
        n, operation = row["n"], row.get("operation")
        rows.append({
            **row,
            "teacher_accuracy": (row["both"] + row["teacher_only"]) / n,
            "student_accuracy": (row["both"] + row["student_only"]) / n,
            "teacher_only_rate": row["teacher_only"] / n,
            "clean_rate": clean.get(row.get("class_name")),
            "unit": OPERATIONS[operation].unit if operation else None,
        })  # fmt: skip
    return rows
