"""The loop over trials: suggest numbers, run, report each epoch, prune, tell."""

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from kdsearch.core.errors import Diverged, KdsearchError, exception_text, is_out_of_memory, unknown_name
from kdsearch.core.interrupts import hold_signals
from kdsearch.core.maths import derive_seed, trial_seed
from kdsearch.core.terminal import option
from kdsearch.distill.records import EpochRecord
from kdsearch.study.hpo.storage import NAME, open_storage
from kdsearch.study.space import WHOLE, SearchSpace, Settings

STARTUP = 3  # random trials before the sampler models anything, and before anything is pruned
FAILURES = 3  # in a row end the search
INTERRUPTED = "interrupted"  # the fail_reason of a trial that is retried
FAIL = TrialState.FAIL.name
STORAGE_ERRORS = (optuna.exceptions.StorageInternalError, SQLAlchemyError)
DONE = (TrialState.COMPLETE, TrialState.PRUNED)

SAMPLERS: Mapping[str, Callable[[int], optuna.samplers.BaseSampler]] = {
    "tpe": lambda seed: optuna.samplers.TPESampler(n_startup_trials=STARTUP, multivariate=True, seed=seed),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
}
PRUNERS: Mapping[str, Callable[[int], optuna.pruners.BasePruner]] = {
    "median": lambda epochs: optuna.pruners.MedianPruner(n_startup_trials=STARTUP, n_warmup_steps=epochs // 2),
    "none": lambda epochs: optuna.pruners.NopPruner(),
}


class Pruned(Exception):
    """The pruner has seen enough of a trial."""


@dataclass(frozen=True)
class TrialEvent:
    """A trial that ended."""

    number: int
    state: str
    value: float | None = None
    reason: str | None = None
    again: bool = False  # it failed, and is tried again
    ends: bool = False  # it failed, and the search ends by it


@dataclass(frozen=True)
class Trial:
    """What a trial is to be run with."""

    number: int
    settings: Settings
    seed: int
    retries: tuple[int, ...]  # numbers of the interrupted trials that it goes on with, the last one first


Run = Callable[[Trial, Callable[[EpochRecord], None]], float]  # trial, report -> value


def check_names(sampler: str, pruner: str) -> None:
    """Raises KdsearchError for a sampler or pruner that is not in its table."""
    for kind, name, table in (("sampler", sampler, SAMPLERS), ("pruner", pruner, PRUNERS)):
        if not isinstance(name, str) or name not in table:
            raise KdsearchError(unknown_name(kind, name, table))


def open_search(
    url: str,
    facts: Mapping[str, Any],
    fixed: Mapping[str, Any],
    *,
    sampler: str,
    pruner: str,
    epochs: int,
    folder: Path | None = None,
) -> optuna.Study:
    """Open a search or begin one; trials that a process left when it died or was interrupted wait to be retried.

    Args:
        facts: Stored with a new search, and updated: what `studies` says of it.
        fixed: What fixes a trial; a stored search with another one is refused.
        folder: The run folder, where the storage lies elsewhere: two of them share none.

    Raises:
        KdsearchError: the stored search is of another study, with the differences, of another folder, or of a kdsearch
            that fixed its trials by other things.
    """
    storage = open_storage(url)
    study = optuna.create_study(storage=storage, study_name=NAME, direction="maximize", load_if_exists=True)
    fixed = json.loads(json.dumps(fixed))
    stored = study.user_attrs.get("fixed")
    if stored is not None and json.loads(stored) != fixed:
        _check_kept_alike(url, study, json.loads(stored), fixed)
        raise KdsearchError(
            f"{url} holds a search of another study; it differs in:\n"
            + "\n".join(f"  {line}" for line in _differences(json.loads(stored), fixed))
            + f"\ntake another folder with {option('out', '...')}, or go back"
        )
    if folder is not None:
        _claim(study, url, folder.absolute())
    for key, value in {**facts, "sampler": sampler, "pruner": pruner, "fixed": fixed}.items():
        study.set_user_attr(key, json.dumps(value))
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        storage.set_trial_user_attr(trial._trial_id, "fail_reason", INTERRUPTED)
        storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    _retry(study)
    study.pruner = PRUNERS[pruner](epochs)
    return study


def _check_kept_alike(url: str, study: optuna.Study, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raises KdsearchError where a search was fixed by things of other names: by another kdsearch, not another study.

    Which numbers of a policy are named depends on the space, hence on the study.
    """
    before, now = ({key for key in side if not key.startswith(("policy.", "objective."))} for side in (old, new))
    if before != now:
        version = json.loads(study.user_attrs.get("kdsearch", "null")) or "of an unknown version"
        raise KdsearchError(
            f"{url} holds a search of a kdsearch {version} that fixed its trials by other things "
            f"({', '.join(sorted(before ^ now))}), so that it can be read but not gone on with; take another folder "
            f"with {option('out', '...')}"
        )


def _claim(study: optuna.Study, url: str, folder: Path) -> None:
    """Note whose search a storage holds; one whose folder is still there is not taken over."""
    owner = json.loads(study.user_attrs.get("folder", "null"))
    if owner and (Path(owner) / "study.json").exists() and not (folder.exists() and folder.samefile(owner)):
        raise KdsearchError(
            f"{url} holds the search of the folder {owner}; go on there with {option('out', owner)}, or take another "
            "storage"
        )
    study.set_user_attr("folder", json.dumps(str(folder)))


def run_trials(
    study: optuna.Study,
    space: SearchSpace,
    run: Run,
    *,
    target: int,
    seed: int,
    paired: bool,
    sampler: str,
    on_trial: Callable[[TrialEvent], None],
) -> None:
    """Run trials until `target` of them are complete or pruned; the first one at the space's defaults.

    The sampler is made anew for each trial from the seed and the number of trials before it, retries not counted, so
    that a resumed search suggests what an uninterrupted one would.

    Where they are paired all trials have the seed of the first one, which is that of the references too: the student's
    start, the batches and, with as many operations drawn, the draws are the same, and differences are the policy's.

    A trial that fails by itself is tried once more, at once; failing again it is failed, and the search goes on. A
    failure from outside it (of files, storage, memory, readers, data) ends the search, and so does any while no trial
    has finished, or the third failed trial in a row; the next search then tries that trial again. Only failures of
    files and of the storage are tried again without end.

    Raises:
        Exception: of a trial, where it ends the search.
        KeyboardInterrupt: the trial is retried by the next search.
    """
    failures = 0
    while len(study.get_trials(deepcopy=False, states=DONE)) < target:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            with hold_signals():
                trial = _next_trial(study, space, seed, sampler)
            own_seed = trial_seed(seed, 0 if paired else _index(trial))
            event, error = _run_one(trial, space, run, own_seed, failures)
        on_trial(event)
        if event.ends and error is not None:
            raise error
        if event.state != FAIL:
            failures = 0
        elif not event.again:
            failures += 1


def _next_trial(study: optuna.Study, space: SearchSpace, seed: int, sampler: str) -> optuna.Trial:
    """The first trial that waits, or the next in the order."""
    if not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        index = len({_index(trial) for trial in study.get_trials(deepcopy=False)})
        origin = "sampled" if index else "default"
        fixed = {} if index else {name: _start(space, name) for name in space.ranges}
        study.enqueue_trial(fixed, user_attrs={"index": index, "origin": origin})
    next_one = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))[0]
    study.sampler = SAMPLERS[sampler](derive_seed(seed, "sampler", _index(next_one)) % 2**32)
    return study.ask()


def _run_one(
    trial: optuna.Trial, space: SearchSpace, run: Run, seed: int, failures: int
) -> tuple[TrialEvent, Exception | None]:
    """Run a trial and store what came of it; the event says whether a failure ends the search.

    Args:
        failures: Trials that failed in a row before.
    """

    def report(record: EpochRecord) -> None:
        with hold_signals():
            trial.report(record.value, record.epoch)
            enough = record.progress < 1 and trial.should_prune()  # a trained one has nothing left to save
        if enough:
            raise Pruned

    event = TrialEvent(trial.number, "COMPLETE")
    failure: Exception | None = None
    try:
        with hold_signals():
            settings = _suggest(trial, space)
            trial.set_user_attr("settings", settings.numbers())
            trial.set_user_attr("seed", seed)
        value = run(Trial(trial.number, settings, seed, _retries(trial.study, trial.number)), report)
        event = replace(event, value=value)
    except Pruned:
        event = replace(event, state="PRUNED")
    except Diverged as error:
        event = replace(event, state="PRUNED", reason=f"nan: {error}")
    except KeyboardInterrupt:
        with suppress(*STORAGE_ERRORS), hold_signals():  # untold, it is left running, and retried as well
            _tell(trial, replace(event, state=FAIL, reason=INTERRUPTED))
        raise
    except Exception as error:
        failure = error
    if failure is None:
        with hold_signals():
            _tell(trial, event)
        return event, None
    event = replace(event, state=FAIL, ends=True)
    with suppress(*STORAGE_ERRORS), hold_signals():  # the failure is what is said; untold, the trial is retried
        event = _failed(trial, failure, failures)
        _tell(trial, event)
        if event.again and not event.ends:
            _retry(trial.study)
    return event, failure


def _failed(trial: optuna.Trial, error: Exception, failures: int) -> TrialEvent:
    """What a failure makes of a trial and of the search, by the rule of `run_trials`."""
    cause = error.__cause__ or (None if not isinstance(error, KdsearchError) else error.__context__)
    machine = isinstance(error, STORAGE_ERRORS) or any(isinstance(e, OSError) for e in (error, cause))
    outside = machine or is_out_of_memory(error) or (isinstance(error, KdsearchError) and error.__cause__ is None)
    before = int(trial.user_attrs.get("failures", 0))
    if not machine:
        trial.set_user_attr("failures", before + 1)
    started = bool(trial.study.get_trials(deepcopy=False, states=DONE))
    last = not started or (before and failures + 1 >= FAILURES)
    words = exception_text(error).partition("\n")[0]
    reason = words if isinstance(error, KdsearchError) else f"{type(error).__name__}: {words}"
    reason = "out of memory" if is_out_of_memory(error) else reason[:300]
    again, ends = machine or last or not before, machine or last or (outside and not before)
    return TrialEvent(trial.number, FAIL, reason=reason, again=bool(again), ends=bool(ends))


@contextmanager
def translate_storage_errors(url: str) -> Iterator[None]:
    """Around what reads or writes the storage: that it cannot is one sentence.

    Raises:
        KdsearchError: in place of the storage's own error.
    """
    try:
        yield
    except STORAGE_ERRORS as error:
        cause = str(error.__cause__ or error).partition("\n")[0]
        raise KdsearchError(f"cannot use the storage {url}: {cause}") from error


def _tell(trial: optuna.Trial, event: TrialEvent) -> None:
    """Store how a trial ended."""
    if event.reason:
        trial.set_user_attr("fail_reason", event.reason)
    if event.again:
        trial.set_user_attr("again", True)
    if event.state != FAIL:
        # NaN would be a failure that the sampler never learns from; an unmet constraint is remembered.
        trial.set_constraint("finite", float(bool(event.reason)))
    trial.study.tell(trial, event.value, TrialState[event.state])


def _index(trial: optuna.Trial | optuna.trial.FrozenTrial) -> int:
    """The place of a trial in the order: how many came before it, retries not counted."""
    return int(trial.user_attrs.get("index", trial.number))


def _retry(study: optuna.Study) -> None:
    """Let each trial that is to be tried again and has no retry wait for one, with its numbers and its place.

    Numbers that it had not been told yet come from the sampler of its place, which gives them again.
    """
    trials = study.get_trials(deepcopy=False)
    retried = {trial.user_attrs.get("retry_of") for trial in trials}
    for trial in trials:
        attributes = trial.user_attrs
        again = attributes.get("fail_reason") == INTERRUPTED or attributes.get("again")
        if again and trial.state == TrialState.FAIL and trial.number not in retried:
            known = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
            facts = {"index": _index(trial), "origin": attributes.get("origin", "sampled")}
            failures = {"failures": attributes["failures"]} if "failures" in attributes else {}
            study.enqueue_trial(known, user_attrs={**facts, **failures, "retry_of": trial.number})


def _retries(study: optuna.Study, number: int) -> tuple[int, ...]:
    """The interrupted trials that a trial goes on with, the last one first."""
    before = {trial.number: trial.user_attrs.get("retry_of") for trial in study.get_trials(deepcopy=False)}
    found: list[int] = []
    earlier = before.get(number)
    while earlier is not None:
        found.append(earlier)
        earlier = before.get(earlier)
    return tuple(found)


def _suggest(trial: optuna.Trial, space: SearchSpace) -> Settings:
    chosen: dict[str, float] = {}
    for name, r in space.ranges.items():
        if name in WHOLE:
            chosen[name] = trial.suggest_int(name, int(r.low), int(r.high), log=r.log)
        else:
            chosen[name] = trial.suggest_float(name, r.low, r.high, log=r.log)
    return space.settings(chosen)


def _start(space: SearchSpace, name: str) -> float:
    default = space.ranges[name].default
    return int(default) if name in WHOLE else default


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    found = []
    for key in sorted({*old, *new}):
        if old.get(key) != new.get(key):
            before, now = (json.dumps(side.get(key))[:80] for side in (old, new))
            found.append(f"{key}: stored {before}, now {now}")
    return found
