"""A search space: which operations, how far each may go, and which numbers of the policy the search may choose."""

import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from kdsearch.augment.operations import FILLS
from kdsearch.augment.operations import TABLE as OPERATIONS
from kdsearch.core.errors import KdsearchError, problems, quote, unknown_name
from kdsearch.core.files import read_text
from kdsearch.losses.objectives import TABLE as OBJECTIVES
from kdsearch.losses.objectives import TST
from kdsearch.study.catalogue import find_shipped

MOST_BYTES, MOST_LETTERS = 64_000, 1_000  # of a file, in a line: reading a key takes the square of its dots
Number = Annotated[float, Field(allow_inf_nan=False)]


@dataclass(frozen=True)
class Settings:
    """The numbers of one trial: how the policy starts and how it learns, every `interval` steps or in `pauses`."""

    learning_rate: float  # of Adam, on logits
    prior_strength: float | None  # nats; None: no prior
    operations_per_image: int
    interval: int | None  # student steps per policy step; None: in pauses
    pauses: tuple[float, ...]  # shares of the epochs after which the policy learns; empty: every `interval` steps
    passes: int | None  # over the training images, in each phase
    warm_up: float  # share of the student steps before the first policy step
    probability: float  # where every probability starts, and the centre of its prior
    extent: float  # where every high / limit starts, and the centre of its prior
    floor: float | None  # nats by which the teacher's cross-entropy may rise on augmented images; None: no floor
    objective: Mapping[str, float]  # weights of terms in OBJECTIVES
    flips: int | None = None  # gates of an image that a policy step flips; None: all that it drew

    def numbers(self) -> dict[str, float | int | str | None]:
        """All of it as flat plain values: weights under their term's name, pauses as text."""
        flat = {name: value for name, value in asdict(self).items() if name not in ("pauses", "objective")}
        if self.flips is None:
            del flat["flips"]
        pauses = ", ".join(f"{share:g}" for share in self.pauses)
        return {**flat, "pauses": pauses or None, **self.objective}


@dataclass(frozen=True)
class Allowed:
    """What a number may be, both ends included."""

    low: float
    high: float = math.inf
    whole: bool = False
    off: bool = False  # does false switch off what it is for?

    def __str__(self) -> str:
        end = " or more" if self.high == math.inf else f" to {self.high:g}"
        return f"{self.low:g}{end}" + (", or false to switch it off" if self.off else "")


POLICY: Mapping[str, Allowed] = {
    "learning_rate": Allowed(1e-6),
    "prior_strength": Allowed(1e-6, off=True),
    "operations_per_image": Allowed(1, whole=True),  # at most the operations there are
    "interval": Allowed(1, whole=True),
    "passes": Allowed(1, whole=True),
    "warm_up": Allowed(0, 0.9),
    "probability": Allowed(0.001, 0.999),
    "extent": Allowed(0.001, 0.999),
    "floor": Allowed(0, off=True),
    "flips": Allowed(1, whole=True),
}
NEEDED = ("learning_rate", "prior_strength", "operations_per_image")
NUMBERS: Mapping[str, Allowed] = {**POLICY, **dict.fromkeys(OBJECTIVES, Allowed(0))}  # of a policy, weights of terms
WHOLE = {name for name, allowed in NUMBERS.items() if allowed.whole}
UNNAMED: Mapping[str, float | None] = {"warm_up": 0.1, "probability": 0.5, "extent": 0.5, "floor": 1.0, **TST}
assert not {*POLICY, "pauses", "objective"} & set(OBJECTIVES)  # they share one name space in trials and frames


