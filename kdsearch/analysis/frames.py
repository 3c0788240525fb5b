"""A run folder as tidy frames: columns declared once, the same dtypes also where nothing happened yet."""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from kdsearch.errors import KdsearchError, unknown
from kdsearch.files import make_folder, read_json, write_bytes
from kdsearch.hpo import TrialRow, database, trial_rows
from kdsearch.ops import OPERATIONS
from kdsearch.spec import PolicySpec

TEXT, WHOLE, NUMBER, FLAG, TIME = "str", "Int64", "float64", "boolean", "datetime64[us, UTC]"
KEY = {"study": TEXT, "run": TEXT, "trial": WHOLE}  # `run` is "trial 3" or a reference's name; `trial` is missing there

COLUMNS: Mapping[str, Mapping[str, str]] = {
    "studies": {
        "study": TEXT, "folder": TEXT, "metric": TEXT, "direction": TEXT, "space": TEXT, "operations": TEXT,
        "dropped": TEXT, "classes": TEXT, "teacher_accuracy": NUMBER, "teacher_loss": NUMBER,
        "teacher_train_accuracy": NUMBER, "teacher_clean_loss": NUMBER, "teacher_saw": TEXT, "teacher_remembers": FLAG,
        "sampler": TEXT, "pruner": TEXT, "seed": WHOLE, "budget_trials": WHOLE, "budget_epochs": WHOLE,
        "budget_steps": WHOLE, "budget_batch": WHOLE, "budget_policy_batch": WHOLE, "budget_parts": WHOLE,
        "budget_confirmation": WHOLE, "precision": TEXT, "compiled": FLAG, "complete": WHOLE, "pruned": WHOLE,
        "failed": WHOLE,
        "best_trial": WHOLE, "best_value": NUMBER, "device": TEXT, "python": TEXT, "kdsearch": TEXT, "torch": TEXT,
        "kornia": TEXT, "optuna": TEXT, "opened_at": TIME,
    },
    "trials": {
        **KEY, "state": TEXT, "value": NUMBER, "value_se": NUMBER, "is_best": FLAG, "last_epoch": WHOLE,
        "last_value": NUMBER, "origin": TEXT, "fail_reason": TEXT, "warnings": TEXT,
        "seed": WHOLE, "retry_of": WHOLE, "seconds": NUMBER,
        "started_at": TIME, "ended_at": TIME,
    },
    "params": {**KEY, "name": TEXT, "value": NUMBER, "low": NUMBER, "high": NUMBER, "log": FLAG},
    "epochs": {
        **KEY, "epoch": WHOLE, "progress": NUMBER, "supervised_loss": NUMBER, "distillation_loss": NUMBER,
        "accuracy": NUMBER, "accuracy_se": NUMBER, "value": NUMBER, "value_se": NUMBER, "learning_rate": NUMBER,
        "policy_steps": WHOLE,
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
        "teacher_only_high": NUMBER, "kl": NUMBER,
    },
    "evaluations": {"study": TEXT, "run": TEXT, "seed": WHOLE, "split": TEXT, "value": NUMBER, "seconds": NUMBER},
}  # fmt: skip

MEASURED = (
    "stddev_ratio", "agreement", "teacher_loss_rise", "teacher_loss", "teacher_accuracy", "teacher_confidence",
    "teacher_entropy",
)  # fmt: skip
SCORES: Mapping[str, str] = {  # what `kdsearch.rank` gives; a run folder has none
    "study": TEXT, "policy": TEXT, "kind": TEXT, "split": TEXT, "images": WHOLE, "views": WHOLE, "floor": NUMBER,
    "keeps_floor": FLAG, **{f"{name}{end}": NUMBER for name in MEASURED for end in ("", "_se")},
}  # fmt: skip

Frame = pd.DataFrame
Rows = list[dict[str, Any]]


def frames(folders: Path | str | Sequence[Path | str]) -> dict[str, pd.DataFrame]:
    """The frames of one or several run folders, from the folders alone; keys (`study`, `run`, `trial`).

    Raises:
        KdsearchError: not a run folder, or a file in it is torn, naming it.
    """
    several = [folders] if isinstance(folders, Path | str) else list(folders)
    rows: dict[str, Rows] = {name: [] for name in COLUMNS}
    for folder in several:
        for name, more in _read(Path(folder)).items():
            rows[name] += more
    return {name: frame(name, rows[name]) for name in COLUMNS}


