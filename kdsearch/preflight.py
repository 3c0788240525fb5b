"""Looks at a study before anything is trained: every problem in one message, effects measured, time estimated."""

import importlib.metadata
import math
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdsearch.data import in_order
from kdsearch.disagreement import Probe, one_operation
from kdsearch.distill import Distiller
from kdsearch.errors import KdsearchError, problems, unknown
from kdsearch.evaluation import evaluate, measure, teacher_loss
from kdsearch.losses import Kind, Loss
from kdsearch.maths import generator
from kdsearch.metrics import metric_name
from kdsearch.models import outputs
from kdsearch.objectives import OBJECTIVES
from kdsearch.ops import OPERATIONS, apply
from kdsearch.space import SearchSpace
from kdsearch.study import Ready, Study
from kdsearch.tasks import Classification
from kdsearch.teachers import Recipe, Teacher, weights_hash
from kdsearch.values import Batch, Outputs

LEAST_EFFECT = 1 / 255  # mean change of pixels at the limit
LOOKED_AT = 64  # images


@dataclass(frozen=True)
class Checked:
    """What the preflight found."""

    ready: Ready
    dropped: Mapping[str, str]  # operations without effect, and why
    teacher_accuracy: float  # on search-validation
    seconds_per_run: float  # of a run with policy steps at the space's defaults, disagreement included
    seconds_per_reference: float
    warnings: tuple[str, ...] = ()  # what is allowed and seldom meant


def preflight(study: Study, folder: Path, *, device: str = "cpu") -> Checked:
    """Check a study and make it ready.

    Raises:
        KdsearchError: whatever is wrong with data, networks, space, budget or device, before anything is trained.
    """
    batch = check(study, device).to(device)
    student, task = study.student().to(device), Classification.of(study.classes)
    _check_logits(outputs(student.eval(), batch.images[:2], "student"), task, "student")
    ready, dropped, accuracy = make_ready(study, batch.images, folder, device=device)
    return Checked(ready, dropped, accuracy, *_estimate(ready, batch), warnings=_warnings(ready.space))


def check(study: Study, device: str = "cpu") -> Batch:
    """Look at data, space, budget and device, without any network: the first training images, on the host.

    Raises:
        KdsearchError: whatever is wrong with them.
    """
    task = Classification.of(study.classes)
    _check_device(device)
    space = SearchSpace.load(study.space).filled(study.objective, study.floor)
    found = _wrong_numbers(study, space)
    first = {}
    for name, data in (("train", study.train), ("search_validation", study.search_validation)):
        try:
            first[name] = next(in_order(data, LOOKED_AT))
        except StopIteration:
            found.append(f"{name}: the data set is empty")
        else:
            found += _wrong_images(name, first[name], task)
    if len({tuple(batch.images.shape[1:]) for batch in first.values()}) > 1:
        found.append("train and search_validation have images of different shapes")
    if found:
        raise problems(f"study {study.name}", found)
    return first["train"]


def make_ready(
    study: Study, images: Tensor, folder: Path, *, device: str = "cpu"
) -> tuple[Ready, Mapping[str, str], float]:
    """A checked study with its teacher at hand and without the operations that have no effect; no student is made.

    Args:
        images: The first training images, on the device.
        folder: Where the weights of a `Recipe` are kept.

    Returns:
        The study, why operations were dropped, and the accuracy of the teacher on search-validation.

    Raises:
        KdsearchError: the teacher's logits are not what the study needs, or it knows nothing of the images.
    """
    task = Classification.of(study.classes)
    space = SearchSpace.load(study.space).filled(study.objective, study.floor)
    recipe = study.teacher
    network = recipe.load(folder / "teacher.safetensors") if isinstance(recipe, Recipe) else recipe
    teacher = Teacher(network.to(device))
    with torch.no_grad():
        _check_logits(teacher(images[:2]), task, "teacher")
    dropped = without_effect(images, space.limits)
    space = space.without(dropped)
    clean = teacher_loss(teacher, study.train, task, study.budget.batch, device)
    accuracy, error = evaluate(teacher.network, study.search_validation, task, study.budget.batch, device)
    chance = 1 / len(task.class_names)
    if accuracy < chance + 3 * error + 0.02:
        raise KdsearchError(
            f"study {study.name}: the teacher is right on {accuracy:.1%} of search-validation, chance is {chance:.1%}; "
            "likely reasons: other class order, missing normalisation (kdsearch.Normalised), or weights not loaded"
        )
    probe = Probe(teacher, study.search_validation, task, space.limits, fill=space.fill, seed=study.seed, device=device)
    return Ready(study, task, teacher, space, clean, probe, device), dropped, accuracy


