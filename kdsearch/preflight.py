"""Looks at a study before anything is trained: every problem in one message, effects measured, costs foreseen."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor, nn

from kdsearch.alternation import Precision
from kdsearch.costs import check_memory, seconds_of
from kdsearch.data import first
from kdsearch.diagnosis import likely_reasons
from kdsearch.disagreement import Probe, one_operation, plan_look
from kdsearch.errors import KdsearchError, not_whole, problems, unknown
from kdsearch.evaluation import Known, known
from kdsearch.factories import check_fresh, check_network
from kdsearch.losses import Kind, Loss
from kdsearch.maths import generator, usual_modes
from kdsearch.metrics import ACCURACY, metric_name
from kdsearch.models import arranged, outputs
from kdsearch.objectives import OBJECTIVES
from kdsearch.ops import OPERATIONS, apply
from kdsearch.space import SearchSpace
from kdsearch.study import Ready, Saw, Study
from kdsearch.tasks import Classification
from kdsearch.teachers import Recipe, Teacher, still
from kdsearch.values import Batch, Outputs

LEAST_EFFECT = 1 / 255  # mean change of pixels at the limit
LOOKED_AT = 64  # images
DOUBTFUL = 0.5  # accuracy of a teacher, under which it is asked why
ENOUGH = 100  # images, to tell a teacher from chance by three standard errors
BY_HEART = 0.995  # accuracy on images, from which on they may have been learned so


@dataclass(frozen=True)
class Checked:
    """What the preflight found."""

    ready: Ready
    dropped: Mapping[str, str]  # operations without effect, and why
    train: Known  # by the teacher
    validation: Known  # by the teacher
    remembers: bool | None  # has the teacher learned search-validation? None: who knows
    seconds_per_run: float  # of a run with policy steps at the space's defaults, disagreement included
    seconds_per_reference: float
    warnings: tuple[str, ...] = ()  # what is allowed and seldom meant


@usual_modes()
def preflight(study: Study, folder: Path, *, device: str = "cpu") -> Checked:
    """Check a study and make it ready.

    Raises:
        KdsearchError: whatever is wrong with data, networks, space, budget or device, before anything is trained.
    """
    batch = check(study, device).to(device)
    study = study.placed(device)
    student, task = study.fresh_student(device), Classification.of(study.classes)
    check_fresh(student, study.fresh_student(device))
    _check_logits(_answers(student, batch.images[:2], "student"), task, "student")
    ready, dropped, (train, validation) = make_ready(study, batch.images, folder, device=device)
    if found := _wrong_layers(study, student, ready.teacher.network, batch.images[:2]):
        raise problems(f"study {study.name}: losses", found)
    try:
        check_memory(ready, batch)
        seconds = seconds_of(ready, batch)
    except KdsearchError as error:
        raise KdsearchError(f"study {study.name}: {error}") from None
    remembers, doubt = _remembers(study.teacher_saw, train, validation)
    told = [*_warnings(study, ready.space), *doubt]
    if validation.accuracy < DOUBTFUL:
        told += [f"the teacher is right on {validation.accuracy:.1%} of search-validation; {reason}"
                 for reason in likely_reasons(ready.teacher, study.search_validation, task, device)[:1]]  # fmt: skip
    return Checked(ready, dropped, train, validation, remembers, *seconds, warnings=tuple(told))


def check(study: Study, device: str = "cpu") -> Batch:
    """Look at data, space, budget and device, without any network: the first training images, on the host.

    Raises:
        KdsearchError: whatever is wrong with them.
    """
    task = Classification.of(study.classes)
    _check_device(device)
    space = SearchSpace.load(study.space).filled(study.objective, study.floor)
    found = _wrong_numbers(study, space)
    looked = {}
    for name, data in (("train", study.train), ("search_validation", study.search_validation)):
        try:
            looked[name] = first(data, LOOKED_AT)
        except KdsearchError as error:
            found.append(f"{name}: {error}")
        else:
            found += _wrong_images(name, looked[name], task)
    if len({tuple(batch.images.shape[1:]) for batch in looked.values()}) > 1:
        found.append("train and search_validation have images of different shapes")
    if found:
        raise problems(f"study {study.name}", found)
    return looked["train"]


def make_ready(
    study: Study, images: Tensor, folder: Path, *, device: str = "cpu"
) -> tuple[Ready, Mapping[str, str], tuple[Known, Known]]:
    """A checked study with its teacher at hand and without the operations that have no effect; no student is made.

    Args:
        images: The first training images, on the device.
        folder: Where the weights of a `Recipe` are kept.

    Returns:
        The study, why operations were dropped, and what the teacher knows of train and of search-validation.

    Raises:
        KdsearchError: the teacher's logits are not what the study needs, or it knows nothing of the images.
    """
    task = Classification.of(study.classes)
    space = SearchSpace.load(study.space).filled(study.objective, study.floor)
    recipe = study.teacher
    network = recipe.load(folder / "teacher.safetensors") if isinstance(recipe, Recipe) else recipe
    channels = images.shape[1]
    check_network(network, "teacher")
    teacher = Teacher(arranged(network, device, channels=channels, compiled=study.compiled))
    with torch.no_grad():
        _check_logits(teacher(images[:2]), task, "teacher")
    dropped = without_effect(images, space.limits)
    space = space.without(dropped)
    splits = {"train": study.train, "search_validation": study.search_validation}
    found = []
    for name, data in splits.items():
        try:
            found.append(known(teacher, data, task, study.budget.batch, device))
        except KdsearchError as error:
            raise KdsearchError(f"study {study.name}: {name}: {error}") from None
    train, validation = found
    chance = 1 / len(task.class_names)
    errors = 3 if len(study.search_validation) >= ENOUGH else 2
    if validation.accuracy < chance + errors * validation.accuracy_se + 0.02:
        reasons = likely_reasons(teacher, study.search_validation, task, device)
        raise problems(
            f"study {study.name}: the teacher is right on {validation.accuracy:.1%} of search-validation, chance is "
            f"{chance:.1%}",
            list(reasons) or ["likely reasons: weights that were not loaded, or images of another kind than it knows"],
        )
    budget = study.budget
    look = plan_look(
        space.limits,
        len(study.search_validation),
        study.student_images // 4,
        images=budget.look_images,
        bins=budget.look_bins,
        operations=budget.look_operations,
        seed=study.seed,
    )
    probe = Probe(teacher, study.search_validation, task, space.limits, fill=space.fill, look=look, seed=study.seed,
                  device=device)  # fmt: skip
    return Ready(study, task, teacher, space, train, probe, channels, device), dropped, (train, validation)


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


def _wrong_numbers(study: Study, space: SearchSpace) -> list[str]:
    budget, found = study.budget, []
    least = {"trials": 1, "epochs": 1, "steps": 1, "batch": 2, "confirmation": 0, "parts": 1}
    optional = {"policy_batch": 2, "look_images": 1, "look_bins": 1, "look_operations": 0}
    least |= {name: lowest for name, lowest in optional.items() if getattr(budget, name) is not None}
    found += [f"budget.{text}" for text in not_whole(asdict(budget), least)]
    if budget.parts > max(1, budget.batch // 2):
        found.append(f"budget.parts is {budget.parts}; allowed: 1 to {budget.batch // 2}, at least 2 images in each")
    for name, weight in study.objective.items():
        if name not in OBJECTIVES:
            found.append(f"objective: {unknown('term', name, OBJECTIVES)}")
        elif not 0 <= weight < math.inf:
            found.append(f"objective: {name} is {weight:g}; allowed: 0 or more, the sign is in the term")
    for loss in study.losses:
        if not isinstance(loss, Loss):
            cure = "call it, as LOSSES['kd']()" if isinstance(loss, Kind) else "an entry of LOSSES called, or a Loss"
            found.append(f"loss is {type(loss).__name__}; allowed: {cure}")
    names = [loss.name for loss in study.losses if isinstance(loss, Loss)]
    found += [
        f"loss: {name} is there twice; allowed: once, with a weight"
        for name in dict.fromkeys(names)
        if names.count(name) > 1
    ]
    if study.workers < 0:
        found.append(f"workers is {study.workers}; allowed: 0 or more")
    if study.precision not in get_args(Precision):
        found.append(unknown("precision", study.precision, get_args(Precision)))
    if study.compiled and any(loss.pairs for loss in study.losses if isinstance(loss, Loss)):
        found.append("compiled: losses on features tap a network while it runs; allowed: compiled=False with them")
    if study.teacher_saw not in get_args(Saw):
        found.append(unknown("teacher_saw", study.teacher_saw, get_args(Saw)))
    if study.metric is not None and not callable(study.metric):
        found.append(f"metric is {type(study.metric).__name__}; allowed: a function of logits and labels")
    elif study.metric is not None and metric_name(study.metric) in ("<lambda>", ACCURACY):
        found.append(
            f"metric is called {metric_name(study.metric)}; allowed: a function with a name that tells it apart"
        )
    if not 0 <= study.label_weight < math.inf:
        found.append(f"label_weight is {study.label_weight:g}; allowed: 0 or more")
    weights = [v for name, v in {**study.objective, **space.numbers}.items() if name in OBJECTIVES]
    if not any(weights):
        found.append(f"objective: no term has a weight; known: {', '.join(OBJECTIVES)}")
    if study.floor is not None and not 0 <= study.floor < math.inf:
        found.append(f"floor is {study.floor:g}; allowed: 0 or more, or None for no floor")
    return found


def _warnings(study: Study, space: SearchSpace) -> list[str]:
    found = []
    if space.settings().prior_strength is None:
        found.append(f"space {space.name}: the prior is off, and without it every probability is best at 0 or 1")
    placed = [loss.name for loss in study.losses if loss.pairs and not loss.relational]
    if study.views.teacher == "clean" and placed:
        found.append(
            f"views: the teacher sees the base view alone, and {placed[0]} compares features position by position: "
            "where the policy moves pixels they do not belong together"
        )
    return found


def _remembers(saw: Saw, train: Known, validation: Known) -> tuple[bool | None, list[str]]:
    """Has the teacher learned search-validation? As the study says, else by comparison with train; and a warning."""
    if saw != "unknown":
        return saw == "both", []
    cure = 'say what it has seen, Study(teacher_saw="none", "train" or "both")'
    if validation.loss - train.loss > 2 * math.hypot(train.loss_se, validation.loss_se):
        return False, []
    if validation.accuracy < BY_HEART:
        return None, [f"it is not known whether the teacher has seen search-validation; {cure}"]
    right = f"the teacher is right on {validation.accuracy:.1%} of search-validation and no worse there than on train"
    return True, [f"{right}: it may have learned these images, and disagreement would be measured on memory; {cure}"]


def _wrong_layers(study: Study, student: nn.Module, teacher: nn.Module, images: Tensor) -> list[str]:
    """Module paths of losses on features that a network does not have, or has not run."""
    pairs = [pair for loss in study.losses for pair in loss.pairs]
    found = []
    for i, (who, network) in enumerate((("student", student), ("teacher", teacher))):
        for layer in dict.fromkeys(pair[i] for pair in pairs):
            try:
                _answers(network, images, who, layer)
            except KdsearchError as error:
                found.append(str(error))
    return found


def _answers(network: nn.Module, images: Tensor, who: str, *layers: str) -> Outputs:
    """What a network says in evaluation mode; it stays as it was."""
    with torch.no_grad(), still(network):
        return outputs(network, images, who, layers)


def _wrong_images(name: str, batch: Batch, task: Classification) -> list[str]:
    images, found = batch.images, list[str]()
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
    if wrong := task.wrong(batch.target):
        found.append(f"{name}: {wrong}")
    return found


def _check_logits(answers: Outputs, task: Classification, who: str) -> None:
    logits = task.check(answers, who).logits
    if logits.shape[1] != len(task.class_names):
        raise KdsearchError(f"{who}: {logits.shape[1]} logits; the study has {len(task.class_names)} classes")
    if not torch.isfinite(logits).all():
        raise KdsearchError(f"{who}: its logits are not finite on the first images")


def _check_device(device: str) -> None:
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        here = [
            "cpu",
            *(["cuda"] if torch.cuda.is_available() else []),
            *(["mps"] if torch.backends.mps.is_available() else []),
        ]
        reason = str(error).splitlines()[0]
        raise KdsearchError(f"device '{device}' cannot be used: {reason}; here: {', '.join(here)}") from None
