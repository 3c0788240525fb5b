"""Where images come from: items, folders, arrays, and the batches made of them."""

from kdsearch.core.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
