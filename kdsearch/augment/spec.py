"""The frozen result of a search: plain numbers with units, as versioned JSON. What is exported."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from kdsearch.augment.operations import TABLE as OPERATIONS
from kdsearch.augment.operations import Operation
from kdsearch.core.errors import KdsearchError, problems, quote, unknown_name
from kdsearch.core.files import as_path, read_text
from kdsearch.core.html import html_paragraph, html_table
from kdsearch.core.terminal import format_number, number_of
from kdsearch.core.values import Fill

FORMAT, VERSIONS = "kdsearch-policy", (1, 2)
MOST_BYTES = 1_000_000
NESTED = "[base.base] must be null: a base view has none of its own"
IN_SHORT = 3  # operations that a repr names
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Limits(_Frozen):
    """What an operation of the policy may do: its unit, the largest magnitude, and how its range came about."""

    unit: str
    limit: Finite | None = Field(gt=0)
    range: Literal["pathwise", "endpoint", "fixed", "none"]


class Setting(_Frozen):
    """How one operation is drawn: the probability once drawn, and the uniform range of its magnitude in its unit."""

    probability: Annotated[Finite, Field(ge=0, le=1)]
    low: Annotated[Finite, Field(ge=0)] | None = None
    high: Annotated[Finite, Field(ge=0)] | None = None


class Snapshot(_Frozen):
    """The policy at one moment of training."""

    progress: Annotated[Finite, Field(ge=0, le=1)]  # share of the student steps done
    settings: dict[str, Setting]


class PolicySpec(_Frozen):
    """A policy as plain numbers.

    Each image draws `operations_per_image` of the operations without replacement, uniformly; each drawn operation is
    applied with its probability, with a magnitude uniform on [low, high] and a random sign where the operation is
    signed. The marginal rate of an operation is `rate`. `schedule` holds up to 16 moments of training; the last one is
    the `final` policy, the mean over the second half the `average`. Where it was learned over a base view, which every
    image goes through first, that is `base`, a policy itself: `Policy.from_spec(spec.base)` draws it. One read from a
    file of version 1 has none, and is written as version 1 again.
    """

    format: Literal["kdsearch-policy"] = "kdsearch-policy"
    version: Literal[1, 2] = 2
    operations_per_image: Annotated[int, Field(ge=1)]
    fill: Fill = "zero"  # where geometry finds no pixel
    operations: dict[str, Limits]
    schedule: Annotated[tuple[Snapshot, ...], Field(min_length=1, max_length=16, strict=False)]
    base: "PolicySpec | None" = None  # what it was learned over; without a base of its own
    provenance: dict[str, str | int | Finite | None] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        found = list(_inconsistencies(self))
        if found:
            raise ValueError("\n".join(found))
        return self

    @property
    def final(self) -> dict[str, Setting]:
        return self.schedule[-1].settings

    def at(self, progress: float) -> dict[str, Setting]:
        """The numbers of the last moment until then; of the first one where all are later."""
        return next((s.settings for s in reversed(self.schedule) if s.progress <= progress), self.schedule[0].settings)

    @property
    def average(self) -> Mapping[str, Setting]:
        """Mean of the snapshots of the second half of training."""
        later = [s.settings for s in self.schedule if s.progress >= 0.5] or [self.final]

        def mean(name: str, field: str) -> float | None:
            values = [getattr(settings[name], field) for settings in later]
            if values[0] is None or min(values) == max(values):
                return values[0]
            return min(max(values), math.fsum(values) / len(values))  # a mean may round above its largest value

        return {
            name: Setting(probability=mean(name, "probability") or 0.0, low=mean(name, "low"), high=mean(name, "high"))
            for name in self.operations
        }

    def which(self, name: str) -> Mapping[str, Setting]:
        """`final` or `average`.

        Raises:
            KdsearchError: another name.
        """
        if name not in ("final", "average"):
            raise KdsearchError(unknown_name("part of a policy", name, ["final", "average"]))
        return self.final if name == "final" else self.average

    def rate(self, name: str, which: str = "final") -> float:
        """Marginal probability that the operation is applied to an image: n/S times its probability."""
        return self.operations_per_image / len(self.operations) * self.which(which)[name].probability

    def __repr__(self) -> str:
        over = f"; base view: {self.base.in_short()}" if self.base else ""
        return f"{type(self).__name__}({self.in_short()}{over})"

    __str__ = __repr__

    def in_short(self) -> str:
        """How many operations an image draws, and which are applied most often; without the base view."""
        rates = {name: self.rate(name) for name in self.operations}
        most = sorted((name for name in rates if rates[name]), key=lambda name: -rates[name])[:IN_SHORT]
        often = ", ".join(f"{name} on {100 * rates[name]:.0f} %" for name in most)
        drawn = f"{self.operations_per_image} of {number_of(len(rates), 'operation')} an image"
        rest = ", ..." if most and len(most) < len(rates) else ""
        return f"{drawn}: {often or 'none ever applied'}{rest}"

    def _repr_html_(self) -> str:
        return html_paragraph("A PolicySpec, frozen:") + self.in_html()

    def in_html(self) -> str:
        """The final policy as a table, the operation applied to the most images first."""
        order = sorted(self.operations, key=lambda name: -self.rate(name))
        names = ["operation", "probability once drawn, %", "of all images, %", "range of the magnitude", "limit"]
        count, n = len(order), self.operations_per_image
        drawn = f"{n} of these {number_of(count, 'operation')}" if count > 1 else "this operation"
        rule = f"Each image draws {drawn} and gets each with its probability; fill {self.fill}."
        over = html_paragraph(f"Over a base view: {self.base.in_short()}.") if self.base else ""
        return html_table(names, [self._row(name) for name in order]) + html_paragraph(rule) + over

    def _row(self, name: str) -> list[str]:
        limits, setting = self.operations[name], self.final[name]
        cells = [name, f"{100 * setting.probability:.0f}", f"{100 * self.rate(name):.1f}"]
        if limits.limit is None or setting.low is None or setting.high is None:
            return [*cells, "", ""]
        return [*cells, format_range(name, setting.low, setting.high, limits.unit), format_number(limits.limit)]

    def in_words(self, name: str) -> str:
        """How often and how far an operation is applied, such as "rate 0.25, ±2.1 to 17 degrees"."""
        setting = self.final.get(name)
        if not setting or not setting.probability:
            return "never"
        often = f"rate {format_number(self.rate(name))}"
        if setting.low is None or setting.high is None:
            return often
        return f"{often}, {format_range(name, setting.low, setting.high, self.operations[name].unit)}"

    def to_json(self) -> str:
        return json.dumps(_plain(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, *, place: str = "policy") -> Self:
        """Read a policy, naming every problem in one message.

        Raises:
            KdsearchError: not JSON, another format or version, unknown operations or fields, numbers out of range.
        """
        if len(text) > MOST_BYTES:
            raise KdsearchError(f"{place}: {len(text):,} characters; a policy has at most {MOST_BYTES:,}")
        try:
            data = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_no_repeats)
        except (ValueError, RecursionError) as error:
            raise KdsearchError(f"{place}: not a JSON policy: {error}; allowed: a policy.json") from None
        _check_version(data, place)
        if data.get("base") is not None:
            _check_version(data["base"], f"{place}: [base]")
            if data["base"].get("base") is not None:  # and so on, as deep as a stranger likes
                raise KdsearchError(f"{place}: {NESTED}")
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise problems(place, [line for e in _causes(error.errors()) for line in _lines(e)]) from None
        except UnicodeEncodeError:
            raise KdsearchError(f"{place}: a name in it has half a letter (a lone surrogate), as no text has") from None

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a policy file; see `from_json`.

        Raises:
            KdsearchError: it cannot be read, or holds no policy.
        """
        try:
            path = as_path(path)
            text = read_text(path, MOST_BYTES)
        except KdsearchError as error:
            raise KdsearchError(f"cannot read the policy {error}") from None
        return cls.from_json(text, place=str(path))


