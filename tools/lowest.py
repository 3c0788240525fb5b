"""Prints pip constraints: every dependency at the lowest version that pyproject.toml allows (`make lowest`)."""

import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version


def pins(requirements: Iterable[str]) -> dict[str, Version]:
    """The lowest version of each project that all its bounds allow.

    Args:
        requirements: of PEP 508, each with a lower bound: "name>=2,<3" or "name==2.0.8".

    Raises:
        SystemExit: a requirement without a lower bound.
    """
    found: dict[str, Version] = {}
    for text in requirements:
        requirement = Requirement(text)
        bounds = [Version(bound.version) for bound in requirement.specifier if bound.operator in (">=", "==", "~=")]
        if not bounds:
            raise SystemExit(f"pyproject.toml: {text!r} has no lower bound; allowed: name>=version or name==version")
        name = canonicalize_name(requirement.name)
        found[name] = max(*bounds, found.get(name, bounds[0]))
    return found


def requirements(project: Path) -> list[str]:
    """What `pip install --editable '.[dev]'` asks for: the dependencies, those of the extra `dev`, the build's own."""
    data = tomllib.loads(project.read_text())
    table = data["project"]
    return [*table["dependencies"], *table["optional-dependencies"]["dev"], *data["build-system"]["requires"]]


if __name__ == "__main__":
    for name, version in pins(requirements(Path(sys.argv[1]))).items():
        print(f"{name}=={version}")
