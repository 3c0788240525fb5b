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

    function: Callable[[Outputs, Outputs], Tensor]
    per: Literal["image", "point"]


def _kd(temperature: float = 4.0) -> Loss:
    return Loss(lambda student, teacher: soft_targets(student.logits, teacher.logits, temperature), per="image")


LOSSES: Mapping[str, Callable[..., Loss]] = {"kd": _kd}
