"""Which views get which label, and what each network sees of them: the rules that published methods differ in."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Literal, get_args

import torch

from kdsearch.augment.operations import TABLE as OPERATIONS
from kdsearch.core.errors import KdsearchError, problems, unknown_name
from kdsearch.core.values import Draw

Which = Literal["base", "second", "both"]
Sees = Literal["same", "weak", "clean"]
From = Literal["base", "image"]


@dataclass(frozen=True)
class Views:
    """The rule of a student step over the base view and the second view, the one that the policy makes.

    The base view is the image itself where the base is None. The second view is made of the base view, or with
    `second_from` "image" of the image, whatever the base. With `over` "sum" each view's mean counts in full, with
    "mean" the views are averaged. In one "joint" forward of the student the views share the statistics of BatchNorm,
    "separate" ones have their own. A teacher that sees "weak" gets the second view with the geometry of the policy
    alone, over the base view; one that sees "clean" labels both views by the base view.

    >>> Views.named("tst").labels, Views.named("wang").student
    ('both', 'separate')
    """

    labels: Which = "base"  # which views get cross-entropy with the target
    distillation: Which = "both"  # which get the distillation losses
    over: Literal["sum", "mean"] = "sum"
    student: Literal["joint", "separate"] = "joint"
    teacher: Sees = "same"
    second_from: From = "base"  # what the policy is applied to

    def __post_init__(self) -> None:
        found = [
            unknown_name(f"{part.name} of views", getattr(self, part.name), get_args(part.type))
            for part in fields(self)
            if getattr(self, part.name) not in get_args(part.type)
        ]
        if found:
            raise problems("views", found)

    @classmethod
    def named(cls, name: str) -> "Views":
        """The rule of a published method: "default", "one", "tst" or "wang".

        Raises:
            KdsearchError: there is no such rule.
        """
        if name not in VIEWS:
            raise KdsearchError(unknown_name("views", name, VIEWS))
        return VIEWS[name]

    @property
    def used(self) -> Which:
        """The views that networks run on: one alone, where nothing is asked of the other."""
        return self.labels if self.labels == self.distillation else "both"

    def rows(self, which: Which, size: int) -> slice:
        """Where views stand in a batch of those that are used, the base view first; `size` images each."""
        if self.used != "both":
            return slice(0, size)
        return {"base": slice(0, size), "second": slice(size, 2 * size), "both": slice(0, 2 * size)}[which]

    def factor(self, which: Which) -> int:
        """What the mean over the images of these views counts."""
        return 2 if which == "both" and self.over == "sum" else 1


VIEWS: Mapping[str, Views] = {
    "default": Views(),
    "one": Views(labels="second", distillation="second"),  # the second view, over the base view, at half the time
    # Shao et al., Teaching what you should teach, IJCAI 2023: cross-entropy and distillation of both, averaged
    "tst": Views(labels="both", over="mean"),
    # Wang et al., What makes a good data augmentation in knowledge distillation, NeurIPS 2022: the teacher labels the
    # second view, and the student sees the views one after the other
    "wang": Views(student="separate"),
}


def keep_geometry(draw: Draw) -> Draw:
    """The same draw with every gate closed but those of operations that move pixels; its base view stays whole.

    Raises:
        KdsearchError: the draw is that of a fixed transform, of which nobody knows what it moves.
    """
    if not draw.operations:
        raise KdsearchError(
            "views: a teacher that sees weak views needs a policy; a fixed transform has no geometry alone"
        )
    moves = torch.tensor([OPERATIONS[name].matrix is not None for name in draw.operations])
    return replace(draw, gates=draw.gates & moves[draw.chosen])
