"""How well a network does on a data set as it is."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from kdsearch.core.errors import KdsearchError
from kdsearch.core.values import Batch
from kdsearch.data.batches import batches_in_order
from kdsearch.data.items import MapStyle
from kdsearch.networks.outputs import run_network
from kdsearch.networks.teachers import Teacher, evaluation_mode
from kdsearch.tasks import Task
from kdsearch.tasks.metrics import Measurement, Metric, metric_value

LEAST_BATCH = 256  # images of a forward where nothing is trained


def evaluate(
    network: nn.Module, data: MapStyle, task: Task, batch: int, device: torch.device | str
) -> tuple[float, float]:
    """Accuracy on a data set and its standard error; the network's mode and buffers stay as they were."""
    return measure(network, data, task, batch, device)[:2]


@torch.no_grad()
def measure(
    network: nn.Module,
    data: MapStyle,
    task: Task,
    batch: int,
    device: torch.device | str,
    metric: Metric | None = None,
) -> Measurement:
    """Accuracy on a data set and a user's metric beside it, with standard errors; the network stays as it was.

    Raises:
        KdsearchError: the metric fails, or gives no number.
    """
    wide = _wide(device)
    sums, count = torch.zeros(2, device=device, dtype=wide), 0
    given: list[Tensor] = []  # how often each answer is
    kept: list[tuple[Tensor, Tensor]] = []
    with evaluation_mode(network):
        for part in batches_in_order(data, max(batch, LEAST_BATCH), device):
            answers = task.check(run_network(network, part.images, "student"), "student")
            right = task.correct(answers, part.target).to(wide)
            sums += torch.stack([right.sum(), right.square().sum()])
            count += len(part)
            if answers.logits.ndim == 2:
                given.append(one_hot(answers.logits.argmax(1), answers.logits.shape[1]).sum(0))
            if metric:
                kept.append((answers.to_float32().logits, part.target))
    rate, error = _mean(sums, count)
    largest = torch.stack(given).sum(0).max().item() / count if given else math.nan
    if metric is None:
        return Measurement(rate, error, rate, error, largest)
    logits, labels = (torch.cat(part).cpu() for part in zip(*kept, strict=True))
    return Measurement(rate, error, *metric_value(metric, logits, labels), largest)


class TeacherMeasurement(NamedTuple):
    """What a teacher knows of a data set as it is."""

    accuracy: float
    accuracy_se: float  # standard error, binomial for yes or no
    loss: float  # mean cross-entropy, nats
    loss_se: float  # standard error
    labels: tuple[int, ...] = ()  # how often each is; empty where a target is no label


def measure_teacher(
    teacher: Teacher, data: MapStyle, task: Task, batch: int, device: torch.device | str
) -> TeacherMeasurement:
    """Accuracy and cross-entropy of the teacher on a data set as it is.

    Raises:
        KdsearchError: targets that are not the task's.
    """
    return measure_teacher_batches(teacher, batches_in_order(data, max(batch, LEAST_BATCH), device), task, device)


@torch.no_grad()
def measure_teacher_batches(
    teacher: Teacher, batches: Iterable[Batch], task: Task, device: torch.device | str
) -> TeacherMeasurement:
    """The same of batches.

    Raises:
        KdsearchError: targets that are not the task's; logits that are not finite.
    """
    wide = _wide(device)
    sums, count = torch.zeros(2, 2, device=device, dtype=wide), 0
    targets: list[Tensor] = []
    for part in batches:
        if wrong := task.wrong(part.target):
            raise KdsearchError(wrong)
        answers = task.check(teacher(part.images), "teacher")
        finite = torch.isfinite(answers.logits).flatten(1).all(1)
        if not finite.all():
            first = part.ids.to(finite.device)[~finite][0]
            raise KdsearchError(f"the teacher's logits are not finite on item {first}")
        found = (task.correct(answers, part.target).to(wide), task.supervised(answers, part.target).to(wide))
        sums += torch.stack([torch.stack([values.sum(), values.square().sum()]) for values in found])
        count += len(part)
        if part.target.ndim == 1 and not part.target.is_floating_point():
            targets.append(part.target)
    labels = tuple(torch.bincount(torch.cat(targets).cpu()).tolist()) if targets else ()
    return TeacherMeasurement(*_mean(sums[0], count), *_mean(sums[1], count), labels)


def _wide(device: torch.device | str) -> torch.dtype:
    """What sums are kept in: MPS has no float64."""
    return torch.float32 if torch.device(device).type == "mps" else torch.float64


def _mean(sums: Tensor, count: int) -> tuple[float, float]:
    """The mean and its standard error, from the sums of values and of their squares; binomial for yes or no."""
    mean, square = (sums / count).tolist()
    return mean, math.sqrt(max(0.0, square - mean**2) / count)
