"""What a run will cost, from a few steps: seconds, and memory."""

import time
from collections.abc import Callable
from functools import partial

import torch

from kdsearch.distill import Distiller
from kdsearch.errors import KdsearchError
from kdsearch.evaluation import measure
from kdsearch.memory import available_bytes, largest_batch
from kdsearch.ops import apply
from kdsearch.study import Ready
from kdsearch.values import Batch

GIB = 2**30
MARGIN = 1.25  # for what operations need inside, and draws that gather images unevenly
Step = Callable[[int], object]  # with that many images


def seconds_of(ready: Ready, batch: Batch) -> tuple[float, float]:
    """Seconds of a run with policy steps, and of one without, from a few steps of each kind."""
    study, budget = ready.study, ready.study.budget
    distiller, student_step, policy_step = _steps(ready, batch)
    student, learner = (_timed(partial(step, budget.batch)) for step in (student_step, policy_step))
    images = len(study.search_validation)
    start = time.perf_counter()
    measure(distiller.student, study.search_validation, ready.task, budget.batch, ready.device, study.metric)
    evaluation = time.perf_counter() - start
    cells = 2 + sum(1 if limit is None else 5 for limit in ready.space.limits.values())
    policy, random = ready.policy(ready.space.settings()), torch.Generator().manual_seed(0)
    augment = _timed(lambda: apply(policy.draw(len(batch), random), batch.images)) * images / len(batch)
    teacher = _timed(lambda: ready.teacher(batch.images), 1) * images / len(batch)
    plain = budget.epochs * (budget.steps * student + evaluation) + cells * (evaluation + augment + teacher / 4)
    steps = ready.policy_steps(ready.space.settings())
    count = steps.count(budget.epochs, budget.steps, len(study.train), budget.batch)
    return plain + count * learner, plain


def check_memory(ready: Ready, batch: Batch) -> None:
    """Do steps of both kinds fit into the memory of the device? Nothing is said where nobody knows what it has.

    Raises:
        KdsearchError: they do not; with the batch that does.
    """
    images, available = ready.study.budget.batch, available_bytes(ready.device)
    if available is None:
        return
    _, *steps = _steps(ready, batch)
    fits = [largest_batch(step, images, int(available / MARGIN)) for step in steps]
    largest, needed = min(fit.largest for fit in fits), max(fit.needed for fit in fits) * MARGIN
    if largest >= images:
        return
    raise KdsearchError(
        f"a step of {images} images needs about {needed / GIB:.1f} GiB beside the networks, and {ready.device} has "
        f"{available / GIB:.1f} GiB; allowed: "
        + (f"budget.batch up to {largest}" if largest else "smaller images or networks")
    )


def _steps(ready: Ready, batch: Batch) -> tuple[Distiller, Step, Step]:
    """A student of its own, and steps of both kinds with that many images."""
    settings = ready.space.settings()
    policy, steps, phase = ready.policy(settings), ready.policy_steps(settings), ready.phase(None)
    distiller = Distiller(
        ready.teacher,
        ready.study.student(),
        policy,
        ready.task,
        optimizer=ready.study.optimizer,
        device=ready.device,
        clean_loss=ready.clean_loss,
    )
    distiller.fit(phase, batch.images[:2])
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.0)
    random = torch.Generator().manual_seed(0)

    def some(images: int) -> Batch:
        repeat = -(-images // len(batch))
        return Batch(*(torch.cat([v] * repeat)[:images] for v in (batch.images, batch.target, batch.ids)))

    return (
        distiller,
        lambda images: distiller.student_step(some(images), phase, random),
        lambda images: distiller.policy_step(some(images), steps, optimizer, random),
    )


def _timed(step: Callable[[], object], repeats: int = 5) -> float:
    for _ in range(2):
        step()
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    return (time.perf_counter() - start) / repeats
