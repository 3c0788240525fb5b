"""What a step is made of: the views of a batch, and a batch in parts."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from kdsearch.augment.bases import Base
from kdsearch.augment.fixed import FixedTransform
from kdsearch.augment.operations import shares_warp
from kdsearch.augment.policy import Policy
from kdsearch.core.errors import KdsearchError
from kdsearch.core.values import Batch, Draw, Outputs, View, ViewBatch, to_device
from kdsearch.distill.views import Views, keep_geometry
from kdsearch.losses.loss import Loss
from kdsearch.tasks import Task


class BaseDraw(NamedTuple):
    """The base views of a batch, drawn: what makes them, and its draw."""

    base: Base
    draw: Draw

    def rows(self, index: Tensor | slice) -> "BaseDraw":
        """Those of some images."""
        return BaseDraw(self.base, self.draw.rows(index))

    def under(self, draw: Draw) -> Draw:
        """The same draw of a policy, carried out over these base views."""
        return replace(draw, base=self.draw)


def count_parts(images: int, parts: int) -> int:
    """Into how many a batch is cut: 2 images at least are in each."""
    return min(parts, max(1, images // 2))


def split_rows(images: int, parts: int) -> list[slice]:
    """The rows of each part of a batch; parts are of about one size."""
    found = torch.arange(images).tensor_split(count_parts(images, parts))
    return [slice(int(part[0]), int(part[-1]) + 1) for part in found]


def view_base(batch: Batch, base: BaseDraw | None) -> View:
    """The base views of a batch, (B, C, H, W); the images themselves where there is no base."""
    if base is None:
        return View(batch.images, torch.eye(3, dtype=torch.float64).expand(len(batch), 3, 3))
    return base.base.augment(base.draw, batch.images)


def make_views(
    batch: Batch,
    draw: Draw | None,
    policy: Policy | FixedTransform | None,
    task: Task,
    rule: Views,
    base: BaseDraw | None = None,
    first: View | None = None,
) -> ViewBatch:
    """The views of a batch that a rule uses, the base view first, as each network sees them.

    Args:
        draw: Of the policy; None, where there is no policy, makes the second view the base view.
        base: How the base views were drawn; None for the images as they are.
        first: The base views, where they are at hand.

    Raises:
        KdsearchError: targets move with pixels, and nobody knows where a transform moves them.
    """
    first = first or view_base(batch, base)
    second, weak = first, first.images
    fixed = [used for used in (policy, base and base.base) if isinstance(used, FixedTransform)]
    if fixed and targets_move(task, batch.target):
        raise KdsearchError(
            f"{'policy' if fixed[0] is policy else 'base'}: a FixedTransform does not tell where it moves pixels, and "
            f"targets of {type(task).__name__} move with them; allowed: a kdsearch.Policy, or a task whose targets stay"
        )
    apart = rule.teacher == "clean" and rule.used == "both" and rule.second_from == "image" and base is not None
    if apart and targets_move(task, batch.target):
        raise KdsearchError(
            "views: a teacher that sees the base view cannot label a second view of the image, where targets of "
            f"{type(task).__name__} move with the pixels; allowed: second_from='base', or another teacher"
        )
    if policy is not None and draw is not None:
        over = base if rule.second_from == "base" else None
        second = _view_second(batch, draw, policy, over, first)
        if rule.teacher == "weak":
            weak = _view_second(batch, keep_geometry(draw), policy, over, first).images
        if over and over.draw.operations:
            draw = over.under(draw)
    seen = {"same": second.images, "weak": weak, "clean": first.images}[rule.teacher]
    keep = _KEPT[rule.used]
    target = batch.target if base is None else task.follow(batch.target, first.matrix)
    ids = to_device(batch.ids, batch.images.device)
    return ViewBatch(
        images=keep(first.images, second.images),
        shown=keep(first.images, seen),
        target=keep(target, target if second is first else task.follow(batch.target, second.matrix)),
        ids=keep(ids, ids),
        view=keep(torch.zeros_like(ids), torch.ones_like(ids)),
        matrix=keep(first.matrix, second.matrix),
        draw=draw,
    )


def _view_second(batch: Batch, draw: Draw, policy: Policy | FixedTransform, over: BaseDraw | None, first: View) -> View:
    """A draw over the base views, in one warp with them where it can be, or over the images."""
    if over is None:
        return policy.augment(draw, batch.images)
    if draw.operations and over.draw.operations and shares_warp(draw, over.draw):
        return policy.augment(over.under(draw), batch.images)
    view = policy.augment(draw, first.images)
    return View(view.images, view.matrix @ first.matrix)


def targets_move(task: Task, target: Tensor) -> bool:
    """Do targets move with the pixels? Looked at on these, under a quarter turn and a shift."""
    turn = torch.tensor([[0.0, -1.0, 2.0], [1.0, 0.0, 1.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    moved = task.follow(target, turn.expand(len(target), 3, 3))
    return moved is not target and not torch.equal(moved.nan_to_num(), target.nan_to_num())


_KEPT: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "base": lambda base, second: base,
    "second": lambda base, second: second,
    "both": lambda base, second: torch.cat([base, second]),
}


def accuracy_by_view(task: Task, outputs: Outputs, views: ViewBatch) -> Tensor:
    """The accuracy on the second and on the base views, (2,), on the device; NaN of views that are not used."""
    right = task.correct(outputs, views.target).float()
    of_view = torch.stack([views.view, 1 - views.view])
    return (right * of_view).sum(1) / of_view.sum(1)


def mean_distillation_loss(
    loss: Loss, rule: Views, student: Outputs, teacher: Outputs, views: ViewBatch, task: Task
) -> Tensor:
    """The mean of a loss over the images of its views; a relational one sees one view at a time."""
    size = len(views) // 2 if rule.used == "both" else len(views)
    parts = [rule.rows(rule.distillation, size)]
    if loss.relational and rule.distillation == "both":
        parts = [rule.rows(which, size) for which in ("base", "second")]
    return torch.cat(
        [
            task.per_image(loss(student.rows(part), teacher.rows(part), views.rows(part)), views.target[part])
            for part in parts
        ]
    ).mean()
