"""Where trials are kept: an SQLite file, by default in the run folder; searches write it, everybody else only reads."""

import json
import math
import os
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import optuna
from annotated_types import Ge, Le
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from pydantic import TypeAdapter, ValidationError
from sqlalchemy.exc import SQLAlchemyError

from kdsearch.core.errors import KdsearchError, unknown_name
from kdsearch.core.files import absolute_path

SCHEMES = ("sqlite",)
NAME = "kdsearch"  # of the Optuna study inside the database
TABLES = "v3.2.0.a"  # revision of Optuna's tables that is read here
NEEDED = frozenset(
    ("alembic_version", "studies", "study_user_attributes", "trials", "trial_params", "trial_values",
     "trial_intermediate_values", "trial_user_attributes")
)  # fmt: skip
PATIENCE = 60  # seconds that a locked database is waited for
STATES = ("COMPLETE", "PRUNED", "FAIL", "RUNNING", "WAITING")
Whole = Annotated[int, Ge(-(2**63)), Le(2**63 - 1)]


def database_url(folder: Path) -> str:
    """The URL of the run folder's own database."""
    return f"sqlite:///{absolute_path(folder) / 'study.db'}"


def check_storage(url: str) -> None:
    """Raises KdsearchError for a URL that this version cannot use."""
    database_file(url)


def database_file(url: str) -> Path:
    """The file of a URL; all that follows the third slash is its path, whatever letters it has.

    >>> database_file("sqlite:////runs/100% {new}?/study.db")
    PosixPath('/runs/100% {new}?/study.db')

    Raises:
        KdsearchError: not a URL, or of something else than an SQLite file.
    """
    scheme, mark, rest = str(url).partition("://")
    if not mark:
        raise KdsearchError(f"storage '{url}' is not a URL; allowed: sqlite:///PATH")
    if scheme not in SCHEMES:
        raise KdsearchError(f"storage '{url}': {unknown_name('storage', scheme, SCHEMES)}; allowed: sqlite:///PATH")
    path = rest.removeprefix("/")
    if path == rest or not path or path == ":memory:" or "\0" in path:
        raise KdsearchError(f"storage '{url}' names no file; allowed: sqlite:///PATH")
    return absolute_path(Path(path))  # so that no name means something else to SQLite, as :memory: and file: do


def open_storage(url: str) -> RDBStorage:
    """Open a database for a search, or make it.

    Raises:
        KdsearchError: it cannot be opened, is another program's, or has the tables of another version.
    """
    path = database_file(url)
    if database_size(path):
        with _damage(path), _reading(path) as connection:
            found = _tables(connection)
        if found and not found >= NEEDED:
            raise KdsearchError(f"storage {url} is another program's: its tables are {_some(found)}")
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)  # failures are told by the display

    def connect() -> sqlite3.Connection:  # in place of a URL, in which ? and % mean something, and { to Optuna
        return sqlite3.connect(path, timeout=PATIENCE, check_same_thread=False)

    try:
        return RDBStorage("sqlite:///study.db", engine_kwargs={"creator": connect})
    except (SQLAlchemyError, StorageInternalError, sqlite3.Error, RuntimeError, AssertionError) as error:
        raise KdsearchError(f"cannot open the storage {url}: {str(error).splitlines()[0]}") from None


@dataclass(frozen=True)
class TrialRow:
    """One trial as stored, in plain values."""

    number: Annotated[int, Ge(0), Le(10**9)]
    state: str  # of STATES
    value: float | None  # None unless COMPLETE
    last_epoch: Whole | None
    last_value: float | None  # reported last
    params: dict[str, float]
    space: dict[str, dict[str, float | bool | None]]  # of each number: low, high, log
    origin: str
    fail_reason: str | None
    seed: Whole | None
    retry_of: Whole | None  # number of the interrupted trial that it goes on with
    started_at: datetime | None
    ended_at: datetime | None


_ROWS = TypeAdapter(list[TrialRow])


@dataclass(frozen=True)
class Best:
    """The complete trial with the largest value."""

    number: int
    params: dict[str, float]
    value: float


def best_trial(study: optuna.Study) -> Best | None:
    """The best trial of an open search, the first one of several; None where none is complete."""
    complete = [(t.number, t.value, t.params) for t in study.get_trials(deepcopy=False) if t.state.name == "COMPLETE"]
    number, value, params = max(complete, key=lambda trial: trial[1] or 0.0, default=(0, None, {}))
    return None if value is None else Best(number, params, value)


def finished_trials(study: optuna.Study) -> list[int]:
    """Numbers of the trials of an open search that are complete or pruned."""
    return [trial.number for trial in study.get_trials(deepcopy=False) if trial.state.name in ("COMPLETE", "PRUNED")]


def trial_rows(url: str) -> tuple[list[TrialRow], dict[str, Any]]:
    """All trials of a search, in their order, and the facts stored with it; nothing is written.

    Raises:
        KdsearchError: no such file, not a database, another program's, without a search, damaged, of another version.
    """
    path = database_file(url)
    size = database_size(path)
    if not size:
        raise KdsearchError(f"cannot read the database {path}: {'there is none' if size is None else 'it is empty'}")
    with _damage(path), _reading(path) as connection:
        return _read(connection, path)


