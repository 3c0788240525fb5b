"""What is said of a search: a verdict with evidence, an interval that holds, a student that learned something."""

import math

import pytest
import torch
from torch import Tensor

from kdsearch.metrics import Scale, metric_value


def right(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.argmax(1) == labels).double().mean()


def test_the_jackknife_of_interleaved_classes_is_that_of_shuffled_ones() -> None:
    labels = torch.arange(1000) % 20
    logits = torch.eye(20)[labels].clone()
    logits[labels < 2] = torch.eye(20)[5]  # two classes of 20 are never right
    value, error = metric_value(right, logits, labels)
    assert value == pytest.approx(0.9)
    assert error == pytest.approx(math.sqrt(0.9 * 0.1 / 1000), rel=0.5)


def test_an_error_that_nobody_knows_is_not_written() -> None:
    assert Scale("kappa").text(0.5, math.nan) == Scale("kappa").text(0.5) == "0.500"


@pytest.mark.parametrize(
    ("low", "high", "written"),
    [
        (-0.01, 0.03, "-1.0 to +3.0"),
        (-0.0004, -0.0002, "-0.04 to -0.02"),
        (0.0, 0.0004, "+0.00 to +0.04"),
        (0.0281, 0.0284, "+2.81 to +2.84"),
        (0.0001, 0.03, "+0.01 to +3.00"),
    ],
)
def test_the_ends_of_an_interval_are_told_apart(low: float, high: float, written: str) -> None:
    assert Scale("accuracy").interval(low, high) == written