class Range(BaseModel):
    """What the search may choose one number from, both ends included."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    low: Number
    high: Number
    default: Number
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low <= self.default <= self.high:
            raise ValueError(f"needs low <= default <= high; got {self.low:g}, {self.default:g}, {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"a log range needs low > 0; got {self.low:g}")
        return self


ALL = "all"  # operations of an image: those there are


class _Operation(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    limit: Number | None = None


KINDS = {dict: "a range", bool: "a switch", list: "a list", str: "a word", float: "a number"}
Value = Annotated[
    Annotated[Range, Tag("a range")]
    | Annotated[bool, Tag("a switch")]
    | Annotated[list[Number], Tag("a list")]
    | Annotated[str, Tag("a word")]
    | Annotated[Number, Tag("a number")],
    Discriminator(lambda value: KINDS.get(type(value), "a number")),
]


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    summary: str = ""
    fill: str = "zero"
    policy: dict[str, Value]
    objective: dict[str, Value] = Field(default_factory=dict)
    operations: dict[str, _Operation]


@dataclass(frozen=True)
class SearchSpace:
    """A search space, checked: every name is known and every number allowed."""

    name: str
    summary: str
    numbers: Mapping[str, Range | float | None]  # those the file names: a range for the search, held fixed, or off
    limits: Mapping[str, float | None]  # of operations, in their units; None without a magnitude
    fill: str = "zero"  # where geometry finds no pixel: zero, mean or reflect
    pauses: tuple[float, ...] = ()  # shares of the epochs after which the policy learns, in place of an interval
    unnamed: Mapping[str, float | None] = field(default_factory=lambda: UNNAMED)  # numbers where the file names none

    @property
    def ranges(self) -> dict[str, Range]:
        """The numbers that the search chooses."""
        return {name: value for name, value in self.numbers.items() if isinstance(value, Range)}

    def with_defaults(self, objective: Mapping[str, float], floor: float | None) -> "SearchSpace":
        """The space with a study's weights and floor where the file names none."""
        own = {name: value for name, value in UNNAMED.items() if name in POLICY}
        return replace(self, unnamed={**own, "floor": floor, **objective})

    def settings(self, chosen: Mapping[str, float] | None = None) -> Settings:
        """All numbers of a trial: the chosen ones, the rest fixed or at their default."""
        rest = {name: v.default if isinstance(v, Range) else v for name, v in self._complete().items()}
        values: dict[str, Any] = {
            name: v if v is None else int(v) if name in WHOLE else float(v)
            for name, v in {"interval": None, "passes": None, **rest, **(chosen or {})}.items()
        }
        weights = {name: values.pop(name) for name in [*values] if name in OBJECTIVES}
        return Settings(**values, pauses=self.pauses, objective=weights)

    def drop(self, names: Iterable[str]) -> "SearchSpace":
        """The space with some operations left out; fewer per image where not so many are left.

        Raises:
            KdsearchError: none is left.
        """
        dropped = set(names)
        limits = {name: limit for name, limit in self.limits.items() if name not in dropped}
        if not limits:
            raise KdsearchError(f"search space {self.name}: no operation has an effect on these images")
        numbers = dict(self.numbers)
        n = numbers["operations_per_image"]
        assert n is not None
        if isinstance(n, Range):
            values = {end: min(getattr(n, end), len(limits)) for end in ("low", "high", "default")}
            numbers["operations_per_image"] = Range(**values, log=n.log)
        else:
            numbers["operations_per_image"] = min(n, len(limits))
        return replace(self, numbers=numbers, limits=limits)

    def fingerprint(self) -> dict[str, Any]:
        """What of the space fixes a trial, as plain values, each number under the name it has in the file."""
        numbers = {
            f"{'objective' if name in OBJECTIVES else 'policy'}.{name}": (
                v.model_dump() if isinstance(v, Range) else "off" if v is None else v
            )
            for name, v in self._complete().items()
        }
        return {**numbers, "policy.pauses": list(self.pauses), "limits": dict(self.limits), "fill": self.fill}

    def _complete(self) -> dict[str, Range | float | None]:
        return {**self.unnamed, **self.numbers}

    @classmethod
    def load(cls, name: str) -> Self:
        """A shipped space by its bare name, or a TOML file by its path.

        Raises:
            KdsearchError: no such space; not TOML; unknown names or numbers that are not allowed, all in one message.
        """
        path = find_shipped("search_spaces", name)
        data = _parsed(path)
        try:
            file = _File.model_validate(data)
        except ValidationError as error:
            raise problems(str(path), sorted({_line(dict(e)) for e in error.errors()})) from None
        if "phases" in file.policy:
            raise KdsearchError(f"{path}: [policy.phases] is of an earlier kdsearch; it is called 'pauses' now")
        found = [] if file.fill in FILLS else [f"[fill] {unknown_name('fill', file.fill, FILLS)}"]
        found += [*_wrong_numbers(file), *_wrong_timing(file), *_wrong_operations(file)]
        if found:
            raise problems(str(path), found)
        numbers: dict[str, Any] = {n: None if v is False else v for n, v in {**file.policy, **file.objective}.items()}
        if numbers["operations_per_image"] == ALL:
            numbers["operations_per_image"] = len(file.operations)
        pauses = tuple(numbers.pop("pauses", ()))
        limits = {op.name: file.operations[op.name].limit or op.limit for op in _ops(file.operations)}
        return cls(path.stem, file.summary, numbers, limits, file.fill, pauses)


def _parsed(path: Path) -> dict[str, Any]:
    text = read_text(path, MOST_BYTES)
    if max(map(len, text.splitlines()), default=0) > MOST_LETTERS:
        raise KdsearchError(f"{path}: a line of more than {MOST_LETTERS:,} letters, which a search space does not need")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise KdsearchError(f"{path}: not a TOML file of a search space: nested too deeply") from None
    except ValueError as error:  # TOMLDecodeError, or a number of too many digits
        raise KdsearchError(f"{path}: not a TOML file: {error}") from None


