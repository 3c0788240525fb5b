"""The loop over trials: suggest numbers, run, report each epoch, prune, tell."""

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import optuna
import torch
from optuna.trial import TrialState

from kdsearch.errors import Diverged, KdsearchError, unknown
from kdsearch.hpo.storage import NAME, open_storage
from kdsearch.maths import derive_seed
from kdsearch.records import EpochRecord
from kdsearch.space import WHOLE, SearchSpace, Settings

STARTUP = 3  # random trials before the sampler models anything, and before anything is pruned
FAILURES = 3  # in a row end the search
INTERRUPTED = "interrupted"  # the fail_reason of a trial that is retried
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
    value: float | None
    reason: str | None = None


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
        if name not in table:
            raise KdsearchError(unknown(kind, name, table))


def open_search(
    url: str, facts: Mapping[str, Any], fixed: Mapping[str, Any], *, sampler: str, pruner: str, epochs: int
) -> optuna.Study:
    """Open a search or begin one; trials that a process left when it died or was interrupted wait to be retried.

    Args:
        facts: Stored with a new search, and updated: what `studies` says of it.
        fixed: What fixes a trial; a stored search with another one is refused.

    Raises:
        KdsearchError: the stored search is of another study, with the differences.
    """
    storage = open_storage(url)
    study = optuna.create_study(storage=storage, study_name=NAME, direction="maximize", load_if_exists=True)
    fixed = json.loads(json.dumps(fixed))
    stored = study.user_attrs.get("fixed")
    if stored is not None and json.loads(stored) != fixed:
        raise KdsearchError(
            f"{url} holds a search of another study; it differs in:\n"
            + "\n".join(f"  {line}" for line in _differences(json.loads(stored), fixed))
            + "\ntake another folder with --out, or go back"
        )
    for key, value in {**facts, "sampler": sampler, "pruner": pruner, "fixed": fixed}.items():
        study.set_user_attr(key, json.dumps(value))
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        storage.set_trial_user_attr(trial._trial_id, "fail_reason", INTERRUPTED)
        storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    _retry_interrupted(study)
    study.pruner = PRUNERS[pruner](epochs)
    return study


def run_trials(
    study: optuna.Study,
    space: SearchSpace,
    run: Run,
    *,
    target: int,
    seed: int,
    sampler: str,
    on_trial: Callable[[TrialEvent], None],
) -> None:
    """Run trials until `target` of them are complete or pruned; the first one at the space's defaults.

    The sampler is made anew for each trial from the seed and the number of trials before it, retries not counted, so
    that a resumed search suggests what an uninterrupted one would.

    Raises:
        Exception: of a trial, while none has succeeded yet, or for the third time in a row.
    """
    failures = 0
    while len(study.get_trials(deepcopy=False, states=DONE)) < target:
        if not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            index = len({_index(trial) for trial in study.get_trials(deepcopy=False)})
            origin = "sampled" if index else "default"
            fixed = {} if index else {name: _start(space, name) for name in space.ranges}
            study.enqueue_trial(fixed, user_attrs={"index": index, "origin": origin})
        next_one = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))[0]
        study.sampler = SAMPLERS[sampler](derive_seed(seed, "sampler", _index(next_one)) % 2**32)
        ended: list[TrialEvent] = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            try:
                study.optimize(lambda trial: _objective(trial, space, run, seed, ended), n_trials=1)  # noqa: B023
            except Exception:
                failures += 1
                if failures >= FAILURES or not study.get_trials(deepcopy=False, states=DONE):
                    raise
            else:
                failures = 0
        for event in ended:
            on_trial(event)


def _objective(trial: optuna.Trial, space: SearchSpace, run: Run, seed: int, ended: list[TrialEvent]) -> float:
    def report(record: EpochRecord) -> None:
        trial.report(record.value, record.epoch)
        if trial.should_prune():
            raise Pruned

    state = "FAIL"
    value: float | None = None
    reason: str | None = None
    try:
        settings, own_seed = _suggest(trial, space), derive_seed(seed, "trial", _index(trial)) % 2**31
        trial.set_user_attr("settings", settings.numbers())
        trial.set_user_attr("seed", own_seed)
        value = run(Trial(trial.number, settings, own_seed, _retries(trial.study, trial.number)), report)
        trial.set_constraint("finite", 0.0)
        state = "COMPLETE"
        return value
    except Pruned:
        trial.set_constraint("finite", 0.0)
        state = "PRUNED"
        raise optuna.TrialPruned from None
    except Diverged as error:
        # NaN would be a failure that the sampler never learns from; an unmet constraint is remembered.
        trial.set_constraint("finite", 1.0)
        state, reason = "PRUNED", f"nan: {error}"
        raise optuna.TrialPruned from None
    except KeyboardInterrupt:
        reason = INTERRUPTED
        raise
    except torch.OutOfMemoryError:
        reason = "out of memory"
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]
        raise
    finally:
        if reason:
            trial.set_user_attr("fail_reason", reason)
        ended.append(TrialEvent(trial.number, state, value, reason))


def _index(trial: optuna.Trial | optuna.trial.FrozenTrial) -> int:
    """The place of a trial in the order: how many came before it, retries not counted."""
    return int(trial.user_attrs.get("index", trial.number))


def _retry_interrupted(study: optuna.Study) -> None:
    """Let each interrupted trial that has no retry wait for one, with its numbers and its place in the order.

    Numbers that it had not been told yet come from the sampler of its place, which gives them again.
    """
    trials = study.get_trials(deepcopy=False)
    retried = {trial.user_attrs.get("retry_of") for trial in trials}
    for trial in trials:
        if trial.user_attrs.get("fail_reason") == INTERRUPTED and trial.number not in retried:
            known = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
            facts = {"index": _index(trial), "origin": trial.user_attrs.get("origin", "sampled")}
            study.enqueue_trial(known, user_attrs={**facts, "retry_of": trial.number})


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
