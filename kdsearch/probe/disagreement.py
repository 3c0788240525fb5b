"""Where teacher and student differ: on clean images, under the policy, and along each operation alone.

Clean images are those of search-validation as they are, and the policy is drawn over them: no base view comes between.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from kdsearch.augment.fixed import FixedTransform
from kdsearch.augment.operations import TABLE as OPERATIONS
from kdsearch.augment.operations import apply
from kdsearch.augment.policy import Policy
from kdsearch.core.maths import clopper_pearson, generator
from kdsearch.core.memory import available_bytes
from kdsearch.core.values import Draw, Outputs
from kdsearch.data.batches import batches_at
from kdsearch.data.items import MapStyle
from kdsearch.losses.logits import kd_loss
from kdsearch.networks.outputs import run_network
from kdsearch.networks.teachers import Teacher, evaluation_mode
from kdsearch.tasks import Classification

Change = Callable[[Tensor, torch.Generator], Tensor]  # images, random -> what is seen of them
Watch = Callable[[int, int], None]  # told how many images are looked at, of how many
BINS = (5, 3, 2, 1)  # of an operation's limit: the first that leaves enough images in each
LEAST = 30  # images of a bin
REMEMBERED = 0.1  # of the host's memory at hand: what the teacher's answers take that are kept between trials


@dataclass(frozen=True)
class Region:
    """A set of images, and who is right on it. Counts are of images; each image counts once."""

    kind: Literal["clean", "policy", "operation"]
    operation: str | None  # None: all of them, as the policy draws
    low: float | None  # of the magnitude, in the operation's unit; the sign is drawn
    high: float | None
    class_name: str | None  # None: all classes
    n: int
    both: int
    teacher_only: int
    student_only: int
    neither: int
    kl: float  # mean KL(teacher || student) in nats at temperature 1
    teacher_only_low: float  # interval of teacher_only / n, 95 % for all regions of a report at once
    teacher_only_high: float

    @property
    def rate(self) -> float:
        """At which the teacher alone is right."""
        return self.teacher_only / self.n

    def describe(self) -> str:
        """In words, with the unit."""
        if self.operation is None:
            where = "clean images" if self.kind == "clean" else "the policy's images"
            return where if self.class_name is None else f"{where} of class {self.class_name}"
        if self.low is None or self.high is None:
            return self.operation
        return f"{self.operation} {self.low:.3g} to {self.high:.3g} {OPERATIONS[self.operation].unit}"


@dataclass(frozen=True)
class DisagreementReport:
    """Regions of one teacher-student pair on search-validation.

    Their intervals are Clopper and Pearson's at 1 - .05 / the number of regions, so that that of the region picked as
    the worst holds the truth as often as it says, however they depend on each other.
    """

    regions: tuple[Region, ...]

    @property
    def clean(self) -> Region | None:
        """All clean images."""
        return next((region for region in self.regions if region.kind == "clean"), None)

    @property
    def worst(self) -> Region | None:
        """The bin of an operation that exceeds clean images most, at the lower end; None without bins."""
        bins = [region for region in self.regions if region.kind == "operation"]
        return max(bins, key=lambda region: region.teacher_only_low, default=None)  # clean images are the same for all

    def describe_worst(self) -> str | None:
        """The worst region with its interval, and clean images beside it."""
        worst, clean = self.worst, self.clean
        if worst is None or clean is None:
            return None
        low, high = math.floor(100 * worst.teacher_only_low), math.ceil(100 * worst.teacher_only_high)
        return (
            f"{worst.describe()}: teacher alone right on {worst.rate:.0%} ({low}% to {high}%, all "
            f"{len(self.regions)} regions considered), on {clean.rate:.0%} of clean images"
        )


@dataclass(frozen=True)
class Look:
    """How many images the student is run on to find where it differs from the teacher: counted, so always the same."""

    whole: int  # clean images, and as many of the policy's
    images: int  # of each bin; 0: no operation is swept
    bins: int  # of each magnitude
    operations: tuple[str, ...]  # that are swept
    cells: int  # bins of all of them; one for an operation without a magnitude

    @property
    def total(self) -> int:
        """Images that the student is run on."""
        return 2 * self.whole + self.images * self.cells

    def describe_less(self, operations: int) -> str | None:
        """What of that many operations is left out or seen coarsely; None where all is seen in all its bins."""
        cure = "at most a quarter of a run's student images are spent on it; Budget(look_images=...) takes more"
        if not self.operations:
            return f"looking for disagreement: no operation is swept; {cure}"
        if len(self.operations) == operations and self.bins >= BINS[0]:
            return None
        bins = "1 bin" if self.bins == 1 else f"{self.bins} bins"
        how = f"{len(self.operations)} of {operations} operations, {bins} each, {self.images} images a bin"
        return f"looking for disagreement: {how}; {cure}"


def plan_look(
    limits: Mapping[str, float | None],
    count: int,
    most: int,
    *,
    images: int | None = None,
    bins: int | None = None,
    operations: int | None = None,
    seed: int = 0,
) -> Look:
    """As many images as fit into `most`: an eighth each for clean images and the policy's, the rest for the bins.

    Where fewer than 30 are left for a bin, there are fewer bins, then fewer operations, taken at random; where that is
    not enough, none. A number that is given stays as it is.

    Args:
        limits: Of the operations, in their units; None without a magnitude.
        count: Images of search-validation.
        images, bins, operations: Of each bin, of each magnitude, and how many; None for what fits.

    >>> look = plan_look({"rotate": 30.0, "shear_x": 0.3, "invert": None}, 500, 1000)
    >>> look.whole, look.images, look.bins, look.total
    (125, 68, 5, 998)
    """
    order = torch.randperm(len(limits), generator=generator(seed, "swept operations")).tolist()
    swept = len(limits) if operations is None else min(operations, len(limits))
    whole = min(count, max(most // 8, images or 0))
    tries = [(n, swept) for n in (BINS if bins is None else (bins,)) if swept]
    if operations is None and tries:
        tries += [(tries[-1][0], n) for n in range(swept - 1, 0, -1)]
    least = 1 if bins and operations else min(LEAST, count)
    for n, size in tries:
        names = tuple(name for i, name in enumerate(limits) if i in order[:size])
        cells = sum(1 if limits[name] is None else n for name in names)
        fit = min(count, (most - 2 * whole) // cells)
        if images is not None and (fit >= min(images, count) or (n, size) == tries[-1]):
            return Look(whole, min(images, count), n, names, cells)
        if images is None and fit >= least:
            return Look(whole, fit, n, names, cells)
    return Look(min(count, most // 2), 0, 0, (), 0)


class _Seen(NamedTuple):
    teacher: Tensor  # (N,) bool, right
    student: Tensor  # (N,) bool, right
    kl: Tensor  # (N,)
    target: Tensor  # (N,)


class Probe:
    """The same augmented search-validation images for every student, with the teacher's answers remembered.

    Args:
        limits: Of the operations, in their units; None without a magnitude.
        fill: Where geometry finds no pixel.
        look: How many images, of which operations; by default all of all. A part of the images is a random one that the
            seed fixes.
    """

    def __init__(
        self,
        teacher: Teacher,
        data: MapStyle,
        task: Classification,
        limits: Mapping[str, float | None],
        *,
        fill: str = "zero",
        look: Look | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.teacher, self.data, self.task, self.limits, self.fill = teacher, data, task, limits, fill
        self.seed, self.device = seed, device
        self.look = look or plan_look(limits, len(data), 8 * len(data) * (len(limits) + 1))
        order = torch.randperm(len(data), generator=generator(seed, "probe images"))
        self._whole, self._part = (order[:n].sort().values.tolist() for n in (self.look.whole, self.look.images))
        self._remembered: dict[str, Tensor] = {}
        self._room = REMEMBERED * (available_bytes("cpu") or 0)

    @torch.no_grad()
    def report(
        self, student: nn.Module, policy: Policy | FixedTransform | None, watch: Watch = lambda done, total: None
    ) -> DisagreementReport:
        """Compare a student with the teacher; nothing of either changes.

        Args:
            watch: Told after each batch how many images are looked at, of how many.
        """
        done, total = 0, self.look.total - (0 if policy else self.look.whole)
        regions: list[Region] = []

        def see(key: str | None, index: list[int], change: Change) -> _Seen:
            parts = []
            for part in self._see(student, key, index, change):
                parts.append(part)
                nonlocal done
                done += len(part.target)
                watch(done, total)
            return _Seen(*(torch.cat(column).cpu() for column in zip(*parts, strict=True)))

        watch(done, total)
        with evaluation_mode(student):
            if self._whole:
                clean = see("clean", self._whole, lambda images, random: images)
                regions += [_region("clean", clean), *self._classes("clean", clean)]
            if self._whole and policy:
                seen = see(
                    None,
                    self._whole,
                    lambda images, random: policy.augment(policy.draw(len(images), random), images).images,
                )
                regions += [_region("policy", seen), *self._classes("policy", seen)]
            for name in self.look.operations:
                for low, high in _edges(self.limits[name], self.look.bins):
                    change = partial(_swept, name, low or 0.0, high or 0.0, self.fill)
                    seen = see(f"{name} {low}", self._part, change)
                    regions.append(_region("operation", seen, operation=name, low=low, high=high))
        return DisagreementReport(_with_intervals(regions))

    def _see(self, student: nn.Module, key: str | None, index: list[int], change: Change) -> Iterator[_Seen]:
        """Run both networks over images, batch by batch; with a `key` the teacher's answers are kept."""
        random, answers = generator(self.seed, "probe", key or "policy"), []
        known = self._remembered.get(key or "")
        start = 0
        for batch in batches_at(self.data, index, 256, self.device):
            images = change(batch.images, random)
            if known is None:
                teacher = self.teacher(images)
                answers.append(teacher.logits)
            else:
                teacher = Outputs(known[start : start + len(batch)].to(self.device))
            start += len(batch)
            own = run_network(student, images, "student")
            kl = kd_loss(own.logits, teacher.logits, temperature=1.0)
            teacher_right, student_right = (self.task.correct(side, batch.target) for side in (teacher, own))
            yield _Seen(teacher_right, student_right, kl, batch.target)
        if known is None and key and sum(a.nbytes for a in answers) <= self._room:
            self._remembered[key] = torch.cat(answers).cpu()
            self._room -= self._remembered[key].nbytes

    def _classes(self, kind: Literal["clean", "policy"], seen: _Seen) -> list[Region]:
        found = []
        for label, name in enumerate(self.task.class_names):
            rows = seen.target == label
            if rows.any():
                found.append(_region(kind, _Seen(*(value[rows] for value in seen)), class_name=name))
        return found


