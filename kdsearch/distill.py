"""The alternation: student steps on distillation losses, every k of them one policy step."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from kdsearch.data import MapStyle, in_order, shuffled
from kdsearch.errors import Diverged
from kdsearch.fixed import FixedTransform
from kdsearch.losses import Loss
from kdsearch.maths import derive_seed, generator
from kdsearch.objectives import TST, objective
from kdsearch.ops import apply
from kdsearch.policy import Policy
from kdsearch.tasks import Classification
from kdsearch.teachers import Teacher, outputs, still
from kdsearch.values import Batch

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
WARMUP = 0.1  # share of the student steps in which the learning rate rises, and without policy steps


def adamw(parameters: Iterable[nn.Parameter]) -> Optimizer:
    """The default optimiser of a student: AdamW at 2e-3, weight decay .01."""
    return AdamW(parameters, lr=2e-3, weight_decay=1e-2)


@dataclass(frozen=True)
class PolicySteps:
    """How the policy learns beside the student.

    Reference:
        Shao et al., Teaching what you should teach, IJCAI 2023, for the alternation and the objective
    """

    interval: int = 3  # student steps per policy step
    learning_rate: float = 0.1  # of Adam, on logits
    prior_strength: float = 0.3  # nats, about the loss difference worth moving for; 0 switches the prior off
    objective: Mapping[str, float] = field(default_factory=lambda: TST)  # weights of terms in OBJECTIVES
    floor: float | None = 0.3  # nats by which the teacher's cross-entropy may rise over its clean one
    floor_rate: float = 0.1  # step of the dual variable per nat of violation


@dataclass(frozen=True)
class Phase:
    """A stretch of training: frozen data. The default study is one phase."""

    loss: Loss
    weight: float = 1.0  # of the distillation loss of each view, beside the cross-entropy on the base view
    epochs: int = 10
    steps: int = 30  # student steps per epoch
    batch: int = 64
    policy_steps: PolicySteps | None = None  # None: the policy stays as it is


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch measured; NaN where nothing was measured."""

    epoch: int  # from 1
    progress: float  # share of the phase's student steps done
    supervised_loss: float  # nats, base view
    distillation_loss: float  # as the loss defines it, mean over views
    accuracy: float  # of the student on search-validation
    accuracy_se: float  # binomial standard error
    learning_rate: float
    policy_steps: int
    policy_objective: float  # nats, without prior and floor
    teacher_accuracy: float  # on the images of the policy steps
    floor_violation: float  # nats over clean cross-entropy + floor
    dual: float  # weight of the floor
    seconds: float


