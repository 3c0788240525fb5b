"""What a person sees while a search runs: a live panel on a terminal or in a notebook, a line per epoch elsewhere."""

import math
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from kdsearch.analysis.scale import Scale
from kdsearch.commands.notebook import NotebookDisplay
from kdsearch.core.errors import KdsearchError
from kdsearch.core.terminal import escape_unprintable
from kdsearch.distill.records import EpochRecord
from kdsearch.study.run import Outcome
from kdsearch.tasks.metrics import ACCURACY

QUIET = 10  # seconds between two lines of progress, off a terminal
SHARE = Scale(ACCURACY)


class Display:
    """Shows the progress of a search. Neither on a terminal nor in a notebook, plain lines only."""

    def __init__(self, metric: str = ACCURACY, *, quiet: bool = False) -> None:
        self.scale = Scale(metric)
        self.console = Console(quiet=quiet, soft_wrap=True, highlight=False)
        self._live = Live(console=self.console, refresh_per_second=4) if self.console.is_terminal else None
        self._notebook = None if quiet else NotebookDisplay.find()
        self._best: str | None = None
        self._worst: str | None = None
        self._references: dict[str, str] = {}
        self._now = ""
        self._curve: list[float] = []
        self._deadline = 0.0
        self._said = 0.0  # when the last line of progress was

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        if self._live:
            self._live.update(Text(""))
            self._live.stop()
        if self._notebook:
            self._notebook.show({})

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._notebook:
            self._notebook.say(text)
            return
        try:
            self.console.print(_shown(text, self.console))
        except OSError as error:
            raise KdsearchError(f"standard output: {error.strerror}") from None

    def expect(self, seconds: float) -> None:
        """How long what remains will take."""
        self._deadline = time.monotonic() + seconds

    def epoch(self, run: str, record: EpochRecord, epochs: int) -> None:
        """A run has finished an epoch."""
        if record.epoch == 1:
            self._curve = []
        self._curve.append(record.value)
        value = self.scale.text(record.value, record.value_se)
        self._now = f"{run}  epoch {record.epoch}/{epochs}  {self.scale.name} {value}"
        if self._update():
            return
        parts = [self._now]
        if not math.isnan(record.teacher_accuracy):
            parts.append(f"teacher on the policy's images {record.teacher_accuracy:.0%}")
        if self._best:
            parts.append(f"best {self._best}")
        parts.append(f"about {format_duration(self._left())} left")
        self.say("  ".join(parts))

    def look(self, run: str, done: int, total: int) -> None:
        """A run has finished its last epoch, and looks where teacher and student disagree: so many images are done.

        Off a terminal the first line of a run is said at once, others 10 seconds apart.
        """
        if total < 1:
            return
        self._now = f"{run}  looking for disagreement" + (f"  {done / total:.0%} of {total} images" if done else "")
        if self._update():
            return
        if not done or time.monotonic() > self._said + QUIET:
            self.say(self._now)
            self._said = time.monotonic()

    def end_run(self, run: str, outcome: Outcome, *, best: str | None = None) -> None:
        """A run has finished; `best` names the best trial so far, and is missing for a reference."""
        value = self.scale.text(outcome.value, outcome.value_se)
        line = f"{run}: {value}"
        if outcome.inheritance and not math.isnan(outcome.inheritance.inherited):
            share, error = outcome.inheritance.inherited, outcome.inheritance.inherited_se
            line += f"  inherited {SHARE.text(share, error)}"
        if best:
            self._best = best
        else:
            self._references[run] = value
        worst = outcome.disagreement.describe_worst() if outcome.disagreement and best else None
        if worst:
            self._worst = worst
            line += f"  worst region: {worst}"
        self.say(line)
        for warning in outcome.warnings:
            self.say(f"  warning: {warning}")

    def _left(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    def _update(self) -> bool:
        """Show what goes on now, where that is shown in place."""
        if self._notebook:
            self._notebook.show(self._rows())
        elif self._live:
            table = Table.grid(padding=(0, 2))
            for name, text in self._rows().items():
                table.add_row(name, _shown(text, self.console))
            self._live.update(Group(table))
        return bool(self._notebook or self._live)

    def _rows(self) -> dict[str, str]:
        return {
            "now": self._now,
            "curve": sparkline(self._curve),
            "best": self._best or "-",
            "references": "  ".join(f"{k} {v}" for k, v in self._references.items()) or "-",
            "worst region": self._worst or "-",
            "time left": f"about {format_duration(self._left())}",
        }


def _shown(text: str, console: Console) -> Text:
    """Text in which nothing is markup, and nothing steers the terminal or is unknown to it."""
    return Text(escape_unprintable(text, console.encoding))


def format_duration(seconds: float) -> str:
    """
    >>> format_duration(42.4), format_duration(400), format_duration(7000)
    ('42 s', '7 min', '1.9 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def sparkline(values: list[float]) -> str:
    """A curve in one line of text.

    >>> sparkline([0.0, 0.5, 1.0])
    '▁▄█'
    """
    low, high = min(values, default=0.0), max(values, default=1.0)
    return "".join("▁▂▃▄▅▆▇█"[int(7 * (v - low) / (high - low or 1))] for v in values)


def settings_line(settings: Mapping[str, float]) -> str:
    """
    >>> settings_line({"learning_rate": 0.1, "interval": 3})
    'learning_rate 0.1, interval 3'
    """
    return ", ".join(f"{name} {value:.3g}" for name, value in settings.items())
