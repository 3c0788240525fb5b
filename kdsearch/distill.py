"""The alternation: student steps on distillation losses, and between them policy steps."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from kdsearch.alternation import PolicySteps
from kdsearch.data import MapStyle, shuffled
from kdsearch.errors import Diverged
from kdsearch.estimators import policy_gradient
from kdsearch.evaluation import evaluate, teacher_loss
from kdsearch.fixed import FixedTransform
from kdsearch.losses import Loss
from kdsearch.maths import derive_seed, generator, noise_scale, spoiled
from kdsearch.models import outputs
from kdsearch.objectives import objective
from kdsearch.policy import Policy
from kdsearch.tasks import Classification
from kdsearch.teachers import Teacher, still
from kdsearch.values import Batch, Outputs, View
from kdsearch.views import VIEWS, Views, geometry_alone, rows

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
WARMUP = 0.1  # share of the student steps in which the learning rate rises


def adamw(parameters: Iterable[nn.Parameter]) -> Optimizer:
    """The default optimiser of a student: AdamW at 2e-3, weight decay .01."""
    return AdamW(parameters, lr=2e-3, weight_decay=1e-2)


@dataclass(frozen=True)
class Phase:
    """A stretch of training: frozen data. The default study is one phase."""

    losses: tuple[Loss, ...]  # of distillation, each with its weight
    epochs: int = 10
    steps: int = 30  # student steps per epoch
    batch: int = 64
    policy_steps: PolicySteps | None = None  # None: the policy stays as it is
    label_weight: float = 1.0  # of the cross-entropy
    views: Views = VIEWS["default"]


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch measured; NaN where nothing was measured."""

    epoch: int  # from 1
    progress: float  # share of the phase's student steps done
    supervised_loss: float  # nats, mean over the views that get it
    distillation_loss: float  # weighted sum of the losses, each as it defines itself, mean over the views that get it
    accuracy: float  # of the student on search-validation
    accuracy_se: float  # binomial standard error
    learning_rate: float
    policy_steps: int
    policy_objective: float  # nats, without prior and floor
    policy_prior: float  # nats, the strength times the distance from the prior
    teacher_accuracy: float  # on the second views
    teacher_clean_accuracy: float  # on the base views
    floor_violation: float  # nats over clean cross-entropy + floor, on the images of the policy steps; NaN: no floor
    dual: float  # weight of the floor
    emptied: float  # share of second views with under a tenth of the base view's deviation
    saturated: float  # share of second views with nearly all values at 0 or 1, where the base view has not
    gates_at_bound: int  # probabilities that freezing writes as 0 or 1
    ranges_at_limit: int  # ranges whose upper end is at the limit
    gradient_norm: float  # of the mean gradient of the policy over the epoch, its prior included
    noise_scale: float  # images: about the batch from which on a policy step is more signal than noise
    seconds: float


class PolicyStep(NamedTuple):
    """What one policy step measured."""

    objective: float  # mean, nats, without prior and floor
    prior: float  # nats, weighted
    violation: float  # of the floor, nats
    gradient: Tensor  # by all numbers of the policy that learn


