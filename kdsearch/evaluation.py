"""How well a network does on a data set as it is."""

import math

import torch
from torch import nn

from kdsearch.data import MapStyle, in_order
from kdsearch.models import outputs
from kdsearch.tasks import Classification
from kdsearch.teachers import Teacher, still


@torch.no_grad()
def evaluate(
    network: nn.Module, data: MapStyle, task: Classification, batch: int, device: torch.device | str
) -> tuple[float, float]:
    """Accuracy on a data set and its binomial standard error; the network's mode and buffers stay as they were."""
    right, count = 0, 0
    with still(network):
        for part in in_order(data, max(batch, 256)):
            part = part.to(device)
            answers = task.check(outputs(network, part.images, "student"), "student")
            right += int(task.correct(answers, part.target).sum())
            count += len(part)
    rate = right / count
    return rate, math.sqrt(rate * (1 - rate) / count)


@torch.no_grad()
def teacher_loss(
    teacher: Teacher, data: MapStyle, task: Classification, batch: int, device: torch.device | str
) -> float:
    """Mean cross-entropy of the teacher on a data set as it is, in nats."""
    total, count = 0.0, 0
    for part in in_order(data, max(batch, 256)):
        part = part.to(device)
        total += float(task.supervised(teacher(part.images), part.target).sum())
        count += len(part)
    return total / count
