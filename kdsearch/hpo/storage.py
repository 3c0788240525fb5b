"""Where trials are kept: a database URL, by default SQLite in the run folder."""

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import RDBStorage
from sqlalchemy.exc import SQLAlchemyError

from kdsearch.errors import KdsearchError, unknown

SCHEMES = ("sqlite",)
NAME = "kdsearch"  # of the Optuna study inside the database


def database(folder: Path) -> str:
    """The URL of the run folder's own database."""
    return f"sqlite:///{folder / 'study.db'}"


def check_storage(url: str) -> None:
    """Raises KdsearchError for a URL that this version cannot use."""
    scheme, mark, _ = url.partition("://")
    if not mark:
        raise KdsearchError(f"storage '{url}' is not a URL; allowed: sqlite:///PATH")
    if scheme not in SCHEMES:
        raise KdsearchError(f"storage '{url}': {unknown('storage', scheme, SCHEMES)}; allowed: sqlite:///PATH")


def open_storage(url: str) -> RDBStorage:
    """Open or create a database."""
    check_storage(url)
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)  # failures are told by the display
    try:
        return RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}})
    except (SQLAlchemyError, RuntimeError, AssertionError) as error:
        raise KdsearchError(f"cannot open the storage {url}: {str(error).splitlines()[0]}") from None


@dataclass(frozen=True)
class TrialRow:
    """One trial as stored, in plain values."""

    number: int
    state: str  # COMPLETE PRUNED FAIL RUNNING WAITING
    value: float | None  # None unless COMPLETE
    last_epoch: int | None
    last_value: float | None  # reported last
    params: dict[str, float]
    space: dict[str, dict[str, Any]]  # of each number: low, high, log
    origin: str
    fail_reason: str | None
    seed: int | None
    retry_of: int | None  # number of the interrupted trial that it goes on with
    started_at: datetime | None
    ended_at: datetime | None


def trial_rows(url: str) -> tuple[list[TrialRow], dict[str, Any]]:
    """All trials of a search, and the facts stored with it; empty where there is none."""
    storage = open_storage(url)
    known = {study.study_name: study for study in storage.get_all_studies()}
    if NAME not in known:
        return [], {}
    return rows_of(optuna.load_study(study_name=NAME, storage=storage)), {
        key: json.loads(fact) for key, fact in known[NAME].user_attrs.items()
    }


def rows_of(study: optuna.Study) -> list[TrialRow]:
    """All trials of an open search."""
    return [_row(trial) for trial in study.get_trials(deepcopy=False)]


def _row(trial: optuna.trial.FrozenTrial) -> TrialRow:
    complete = trial.state.name == "COMPLETE"
    last = trial.last_step
    return TrialRow(
        number=trial.number,
        state=trial.state.name,
        value=trial.value if complete else None,
        last_epoch=last,
        last_value=None if last is None else trial.intermediate_values[last],
        params=dict(trial.params),
        space={k: _bounds(d) for k, d in trial.distributions.items()},
        origin=trial.user_attrs.get("origin", "sampled"),
        fail_reason=trial.user_attrs.get("fail_reason"),
        seed=trial.user_attrs.get("seed"),
        retry_of=trial.user_attrs.get("retry_of"),
        started_at=trial.datetime_start,
        ended_at=trial.datetime_complete,
    )


def _bounds(distribution: optuna.distributions.BaseDistribution) -> dict[str, Any]:
    return {key: getattr(distribution, key, None) for key in ("low", "high", "log")}
