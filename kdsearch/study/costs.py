"""What a run will cost, from a few steps: seconds, and memory."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch

from kdsearch.augment.operations import apply
from kdsearch.core.errors import KdsearchError
from kdsearch.core.memory import GIB, available_bytes, largest_batch
from kdsearch.core.values import Batch
from kdsearch.data.batches import ArrayData
from kdsearch.distill.answers import AnswerTables
from kdsearch.distill.distiller import Distiller
from kdsearch.distill.phase import Phase
from kdsearch.distill.steps import BaseDraw, count_parts
from kdsearch.probe.evaluation import measure
from kdsearch.study.ready import Ready

FEW = 4  # versions of base views, among which a step that is timed looks answers up
MARGIN = 1.25  # for what operations need inside, and draws that gather images unevenly
Step = Callable[[int], Any]  # with that many images


class MemoryEstimate(NamedTuple):
    """What the larger kind of step needs beside the networks, with room for what operations need inside."""

    needed: int  # bytes
    available: int  # bytes, on the device


def estimate_seconds(ready: Ready, batch: Batch) -> tuple[float, float]:
    """Seconds of a run with policy steps, and of one without, from a few steps of each kind.

    Raises:
        KdsearchError: the losses of the first step of the student are not finite.
    """
    study, budget, device = ready.study, ready.study.budget, ready.device
    distiller, student_step, policy_step = _steps(ready, batch, budget.parts)
    phase = ready.phase(None)
    few = phase.base_versions and min(phase.base_versions, FEW)
    distiller.prepare(replace(phase, base_versions=few), ArrayData(batch.images, batch.target))
    if not torch.isfinite(student_step(budget.batch)[:2]).all():
        raise KdsearchError(
            "student: the losses of its first training step are not finite; needed: numbers to learn by"
        )
    student = _timed(partial(student_step, budget.batch), device)
    learner = _timed(partial(policy_step, ready.policy_batch), device)
    images = len(study.search_validation)
    start = _finished(device)
    measure(distiller.student, study.search_validation, ready.task, budget.batch, device, study.metric)
    evaluation = _finished(device) - start
    policy, random = ready.policy(ready.space.settings()), torch.Generator().manual_seed(0)
    augment = _timed(lambda: apply(policy.draw(len(batch), random), batch.images), device) * images / len(batch)
    teacher = _timed(lambda: ready.teacher(batch.images), device, 1) * images / len(batch)
    look = ready.probe.look.total / images * (evaluation + augment + teacher / 4)  # the teacher's answers are kept
    each = (evaluation + augment) / images  # of a view that is only looked at
    shifted = ready.ruler.count_views(budget.epochs) * each if ready.ruler else 0.0
    training = budget.epochs * (budget.steps * student + evaluation)
    plain = training + look + shifted + _asking(ready, phase, teacher / images)
    steps = ready.policy_steps(ready.space.settings())
    count = steps.count(budget.epochs, budget.steps, len(study.train), budget.batch)
    return plain + count * learner, plain


def _asking(ready: Ready, phase: Phase, each: float) -> float:
    """Seconds in which the answers on all base views are asked for, spread over the runs of a study.

    Args:
        each: Seconds of the teacher for an image.
    """
    if not (ready.tables.allowed and phase.bases_come_back):
        return 0.0
    budget, references = ready.study.budget, len(ready.references)
    runs = budget.trials + references + budget.confirmation * (2 + references)
    tables = 1 + budget.confirmation if phase.base_versions else 1
    return tables * (phase.base_versions or 1) * len(ready.study.train) * each / runs


def check_memory(ready: Ready, batch: Batch) -> MemoryEstimate | None:
    """Do steps of both kinds fit into the memory of the device?

    Returns:
        What they need; None where nobody knows what the device has.

    Raises:
        KdsearchError: they do not; with the batch that does.
    """
    budget, available = ready.study.budget, available_bytes(ready.device)
    if available is None:
        return None
    _, *steps = _steps(ready, batch, parts=1)
    asked = {"batch": budget.batch, "policy_batch": ready.policy_batch}
    found, most_bytes = [], 0
    with torch.compiler.set_stance("force_eager"):  # what is compiled does not tell what it allocates
        for (name, images), step in zip(asked.items(), steps, strict=True):
            at_once = -(-images // count_parts(images, budget.parts))
            fit = largest_batch(step, at_once, int(available / MARGIN))
            most_bytes = max(most_bytes, int(fit.needed * MARGIN))
            if fit.largest < at_once:
                found.append((fit.needed * MARGIN / GIB, name, at_once, images, fit.largest))
    if not found:
        return MemoryEstimate(most_bytes, available)
    needed, name, at_once, *_ = max(found)
    kind = {"batch": "student", "policy_batch": "policy"}[name]
    cure = "smaller images or networks"
    if all(largest for *_, largest in found):
        parts = max(-(-images // largest) for *_, images, largest in found)
        most = " and ".join(f"budget.{name} up to {largest * budget.parts}" for _, name, *_, largest in found)
        cure = f"budget.parts from {parts} on, or {most}"
    raise KdsearchError(
        f"a {kind} step of {at_once} images needs about {needed:.1f} GiB beside the networks, and {ready.device} has "
        f"{available / GIB:.1f} GiB; allowed: {cure}"
    )


def _steps(ready: Ready, batch: Batch, parts: int) -> tuple[Distiller, Step, Step]:
    """A student of its own, and steps of both kinds with that many images, in parts."""
    settings = ready.space.settings()
    policy, steps, phase = ready.policy(settings), ready.policy_steps(settings), replace(ready.phase(None), parts=parts)
    distiller = Distiller(
        ready.teacher,
        ready.student(),
        policy,
        ready.task,
        optimizer=ready.study.optimizer,
        device=ready.device,
        clean_loss=ready.clean.loss,
        precision=ready.study.precision,
        tables=AnswerTables(ready.tables.allowed, kept=0),
    )
    distiller.fit(phase, batch.images[:2])
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.0)
    random = torch.Generator().manual_seed(0)

    def some(images: int) -> Batch:
        repeat = -(-images // len(batch))
        return Batch(*(torch.cat([v] * repeat)[:images] for v in (batch.images, batch.target, batch.ids)))

    def base(batch: Batch) -> BaseDraw | None:
        views = phase.base if phase.views.second_from == "base" else None
        return None if views is None else BaseDraw(views, views.draw(len(batch), random))

    return (
        distiller,
        lambda images: distiller.student_step(some(images), phase, random),
        lambda images: distiller.policy_step(some(images), steps, optimizer, random, parts, base(some(images))),
    )


def _timed(step: Callable[[], object], device: str, repeats: int = 5) -> float:
    for _ in range(2):
        step()
    start = _finished(device)
    for _ in range(repeats):
        step()
    return (_finished(device) - start) / repeats


def _finished(device: str) -> float:
    """The time, when the device has done what it was told."""
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter()