class Distiller:
    """One teacher, one student, one policy and the loop over them.

    Args:
        policy: Makes the second view of each image; None for a second view identical to the first.
        optimizer: From the student's parameters; the learning rate warms up linearly and falls as a cosine.
        seed: Fixes batches, draws and dropout, epoch by epoch.
        clean_loss: Mean cross-entropy of the teacher on the unaugmented training images, in nats; measured where it is
            needed and not given.
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
        every = phase.policy_steps
        policy_optimizer = None
        if every and isinstance(self.policy, Policy):
            policy_optimizer = Adam(self.policy.parameters(), lr=every.learning_rate)
            if every.floor is not None and self.clean_loss is None:
                self.clean_loss = teacher_loss(self.teacher, train, self.task, phase.batch, self.device)
        step = 0
        for epoch in range(1, phase.epochs + 1):
            start, policy_sums = time.perf_counter(), torch.zeros(4)
            sums = torch.zeros(2, device=self.device)
            torch.manual_seed(derive_seed(self.seed, epoch))  # dropout of the student
            random = generator(self.seed, epoch, "draws")
            fresh = shuffled(train, phase.batch, phase.steps, self.seed, epoch, "policy")
            for batch in shuffled(train, phase.batch, phase.steps, self.seed, epoch, "student"):
                step += 1
                if policy_optimizer and every and step > WARMUP * total and step % every.interval == 0:
                    policy_sums += self.policy_step(next(fresh).to(self.device), every, policy_optimizer, random)
                sums += self.student_step(batch.to(self.device), phase, random)
                schedule.step()
            if not torch.isfinite(sums).all() or not torch.isfinite(policy_sums).all():
                raise Diverged(f"epoch {epoch}: a loss is not finite")
            accuracy, error = evaluate(self.student, search_validation, self.task, phase.batch, self.device)
            count = policy_sums[3].item()
            policy_means = (policy_sums[:3] / count).tolist()  # NaN in an epoch without policy steps
            yield EpochRecord(
                epoch=epoch,
                progress=step / total,
                supervised_loss=(sums[0] / phase.steps).item(),
                distillation_loss=(sums[1] / phase.steps).item(),
                accuracy=accuracy,
                accuracy_se=error,
                learning_rate=float(schedule.get_last_lr()[0]),
                policy_steps=int(count),
                policy_objective=policy_means[0],
                teacher_accuracy=policy_means[1],
                floor_violation=policy_means[2],
                dual=self.dual,
                seconds=time.perf_counter() - start,
            )

    def student_step(self, batch: Batch, phase: Phase, random: torch.Generator) -> Tensor:
        """Cross-entropy on the base view plus the distillation loss of both views, one concatenated forward.

        Returns:
            (2,) supervised and distillation loss, on the device.
        """
        self.student.train()
        with torch.no_grad():
            view = batch.images
            if self.policy:
                view = self.policy.augment(self.policy.draw(len(batch), random), batch.images).images
            images = torch.cat([batch.images, view])
            teacher = self.teacher(images)
        student = outputs(self.student, images, "student")
        base = type(student)(student.logits[: len(batch)])
        supervised = self.task.reduce(self.task.supervised(base, batch.target))
        distillation = self.task.reduce(phase.loss.function(student, teacher))  # mean over the images of both views
        self.optimizer.zero_grad(set_to_none=True)
        (supervised + 2 * phase.weight * distillation).backward()
        self.optimizer.step()
        return torch.stack([supervised.detach(), distillation.detach()])

    def policy_step(self, batch: Batch, steps: PolicySteps, optimizer: Optimizer, random: torch.Generator) -> Tensor:
        """One step of the policy on fresh training images: objective, floor and prior.

        Ranges get their gradient through the pixels of both networks; probabilities by the score function with the
        other images as baseline.

        Returns:
            (4,) mean objective, teacher accuracy, violation of the floor in nats, and 1, on the host.
        """
        assert isinstance(self.policy, Policy)
        draw = self.policy.draw(len(batch), random)
        view = apply(draw, batch.images, self.policy.magnitudes(draw))
        target = self.task.follow(batch.target, view.matrix)
        with still(self.student):
            teacher, student = self.teacher(view.images), outputs(self.student, view.images, "student")
            aim = objective(steps.objective, student.logits, teacher.logits, target)
            teacher_ce = self.task.supervised(teacher, target)
            loss = aim + self.dual * teacher_ce  # (B,)
            score = (leave_one_out(loss.detach()).cpu() * self.policy.log_probability(draw)).mean()
            (loss.mean().cpu() + score + steps.prior_strength * self.policy.prior_loss()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        violation = 0.0
        if steps.floor is not None:
            assert self.clean_loss is not None
            violation = teacher_ce.mean().item() - self.clean_loss - steps.floor
            self.dual = max(0.0, self.dual + steps.floor_rate * violation)
        right = self.task.correct(teacher, target).float().mean().item()
        return torch.tensor([aim.mean().item(), right, violation, 1.0])


def leave_one_out(loss: Tensor) -> Tensor:
    """Each image's loss minus the mean of the others', (B,); zero for a batch of one."""
    return (loss - loss.mean()) * len(loss) / max(len(loss) - 1, 1)


@torch.no_grad()
def evaluate(
    network: nn.Module, data: MapStyle, task: Classification, batch: int, device: torch.device | str
) -> tuple[float, float]:
    """Accuracy on a data set and its binomial standard error; the network's mode and buffers stay as they were."""
    right, count = 0, 0
    with still(network):
        for part in in_order(data, max(batch, 256)):
            part = part.to(device)
            right += int(task.correct(outputs(network, part.images, "student"), part.target).sum())
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


def _learning_rate(step: int, total: int) -> float:
    """Linear warm-up over the first tenth, then a cosine to zero; a factor of the optimiser's own rate."""
    warm = max(1, round(WARMUP * total))
    if step < warm:
        return (step + 1) / (warm + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))
