"""One label per image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from kdsearch.core.errors import KdsearchError
from kdsearch.core.values import Outputs
from kdsearch.losses.objectives import weighted_sum


@dataclass(frozen=True)
class Classification:
    """Targets are labels (B,) from 0 to K - 1."""

    class_names: tuple[str, ...]

    @classmethod
    def of(cls, classes: int | Sequence[str]) -> "Classification":
        """From a number of classes or their names.

        Raises:
            KdsearchError: fewer than 2.
        """
        names = [str(i) for i in range(classes)] if isinstance(classes, int) else list(classes)
        if len(names) < 2:
            raise KdsearchError(f"classes: {len(names)}; a classification needs at least 2")
        return cls(tuple(names))

    def check(self, outputs: Outputs, who: str) -> Outputs:
        """The same outputs, if they are those of a classifier.

        Raises:
            KdsearchError: logits that are not (B, K), or of another K than the classes.
        """
        if outputs.logits.ndim != 2:
            got = tuple(outputs.logits.shape)
            raise KdsearchError(f"{who}: returned {got}; a classifier returns logits of shape (batch, classes)")
        if outputs.logits.shape[1] != len(self.class_names):
            raise KdsearchError(
                f"{who}: {outputs.logits.shape[1]} logits; the task has {len(self.class_names)} classes"
            )
        return outputs

    def wrong(self, target: Tensor) -> str | None:
        """Labels that are no integers (B,), or not from 0 to K - 1."""
        most = len(self.class_names)
        if target.ndim != 1 or target.is_floating_point():
            return f"labels are {target.dtype} {tuple(target.shape)}; allowed: integers, one for each image"
        low, high = int(target.min()), int(target.max())
        if low < 0 or high >= most:
            return f"labels from {low} to {high}; allowed: 0 to {most - 1} ({most} classes)"
        return None

    def supervised(self, outputs: Outputs, target: Tensor) -> Tensor:
        """Cross-entropy per image, (B,), in nats."""
        return cross_entropy(outputs.logits, target, reduction="none")

    def per_image(self, values: Tensor, target: Tensor) -> Tensor:
        """An image has one point."""
        return values

    def objective(self, weights: Mapping[str, float], student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Weighted sum of terms per image, (B,), in nats."""
        return weighted_sum(weights, student.logits, teacher.logits, target)

    def follow(self, target: Tensor, matrix: Tensor) -> Tensor:
        """A label stays what it is wherever the pixels go; `matrix` is (B, 3, 3)."""
        return target

    def correct(self, outputs: Outputs, target: Tensor) -> Tensor:
        """Is the first choice right? (B,) bool. Logits that are not finite are wrong: NaN sorts last, and would win."""
        finite = torch.isfinite(outputs.logits).all(1)
        return (outputs.logits.argmax(1) == target) & finite
