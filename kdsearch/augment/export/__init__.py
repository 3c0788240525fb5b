"""A policy as the text of a file for the library it is trained with."""

from collections.abc import Callable, Mapping

from kdsearch.augment.export import albumentations, json, kornia, torchvision
from kdsearch.augment.export.source import applied_operations
from kdsearch.augment.spec import PolicySpec
from kdsearch.core.errors import KdsearchError, unknown_name

__all__ = ["EXPORTERS", "differing_operations", "export", "omitted_operations"]

EXPORTERS: Mapping[str, Callable[[PolicySpec, str], str]] = {
    "albumentations": albumentations.source,
    "json": json.source,
    "kornia": kornia.source,
    "torchvision": torchvision.source,
}
_LEFT_OUT: Mapping[str, Mapping[str, str]] = {"albumentations": albumentations.LEFT_OUT}
_DIFFERENCES: Mapping[str, Callable[[PolicySpec, str], dict[str, str]]] = {"albumentations": albumentations.differences}


def export(spec: PolicySpec, to: str, which: str = "final") -> str:
    """The text of a file that holds the `final` or the `average` policy of a spec.

    Raises:
        KdsearchError: no spec; unknown export target, unknown part of a policy, or nothing of it can be expressed
            there.
    """
    if not isinstance(spec, PolicySpec):
        allowed = "a PolicySpec, as of PolicySpec.load(path), or of freeze() of a Policy"
        raise KdsearchError(f"export: policy is {type(spec).__name__}; allowed: {allowed}")
    return EXPORTERS[_target(to)](spec, which)


def omitted_operations(spec: PolicySpec, to: str, which: str = "final") -> dict[str, str]:
    """The operations that can happen but that the target cannot express, and why; `base.NAME` for one of the base view.

    Raises:
        KdsearchError: unknown export target, or unknown part of a policy.
    """
    reasons = _LEFT_OUT.get(_target(to), {})
    found = {name: reasons[name] for name in applied_operations(spec, which) if name in reasons}
    return {**found, **(_of_base(omitted_operations(spec.base, to)) if spec.base else {})}


def differing_operations(spec: PolicySpec, to: str, which: str = "final") -> dict[str, str]:
    """The operations that can happen and are exported, but give other pixels or numbers than here, and how.

    `base.NAME` is one of the base view.

    Raises:
        KdsearchError: unknown export target, or unknown part of a policy.
    """
    described = _DIFFERENCES.get(_target(to))
    found = described(spec, which) if described else {}
    return {**found, **(_of_base(differing_operations(spec.base, to)) if spec.base else {})}


def _of_base(found: Mapping[str, str]) -> dict[str, str]:
    return {f"base.{name}": reason for name, reason in found.items()}


def _target(to: str) -> str:
    if to not in EXPORTERS:
        raise KdsearchError(unknown_name("export target", to, EXPORTERS))
    return to
