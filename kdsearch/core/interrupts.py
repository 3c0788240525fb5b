"""Ctrl-C and SIGTERM while a search runs: none is lost, and none comes in the middle of a write to the storage."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)
Handler = Callable[[int, FrameType | None], object]


class Interrupts:
    """Listens while it is entered: the first signal interrupts, the second lets the answer to it go on, others cut it.

    What swallows an interruption, as `__del__` does, or makes another exception of it, does not make it unheard.
    SIGTERM is listened to where the program handles it, as the command line does. Outside the main thread nothing is
    changed.
    """

    def __init__(self) -> None:
        self._heard: list[int] = []
        self._before: dict[int, Handler] = {}

    def __enter__(self) -> Self:
        self._before = _handlers()
        for number in self._before:
            signal.signal(number, self._hear)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._heard.append(number)
        if len(self._heard) != 2:
            self._before[number](number, frame)

    def check(self) -> None:
        """Raises KeyboardInterrupt where a signal has come, whatever became of it."""
        if self._heard:
            self._before[self._heard[0]](self._heard[0], None)

    @contextmanager
    def prefer_interruption(self) -> Iterator[None]:
        """Work whose failure after a signal is the interruption, and not a failure of its own."""
        try:
            yield
        except Exception:
            self.check()
            raise


@contextmanager
def hold_signals() -> Iterator[None]:
    """A few writes that belong together: a signal waits until they are done."""
    before, heard = _handlers(), list[int]()
    for number in before:
        signal.signal(number, lambda number, frame: heard.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in heard:
            before[number](number, None)


def _handlers() -> dict[int, Handler]:
    """What this program does at the signals, where it does something."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: handler for number in SIGNALS if callable(handler := signal.getsignal(number))}
