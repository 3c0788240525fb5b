"""The alternation: student steps on distillation losses, and between them policy steps."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from kdsearch.augment.fixed import FixedTransform
from kdsearch.augment.policy import Policy
from kdsearch.core.errors import Diverged, KdsearchError, unknown_name, user_call
from kdsearch.core.maths import derive_seed, generator, own_generators, seed_everything, spoiled_shares
from kdsearch.core.values import Batch, Draw, Outputs, View, ViewBatch
from kdsearch.data.batches import first_batch, load_batches, shuffle_places
from kdsearch.data.items import MapStyle
from kdsearch.distill.answers import AnswerTable, AnswerTables, Versions
from kdsearch.distill.estimators import policy_gradient
from kdsearch.distill.phase import OptimizerFactory, Phase, PolicySteps, Precision, adamw, learning_rate_factor
from kdsearch.distill.records import EpochRecord, PolicyStep, summarise_policy_steps
from kdsearch.distill.steps import (
    BaseDraw,
    accuracy_by_view,
    make_views,
    mean_distillation_loss,
    split_rows,
    view_base,
)
from kdsearch.distill.views import Views
from kdsearch.losses.projection import Projections
from kdsearch.networks.factories import check_weights, fresh_optimizer
from kdsearch.networks.outputs import run_network
from kdsearch.networks.teachers import Teacher, evaluation_mode
from kdsearch.probe.evaluation import measure, measure_teacher
from kdsearch.probe.inheritance import Inheritance, Ruler
from kdsearch.tasks import Task
from kdsearch.tasks.metrics import Metric

State = Mapping[str, Any]


@dataclass
class _Stretch:
    """What one run makes for itself: schedules and, where the policy learns, its steps and its optimiser."""

    schedule: LambdaLR
    every: PolicySteps | None = None
    pauses: Sequence[int] = ()
    policy_batch: int = 0
    adam: tuple[Optimizer, LambdaLR] | None = None  # made anew in each pause


class Distiller:
    """One teacher, one student, one policy and the loop over them.

    Args:
        policy: Makes the second view of each image; None for a second view that is the base view.
        optimizer: From the student's parameters; the learning rate warms up linearly and falls as a cosine.
        seed: Fixes batches, draws and dropout, epoch by epoch; a second run goes on where the first one ended.
        clean_loss: Mean cross-entropy of the teacher on the bare training images, in nats; measured on those of the
            first run where it is needed and not given.
        metric: What is measured on search-validation beside the accuracy, from logits and labels.
        precision: Of the networks' forwards in training steps, by torch.autocast; all else stays in float32.
        tables: Of the teacher's answers on base views that come back, shared with other distillers; its own where None.
        ruler: What inherited competence is measured by after each epoch, at a glance; not measured where None.
    """

    def __init__(
        self,
        teacher: Teacher,
        student: nn.Module,
        policy: Policy | FixedTransform | None,
        task: Task,
        *,
        optimizer: OptimizerFactory = adamw,
        device: torch.device | str = "cpu",
        seed: int = 0,
        clean_loss: float | None = None,
        metric: Metric | None = None,
        precision: Precision = "float32",
        tables: AnswerTables | None = None,
        ruler: Ruler | None = None,
    ) -> None:
        if torch.device(device).type != "meta":
            check_weights(teacher.network, "teacher")
        self.teacher, self.student, self.policy, self.task = teacher, student.to(device), policy, task
        self.device, self.seed, self.clean_loss = device, seed, clean_loss
        if precision not in get_args(Precision):
            raise KdsearchError(unknown_name("precision", precision, get_args(Precision)))
        self.metric, self.precision, self.ruler = metric, precision, ruler
        self._shared = tables
        self.tables = tables or AnswerTables(kept=0)
        self._versions: Versions | None = None  # of the base views of the run
        self._table: AnswerTable | None = None  # the teacher's answers on them
        self.optimizer = fresh_optimizer(optimizer, self.student)
        self.projections: Projections | None = None
        self._fitted: set[tuple[str, str]] = set()  # pairs of layers that were looked at
        self.dual = 0.0
        self._teacher_finite = torch.ones((), dtype=torch.bool, device=device)  # its logits so far, kept where they are
        self._images = {"student": 0, "teacher": 0}  # that each has answered on in the steps of the epoch
        self._parts: dict[str, Any] = {}  # what a run changes, for its state
        self._epoch = 0  # of the run
        self._before = self._epochs = 0  # epochs of earlier runs, and of all so far
        teacher.to(device)

    def fit(self, phase: Phase, images: Tensor) -> None:
        """Make the projections that the losses of a phase need, in the student's optimiser; `run` does it by itself.

        Args:
            images: A few of the training images, (B, C, H, W), on any device.
        """
        asked = [pair for loss in phase.losses for pair in loss.pairs]
        if not {*asked} - self._fitted:
            return
        images = images.to(self.device)
        with torch.no_grad(), evaluation_mode(self.student):
            student = self._answer(images, [layer for layer, _ in asked])
            teacher = self._teach(images, [layer for _, layer in asked])
        new = [tuple(pair for pair in loss.pairs if pair not in self._fitted) for loss in phase.losses]
        losses = [replace(loss, pairs=pairs) for loss, pairs in zip(phase.losses, new, strict=True)]
        more = Projections(losses, student, teacher, self.seed).to(self.device)
        if more.pairs:
            self.optimizer.add_param_group({"params": list(more.parameters())})
        self.projections = self.projections.and_those_of(more) if self.projections else more
        self._fitted |= {*asked}

    def run(
        self, phase: Phase, train: MapStyle, search_validation: MapStyle, *, state: State | None = None
    ) -> Iterator[EpochRecord]:
        """Train the student for one phase, yielding a record after each epoch.

        Args:
            state: What `state()` gave after an epoch of the same phase: the run goes on from there, as if it had never
                ended, bit for bit on the CPU with as many threads.

        Raises:
            Diverged: a loss of the epoch, or the metric, is not finite.
        """
        with own_generators(self.device):
            stretch = self._begin(phase, train)
            self._before, self._epoch = self._epochs, 0
            self.tables = self._shared or AnswerTables(kept=0)  # its own are decided on by each run
            if state:
                self._restore(state)
            self.prepare(phase, train)
        versions, table = self._versions, self._table
        try:
            for epoch in range(self._epoch + 1, phase.epochs + 1):
                self._epochs = self._before + epoch
                with own_generators(self.device):  # who takes the records draws from their own
                    record = self._run_epoch(epoch, phase, stretch, train, search_validation)
                yield record
        finally:  # also of a run that is left early, which may be after another has begun
            if self._versions is versions and self._table is table:
                self._versions = self._table = None

    def prepare(self, phase: Phase, train: MapStyle) -> None:
        """Draw the versions of base views, and ask the teacher once about views that come back; `run` does it itself.

        They come back where the base is None or has versions. Whether they are looked up is decided once, and kept in
        the state: answers to batches of another size differ in their last digits.
        """
        self._versions = self._table = None
        if phase.base is not None and phase.base_versions:
            self._versions = Versions.drawn(phase.base, phase.base_versions, len(train), phase.base_seed)
        second_alone = phase.views.used == "second" and phase.views.teacher != "clean" and self.policy is not None
        if second_alone or not phase.bases_come_back:
            return
        device, layers = str(self.device), phase.teacher_layers
        if self.tables.decide(phase, self.teacher, train, device):
            ask, key = partial(self._ask, layers=layers), (self.teacher, self.precision, layers)
            self._table = self.tables.find(ask, train, self._versions, key, device)

    def _begin(self, phase: Phase, train: MapStyle) -> "_Stretch":
        """Make what a phase needs: projections, schedules, the policy's optimiser."""
        total = phase.epochs * phase.steps
        if any(loss.pairs for loss in phase.losses):
            self.fit(phase, first_batch(train, 2, self.device).images)
        schedule = LambdaLR(self.optimizer, lambda step: learning_rate_factor(step, total))
        self._parts = {"student": self.student, "optimizer": self.optimizer, "schedule": schedule}
        if self.projections is not None:
            self._parts["projections"] = self.projections
        every = phase.policy_steps if isinstance(self.policy, Policy) else None
        if not every:
            return _Stretch(schedule)
        pauses = every.pause_epochs(phase.epochs)
        adam = self._adam(every, every.count(phase.epochs, phase.steps, len(train), phase.batch))
        if every.floor is not None and self.clean_loss is None:
            self.clean_loss = measure_teacher(self.teacher, train, self.task, phase.batch, self.device).loss
        return _Stretch(schedule, every, pauses, every.images(phase.batch), adam)

    def _run_epoch(
        self, epoch: int, phase: Phase, stretch: "_Stretch", train: MapStyle, search_validation: MapStyle
    ) -> EpochRecord:
        """Train for one epoch of a phase and measure the student; what is random comes from the seed and `_epochs`."""
        start, learned, step = time.perf_counter(), list[PolicyStep](), (epoch - 1) * phase.steps
        self._images = {"student": 0, "teacher": 0}
        policy, every, schedule = self.policy, stretch.every, stretch.schedule
        sums = torch.zeros(6 + len(phase.losses), device=self.device)
        seed_everything(derive_seed(self.seed, self._epochs))  # dropout of the student
        random, policy_random = (generator(self.seed, self._epochs, use) for use in ("draws", "policy draws"))
        base_random, policy_base = (
            generator(self.seed, self._epochs, use) for use in ("base draws", "policy base draws")
        )
        turns = [False] * phase.steps
        if every:
            turns = every.turns(epoch, phase.epochs, phase.steps, len(train), phase.batch)
        if every and epoch - 1 in stretch.pauses:
            stretch.adam = self._adam(every, sum(turns))
        uses = {"student": turns.count(False), "policy": turns.count(True)}
        sizes = {"student": phase.batch, "policy": stretch.policy_batch}
        places = {
            use: iter(shuffle_places(train, sizes[use], n, self.seed, self._epochs, use)) for use, n in uses.items()
        }
        # one stream of both kinds, for one set of readers
        order = [next(places["policy" if turn else "student"]) for turn in turns]
        for turn, batch in zip(turns, load_batches(train, order, self.device), strict=True):
            if every and turn and stretch.adam:
                optimizer, decay = stretch.adam
                base = self._draw_base(phase, batch, policy_base)[0] if phase.views.second_from == "base" else None
                learned.append(self.policy_step(batch, every, optimizer, policy_random, phase.parts, base))
                decay.step()
            else:
                sums += self.student_step(batch, phase, random, step / (phase.epochs * phase.steps), base_random)
                schedule.step()
                step += 1
        losses = torch.cat([sums[:2], sums[6:]]).tolist()
        if not all(map(math.isfinite, (*losses, *(s.objective + self.dual for s in learned)))):
            who = (
                "a loss is not finite" if self._teacher_finite else "the teacher's logits are not finite on its images"
            )
            raise Diverged(f"epoch {epoch}: {who}")
        if isinstance(policy, Policy) and any(bool(value.isnan().any()) for value in policy.parameters()):
            raise Diverged(f"epoch {epoch}: the policy is not a number")  # a logit of probability 1 is infinite
        measured = measure(self.student, search_validation, self.task, phase.batch, self.device, self.metric)
        if not math.isfinite(measured.value):
            raise Diverged(f"epoch {epoch}: the metric is {measured.value}")
        shifted = self.ruler.glance(self.student) if self.ruler else Inheritance()
        means = (sums / phase.steps).tolist()
        self._epoch = epoch
        return EpochRecord(
            epoch=epoch,
            progress=step / (phase.epochs * phase.steps),
            supervised_loss=means[0],
            distillation_loss=means[1],
            losses={loss.name: mean for loss, mean in zip(phase.losses, means[6:], strict=True)},
            **measured._asdict(),
            learning_rate=float(schedule.get_last_lr()[0]),
            teacher_accuracy=means[2],
            teacher_clean_accuracy=means[3],
            dual=self.dual,
            emptied=means[4],
            saturated=means[5],
            **summarise_policy_steps(policy, learned, stretch.policy_batch),
            inherited=shifted.inherited,
            inherited_se=shifted.inherited_se,
            calibration_error=shifted.calibration_error,
            kl=shifted.kl,
            **{f"{who}_images": count for who, count in self._images.items()},
            seconds=time.perf_counter() - start,
        )

    def state(self) -> dict[str, Any]:
        """All that a run has changed, as plain values and tensors for `torch.save`; read between its records.

        Weights of student, policy and projections, the optimisers with their schedules, the dual variable, the number
        of the epoch and of those in earlier runs. What is random in an epoch derives from the seed and these numbers.
        """
        parts = {name: part.state_dict() for name, part in self._parts.items()}
        buffers = {name: value.clone() for name, value in self.student.named_buffers()}  # not all are in its state
        rest = {"epoch": self._epoch, "before": self._before, "dual": self.dual, "clean_loss": self.clean_loss}
        return {**rest, "answers_looked_up": self.tables.allowed, "buffers": buffers, **parts}

    def _restore(self, state: State) -> None:
        """Put a state back.

        Raises:
            KdsearchError: a state of another version or of other parts.
        """
        if lacking := [n for n in ("epoch", "before", "dual", "clean_loss", "buffers", *self._parts) if n not in state]:
            raise KdsearchError(
                f"state: has no {lacking[0]}; allowed: what state() of this version gives in a run alike"
            )
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
        with torch.no_grad():
            for name, value in self.student.named_buffers():
                value.copy_(state["buffers"][name])
        self.dual, self.clean_loss = state["dual"], state["clean_loss"]
        self._epoch, self._before = int(state["epoch"]), int(state["before"])
        self.tables.allowed = state.get("answers_looked_up", False)
        self._epochs = self._before + self._epoch

    def _draw_base(self, phase: Phase, batch: Batch, random: torch.Generator) -> tuple[BaseDraw | None, Tensor | None]:
        """The base views of a batch, drawn; and their rows in the table of answers, on the host, where they come back.

        Outside a run versions are drawn afresh.
        """
        if phase.base is None:
            return None, batch.ids
        versions = self._versions
        if versions is None:
            return BaseDraw(phase.base, phase.base.draw(len(batch), random)), None
        rows = batch.ids * versions.per_image + torch.randint(versions.per_image, (len(batch),), generator=random)
        return BaseDraw(versions.base, versions.draw.rows(rows)), rows

    @torch.inference_mode(False)
    @torch.enable_grad()
    def student_step(
        self,
        batch: Batch,
        phase: Phase,
        random: torch.Generator,
        progress: float = 0.0,
        base_random: torch.Generator | None = None,
    ) -> Tensor:
        """Cross-entropy and distillation of the base view and the second view, by the rule of the phase.

        Args:
            random: Draws the second views.
            progress: The share of the phase that is done, for weights that change.
            base_random: Draws the base views; `random` where None.

        Returns:
            (6 + losses,) on the device: supervised and distillation loss, the teacher's accuracy on the second and on
            the base view as it sees them (NaN of a view that is not used), the shares of emptied and of saturated
            second views, each loss by itself.
        """
        policy = None if phase.views.used == "base" else self.policy
        draw = policy.draw(len(batch), random) if policy else None
        base, places = self._draw_base(phase, batch, base_random or random)
        known = None
        if self._table is not None and places is not None:
            known = self._note_finite(self._table.at(places))
        self.student.train()
        self.optimizer.zero_grad(set_to_none=True)
        measured = [
            self._learn(
                part := batch.rows(rows),
                draw and draw.rows(rows),
                base and base.rows(rows),
                known and known.rows(rows),
                len(part) / len(batch),
                phase,
                progress,
            )
            for rows in split_rows(len(batch), phase.parts)
        ]
        with user_call(f"the optimizer's step, {type(self.optimizer).__name__}.step()"):
            self.optimizer.step()
        return torch.stack(measured).sum(0)

    def _learn(
        self,
        batch: Batch,
        draw: Draw | None,
        base: BaseDraw | None,
        known: Outputs | None,
        share: float,
        phase: Phase,
        progress: float,
    ) -> Tensor:
        """Add the gradient of a part of a batch, which counts its share; what was measured, by its share.

        Args:
            known: What the teacher says of the base views; None where it was not asked yet.
        """
        size, rule = len(batch), phase.views
        with torch.no_grad():
            first = view_base(batch, base)
            views = make_views(batch, draw, self.policy, self.task, rule, base, first)
            once = base is not None or self.tables.allowed is not False
            one_view = draw is None and once
            teacher = self._teach_views(views, size, rule, phase.teacher_layers, known, one_view=one_view)
        parts = [views.images] if rule.student == "joint" else views.images.split(size)
        asked = [layer for loss in phase.losses for layer, _ in loss.pairs]
        student = Outputs.join([self._answer(part, asked) for part in parts])
        labelled = rule.rows(rule.labels, size)
        supervised = self.task.supervised(student.rows(labelled), views.target[labelled]).mean()
        if self.projections is not None:
            student = self.projections(student)
        each = [mean_distillation_loss(loss, rule, student, teacher, views, self.task) for loss in phase.losses]
        distillation = torch.zeros((), device=self.device)
        for loss, value in zip(phase.losses, each, strict=True):
            distillation = distillation + loss.weight_at(progress) * value
        total = rule.factor(rule.labels) * phase.label_weight * supervised
        total = share * (total + rule.factor(rule.distillation) * distillation)
        if not student.logits.requires_grad:
            raise KdsearchError("student: its logits carry no gradient; needed: a forward without no_grad and detach")
        with user_call("student, backward"):
            total.backward()
        losses = torch.stack([supervised.detach(), distillation.detach()])
        rights, spoilt = accuracy_by_view(self.task, teacher, views), spoiled_shares(first.images, views.images[-size:])
        return share * torch.cat([losses, rights, spoilt, *(value.detach()[None] for value in each)])

    def _teach_views(
        self,
        views: ViewBatch,
        size: int,
        rule: Views,
        layers: Sequence[str],
        known: Outputs | None,
        *,
        one_view: bool,
    ) -> Outputs:
        """The teacher's answers on the views; a base view that labels or is both views is asked about once.

        Args:
            known: Its answers on the base views.
            one_view: Is the second view the base view?
        """
        base_alone = one_view or rule.teacher == "clean"
        if rule.used == "second" and not base_alone:
            return self._teach(views.shown, layers)
        if rule.used != "both":
            return known or self._teach(views.shown, layers)
        if base_alone:
            base = known or self._teach(views.shown[:size], layers)
            return Outputs.join([base, base])
        if known is None:
            return self._teach(views.shown, layers)
        return Outputs.join([known, self._teach(views.shown[size:], layers)])

    def _teach(self, images: Tensor, layers: Sequence[str] = ()) -> Outputs:
        """The teacher's answers in a step."""
        self._images["teacher"] += len(images)
        return self._note_finite(self._ask(images, layers))

    def _ask(self, images: Tensor, layers: Sequence[str] = ()) -> Outputs:
        """The teacher's answers, in float32 whatever it computes in."""
        with self._precision():
            return self.task.check(self.teacher(images, layers), "teacher")

    def _note_finite(self, answers: Outputs) -> Outputs:
        self._teacher_finite = self._teacher_finite & torch.isfinite(answers.logits.detach()).all()
        return answers

    def _answer(self, images: Tensor, layers: Sequence[str] = ()) -> Outputs:
        """The student's answers in a step, in float32 whatever it computes in."""
        self._images["student"] += len(images)
        with self._precision():
            return self.task.check(run_network(self.student, images, "student", layers), "student")

    def _precision(self) -> AbstractContextManager[Any]:
        kind = torch.device(self.device).type
        return torch.autocast(kind, torch.bfloat16) if self.precision == "bfloat16" else nullcontext()

    @torch.inference_mode(False)
    @torch.enable_grad()
    def policy_step(
        self,
        batch: Batch,
        steps: PolicySteps,
        optimizer: Optimizer,
        random: torch.Generator,
        parts: int = 1,
        base: BaseDraw | None = None,
    ) -> PolicyStep:
        """One step of the policy on fresh training images: objective, floor and prior, both networks held still.

        Args:
            base: The base views that the policy learns over; None for the images as they are.
        """
        policy = self.policy
        assert isinstance(policy, Policy)
        measured: list[Tensor] = []
        draw = policy.draw(len(batch), random)
        if base is not None and base.draw.operations:
            draw = base.under(draw)
        elif base is not None:
            batch = replace(batch, images=view_base(batch, base).images)

        def learn(batch: Batch, draw: Draw, share: float) -> None:
            seen: list[Tensor] = []  # of the draw itself, which comes first

            def loss(view: View, rows: Tensor) -> Tensor:
                target = self.task.follow(batch.target[rows], view.matrix)
                teacher, student = self._teach(view.images), self._answer(view.images)
                aim = self.task.objective(steps.objective, student, teacher, target)
                teacher_ce = self.task.supervised(teacher, target)
                if not seen:
                    seen.append(share * torch.stack([aim.detach(), teacher_ce.detach()]).mean(1))
                return share * (aim + self.dual * teacher_ce)

            policy_gradient(policy, draw, batch.images, loss, gates=steps.gates, flips=steps.flips, random=random)
            measured.extend(seen)

        with evaluation_mode(self.student):
            for rows in split_rows(len(batch), parts):
                part = batch.rows(rows)
                learn(part, draw.rows(rows), len(part) / len(batch))
        aim, teacher_ce = torch.stack(measured).sum(0).tolist()
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
        decay = LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / max(1, total))))
        self._parts |= {"policy": self.policy, "policy_optimizer": optimizer, "policy_schedule": decay}
        return optimizer, decay