def frame(name: str, rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows as the declared frame `name`, one of a run folder or `scores`."""
    known = {**COLUMNS, "scores": SCORES}
    if name not in known:
        raise KdsearchError(unknown("frame", name, known))
    rows = list(rows)
    columns = {column: pd.Series([row.get(column) for row in rows], dtype=t) for column, t in known[name].items()}
    return pd.DataFrame(columns)


def write_frame(table: pd.DataFrame, path: Path) -> None:
    """Write one frame as the format that the name of the file ends in, .csv or .parquet.

    Raises:
        KdsearchError: another suffix, or a file that cannot be written.
    """
    check_table(path)
    write_bytes(path, table.to_csv(index=False).encode() if path.suffix == ".csv" else table.to_parquet(index=False))


def check_table(path: Path) -> None:
    """Is this the name of a file that a frame can be written as?

    Raises:
        KdsearchError: another suffix.
    """
    if path.suffix not in (".csv", ".parquet"):
        raise KdsearchError(f"{path}: a table's name ends in .csv or .parquet; got {path.suffix!r}")


def write_frames(tables: Mapping[str, pd.DataFrame], folder: Path, to: str) -> list[Path]:
    """Write each frame as a parquet or CSV file."""
    if to not in ("parquet", "csv"):
        raise KdsearchError(unknown("frame format", to, ("parquet", "csv")))
    make_folder(folder)
    paths = []
    for name, table in tables.items():
        path = folder / f"{name}.{to}"
        if to == "parquet":
            table.to_parquet(path, index=False)
        else:
            table.to_csv(path, index=False)
        paths.append(path)
    return paths


def _read(folder: Path) -> dict[str, Rows]:
    if not (folder / "study.json").is_file():
        raise KdsearchError(f"{folder} is not a run folder: it has no study.json; `kdsearch search` makes one")
    facts = read_json(folder / "study.json")
    study = facts["study"]
    trials, stored = trial_rows(facts["storage"] or database(folder.absolute()))
    best = max((t for t in trials if t.value is not None), key=lambda t: t.value or 0.0, default=None)
    rows: dict[str, Rows] = {name: [] for name in COLUMNS}
    runs = [(f"trial {t.number}", t.number, folder / "trials" / f"{t.number:04d}", t) for t in trials]
    references = sorted((folder / "references").glob("*/"), key=lambda path: path.stat().st_mtime)
    runs += [(path.name, None, path, None) for path in references]  # type: ignore[misc]
    for run, number, path, trial in runs:
        key = {"study": study, "run": run, "trial": number}
        result = read_json(path / "result.json") if (path / "result.json").is_file() else {}
        rows["trials"].append({**key, **_trial(trial, result, best)})
        rows["params"] += [{**key, **row} for row in (_params(trial) if trial else [])]
        epochs = _epochs(path / "epochs.jsonl")
        rows["epochs"] += [{**key, **row} for row in epochs]
        rows["losses"] += [
            {**key, "epoch": row["epoch"], "loss": name, "value": value}
            for row in epochs
            for name, value in row["losses"].items()
        ]
        rows["policies"] += [{**key, **row} for row in _policy_file(path / "policy.json")]
        rows["regions"] += [{**key, **row} for row in _regions(path / "regions.json")]
    if (folder / "confirmation.json").is_file():
        kept = read_json(folder / "confirmation.json")
        of_best = best is not None and kept["winner"] == best.number  # not those of an earlier winner
        evaluations = kept["rows"] if of_best else []
        rows["evaluations"] = [{**row, "study": study, "split": "search-validation"} for row in evaluations]
    states = [t.state for t in trials]
    rows["studies"] = [
        {
            **facts,
            **{k: ", ".join(facts[k]) for k in ("operations", "dropped", "classes")},
            **{k: stored.get(k) for k in ("sampler", "pruner")},
            "folder": str(folder),
            "complete": states.count("COMPLETE"),
            "pruned": states.count("PRUNED"),
            "failed": states.count("FAIL"),
            "best_trial": best.number if best else None,
            "best_value": best.value if best else None,
        }
    ]
    return rows


def _trial(trial: TrialRow | None, result: Mapping[str, Any], best: TrialRow | None) -> dict[str, Any]:
    measured = {"value": result.get("value"), "value_se": result.get("value_se"), "seconds": result.get("seconds")}
    if trial is None:
        state = "FAIL" if "fail_reason" in result else "COMPLETE" if result else "RUNNING"
        reason = result.get("fail_reason")
        return {**measured, "state": state, "fail_reason": reason, "is_best": False, "origin": "reference"}
    return {
        **measured,
        "state": trial.state,
        "value": trial.value,
        "is_best": best is not None and trial.number == best.number,
        "last_epoch": trial.last_epoch,
        "last_value": trial.last_value,
        "origin": trial.origin,
        "fail_reason": trial.fail_reason,
        "warnings": "; ".join(result.get("warnings", [])) or None,
        "seed": trial.seed,
        "retry_of": trial.retry_of,
        "started_at": _utc(trial.started_at),
        "ended_at": _utc(trial.ended_at),
    }


def _utc(naive: datetime | None) -> datetime | None:
    """Optuna stores local time without a zone."""
    return None if naive is None else naive.astimezone(UTC)


def _params(trial: TrialRow) -> Rows:
    return [{"name": name, "value": float(value), **trial.space[name]} for name, value in trial.params.items()]


def _epochs(path: Path) -> Rows:
    if not path.is_file():
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise KdsearchError(f"cannot read {path}: {error}") from None


def policy_frame(spec: PolicySpec) -> pd.DataFrame:
    """One policy as the frame `policies`; `study`, `run` and `trial` are missing."""
    return frame("policies", _policy(spec))


def _policy(spec: PolicySpec) -> Rows:
    rows = []
    share = spec.operations_per_image / len(spec.operations)
    for i, moment in enumerate(spec.schedule):
        for name, setting in moment.settings.items():
            limits = spec.operations[name]
            rows.append(
                {
                    "progress": moment.progress,
                    "is_final": i == len(spec.schedule) - 1,
                    "operation": name,
                    **limits.model_dump(),
                    **setting.model_dump(),
                    "rate": share * setting.probability,
                }
            )
    return rows


def _policy_file(path: Path) -> Rows:
    return _policy(PolicySpec.load(path)) if path.is_file() else []


def _regions(path: Path) -> Rows:
    if not path.is_file():
        return []
    rows = read_json(path)
    for row in rows:
        n = row["n"]
        row["teacher_accuracy"] = (row["both"] + row["teacher_only"]) / n
        row["student_accuracy"] = (row["both"] + row["student_only"]) / n
        row["teacher_only_rate"] = row["teacher_only"] / n
        row["unit"] = OPERATIONS[row["operation"]].unit if row["operation"] else None
    return rows
