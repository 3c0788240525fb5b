"""Looks at a study before anything is trained: every problem in one message, effects measured, costs foreseen."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import wraps
from itertools import combinations
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from kdsearch.augment.operations import TABLE as OPERATIONS
from kdsearch.augment.operations import apply
from kdsearch.augment.policy import Policy
from kdsearch.core.devices import check_device
from kdsearch.core.errors import KdsearchError, problems
from kdsearch.core.maths import generator, usual_modes
from kdsearch.core.values import Batch, Outputs
from kdsearch.data.batches import first_batch
from kdsearch.data.items import MapStyle
from kdsearch.distill.answers import AnswerTables
from kdsearch.distill.steps import count_parts
from kdsearch.networks.factories import batch_norm_warning, check_fresh, check_network, check_weights
from kdsearch.networks.fusing import fused_copy
from kdsearch.networks.outputs import arrange_network, run_network
from kdsearch.networks.teachers import Recipe, Teacher, evaluation_mode
from kdsearch.probe.diagnosis import likely_reasons
from kdsearch.probe.disagreement import Probe, draw_operation, plan_look
from kdsearch.probe.evaluation import TeacherMeasurement
from kdsearch.probe.inheritance import Ruler
from kdsearch.study.base_view import find_base
from kdsearch.study.costs import MemoryEstimate, check_memory, estimate_seconds
from kdsearch.study.fingerprint import digest_parts, network_digest
from kdsearch.study.ready import Ready
from kdsearch.study.run_folder import is_begun, read_base
from kdsearch.study.space import SearchSpace
from kdsearch.study.study import Saw, Study
from kdsearch.study.survey import (
    MOST_SHARED,
    Survey,
    describe_overlap,
    shared_images,
    shared_items,
    survey_split,
    wrong_images,
    wrong_targets,
)
from kdsearch.study.wiring import check_kinds, doubtful_wiring, study_task, wrong_numbers
from kdsearch.tasks import Classification

P = ParamSpec("P")
R = TypeVar("R")
LEAST_EFFECT = 1 / 255  # mean change of pixels at the limit
LOOKED_AT = 64  # images
DOUBTFUL = 0.5  # accuracy of a teacher, under which it is asked why
CERTAIN = 3.0  # standard errors over chance, from which on a teacher is taken as it is
POSSIBLE = 1.64  # from which on it may be weak, and the images too few to tell
TRIED = 4  # images, on which the teacher is asked under each operation
BY_HEART = 0.995  # accuracy on images, from which on they may have been learned so


@dataclass(frozen=True)
class Findings:
    """What the preflight found."""

    ready: Ready
    dropped: Mapping[str, str]  # operations without effect, and why
    train: TeacherMeasurement  # by the teacher
    validation: TeacherMeasurement  # by the teacher
    content: Mapping[str, str]  # fingerprint of each split's images and targets
    remembers: bool | None  # has the teacher learned search-validation? None: who knows
    seconds_per_run: float  # of a run with policy steps at the space's defaults, disagreement included
    seconds_per_reference: float
    memory: MemoryEstimate | None  # of a training step; None: nobody knows what the device has
    warnings: tuple[str, ...] = ()  # what is allowed and seldom meant
    asked: str = ""  # how the teacher is asked, in words


def _names_study(look: Callable[P, R]) -> Callable[P, R]:
    """Errors of a function of a study begin with its name."""

    @wraps(look)
    def named(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return look(*args, **kwargs)
        except KdsearchError as error:
            if str(error).startswith("study"):
                raise
            raise KdsearchError(f"study {getattr(args[0], 'name', '')}: {error}") from error.__cause__

    return named


@_names_study
@usual_modes()
def preflight(study: Study, folder: Path, *, device: str = "cpu", run: Path | None = None) -> Findings:
    """Check a study and make it ready.

    Args:
        folder: Where the weights of a `Recipe` are kept.
        run: The folder that the runs are kept in, whose base view they go on with; `folder` where None.

    Raises:
        KdsearchError: whatever is wrong with data, networks, space, budget or device, before anything is trained.
    """
    looked = check_inputs(study, device)
    for one, other in _pairs(study):
        if (share := shared_items(getattr(study, one), getattr(study, other))) > MOST_SHARED:
            raise KdsearchError(describe_overlap(share, "the same items", other, one))
    batch = looked["train"].to(device)
    study = study.place_data(device)
    task = study_task(study)
    try:
        check_fresh(student := study.fresh_student(device), study.fresh_student(device))
    except KdsearchError as error:
        raise KdsearchError(f"study {study.name}: {error}") from error
    odd = _check_logits(_answers(student, batch.images[:2], "student"), task, "student")
    run = run or folder
    kept, begun = read_base(run), is_begun(run)
    fuses = None if kept is None and not begun else bool(kept and kept.fused)
    ready, dropped, surveys, doubt = make_ready(study, looked, folder, device=device, fuses=fuses)
    train, validation = surveys["train"], surveys["search_validation"]
    found_on = digest_parts(network_digest(ready.teacher.network), train.digest, validation.digest, str(study.seed))
    base = find_base(study, run, ready.teacher, task, ready.channels, device=device, found_on=found_on)
    tables = AnswerTables(base.answers_looked_up, runs=study.budget.trials + 1)
    own = base.base.operations if isinstance(base.base, Policy) else ()
    known = {*ready.space.limits, *own}
    ruler = Ruler(ready.teacher, study.search_validation, task, known=known, device=device)
    confirm = study.confirm
    confirm_ruler = None if confirm is None else Ruler(ready.teacher, confirm, task, known=known, device=device)
    ready = replace(ready, base_view=base, tables=tables, ruler=ruler, confirm_ruler=confirm_ruler)
    for one, other in _pairs(study):
        share = shared_images(surveys[one], surveys[other])
        if share > MOST_SHARED:
            raise KdsearchError(describe_overlap(share, "the same pixels", other, one))
        if share:
            doubt.append(describe_overlap(share, "the same pixels", other, one))
    if found := _wrong_layers(study, student, ready.teacher.network, batch.images[:2]):
        raise problems(f"study {study.name}: losses", found)
    memory = check_memory(ready, batch)
    tables.reserved = memory.needed if memory else 0
    _decide_answers(ready)
    seconds = estimate_seconds(ready, batch)
    remembers, unknown = _remembers(study.teacher_saw, train.known, validation.known)
    few = batch_norm_warning(student, study.budget.batch // count_parts(study.budget.batch, study.budget.parts))
    advice = [*_without_part(ready), *([base.advice] if base.advice else [])]
    told = [*doubtful_wiring(study, ready.space), *_never_learns(ready), *few, *unknown, *odd, *doubt, *advice]
    if not doubt and validation.known.accuracy < DOUBTFUL:
        told += [f"the teacher is right on {validation.known.accuracy:.1%} of search-validation; {reason}"
                 for reason in likely_reasons(ready.teacher, study.search_validation, task, device)[:1]]  # fmt: skip
    content = {name.replace("_", "-"): seen.digest for name, seen in surveys.items()}
    of_splits = train.known, validation.known
    asked = _describe_asking(ready)
    return Findings(ready, dropped, *of_splits, content, remembers, *seconds, memory, tuple(told), asked)


@_names_study
def check_inputs(study: Study, device: str = "cpu") -> Mapping[str, Batch]:
    """Look at data, space, budget and device, without any network.

    Returns:
        The first items of each split but `test`, on the host.

    Raises:
        KdsearchError: whatever is wrong with them.
    """
    check_kinds(study)
    task = study_task(study)
    check_device(device)
    space = SearchSpace.load(str(study.space)).with_defaults(study.objective, study.floor)
    found = wrong_numbers(study, space)
    looked = {}
    for name, data in _splits(study).items():
        try:
            looked[name] = first_batch(data, LOOKED_AT)
        except KdsearchError as error:
            found.append(f"{name}: {error}")
        else:
            found += [f"{name}: {wrong}" for wrong in _wrong_batch(looked[name], task)]
    if len({tuple(batch.images.shape[1:]) for batch in looked.values()}) > 1:
        found.append(f"{' and '.join(looked)} have images of different shapes")
    if found:
        raise problems(f"study {study.name}", found)
    return looked


@_names_study
def make_ready(
    study: Study, looked: Mapping[str, Batch], folder: Path, *, device: str = "cpu", fuses: bool | None = False
) -> tuple[Ready, Mapping[str, str], Mapping[str, Survey], list[str]]:
    """A checked study with its teacher at hand and without the operations that have no effect; no student is made.

    Args:
        looked: The first items of each split, as `check_inputs` gives them.
        folder: Where the weights of a `Recipe` are kept.
        fuses: Does the teacher answer by a copy with BatchNorm fused into its convolutions? None: where that is safe.

    Returns:
        The study, why operations were dropped, what there is in each split, and what is doubtful.

    Raises:
        KdsearchError: the teacher's logits are not what the study needs, or it knows nothing of the images; an image or
            target that is none.
    """
    task = study_task(study)
    space = SearchSpace.load(str(study.space)).with_defaults(study.objective, study.floor)
    recipe = study.teacher
    network = recipe.load(folder / "teacher.safetensors") if isinstance(recipe, Recipe) else recipe
    images = looked["train"].images.to(device)
    channels = images.shape[1]
    check_weights(check_network(network, "teacher"), "teacher")
    arrange_network(network, device, channels=channels, compiled=study.compiled)
    teacher = Teacher(network, None if fuses is False else fused_copy(network, images[:TRIED]).network)
    with torch.no_grad():
        odd = _check_logits(teacher(images[:2]), task, "teacher")
    dropped = ineffective_operations(images, space.limits, space.fill)
    space = space.drop(dropped)
    _check_answers(teacher, images[:TRIED], space, task)
    surveys = {
        name: survey_split(name, data, looked[name], teacher, task, study.budget.batch, device)
        for name, data in _splits(study).items()
    }
    train, validation = surveys["train"], surveys["search_validation"]
    doubt = [
        f"{name}: its items are others each time they are read, so that a search that goes on cannot see whether they "
        "have changed: it compares labels, their number and the data set's repr"
        for name, seen in surveys.items()
        if not seen.repeats
    ]
    doubt += odd
    doubt += _doubtful_teacher(teacher, study, task, validation.known, device)
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
    ready = Ready(study, task, teacher, space, train.known, probe, channels, device, validation.known.labels)
    return ready, dropped, surveys, doubt


def _splits(study: Study) -> dict[str, MapStyle]:
    """The data sets that a search reads, by the names of their fields."""
    found = {"train": study.train, "search_validation": study.search_validation}
    return found if study.confirm is None else {**found, "confirm": study.confirm}


def _pairs(study: Study) -> Iterator[tuple[str, str]]:
    """Splits that are to have no images in common."""
    return combinations(_splits(study), 2)


def _decide_answers(ready: Ready) -> None:
    """Are the teacher's answers on base views looked up? Decided for all runs of a study, by those with most views."""
    for run in ("", *({"bare"} & {*ready.references})):
        phase = ready.phase(None, run=run)
        if phase.bases_come_back:
            ready.tables.decide(phase, ready.teacher, ready.study.train, ready.device)