def _region(
    kind: Literal["clean", "policy", "operation"],
    seen: _Seen,
    *,
    operation: str | None = None,
    low: float | None = None,
    high: float | None = None,
    class_name: str | None = None,
) -> Region:
    """The counts of some images; the interval comes with all the regions of a report."""
    t, s = seen.teacher, seen.student
    return Region(
        kind=kind,
        operation=operation,
        low=low,
        high=high,
        class_name=class_name,
        n=len(t),
        both=int((t & s).sum()),
        teacher_only=int((t & ~s).sum()),
        student_only=int((~t & s).sum()),
        neither=int((~t & ~s).sum()),
        kl=seen.kl.mean().item(),
        teacher_only_low=0.0,
        teacher_only_high=1.0,
    )


def _with_intervals(regions: list[Region]) -> tuple[Region, ...]:
    """Intervals that hold for all of them at once, 95 %."""
    counts = np.array([(region.teacher_only, region.n) for region in regions]).reshape(-1, 2)
    lower, upper = clopper_pearson(counts[:, 0], counts[:, 1], 1 - 0.05 / max(1, len(regions)))
    ends = zip(regions, lower.tolist(), upper.tolist(), strict=True)
    return tuple(replace(region, teacher_only_low=low, teacher_only_high=high) for region, low, high in ends)


