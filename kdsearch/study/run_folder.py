"""The files of a run folder, each read by its schema: whatever is in them, values of the right kind or one error.

A file is a regular one inside the folder, of at most `MOST_BYTES`. Fields that a newer version has added are passed
over.
"""

import errno
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Required, TypeVar

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load
from safetensors.torch import save
from torch import Tensor
from typing_extensions import TypedDict  # before Python 3.12 that of typing lacks what pydantic needs

from kdsearch.augment.operations import TABLE as OPERATIONS
from kdsearch.augment.spec import NESTED, PolicySpec
from kdsearch.core.errors import KdsearchError
from kdsearch.core.files import make_folder, to_json_values, write_bytes
from kdsearch.data.images import load_images

MOST_BYTES = 32 * 2**20  # of a JSON file; 21,000 classes make 14 MB of regions
MOST_IMAGES = 64 * 2**20  # bytes of the images kept beside a policy
INT64 = 2**63
READINGS = "test_readings.jsonl"  # of the test split
TRAINING = "training.json"  # in a folder that `kdsearch train` made
ANSWERS = "confirmation"  # a folder, of a file for each run of the confirmation
COMPARED = "compare"  # likewise, of each row of `kdsearch compare`
BASE = "base.json"  # what a run folder was begun with
WRITERS = "search or evaluation"  # that hold the lock "search" of a run folder

T = TypeVar("T")


def _int64(value: int) -> int | None:
    """Whole numbers that no table can hold are missing there: a finished search is not lost for its seed."""
    return value if -INT64 <= value < INT64 else None


def _in_calendar(value: datetime) -> datetime:
    """A time that every time zone can name: the first and the last day of the calendar are not."""
    try:
        value.astimezone(UTC)
    except (OverflowError, ValueError):
        raise ValueError("a time from 0001-01-01 to 9999-12-31 UTC is needed") from None
    return value


Number = Annotated[float, Field(allow_inf_nan=False)] | None
Count = Annotated[int, Field(ge=0, lt=INT64)]
Share = Annotated[float, Field(ge=0, le=1)]
_READ = ConfigDict(strict=True, extra="ignore")


class StudyFile(BaseModel):
    """`study.json`: what a search says of itself."""

    model_config = _READ

    study: str
    metric: str
    direction: str | None = None
    space: str | None = None
    operations: list[str] = []
    dropped: list[str] = []
    classes: list[str] = []
    confirm_images: Count | None = None
    teacher_accuracy: Number = None
    teacher_loss: Number = None
    teacher_train_accuracy: Number = None
    teacher_clean_loss: Number = None
    teacher_saw: str | None = None
    teacher_remembers: bool | None = None
    seed: Annotated[int, AfterValidator(_int64)] | None = None
    budget_trials: Count | None = None
    budget_epochs: Count | None = None
    budget_steps: Count | None = None
    budget_batch: Count | None = None
    budget_policy_batch: Count | None = None
    budget_parts: Count | None = None
    budget_look_images: Count | None = None
    budget_look_bins: Count | None = None
    budget_look_operations: Count | None = None
    budget_confirmation: Count | None = None
    base: str | None = None
    base_versions: Count | None = None
    base_loss_rise: Number = None
    teacher_fused: bool | None = None
    answers_looked_up: bool | None = None
    precision: str | None = None
    compiled: bool | None = None
    device: str | None = None
    python: str | None = None
    kdsearch: str | None = None
    torch: str | None = None
    kornia: str | None = None
    optuna: str | None = None
    opened_at: Annotated[datetime, Field(strict=False)] | None = None
    storage: str | None = None  # a URL; None: the folder's own


class InheritanceFile(BaseModel):
    """In `result.json`: what a student is worth on shifted images."""

    model_config = _READ

    inherited: Number = None
    inherited_se: Number = None
    common: Number = None
    held_out: Number = None
    clean: Number = None
    calibration_error: Number = None
    teacher_calibration_error: Number = None
    kl: Number = None
    images: Count | None = None
    views: Count | None = None
    by_shift: dict[str, Number] = {}
    left_out: list[str] = []
    version: Count | None = None


SHIFTED = ("inherited", "inherited_se", "calibration_error", "kl")  # of it, for each run of the confirmation


class ResultFile(BaseModel):
    """`result.json`: what a run came to."""

    model_config = _READ

    value: Number = None
    value_se: Number = None
    seconds: Number = None
    warnings: list[str] = []
    at_chance: str | None = None
    inheritance: InheritanceFile | None = None
    fail_reason: str | None = None


class TrainingFile(BaseModel):
    """`training.json`: what fixes the student of a folder that `kdsearch train` made."""

    model_config = _READ

    identity: dict[str, Any]


