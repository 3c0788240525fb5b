"""What the fields of a study may be: kinds, numbers, names of classes."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from os import PathLike
from typing import Any, get_args

from torch import nn
from torch.utils.data import Subset

from kdsearch.core.errors import KdsearchError, problems, unknown_name, user_call, wrong_integers
from kdsearch.data.items import Spawned
from kdsearch.distill.phase import Precision
from kdsearch.distill.views import Views
from kdsearch.losses.loss import Loss, Ramp
from kdsearch.losses.objectives import TABLE as OBJECTIVES
from kdsearch.losses.table import TABLE
from kdsearch.study.base_view import describe_asked
from kdsearch.study.space import SearchSpace
from kdsearch.study.study import Budget, Saw, Study
from kdsearch.tasks import Classification
from kdsearch.tasks.metrics import ACCURACY, metric_name

LONGEST_NAME = 100  # letters
MOST_CLASSES = 100_000
MOST: Mapping[str, int] = {
    **dict.fromkeys(("trials", "epochs"), 10**6),
    **dict.fromkeys(("steps", "batch", "policy_batch", "parts", "look_images"), 10**7),
    **dict.fromkeys(("confirmation", "look_bins", "look_operations", "base_versions"), 10**4),
}
MOST_WHOLE = 2**63  # of either sign


def check_kinds(study: Study) -> None:
    """Is every field of a study of a kind that it can be? Before any of them is used.

    Raises:
        KdsearchError: with all that are not.
    """

    def whole(value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool)

    def number(value: object) -> bool:
        return isinstance(value, float) or (whole(value) and -MOST_WHOLE <= value < MOST_WHOLE)  # type: ignore[operator]

    def weights(value: object) -> bool:
        return isinstance(value, Mapping) and all(isinstance(k, str) and number(v) for k, v in value.items())

    kinds: list[tuple[str, Callable[[Any], bool], str]] = [
        ("name", lambda v: isinstance(v, str), "text"),
        ("space", lambda v: isinstance(v, str | PathLike), "the name of a search space, or the path of a TOML file"),
        ("budget", lambda v: isinstance(v, Budget), "a kdsearch.Budget"),
        ("label_weight", number, "a number"),
        ("views", lambda v: isinstance(v, Views), "a kdsearch.Views, such as kdsearch.Views.named('tst')"),
        ("compiled", lambda v: isinstance(v, bool), "True or False"),
        ("base_versions", lambda v: v is None or whole(v), "a whole number, or None"),
        ("bare_reference", lambda v: isinstance(v, bool), "True or False"),
        ("paired", lambda v: isinstance(v, bool), "True or False"),
        ("teacher_saw", lambda v: isinstance(v, str), "text, one of " + ", ".join(get_args(Saw))),
        ("precision", lambda v: isinstance(v, str), "text, one of " + ", ".join(get_args(Precision))),
        ("device", lambda v: isinstance(v, str), "text, such as 'cuda'"),
        ("readers", whole, "a whole number"),
        ("objective", weights, "weights of terms by name"),
        ("floor", lambda v: v is None or number(v), "a number of nats, or None"),
        ("seed", lambda v: whole(v) and -MOST_WHOLE <= v < MOST_WHOLE, "a whole number of 64 bits"),
    ]
    found = []
    for name, fits, allowed in kinds:
        value = getattr(study, name)
        if not fits(value):
            found.append(f"{name} is {_described(value)}; allowed: {allowed}")
    if isinstance(study.name, str) and (wrong := _wrong_name(study.name)):
        found.append(wrong)
    if found:
        raise problems(f"study {study.name}" if isinstance(study.name, str) else "study", found)


def _described(value: object) -> str:
    """A value in words: numbers and short texts as they are, anything else by its type."""
    if value is None or isinstance(value, bool | float) or (isinstance(value, int | str) and len(ascii(value)) < 30):
        return ascii(value)
    if isinstance(value, nn.Module):
        return f"a network ({type(value).__name__})"
    return f"of type {value.__name__ if isinstance(value, type) else type(value).__name__}"


def _wrong_name(name: str) -> str | None:
    """A study's name becomes that of a folder."""
    if not name.strip() or len(name) > LONGEST_NAME or len(name.encode(errors="replace")) > 2 * LONGEST_NAME:
        return f"name {name[:20]!a} has {len(name)} letters; allowed: 1 to {LONGEST_NAME}"
    if name in (".", "..") or set(name) & {"/", "\\"} or not name.isprintable():
        return f"name {name!a}; allowed: what can be the name of a folder, without / and control characters"
    return None


