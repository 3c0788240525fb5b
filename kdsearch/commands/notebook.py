"""One display below a notebook's cell, updated in place while a search runs. IPython is used where it runs already."""

import sys
import time
from collections import deque
from collections.abc import Mapping
from importlib import import_module
from typing import Any, Self

from kdsearch.core.html import escape_html, html_facts

MOST_LINES = 200  # that stay; each update sends all of them
LINES = "margin: 0; font: 12px/1.5 monospace; white-space: pre-wrap; word-break: normal; overflow-wrap: anywhere"
PAUSE = 0.25  # seconds between two updates for progress alone


class NotebookDisplay:
    """Lines that stay, and below them what goes on now."""

    def __init__(self, show: Any) -> None:
        self.lines: deque[str] = deque(maxlen=MOST_LINES)
        self.count = 0
        self.now: Mapping[str, str] = {}
        self._shown = 0.0  # when it was updated last
        self._handle = show(self, display_id=True)

    @classmethod
    def find(cls) -> Self | None:
        """A display below the cell that runs; None where this is no notebook."""
        shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
        return cls(import_module("IPython.display").display) if hasattr(shell, "kernel") else None

    def say(self, text: str) -> None:
        """A line that stays."""
        self.lines.append(text)
        self.count += 1
        self._update()

    def show(self, now: Mapping[str, str]) -> None:
        """What goes on now, in the place of what went on before."""
        self.now = now
        if not now or time.monotonic() > self._shown + PAUSE:
            self._update()

    def _update(self) -> None:
        self._shown = time.monotonic()
        self._handle.update(self)

    def __repr__(self) -> str:
        return "\n".join([*self._kept(), *(f"{name}  {text}" for name, text in self.now.items())])

    def _repr_html_(self) -> str:
        text = escape_html("\n".join(self._kept()))
        return f'<pre style="{LINES}">{text}</pre>{html_facts(self.now) if self.now else ""}'

    def _kept(self) -> list[str]:
        lost = self.count - len(self.lines)
        return [*([f"... {lost} lines before these"] if lost else []), *self.lines]
