"""Where teacher and student differ: on clean images, under the policy, and along each operation alone."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from kdsearch.data import in_order
from kdsearch.fixed import FixedTransform
from kdsearch.items import MapStyle
from kdsearch.losses import soft_targets
from kdsearch.maths import generator, wilson
from kdsearch.models import outputs
from kdsearch.ops import OPERATIONS, apply
from kdsearch.policy import Policy
from kdsearch.tasks import Classification
from kdsearch.teachers import Teacher, still
from kdsearch.values import Draw, Outputs

Look = Callable[[Tensor, torch.Generator], Tensor]  # images, random -> what is seen of them
BINS = 5  # of an operation's limit
REMEMBERED = 20_000_000  # numbers of teacher outputs kept between trials, 80 MB


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
    teacher_only_low: float  # Wilson interval of teacher_only / n, 95 %
    teacher_only_high: float

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
    """Regions of one teacher-student pair on search-validation."""

    regions: tuple[Region, ...]

    @property
    def worst(self) -> Region | None:
        """The bin of an operation with the largest lower bound of the rate at which the teacher alone is right."""
        bins = [region for region in self.regions if region.kind == "operation"]
        return max(bins, key=lambda region: region.teacher_only_low, default=None)


class _Seen(NamedTuple):
    teacher: Tensor  # (N,) bool, right
    student: Tensor  # (N,) bool, right
    kl: Tensor  # (N,)
    target: Tensor  # (N,)


class Probe:
    """The same augmented search-validation images for every student, with the teacher's answers remembered.

    Args:
        limits: Of the operations to sweep, in their units; None without a magnitude.
        fill: Where geometry finds no pixel.
    """

    def __init__(
        self,
        teacher: Teacher,
        data: MapStyle,
        task: Classification,
        limits: Mapping[str, float | None],
        *,
        fill: str = "zero",
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.teacher, self.data, self.task, self.limits, self.fill = teacher, data, task, limits, fill
        self.seed, self.device = seed, device
        self._remembered: dict[str, Tensor] = {}
        self._room = REMEMBERED

    @torch.no_grad()
    def report(self, student: nn.Module, policy: Policy | FixedTransform | None) -> DisagreementReport:
        """Compare a student with the teacher; nothing of either changes."""
        with still(student):
            clean = self._see(student, "clean", lambda images, random: images)
            regions = [self._region("clean", clean), *self._classes("clean", clean)]
            if policy:
                seen = self._see(
                    student,
                    None,
                    lambda images, random: policy.augment(policy.draw(len(images), random), images).images,
                )
                regions += [self._region("policy", seen), *self._classes("policy", seen)]
            for name, limit in self.limits.items():
                for low, high in _edges(limit):
                    look = partial(_swept, name, low or 0.0, high or 0.0, self.fill)
                    seen = self._see(student, f"{name} {low}", look)
                    regions.append(self._region("operation", seen, operation=name, low=low, high=high))
        return DisagreementReport(tuple(regions))

    def _see(self, student: nn.Module, key: str | None, look: Look) -> _Seen:
        """Run both networks over all images; with a `key` the teacher's answers are kept for the next student."""
        random, parts, answers = generator(self.seed, "probe", key or "policy"), [], []
        known = self._remembered.get(key or "")
        start = 0
        for batch in in_order(self.data, 256, self.device):
            images = look(batch.images, random)
            if known is None:
                teacher = self.teacher(images)
                answers.append(teacher.logits)
            else:
                teacher = Outputs(known[start : start + len(batch)].to(self.device))
            start += len(batch)
            own = outputs(student, images, "student")
            kl = soft_targets(own.logits, teacher.logits, temperature=1.0)
            rights = [self.task.correct(side, batch.target) for side in (teacher, own)]
            parts.append((*rights, kl, batch.target))
        if known is None and key and sum(a.numel() for a in answers) <= self._room:
            self._remembered[key] = torch.cat(answers).cpu()
            self._room -= self._remembered[key].numel()
        return _Seen(*(torch.cat(column).cpu() for column in zip(*parts, strict=True)))

    def _classes(self, kind: Literal["clean", "policy"], seen: _Seen) -> list[Region]:
        found = []
        for label, name in enumerate(self.task.class_names):
            rows = seen.target == label
            if rows.any():
                found.append(self._region(kind, _Seen(*(value[rows] for value in seen)), class_name=name))
        return found

    @staticmethod
    def _region(
        kind: Literal["clean", "policy", "operation"],
        seen: _Seen,
        *,
        operation: str | None = None,
        low: float | None = None,
        high: float | None = None,
        class_name: str | None = None,
    ) -> Region:
        t, s = seen.teacher, seen.student
        teacher_only = (t & ~s).sum()
        lower, upper = wilson(teacher_only, torch.tensor(len(t)))
        return Region(
            kind=kind,
            operation=operation,
            low=low,
            high=high,
            class_name=class_name,
            n=len(t),
            both=int((t & s).sum()),
            teacher_only=int(teacher_only),
            student_only=int((~t & s).sum()),
            neither=int((~t & ~s).sum()),
            kl=seen.kl.mean().item(),
            teacher_only_low=lower.item(),
            teacher_only_high=upper.item(),
        )


def one_operation(
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
    return apply(one_operation(name, len(images), random, low=low, high=high, fill=fill), images).images


def _edges(limit: float | None) -> list[tuple[float | None, float | None]]:
    """The bins of an operation's magnitude; one without bounds where it has none."""
    if limit is None:
        return [(None, None)]
    return [(limit * i / BINS, limit * (i + 1) / BINS) for i in range(BINS)]
