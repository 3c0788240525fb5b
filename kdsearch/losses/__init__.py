"""The table of distillation losses."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from kdsearch.losses.logits import soft_targets
from kdsearch.values import Outputs

__all__ = ["LOSSES", "Kind", "Loss", "Ramp", "soft_targets"]

Function = Callable[[Outputs, Outputs, Tensor], Tensor]  # student, teacher, target (B,) -> (B,) or (B, *space)
Status = Literal["faithful", "paper form", "reconstruction"]


@dataclass(frozen=True)
class Ramp:
    """A weight that goes linearly from `first` to `last` over a share of a phase, and stays.

    >>> Ramp(0.0, 2.0, over=0.5)(0.25), Ramp(0.0, 2.0, over=0.5)(0.9)
    (1.0, 2.0)
    """

    first: float
    last: float
    over: float = 1.0

    def __call__(self, progress: float) -> float:
        return self.first + (self.last - self.first) * min(1.0, progress / self.over)


@dataclass(frozen=True)
class Loss:
    """A distillation loss: the outputs of student and teacher, and the target, to one number per image or per point.

    Reduced by the task after weighting, never inside. One that is relational compares the images of a view with each
    other: it returns each image's share, whose mean is the loss.
    """

    name: str  # with its numbers, such as "kd, temperature 4"
    function: Function
    per: Literal["image", "point"] = "image"
    relational: bool = False
    pairs: tuple[tuple[str, str], ...] = ()  # module paths in student and teacher whose outputs it compares
    projects: bool = False  # are the student's channels brought to the teacher's by a linear map that learns?
    weight: float | Ramp = 1.0

    def __call__(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """(B,) or (B, *space), in float32 or more; no gradient reaches the teacher."""
        return self.function(student.wide(), teacher.wide().detach(), target)

    def times(self, weight: float | Ramp) -> "Loss":
        """The same loss with another weight."""
        return replace(self, weight=weight)

    def at(self, progress: float) -> float:
        """The weight at a share of the phase."""
        return self.weight(progress) if isinstance(self.weight, Ramp) else self.weight


@dataclass(frozen=True)
class Kind:
    """One entry of the table: makes losses, and says where they come from."""

    name: str
    make: Callable[..., Loss]
    says: str  # the formula, short
    status: Status  # faithful to the authors' code; the paper's form where their code differs; or our reading of it
    reference: str
    differs: str = ""  # why it is not zero where student and teacher agree; empty where it is

    def __call__(self, *args: float | str | tuple[str, ...], **numbers: float) -> Loss:
        return self.make(*args, **numbers)


def _kd(temperature: float = 4.0) -> Loss:
    def loss(student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        return soft_targets(student.logits, teacher.logits, temperature)

    return Loss(f"kd, temperature {temperature:g}", loss)


LOSSES: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            "kd",
            _kd,
            "T^2 KL(p_T || p_S)",
            "faithful",
            "Hinton et al., Distilling the knowledge in a neural network, 2015",
        ),
    )
}
