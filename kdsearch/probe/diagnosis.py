"""Why a teacher is wrong on a study's images, in words: what would make it right."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import cross_entropy

from kdsearch.data.batches import shuffled
from kdsearch.data.items import MapStyle
from kdsearch.networks.teachers import Teacher
from kdsearch.networks.wrappers import Normalised
from kdsearch.tasks import Classification

LOOKED_AT = 512  # images at most
AT_ONCE = 64  # images in one forward
LEAST_GAIN = 0.25  # of what is missing to all right; ten times as many right do as well
ERRORS = 3.0  # standard errors of the difference that a gain has to have
NEAR_BEST = 0.75  # of the best gain, for another reason to be said too
FOLDS = 4  # a matching of classes is found on the others and measured on one
SHOWN = 3  # classes named
ONE_CLASS = 0.9  # of the answers
MIXED = 0.75  # of the labels at most of one class, for that to be a sign
EVEN = 0.9  # of the largest entropy
SAME = 1e-5  # of the largest logit

COLOUR = {  # mean and deviation
    "ImageNet's": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CIFAR-10's": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
}
GRAY = {"MNIST's": ((0.1307,), (0.3081,))}


@dataclass(frozen=True)
class _Change:
    """Another way to ask the teacher."""

    network: Teacher
    mean: Sequence[float] = (0.0,)
    std: Sequence[float] = (1.0,)
    when: str = ""
    cure: str = ""

    def logits(self, images: Tensor, task: Classification) -> Tensor:
        """(n, K), on the host."""
        mean, std = (torch.tensor(part, device=images.device).view(-1, 1, 1) for part in (self.mean, self.std))
        parts = [task.check(self.network((part - mean) / std), "teacher").logits for part in images.split(AT_ONCE)]
        return torch.cat(parts).float().cpu()


@dataclass(frozen=True, eq=False)
class _Attempt:
    """What came of it."""

    when: str
    cure: str
    logits: Tensor  # (n, K)
    right: Tensor  # (n,) bool

    @property
    def rate(self) -> float:
        return self.right.double().mean().item()

    @property
    def answers(self) -> Tensor:
        """(n,) int64; -1 where a logit is not finite."""
        return self.logits.argmax(1).masked_fill(~self.logits.isfinite().all(1), -1)


@torch.no_grad()
def likely_reasons(
    teacher: Teacher, data: MapStyle, task: Classification, device: torch.device | str
) -> tuple[str, ...]:
    """Why a teacher is wrong, or less right than it could be: what was tried, how often it then is right, the cure.

    Tried are other normalisations, channels in the order blue, green, red, and classes in another order. A reason has
    to go a quarter of the way to all right from what the teacher reaches, or the most frequent class would, and by
    three standard errors. Where none does, signs of weights that were not loaded. At most 512 images are looked at,
    always the same random ones. The network stays as it is.

    Args:
        teacher: With one logit per class of the task.

    Returns:
        Sentences, the most convincing first; none where nothing fits.
    """
    batch = next(shuffled(data, min(len(data), LOOKED_AT), 1, "diagnosis", device=device))
    images, labels = batch.images, batch.target.cpu()
    if labels.min() < 0 or labels.max() >= len(task.class_names):
        return (
            f"its labels go from {labels.min()} to {labels.max()}, its classes from 0 to {len(task.class_names) - 1}",
        )
    frequent = labels.bincount().max().item() / len(labels)

    def attempt(change: _Change, images: Tensor) -> _Attempt:
        made = _Attempt(change.when, change.cure, change.logits(images, task), labels)
        return replace(made, right=made.answers == labels)

    as_it_is = _Change(teacher)
    now = attempt(as_it_is, images)
    changes = list(_normalisations(teacher, images))
    normalised = [attempt(change, images) for change in changes]
    error = 1 / math.sqrt(4 * len(labels))  # of a rate, at most
    good = (one for one in normalised if one.rate >= max(one.rate for one in normalised) - error)
    best = min(good, key=lambda one: cross_entropy(one.logits, labels).item())
    tried = [best, _matched(now, labels, task)]
    if images.shape[1] == 3:
        tried.append(attempt(_swapped(as_it_is), images.flip(1)))
    single = max(tried, key=lambda one: one.rate)
    together = [_matched(one, labels, task) for one in normalised]
    if images.shape[1] == 3:
        some = [changes[normalised.index(best)]] if _gains(single, now, frequent) else changes
        together += [attempt(_swapped(change), images.flip(1)) for change in some]
    both = max(together, key=lambda one: one.rate)
    if _gains(both, single, frequent):
        tried.append(both)
    tried = sorted((one for one in tried if _gains(one, now, frequent)), key=lambda one: -one.rate)
    near = now.rate + NEAR_BEST * (tried[0].rate - now.rate) if tried else 1.0
    said = f"the teacher is right on {{:.1%}} of {len(labels)} images, not on {now.rate:.1%}"
    found = tuple(f"{one.when} {said.format(one.rate)}: {one.cure}" for one in tried if one.rate >= near)
    return found or _not_loaded(now, frequent, task)


def _gains(one: _Attempt, other: _Attempt, frequent: float) -> bool:
    """Is it clearly better? By McNemar's statistic and by its size."""
    least = max(other.rate, frequent)
    gained, lost = ((a & ~b).sum().item() for a, b in ((one.right, other.right), (other.right, one.right)))
    certain = gained - lost > ERRORS * math.sqrt(gained + lost)
    certain &= one.rate - frequent > ERRORS * math.sqrt(frequent * (1 - frequent) / len(one.right))
    return certain and one.rate >= min(least + LEAST_GAIN * (1 - least), 10 * least)


