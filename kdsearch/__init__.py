"""kdsearch: which augmentation policy makes this student learn most from this teacher?

The public names stand in `__init__.pyi` and are imported when first used: `import kdsearch` loads no torch.
"""

from typing import Any

from kdsearch.core.lazy import lazy_names

_get, __dir__, __all__ = lazy_names(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # takes longer than all the rest of this module

        return version("kdsearch")
    if name in __all__:
        return _get(name)
    from kdsearch.core.old_names import find_old_name

    return find_old_name(name, stacklevel=3)
