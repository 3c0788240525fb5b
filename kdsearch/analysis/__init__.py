"""Run folders as pandas frames, comparisons of runs, pictures."""

from kdsearch.core.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
