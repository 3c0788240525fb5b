"""`benchmarks/recovery.py`: its file of cases, the end of what a teacher bears, the order of rises."""

import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

import kdsearch as kd

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def recovery(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("recovery")


def test_the_file_has_ten_single_plants_and_three_pairs(recovery: ModuleType) -> None:
    cases = recovery.Cases.model_validate(tomllib.loads((BENCHMARKS / "recovery.toml").read_text()))
    assert [len(case.plants) for case in cases.case] == [1] * 10 + [2] * 3 and cases.seeds == 5
    for case in cases.case:
        limits = cases.limits(case)
        assert {*case.plants} <= {*limits} and all(limits[name] >= at for name, at in case.plants.items())
        kd.Policy(limits, 4)  # no limit is beyond the hard range
    with pytest.raises(ValidationError):
        recovery.Case(plants={})


class Bears(nn.Module):
    """Right, and sure of it, on images of a mean of at most `most`, each its own; wrong on brighter ones."""

    def __init__(self, labels: Tensor, most: Tensor) -> None:
        super().__init__()
        self.labels, self.most = labels, most

    def forward(self, images: Tensor) -> Tensor:
        logits = nn.functional.one_hot(self.labels, 10).float() * 20
        return torch.where((images.flatten(1).mean(1) <= self.most)[:, None], logits, -logits)


def test_the_measured_end_is_the_last_magnitude_that_the_teacher_bears(recovery: ModuleType) -> None:
    train = kd.data.digits()[0]
    mean = train.images.flatten(1).mean(1)  # noise makes a dark ground brighter
    ends = [recovery.measured_end(Bears(train.labels, mean + more), "noise", 0.4) for more in (0.0, 0.02, 0.05, 1.0)]
    assert ends[0] == 0.0 < ends[1] < ends[2] < ends[3] == pytest.approx(0.4)


def test_operations_are_ranked_by_how_far_they_rise(recovery: ModuleType) -> None:
    row = {"planted": {"rotate": (0.9, 40.0), "noise": (0.5, 0.2), "scale": (0.4, 0.3)},
           "null": {"rotate": (0.5, 20.0), "noise": (0.45, 0.2), "scale": (0.5, 0.3)}}  # fmt: skip
    assert recovery.ranked(row) == ["rotate", "noise", "scale"]
