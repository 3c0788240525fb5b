"""How well a network does on a data set as it is."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdsearch.data import MapStyle, in_order
from kdsearch.errors import KdsearchError
from kdsearch.metrics import Measured, Metric, metric_value
from kdsearch.models import outputs
from kdsearch.tasks import Classification
from kdsearch.teachers import Teacher, still


def evaluate(
    network: nn.Module, data: MapStyle, task: Classification, batch: int, device: torch.device | str
) -> tuple[float, float]:
    """Accuracy on a data set and its binomial standard error; the network's mode and buffers stay as they were."""
    return measure(network, data, task, batch, device)[:2]


@torch.no_grad()
def measure(
    network: nn.Module,
    data: MapStyle,
    task: Classification,
    batch: int,
    device: torch.device | str,
    metric: Metric | None = None,
) -> Measured:
    """Accuracy on a data set and a user's metric beside it, with standard errors; the network stays as it was.

    Raises:
        KdsearchError: the metric fails, or gives no number.
    """
    right, count = 0, 0
    kept: list[tuple[Tensor, Tensor]] = []
    with still(network):
        for part in in_order(data, max(batch, 256)):
            part = part.to(device)
            answers = task.check(outputs(network, part.images, "student"), "student")
            right += int(task.correct(answers, part.target).sum())
            count += len(part)
            if metric:
                kept.append((answers.wide().logits.cpu(), part.target.cpu()))
    rate, error = _rate(right, count)
    if metric is None:
        return Measured(rate, error, rate, error)
    logits, labels = (torch.cat(part) for part in zip(*kept, strict=True))
    return Measured(rate, error, *metric_value(metric, logits, labels))


class Known(NamedTuple):
    """What a teacher knows of a data set as it is."""

    accuracy: float
    accuracy_se: float  # binomial standard error
    loss: float  # mean cross-entropy, nats
    loss_se: float  # standard error


@torch.no_grad()
def known(teacher: Teacher, data: MapStyle, task: Classification, batch: int, device: torch.device | str) -> Known:
    """Accuracy and cross-entropy of the teacher on a data set as it is.

    Raises:
        KdsearchError: labels that the task does not have.
    """
    right, total, squares, count = 0, 0.0, 0.0, 0
    for part in in_order(data, max(batch, 256)):
        low, high, most = int(part.target.min()), int(part.target.max()), len(task.class_names)
        if low < 0 or high >= most:
            raise KdsearchError(f"labels from {low} to {high}; allowed: 0 to {most - 1} ({most} classes)")
        part = part.to(device)
        answers = task.check(teacher(part.images), "teacher")
        losses = task.supervised(answers, part.target)
        right += int(task.correct(answers, part.target).sum())
        total += float(losses.sum())
        squares += float(losses.double().square().sum())
        count += len(part)
    mean = total / count
    spread = max(0.0, squares / count - mean**2)
    return Known(*_rate(right, count), mean, math.sqrt(spread / count))


def _rate(right: int, count: int) -> tuple[float, float]:
    """The share of right answers and its binomial standard error."""
    rate = right / count
    return rate, math.sqrt(rate * (1 - rate) / count)
