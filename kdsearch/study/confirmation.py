"""The winner and the references on fresh seeds, paired: what the best of several noisy trials cannot say by itself.

The references that no search changes run before the trials: they say what there is for a search to find.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kdsearch.augment.bases import Base
from kdsearch.augment.policy import Policy
from kdsearch.augment.spec import PolicySpec
from kdsearch.core.errors import Diverged
from kdsearch.core.files import write_json
from kdsearch.core.looks import Look, decide, plan_looks
from kdsearch.core.maths import derive_seed
from kdsearch.distill.phase import PolicySteps
from kdsearch.distill.records import EpochRecord
from kdsearch.probe.evaluation import measure_images
from kdsearch.study.comparisons import BESIDE, answers_of, compare, deciding
from kdsearch.study.ready import REFERENCES, Ready
from kdsearch.study.run import CHECKPOINT, run_trial
from kdsearch.study.run_folder import SHIFTED, keep_answers, read_confirmation
from kdsearch.study.space import Settings
from kdsearch.tasks.metrics import metric_name

RUNS = ("learned", "frozen", *REFERENCES)  # of each seed, those that the study has
SHARED = tuple(name for name in REFERENCES if name != "start")
"""Nothing of the winner's is in them; the study, its budget and seeds are the folder's."""


def confirm(
    ready: Ready,
    folder: Path,
    winner: int,
    settings: Settings,
    spec: PolicySpec,
    show: Callable[[str, EpochRecord], None],
) -> Iterator[Look | None]:
    """Run what is not there yet, after each run writing `confirmation.json` and yielding; up to a look that decides.

    A look is yielded before its seeds are run, where one before it has not decided.

    Args:
        winner: Number of the trial; rows of another one are written over, but for runs that do not depend on it.
        settings: Of the winner: `learned` learns again with them, beside a fresh student.
        spec: The winner's policy, held still for `frozen`.
        show: Told each epoch, with the name of the run.
    """

    def second_view(name: str) -> tuple[Base | None, PolicySteps | None]:
        policy = Policy.from_spec(spec) if name == "frozen" else ready.reference(name, settings)
        return policy, ready.policy_steps(settings) if name == "learned" else None

    while look := next_look(ready, folder, winner):
        if look.seeds > _first_look(ready):
            yield look
        seeds, rows = confirmation_seeds(ready)[: look.seeds], rows_of_winner(folder, winner)
        yield from _run_missing(ready, folder, winner, rows, seeds, confirmed_runs(ready), second_view, show)


def next_look(ready: Ready, folder: Path, winner: int | None) -> Look | None:
    """The look that a confirmation is still to come to; None where one has decided, or all are done."""
    looks, rows = plan_looks(ready.study.budget.confirmation), rows_of_winner(folder, winner)
    of = deciding(rows, metric_name(ready.study.metric))
    against = [name for name in ready.references if name not in BESIDE]
    for look in looks:
        if _missing(rows, confirmation_seeds(ready)[: look.seeds], confirmed_runs(ready)):
            return look
        answers = answers_of(folder, rows)
        if decide([compare(rows, answers, "learned", name, of) for name in against], look, looks) != "undecided":
            return None
    return None


def runs_left(ready: Ready, folder: Path, winner: int | None) -> list[str]:
    """The names of the runs up to the next look."""
    look, rows = next_look(ready, folder, winner), rows_of_winner(folder, winner)
    seeds = confirmation_seeds(ready)[: look.seeds if look else 0]
    return [name for _, name in _missing(rows, seeds, confirmed_runs(ready))]


def run_shared(ready: Ready, folder: Path, show: Callable[[str, EpochRecord], None]) -> Iterator[None]:
    """As `confirm`, of the runs that are the same whichever trial wins, before there is one: up to the first look."""
    settings, found = ready.space.settings(), read_confirmation(folder)
    rows = [dict(row) for row in found.rows] if found else []
    winner = found.winner if found else None
    yield from _run_missing(
        ready,
        folder,
        winner,
        rows,
        confirmation_seeds(ready)[: _first_look(ready)],
        _shared(ready),
        lambda name: (ready.reference(name, settings), None),
        show,
    )


def missing_shared(ready: Ready, folder: Path) -> int:
    """How many of them are still to be run."""
    return len(_missing(rows_of_winner(folder, None), confirmation_seeds(ready)[: _first_look(ready)], _shared(ready)))


def _first_look(ready: Ready) -> int:
    """How many seeds it has."""
    return next((look.seeds for look in plan_looks(ready.study.budget.confirmation)), 0)


def _run_missing(
    ready: Ready,
    folder: Path,
    winner: int | None,
    rows: list[dict[str, Any]],
    seeds: Sequence[int],
    names: Sequence[str],
    second_view: Callable[[str], tuple[Base | None, PolicySteps | None]],
    show: Callable[[str, EpochRecord], None],
) -> Iterator[None]:
    """The named runs on each seed of the confirmation, but for those of the rows.

    Args:
        second_view: Of the name of a run, its policy and how that learns.
    """
    order = confirmation_seeds(ready)
    for seed, name in _missing(rows, seeds, names):
        policy, policy_steps = second_view(name)
        checkpoint = folder / CHECKPOINT
        row: dict[str, Any] = {"run": name, "seed": seed, "value": None, "seconds": None}
        try:
            outcome = run_trial(
                replace(ready, ruler=None),
                None,
                policy=policy,
                policy_steps=policy_steps,
                run=name,
                seed=seed,
                base_seed=seed,
                checkpoint=checkpoint,
                on_record=partial(show, f"confirm {name}"),
            )
            row |= {"seconds": outcome.seconds, "at_chance": outcome.at_chance}
            measured, answers = _measure(ready, outcome.student)
            row |= measured
            keep_answers(folder, name, seed, answers)
        except Diverged as error:
            row["fail_reason"] = f"nan: {error}"
        rows = sorted([*rows, row], key=partial(_order, order))
        write_json(folder / "confirmation.json", {"winner": winner, "rows": rows})
        checkpoint.unlink(missing_ok=True)
        yield


def _measure(ready: Ready, student: nn.Module | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A student on the images that are kept for the confirmation, and what each of them contributes."""
    assert student is not None
    study = ready.study
    data = study.search_validation if study.confirm is None else study.confirm
    ruler = ready.ruler if study.confirm is None else ready.confirm_ruler
    found, by_image = measure_images(student, data, ready.task, study.budget.batch, ready.device, study.metric)
    row: dict[str, Any] = {"value": found.value, "value_se": found.value_se, "images": len(data)}
    answers = {"value": by_image}
    if ruler:
        shifted, answers["inherited"] = ruler.measure_images(student)
        row |= {name: getattr(shifted, name) for name in SHIFTED} | {"shifts_version": shifted.version}
    return row, {name: values.float() for name, values in answers.items() if len(values) and not values.isnan().any()}


