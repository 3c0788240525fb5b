"""Runs without a learned policy, through the same loop, with the seed of the first trial."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from kdsearch.core.errors import Diverged
from kdsearch.core.files import write_json
from kdsearch.core.maths import trial_seed
from kdsearch.distill.records import EpochRecord
from kdsearch.study.ready import Ready
from kdsearch.study.run import CHECKPOINT, Outcome, run_trial
from kdsearch.study.run_folder import read_result


def missing_references(ready: Ready, folder: Path) -> list[str]:
    """The references that a run folder does not have yet."""
    return [name for name in ready.references if not (_place(folder, name) / "result.json").exists()]


def run_references(
    ready: Ready,
    folder: Path,
    provenance: Mapping[str, str],
    show: Callable[[str, EpochRecord], None],
    look: Callable[[str, int, int], None],
) -> Iterator[tuple[str, Outcome | Diverged]]:
    """Run what is not there yet, yielding the name of each and what it came to.

    Args:
        provenance: What the policies of references say of where they come from, beside run and seed.
        show: Told each epoch, with the name of the reference.
        look: Told while it is compared with the teacher: its name, images done, of how many.
    """
    seed = trial_seed(ready.study.seed, 0)
    for name in missing_references(ready, folder):
        place = _place(folder, name)
        found: Outcome | Diverged
        try:
            found = run_trial(
                ready,
                place,
                policy=ready.reference(name, ready.space.settings()),
                run=name,
                seed=seed,
                provenance={**provenance, "run": name, "seed": seed},
                checkpoint=place / CHECKPOINT,
                on_record=partial(show, name),
                on_look=partial(look, name),
            )
        except Diverged as error:
            found = error
            write_json(place / "result.json", {"fail_reason": f"nan: {error}"})
        (place / CHECKPOINT).unlink(missing_ok=True)
        yield name, found


def find_learned(ready: Ready, folder: Path) -> list[str]:
    """The references whose students came to more than chance."""
    results = {name: read_result(folder, _place(folder, name)) for name in ready.references}
    return [name for name, result in results.items() if result and result.value is not None and not result.at_chance]


def _place(folder: Path, name: str) -> Path:
    return folder / "references" / name