def study_task(study: Study) -> Classification:
    """The task of a study: its classes, by the names that its data sets have where it only says how many.

    Raises:
        KdsearchError: classes that are no number and no names, two of one name, or others than the data sets'.
    """
    classes = study.classes
    known = {name: names_of(name, getattr(study, name)) for name in ("train", "search_validation", "confirm")}
    own = {name: names for name, names in known.items() if names is not None}
    for split, other in own.items():
        first, one = next(iter(own.items()))
        if other != one:
            differ = ", ".join(sorted({*one} ^ {*other})[:8]) or "the same names in another order"
            raise KdsearchError(
                f"classes: {first} has {len(one)} and {split} {len(other)}, so that their labels mean different "
                f"things (not in both: {differ}); allowed: the same classes in both, such as the same folders"
            )
    whose, names = next(iter(own.items()), ("", ()))
    if isinstance(classes, int) and not isinstance(classes, bool):
        if not 2 <= classes <= MOST_CLASSES:
            raise KdsearchError(f"classes: {ascii(classes)[:30]}; allowed: 2 to {MOST_CLASSES}, or their names")
        if names and len(names) != classes:
            raise KdsearchError(f"classes: {classes}, but {whose} has {len(names)}: {', '.join(names[:8])}")
        return Classification.of(_numbered(names) if names else classes)
    if isinstance(classes, str | bytes) or not isinstance(classes, Sequence):
        raise KdsearchError(f"classes is {_described(classes)}; allowed: how many, or a list of their names")
    given = list(classes)
    if found := _wrong_classes(given):
        raise problems("classes", found)
    if names and {*given} & {*names}:
        moved = [f"{i} is '{a}' there, not '{b}'" for i, (a, b) in enumerate(zip(names, given, strict=False)) if a != b]
        if moved or len(names) != len(given):
            raise KdsearchError(
                f"classes: they are not those of {whose} in its order, {', '.join(names[:8])}"
                f"{f' (label {moved[0]})' if moved else f' ({len(given)}, there {len(names)})'}"
            )
    elif names and len(names) != len(given):
        raise KdsearchError(f"classes: {len(given)} names, but {whose} has {len(names)}: {', '.join(names[:8])}")
    return Classification.of(given)


def names_of(split: str, data: Any) -> tuple[str, ...] | None:
    """The names of a data set's classes, where it tells them: as `class_names`, or as torchvision's do as `classes`."""
    with user_call(f"{split}: its class names"):
        while isinstance(data, Subset | Spawned):
            data = data.dataset if isinstance(data, Subset) else data.items
        for attribute in ("class_names", "classes"):
            found = getattr(data, attribute, None)
            if isinstance(found, list | tuple) and found:
                names = [", ".join(name) if isinstance(name, tuple) else name for name in found]  # ImageNet's synonyms
                if all(isinstance(name, str) for name in names):
                    return tuple(names)
    return None


def _numbered(names: Sequence[str]) -> list[str]:
    """Names of which no two are alike: those that are there twice, as ImageNet's cranes, with their number."""
    return [name if names.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(names)]