def _normalisations(teacher: Teacher, images: Tensor) -> Iterator[_Change]:
    """Those that networks are often trained with; around the network inside, where one is `Normalised` already."""
    network, depth = teacher.network, 0
    while isinstance(network, Normalised):
        network, depth = network.network, depth + 1
        outer = f"{depth} outer " if depth > 1 else ""
        yield _Change(Teacher(network), when=f"without its {outer}kdsearch.networks.Normalised", cure="take it off")
    name, instead = ("network", " in place of the present one") if depth else ("teacher", "")
    channels = images.shape[1]
    own_std, own_mean = torch.std_mean(images, (0, 2, 3))
    known = {
        **{
            f"with {whose} mean and deviation": numbers
            for whose, numbers in (COLOUR if channels == 3 else GRAY).items()
        },
        "with mean and deviation 0.5": ((0.5,) * channels, (0.5,) * channels),
        "with the images' own mean and deviation": (own_mean.tolist(), own_std.clamp(min=0.001).tolist()),
        "with pixels from 0 to 255": ((0.0,) * channels, (1 / 255,) * channels),
    }
    for when, numbers in known.items():
        mean, std = ([float(f"{x:.4g}") for x in part] for part in numbers)
        yield _Change(
            Teacher(network), mean, std, when, f"kdsearch.networks.Normalised({name}, {mean}, {std}){instead}"
        )


def _swapped(change: _Change) -> _Change:
    """For images whose channels are given in the other order."""
    when, cure = "with channels in the order blue, green, red", "flip its first layer's weight, weight.flip(1)"
    return replace(change, when=_and(change.when, when), cure=_and(change.cure, cure))


def _matched(one: _Attempt, labels: Tensor, task: Classification) -> _Attempt:
    """With each of the teacher's classes taken for the label that fits best, as found on other images."""
    answers, targets = one.answers.numpy(), labels.numpy()
    classes = len(task.class_names)
    fold = np.arange(len(targets)) % FOLDS
    right = np.zeros(len(targets), bool)
    for i in range(FOLDS):
        label = _matching(answers[fold != i], targets[fold != i], classes)
        right[fold == i] = (label[answers[fold == i]] == targets[fold == i]) & (answers[fold == i] >= 0)
    label = _matching(answers, targets, classes)
    count = np.bincount(answers[(label[answers] == targets) & (answers >= 0)], minlength=classes)
    moved = [k for k in np.argsort(-count, kind="stable") if label[k] != k and count[k]][:SHOWN]
    named = ", ".join(f"its class {k} is the study's '{task.class_names[label[k]]}'" for k in moved)
    cure = f"{named}; bring classes and labels of the study into its order"
    when = _and(one.when, "with its classes in another order")
    return _Attempt(when, _and(one.cure, cure), one.logits, torch.from_numpy(right))


def _matching(answers: np.ndarray, targets: np.ndarray, classes: int) -> np.ndarray:
    """For each answer its label, (K,), one to one, such that most are right."""
    count = np.zeros((classes, classes))
    np.add.at(count, (answers[answers >= 0], targets[answers >= 0]), 1)
    return linear_sum_assignment(count, maximize=True)[1]


def _and(first: str, second: str) -> str:
    return f"{first} and {second}" if first else second


def _not_loaded(now: _Attempt, frequent: float, task: Classification) -> tuple[str, ...]:
    """Signs that a network never learned, of a teacher that nothing helps."""
    logits, cure = now.logits, "its weights are probably not loaded"
    if (logits - logits[:1]).abs().max() <= SAME * logits.abs().max():
        return (f"the teacher's logits do not depend on the image: {cure}",)
    count = now.answers[now.answers >= 0].bincount(minlength=len(task.class_names))
    share = count.max().item() / len(logits)
    if share >= ONE_CLASS and frequent < MIXED:
        found = f"the teacher calls {share:.0%} of {len(logits)} images '{task.class_names[int(count.argmax())]}'"
        return (f"{found}, and at most {frequent:.0%} have one label: {cure}",)
    probabilities, most = logits.softmax(1), math.log(logits.shape[1])
    entropy = torch.special.entr(probabilities).sum(1).mean().item()
    if entropy >= EVEN * most and now.rate < frequent + LEAST_GAIN * (1 - frequent):
        return (f"the teacher's probabilities are nearly even, {entropy:.2f} of {most:.2f} nats: {cure}",)
    return ()
