"""What holds for every input: refused in words or taken, in bounded time and memory; no code run, no file written."""

import os
import re
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kdsearch.core.errors import KdsearchError

MOST_SECONDS = 5.0  # of CPU
MOST_BYTES = 10**9  # above what the process had before
ENDED_AFTER = 10.0  # seconds of CPU: so that a find does not take minutes
BLOCKED_AFTER = 60.0  # seconds of wall time, for what waits without computing
ADDRESSES = 6 * 2**30  # bytes of address space above what there was: so that a find does not take the machine
FRAMES = 1000  # of the stack, as a program has them; Hypothesis gives more
RUNS_CODE = {"os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "subprocess.Popen", "socket.connect"}
CHANGES = {"os.remove", "os.rename", "os.truncate", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod"}
HARMLESS = ("/dev/null", "/dev/full", "/dev/stdout", "/dev/stderr")


@dataclass
class Count:
    """What became of a target's inputs."""

    inputs: int = 0
    refused: int = 0
    seconds: float = 0.0  # of CPU, in all
    slowest: float = 0.0
    megabytes: float = 0.0  # the most above what there was


COUNTS: dict[str, Count] = {}  # by target


@dataclass
class Outcome:
    """What an input came to: why it was refused, or None."""

    refused: str | None = None


@dataclass(frozen=True, repr=False)
class World:
    """Scratch folders that stand for a user's computer: a home, a working directory, temporary files, what is given."""

    root: Path

    @property
    def cwd(self) -> Path:
        return self.root / "cwd"

    @property
    def given(self) -> Path:
        """Where inputs lie."""
        return self.root / "given"

    def clear(self) -> None:
        """Take away every input of before."""
        for path, folders, files in os.walk(self.given, topdown=False):
            for name in files:
                os.unlink(os.path.join(path, name))
            for name in folders:
                here = os.path.join(path, name)
                os.unlink(here) if os.path.islink(here) else os.rmdir(here)

    def put(self, name: str, content: bytes) -> Path:
        """An input that is a file, alone."""
        self.clear()
        path = self.given / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path


class _Ended(BaseException):
    """Raised into an input that does not end by itself."""


class _Watch:
    """What the interpreter is asked to do while an input is read."""

    def __init__(self) -> None:
        self.asked: tuple[str, ...] | None = None  # folders of what may be written; None: nobody looks
        self.found: list[str] = []
        sys.addaudithook(self)  # for good: a hook cannot be taken away

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.asked is None:
            return
        if event in RUNS_CODE:
            self.found.append(f"{event}{arguments}")
            raise PermissionError(event)
        if (event == "open" and _writes(arguments[1], arguments[2])) or event in CHANGES:
            path = arguments[0]
            if isinstance(path, str | bytes | os.PathLike):
                full = os.path.abspath(os.fsdecode(path))
                if full not in HARMLESS and not any(full.startswith(folder) for folder in self.asked):
                    self.found.append(f"{event} {full}")


def _writes(mode: object, flags: object) -> bool:
    """Do these arguments of an audited `open` let it write?"""
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))


_WATCH = _Watch()


@contextmanager
def holds(world: World, target: str, *asked: Path) -> Iterator[Outcome]:
    """Around whatever is done with one input: a `KdsearchError` refuses it, and the law holds, or the test fails.

    Every other exception, warnings included, passes through and is a find.

    Args:
        target: Under which it is counted.
        asked: Where files may be written.
    """
    outcome, count = Outcome(), COUNTS.setdefault(target, Count())
    before = _files(world, asked)
    with _bounded():
        memory, seconds = _memory(begin=True), time.process_time()
        beside = [tempfile.gettempdir(), *(os.path.abspath(path.parent) for path in asked)]  # and what is left: below
        _WATCH.asked = tuple(folder + os.sep for folder in beside)
        _WATCH.found = []
        try:
            yield outcome
        except KdsearchError as error:
            outcome.refused = str(error)
        except _Ended as error:
            raise AssertionError(f"ended after {error}") from None
        finally:
            _WATCH.asked = None
            seconds, memory = time.process_time() - seconds, _memory() - memory
    count.inputs += 1
    count.refused += outcome.refused is not None
    count.seconds += seconds
    count.slowest, count.megabytes = max(count.slowest, seconds), max(count.megabytes, memory / 1e6)
    assert not _WATCH.found, f"code was run or a file written elsewhere: {_WATCH.found}"
    after = _files(world, asked)
    assert before == after, f"files changed: {sorted(set(before.items()) ^ set(after.items()))}"
    assert seconds <= MOST_SECONDS, f"{seconds:.1f} s of CPU; refused: {outcome.refused}"
    assert memory <= MOST_BYTES, f"{memory / 1e6:,.0f} MB above the process before; refused: {outcome.refused}"
    assert outcome.refused is None or outcome.refused.strip(), "refused without a word"


@contextmanager
def _bounded() -> Iterator[None]:
    """An end to what takes without end: time, waiting, or address space."""

    def end(number: int, _: object) -> None:
        raise _Ended(f"{ENDED_AFTER} s of CPU" if number == signal.SIGPROF else f"{BLOCKED_AFTER} s of waiting")

    addresses = resource.getrlimit(resource.RLIMIT_AS)
    handlers = {number: signal.signal(number, end) for number in (signal.SIGPROF, signal.SIGALRM)}
    recursion, depth, frame = sys.getrecursionlimit(), 0, sys._getframe()
    while frame := frame.f_back:  # type: ignore[assignment]
        depth += 1
    began, timeout = time.monotonic(), signal.setitimer(signal.ITIMER_REAL, BLOCKED_AFTER)  # pytest-timeout's
    signal.setitimer(signal.ITIMER_PROF, ENDED_AFTER)
    if (there := _status("VmSize")) is not None:
        resource.setrlimit(resource.RLIMIT_AS, (there + ADDRESSES, addresses[1]))
    sys.setrecursionlimit(depth + FRAMES)
    try:
        yield
    finally:
        sys.setrecursionlimit(recursion)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, addresses)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if timeout[0]:
            signal.setitimer(signal.ITIMER_REAL, max(0.01, timeout[0] - (time.monotonic() - began)))


def _memory(begin: bool = False) -> int:
    """Bytes in memory now, or the most since it was asked to `begin`.

    Where the system keeps no such peak, the most since the process began: more than that after any input that held.
    """
    if begin and os.path.exists("/proc/self/clear_refs"):
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the peak is what there is
    if begin and (now := _status("VmRSS")) is not None:
        return now
    peak = _status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 if peak is None else peak


def _status(name: str) -> int | None:
    """Bytes, as Linux says them of this process."""
    if not os.path.exists("/proc/self/status"):
        return None
    with open("/proc/self/status") as file:
        return int(re.search(rf"{name}:\s+(\d+) kB", file.read())[1]) * 1024


def _files(world: World, asked: tuple[Path, ...]) -> dict[str, tuple[object, ...]]:
    """All that lies in the world by its path, without what may be written: kind, size, time of change, target."""
    skipped = {os.path.abspath(path) for path in asked}
    found: dict[str, tuple[object, ...]] = {}
    left = [str(world.root)]
    while left:
        with os.scandir(left.pop()) as entries:
            for entry in entries:
                if entry.path in skipped:
                    continue
                seen = entry.stat(follow_symlinks=False)
                is_folder = entry.is_dir(follow_symlinks=False)
                if is_folder:
                    left.append(entry.path)
                link = os.readlink(entry.path) if entry.is_symlink() else None
                found[entry.path] = (seen.st_mode, *(() if is_folder else (seen.st_size, seen.st_mtime_ns, link)))
    return found
