"""What a step is made of: the views of a batch, and a batch in parts."""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from kdsearch.augment.fixed import FixedTransform
from kdsearch.augment.policy import Policy
from kdsearch.core.errors import KdsearchError
from kdsearch.core.values import Batch, Draw, Outputs, View, ViewBatch
from kdsearch.distill.views import Views, keep_geometry
from kdsearch.losses.loss import Loss
from kdsearch.tasks import Task


def count_parts(images: int, parts: int) -> int:
    """Into how many a batch is cut: 2 images at least are in each."""
    return min(parts, max(1, images // 2))


def split_batch(batch: Batch, draw: Draw | None, parts: int) -> Iterator[tuple[Batch, Draw | None, float]]:
    """A batch and its draw cut into parts of about one size, each with its share of the images."""
    parts = count_parts(len(batch), parts)
    if parts == 1:
        yield batch, draw, 1.0
        return
    for index in torch.arange(len(batch)).tensor_split(parts):
        part = slice(int(index[0]), int(index[-1]) + 1)
        yield batch.rows(part), None if draw is None else draw.rows(index), len(index) / len(batch)


def make_views(
    batch: Batch, draw: Draw | None, policy: Policy | FixedTransform | None, task: Task, rule: Views
) -> ViewBatch:
    """The views of a batch that a rule uses, the base view first, as each network sees them.

    Args:
        draw: Of the policy; None, where there is no policy, makes the second view the first.
    """
    images, size = batch.images, len(batch)
    base = torch.eye(3, dtype=torch.float64).expand(size, 3, 3)
    view, weak = View(images, base), images
    if isinstance(policy, FixedTransform) and targets_move(task, batch.target):
        raise KdsearchError(
            f"policy: a FixedTransform does not tell where it moves pixels, and targets of {type(task).__name__} move "
            "with them; allowed: a kdsearch.Policy, or a task whose targets stay"
        )
    if policy is not None and draw is not None:
        view = policy.augment(draw, images)
        if rule.teacher == "weak":
            weak = policy.augment(keep_geometry(draw), images).images
    seen = {"same": view.images, "weak": weak, "clean": images}[rule.teacher]
    keep = _KEPT[rule.used]
    return ViewBatch(
        images=keep(images, view.images),
        shown=keep(images, seen),
        target=keep(batch.target, task.follow(batch.target, view.matrix)),
        ids=keep(batch.ids, batch.ids),
        view=keep(torch.zeros_like(batch.ids), torch.ones_like(batch.ids)),
        matrix=keep(base, view.matrix),
        draw=draw,
    )


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
