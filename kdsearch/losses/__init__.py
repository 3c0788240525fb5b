"""The table of distillation losses."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from kdsearch.losses.logits import soft_targets
from kdsearch.values import Outputs

__all__ = ["LOSSES", "Loss", "soft_targets"]


@dataclass(frozen=True)
class Loss:
    """A distillation loss: student's and teacher's outputs to one number per image, (B,), or per point, (B, *space).

    Reduced by the task after weighting, never inside.
    """

    name: str  # with its numbers, such as "kd, temperature 4"
    function: Callable[[Outputs, Outputs], Tensor]
    per: Literal["image", "point"]


def _kd(temperature: float = 4.0) -> Loss:
    def loss(student: Outputs, teacher: Outputs) -> Tensor:
        return soft_targets(student.logits, teacher.logits, temperature)

    return Loss(f"kd, temperature {temperature:g}", loss, per="image")


LOSSES: Mapping[str, Callable[..., Loss]] = {"kd": _kd}
