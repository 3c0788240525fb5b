"""Learned projections of the student's features, for losses that compare channels one by one."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdsearch.core.maths import derive_seed
from kdsearch.core.values import Outputs
from kdsearch.losses.loss import Loss, projected_name


class Projections(nn.Module):
    """A linear map for each pair of layers whose losses need as many channels and which have not: 1x1, with a bias.

    They learn beside the student, by its optimiser, and are no part of it afterwards. Losses on the same pair share
    one; that of tokens and vectors is on their last axis.

    Args:
        student: What the student says of a few images, with the features of all layers that losses name.
        teacher: What the teacher says of them, likewise.
        seed: Of the start.

    Reference:
        Romero et al., FitNets: hints for thin deep nets, ICLR 2015, for the regressor
    """

    def __init__(self, losses: Sequence[Loss], student: Outputs, teacher: Outputs, seed: int) -> None:
        super().__init__()
        self.pairs: list[tuple[str, str]] = []  # of paths, in which dots stand that a module's name must not have
        self.maps = nn.ModuleList()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "projections"))
            for pair in dict.fromkeys(pair for loss in losses if loss.projects for pair in loss.pairs):
                own, others = student.features[pair[0]], teacher.features[pair[1]]
                into, out = (x.shape[1 if x.ndim == 4 else -1] for x in (own, others))
                if own.ndim == others.ndim and into != out:
                    self.pairs.append(pair)
                    self.maps.append(nn.Conv2d(into, out, 1) if own.ndim == 4 else nn.Linear(into, out))

    def and_those_of(self, other: "Projections") -> "Projections":
        """These, and those of other pairs."""
        self.pairs += other.pairs
        self.maps.extend(other.maps)
        return self

    def forward(self, student: Outputs) -> Outputs:
        """The same outputs, with the projected features under names of their own."""
        made: dict[str, Tensor] = {
            projected_name(*pair): change(student.features[pair[0]])
            for pair, change in zip(self.pairs, self.maps, strict=True)
            if pair[0] in student.features
        }
        return Outputs(student.logits, {**student.features, **made}, student.extras) if made else student