def _missing(rows: Sequence[Mapping[str, Any]], seeds: Sequence[int], names: Sequence[str]) -> list[tuple[int, str]]:
    """Seeds and names that have no row yet, seed by seed."""
    done = {(row["seed"], row["run"]) for row in rows}
    return [run for run in product(seeds, names) if run not in done]


def _shared(ready: Ready) -> list[str]:
    return [name for name in ready.references if name in SHARED]


def confirmation_seeds(ready: Ready) -> list[int]:
    study = ready.study
    return [derive_seed(study.seed, "confirmation", i) % 2**31 for i in range(study.budget.confirmation)]


def confirmed_runs(ready: Ready) -> tuple[str, ...]:
    """The names of the runs of each seed."""
    return "learned", "frozen", *ready.references


def rows_of_winner(folder: Path, winner: int | None) -> list[dict[str, Any]]:
    """The rows of a folder that are of this winner, or of runs that are the same for every one."""
    found = read_confirmation(folder)
    rows = [dict(row) for row in found.rows] if found else []
    return [row for row in rows if (found and found.winner == winner) or row["run"] in SHARED]


def _order(seeds: Sequence[int], row: Mapping[str, Any]) -> tuple[int, int]:
    """The place of a row: seeds as they come, in each the runs of `RUNS`; those of other seeds last."""
    seed = seeds.index(row["seed"]) if row["seed"] in seeds else len(seeds)
    return seed, RUNS.index(row["run"]) if row["run"] in RUNS else len(RUNS)
