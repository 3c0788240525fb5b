"""What goes wrong for a user: one class, one clear message, exit code 2."""

import reprlib
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from sysconfig import get_path

_NOT_THEIRS = (Path(__file__).parents[1], *(Path(get_path(kind)) for kind in ("stdlib", "purelib", "platlib")))


class KdsearchError(Exception):
    """A mistake in what kdsearch was given: the message names the place, what is allowed and the nearest name."""


def wrong_integers(
    numbers: Mapping[str, object], least: Mapping[str, int], most: Mapping[str, int] | None = None
) -> list[str]:
    """What is to be said of numbers that are not whole, or less or more than they may be.

    >>> wrong_integers({"epochs": 0, "steps": 30}, {"epochs": 1, "steps": 1})
    ['epochs is 0; allowed: whole numbers, 1 or more']
    """
    found = []
    for name, lowest in least.items():
        value, end = numbers[name], " or more"
        if isinstance(value, int) and not isinstance(value, bool):
            highest = (most or {}).get(name)
            if highest is not None and value > highest:
                end = f" to {highest}"
            elif value >= lowest:
                continue
        found.append(f"{name} is {ascii(value)[:40]}; allowed: whole numbers, {lowest}{end}")
    return found


def unknown_name(kind: str, name: object, known: Iterable[str]) -> str:
    """The sentence for a name that is not in a table, with the nearest name or else all of them.

    >>> unknown_name("operation", "rotat", ["rotate", "scale"])
    "unknown operation 'rotat'; did you mean 'rotate'?"
    >>> unknown_name("study", "x", ["digits"])
    "unknown study 'x'; known: digits"
    """
    names = sorted(known)
    near = get_close_matches(str(name), names, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(names) or 'none'}"
    return f"unknown {kind} '{name}'; {hint}"


def quote(value: object) -> str:
    """A value as a message shows it, quoted, whatever its size.

    >>> quote("word"), quote(list(range(100)))
    ("'word'", "'[0, 1, 2, 3, 4, 5, ...]'")
    """
    text = value if isinstance(value, str) else reprlib.repr(value)  # which does not go deeper than six levels
    return repr(text[:40])


def problems(place: str, found: list[str]) -> KdsearchError:
    """One error that lists every problem of one file or object, the first forty in full."""
    count = "1 problem" if len(found) == 1 else f"{len(found)} problems"
    rest = [f"  and {len(found) - 40} more"] if len(found) > 40 else []
    return KdsearchError("\n".join([f"{place}: {count}", *(f"  {line}" for line in found[:40]), *rest]))


@contextmanager
def user_call(what: str, cure: str = "") -> Iterator[None]:
    """Around a call into a user's code: whatever it raises becomes one sentence that names the call and the line.

    An interruption, kdsearch's own errors and a lack of memory pass through; `sys.exit()` does not end the program.

    Args:
        what: The call, as its subject: "student()", "train: item 3".
        cure: What is allowed, as the end of the sentence.

    >>> with user_call("student()", "allowed: a factory, which makes a new network each time"):
    ...     int("x")
    Traceback (most recent call last):
    ...
    kdsearch.core.errors.KdsearchError: student(): ValueError: invalid literal for int() with base 10: 'x' (<doctest \
kdsearch.core.errors.user_call[0]>, line 2); allowed: a factory, which makes a new network each time
    """
    try:
        yield
    except (KeyboardInterrupt, KdsearchError, Diverged):
        raise
    except BaseException as error:
        if is_out_of_memory(error):
            raise
        raise KdsearchError(f"{what}: {describe_exception(error)}{f'; {cure}' if cure else ''}") from error


def describe_exception(error: BaseException) -> str:
    """An exception of somebody else's code in one line: its kind, its first line of text, the last line of theirs."""
    text = exception_text(error).strip().partition("\n")[0]
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not any(map(Path(frame.filename).is_relative_to, _NOT_THEIRS))]
    where = "".join(f" ({Path(frame.filename).name}, line {frame.lineno})" for frame in (theirs or frames)[-1:])
    return f"{type(error).__name__}{f': {text}' if text else ''}{where}"


def exception_text(error: BaseException) -> str:
    """The text of an exception, which may be of somebody else's class and fail to give one."""
    try:
        return str(error)
    except KeyboardInterrupt:
        raise
    except BaseException:
        return ""


def is_out_of_memory(error: BaseException) -> bool:
    """Is it a lack of memory? torch has several errors for it, and oneDNN says it in its own way.

    >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("could not create a primitive"))
    (True, True)
    """
    text = exception_text(error)
    known = ("can't allocate memory", "not enough memory", "could not create a primitive", "out of memory")
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or (isinstance(error, RuntimeError) and any(words in text for words in known))


@contextmanager
def translate_machine_errors(work: str) -> Iterator[None]:
    """What the machine refuses some work, memory or files, as one sentence.

    Args:
        work: Its subject, such as "the search in runs/digits".
    """
    try:
        yield
    except OSError as error:
        raise KdsearchError(f"{work}: {describe_exception(error)}; the same command goes on") from error
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        cure = "the same command goes on, where there is more or with a smaller budget.batch or more budget.parts"
        raise KdsearchError(f"{work}: out of memory: {describe_exception(error)}; {cure}") from error


class Diverged(Exception):
    """A loss or weight that is no longer finite: the trial ends, the search learns from it."""
