"""A type test: segmentation is a task of its own and nothing else; its masks follow the draw."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import kdsearch as kd
from kdsearch.augment.operations import TABLE as OPERATIONS
from kdsearch.augment.operations import move_labels
from kdsearch.core.errors import KdsearchError
from kdsearch.core.maths import generator
from kdsearch.core.values import Outputs, ViewBatch
from kdsearch.distill.phase import Phase, PolicySteps
from kdsearch.distill.views import VIEWS
from kdsearch.losses.loss import Loss
from kdsearch.losses.objectives import weighted_sum

GEOMETRY = [name for name, op in OPERATIONS.items() if op.matrix]


@dataclass(frozen=True)
class Segmentation:
    """Targets are masks (B, H, W) of labels from 0 to K - 1, or `ignore`."""

    classes: int
    ignore: int

    def check(self, outputs: Outputs, who: str) -> Outputs:
        if outputs.logits.ndim != 4:
            raise KdsearchError(f"{who}: returned {tuple(outputs.logits.shape)}; needed: (batch, classes, H, W)")
        return outputs

    def wrong(self, target: Tensor) -> str | None:
        known = ((target >= 0) & (target < self.classes)) | (target == self.ignore)
        return None if known.all() else f"masks with {target[~known].unique().tolist()}"

    def supervised(self, outputs: Outputs, target: Tensor) -> Tensor:
        found = cross_entropy(outputs.logits, target, ignore_index=self.ignore, reduction="none")
        return self.per_image(found, target)

    def per_image(self, values: Tensor, target: Tensor) -> Tensor:
        known = (target != self.ignore).flatten(1)
        return values if values.ndim == 1 else (values.flatten(1) * known).sum(1) / known.sum(1).clamp(min=1)

    def objective(self, weights: Mapping[str, float], student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        labels = target.where(target != self.ignore, 0)
        return self.per_image(weighted_sum(weights, student.logits, teacher.logits, labels), target)

    def follow(self, target: Tensor, matrix: Tensor) -> Tensor:
        return move_labels(target, matrix, self.ignore)

    def correct(self, outputs: Outputs, target: Tensor) -> Tensor:
        return self.per_image((outputs.logits.argmax(1) == target).double(), target)


def network(width: int) -> nn.Module:
    torch.manual_seed(width)
    inner = [nn.Conv2d(3, width, 3, 2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*inner, nn.Conv2d(width, 11, 3, padding=1), nn.Upsample(scale_factor=2, mode="bilinear"))


def test_a_few_steps_of_both_kinds_on_camvid(data_file: Callable[[str], Path]) -> None:
    with np.load(data_file("camvid.npz")) as held:
        images, masks = (torch.from_numpy(held[name][held["split"] == 0][:24]) for name in ("x", "y"))
    data, task = kd.data.ArrayData(images.movedim(3, 1), masks), Segmentation(11, ignore=11)
    teacher, policy, seen = (
        kd.networks.Teacher(network(16)),
        kd.Policy(["rotate", "scale", "contrast", "solarize"], 2),
        [],
    )

    def watch(student: Outputs, teacher: Outputs, views: ViewBatch) -> Tensor:
        seen.append(views)
        return kd.losses.logits.kd_loss(student.logits, teacher.logits)

    losses = (kd.losses.kd(), Loss("watch", watch, per="point", weight=0.5))
    before = [value.clone() for value in (*policy.parameters(), *network(16).state_dict().values())]
    distiller = kd.Distiller(teacher, network(6), policy, task)
    phase = Phase(losses, epochs=2, steps=3, batch=8, policy_steps=PolicySteps(interval=1, warm_up=0.0))
    *_, record = distiller.run(phase, data, data)
    assert record.policy_steps == 3 and 0 < record.accuracy < 1 and 0 < record.accuracy_se < 0.1
    assert record.losses["watch"] == pytest.approx(record.losses["kd, temperature 4"])
    after = (*policy.parameters(), *teacher.network.state_dict().values())
    same = [torch.equal(one, other) for one, other in zip(before, after, strict=True)]
    assert not any(same[:3]) and all(same[3:])
    views = seen[-1]
    own = torch.cat([masks[views.ids[:8]].long()] * 2)
    assert torch.equal(views.target[:8], own[:8]) and not torch.equal(views.target[8:], own[8:])
    moved = [by_pillow(mask, matrix, 11) for mask, matrix in zip(own, views.matrix, strict=True)]
    assert (views.target == torch.stack(moved)).double().mean() > 0.999


def by_pillow(mask: Tensor, matrix: Tensor, outside: int) -> Tensor:
    """A mask moved by Pillow, whose pixels are counted from the upper left corner and which is told the way back."""
    height, width = mask.shape
    to_centre = np.array([[1, 0, width / 2], [0, 1, height / 2], [0, 0, 1]])
    back = to_centre @ np.linalg.inv(matrix.numpy()) @ np.linalg.inv(to_centre)
    picture, numbers = Image.fromarray(mask.byte().numpy()), (back / back[2, 2]).flatten()[:8].tolist()
    perspective, nearest = Image.Transform.PERSPECTIVE, Image.Resampling.NEAREST
    return torch.from_numpy(
        np.array(picture.transform((width, height), perspective, numbers, nearest, fillcolor=outside))
    ).long()


def shapes(count: int, height: int, width: int) -> Tensor:
    """Masks of an ellipse each, at random places: (count, height, width)."""
    random = generator("ellipses")
    x, y, a, b = (torch.rand(4, count, 1, 1, generator=random) * 0.3 + 0.2).unbind(0)
    row, column = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    return (((column - x - 0.15) / a) ** 2 + ((row - y - 0.15) / b) ** 2 < 0.7).long()


@pytest.mark.parametrize("outside", [-100, 0, 255])
def test_what_comes_from_nowhere_is_what_the_task_says(outside: int) -> None:
    masks = shapes(4, 9, 12) + 1
    right = torch.eye(3).repeat(4, 1, 1)
    right[:, 0, 2] = 5  # pixels
    moved = move_labels(masks, right, outside)
    assert (moved[:, :, :5] == outside).all() and torch.equal(moved[:, :, 5:], masks[:, :, :-5])


@pytest.mark.parametrize("name", GEOMETRY)
def test_masks_of_rendered_shapes_follow_their_images_and_an_independent_warp(name: str) -> None:
    masks = shapes(24, 48, 64)
    policy = kd.Policy([name], 1, extent=0.999, probability=0.999)
    draw = policy.draw(24, generator("shapes", name))
    view = kd.operations.apply(draw, masks[:, None].float())
    moved = move_labels(masks, view.matrix, 7)
    expected = torch.stack([by_pillow(mask, matrix, 7) for mask, matrix in zip(masks, view.matrix, strict=True)])
    assert (moved == expected).double().mean() > 0.995
    sure = (view.images[:, 0] - 0.5).abs() > 0.49  # away from the rim, where the image is neither
    known = sure & (moved != 7)
    assert torch.equal((view.images[:, 0] > 0.5)[known], (moved == 1)[known])
    assert known.double().mean() > 0.6 and not torch.equal(moved, masks)


def test_a_mask_that_does_not_move_stays_as_it_is() -> None:
    masks = shapes(4, 9, 12)
    for outside in (7, -100, 255):
        moved = move_labels(masks, torch.eye(3).repeat(4, 1, 1), outside)
        assert torch.equal(moved, masks) and moved.dtype == masks.dtype
    few = masks.to(torch.uint8)
    assert torch.equal(move_labels(few, torch.eye(3).repeat(4, 1, 1), 255), few)


def test_the_views_of_published_methods_are_those_of_any_task() -> None:
    masks = torch.arange(11).repeat(4, 16, 3)[:, :, :32]
    batch = kd.Batch(torch.rand(4, 3, 16, 32), masks, torch.arange(4))
    policy = kd.Policy(["translate_x"], 1)
    for rule in VIEWS.values():
        distiller = kd.Distiller(kd.networks.Teacher(network(8)), network(4), policy, Segmentation(11, ignore=11))
        found = distiller.student_step(batch, Phase((kd.losses.kd(),), views=rule), generator("x"))
        assert torch.isfinite(found[:2]).all()