class Distiller:
    """One teacher, one student, one policy and the loop over them.

    Args:
        policy: Makes the second view of each image; None for a second view identical to the first.
        optimizer: From the student's parameters; the learning rate warms up linearly and falls as a cosine.
        seed: Fixes batches, draws and dropout, epoch by epoch.
        clean_loss: Mean cross-entropy of the teacher on the unaugmented training images, in nats; measured on those of
            the first run where it is needed and not given.
    """

    def __init__(
        self,
        teacher: Teacher,
        student: nn.Module,
        policy: Policy | FixedTransform | None,
        task: Classification,
        *,
        optimizer: OptimizerFactory = adamw,
        device: torch.device | str = "cpu",
        seed: int = 0,
        clean_loss: float | None = None,
    ) -> None:
        self.teacher, self.student, self.policy, self.task = teacher, student.to(device), policy, task
        self.device, self.seed, self.clean_loss = device, seed, clean_loss
        self.optimizer = optimizer(self.student.parameters())
        self.dual = 0.0
        teacher.network.to(device)

    def run(self, phase: Phase, train: MapStyle, search_validation: MapStyle) -> Iterator[EpochRecord]:
        """Train the student for one phase, yielding a record after each epoch.

        Raises:
            Diverged: a loss of the epoch is not finite.
        """
        total = phase.epochs * phase.steps
        schedule = LambdaLR(self.optimizer, lambda step: _learning_rate(step, total))
        policy = self.policy
        every = phase.policy_steps if isinstance(policy, Policy) else None
        pauses = every.pauses(phase.epochs) if every else []
        if every:
            optimizer, decay = self._adam(every, every.count(phase.epochs, phase.steps, len(train), phase.batch))
            if every.floor is not None and self.clean_loss is None:
                self.clean_loss = teacher_loss(self.teacher, train, self.task, phase.batch, self.device)
        step = 0
        for epoch in range(1, phase.epochs + 1):
            start, learned = time.perf_counter(), list[PolicyStep]()
            sums = torch.zeros(6, device=self.device)
            torch.manual_seed(derive_seed(self.seed, epoch))  # dropout of the student
            random, policy_random = (generator(self.seed, epoch, use) for use in ("draws", "policy draws"))
            pause = every is not None and epoch - 1 in pauses
            steps = every.per_phase(len(train), phase.batch) if every and pause else phase.steps
            fresh = shuffled(train, phase.batch, steps, self.seed, epoch, "policy")
            if every and pause:
                optimizer, decay = self._adam(every, steps)
                for batch in fresh:
                    learned.append(self.policy_step(batch.to(self.device), every, optimizer, policy_random))
                    decay.step()
            for batch in shuffled(train, phase.batch, phase.steps, self.seed, epoch, "student"):
                step += 1
                if every and every.due(step, total):
                    learned.append(self.policy_step(next(fresh).to(self.device), every, optimizer, policy_random))
                    decay.step()
                sums += self.student_step(batch.to(self.device), phase, random, (step - 1) / total)
                schedule.step()
            if not torch.isfinite(sums).all() or not all(math.isfinite(s.objective + self.dual) for s in learned):
                raise Diverged(f"epoch {epoch}: a loss is not finite")
            accuracy, error = evaluate(self.student, search_validation, self.task, phase.batch, self.device)
            means = (sums / phase.steps).tolist()
            gates, ranges = policy.at_bounds() if isinstance(policy, Policy) else ([], [])
            norm, noise = noise_scale([s.gradient for s in learned], phase.batch)
            yield EpochRecord(
                epoch=epoch,
                progress=step / total,
                supervised_loss=means[0],
                distillation_loss=means[1],
                accuracy=accuracy,
                accuracy_se=error,
                learning_rate=float(schedule.get_last_lr()[0]),
                policy_steps=len(learned),
                policy_objective=_mean([s.objective for s in learned]),
                policy_prior=_mean([s.prior for s in learned]),
                teacher_accuracy=means[2],
                teacher_clean_accuracy=means[3],
                floor_violation=_mean([s.violation for s in learned]),
                dual=self.dual,
                emptied=means[4],
                saturated=means[5],
                gates_at_bound=len(gates),
                ranges_at_limit=len(ranges),
                gradient_norm=norm,
                noise_scale=noise,
                seconds=time.perf_counter() - start,
            )

    def student_step(self, batch: Batch, phase: Phase, random: torch.Generator, progress: float = 0.0) -> Tensor:
        """Cross-entropy and distillation of the base view and the second view, by the rule of the phase.

        Args:
            progress: The share of the phase that is done, for weights that change.

        Returns:
            (6,) on the device: supervised and distillation loss, the teacher's accuracy on the second and on the base
            view as it sees them, the shares of emptied and of saturated second views.
        """
        size, rule = len(batch), phase.views
        with torch.no_grad():
            view, shown = self._second_view(batch.images, random, rule)
            told = [layer for loss in phase.losses for _, layer in loss.pairs]
            teacher = self.task.check(self.teacher(shown, told), "teacher")
            if rule.teacher == "clean":  # the base view alone, which labels both
                teacher = Outputs.join([teacher, teacher])
        self.student.train()
        images = torch.cat([batch.images, view])
        parts = [images] if rule.student == "joint" else images.split(size)
        asked = [layer for loss in phase.losses for layer, _ in loss.pairs]
        student = Outputs.join([outputs(self.student, part, "student", asked) for part in parts])
        student = self.task.check(student, "student")
        target = torch.cat([batch.target, batch.target])
        labelled = rows(rule.labels, size)
        supervised = self.task.reduce(self.task.supervised(student.rows(labelled), target[labelled]))
        distillation = torch.zeros((), device=self.device)
        for loss in phase.losses:
            distillation = distillation + loss.at(progress) * self._distilled(loss, rule, student, teacher, target)
        self.optimizer.zero_grad(set_to_none=True)
        total = rule.factor(rule.labels) * phase.label_weight * supervised
        (total + rule.factor(rule.distillation) * distillation).backward()
        self.optimizer.step()
        right = self.task.correct(teacher, target).float().view(2, -1).mean(1)
        losses = torch.stack([supervised.detach(), distillation.detach()])
        return torch.cat([losses, right.flip(0), spoiled(batch.images, view)])

    def _second_view(self, images: Tensor, random: torch.Generator, rule: Views) -> tuple[Tensor, Tensor]:
        """The second view (B, C, H, W), and the images that the teacher sees: of both views, or of the base view."""
        policy, view = self.policy, images
        if policy is not None:
            draw = policy.draw(len(images), random)
            view = policy.augment(draw, images).images
        if rule.teacher == "clean":
            return view, images
        if rule.teacher == "weak" and policy is not None:
            return view, torch.cat([images, policy.augment(geometry_alone(draw), images).images])
        return view, torch.cat([images, view])

    def _distilled(self, loss: Loss, rule: Views, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """The mean of a loss over the images of its views; a relational one sees one view at a time."""
        here = rows(rule.distillation, len(target) // 2)
        parts = [here]
        if loss.relational and rule.distillation == "both":
            parts = [rows(which, len(target) // 2) for which in ("base", "second")]
        return self.task.reduce(
            torch.cat([loss(student.rows(part), teacher.rows(part), target[part]) for part in parts])
        )

    def policy_step(
        self, batch: Batch, steps: PolicySteps, optimizer: Optimizer, random: torch.Generator
    ) -> PolicyStep:
        """One step of the policy on fresh training images: objective, floor and prior, both networks held still."""
        policy = self.policy
        assert isinstance(policy, Policy)
        measured: list[Tensor] = []  # of the draw itself, which comes first

        def loss(view: View, rows: Tensor) -> Tensor:
            target = self.task.follow(batch.target[rows], view.matrix)
            teacher, student = self.teacher(view.images), outputs(self.student, view.images, "student")
            aim = objective(steps.objective, student.logits, teacher.logits, target)
            teacher_ce = self.task.supervised(teacher, target)
            if not measured:
                measured.extend((aim.detach(), teacher_ce.detach()))
            return aim + self.dual * teacher_ce

        with still(self.student):
            policy_gradient(policy, policy.draw(len(batch), random), batch.images, loss, gates=steps.gates)
        aim, teacher_ce = (values.mean().item() for values in measured)
        prior = (steps.prior_strength or 0.0) * policy.prior_loss()
        prior.backward()
        gradient = torch.cat([p.detach()[:0] if p.grad is None else p.grad for p in policy.parameters()])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        violation = math.nan
        if steps.floor is not None:
            assert self.clean_loss is not None
            violation = teacher_ce - self.clean_loss - steps.floor
            self.dual = max(0.0, self.dual + steps.floor_rate * violation)
        return PolicyStep(aim, prior.item(), violation, gradient)

    def _adam(self, steps: PolicySteps, total: int) -> tuple[Optimizer, LambdaLR]:
        """The optimiser of the policy for a stretch of steps, and its falling learning rate."""
        assert isinstance(self.policy, Policy)
        optimizer = Adam(self.policy.parameters(), lr=steps.learning_rate)
        return optimizer, LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / max(1, total))))


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _learning_rate(step: int, total: int) -> float:
    """Linear warm-up over the first tenth, then a cosine to zero; a factor of the optimiser's own rate."""
    warm = max(1, round(WARMUP * total))
    if step < warm:
        return (step + 1) / (warm + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))