def draw_operation(
    name: str, size: int, random: torch.Generator, *, low: float, high: float, fill: str = "zero"
) -> Draw:
    """A draw in which every image gets one operation, its magnitude uniform on [low, high], its sign random."""
    op = OPERATIONS[name]
    u = torch.rand(size, 1, 1 + op.uniforms, generator=random, dtype=torch.float64)
    sign = torch.rand(size, 1, generator=random, dtype=torch.float64)
    signs = torch.where((sign < 0.5) & torch.tensor(op.signed), -1.0, 1.0).double()
    return Draw(
        operations=(name,),
        chosen=torch.zeros(size, 1, dtype=torch.int64),
        gates=torch.ones(size, 1, dtype=torch.bool),
        signs=signs,
        uniforms=u,
        magnitudes=signs * (low + (high - low) * u[..., 0]),
        seeds=torch.randint(-(2**63), 2**63 - 1, (size,), generator=random),
        fill=fill,
    )


def _swept(name: str, low: float, high: float, fill: str, images: Tensor, random: torch.Generator) -> Tensor:
    return apply(draw_operation(name, len(images), random, low=low, high=high, fill=fill), images).images


def _edges(limit: float | None, bins: int) -> list[tuple[float | None, float | None]]:
    """The bins of an operation's magnitude; one without bounds where it has none."""
    if limit is None:
        return [(None, None)]
    return [(limit * i / bins, limit * (i + 1) / bins) for i in range(bins)]