def _check_version(data: Any, place: str) -> None:
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise KdsearchError(f'{place}: not a policy file: its "format" is not "{FORMAT}"')
    if data.get("version") not in VERSIONS or type(data["version"]) is not int:
        known = " and ".join(map(str, VERSIONS))
        raise KdsearchError(f"{place}: policy version {data.get('version')!r}; this kdsearch reads versions {known}")


def format_range(operation: str, low: float, high: float, unit: str) -> str:
    """A range in words, such as "±2.1 to 17 degrees"."""
    return f"{'±' if OPERATIONS[operation].signed else ''}{format_number(low)} to {format_number(high)} {unit}"


def _plain(spec: PolicySpec) -> dict[str, Any]:
    """As JSON has it; without a base view there is no word of it, as in version 1."""
    data = spec.model_dump(mode="json", exclude={"base"})
    return {**data, "base": _plain(spec.base)} if spec.base else data


def _inconsistencies(spec: PolicySpec) -> list[str]:
    """What fields say of each other; a base view has been looked at before, as a policy of its own."""
    found = []
    if spec.base and spec.version == 1:
        found.append("[base] version 1 has no base view; allowed: null, or version 2")
    if spec.base and spec.base.base:
        found.append(NESTED)
    for name, limits in spec.operations.items():
        op = OPERATIONS.get(name)
        if op is None:
            found.append(f"[operations.{name}] {unknown_name('operation', name, OPERATIONS)}")
        elif limits.unit != op.unit:
            found.append(f"[operations.{name}] unit is {limits.unit!r}; this operation's is {op.unit!r}")
        elif limits.range not in _ranges(op):
            found.append(f"[operations.{name}] range is {limits.range!r}; allowed: {' or '.join(_ranges(op))}")
        elif (limits.limit is None) != (op.hard is None) or (limits.limit or 0) > (op.hard or 0):
            allowed = "null" if op.hard is None else f"more than 0, at most {op.hard:g} {op.unit}"
            found.append(f"[operations.{name}] limit is {limits.limit}; allowed: {allowed}")
    if not 1 <= spec.operations_per_image <= len(spec.operations):
        found.append(f"operations_per_image is {spec.operations_per_image}; allowed: 1 to {len(spec.operations)}")
    for i, snapshot in enumerate(spec.schedule):
        if set(snapshot.settings) != set(spec.operations):
            differ = ", ".join(sorted(set(snapshot.settings) ^ set(spec.operations)))
            found.append(f"[schedule.{i}] its operations are not those of the policy: {differ}")
            continue
        for name, s in snapshot.settings.items():
            limit = spec.operations[name].limit
            if limit is None:
                if s.low is not None or s.high is not None:
                    found.append(f"[schedule.{i}.{name}] low and high must be null: it has no magnitude")
            elif s.low is None or s.high is None or not s.low <= s.high <= limit:
                found.append(f"[schedule.{i}.{name}] needs 0 <= low <= high <= {limit:g}; got {s.low} and {s.high}")
    progress = [s.progress for s in spec.schedule]
    if progress != sorted(progress):
        found.append("[schedule] progress must not go back")
    return found


