"""What a distiller asks of a task."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from kdsearch.core.values import Outputs


class Task(Protocol):
    """What a target is, how it follows a draw, and what is measured. Any class with these methods is one.

    B images, P points of an image; a target is a tensor with a row per image, such as labels (B,), a mask (B, H, W),
    boxes (B, M, 5).
    """

    def check(self, outputs: Outputs, who: str) -> Outputs:
        """The same outputs, if they are those of this task; otherwise a KdsearchError that says what `who` returned."""

    def wrong(self, target: Tensor) -> str | None:
        """What keeps a batch of targets from being this task's, in words."""

    def supervised(self, outputs: Outputs, target: Tensor) -> Tensor:
        """The loss with the target alone, per image, (B,)."""

    def per_image(self, values: Tensor, target: Tensor) -> Tensor:
        """A distillation loss per image, (B,), from one per image (B,) or per point (B, *space)."""

    def objective(self, weights: Mapping[str, float], student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """What a policy step minimises, per image, (B,): the weighted sum of terms out of `objectives`, in nats."""

    def follow(self, target: Tensor, matrix: Tensor) -> Tensor:
        """The target where a draw has moved pixels by `matrix` (B, 3, 3), pixels relative to the image centre."""

    def correct(self, outputs: Outputs, target: Tensor) -> Tensor:
        """How right each image is, (B,): yes or no, or a share; answers that are not finite are wrong."""
