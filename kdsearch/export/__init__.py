"""A policy as the text of a file for the library it is trained with."""

from collections.abc import Callable, Mapping

from kdsearch.errors import KdsearchError, unknown
from kdsearch.export import json, kornia, torchvision
from kdsearch.spec import PolicySpec

__all__ = ["EXPORTERS", "export_policy"]

EXPORTERS: Mapping[str, Callable[[PolicySpec, str], str]] = {
    "json": json.source,
    "kornia": kornia.source,
    "torchvision": torchvision.source,
}


def export_policy(spec: PolicySpec, to: str, which: str = "final") -> str:
    """The text of a file that holds the `final` or the `average` policy of a spec.

    Raises:
        KdsearchError: unknown export target, or unknown part of a policy.
    """
    if to not in EXPORTERS:
        raise KdsearchError(unknown("export target", to, EXPORTERS))
    return EXPORTERS[to](spec, which)
