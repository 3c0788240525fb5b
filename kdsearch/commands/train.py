"""A student trained with a frozen policy as policies are confirmed, for as many epochs as asked: `kd.train`."""

import importlib.metadata
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdsearch.analysis.scale import Scale
from kdsearch.augment.bases import as_base, as_held
from kdsearch.augment.fixed import FixedTransform
from kdsearch.augment.operations import TABLE as OPERATIONS
from kdsearch.augment.policy import Policy
from kdsearch.augment.presets import FIXED
from kdsearch.augment.spec import PolicySpec
from kdsearch.commands.check import adapt_study, run_preflight
from kdsearch.commands.console import policy_path
from kdsearch.commands.display import Display, format_duration
from kdsearch.core.errors import Diverged, KdsearchError, translate_machine_errors, unknown_name
from kdsearch.core.files import absolute_path, as_path, to_json_values, write_json
from kdsearch.core.interrupts import Interrupts
from kdsearch.core.locks import lock_folder
from kdsearch.core.maths import own_generators, usual_modes
from kdsearch.core.terminal import number_of, option
from kdsearch.distill.records import EpochRecord
from kdsearch.networks.teachers import Recipe
from kdsearch.probe.tolerance import FILLS
from kdsearch.study.base_view import AUTO, keep_base
from kdsearch.study.facts import student_identity
from kdsearch.study.fingerprint import describe_base, describe_transform, policy_numbers
from kdsearch.study.preflight import Findings
from kdsearch.study.ready import Ready
from kdsearch.study.run import CHECKPOINT, run_trial
from kdsearch.study.run_folder import TRAINING, ResultFile, StudyFile, read_result, read_study, read_training
from kdsearch.study.study import Study, load_study
from kdsearch.tasks.metrics import metric_name

Frozen = Policy | FixedTransform | None  # None: a second view identical to the first
STUDENT = "student.safetensors"
WRITTEN = ("result.json", "policy.json", STUDENT, "epochs.jsonl", "regions.json", "samples.npz", CHECKPOINT)
DEPTH = 3  # folders over a policy file, in which its search is looked for: RUN/trials/0000/policy.json


@dataclass(frozen=True)
class Training:
    """What a student came to."""

    folder: Path
    value: float  # of the study's metric on search-validation, after the last epoch
    value_se: float  # standard error
    student_path: Path


@usual_modes()
def train(
    study: Study | str | Path,
    policy: PolicySpec | Path | str | Policy | FixedTransform | Callable[[Any], Any] | None = "rand_augment",
    *,
    epochs: int | None = None,
    out: Path | str | None = None,
    seed: int | None = None,
    device: str | None = None,
    quiet: bool = False,
) -> Training:
    """Train a student with a frozen policy, as its search confirmed it, and keep it; a second call goes on.

    The student, its losses and its views are the study's; the base view is that of the policy's file where the study's
    is "auto". Written are `student.safetensors`, `policy.json`,
    `epochs.jsonl`, `regions.json` and `result.json`, as of a trial. A folder holds one student: with other epochs, a
    changed study or another policy, seed or device it is refused. Where it is finished and its student is there,
    nothing is trained.

    Args:
        study: A `Study`, the name of a shipped one, or the path of a study file.
        policy: A frozen policy, the path of a policy file or of a run folder for its best policy; or in its place any
            transform of one image (`kd.FixedTransform` says of what kind); None for images as they are; or the name of
            a fixed policy over the operations of the study's space, "rand_augment" or "trivial".
        epochs: By default the study's. The learning rate falls over all of them, so that more are another training.
        out: The folder; `./runs/<study name>/train` by default.
        seed: Of the student's start, the batches and the draws; by default the study's.
        device: In place of the study's.

    Raises:
        KdsearchError: bad input, before anything is trained; a loss that is not finite.
        KeyboardInterrupt: the same call goes on from the last epoch.
    """
    if not isinstance(study, Study):
        study = load_study(str(study))[0]
    study = adapt_study(study, seed=seed, device=device, epochs=epochs)
    frozen, run, spec = _freeze(policy)
    told: list[str] = []
    if spec is not None:
        study, told = _take_base(study, spec)
    folder = as_path(out or Path("runs") / study.name / "train")
    _check_folder(folder)
    with (
        Display(metric_name(study.metric), quiet=quiet) as display,
        Interrupts() as interrupts,
        own_generators(),
        translate_machine_errors(f"the training in {folder}"),
        interrupts.prefer_interruption(),
        lock_folder(folder, "training"),
    ):
        try:
            return _train(study, frozen, run, folder, told, display, interrupts)
        except KeyboardInterrupt:
            display.say("interrupted; the same command goes on")
            raise
        except Diverged as error:
            cure = "a smaller learning rate of the study's optimizer, or another seed"
            raise KdsearchError(f"the training in {folder}: {error}; allowed: {cure}") from None


