"""One label per image."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from kdsearch.errors import KdsearchError
from kdsearch.values import Outputs


@dataclass(frozen=True)
class Classification:
    """Targets are labels (B,) from 0 to K - 1."""

    class_names: tuple[str, ...]

    @classmethod
    def of(cls, classes: int | Sequence[str]) -> "Classification":
        """From a number of classes or their names."""
        names = [str(i) for i in range(classes)] if isinstance(classes, int) else list(classes)
        if len(names) < 2:
            raise KdsearchError(f"classes: {len(names)}; a classification needs at least 2")
        return cls(tuple(names))

    def check(self, outputs: Outputs, who: str) -> Outputs:
        """The same outputs, if they are those of a classifier.

        Raises:
            KdsearchError: logits that are not (B, K).
        """
        if outputs.logits.ndim != 2:
            got = tuple(outputs.logits.shape)
            raise KdsearchError(f"{who}: returned {got}; a classifier returns logits of shape (batch, classes)")
        return outputs

    def supervised(self, outputs: Outputs, target: Tensor) -> Tensor:
        """Cross-entropy per image, (B,), in nats."""
        return cross_entropy(outputs.logits, target, reduction="none")

    def reduce(self, values: Tensor) -> Tensor:
        """Of a loss per image, (B,), the mean."""
        return values.mean()

    def follow(self, target: Tensor, matrix: Tensor) -> Tensor:
        """A label stays what it is wherever the pixels go; `matrix` is (B, 3, 3)."""
        return target

    def correct(self, outputs: Outputs, target: Tensor) -> Tensor:
        """Is the first choice right? (B,) bool. Logits that are not finite are wrong: NaN sorts last, and would win."""
        finite = torch.isfinite(outputs.logits).all(1)
        return (outputs.logits.argmax(1) == target) & finite