def _describe_asking(ready: Ready) -> str:
    """How the teacher is asked, in words."""
    parts = ["BatchNorm is fused into its convolutions"] if ready.teacher.is_fused else []
    if ready.answers_looked_up:
        parts.append("its answers on base views are looked up")
    elif ready.answers_looked_up is False and ready.tables.reason:
        parts.append(f"it is asked about base views at each step ({ready.tables.reason})")
    return f"teacher: {'; '.join(parts)}" if parts else ""


def _doubtful_teacher(
    teacher: Teacher, study: Study, task: Classification, known: TeacherMeasurement, device: str
) -> list[str]:
    """Does the teacher know anything of search-validation? A warning where the images are too few to tell.

    Raises:
        KdsearchError: it does not, with the likely reasons.
    """
    images, chance = len(study.search_validation), 1 / len(task.class_names)
    over = (known.accuracy - chance) / math.sqrt(chance * (1 - chance) / images)
    if over >= CERTAIN and known.accuracy >= chance + 0.02:
        share, label = max((count / images, label) for label, count in enumerate(known.labels))
        if study.metric is not None or known.accuracy > share + 2 * math.sqrt(share * (1 - share) / images):
            return []
        always = f"always answering '{task.class_names[label]}' is on {share:.1%}"
        return [f"the teacher is right on {known.accuracy:.1%} of search-validation, and {always}: it may know nothing "
                "but which class is frequent"]  # fmt: skip
    reasons = likely_reasons(teacher, study.search_validation, task, device)
    said = f"the teacher is right on {known.accuracy:.1%} of search-validation, chance is {chance:.1%}"
    if over < POSSIBLE or known.accuracy < chance + 0.02:
        raise problems(
            f"study {study.name}: {said}",
            list(reasons) or ["likely reasons: weights that were not loaded, or images of another kind than it knows"],
        )
    return [f"{said}: of {images} images that is too few to tell a weak teacher from one that knows nothing",
            *reasons[:1]]  # fmt: skip