def _ranges(op: Operation) -> list[str]:
    """How the range of an operation can have come about, in this version of kdsearch or another."""
    return ["none"] if op.limit is None else ["endpoint", "fixed", "pathwise"]


def _causes(errors: Sequence[Any]) -> list[dict[str, Any]]:
    """Without a sequence called too short only because its items are wrong."""

    def follows(error: dict[str, Any]) -> bool:
        where = error["loc"]
        below = (other for other in errors if other["loc"][: len(where)] == where and len(other["loc"]) > len(where))
        return error["type"] == "too_short" and any(below)

    return [dict(error) for error in errors if not follows(error)]


def _lines(error: dict[str, Any]) -> list[str]:
    where = ".".join(map(str, error["loc"]))
    if error["type"] == "value_error":  # of `_inconsistencies`, which do not know whether theirs is the base view
        lines = str(error["ctx"]["error"]).splitlines()
        return [f"[{where}.{line[1:]}" if line[0] == "[" else f"[{where}] {line}" for line in lines] if where else lines
    if error["type"] == "extra_forbidden":
        return [f"[{where}] unknown field"]
    return [f"[{where}] {error['msg'][0].lower()}{error['msg'][1:]}; got {quote(error['input'])}"]


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not allowed")


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(made := dict(pairs)) == len(pairs):
        return made
    repeated = sorted(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
    raise ValueError(f"repeated key {', '.join(repeated)}")


_DESCRIPTIONS: Mapping[tuple[str, str], str] = {
    ("PolicySpec", "format"): "Says that this is a policy file.",
    ("PolicySpec", "version"): "Of the format; a reader refuses versions it does not know.",
    ("PolicySpec", "operations_per_image"): "How many operations an image draws; at most as many as there are.",
    ("PolicySpec", "fill"): "What stands where geometry finds no pixel: zeros, the mean of each channel of the image, "
    "or the image mirrored at its edge, the edge repeated.",
    ("PolicySpec", "operations"): "The operations of the policy by name. Each moment has settings for these and no "
    "others.",
    ("PolicySpec", "schedule"): "Moments of training, the last one the final policy; progress does not go back.",
    ("PolicySpec", "base"): "The base view that the policy was learned over, which every image goes through first: a "
    "policy that has none of its own, its last moment the one that is meant. From version 2 on.",
    ("PolicySpec", "provenance"): "Where the policy comes from, in words and numbers. Nothing reads it.",
    ("Limits", "unit"): "Unit of the magnitude; empty for an operation without one.",
    ("Limits", "limit"): "Largest magnitude, in the unit; null for an operation without a magnitude.",
    (
        "Limits",
        "range",
    ): "How low and high came about: learned through the pixels, learned from the images at both ends, held "
    "fixed, or there is none.",
    ("Setting", "probability"): "That the operation is applied once drawn.",
    ("Setting", "low"): "Smallest magnitude, in the operation's unit; null without a magnitude.",
    ("Setting", "high"): "Largest magnitude, in the operation's unit, from low to limit; null without a magnitude.",
    ("Snapshot", "progress"): "Share of the student's steps done.",
    ("Snapshot", "settings"): "How each operation of the policy is drawn, by name.",
}


def schema() -> dict[str, Any]:
    """The JSON Schema of policy files: every policy that is read satisfies it.

    What it cannot say, reading checks beside: that settings are those of the operations, and low <= high <= limit.
    """
    parts = PolicySpec.model_json_schema()["$defs"]
    data = parts.pop("PolicySpec")
    data = {"$defs": parts, **data}
    parts = {"PolicySpec": data, **parts}
    for (part, field), description in _DESCRIPTIONS.items():
        parts[part]["properties"][field]["description"] = description
    data["required"] = ["format", "version", *data["required"]]
    operations, settings = data["properties"]["operations"], parts["Snapshot"]["properties"]["settings"]
    operations["minProperties"] = 1
    for table in (operations, settings):
        table["propertyNames"] = {"enum": list(OPERATIONS)}
        table["additionalProperties"] = False
        table["properties"] = {}
    for name, op in OPERATIONS.items():
        most = {"type": "null"} if op.hard is None else {"type": "number", "maximum": op.hard}
        sign = " of random sign" if op.signed else ""
        operations["properties"][name] = {
            "$ref": "#/$defs/Limits",
            "description": f"Magnitude{sign} in: {op.unit}." if op.unit else "Has no magnitude.",
            "properties": {"unit": {"const": op.unit}, "limit": most, "range": {"enum": _ranges(op)}},
        }
        settings["properties"][name] = {
            "$ref": "#/$defs/Setting",
            "properties": {"low": most, "high": most},
            "required": [] if op.hard is None else ["low", "high"],
        }
    none = {"properties": {"base": {"type": "null"}}}
    data["properties"]["base"]["anyOf"][0] = {"$ref": "#", **none}
    data["if"], data["then"] = {"properties": {"version": {"const": 1}}}, none
    about = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "urn:kdsearch:policy:2"}
    return {**about, **data, "title": "A policy file of kdsearch"}
