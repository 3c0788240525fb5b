"""Which database holds the trials of a run folder, and whether the two belong together."""

from pathlib import Path
from typing import Any

from kdsearch.core.errors import KdsearchError
from kdsearch.core.terminal import option
from kdsearch.study.hpo.storage import TrialRow, database_file, database_size, database_url, trial_rows
from kdsearch.study.run_folder import StudyFile, check_inside, read_study, trial_numbers


def read_kept_trials(folder: Path, study: StudyFile, storage: str | None) -> tuple[list[TrialRow], dict[str, Any]]:
    """The trials of a run folder in their order, and the facts stored with them.

    Args:
        storage: The URL that the reader names; None for the folder's own. A URL that only the folder names is not
            followed out of the folder, as folders come from strangers.

    Raises:
        KdsearchError: the database is elsewhere, is missing, cannot be read, or is not that of these trials.
    """
    kept = trial_numbers(folder)  # before the rows: a row is written before the folder of its trial
    url = storage or database_url(folder)
    if storage is None:
        try:
            own = database_file(study.storage or url)
        except KdsearchError as error:
            raise KdsearchError(f"cannot read {folder / 'study.json'}: {error}") from None
        try:
            check_inside(folder, own)
        except KdsearchError:
            named = study.storage or f"sqlite:///{own.resolve()}"
            raise KdsearchError(
                f"{folder}: its trials are kept outside the folder, in {named}, which is not opened unless you name "
                f"it: {option('storage', named)}"
            ) from None
        url = f"sqlite:///{own}"
    _check(folder, url, kept, study.storage)
    rows, facts = trial_rows(url)
    _compare(folder, url, kept, {row.number for row in rows})
    return rows, facts


def check_kept(folder: Path, url: str) -> None:
    """Before a search goes on: does the database have a row for each trial that the folder has kept files of?

    Raises:
        KdsearchError: it has not, or cannot be read; what is there, and the way out.
    """
    if kept := trial_numbers(folder):
        named = read_study(folder).storage if (folder / "study.json").is_file() else None
        _check(folder, url, kept, None if named == url else named)
        _compare(folder, url, kept, {row.number for row in trial_rows(url)[0]})


def _check(folder: Path, url: str, kept: list[int], named: str | None) -> None:
    file = database_file(url)
    if kept and not (size := database_size(file)):
        gone = "missing" if size is None else "empty"
        other = f", name the storage {named} that its study.json does," if named and url != named else ""
        raise KdsearchError(
            f"{folder}: the database {file} is {gone}, while the files of {_counted(kept)} are there; put it back from "
            f"a copy{other} or search into another folder ({option('out', '...')})"
        )


def _compare(folder: Path, url: str, kept: list[int], known: set[int]) -> None:
    if lost := [number for number in kept if number not in known]:
        raise KdsearchError(
            f"{folder}: {url} knows nothing of {_counted(lost)} whose files are there; put the database of these "
            f"trials back from a copy, or search into another folder ({option('out', '...')})"
        )


def _counted(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return f"trial {numbers[0]}"
    return f"{len(numbers)} trials ({', '.join(map(str, numbers[:3]))}{', ...' if len(numbers) > 3 else ''})"
