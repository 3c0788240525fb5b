"""A search space: which operations, how far each may go, and which numbers of the policy the search may choose."""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from kdsearch.catalogue import find
from kdsearch.errors import KdsearchError, problems, unknown
from kdsearch.ops import FILLS, OPERATIONS

Number = Annotated[float, Field(allow_inf_nan=False)]


@dataclass(frozen=True)
class Settings:
    """The numbers of one trial: how the policy learns."""

    learning_rate: float  # of Adam, on logits
    prior_strength: float  # nats
    operations_per_image: int
    interval: int  # student steps per policy step


WHOLE = {"operations_per_image", "interval"}
LEAST = {"learning_rate": 1e-6, "prior_strength": 0.0, "operations_per_image": 1, "interval": 1}
NUMBERS = tuple(field.name for field in fields(Settings))


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


class _Operation(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    limit: Number | None = None


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    summary: str = ""
    fill: str = "zero"
    policy: dict[str, Range | Number]
    operations: dict[str, _Operation]


@dataclass(frozen=True)
class SearchSpace:
    """A search space, checked: every name is known and every number allowed."""

    name: str
    summary: str
    numbers: Mapping[str, Range | float]  # of Settings: a range for the search, or held fixed
    limits: Mapping[str, float | None]  # of operations, in their units; None without a magnitude
    fill: str = "zero"  # where geometry finds no pixel: zero, mean or reflect

    @property
    def ranges(self) -> dict[str, Range]:
        """The numbers that the search chooses."""
        return {name: value for name, value in self.numbers.items() if isinstance(value, Range)}

    def settings(self, chosen: Mapping[str, float] | None = None) -> Settings:
        """All numbers of a trial: the chosen ones, the rest fixed or at their default."""
        rest = {name: v.default if isinstance(v, Range) else v for name, v in self.numbers.items()}
        values: dict[str, Any] = {
            name: int(v) if name in WHOLE else float(v) for name, v in {**rest, **(chosen or {})}.items()
        }
        return Settings(**values)

    def without(self, names: Iterable[str]) -> "SearchSpace":
        """The space with some operations left out; fewer per image where not so many are left."""
        dropped = set(names)
        limits = {name: limit for name, limit in self.limits.items() if name not in dropped}
        if not limits:
            raise KdsearchError(f"search space {self.name}: no operation has an effect on these images")
        numbers = dict(self.numbers)
        n = numbers["operations_per_image"]
        if isinstance(n, Range):
            values = {end: min(getattr(n, end), len(limits)) for end in ("low", "high", "default")}
            numbers["operations_per_image"] = Range(**values, log=n.log)
        else:
            numbers["operations_per_image"] = min(n, len(limits))
        return replace(self, numbers=numbers, limits=limits)

    def fingerprint(self) -> dict[str, Any]:
        """What of the space fixes a trial, as plain values."""
        numbers = {name: v.model_dump() if isinstance(v, Range) else v for name, v in self.numbers.items()}
        return {"numbers": numbers, "limits": dict(self.limits), "fill": self.fill}

    @classmethod
    def load(cls, name: str) -> Self:
        """A shipped space by its bare name, or a TOML file by its path.

        Raises:
            KdsearchError: no such space; not TOML; unknown names or numbers that are not allowed, all in one message.
        """
        path = find("search_spaces", name)
        try:
            data = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
            raise KdsearchError(f"{path}: not a TOML file: {error}") from None
        try:
            file = _File.model_validate(data)
        except ValidationError as error:
            raise problems(str(path), sorted({_line(dict(e)) for e in error.errors()})) from None
        found = [] if file.fill in FILLS else [f"[fill] {unknown('fill', file.fill, FILLS)}"]
        found += [*_wrong_numbers(file), *_wrong_operations(file)]
        if found:
            raise problems(str(path), found)
        limits = {op.name: file.operations[op.name].limit or op.limit for op in _ops(file.operations)}
        return cls(path.stem, file.summary, file.policy, limits, file.fill)


def _ops(names: Iterable[str]) -> list[Any]:
    wanted = set(names)
    return [op for name, op in OPERATIONS.items() if name in wanted]


def _wrong_numbers(file: _File) -> list[str]:
    found = [f"[policy.{name}] {unknown('number', name, NUMBERS)}" for name in file.policy if name not in NUMBERS]
    found += [f"[policy.{name}] is missing" for name in NUMBERS if name not in file.policy]
    for name, value in file.policy.items():
        if name not in NUMBERS:
            continue
        ends = [value.low, value.high, value.default] if isinstance(value, Range) else [value]
        if name in WHOLE and any(end != int(end) for end in ends):
            found.append(f"[policy.{name}] must be whole numbers; got {', '.join(f'{e:g}' for e in ends)}")
        most = len(file.operations) if name == "operations_per_image" else float("inf")
        if min(ends) < LEAST[name] or max(ends) > most:
            upper = f" to {most}, the number of operations" if most < float("inf") else " or more"
            found.append(f"[policy.{name}] allowed: {LEAST[name]:g}{upper}; got {', '.join(f'{e:g}' for e in ends)}")
    return found


def _wrong_operations(file: _File) -> list[str]:
    found = [] if file.operations else ["[operations] is empty; known: " + ", ".join(OPERATIONS)]
    for name, given in file.operations.items():
        op = OPERATIONS.get(name)
        if op is None:
            found.append(f"[operations.{name}] {unknown('operation', name, OPERATIONS)}")
        elif op.hard is None and given.limit is not None:
            found.append(f"[operations.{name}] has no magnitude, hence no limit; got {given.limit:g}")
        elif given.limit is not None and op.hard is not None and not 0 < given.limit <= op.hard:
            found.append(f"[operations.{name}] limit: more than 0, at most {op.hard:g} {op.unit}; got {given.limit:g}")
    return found


def _line(error: dict[str, Any]) -> str:
    where = ".".join(str(part) for part in error["loc"] if part not in ("Range", "float", "constrained-float"))
    if error["type"] == "extra_forbidden":
        field = str(error["loc"][-1])
        known = (
            ["limit"]
            if error["loc"][0] == "operations"
            else [*Range.model_fields, "summary", "fill", "policy", "operations"]
        )
        return f"[{where}] {unknown('field', field, known)}"
    if error["type"] == "value_error":
        return f"[{where}] {error['ctx']['error']}"
    return f"[{where}] {error['msg'][0].lower()}{error['msg'][1:]}; got {str(error['input'])[:40]!r}"