@torch.no_grad()
def _check_answers(teacher: Teacher, images: Tensor, space: SearchSpace, task: Classification) -> None:
    """Are the teacher's logits finite on augmented images too? A few of each operation at its limit."""
    for name, limit in space.limits.items():
        draw = draw_operation(
            name, len(images), generator("effect"), low=limit or 0.0, high=limit or 0.0, fill=space.fill
        )
        logits = task.check(teacher(apply(draw, images).images), "teacher").logits
        if not torch.isfinite(logits).all():
            raise KdsearchError(
                f"the teacher's logits are not finite on images after {name}, which the search would show it"
            )


def _without_part(ready: Ready) -> list[str]:
    """What a study asks for of a base view that has no part in its runs."""
    study, base = ready.study, ready.base_view.base
    if base is not None:
        weak = "the reference `twice` is not run: where the teacher sees weak views, no transform makes the second one"
        return [] if "twice" in ready.references else [weak]
    asked = {"base_versions": study.base_versions is not None, "bare_reference": study.bare_reference}
    return [f"{name} has no part: there is no base view" for name, given in asked.items() if given]


def _never_learns(ready: Ready) -> list[str]:
    budget, settings = ready.study.budget, ready.space.settings()
    steps = ready.policy_steps(settings)
    if steps.count(budget.epochs, budget.steps, len(ready.study.train), budget.batch):
        return []
    return [
        f"the policy never learns: no policy step in {budget.epochs * budget.steps} student steps, with one every "
        f"{steps.interval} after a warm-up of {steps.warm_up:.0%}; more steps or epochs, or a smaller interval in "
        "the space, give it some"
    ]


