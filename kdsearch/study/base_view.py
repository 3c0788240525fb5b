"""The base view of a study's runs: kept in the folder, named, a user's own, or what the teacher tolerates."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from kdsearch.augment.bases import NAMED, Base, as_base
from kdsearch.augment.fixed import FixedTransform
from kdsearch.augment.operations import TABLE as OPERATIONS
from kdsearch.augment.policy import Policy
from kdsearch.augment.spec import PolicySpec
from kdsearch.core.errors import KdsearchError
from kdsearch.core.files import write_json
from kdsearch.core.maths import generator
from kdsearch.core.terminal import option
from kdsearch.core.values import Outputs
from kdsearch.data.batches import augments_itself, first_batch
from kdsearch.distill.answers import AT_ONCE, SHARE, check_room
from kdsearch.distill.steps import BaseDraw, view_base
from kdsearch.networks.teachers import Teacher
from kdsearch.probe.tolerance import cheaper_fill, find_tolerance
from kdsearch.study.fingerprint import describe_base
from kdsearch.study.run_folder import BASE, is_begun, read_base
from kdsearch.study.study import Study
from kdsearch.tasks import Task

AUTO = "auto"
LOOKED_AT = 512  # training images on which the base's own rise is measured
DRAWS = 8  # of each


@dataclass(frozen=True)
class BaseView:
    """The base view of all runs of a folder."""

    base: Base | None  # None: images as they are
    asked: str  # of the study, in words that tell it from others
    said: str  # which one it is and why, in one line
    spec: PolicySpec | None = None  # of a base that is a policy
    found_on: str = ""  # a digest of what it was measured on
    before: bool = False  # was the folder begun before there were base views? Then nothing in it is done otherwise
    fused: bool | None = None  # does the teacher answer by its fused copy? None: not decided
    answers_looked_up: bool | None = None  # None: not decided
    loss_rise: float | None = None  # of the teacher's cross-entropy on base views of training images, nats
    advice: str | None = None  # a warning


BARE = BaseView(None, "None", "base: none")


def find_base(
    study: Study, folder: Path, teacher: Teacher, task: Task, channels: int, *, device: str, found_on: str
) -> BaseView:
    """The base view that a study's runs have: that of the folder, where it was begun, or the one it asks for.

    Args:
        found_on: A digest of what it is measured on: that of a folder which was measured on something else, and of
            which nothing has come, is passed over.

    Raises:
        KdsearchError: a base that needs other images, or is asked for in a folder that was begun without any; more
            versions than memory holds.
    """
    asked = describe_asked(study.base)
    kept = read_base(folder)
    if kept is None and is_begun(folder):
        if asked not in (AUTO, "None"):
            raise KdsearchError(
                f"base: {folder} was begun without a base view, before there were any, and goes on without; take "
                f"another folder with {option('out', '...')}, or base=None"
            )
        return BaseView(
            None, "None", "base: none, as this folder was begun", before=True, fused=False, answers_looked_up=False
        )
    if kept is not None and (kept.asked, kept.found_on) == (asked, found_on):
        own = as_base(study.base) if kept.policy is None and asked not in (AUTO, "None") else None
        found = BaseView(
            as_base(kept.policy) or own,
            asked,
            kept.said,
            kept.policy,
            found_on,
            fused=kept.fused,
            answers_looked_up=kept.answers_looked_up,
            loss_rise=kept.loss_rise,
        )
    else:
        kept, found = None, replace(_ask(study, asked, teacher, task, device), found_on=found_on)
    if found.base is None:
        return found
    _check_base(found.base, channels)
    if study.base_versions:
        check_room(found.base, study.base_versions, len(study.train), SHARE)
    if kept is not None:
        return found
    spec = found.base.freeze() if isinstance(found.base, Policy) else None
    base = as_base(spec) or found.base  # of the numbers that are written, to the last digit
    return replace(found, base=base, spec=spec, loss_rise=_rise(base, study, teacher, task, device))


def keep_base(folder: Path, view: BaseView, *, fused: bool, answers_looked_up: bool | None) -> None:
    """Write what a folder is begun with; one that was begun before there were base views stays as it is."""
    if not view.before:
        write_json(
            folder / BASE,
            {
                "asked": view.asked,
                "found_on": view.found_on,
                "policy": view.spec and view.spec.model_dump(mode="json"),
                "said": view.said,
                "fused": fused,
                "answers_looked_up": answers_looked_up,
                "loss_rise": view.loss_rise,
            },
        )


def describe_asked(given: Any) -> str:
    """What a study asks for as its base, in words that tell it from others."""
    if given is None or (isinstance(given, str) and (given == AUTO or given in NAMED)):
        return str(given)
    return describe_base(as_base(given, known=(AUTO, *NAMED)))


def _ask(study: Study, asked: str, teacher: Teacher, task: Task, device: str) -> BaseView:
    validation = study.search_validation
    if asked == AUTO:
        if augments_itself(study.train, list(range(min(LOOKED_AT, len(study.train))))):
            return BaseView(None, asked, "base: none (train augments its items by itself)")
        found = find_tolerance(teacher, validation, task, device=device, seed=study.seed)
        return BaseView(found.policy, asked, found.describe(), advice=found.advise())
    base = as_base(study.base)
    if base is None:
        return BARE
    if asked in NAMED:
        fill = cheaper_fill(teacher, validation, task, NAMED[asked], device=device, seed=study.seed)
        return BaseView(as_base(asked, fill=fill), asked, f"base: {asked}, filled by {fill}")
    if isinstance(base, FixedTransform):
        return BaseView(base, asked, "base: a transform, which the files of policies do not keep")
    return BaseView(base, asked, f"base: a policy ({', '.join(base.operations)}), filled by {base.fill}")


def _check_base(base: Base, channels: int) -> None:
    if isinstance(base, Policy):
        rates = zip(base.operations, base.probability.tolist(), strict=True)
        odd = [name for name, rate in rates if rate > 0 and not OPERATIONS[name].suits(channels)]
        if odd:
            needed = OPERATIONS[odd[0]].channels
            raise KdsearchError(
                f"base: {', '.join(odd)} needs images of {needed} channels, and these have {channels}; allowed: "
                "operations with a meaning for them"
            )


@torch.no_grad()
def _rise(base: Base, study: Study, teacher: Teacher, task: Task, device: str) -> float | None:
    """What a base view costs the teacher by itself, in nats, on some training images: a part of the floor."""
    batch, random = first_batch(study.train, LOOKED_AT, device), generator(study.seed, "base rise")
    drawn = [None, *(BaseDraw(base, base.draw(len(batch), random)) for _ in range(DRAWS))]
    losses = []
    for draw in drawn:
        try:
            view = view_base(batch, draw)
        except KdsearchError as error:
            raise KdsearchError(f"base: {error}") from error.__cause__
        answers = [task.check(teacher(part), "teacher") for part in view.images.split(AT_ONCE)]
        losses.append(task.supervised(Outputs.join(answers), task.follow(batch.target, view.matrix)).mean().item())
    rise = math.fsum(losses[1:]) / DRAWS - losses[0]
    return rise if math.isfinite(rise) else None
