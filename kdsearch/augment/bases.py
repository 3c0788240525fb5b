"""The base view: what every image goes through before the policy, by name, by parts, or a user's own."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdsearch.augment.fixed import FixedTransform
from kdsearch.augment.policy import Policy
from kdsearch.augment.spec import PolicySpec
from kdsearch.core.errors import KdsearchError, quote, unknown_name
from kdsearch.core.files import as_path

Base = Policy | FixedTransform
PROBABILITY = 0.5  # of each operation of a named base
PARTS: Mapping[str, Mapping[str, float | None]] = {  # operations with their largest magnitudes
    "flip": {"horizontal_flip": None},
    "shift": {"translate_x": 0.125, "translate_y": 0.125},
    "turn": {"rotate": 10.0},
    "scale": {"scale": 0.1},
}
NAMED: Mapping[str, tuple[str, ...]] = {
    "shift": ("shift",),
    "flip_shift": ("flip", "shift"),
    "turn_shift": ("turn", "shift"),
}


def base_of_parts(parts: Sequence[str], *, fill: str = "reflect", probability: float = PROBABILITY) -> Policy:
    """A base view out of `PARTS`: all their operations drawn, each applied with a probability, magnitudes from 0 on.

    Reference:
        Wang et al., What makes a good data augmentation in knowledge distillation, NeurIPS 2022, among others, train on
        images that are shifted (by up to 4 of 32 pixels, by padding and cropping) and flipped
    """
    limits = {name: limit for part in parts for name, limit in PARTS[part].items()}
    return Policy.uniform(limits, len(limits), probability=probability, fill=fill).requires_grad_(False)


def as_base(given: Any, *, fill: str = "reflect", known: Iterable[str] = NAMED) -> Base | None:
    """What may be named as a base view, held still.

    Args:
        given: None for a bare base; a name out of `NAMED`; a `Policy`, a `PolicySpec` or the path
            of its file; a `FixedTransform` or any callable on one image.
        fill: Of a base by its name.
        known: Names that are told of where it is none.

    Raises:
        KdsearchError: anything else; a policy that has a base view of its own.
    """
    if isinstance(given, str) and given in NAMED:
        return base_of_parts(NAMED[given], fill=fill)
    if isinstance(given, str) and not given.endswith(".json"):
        raise KdsearchError(unknown_name("base", given, known))
    if isinstance(given, str | Path):
        given = PolicySpec.load(as_path(given))
    if isinstance(given, PolicySpec) and given.base:
        raise KdsearchError(
            "base: the policy has a base view of its own; allowed: one without, such as its own base, spec.base"
        )
    return None if given is None else as_held(given, "base", ("None", *known))


def as_held(given: Any, of: str, known: Iterable[str] = ()) -> Base:
    """What stands for a policy, held still: a `Policy`, a `PolicySpec` or its file, a transform, a callable.

    Args:
        of: The subject of an error.
        known: What else is allowed there.

    Raises:
        KdsearchError: anything else.
    """
    if isinstance(given, str | Path):
        given = PolicySpec.load(as_path(given))
    if isinstance(given, Policy):
        if not any(number.requires_grad for number in given.parameters()):
            return given  # it is held still already
        given = given.freeze()
    if isinstance(given, PolicySpec):
        return Policy.from_spec(given).requires_grad_(False)
    if isinstance(given, FixedTransform):
        return given
    if callable(given) and not isinstance(given, type):
        return FixedTransform(given)
    allowed = (*known, "a Policy", "a PolicySpec or its file", "a FixedTransform or a callable on one image")
    raise KdsearchError(f"{of}: {quote(given)} is none; allowed: {', '.join(allowed)}")
