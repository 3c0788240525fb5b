"""A type test: a dense detector is a task of its own and nothing else; its boxes follow the draw."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, l1_loss

import kdsearch as kd
from kdsearch.augment.operations import TABLE as OPERATIONS
from kdsearch.augment.operations import move_boxes
from kdsearch.core.errors import KdsearchError
from kdsearch.core.maths import generator
from kdsearch.core.values import Outputs, View, ViewBatch
from kdsearch.distill.phase import Phase, PolicySteps
from kdsearch.losses.loss import Loss
from kdsearch.losses.objectives import weighted_sum

GEOMETRY = [name for name, op in OPERATIONS.items() if op.matrix]
LEAST = 0.25  # share of a box that has to be inside the image


@dataclass(frozen=True)
class Detection:
    """Targets are boxes (B, M, 5): label, 1 to K or 0 for none, x0, y0, x1, y1 in pixels. A point of the network's map
    is background, 0, or of the smallest box that it lies in; a network returns logits and `boxes`, (B, 4, h, w)."""

    classes: int
    height: int
    width: int

    def check(self, outputs: Outputs, who: str) -> Outputs:
        if outputs.logits.ndim != 4 or "boxes" not in outputs.extras:
            raise KdsearchError(f"{who}: needed are logits (batch, 1 + classes, h, w) and boxes (batch, 4, h, w)")
        return outputs

    def wrong(self, target: Tensor) -> str | None:
        return None if ((target[..., 0] >= 0) & (target[..., 0] <= self.classes)).all() else "labels of boxes"

    def told(self, target: Tensor, h: int, w: int) -> tuple[Tensor, Tensor]:
        """The label (B, h, w) and the box (B, 4, h, w) of each point of a map."""
        x, y = (torch.arange(n, device=target.device) + 0.5 for n in (w, h))
        x, y = x * self.width / w, y * self.height / h
        label, x0, y0, x1, y1 = (part[..., None, None] for part in target.unbind(-1))  # (B, M, 1, 1)
        inside = (x >= x0) & (x < x1) & (y[:, None] >= y0) & (y[:, None] < y1) & (label > 0)
        area = ((x1 - x0) * (y1 - y0)).where(inside, torch.inf)
        smallest = area.argmin(1, keepdim=True)
        labels = (label * inside).expand_as(area).gather(1, smallest)[:, 0].long()
        corners = target[..., 1:, None, None].expand(*target.shape[:2], 4, h, w)
        return labels, corners.gather(1, smallest[:, :, None].expand(-1, -1, 4, -1, -1))[:, 0]

    def supervised(self, outputs: Outputs, target: Tensor) -> Tensor:
        labels, boxes = self.told(target, *outputs.logits.shape[2:])
        off = l1_loss(outputs.extras["boxes"], boxes, reduction="none").mean(1) / self.width
        return self.per_image(cross_entropy(outputs.logits, labels, reduction="none") + (labels > 0) * off, target)

    def per_image(self, values: Tensor, target: Tensor) -> Tensor:
        return values if values.ndim == 1 else values.flatten(1).mean(1)

    def objective(self, weights: Mapping[str, float], student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        labels, _ = self.told(target, *student.logits.shape[2:])
        return self.per_image(weighted_sum(weights, student.logits, teacher.logits, labels), target)

    def follow(self, target: Tensor, matrix: Tensor) -> Tensor:
        boxes, seen = move_boxes(target[..., 1:], matrix, self.height, self.width)
        return torch.cat([(target[..., 0] * (seen >= LEAST))[..., None], boxes], -1)

    def correct(self, outputs: Outputs, target: Tensor) -> Tensor:
        labels, _ = self.told(target, *outputs.logits.shape[2:])
        return self.per_image((outputs.logits.argmax(1) == labels).double(), target)


class Detector(nn.Module):
    """A map of an eighth of the image: logits of background and classes, and the corners of a box around each point."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        torch.manual_seed(width)
        wide = [(3, width), (width, width), (width, width)]
        stages = [nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU()) for a, b in wide]
        self.body, self.head = nn.Sequential(*stages), nn.Conv2d(width, 1 + classes + 4, 1)
        self.classes = classes

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        found = self.head(self.body(images))
        return {"logits": found[:, : 1 + self.classes], "boxes": 100 * found[:, 1 + self.classes :]}


def boxes_alike(student: Outputs, teacher: Outputs, views: ViewBatch) -> Tensor:
    """What a detector adds to a distillation: its boxes where the teacher sees an object."""
    object_there = 1 - teacher.logits.softmax(1)[:, 0]
    return object_there * (student.extras["boxes"] - teacher.extras["boxes"]).abs().mean(1) / 100


def test_a_few_steps_of_both_kinds_on_blood_cells(data_file: Callable[[str], Path]) -> None:
    with np.load(data_file("bccd.npz")) as held:
        images = torch.from_numpy(held["x"][:16]).movedim(3, 1)
        target = torch.zeros(16, int(np.bincount(held["box_image"]).max()), 5)
        for i in range(16):
            mine = held["box_image"] == i
            boxes = np.concatenate([1 + held["box_labels"][mine, None], held["boxes"][mine]], 1)
            target[i, : mine.sum()] = torch.from_numpy(boxes)
    data, task = kd.data.ArrayData(images, target), Detection(3, 240, 320)
    teacher, policy = kd.networks.Teacher(Detector(12, 3)), kd.Policy(["rotate", "scale", "contrast", "solarize"], 2)
    losses = (kd.losses.kd(), Loss("boxes", boxes_alike, per="point"))
    before = [value.clone() for value in (*policy.parameters(), *Detector(12, 3).state_dict().values())]
    distiller = kd.Distiller(teacher, Detector(6, 3), policy, task)
    phase = Phase(losses, epochs=2, steps=3, batch=8, policy_steps=PolicySteps(interval=1, warm_up=0.0), parts=2)
    first, last = distiller.run(phase, data, data)
    assert last.policy_steps == 3 and 0 < last.accuracy < 1 and last.losses["boxes"] < first.losses["boxes"]
    after = (*policy.parameters(), *teacher.network.state_dict().values())
    same = [torch.equal(one, other) for one, other in zip(before, after, strict=True)]
    assert not any(same[:3]) and all(same[3:])


