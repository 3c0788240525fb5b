"""What the teacher tolerates: the parts of a base view that cost it little, found by forwards alone."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from kdsearch.augment.bases import PARTS, PROBABILITY, base_of_parts
from kdsearch.augment.operations import apply
from kdsearch.augment.policy import Policy
from kdsearch.core.errors import KdsearchError
from kdsearch.core.maths import generator, own_generators
from kdsearch.core.values import Batch, Outputs
from kdsearch.data.batches import augments_itself, batches_at
from kdsearch.data.items import MapStyle, length
from kdsearch.networks.teachers import Teacher
from kdsearch.probe.scores import Estimate
from kdsearch.tasks import Classification, Task

IMAGES = 512  # looked at, at most
AT_ONCE = 256  # images in one forward
DRAWS = 8  # of each image; a flip has but one
MORE = 4  # times as many draws where the answer is open
MOST = 0.06  # of the accuracy above chance that a part may cost, give or take one standard error
EXCLUDED = 0.15  # a cost that the images have to exclude, at the upper end of the 95 % interval
MOST_OF_CLASS = 0.25  # of the accuracy above chance in one class
CLASS_ERRORS = 3.0  # standard errors that the cost of a class is above 0: there are up to 25 classes, and five looks
LEAST_OF_CLASS = 20  # images of a class, for it to be looked at
LEAST_IMAGES = 20  # of fewer, not even all right would exclude the cost
TIMES_CHANCE = 3.0  # what a teacher, or a class, has to be right to be asked; half way to all right for few classes
ONE_ANSWER = 0.99  # share of the answers from which on they are called constant
INTERVAL = 1.96
FILLS = ("reflect", "zero")
TOGETHER = "together"


@dataclass(frozen=True)
class Cost:
    """What a part of the base view costs the teacher, as shares of its accuracy above chance; see `share_lost`.

    A part alone is in every image; all that are kept `together` have each its probability, as in training.
    """

    part: str
    points: float  # accuracy lost, as a share of all images
    loss: float
    se: float
    worst_class: str | None  # None where no class has enough images, and for tasks without classes
    worst_class_loss: float  # 0 without one
    worst_class_se: float
    images: int
    draws: int  # of each image

    @property
    def is_open(self) -> bool:
        """Is it neither shown to cost too much, nor is a large cost excluded?"""
        return not self._too_much and self.loss + INTERVAL * self.se >= EXCLUDED

    @property
    def objection(self) -> str | None:
        """Why such a part is left out, in words; None for one that stays."""
        if self._too_much:
            return f"costs the teacher {100 * self.points:.0f} points"
        if self.worst_class_loss >= MOST_OF_CLASS and self.worst_class_loss > CLASS_ERRORS * self.worst_class_se:
            return f"costs the teacher {self.worst_class_loss:.0%} of class '{self.worst_class}'"
        return f"cannot tell: {self.images} images" if self.is_open else None

    @property
    def _too_much(self) -> bool:
        return self.loss - self.se >= MOST


@dataclass(frozen=True)
class Tolerance:
    """The base view that a teacher tolerates, and why it is that one."""

    parts: tuple[str, ...] = ()  # that stay; none for a bare base
    fill: str = FILLS[0]
    costs: tuple[Cost, ...] = ()  # of each part alone, then of those that stay together
    left_out: Mapping[str, str] = field(default_factory=dict)  # part: why
    reason: str | None = None  # why nothing was asked, or nothing can be told

    @property
    def policy(self) -> Policy | None:
        """The base view; None for a bare one."""
        return base_of_parts(self.parts, fill=self.fill) if self.parts else None

    def describe(self) -> str:
        """In one line.

        >>> print(Tolerance(("shift", "turn"), left_out={"flip": "costs the teacher 66 points"}).describe())
        base: shift, turn; left out: flip (costs the teacher 66 points)
        """
        if self.reason:
            return f"base: none ({self.reason})"
        by_reason: dict[str, list[str]] = {}
        for part, why in self.left_out.items():
            by_reason.setdefault(why, []).append(part)
        left_out = ", ".join(f"{', '.join(parts)} ({why})" for why, parts in by_reason.items())
        filled = f", filled with {self.fill}" if self.parts and self.fill != FILLS[0] else ""
        return f"base: {', '.join(self.parts) or 'none'}{filled}" + (f"; left out: {left_out}" if left_out else "")

    def advise(self) -> str | None:
        """A sentence for a teacher that is shown to tolerate nothing."""
        if self.parts or self.reason or any(cost.is_open for cost in self.costs):
            return None
        return (
            "the teacher tolerates no part of a base view, as one that was trained without augmentation does, and its "
            "students may need one most: base='shift' takes one all the same, and the reference `bare` shows what it "
            "is worth"
        )


def share_lost(clean: Tensor, seen: Tensor, chance: float) -> Estimate:
    """Share of the accuracy above chance that is lost, `mean(clean - seen) / (mean(clean) - chance)`, and its error.

    Paired, and over all images: those that are right as they are fall back towards the mean whatever is done to them.
    A flip costs a CIFAR-10 teacher of 80.6 % a share of .069 of those, and brings as many of the others right; its
    accuracy falls by .3 points, a share of .005 (4,000 test images at 16 px). The standard error is over images, by the
    delta method, as if one more had been lost and one gained: that none of n is lost does not exclude 2.8 / n.

    Args:
        clean: How right the teacher is on each image as it is, (N,), N at least 2, above chance on the mean.
        seen: The same of its views, each the mean of its draws, (N,).

    Reference:
        Agresti and Min, Simple improved confidence intervals for comparing matched proportions, Statistics in Medicine
        2005, add half an image to each cell of the table; one to both that differ comes near the rule of three

    >>> clean = torch.tensor([1.0, 1.0, 1.0, 0.0]).repeat(50)
    >>> share_lost(clean, clean.roll(1), 0.25).value, share_lost(clean, 0 * clean + 0.25, 0.25).value
    (0.0, 1.0)
    """
    above, lost, n = clean.mean() - chance, clean - seen, len(clean)
    share = lost.mean() / above
    off = lost - share * (clean - chance)  # 0 on the mean
    return Estimate(share.item(), (((off.square().sum() + 2) / (n * (n - 1))).sqrt() / above).item())


def least_accuracy(chance: float) -> float:
    """From which on a teacher, or a class of it, is asked.

    >>> least_accuracy(0.125), least_accuracy(0.5)
    (0.375, 0.75)
    """
    return min(TIMES_CHANCE * chance, (1 + chance) / 2)


def cost_of(
    part: str, clean: Tensor, seen: Tensor, *, chance: float, labels: Tensor, names: Sequence[str] = ()
) -> Cost:
    """What a change of the images costs, on all of them and in the worst class that the teacher knows.

    Args:
        clean: How right the teacher is on each image as it is, (N,).
        seen: The same of V views of each, (V, N).
        labels: (N,), positions in `names`; anything where there are no names, as the task has no classes.
    """
    mean = seen.mean(0)
    of_classes = []
    for label, name in enumerate(names):
        rows = (labels == label).nonzero()[:, 0]
        if len(rows) >= LEAST_OF_CLASS and clean[rows].mean() >= least_accuracy(chance):
            of_classes.append((name, share_lost(clean[rows], mean[rows], chance)))
    nothing = (None, Estimate(0.0, 0.0))
    shown = [found for found in of_classes if found[1].value > CLASS_ERRORS * found[1].se]
    worst, lost = max(shown or of_classes, key=lambda found: found[1].value, default=nothing)
    whole = share_lost(clean, mean, chance)
    return Cost(part, (clean - mean).mean().item(), *whole, worst, *lost, len(clean), len(seen))


def find_tolerance(
    teacher: Teacher,
    data: MapStyle,
    task: Task,
    *,
    device: torch.device | str = "cpu",
    draws: int = DRAWS,
    seed: int = 0,
    batch: int = AT_ONCE,
) -> Tolerance:
    """Ask a teacher what it tolerates of `PARTS`: each alone, then all that stay together, without the worst until so.

    A part stays unless it costs over 6 % of the accuracy above chance by more than one standard error, or 25 % of a
    class by three; and where 15 % cannot be excluded, with four times as many draws either, it cannot be told.
    Teachers that answer at random or always the same tolerate everything, and are not asked.

    Args:
        data: Search-validation; at most 512 random images of it are looked at.
        draws: Of each image, its magnitudes uniform up to the limit; a flip has one.
        seed: Of the images and the draws.
        batch: Images in one forward.

    Raises:
        KdsearchError: no map-style data set; answers that are not the task's, logits that are not finite.
    """
    if length(data) < LEAST_IMAGES:
        return Tolerance(reason=f"cannot tell: {length(data)} images, needed are {LEAST_IMAGES} or more")
    with own_generators(device), torch.no_grad():
        index = _chosen(data, seed)
        if augments_itself(data, index):
            return Tolerance(reason="the data set augments its items by itself")
        asked = _Asked(teacher, task, _read(data, index, device), seed, batch)
        if reason := asked.untold():
            return Tolerance(reason=reason)
        fill = asked.cheaper_fill(PARTS, draws)
        costs = {part: asked.cost(part, [part], fill, draws) for part in PARTS}
        left_out = {part: cost.objection for part, cost in costs.items() if cost.objection}
        while kept := [part for part in PARTS if part not in left_out]:
            together = asked.cost(TOGETHER, kept, fill, draws, PROBABILITY)
            if not together.objection:
                return Tolerance(tuple(kept), fill, (*costs.values(), together), left_out)
            worst = max(kept, key=lambda part: costs[part].loss)
            others = [part for part in kept if part != worst]
            left_out[worst] = f"with {', '.join(others)}: {together.objection}" if others else together.objection
    return Tolerance((), fill, tuple(costs.values()), left_out)


def cheaper_fill(
    teacher: Teacher,
    data: MapStyle,
    task: Task,
    parts: Iterable[str],
    *,
    device: torch.device | str = "cpu",
    draws: int = DRAWS,
    seed: int = 0,
    batch: int = AT_ONCE,
) -> str:
    """What stands where `parts` find no pixel: "reflect", unless "zero" costs the teacher less.

    Both have the same draws of all these parts in every image.

    Raises:
        KdsearchError: no map-style data set, no images; answers that are not the task's, logits that are not finite.
    """
    if length(data) < 1:
        raise KdsearchError("the data set is empty")
    with own_generators(device), torch.no_grad():
        images = _read(data, _chosen(data, seed), device)
        return _Asked(teacher, task, images, seed, batch).cheaper_fill(parts, draws)


def _chosen(data: MapStyle, seed: int) -> list[int]:
    """Positions of the images that are looked at, in the order of the data set."""
    return sorted(torch.randperm(length(data), generator=generator(seed, "tolerance"))[:IMAGES].tolist())


def _read(data: MapStyle, index: list[int], device: torch.device | str) -> Batch:
    return next(batches_at(data, index, len(index), device))


@dataclass(frozen=True, eq=False)
class _Asked:
    """A teacher, the images that it is asked about, and how right it is on them as they are."""

    teacher: Teacher
    task: Task
    images: Batch  # N
    seed: int
    batch: int

    @cached_property
    def answers(self) -> tuple[Tensor, Tensor]:
        """On the images as they are: how right, (N,) float64; how often each class is said, (K,)."""
        right, said = [], []
        for rows in self._rows():
            outputs, correct = self._ask(self.images.rows(rows))
            right.append(correct)
            choice = outputs.logits.argmax(1).flatten()
            said.append(choice.bincount(minlength=outputs.logits.shape[1]).cpu())
        return torch.cat(right), torch.stack(said).sum(0)

    @property
    def chance(self) -> float:
        return 1 / len(self.task.class_names) if isinstance(self.task, Classification) else 0.0

    def untold(self) -> str | None:
        """Why the teacher has nothing to tell, in words."""
        n, chance = len(self.images), self.chance
        if isinstance(self.task, Classification) and len(self.images.target.unique()) < 2:
            return f"cannot tell: all {n} images are of one class"
        right, said = self.answers
        if said.max() >= ONE_ANSWER * said.sum():
            return f"cannot tell: {said.max() / said.sum():.0%} of the teacher's answers are one class"
        if (found := right.mean().item()) < (least := least_accuracy(chance)) or found <= chance:
            return f"cannot tell: the teacher is right on {found:.1%} of {n} images, needed are {least:.0%}"
        return None

    def cheaper_fill(self, parts: Iterable[str], draws: int) -> str:
        moved = [part for part in parts if any(PARTS[part].values())]  # a flip finds all pixels
        if not moved:
            return FILLS[0]
        reflect, zero = (self._right(moved, fill, 1.0, range(draws)).mean().item() for fill in FILLS)
        return FILLS[zero > reflect]

    def cost(self, name: str, parts: Sequence[str], fill: str, draws: int, probability: float = 1.0) -> Cost:
        """Of parts together, with more draws where the answer is open."""
        single = probability == 1 and not any(limit for part in parts for limit in PARTS[part].values())
        names = self.task.class_names if isinstance(self.task, Classification) else ()
        told = partial(cost_of, name, self.answers[0], chance=self.chance, labels=self.images.target.cpu(), names=names)
        right = self._right(parts, fill, probability, range(1 if single else draws))
        cost = told(right)
        if cost.is_open and not single:
            cost = told(torch.cat([right, self._right(parts, fill, probability, range(draws, MORE * draws))]))
        return cost

    def _right(self, parts: Sequence[str], fill: str, probability: float, draws: Iterable[int]) -> Tensor:
        """How right the teacher is under draws of a base view, (V, N)."""
        base = base_of_parts(parts, fill=fill, probability=probability)
        found = []
        for number in draws:
            draw = base.draw(len(self.images), generator(self.seed, "tolerance", *parts, number))
            for rows in self._rows():
                given = self.images.rows(rows)
                view = apply(draw.rows(torch.arange(len(self.images))[rows]), given.images)
                moved = replace(given, images=view.images, target=self.task.follow(given.target, view.matrix))
                found.append(self._ask(moved)[1])
        return torch.cat(found).view(-1, len(self.images))

    def _rows(self) -> list[slice]:
        return [slice(i, i + self.batch) for i in range(0, len(self.images), self.batch)]

    def _ask(self, batch: Batch) -> tuple[Outputs, Tensor]:
        """What the teacher says, and how right it is, (B,) float64 on the host."""
        outputs = self.task.check(self.teacher(batch.images), "teacher")
        if not torch.isfinite(outputs.logits).all():
            raise KdsearchError("teacher: its logits are not finite on some images of a base view")
        return outputs, self.task.correct(outputs, batch.target).cpu().double()