def _wrong_classes(names: list[Any]) -> list[str]:
    if not 2 <= len(names) <= MOST_CLASSES:
        return [f"{len(names)}; allowed: 2 to {MOST_CLASSES}"]
    found = []
    first: dict[str, int] = {}
    for i, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            found.append(f"the name of class {i} is {ascii(name)[:30]}; allowed: text")
        elif name in first:
            found.append(f"classes {first[name]} and {i} are both called '{name}'; allowed: names that tell them apart")
        elif "\0" in name or name != name.encode(errors="replace").decode():
            found.append(f"the name of class {i} is {ascii(name)[:60]}, which cannot be written; allowed: unicode text")
        else:
            first[name] = i
    return found


def wrong_numbers(study: Study, space: SearchSpace) -> list[str]:
    """What is wrong with budget, losses, weights and named choices."""
    budget, found = study.budget, []
    least = {"trials": 1, "epochs": 1, "steps": 1, "batch": 2, "confirmation": 0, "parts": 1}
    optional = {"policy_batch": 2, "look_images": 1, "look_bins": 1, "look_operations": 0}
    least |= {name: lowest for name, lowest in optional.items() if getattr(budget, name) is not None}
    wrong = wrong_integers(asdict(budget), least, MOST)
    found += [f"budget.{text}" for text in wrong]
    if not wrong and budget.parts > max(1, budget.batch // 2):
        found.append(f"budget.parts is {budget.parts}; allowed: 1 to {budget.batch // 2}, at least 2 images in each")
    try:
        describe_asked(study.base)
    except KdsearchError as error:
        found.append(str(error))
    if study.base_versions is not None:
        found += wrong_integers({"base_versions": study.base_versions}, {"base_versions": 1}, MOST)
        if study.base is None:
            found.append(f"base_versions is {study.base_versions}; allowed: None, as the base is None")
    for name, weight in study.objective.items():
        if name not in OBJECTIVES:
            found.append(f"objective: {unknown_name('term', name, OBJECTIVES)}")
        elif not 0 <= weight < math.inf:
            found.append(f"objective: {name} is {weight:g}; allowed: 0 or more, the sign is in the term")
    for loss in study.losses:
        if not isinstance(loss, Loss):
            made = [*TABLE, *TABLE.values(), *(kind.make for kind in TABLE.values())]
            named = any(loss is one or (isinstance(loss, str) and loss == one) for one in made)
            cure = "call it, as kdsearch.losses.kd()" if named else "one of kdsearch.losses, or a Loss"
            found.append(f"loss is {type(loss).__name__}; allowed: {cure}")
        elif not isinstance(loss.name, str):
            found.append(f"loss is called {ascii(loss.name)[:30]}; allowed: text")
        else:
            ends = (loss.weight.first, loss.weight.last) if isinstance(loss.weight, Ramp) else (loss.weight,)
            if not all(isinstance(w, int | float) and 0 <= w < math.inf for w in ends):
                found.append(
                    f"loss {loss.name}: its weight is {ascii(loss.weight)[:60]}; allowed: 0 or more, or a Ramp"
                )
    if not study.losses:
        found.append("loss is an empty list; allowed: one or several of kdsearch.losses")
    names = [loss.name for loss in study.losses if isinstance(loss, Loss) and isinstance(loss.name, str)]
    found += [
        f"loss: {name} is there twice; allowed: once, with a weight"
        for name in dict.fromkeys(names)
        if names.count(name) > 1
    ]
    if not 0 <= study.readers <= 1024:
        found.append(f"readers is {study.readers}; allowed: 0 or more" + (", up to 1024" if study.readers > 0 else ""))
    if study.precision not in get_args(Precision):
        found.append(unknown_name("precision", study.precision, get_args(Precision)))
    if study.compiled and any(loss.pairs for loss in study.losses if isinstance(loss, Loss)):
        found.append("compiled: losses on features tap a network while it runs; allowed: compiled=False with them")
    if study.teacher_saw not in get_args(Saw):
        found.append(unknown_name("teacher_saw", study.teacher_saw, get_args(Saw)))
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


def doubtful_wiring(study: Study, space: SearchSpace) -> list[str]:
    """What is allowed and seldom meant."""
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