@pytest.mark.parametrize("name", GEOMETRY)
def test_boxes_are_those_of_their_moved_corners_and_know_what_share_is_seen(name: str) -> None:
    """Against NumPy, point by point."""
    random, height, width = generator("corners"), 48, 64
    corner = torch.rand(12, 2, 2, generator=random) * torch.tensor([50.0, 40.0]) - 4
    boxes = torch.cat([corner, corner + 4 + 20 * torch.rand(12, 2, 2, generator=random)], -1)
    policy = kd.Policy([name], 1, extent=0.999, probability=0.999)
    matrix = kd.operations.apply(policy.draw(12, generator("corners", name)), torch.zeros(12, 1, height, width)).matrix
    found, shares = move_boxes(boxes, matrix, height, width)
    for i in range(12):
        for box, moved, share in zip(boxes[i].tolist(), found[i].tolist(), shares[i].tolist(), strict=True):
            points = []
            for x, y in ((box[0], box[1]), (box[2], box[1]), (box[0], box[3]), (box[2], box[3])):
                column, row, scale = matrix[i].numpy() @ [x - width / 2, y - height / 2, 1]
                points.append((column / scale + width / 2, row / scale + height / 2))
            (x0, y0), (x1, y1) = np.min(points, 0), np.max(points, 0)
            seen = [max(0, min(x0, width)), max(0, min(y0, height)), max(0, min(x1, width)), max(0, min(y1, height))]
            assert moved == pytest.approx(seen, abs=1e-3)
            area = (seen[2] - seen[0]) * (seen[3] - seen[1])
            assert share == pytest.approx(area / ((x1 - x0) * (y1 - y0)), abs=1e-4)
    assert ((shares > 0) & (shares < 1)).any()
    whole = move_boxes(boxes.long(), matrix, height, width)[0]
    assert whole.is_floating_point()
    empty = torch.tensor([5.0, 6.0, 5.0, 6.0]).expand(12, 1, 4)  # what fills the rows of images with few boxes
    assert torch.equal(move_boxes(empty, matrix, height, width)[1], torch.zeros(12, 1))


def test_ranges_learn_through_boxes_that_move_with_the_pixels() -> None:
    """A teacher that always answers where the box was: moving it costs as much, whatever the pixels say."""
    policy = kd.Policy({"translate_x": 0.4}, 1, probability=0.999)
    boxes, where = torch.tensor([[[24.0, 16.0, 40.0, 32.0]]]).repeat(64, 1, 1), torch.zeros(64, 1, 48, 64)
    draw = policy.draw(64, generator("through boxes"))

    def loss(view: View, rows: Tensor) -> Tensor:
        moved, _ = move_boxes(boxes[rows], view.matrix, 48, 64)
        return (moved - boxes[rows]).abs().mean((1, 2)) + 0 * view.images.sum()

    kd.policy_gradient(policy, draw, where, loss)
    step, ends = 1e-4, []
    for sign in (1, -1):
        with torch.no_grad():
            policy.a += sign * step
            ends.append(loss(kd.operations.apply(draw, where, policy.magnitudes(draw)), torch.arange(64)).mean())
            policy.a -= sign * step
    assert policy.a.grad.item() == pytest.approx(((ends[0] - ends[1]) / (2 * step)).item(), rel=1e-2)
    assert policy.a.grad.item() > 0.1


@pytest.mark.parametrize("name", GEOMETRY)
def test_boxes_of_rendered_shapes_follow_their_images(name: str) -> None:
    random = generator("boxes")
    corner = torch.rand(24, 1, 2, generator=random) * torch.tensor([36.0, 24.0]) + 4
    boxes = torch.cat([corner, corner + 6 + 10 * torch.rand(24, 1, 2, generator=random)], -1).round()
    images = torch.zeros(24, 1, 48, 64)
    for image, (x0, y0, x1, y1) in zip(images, boxes[:, 0].int().tolist(), strict=True):
        image[:, y0:y1, x0:x1] = 1
    policy = kd.Policy([name], 1, extent=0.999, probability=0.999)
    view = kd.operations.apply(policy.draw(24, generator("boxes", name)), images)
    target = torch.cat([torch.ones(24, 1, 1), boxes], -1)
    followed = Detection(1, 48, 64).follow(target, view.matrix)
    moved = 0
    for image, before, (label, *box) in zip(view.images[:, 0], boxes[:, 0], followed[:, 0].tolist(), strict=True):
        if not label:
            assert image.sum() < 0.5 * (before[2] - before[0]) * (before[3] - before[1])
            continue
        rows, columns = (image > 0.1).nonzero().unbind(1)  # where the rendered rectangle has come to lie
        ends = [part.item() for part in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)]
        assert box == pytest.approx(ends, abs=1.6)
        moved += box != before.tolist()
    assert moved > 12