def database_size(path: Path) -> int | None:
    """Bytes of a database; None where there is none.

    Raises:
        KdsearchError: what cannot be a database, or may not be seen.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # ValueError: letters that no file system has
        raise KdsearchError(f"cannot read the database {path}: {getattr(error, 'strerror', error)}") from None
    if not stat.S_ISREG(found.st_mode):
        raise KdsearchError(f"cannot read the database {path}: it is not a file")
    return found.st_size


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise KdsearchError(f"cannot read the database {path}: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise KdsearchError(f"cannot read the database {path}: trial {where}: {first['msg']}") from None
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError) as error:
        # Cells of an SQLite table may hold anything.
        raise KdsearchError(f"cannot read the database {path}: {type(error).__name__}: {error}") from None


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that writes nothing beside the database, and sees one state of it.

    What a search that died has left beside it, a journal to roll back or a log to go through, is dealt with in a copy.
    """
    with path.open("rb") as file:
        logged = file.read(20)[18:20] == b"\2\2"  # write-ahead log
    if not logged or path.with_name(f"{path.name}-shm").exists():
        connection = _connect(path)
        try:
            connection.execute("BEGIN")
            connection.execute("SELECT count(*) FROM sqlite_master")
        except sqlite3.OperationalError as error:
            connection.close()
            if not error.sqlite_errorname.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN")):
                raise
        else:
            with closing(connection):
                yield connection
            return
    with tempfile.TemporaryDirectory(prefix="kdsearch-") as place:
        for end in ("", "-journal", "-wal"):
            beside = path.with_name(path.name + end)
            if not end or beside.is_file():
                shutil.copyfile(beside, Path(place) / f"copy.db{end}")
        with closing(_connect(Path(place) / "copy.db", mode="rw")) as connection:
            yield connection


def _connect(path: Path, mode: str = "ro") -> sqlite3.Connection:
    url = f"file:{quote(os.fsencode(path))}?mode={mode}"
    return sqlite3.connect(url, uri=True, timeout=PATIENCE, isolation_level=None)


def _tables(connection: sqlite3.Connection) -> set[str]:
    return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def _some(names: set[str]) -> str:
    return ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")


def _read(connection: sqlite3.Connection, path: Path) -> tuple[list[TrialRow], dict[str, Any]]:
    """Optuna's tables as rows, without an object for each and without a way to write."""
    tables = _tables(connection)
    if not tables >= NEEDED:
        holds = f"its tables are {_some(tables)}" if tables else "it has no tables"
        raise KdsearchError(f"cannot read the database {path}: it holds no search of kdsearch; {holds}")
    versions = [version for (version,) in connection.execute("SELECT version_num FROM alembic_version")]
    if versions != [TABLES]:
        found = ", ".join(map(str, versions)) or "none"
        raise KdsearchError(
            f"cannot read the database {path}: its tables are of version {found}, made by another version of Optuna; "
            f"this kdsearch reads {TABLES}"
        )
    studies = connection.execute("SELECT study_id FROM studies WHERE study_name = ?", (NAME,)).fetchall()
    if not studies:
        raise KdsearchError(f"cannot read the database {path}: it holds no search of kdsearch")
    facts = connection.execute("SELECT key, value_json FROM study_user_attributes WHERE study_id = ?", studies[0])
    texts = {key: json.loads(value) for key, value in facts}  # Optuna's JSON of what is JSON already
    known = {key: json.loads(text) for key, text in texts.items() if isinstance(text, str)}
    rows: dict[int, dict[str, Any]] = {}
    for trial, number, state, start, end in connection.execute(
        "SELECT trial_id, number, state, datetime_start, datetime_complete FROM trials WHERE study_id = ? "
        "ORDER BY number", studies[0],
    ):  # fmt: skip
        if state not in STATES:
            raise ValueError(f"state {state!r}")
        rows[trial] = {
            "number": number, "state": state, "value": None, "last_epoch": None, "last_value": None, "params": {},
            "space": {}, "origin": "sampled", "fail_reason": None, "seed": None, "retry_of": None,
            "started_at": _time(start), "ended_at": _time(end),
        }  # fmt: skip
    for trial, value, kind in _of(connection, "trial_values", "value, value_type", studies[0]):
        if rows[trial]["state"] == "COMPLETE":
            rows[trial]["value"] = _number(value, kind)
    columns = "step, intermediate_value, intermediate_value_type"
    for trial, step, value, kind in _of(connection, "trial_intermediate_values", columns, studies[0]):
        row = rows[trial]
        if row["last_epoch"] is None or step > row["last_epoch"]:
            row["last_epoch"], row["last_value"] = step, _number(value, kind)
    bounds: dict[str, tuple[bool, dict[str, Any]]] = {}  # a search has few distributions, each written many times
    for trial, name, value, text in _of(connection, "trial_params", "param_name, param_value, distribution_json",
                                        studies[0]):  # fmt: skip
        if text not in bounds:
            told = json.loads(text)
            of = told["attributes"]
            bounds[text] = told["name"] == "IntDistribution", {key: of.get(key) for key in ("low", "high", "log")}
        whole, rows[trial]["space"][name] = bounds[text]
        rows[trial]["params"][name] = int(value) if whole else value
    for trial, key, text in _of(connection, "trial_user_attributes", '"key", value_json', studies[0]):
        if key in ("origin", "fail_reason", "seed", "retry_of"):
            rows[trial][key] = json.loads(text)
    return _ROWS.validate_python(list(rows.values())), known


def _of(connection: sqlite3.Connection, table: str, columns: str, study: tuple[int]) -> sqlite3.Cursor:
    """Rows of a table that belong to trials of a study, in the order in which they were written."""
    mine = "trial_id IN (SELECT trial_id FROM trials WHERE study_id = ?)"
    return connection.execute(f"SELECT trial_id, {columns} FROM {table} WHERE {mine} ORDER BY rowid", study)


def _number(value: float | None, kind: str) -> float | None:
    infinite: Mapping[str, float] = {"INF_POS": math.inf, "INF_NEG": -math.inf, "NAN": math.nan}
    return infinite.get(kind, value)


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