def _train(
    study: Study,
    policy: Frozen | str,
    run: Path | None,
    folder: Path,
    told: Sequence[str],
    display: Display,
    interrupts: Interrupts,
) -> Training:
    say, epochs = display.say, study.budget.epochs
    teacher = folder
    if isinstance(study.teacher, Recipe):
        teacher = _teacher_folder(study, folder, run)
    checked = run_preflight(study, teacher, display, folder)
    described = policy if isinstance(policy, str) else _describe(policy)
    if isinstance(policy, str):
        policy = FIXED[policy](checked.ready.space.limits, fill=checked.ready.space.fill)
    result = _begin(folder, checked, policy)
    if result and not (folder / STUDENT).exists():
        say(f"{folder} is finished, but its {STUDENT} is gone: it is trained again")
        result = None
    if result is None:
        say(checked.ready.base_view.said)
        for warning in (*told, *checked.warnings, *_changes(checked.ready, policy, run)):
            say(f"warning: {warning}")
        say(f"study {study.name}: {number_of(epochs, 'epoch')} of {number_of(study.budget.steps, 'step')} with "
            f"{described}: about {format_duration(checked.seconds_per_reference)}")  # fmt: skip
        display.expect(checked.seconds_per_reference)
        seconds: list[float] = []

        def on_record(record: EpochRecord) -> None:
            interrupts.check()
            seconds.append(record.seconds)
            display.expect((epochs - record.epoch) * sum(seconds) / len(seconds))
            display.epoch("train", record, epochs)

        def on_look(done: int, total: int) -> None:
            interrupts.check()
            display.look("train", done, total)

        versions = {"study": study.name, "kdsearch": importlib.metadata.version("kdsearch")}
        run_trial(
            checked.ready,
            folder,
            policy=policy,
            seed=study.seed,
            provenance={**versions, "run": "train", "seed": study.seed, "epochs": epochs},
            checkpoint=folder / CHECKPOINT,
            on_record=on_record,
            on_look=on_look,
        )
        result = read_result(folder, folder) or ResultFile()
    else:
        say(f"{folder} is finished; {option('out', '...')} trains another student")
    (folder / CHECKPOINT).unlink(missing_ok=True)  # also that of a training that was killed just before this line
    return _finish(study, folder, result, display)


def _finish(study: Study, folder: Path, result: ResultFile, display: Display) -> Training:
    """The last words."""
    value, error = (math.nan if number is None else number for number in (result.value, result.value_se))
    student, scale, say = folder / STUDENT, Scale(metric_name(study.metric)), display.say
    say("")
    images = number_of(len(study.search_validation), "image")
    say(f"{scale.name} {scale.text(value, error)} on search-validation: {images}, ± standard error")
    for warning in result.warnings:
        say(f"warning: {warning}")
    say(f"student      {student}   kdsearch.networks.load_weights(study.student(), {str(student)!r})")
    beside_search = folder.name == "train" and (folder.parent / "study.json").exists()
    reader = "kd.evaluate(student, study.test)"
    if beside_search:
        reader = f"kdsearch evaluate {folder.parent} --study STUDY"
    say(f"the test split was not read; `{reader}` reads it")
    return Training(folder, value, error, student)


def _take_base(study: Study, spec: PolicySpec) -> tuple[Study, list[str]]:
    """A study with the base view that a policy was learned over, unless it names one; and what is to be said of that.

    A policy without one was learned over images as they are, as all were before there were base views. But no policy
    keeps a base view that is a transform, nor one that the second view is not made of: there it is the study's.
    """
    kept = study.views.second_from == "base"
    if isinstance(study.base, str) and study.base == AUTO:
        return (replace(study, base=spec.base) if kept else study), []
    own, learned = as_base(study.base, fill=spec.base.fill if spec.base else FILLS[0]), as_base(spec.base)
    lost = isinstance(own, FixedTransform) and learned is None
    if not kept or lost or describe_base(own) == describe_base(learned):
        return study, []
    taken, other = (base.freeze().in_short() if isinstance(base, Policy) else "a transform" if base else "none"
                    for base in (own, learned))  # fmt: skip
    return study, [f"base: the study's is taken ({taken}), and the policy has another ({other})"]


def _freeze(policy: Any) -> tuple[Frozen | str, Path | None, PolicySpec | None]:
    """A policy held still, what stands in its place or its name; the run folder its file lies in; its numbers.

    Raises:
        KdsearchError: it is none; a file or run folder that is none.
    """
    run = None
    if isinstance(policy, str) and policy in FIXED:
        return policy, None, None
    if isinstance(policy, str) and "/" not in policy and "." not in policy and not os.path.exists(policy):
        known = unknown_name("policy", policy, FIXED)
        end = "" if known.endswith("?") else "."
        raise KdsearchError(
            f"{known}{end} Allowed too: the path of a policy file or run folder, and there is none here"
        )
    if isinstance(policy, Path | str):
        path = policy_path(as_path(policy))
        policy, run = PolicySpec.load(path), _run_folder(path)
    if policy is None:
        return None, None, None
    others = ("None for images as they are", *FIXED, "a run folder")
    return as_held(policy, "policy", others), run, policy if isinstance(policy, PolicySpec) else None


