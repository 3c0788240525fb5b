"""What a terminal is told: text that it can show and that steers nothing, and one message where it takes no more."""

import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TextIO

from kdsearch.core.errors import KdsearchError

# Control characters but for tab and line feed, marks that change the direction or are not seen, halves of letters.
_UNSHOWN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e0fff]"
)


def escape_unprintable(text: str, encoding: str | None = None) -> str:
    r"""Text with what would steer a terminal, or cannot be seen, written out; also what an encoding does not have.

    >>> print(escape_unprintable("\x1b[31mred\x1b[0m, caf\xe9"), escape_unprintable("caf\xe9", "ascii"))
    \x1b[31mred\x1b[0m, café caf\xe9
    """
    shown = _UNSHOWN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
    return shown.encode(encoding, "backslashreplace").decode(encoding) if encoding else shown


def say(text: object, file: TextIO | None = None) -> None:
    """Print a line."""
    print(escape_unprintable(str(text)), file=file or sys.stdout)


def number_of(count: int, thing: str, things: str | None = None) -> str:
    """
    >>> number_of(1, "trial"), number_of(12, "epoch"), number_of(2, "class", "classes")
    ('1 trial', '12 epochs', '2 classes')
    """
    return f"{count} {thing if count == 1 else things or thing + 's'}"


def format_nats(value: float) -> str:
    """
    >>> format_nats(1.0), format_nats(0.3)
    ('1 nat', '0.3 nats')
    """
    return f"{value:g} nat{'' if value == 1 else 's'}"


def format_number(value: float) -> str:
    """At most three digits, two of a small one.

    >>> format_number(17.25), format_number(0.3571)
    ('17.2', '0.36')
    """
    return f"{value:.3g}" if abs(value) >= 1 else f"{value:.2g}"


_COMMAND_LINE = ContextVar("command_line", default=False)


@contextmanager
def on_command_line() -> Iterator[None]:
    """While the command line runs, options are called by its names."""
    token = _COMMAND_LINE.set(True)
    try:
        yield
    finally:
        _COMMAND_LINE.reset(token)


def option(name: str, value: object) -> str:
    """How whoever runs this gives an option: on the command line, or in Python.

    >>> option("trials", 16), option("out", "runs/b")
    ('trials=16', "out='runs/b'")
    >>> with on_command_line():
    ...     option("trials", 16)
    '--trials 16'
    """
    return f"--{name} {value}" if _COMMAND_LINE.get() else f"{name}={value!r}"


def guard_output() -> None:
    """Make standard output write what its encoding has not as escapes, and fail with one message.

    Where a program is started without it, as daemons are, nothing is written.
    """
    sys.stdout, sys.stderr = (
        given or io.TextIOWrapper(io.FileIO(os.devnull, "w"), encoding="utf-8") for given in (sys.stdout, sys.stderr)
    )
    given = sys.stdout
    if isinstance(given, io.TextIOWrapper) and given is sys.__stdout__:
        sys.stdout = io.TextIOWrapper(
            io.BufferedWriter(_Output(given.fileno(), "wb", closefd=False)),
            encoding=given.encoding,
            errors="backslashreplace",
            line_buffering=given.line_buffering,
            write_through=given.write_through,
        )


class _Output(io.FileIO):
    """Standard output that says once that it cannot be written, and takes no more then."""

    lost = False

    def write(self, data):  # type: ignore[no-untyped-def]
        if self.lost:
            return len(data)
        try:
            return super().write(data)
        except OSError as error:
            self.lost = True
            raise KdsearchError(f"standard output: {error.strerror}") from None
