"""What a stretch of training is made of: when and how the student learns, and the policy beside it."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn
from torch.optim import AdamW, Optimizer

from kdsearch.augment.bases import as_base
from kdsearch.core.errors import KdsearchError, problems, unknown_name, wrong_integers
from kdsearch.core.old_names import old_names
from kdsearch.distill.estimators import GATES
from kdsearch.distill.views import Views
from kdsearch.losses.loss import Loss
from kdsearch.losses.objectives import TABLE as OBJECTIVES
from kdsearch.losses.objectives import TST

Precision = Literal["float32", "bfloat16"]
OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
WARMUP = 0.1  # share of the student steps in which the learning rate rises


@old_names(phases="pauses")
@dataclass(frozen=True)
class PolicySteps:
    """How the policy learns beside the student: one step every `interval` student steps, or in pauses of the student.

    With `pauses` the student's training stops after these shares of its epochs, and the policy learns on whole passes
    over the training images, its optimiser made anew each time; `interval` and `warm_up` then have no part.

    Reference:
        Shao et al., Teaching what you should teach, IJCAI 2023, for the alternation, its pauses and the objective
    """

    interval: int = 3  # student steps per policy step
    batch: int | None = None  # images of a policy step; None for half as many as of a student step
    pauses: tuple[float, ...] = ()  # of the student's epochs; TST's epochs 30 and 90 of 240 are (.125, .375)
    passes: int = 1  # over the training images, in each pause
    warm_up: float = 0.1  # share of the student's steps without policy steps: its BatchNorm means nothing yet
    learning_rate: float = 0.1  # of Adam, on logits; falls as a cosine over the run, or over each pause
    prior_strength: float | None = 0.3  # nats, about the loss difference worth moving for; None for no prior
    objective: Mapping[str, float] = field(default_factory=lambda: TST)  # weights of terms in OBJECTIVES
    floor: float | None = 1.0  # nats by which the teacher's cross-entropy may rise over its own on images as they are
    floor_rate: float = (
        0.5  # step of the dual variable per nat of violation; at .1 a run of 90 policy steps ends over it
    )
    gates: str = "flip"  # how probabilities learn, out of `estimators.GATES`
    flips: int | None = None  # gates of an image that `flip` flips in a step; None: all that it drew

    def __post_init__(self) -> None:
        found = [] if self.gates in GATES else [unknown_name("estimator of gates", self.gates, GATES)]
        found += [unknown_name("term", name, OBJECTIVES) for name in self.objective if name not in OBJECTIVES]
        if not self.objective:
            found.append(f"objective: no terms; known: {', '.join(OBJECTIVES)}")
        found += wrong_integers(
            vars(self),
            {"interval": 1, "passes": 1}
            | ({} if self.batch is None else {"batch": 2})
            | ({} if self.flips is None else {"flips": 1}),
        )
        for name in ("learning_rate", "prior_strength", "floor", "floor_rate"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                found.append(f"{name} {value:g}; allowed: 0 or more")
        if not 0 <= self.warm_up < 1:
            found.append(f"warm_up {self.warm_up:g}; allowed: 0 to less than 1")
        found += [f"pauses: {share:g}; allowed: between 0 and 1" for share in self.pauses if not 0 < share < 1]
        if found:
            raise problems("policy steps", found)

    def images(self, batch: int) -> int:
        """Of one policy step, where a student step has `batch`."""
        return self.batch or max(2, batch // 2)

    def due(self, step: int, total: int) -> bool:
        """Does a policy step come before this student step, counted from 1?"""
        return not self.pauses and step > self.warm_up * total and step % self.interval == 0

    def pause_epochs(self, epochs: int) -> list[int]:
        """Numbers of epochs after which the student waits for the policy.

        Raises:
            KdsearchError: with so few epochs a pause falls before the first or after the last one, or two together.
        """
        found = [math.floor(share * epochs + 0.5) for share in self.pauses]
        if found and (found[0] < 1 or found[-1] >= epochs or len({*found}) < len(found)):
            shares, at = (", ".join(f"{v:g}" for v in values) for values in (self.pauses, found))
            raise KdsearchError(
                f"pauses {shares}: with {epochs} epochs they come after epoch {at}; allowed: different ones, the first "
                f"after epoch 1 or later, the last before epoch {epochs} ends"
            )
        return found

    def per_pause(self, images: int, batch: int) -> int:
        """Policy steps of one pause."""
        return math.ceil(self.passes * images / self.images(batch))

    def turns(self, epoch: int, epochs: int, steps: int, images: int, batch: int) -> list[bool]:
        """Whose steps an epoch, counted from 1, is made of: True for the policy's, those of a pause first."""
        found = [True] * (self.per_pause(images, batch) if epoch - 1 in self.pause_epochs(epochs) else 0)
        for step in range((epoch - 1) * steps + 1, epoch * steps + 1):
            found += [True, False] if self.due(step, epochs * steps) else [False]
        return found

    def count(self, epochs: int, steps: int, images: int, batch: int) -> int:
        """Policy steps of a whole run: as many turns as are the policy's."""
        if self.pauses:
            return len(self.pause_epochs(epochs)) * self.per_pause(images, batch)
        total = epochs * steps
        return total // self.interval - math.floor(self.warm_up * total) // self.interval


@dataclass(frozen=True)
class Phase:
    """A stretch of training: frozen data. The default study is one phase."""

    losses: tuple[Loss, ...]  # of distillation, each with its weight
    epochs: int = 10
    steps: int = 30  # student steps per epoch
    batch: int = 64
    policy_steps: PolicySteps | None = None  # None: the policy stays as it is
    label_weight: float = 1.0  # of the cross-entropy
    views: Views = field(default_factory=Views)
    parts: int = 1  # of a batch, one after another: less memory; BatchNorm and relational losses see one part
    base: Any = None  # of every image, as `as_base` takes it and held still; None: images as they are
    base_versions: int | None = None  # of each image, drawn once; None: drawn afresh at each visit
    base_seed: int = 0  # of the versions

    def __post_init__(self) -> None:
        object.__setattr__(self, "base", as_base(self.base))
        least = {"epochs": 1, "steps": 1, "batch": 1, "parts": 1}
        versions = {} if self.base_versions is None else {"base_versions": 1}
        if found := wrong_integers(vars(self), least | versions):
            raise problems("phase", found)
        if self.base_versions and self.base is None:
            raise KdsearchError("phase: base_versions of a bare base; allowed: a base, or None for base_versions")

    @property
    def bases_come_back(self) -> bool:
        """Does a run see the same base views again: images as they are, or versions of them?"""
        return self.base is None or self.base_versions is not None

    @property
    def teacher_layers(self) -> tuple[str, ...]:
        """Module paths in the teacher that the losses compare."""
        return tuple(dict.fromkeys(layer for loss in self.losses for _, layer in loss.pairs))


def adamw(parameters: Iterable[nn.Parameter]) -> Optimizer:
    """The default optimiser of a student: AdamW at 2e-3, weight decay .01."""
    return AdamW(parameters, lr=2e-3, weight_decay=1e-2)


def learning_rate_factor(step: int, total: int) -> float:
    """Linear warm-up over the first tenth, then a cosine to zero; a factor of the optimiser's own rate."""
    warm = max(1, round(WARMUP * total))
    if step < warm:
        return (step + 1) / (warm + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))
