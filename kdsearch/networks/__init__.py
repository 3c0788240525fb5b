"""Whatever answers: how a network is run, wrapped, built, read from a file, and is a teacher."""

from kdsearch.core.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
