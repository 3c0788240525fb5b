"""Paths as users give them; files read within bounds, and written whole or not at all."""

import json
import os
import secrets
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from kdsearch.core.errors import KdsearchError

MOST_JSON = 2**24  # bytes of a JSON file: parsed it takes some thirty times as much
PARTIAL = f".*.{16 * '[0-9a-f]'}.partial"  # names of files that are being written
PATIENCE = 3.0  # seconds that a pipe is given for somebody to read from it


def as_path(given: Path | str) -> Path:
    """A path that a user gives, the home folder in place of `~`.

    Raises:
        KdsearchError: not text, or nothing that a file can be called; a loop of links; a folder that may not be read.
    """
    try:
        path = Path(os.path.expanduser(given))
    except TypeError:
        raise KdsearchError(f"{given!r}: a path is text or a pathlib.Path, not {type(given).__name__}") from None
    if given == "":  # such as "$FOLDER" where there is no such variable; Path("") is the working directory
        raise KdsearchError("'': a path has at least one letter")
    with suppress(FileNotFoundError, NotADirectoryError):
        _stat(path)
    return path


def absolute_path(path: Path) -> Path:
    """The same path from the root.

    Raises:
        KdsearchError: it is of a working directory that is no longer there.
    """
    try:
        return path.absolute()
    except FileNotFoundError:
        raise KdsearchError(f"{path}: the working directory is no longer there") from None


def check_file(path: Path) -> os.stat_result:
    """What is known of a file that can be read from its beginning to its end.

    Raises:
        KdsearchError: no such file, or a folder, device, pipe or socket.
    """
    try:
        found = _stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise KdsearchError(f"{path}: no such file") from None
    if not stat.S_ISREG(found.st_mode):
        raise KdsearchError(f"{path}: {_kind(found.st_mode)}, not a file")
    return found


def read_text(path: Path, most: int) -> str:
    """The text of a file of at most `most` bytes, UTF-8 with or without a byte order mark.

    Raises:
        KdsearchError: no file; a larger one; another encoding.
    """
    try:
        if check_file(path).st_size <= most:
            with path.open("rb") as file:
                content = file.read(most + 1)  # some files have no size before they are read
            if len(content) <= most:
                return content.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise KdsearchError(f"{path}: cannot be read: {_reason(error)}") from None
    raise KdsearchError(f"{path}: larger than {most:,} bytes")


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step: readers see the old content or the new one."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))  # halves of a letter, which no encoding has


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file in one step: readers see the old content or the new one.

    A link stays one, and what it leads to is written; a file that is there keeps its mode and, where this process may
    see to it, its owner. A terminal, a pipe or another device for characters is written to as it is.

    Raises:
        KdsearchError: a folder, a socket, a disk, or a link to nothing; a name, place or device that takes no file.
    """
    try:
        there, own = _there(path), _open_file(path)
        if own is not None:
            _write_on(os.dup(own), content)
        elif there is None or stat.S_ISREG(there.st_mode):
            _write_beside(Path(os.path.realpath(path)), content, there)
        elif stat.S_ISCHR(there.st_mode) or stat.S_ISFIFO(there.st_mode):
            _write_on(_opened(path), content)
        else:
            raise KdsearchError(f"cannot write {path}: it is {_kind(there.st_mode)}")
    except (OSError, ValueError) as error:
        raise KdsearchError(f"cannot write {path}: {_reason(error)}") from None


def write_json(path: Path, data: Any) -> None:
    """JSON of plain values; NaN becomes null."""
    write_text(path, json.dumps(to_json_values(data), indent=1) + "\n")


def make_folder(path: Path) -> Path:
    """Make a folder and its parents."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise KdsearchError(f"cannot make the folder {path}: {_reason(error)}") from None
    return path


def to_json_values(value: Any) -> Any:
    """The same values as JSON has them: what is not finite is None, tuples are lists, keys are text."""
    if isinstance(value, float) and not (float("-inf") < value < float("inf")):
        return None
    if isinstance(value, dict):
        return {str(key): to_json_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json_values(item) for item in value]
    return value


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise
    except (OSError, ValueError) as error:
        raise KdsearchError(f"{path}: {_reason(error)}") from None


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, UnicodeEncodeError):
        return "a name with half a letter, which no file can have"
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def _there(path: Path) -> os.stat_result | None:
    """What a path leads to; None for a name that is free."""
    try:
        return path.stat()
    except FileNotFoundError:
        if path.is_symlink():  # perhaps laid by somebody else, so that a file appears where they want one
            raise KdsearchError(
                f"cannot write {path}: it is a link to {os.readlink(path)}, which is not there"
            ) from None
        return None


def _open_file(path: Path) -> int | None:
    """The open file of this process that a path such as /dev/stdout names: what else is written there is kept."""
    own = Path("/proc/self/fd").resolve()
    while path.is_symlink():
        if path.parent.resolve() == own:
            return int(path.name)
        path = path.parent / os.readlink(path)
    return None


def _opened(path: Path) -> int:
    """A device or pipe, open for writing."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError:
            if not path.is_fifo() or time.monotonic() > until:
                raise
            time.sleep(0.02)  # nobody reads from the pipe yet
        else:
            os.set_blocking(descriptor, True)
            return descriptor


def _write_on(descriptor: int, content: bytes) -> None:
    with open(descriptor, "wb") as file:
        file.write(content)


def _write_beside(path: Path, content: bytes, there: os.stat_result | None) -> None:
    """Write a file under a name that nobody guesses, and give it the name it shall have, with the mode and owner."""
    if there and not os.access(path, os.W_OK):
        raise PermissionError("Permission denied")
    partial = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.partial")
    mode = 0o600 if there else 0o666
    with open(partial, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:  # x: a new file, no link
        try:
            file.write(content)
            file.flush()
            if there:
                with suppress(PermissionError):  # of somebody else, in a folder of several people
                    own = os.stat(partial)
                    if (own.st_uid, own.st_gid) != (there.st_uid, there.st_gid):
                        os.chown(partial, there.st_uid, there.st_gid)
                os.chmod(partial, stat.S_IMODE(there.st_mode) & 0o777)
            os.replace(partial, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(partial)
            raise
