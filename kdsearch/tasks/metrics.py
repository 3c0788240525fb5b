"""What trials are compared by: the accuracy or a user's metric, and its standard error."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from kdsearch.core.errors import KdsearchError, user_call

Metric = Callable[[Tensor, Tensor], float]  # logits (N, K) and labels (N,), on the host; larger is better
GROUPS = 20  # of images, for the standard error of a metric
ACCURACY = "accuracy"


class Measurement(NamedTuple):
    """How well a network does on a data set as it is."""

    accuracy: float
    accuracy_se: float  # binomial standard error
    value: float  # of the metric; the accuracy where there is no other
    value_se: float
    largest_answer: float = math.nan  # share of the images that get the most frequent answer; NaN without one an image


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


def error_of_groups(groups: Tensor) -> float:
    """The standard error of their mean; NaN of fewer than two."""
    return (groups.std() / math.sqrt(len(groups))).item() if len(groups) > 1 else math.nan


def metric_groups(metric: Metric, logits: Tensor, labels: Tensor) -> tuple[float, Tensor]:
    """A metric of all images, and what each of 20 groups of them contributes: (G,), whose mean is that value.

    A contribution is what leaving the group out changes; there are none where the metric fails without one of them.

    Raises:
        KdsearchError: the metric fails, or gives no number.

    Reference:
        Tukey, Bias and confidence in not-quite large samples, 1958 (the jackknife)

    >>> logits, labels = torch.eye(2).repeat(50, 1), torch.tensor([0, 1] * 40 + [0, 0] * 10)
    >>> metric_groups(lambda x, y: (x.argmax(1) == y).double().mean(), logits, labels)[0]
    0.9
    """
    asked = (
        f"it is called with logits {tuple(logits.shape)} and labels {tuple(labels.shape)} and gives one number, larger "
        "is better"
    )
    what = f"metric {metric_name(metric)}"
    with user_call(what, asked):
        value = float(metric(logits, labels))
    groups = min(GROUPS, len(labels))
    # in a fixed random order: data sets with interleaved classes would lose whole classes at a time
    group = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)) % groups
    try:
        with user_call(what, asked):
            left = [float(metric(logits[group != i], labels[group != i])) for i in range(groups if groups > 1 else 0)]
    except KdsearchError:  # such as a class that has but one image
        left = []
    without = torch.tensor(left, dtype=torch.float64)
    return value, value - (groups - 1) * (without - without.mean())
