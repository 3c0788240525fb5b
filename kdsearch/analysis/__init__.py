"""What has been run, read from run folders: frames, comparisons, pictures, the report."""

from kdsearch.core.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
