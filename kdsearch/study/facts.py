"""What the storage is told of a search, and what fixes its trials."""

import importlib.metadata
import platform
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from kdsearch.augment.operations import TABLE as OPERATIONS
from kdsearch.core.sources import hash_source
from kdsearch.networks.factories import fresh_optimizer
from kdsearch.study.fingerprint import describe_base, network_digest, student_digest
from kdsearch.study.preflight import Findings
from kdsearch.study.ready import Ready
from kdsearch.study.study import Study
from kdsearch.tasks.metrics import metric_name


def search_facts(checked: Findings) -> dict[str, Any]:
    """What the frame `studies` says of a search."""
    study, ready, look = checked.ready.study, checked.ready, checked.ready.probe.look
    versions = {name: importlib.metadata.version(name) for name in ("kdsearch", "torch", "kornia", "optuna")}
    return {
        "study": study.name,
        "metric": metric_name(study.metric),
        "direction": "maximize",
        "space": ready.space.name,
        "operations": list(ready.space.limits),
        "dropped": list(checked.dropped),
        "classes": list(ready.task.class_names),
        "confirm_images": 0 if study.confirm is None else len(study.confirm),
        "teacher_accuracy": checked.validation.accuracy,
        "teacher_loss": checked.validation.loss,
        "teacher_train_accuracy": checked.train.accuracy,
        "teacher_clean_loss": ready.clean.loss,
        "teacher_saw": study.teacher_saw,
        "teacher_remembers": checked.remembers,
        "seed": study.seed,
        **{f"budget_{name}": value for name, value in asdict(study.budget).items()},
        "budget_policy_batch": ready.policy_batch,
        "budget_look_images": look.images,
        "budget_look_bins": look.bins,
        "budget_look_operations": len(look.operations),
        "base": ready.base_view.said.removeprefix("base: "),
        "base_versions": study.base_versions,
        "base_loss_rise": ready.base_view.loss_rise,
        "teacher_fused": ready.teacher.is_fused,
        "answers_looked_up": ready.answers_looked_up,
        "precision": study.precision,
        "compiled": study.compiled,
        "device": ready.device,
        "python": platform.python_version(),
        **versions,
        "opened_at": datetime.now(UTC).isoformat(),
    }


def search_identity(checked: Findings) -> dict[str, Any]:
    """What fixes a trial: a search whose own differs from a stored one must not go on with it."""
    ready = checked.ready
    look = ready.probe.look
    return {
        **student_identity(checked),
        "operations": {name: OPERATIONS[name].unit for name in ready.space.limits},
        **ready.space.fingerprint(),
        "policy batch": ready.policy_batch,
        "look for disagreement": {**asdict(look), "operations": list(look.operations)},
        "confirm images and labels": checked.content.get("confirm"),
        "paired": ready.study.paired,
    }


def student_identity(checked: Findings) -> dict[str, Any]:
    """What fixes a student, the policy left aside."""
    ready = checked.ready
    study = ready.study
    return {
        "train images": len(study.train),
        "train images and labels": checked.content["train"],
        "search-validation images": len(study.search_validation),
        "search-validation images and labels": checked.content["search-validation"],
        "classes": list(ready.task.class_names),
        "teacher": network_digest(ready.teacher.network),
        "student": student_digest(study.fresh_student),
        "losses": [f"{loss.name}, weight {loss.weight}" for loss in study.losses],
        "code of the losses": hash_source(*study.losses, settings=True),
        "metric": metric_name(study.metric),
        "code of the metric": hash_source(study.metric) if study.metric else None,
        "optimizer": _optimizer(study),
        "label weight": study.label_weight,
        "views": {name: value for name, value in asdict(study.views).items() if name != "second_from"},
        "epochs": study.budget.epochs,
        "steps": study.budget.steps,
        "batch": study.budget.batch,
        "parts": study.budget.parts,
        "precision": study.precision,
        "compiled": study.compiled,
        "seed": study.seed,
        **({} if ready.base_view.before else _base_identity(ready)),
    }


def _base_identity(ready: Ready) -> dict[str, Any]:
    """What fixes the base views, and how the teacher is asked about them."""
    phase = ready.phase(None)
    return {
        "base view": describe_base(phase.base),
        "base versions": phase.base_versions,
        "second view from": phase.views.second_from if phase.base is not None else "base",
        "teacher fused": ready.teacher.is_fused,
        "answers looked up": ready.answers_looked_up,
    }


def _optimizer(study: Study) -> str:
    """In words: its name, and for each of its groups the numbers and which of the student's weights it trains."""
    student = study.fresh_student()
    made, place = fresh_optimizer(study.optimizer, student), {id(p): i for i, p in enumerate(student.parameters())}
    said = [type(made).__name__]
    for group in made.param_groups:
        trained = [place.get(id(p), -1) for p in group["params"]]
        if trained != list(range(len(place))):
            said.append(f"weights {trained}")
        said += [f"{key} {group[key]}" for key in sorted(group) if key != "params" and group[key] is not None]
    if not type(made).__module__.startswith("torch."):
        said.append(f"code {hash_source(type(made))}")
    return ", ".join(said)
