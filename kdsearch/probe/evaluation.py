"""How well a network does on a data set as it is."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from kdsearch.core.devices import check_device
from kdsearch.core.errors import KdsearchError, quote, wrong_integers
from kdsearch.core.maths import own_generators, usual_modes
from kdsearch.core.terminal import number_of
from kdsearch.core.values import Batch
from kdsearch.data.batches import ArrayData, batches_in_order, first_batch
from kdsearch.data.items import MapStyle, length
from kdsearch.networks.factories import check_network, check_weights, is_unbuilt
from kdsearch.networks.outputs import run_network
from kdsearch.networks.teachers import Teacher, evaluation_mode
from kdsearch.tasks import Classification, Task
from kdsearch.tasks.metrics import Measurement, Metric, error_of_groups, metric_groups

TASK_METHODS = ("check", "wrong", "correct")  # of a task, that measuring takes
LEAST_BATCH = 256  # images of a forward where nothing is trained


class Evaluation(NamedTuple):
    """How well one network does on one data set.

    >>> Evaluation(0.934, 0.0025, 10000)
    93.4 ± 0.2 % of 10000 images
    """

    value: float  # the accuracy, a share
    value_se: float  # standard error over the images, binomial for yes or no
    images: int

    def __repr__(self) -> str:
        return f"{100 * self.value:.1f} ± {100 * self.value_se:.1f} % of {number_of(self.images, 'image')}"


@usual_modes()
def evaluate(
    network: nn.Module,
    data: MapStyle,
    task: Task | None = None,
    batch: int | None = None,
    device: torch.device | str | None = None,
) -> Evaluation:
    """Accuracy of one network on one data set and its standard error; the network and all generators stay as they were.

    Args:
        network: From images in [0, 1] to logits, in any form that `Outputs` are read from.
        data: Any map-style data set of (image, label) items.
        task: A classification with as many classes as there are logits where None.
        batch: Images of a forward; 256 where None.
        device: Where it runs; where the network is, if None. A network that is elsewhere goes there and comes back.

    Raises:
        KdsearchError: no network or data set; answers or targets that are not the task's.
    """
    check_weights(check_network(network, "network"), "network")
    if is_unbuilt(network):
        raise KdsearchError("network: it has lazy layers that were never run; needed: a network with its weights")
    size = LEAST_BATCH if batch is None else batch
    if found := wrong_integers({"batch": size}, {"batch": 1}):
        raise KdsearchError(f"evaluate: {found[0]}")
    if length(data) < 1:
        raise KdsearchError("evaluate: the data set is empty")
    if task is not None and (isinstance(task, type) or not all(hasattr(task, name) for name in TASK_METHODS)):
        example = f"kd.Classification.of({task if isinstance(task, int) else 10})"
        raise KdsearchError(f"evaluate: task is {quote(task)}; allowed: a task, such as {example}")
    if device is not None:
        check_device(device)
    home = home_of(network, data)
    place = home if device is None else torch.device(device)
    with own_generators(place), moved(network, home, place), evaluation_mode(network):
        if task is None:
            answers = run_network(network, first_batch(data, 1, place).images, "network")
            if answers.logits.ndim != 2:
                got = tuple(answers.logits.shape[1:])
                raise KdsearchError(f"network: logits of shape {got} for an image are no classifier's; allowed: a task")
            task = Classification.of(answers.logits.shape[1])
        batches = _with_targets_of(task, batches_in_order(data, size, place))
        measured = measure_batches(network, batches, task, place, who="network")
    return Evaluation(measured.value, measured.value_se, length(data))


def home_of(network: nn.Module, data: MapStyle) -> torch.device:
    """Where a network is, by its first weight; one without weights is where images in memory are."""
    tensors = chain(network.parameters(), network.buffers(), [data.images] if isinstance(data, ArrayData) else [])
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


@contextmanager
def moved(network: nn.Module, home: torch.device, place: torch.device) -> Iterator[None]:
    """A network on another device meanwhile.

    Raises:
        KdsearchError: it is on several, to which it would not come back.
    """
    if home == place:
        yield
        return
    if len({tensor.device for tensor in chain(network.parameters(), network.buffers())}) > 1:
        raise KdsearchError(f"network: it is on several devices and cannot go to {place}; allowed: device=None")
    network.to(place)
    try:
        yield
    finally:
        network.to(home)


def _with_targets_of(task: Task, batches: Iterable[Batch]) -> Iterator[Batch]:
    """The same batches.

    Raises:
        KdsearchError: when one has targets that are not the task's.
    """
    for part in batches:
        if wrong := task.wrong(part.target):
            raise KdsearchError(f"items {int(part.ids[0])} to {int(part.ids[-1])}: {wrong}")
        yield part


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
    return measure_images(network, data, task, batch, device, metric)[0]


def measure_images(
    network: nn.Module,
    data: MapStyle,
    task: Task,
    batch: int,
    device: torch.device | str,
    metric: Metric | None = None,
) -> tuple[Measurement, Tensor]:
    """The same, and what each image contributes to the value, (N,) on the host: of a metric, each group."""
    batches = batches_in_order(data, max(batch, LEAST_BATCH), device)
    return _measure(network, batches, task, device, metric, who="student")


def measure_batches(
    network: nn.Module,
    batches: Iterable[Batch],
    task: Task,
    device: torch.device | str,
    metric: Metric | None = None,
    *,
    who: str = "student",
) -> Measurement:
    """The same of batches.

    Args:
        who: The subject of an error.
    """
    return _measure(network, batches, task, device, metric, who=who)[0]


@torch.no_grad()
def _measure(
    network: nn.Module,
    batches: Iterable[Batch],
    task: Task,
    device: torch.device | str,
    metric: Metric | None,
    *,
    who: str,
) -> tuple[Measurement, Tensor]:
    wide = _wide(device)
    rights: list[Tensor] = []
    given: list[Tensor] = []  # how often each answer is
    kept: list[tuple[Tensor, Tensor]] = []
    with evaluation_mode(network):
        for part in batches:
            answers = task.check(run_network(network, part.images, who), who)
            rights.append(task.correct(answers, part.target).to(wide))
            if answers.logits.ndim == 2:
                given.append(one_hot(answers.logits.argmax(1), answers.logits.shape[1]).sum(0))
            if metric:
                kept.append((answers.to_float32().logits, part.target))
    right = torch.cat(rights)
    rate, error = _mean(torch.stack([right.sum(), right.square().sum()]), len(right))
    largest = torch.stack(given).sum(0).max().item() / len(right) if given else math.nan
    if metric is None:
        return Measurement(rate, error, rate, error, largest), right.cpu()
    logits, labels = (torch.cat(part).cpu() for part in zip(*kept, strict=True))
    value, groups = metric_groups(metric, logits, labels)
    return Measurement(rate, error, value, error_of_groups(groups), largest), groups


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