def _run_folder(path: Path) -> Path | None:
    """The run folder of a policy file."""
    return next((above for above in list(path.absolute().parents)[:DEPTH] if (above / "study.json").is_file()), None)


def _searched(run: Path | None) -> StudyFile | None:
    """What the search of a policy says of itself."""
    with suppress(KdsearchError):  # a study.json of something else
        return read_study(run) if run else None
    return None


def _teacher_folder(study: Study, folder: Path, run: Path | None) -> Path:
    """Where the weights of the study's recipe lie, in this folder, the policy's run or the study's; else this one."""
    searched = _searched(run)
    by_policy = [run] if run and searched and searched.study == study.name else []
    places = [folder, *by_policy, Path("runs") / study.name]
    return next((place for place in places if (place / "teacher.safetensors").is_file()), folder)


def _check_folder(folder: Path) -> None:
    """Raises KdsearchError where a folder holds something else than one training, or lies among the runs of a search.

    The weights of a teacher may lie there: a recipe reads them, and refuses those of another.
    """
    places = [Path(os.path.normpath(absolute_path(folder))), Path(os.path.realpath(folder))]
    runs = {place: run for place in places for run in reversed(place.parents) if os.path.isfile(run / "study.json")}
    astray = next((run for place, run in runs.items() if place != run / "train"), None)
    found = [name for name in ("study.json", *WRITTEN) if os.path.lexists(folder / name)]
    if found and not (folder / TRAINING).exists():
        what = f"holds the {found[0]} of something else"
    elif astray:
        what = f"lies in the run folder {astray}"
    else:
        return
    own = (astray or folder) / "train"
    if runs and not astray:  # the run's train, which holds something else
        run = absolute_path(folder).parent
        own = run.parent / f"{run.name}-train"
    raise KdsearchError(f"{folder} {what}; allowed: a folder of its own, {option('out', str(own))}")


def _begin(folder: Path, checked: Findings, policy: Frozen) -> ResultFile | None:
    """Note whose folder it is; what its student came to, where it is finished.

    Raises:
        KdsearchError: it holds a student of another training, or a half of one.
    """
    known = {**student_identity(checked), "device": checked.ready.device, "policy": _identity(policy)}
    identity = json.loads(json.dumps(to_json_values(known)))
    stored, result = read_training(folder), read_result(folder, folder)
    if stored and stored.identity != identity and (result or (folder / CHECKPOINT).exists()):
        differs = _differences(stored.identity, identity)
        raise KdsearchError(
            f"{folder} holds a student of another training, which differs in {', '.join(differs)}; take another folder "
            f"with {option('out', '...')}, or go back"
        )
    ready = checked.ready
    keep_base(folder, ready.base_view, fused=ready.teacher.is_fused, answers_looked_up=ready.tables.allowed)
    write_json(folder / TRAINING, {"identity": identity})
    return result


def _identity(policy: Frozen) -> Any:
    """What tells a policy from others, as plain values."""
    return policy_numbers(policy) if isinstance(policy, Policy) else policy and describe_transform(policy)


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The names of what differs, with numbers before and now."""
    found = []
    for key in sorted({*old, *new}):
        before, now = old.get(key), new.get(key)
        if before != now:
            numbers = all(isinstance(value, int | float) for value in (before, now))
            found.append(f"{key} ({before}, now {now})" if numbers else key)
    return found


def _changes(ready: Ready, policy: Frozen, run: Path | None) -> list[str]:
    """What the study no longer has of that in which the policy was searched."""
    found = []
    if isinstance(policy, Policy):
        rates = zip(policy.operations, policy.probability.tolist(), strict=True)
        idle = [name for name, rate in rates if rate > 0 and not OPERATIONS[name].suits(ready.channels)]
        if idle:
            found.append(f"{', '.join(idle)} of the policy {'needs' if len(idle) == 1 else 'need'} other images than "
                         f"these of {number_of(ready.channels, 'channel')}, and leave{'s' * (len(idle) == 1)} them as "
                         "they are")  # fmt: skip
    searched, now = _searched(run), list(ready.task.class_names)
    if searched and searched.classes and searched.classes != now:
        before, after = (", ".join(names[:3]) + ", ..." * (len(names) > 3) for names in (searched.classes, now))
        found.append(f"the policy was searched for other classes: {len(searched.classes)} ({before}), now {len(now)} "
                     f"({after})")  # fmt: skip
    return found


def _describe(policy: Frozen) -> str:
    if policy is None:
        return "images as they are"
    return "a fixed transform" if isinstance(policy, FixedTransform) else "the policy held still"
