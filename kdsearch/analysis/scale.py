"""How values of a metric are written: in percent or as they are, with an error, as a difference."""

import math
from dataclasses import dataclass

import pandas as pd

from kdsearch.tasks.metrics import ACCURACY

MOST_DIGITS = 9  # after the point


@dataclass(frozen=True)
class Scale:
    """How values of a metric are written: the accuracy in percent, any other as it is.

    >>> Scale("accuracy").text(0.951, 0.0096), Scale("kappa").text(0.951, 0.0096), Scale("kappa").difference(-0.012)
    ('95.1 ± 1.0 %', '0.951 ± 0.010', '-0.012')
    """

    name: str

    @property
    def _percent(self) -> bool:
        return self.name == ACCURACY

    @property
    def factor(self) -> float:
        return 100.0 if self._percent else 1.0

    @property
    def digits(self) -> int:
        return 1 if self._percent else 3

    @property
    def label(self) -> str:
        """Of an axis."""
        return f"{self.name}, %" if self._percent else self.name

    def text(self, value: float, error: float | None = None) -> str:
        """A value, with its standard error if it is known."""
        known = [value, *([] if error is None or math.isnan(error) else [error])]
        return " ± ".join(f"{self.factor * number:.{self.digits}f}" for number in known) + (
            " %" if self._percent else ""
        )

    def difference(self, value: float, digits: int | None = None) -> str:
        """With its sign; of accuracies in points."""
        return f"{self.factor * value:+.{self.digits if digits is None else digits}f}"

    def interval(self, low: float, high: float) -> str:
        """Two different ends, with as many digits as tell them from each other and from nothing.

        >>> Scale("accuracy").interval(-0.011, 0.067), Scale("accuracy").interval(-0.0002, 0.0004)
        ('-1.1 to +6.7', '-0.02 to +0.04')
        """
        digits = self.digits
        while digits < MOST_DIGITS and self._reads_alike(low, high, digits):
            digits += 1
        return f"{self.difference(low, digits)} to {self.difference(high, digits)}"

    def _reads_alike(self, low: float, high: float, digits: int) -> bool:
        ends = [self.difference(end, digits) for end in (low, high)]
        return ends[0] == ends[1] or any(end and not float(text) for end, text in zip((low, high), ends, strict=True))

    def by(self, value: float) -> str:
        """The size of a difference, in words."""
        return f"{self.factor * value:.{self.digits}f}" + (" points" if self._percent else "")

    def equal(self, difference: float) -> bool:
        """Would it be written as nothing?"""
        return abs(difference) * self.factor < 0.5 * 10**-self.digits


def scale_columns(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Rows of the frame `trials` as a table shows them: `value` and `value_se` of an accuracy in percent, named so.

    >>> scale_columns(pd.DataFrame({"value": [0.35], "value_se": [0.0625]}), "accuracy").to_dict("list")
    {'value, %': [35.0], 'value_se, %': [6.25]}
    """
    if metric != ACCURACY:
        return rows
    columns = ["value", "value_se"]
    return rows.assign(**{name: 100 * rows[name] for name in columns}).rename(
        columns={name: f"{name}, %" for name in columns}
    )