def facts(checked: Checked) -> dict[str, Any]:
    """What the frame `studies` says of a search."""
    study, ready = checked.ready.study, checked.ready
    versions = {name: importlib.metadata.version(name) for name in ("kdsearch", "torch", "kornia", "optuna")}
    return {
        "study": study.name,
        "metric": metric_name(study.metric),
        "direction": "maximize",
        "space": ready.space.name,
        "operations": list(ready.space.limits),
        "dropped": list(checked.dropped),
        "classes": list(ready.task.class_names),
        "teacher_accuracy": checked.teacher_accuracy,
        "teacher_clean_loss": ready.clean_loss,
        "seed": study.seed,
        **{f"budget_{name}": value for name, value in asdict(study.budget).items()},
        "device": ready.device,
        "python": platform.python_version(),
        **versions,
        "opened_at": datetime.now(UTC).isoformat(),
    }


def fixed_by(ready: Ready) -> dict[str, Any]:
    """What fixes a trial: a search whose own differs from a stored one must not go on with it."""
    study = ready.study
    student = {name: list(value.shape) for name, value in study.student().state_dict().items()}
    return {
        "operations": {name: OPERATIONS[name].unit for name in ready.space.limits},
        **ready.space.fingerprint(),
        "train images": len(study.train),
        "search-validation images": len(study.search_validation),
        "classes": list(ready.task.class_names),
        "teacher weights": weights_hash(ready.teacher.network),
        "student": student,
        "losses": [f"{loss.name}, weight {loss.weight}" for loss in study.losses],
        "metric": metric_name(study.metric),
        "label weight": study.label_weight,
        "views": asdict(study.views),
        "epochs": study.budget.epochs,
        "steps": study.budget.steps,
        "batch": study.budget.batch,
        "seed": study.seed,
    }


def without_effect(images: Tensor, limits: Mapping[str, float | None]) -> dict[str, str]:
    """Operations that these images do not feel: their mean change at the limit is under 1/255."""
    found = {}
    for name, limit in limits.items():
        if not OPERATIONS[name].suits(images.shape[1]):
            found[name] = f"needs {OPERATIONS[name].channels} channels"
            continue
        draw = one_operation(name, len(images), generator("effect"), low=limit or 0.0, high=limit or 0.0)
        change = (apply(draw, images).images - images).abs().mean().item()
        if change < LEAST_EFFECT:
            found[name] = f"changes pixels by {change * 255:.2f}/255 on average at its limit"
    return found


def _estimate(ready: Ready, batch: Batch) -> tuple[float, float]:
    """Seconds of a run with policy steps, and of one without, from a few steps of each kind."""
    study, budget = ready.study, ready.study.budget
    settings = ready.space.settings()
    policy, steps = ready.policy(settings), ready.policy_steps(settings)
    distiller = Distiller(
        ready.teacher, study.student(), policy, ready.task, device=ready.device, clean_loss=ready.clean_loss
    )
    repeat = -(-budget.batch // len(batch))
    batch = Batch(*(torch.cat([v] * repeat)[: budget.batch] for v in (batch.images, batch.target, batch.ids)))
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.0)
    random = torch.Generator().manual_seed(0)
    phase = ready.phase(None)
    student_step = _seconds(lambda: distiller.student_step(batch, phase, random))
    policy_step = _seconds(lambda: distiller.policy_step(batch, steps, optimizer, random))
    images = len(study.search_validation)
    start = time.perf_counter()
    measure(distiller.student, study.search_validation, ready.task, budget.batch, ready.device, study.metric)
    evaluation = time.perf_counter() - start
    start = time.perf_counter()
    evaluate(ready.teacher.network, study.search_validation, ready.task, budget.batch, ready.device)
    teacher = time.perf_counter() - start
    cells = 2 + sum(1 if limit is None else 5 for limit in ready.space.limits.values())
    augment = _seconds(lambda: apply(policy.draw(len(batch), random), batch.images)) * images / len(batch)
    plain = budget.epochs * (budget.steps * student_step + evaluation) + cells * (evaluation + augment + teacher / 4)
    count = steps.count(budget.epochs, budget.steps, len(study.train), budget.batch)
    return plain + count * policy_step, plain