def _without_base(policy: PolicySpec | None) -> PolicySpec | None:
    if policy and policy.base:
        raise ValueError(NESTED)
    return policy


class BaseFile(BaseModel):
    """`base.json`: the base view of all runs of a folder, and how the teacher is asked, measured once."""

    model_config = _READ

    asked: str  # of the study, in words
    found_on: str = ""  # a digest of what it was measured on
    policy: Annotated[PolicySpec | None, AfterValidator(_without_base)] = None
    said: str = ""
    fused: bool = False
    answers_looked_up: bool | None = None  # None: not decided
    loss_rise: Number = None  # of the teacher on base views, nats


class EpochLine(TypedDict, total=False):
    """A line of `epochs.jsonl`."""

    __pydantic_config__ = _READ  # type: ignore[misc]

    epoch: Required[Count]
    progress: Number
    supervised_loss: Number
    distillation_loss: Number
    losses: dict[str, Number]
    accuracy: Number
    accuracy_se: Number
    value: Number
    value_se: Number
    learning_rate: Number
    largest_answer: Number
    policy_steps: Count | None
    policy_objective: Number
    policy_prior: Number
    teacher_accuracy: Number
    teacher_clean_accuracy: Number
    floor_violation: Number
    dual: Number
    emptied: Number
    saturated: Number
    gates_at_bound: Count | None
    ranges_at_limit: Count | None
    gradient_norm: Number
    noise_scale: Number
    inherited: Number
    inherited_se: Number
    calibration_error: Number
    kl: Number
    student_images: Count | None
    teacher_images: Count | None
    seconds: Number


class RegionRow(TypedDict, total=False):
    """A region in `regions.json`."""

    __pydantic_config__ = _READ  # type: ignore[misc]

    kind: Required[str]
    operation: Literal[*OPERATIONS] | None  # type: ignore[valid-type]
    low: Number
    high: Number
    class_name: str | None
    n: Required[Annotated[int, Field(ge=1, lt=INT64)]]
    both: Required[Count]
    teacher_only: Required[Count]
    student_only: Required[Count]
    neither: Required[Count]
    teacher_only_low: Required[Share]
    teacher_only_high: Required[Share]
    kl: Number


class EvaluationRow(TypedDict, total=False):
    """A run of the confirmation, measured on the images that are kept for it."""

    __pydantic_config__ = _READ  # type: ignore[misc]

    run: Required[str]
    seed: Required[Annotated[int, Field(ge=-INT64, lt=INT64)]]
    value: Required[Number]
    value_se: Number
    images: Count | None
    inherited: Number
    inherited_se: Number
    calibration_error: Number
    kl: Number
    shifts_version: Count | None
    seconds: Number
    at_chance: str | None
    fail_reason: str | None


class ReadingRow(TypedDict, total=False):
    """A line of `test_readings.jsonl`: one network on the test split."""

    __pydantic_config__ = _READ  # type: ignore[misc]

    run: Required[str]
    seed: Annotated[int, Field(ge=-INT64, lt=INT64)] | None
    value: Required[Number]
    value_se: Number
    images: Count | None
    metric: str | None
    digest: str | None  # of the images and labels that were read
    key: str | None  # of `kdsearch compare`: what fixes the row
    inherited: Number
    inherited_se: Number
    calibration_error: Number
    kl: Number
    shifts_version: Count | None
    steps: Count | None
    student_images: Count | None
    teacher_images: Count | None
    at_chance: str | None
    fail_reason: str | None
    seconds: Number
    read_at: Required[Annotated[datetime, Field(strict=False), AfterValidator(_in_calendar)]]
    command: Required[str]


class ConfirmationFile(BaseModel):
    """`confirmation.json`: winner and references on fresh seeds."""

    model_config = _READ

    winner: Count | None  # None: no trial has won yet
    rows: list[EvaluationRow]


_STUDY = TypeAdapter(StudyFile)
_RESULT = TypeAdapter(ResultFile)
_TRAINING = TypeAdapter(TrainingFile)
_BASE = TypeAdapter(BaseFile)
_EPOCHS = TypeAdapter(list[EpochLine])
_REGIONS = TypeAdapter(list[RegionRow])
_CONFIRMATION = TypeAdapter(ConfirmationFile)
_READINGS = TypeAdapter(list[ReadingRow])


def read_study(folder: Path) -> StudyFile:
    """What the search of a run folder says of itself.

    Raises:
        KdsearchError: not a run folder, or a file that is not as it should be, with the field.
    """
    found = _read(folder, folder / "study.json", _STUDY)
    if found is None:
        raise KdsearchError(f"{folder} is not a run folder: it has no study.json; `kdsearch search` makes one")
    return found


def read_result(folder: Path, run: Path) -> ResultFile | None:
    """What a run came to; None where it has not ended."""
    return _read(folder, run / "result.json", _RESULT)