def _ops(names: Iterable[str]) -> list[Any]:
    wanted = set(names)
    return [op for name, op in OPERATIONS.items() if name in wanted]


def _wrong_numbers(file: _File) -> list[str]:
    found = [f"[policy.{name}] is missing" for name in NEEDED if name not in file.policy]
    for table, given, kind, known in (
        ("policy", file.policy, "number", [*POLICY, "pauses"]),
        ("objective", file.objective, "term", list(OBJECTIVES)),
    ):
        for name, value in given.items():
            if name not in known:
                found.append(f"[{table}.{name}] {unknown_name(kind, name, known)}")
            elif name != "pauses":
                found += [f"[{table}.{name}] {wrong}" for wrong in _wrong_number(name, value, len(file.operations))]
    return found


def _wrong_number(name: str, value: Any, operations: int) -> list[str]:
    allowed, suffix = NUMBERS[name], ""
    if name == "operations_per_image":
        allowed, suffix = replace(allowed, high=operations), f', the number of operations, or "{ALL}"'
        if value == ALL:
            return []
    if isinstance(value, str):
        return [f"allowed: {allowed}{suffix}; got {quote(value)}"]
    if isinstance(value, bool | list):
        fits = value is False and allowed.off
        return [] if fits else [f"allowed: {allowed}{suffix}; got {str(value).lower()}"]
    ends = [value.low, value.high, value.default] if isinstance(value, Range) else [value]
    got, found = ", ".join(f"{end:g}" for end in ends), []
    if allowed.whole and any(end != int(end) for end in ends):
        found.append(f"must be whole numbers; got {got}")
    if min(ends) < allowed.low or max(ends) > allowed.high:
        found.append(f"allowed: {allowed}{suffix}; got {got}")
    return found


def _wrong_timing(file: _File) -> list[str]:
    """The policy learns every `interval` steps, or in `pauses` of `passes`: one of the two."""
    given = [name for name in ("interval", "pauses", "passes") if name in file.policy]
    found = []
    if not given:
        found.append("[policy.interval] is missing; allowed in its place: pauses together with passes")
    elif "interval" in given and len(given) > 1:
        found.append(f"[policy] allowed: interval, or pauses together with passes; got {', '.join(given)}")
    elif given in (["pauses"], ["passes"]):
        other = "passes" if given == ["pauses"] else "pauses"
        found.append(f"[policy.{other}] is missing; {given[0]} needs it")
    if "pauses" in given and "warm_up" in file.policy:
        found.append("[policy.warm_up] has no part where there are pauses; leave it out")
    shares = file.policy.get("pauses", [0.5])
    if not isinstance(shares, list):
        got = "a range" if isinstance(shares, Range) else str(shares).lower()
        found.append(f"[policy.pauses] allowed: a list of shares of the epochs; got {got}")
    elif not shares or shares[0] <= 0 or shares[-1] >= 1 or any(a >= b for a, b in pairwise(shares)):
        found.append(f"[policy.pauses] allowed: shares of the epochs between 0 and 1, increasing; got {shares}")
    return found


def _wrong_operations(file: _File) -> list[str]:
    found = [] if file.operations else ["[operations] is empty; known: " + ", ".join(OPERATIONS)]
    for name, given in file.operations.items():
        op = OPERATIONS.get(name)
        if op is None:
            found.append(f"[operations.{name}] {unknown_name('operation', name, OPERATIONS)}")
        elif op.hard is None and given.limit is not None:
            found.append(f"[operations.{name}] has no magnitude, hence no limit; got {given.limit:g}")
        elif given.limit is not None and op.hard is not None and not 0 < given.limit <= op.hard:
            found.append(f"[operations.{name}] limit: more than 0, at most {op.hard:g} {op.unit}; got {given.limit:g}")
    return found


def _line(error: dict[str, Any]) -> str:
    where = ".".join(str(part) for part in error["loc"] if part not in KINDS.values())
    if error["type"] == "extra_forbidden":
        *table, name = (str(part) for part in error["loc"])
        known = _File.model_fields if not table else _Operation.model_fields if len(table) == 2 else Range.model_fields
        return f"[{where}] {unknown_name('field', name, known)}"
    if error["type"] == "missing":
        return f"[{where}] is missing"
    if error["type"] == "value_error":
        return f"[{where}] {error['ctx']['error']}"
    return f"[{where}] {error['msg'][0].lower()}{error['msg'][1:]}; got {quote(error['input'])}"
