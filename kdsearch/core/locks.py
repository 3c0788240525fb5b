"""One process at a time works in a folder."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from kdsearch.core.errors import KdsearchError, describe_exception
from kdsearch.core.files import PARTIAL, make_folder


@contextmanager
def lock_folder(folder: Path, work: str, holders: str | None = None) -> Iterator[None]:
    """One search, or other work of that name, in a folder, which is made; what a killed one was writing is removed.

    Work that leaves nothing in the folder leaves no folder, nor those around it that it made.

    Args:
        holders: Whatever may hold the lock of that name, in words; by default the work itself.

    Raises:
        KdsearchError: another one is at work there; the folder cannot be written or locked.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    lock = FileLock(make_folder(folder) / f"{work}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise KdsearchError(f"another {holders or work} is running in {folder}") from None
    except (OSError, NotImplementedError) as error:
        cure = "allowed: a run folder that can be written and locked"
        raise KdsearchError(f"cannot write {lock.lock_file}: {describe_exception(error)}; {cure}") from None
    try:
        for left in folder.rglob(PARTIAL):
            within = [folder / below for below in left.relative_to(folder).parents[:-1]]
            if not any(any(below.glob("*.lock")) for below in within):  # that of work with a lock of its own stays
                left.unlink(missing_ok=True)
        yield
    finally:
        with suppress(OSError):
            if [*folder.iterdir()] == [Path(lock.lock_file)]:
                Path(lock.lock_file).unlink()
                for path in made:
                    path.rmdir()
        lock.release()