def read_training(folder: Path) -> TrainingFile | None:
    """What fixes the student of a folder; None where it is not one of `kdsearch train`."""
    return _read(folder, folder / TRAINING, _TRAINING)


def read_base(folder: Path) -> BaseFile | None:
    """The base view of a folder; None where it has none written, as before there were any."""
    return _read(folder, folder / BASE, _BASE)


def is_begun(folder: Path) -> bool:
    """Does a folder hold a search or a training, be it one step of it?"""
    return any((folder / name).exists() for name in ("study.json", TRAINING))


def read_epochs(folder: Path, run: Path) -> list[EpochLine]:
    """What a run measured, epoch by epoch."""
    return _read_lines(folder, run / "epochs.jsonl", _EPOCHS)


def read_readings(folder: Path) -> list[ReadingRow]:
    """Every network that was measured on the test split, in the order in which they were."""
    return _read_lines(folder, folder / READINGS, _READINGS)


def keep_reading(folder: Path, row: Mapping[str, Any]) -> None:
    """Add one network, measured on the test split, to those that a run folder keeps; whose lock the caller holds.

    Raises:
        KdsearchError: the file cannot be read or written.
    """
    write_bytes(folder / READINGS, _reading_lines(folder) + json.dumps(to_json_values(row)).encode() + b"\n")


def check_readings(folder: Path) -> None:
    """Can readings be kept in a run folder, whose lock the caller holds? Tried where there is a file or a link.

    Raises:
        KdsearchError: the file cannot be read or written.
    """
    lines = _reading_lines(folder)
    if os.path.lexists(folder / READINGS):
        write_bytes(folder / READINGS, lines)


def describe_readings(rows: Sequence[ReadingRow], digest: str) -> Iterator[str]:
    """What whoever reads a test split is told of the readings before; nothing where there are none.

    Args:
        digest: Of the split that is read now; a row without one is taken for a reading of it.
    """
    if own := [row for row in rows if row.get("digest") in (None, digest)]:
        count = len({row["read_at"] for row in own})
        times = "before, on" if count == 1 else f"{count} times before, last on"
        yield (
            f"the test split of this study was read {times} {_who_read(own[-1])}: it is no independent measure of what "
            "was chosen or changed in view of that"
        )
    if others := [row for row in rows if row.get("digest") not in (None, digest)]:
        count = len({row["read_at"] for row in others})
        were = "on" if count == 1 else f"{count} times, last on"
        yield (
            f"another test split than this one was read before, {were} {_who_read(others[-1])}: values of different "
            "splits are not to be compared"
        )


def _who_read(row: ReadingRow) -> str:
    return f"{row['read_at'].astimezone(UTC):%Y-%m-%d %H:%M} UTC by {as_text(row['command'])}"


def _reading_lines(folder: Path) -> bytes:
    """The readings that are kept, each a whole line; a torn file is not made longer."""
    read_readings(folder)
    return b"".join(line + b"\n" for line in (read_bytes(folder, folder / READINGS, MOST_BYTES) or b"").splitlines())


def read_regions(folder: Path, run: Path) -> list[RegionRow]:
    """Where teacher and student of a run differ."""
    return _read(folder, run / "regions.json", _REGIONS) or []


def read_confirmation(folder: Path) -> ConfirmationFile | None:
    """Winner and references on fresh seeds."""
    return _read(folder, folder / "confirmation.json", _CONFIRMATION)


def keep_answers(folder: Path, run: str, seed: int, answers: Mapping[str, Tensor], *, place: str = ANSWERS) -> None:
    """Keep what single images contributed to the numbers of a run, (N,) each.

    Args:
        place: A folder in it: `ANSWERS` of the confirmation, `COMPARED` of `kdsearch compare`, where runs are keys.
    """
    write_bytes(make_folder(folder / place) / f"{run}_{seed}.safetensors", save(dict(answers)))


def read_answers(folder: Path, run: str, seed: int, *, place: str = ANSWERS) -> Mapping[str, np.ndarray]:
    """The same as it was kept; empty where it was not, as in folders of before.

    Raises:
        KdsearchError: it cannot be read, or is not what is kept there.
    """
    if not re.fullmatch(r"[a-z_0-9]{1,40}", run):  # no name of a run, and maybe a path
        return {}
    path = folder / place / f"{run}_{seed}.safetensors"
    content = read_bytes(folder, path, MOST_BYTES)
    if content is None:
        return {}
    try:
        found = {name: np.asarray(values, dtype=np.float64) for name, values in load(content).items()}
    except (SafetensorError, ValueError, TypeError) as error:
        raise KdsearchError(f"cannot read {path}: {error}") from None
    if any(values.ndim != 1 or not len(values) or not np.isfinite(values).all() for values in found.values()):
        raise KdsearchError(f"cannot read {path}: one number for each image is needed")
    return found


