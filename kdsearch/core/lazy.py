"""Public names of a package that are imported when first used; they are written once, in the package's stub."""

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any


def read_stub(file: str) -> dict[str, str]:
    """Where each name comes from, out of the lines `from MODULE import NAME as NAME` of a stub.

    Args:
        file: The `__init__.py`, beside which the stub lies.
    """
    with open(f"{file}i", encoding="utf-8") as stub:
        lines = [line.split() for line in stub if line.startswith("from ")]
    return {words[-1]: words[1] for words in lines}


def lazy_names(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package with a stub.

    A name may be a module of its own. What type checkers and documentation see is the stub, so that there is nothing
    to keep in step.
    """
    where = read_stub(file)
    names = sorted(where)

    def get(name: str) -> Any:
        if name not in where:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        home = import_module(where[name]) if where[name] != package else None
        found = getattr(home, name) if hasattr(home, name) else import_module(f"{where[name]}.{name}")
        setattr(sys.modules[package], name, found)  # from now on it is there
        return found

    return get, lambda: names, names