def ineffective_operations(images: Tensor, limits: Mapping[str, float | None], fill: str = "zero") -> dict[str, str]:
    """Operations that these images do not feel: their mean change at the limit is under 1/255."""
    found = {}
    for name, limit in limits.items():
        if not OPERATIONS[name].suits(images.shape[1]):
            found[name] = f"needs {OPERATIONS[name].channels} channels"
            continue
        draw = draw_operation(name, len(images), generator("effect"), low=limit or 0.0, high=limit or 0.0, fill=fill)
        change = (apply(draw, images).images - images).abs().mean().item()
        if change < LEAST_EFFECT:
            found[name] = f"changes pixels by {change * 255:.2f}/255 on average at its limit"
    return found


def _remembers(saw: Saw, train: TeacherMeasurement, validation: TeacherMeasurement) -> tuple[bool | None, list[str]]:
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
    with torch.no_grad(), evaluation_mode(network):
        return run_network(network, images, who, layers)


def _wrong_batch(batch: Batch, task: Classification) -> list[str]:
    """What keeps the first items of a split from being those of a study."""
    if batch.images.ndim != 4 or batch.images.shape[1] not in (1, 3):
        return [f"images of shape {tuple(batch.images.shape[1:])}; allowed: (1, H, W) or (3, H, W)"]
    found = wrong_images(batch, batch.images.shape[1:]), wrong_targets(batch, task)
    return [wrong for wrong in found if wrong]


def _check_logits(answers: Outputs, task: Classification, who: str) -> list[str]:
    """Are these logits? A warning where they look like probabilities."""
    logits = task.check(answers, who).logits
    if not torch.isfinite(logits).all():
        raise KdsearchError(f"{who}: its logits are not finite on the first images")
    sums = logits.sum(1)
    if (logits >= 0).all() and torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
        what = "its logits are 0 or more and sum to 1 on the first images, as after a softmax"
        return [f"{who}: {what}; logits are what stands before it"]
    return []