def _seconds(step: Callable[[], object], repeats: int = 5) -> float:
    for _ in range(2):
        step()
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    return (time.perf_counter() - start) / repeats


def _wrong_numbers(study: Study, space: SearchSpace) -> list[str]:
    budget, found = study.budget, []
    for name, least in (("trials", 1), ("epochs", 1), ("steps", 1), ("batch", 2), ("confirmation", 0)):
        if getattr(budget, name) < least:
            found.append(f"budget.{name} is {getattr(budget, name)}; allowed: {least} or more")
    for name, weight in study.objective.items():
        if name not in OBJECTIVES:
            found.append(f"objective: {unknown('term', name, OBJECTIVES)}")
        elif not 0 <= weight < math.inf:
            found.append(f"objective: {name} is {weight:g}; allowed: 0 or more, the sign is in the term")
    for loss in study.losses:
        if not isinstance(loss, Loss):
            cure = "call it, as LOSSES['kd']()" if isinstance(loss, Kind) else "an entry of LOSSES called, or a Loss"
            found.append(f"loss is {type(loss).__name__}; allowed: {cure}")
    if not 0 <= study.label_weight < math.inf:
        found.append(f"label_weight is {study.label_weight:g}; allowed: 0 or more")
    weights = [v for name, v in {**study.objective, **space.numbers}.items() if name in OBJECTIVES]
    if not any(weights):
        found.append(f"objective: no term has a weight; known: {', '.join(OBJECTIVES)}")
    if study.floor is not None and not 0 <= study.floor < math.inf:
        found.append(f"floor is {study.floor:g}; allowed: 0 or more, or None for no floor")
    return found


def _warnings(space: SearchSpace) -> tuple[str, ...]:
    if space.settings().prior_strength is None:
        return (f"space {space.name}: the prior is off, and without it every probability is best at 0 or 1",)
    return ()


def _wrong_images(name: str, batch: Batch, task: Classification) -> list[str]:
    images, labels, found = batch.images, batch.target, []
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        return [f"{name}: images of shape {tuple(images.shape[1:])}; allowed: (1, H, W) or (3, H, W)"]
    low, high = images.min().item(), images.max().item()
    if not torch.isfinite(images).all():
        found.append(f"{name}: images contain NaN or infinity")
    elif low < 0 or high > 1:
        found.append(
            f"{name}: image values from {low:.3g} to {high:.3g}; allowed: [0, 1], before normalisation "
            "(wrap a network that wants normalised images in kdsearch.Normalised)"
        )
    if labels.min() < 0 or labels.max() >= len(task.class_names):
        most = len(task.class_names)
        found.append(f"{name}: labels from {labels.min()} to {labels.max()}; allowed: 0 to {most - 1} ({most} classes)")
    return found


def _check_logits(answers: Outputs, task: Classification, who: str) -> None:
    logits = task.check(answers, who).logits
    if logits.shape[1] != len(task.class_names):
        raise KdsearchError(f"{who}: {logits.shape[1]} logits; the study has {len(task.class_names)} classes")
    if not torch.isfinite(logits).all():
        raise KdsearchError(f"{who}: its logits are not finite on the first images")


def _check_device(device: str) -> None:
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        here = [
            "cpu",
            *(["cuda"] if torch.cuda.is_available() else []),
            *(["mps"] if torch.backends.mps.is_available() else []),
        ]
        reason = str(error).splitlines()[0]
        raise KdsearchError(f"device '{device}' cannot be used: {reason}; here: {', '.join(here)}") from None
