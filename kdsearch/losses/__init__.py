"""What a student and what a policy are asked to minimise, numbers per image.

Each method is one function that makes a `Loss` for a study; `TABLE` has them all. The functions of tensors behind them
stand in the families, such as `logits.kd_loss`.
"""

from kdsearch.core.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