def read_policy(folder: Path, run: Path) -> PolicySpec | None:
    """The policy of a run; None where it has left none."""
    path = run / "policy.json"
    content = read_bytes(folder, path, MOST_BYTES)
    if content is None:
        return None
    try:
        return PolicySpec.from_json(content.decode(), place=str(path))
    except UnicodeDecodeError as error:
        raise KdsearchError(f"cannot read {path}: {error}") from None


def read_samples(folder: Path, run: Path) -> Tensor:
    """The images kept beside a policy: (N, C, H, W), float in [0, 1].

    Raises:
        KdsearchError: there are none, or they cannot be read.
    """
    path = run / "samples.npz"
    if read_bytes(folder, path, MOST_IMAGES) is None:
        raise KdsearchError(f"cannot read {path}: no such file")
    return load_images(path)


def trial_folder(folder: Path, number: int) -> Path:
    """Where a trial leaves its files."""
    return folder / "trials" / f"{number:04d}"


def trial_numbers(folder: Path) -> list[int]:
    """Numbers of the trials that have left a folder."""
    names = (path.name for path in _folders(folder, folder / "trials"))
    return sorted(int(name) for name in names if re.fullmatch(r"[0-9]{4,9}", name))


def reference_folders(folder: Path) -> list[Path]:
    """The folders of the references, in the order in which they were run."""
    return sorted(_folders(folder, folder / "references"), key=lambda path: (path.stat().st_mtime, path.name))


def read_bytes(folder: Path, path: Path, most: int) -> bytes | None:
    """A file of a run folder; None where there is none.

    Raises:
        KdsearchError: it cannot be read, is too large, no regular file, or lies elsewhere.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) != errno.ELOOP:
            raise KdsearchError(f"cannot read {path}: {getattr(error, 'strerror', error)}") from None
        check_inside(folder, path)
        return read_bytes(folder, path.resolve(), most) if path.exists() else None
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode):  # of a folder, which can be opened so, no file object can be made
        os.close(handle)
        raise KdsearchError(f"cannot read {path}: it is not a file")
    with os.fdopen(handle, "rb") as file:
        if found.st_size > most:
            raise KdsearchError(f"cannot read {path}: {found.st_size:,} bytes; at most {most:,} are read")
        try:
            return file.read(most)
        except OSError as error:
            raise KdsearchError(f"cannot read {path}: {error.strerror}") from None


def check_inside(folder: Path, path: Path) -> None:
    """Raises KdsearchError where links lead from a path of a run folder out of the folder."""
    try:
        inside = path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # a loop
        inside = False
    if not inside:
        raise KdsearchError(f"cannot read {path}: it is a link that leads out of the run folder")


def _folders(folder: Path, place: Path) -> Iterator[Path]:
    try:
        if place.is_symlink():
            check_inside(folder, place)
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.is_symlink():
                    check_inside(folder, Path(entry.path))
                if entry.is_dir():
                    yield place / entry.name
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise KdsearchError(f"cannot read {place}: {error.strerror}") from None


def _read_lines(folder: Path, path: Path, schema: TypeAdapter[list[T]]) -> list[T]:
    content = read_bytes(folder, path, MOST_BYTES)
    return _parsed(path, b"[" + b",".join(content.splitlines()) + b"]", schema) if content else []


def _read(folder: Path, path: Path, schema: TypeAdapter[T]) -> T | None:
    content = read_bytes(folder, path, MOST_BYTES)
    return None if content is None else _parsed(path, content, schema)


def _parsed(path: Path, content: bytes, schema: TypeAdapter[T]) -> T:
    try:
        if b"\\ud" in content or b"\\uD" in content:  # half a character, which only the slower reader takes
            return schema.validate_python(_whole_letters(json.loads(content)))
        return schema.validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise KdsearchError(f"cannot read {path}: {where}{': ' if where else ''}{first['msg']}") from None
    except (ValueError, RecursionError) as error:
        raise KdsearchError(f"cannot read {path}: {error}") from None


def _whole_letters(value: Any) -> Any:
    """The same tree with halves of characters written out, which no table can hold."""
    if isinstance(value, str):
        return as_text(value)
    if isinstance(value, list):
        return [_whole_letters(item) for item in value]
    if isinstance(value, dict):
        return {as_text(key): _whole_letters(item) for key, item in value.items()}
    return value


def as_text(value: str) -> str:
    """Text that every file can hold: halves of characters, as a name that is no UTF-8 has them, are written out.

    >>> as_text("caf\\udce9")
    'caf\\\\udce9'
    """
    return value.encode("utf-8", "backslashreplace").decode()
