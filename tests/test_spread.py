"""`benchmarks/spread.py`: variance components that are known, and policies that differ."""

from collections.abc import Callable
from types import ModuleType

import pytest
import torch

from kdsearch.core.maths import generator
from kdsearch.study.space import SearchSpace


@pytest.fixture(scope="module")
def spread(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("spread")


def test_the_components_are_those_that_were_put_in(spread: ModuleType) -> None:
    """Worth of deviation 2, seeds of 3, the rest 1, 20 policies on 3 seeds: means over 2,000 tables."""
    random = generator("components")
    found = []
    for _ in range(2000):
        worth, seeds = 2 * torch.randn(20, 1, generator=random), 3 * torch.randn(1, 3, generator=random)
        found.append(spread.spread((worth + seeds + torch.randn(20, 3, generator=random)).double()))
    true, error, of_seeds = torch.tensor(found).square().mean(0).sqrt().tolist()
    assert true == pytest.approx(2, rel=0.05) and error == pytest.approx(3**-0.5, rel=0.05)
    assert of_seeds == pytest.approx(3, rel=0.05)


def test_policies_that_are_alike_have_no_spread(spread: ModuleType) -> None:
    values = torch.randn(200, 4, generator=generator("alike")).double()
    assert spread.spread(values)[0] < 0.3


def test_each_number_has_a_policy_of_its_own(spread: ModuleType) -> None:
    space = SearchSpace.load("default")
    specs = [spread.random_policy(space.limits, space.fill, number).freeze().to_json() for number in range(20)]
    assert len({*specs}) == 20 and specs[3] == spread.random_policy(space.limits, space.fill, 3).freeze().to_json()
    assert {name for names in spread.GROUPS.values() for name in names} == {*space.limits}
