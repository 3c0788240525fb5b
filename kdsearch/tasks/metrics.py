"""What trials are compared by: the accuracy or a user's metric, its standard error, and how it is written."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from kdsearch.core.errors import KdsearchError, calling

Metric = Callable[[Tensor, Tensor], float]  # logits (N, K) and labels (N,), on the host; larger is better
GROUPS = 20  # of images, for the standard error of a metric
ACCURACY = "accuracy"
MOST_DIGITS = 9  # after the point


class Measurement(NamedTuple):
    """How well a network does on a data set as it is."""

    accuracy: float
    accuracy_se: float  # binomial standard error
    value: float  # of the metric; the accuracy where there is no other
    value_se: float
    largest_answer: float = math.nan  # share of the images that get the most frequent answer; NaN without one an image


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


def metric_name(metric: Metric | None) -> str:
    """What a metric is called in tables: "accuracy" where there is none, or the name of the function.

    >>> metric_name(partial(max, key=len)), metric_name(None)
    ('max(key=<built-in function len>)', 'accuracy')
    """
    if metric is None:
        return ACCURACY
    inner = metric.func if isinstance(metric, partial) else metric
    name = str(getattr(inner, "__name__", type(inner).__name__))
    if not isinstance(metric, partial):
        return name
    given = [*map(repr, metric.args), *(f"{key}={value!r}" for key, value in metric.keywords.items())]
    return f"{name}({', '.join(given)})"


def metric_value(metric: Metric, logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """A metric of all images, and its standard error from leaving out one of 20 groups of images at a time.

    The error is NaN where the metric fails without one of the groups.

    Raises:
        KdsearchError: the metric fails, or gives no number.

    Reference:
        Tukey, Bias and confidence in not-quite large samples, 1958 (the jackknife)

    >>> logits, labels = torch.eye(2).repeat(50, 1), torch.tensor([0, 1] * 40 + [0, 0] * 10)
    >>> metric_value(lambda x, y: (x.argmax(1) == y).double().mean(), logits, labels)[0]
    0.9
    """
    asked = (
        f"it is called with logits {tuple(logits.shape)} and labels {tuple(labels.shape)} and gives one number, larger "
        "is better"
    )
    what = f"metric {metric_name(metric)}"
    with calling(what, asked):
        value = float(metric(logits, labels))
    groups = min(GROUPS, len(labels))
    # in a fixed random order: data sets with interleaved classes would lose whole classes at a time
    group = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)) % groups
    try:
        with calling(what, asked):
            left = [float(metric(logits[group != i], labels[group != i])) for i in range(groups if groups > 1 else 0)]
    except KdsearchError:  # such as a class that has but one image
        return value, math.nan
    spread = torch.tensor(left, dtype=torch.float64)
    return value, ((groups - 1) / groups * (spread - spread.mean()).square().sum()).sqrt().item() if left else math.nan
