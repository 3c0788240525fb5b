"""`benchmarks/free.py`: the regression gives effects that are known, and looking at a student changes nothing."""

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType

import pytest
import torch

import kdsearch as kd
from kdsearch.core.maths import generator
from kdsearch.losses.objectives import TABLE
from kdsearch.study.preflight import preflight
from kdsearch.study.ready import Ready
from kdsearch.study.run import run_trial


@pytest.fixture(scope="module")
def free(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("free")


@pytest.fixture(scope="module")
def ready(tiny_study: kd.Study, tmp_path_factory: pytest.TempPathFactory) -> Ready:
    study = replace(tiny_study, base="auto", budget=replace(tiny_study.budget, epochs=10, steps=2))
    return preflight(study, tmp_path_factory.mktemp("free")).ready


@pytest.mark.parametrize("per_image", [4, 2])
def test_the_regression_gives_the_effects_that_were_put_in(free: ModuleType, per_image: int) -> None:
    policy = kd.Policy({"rotate": 30.0, "brightness": 0.5, "invert": None, "noise": 0.1}, per_image)
    with torch.no_grad():
        policy.logit.copy_(torch.tensor([0.1, 0.3, 0.5, 0.9]).logit())
    effects = torch.tensor([0.0, 2.0, -1.0, 0.5], dtype=torch.float64)
    random, p = generator("known effects", per_image), policy.probability.detach()
    draw = policy.draw(4000, random)
    applied = torch.zeros(4000, 4, dtype=torch.float64)
    applied.scatter_(1, draw.chosen, draw.gates.double() - p[draw.chosen])
    base = 3 * torch.randn(4000, generator=random).double()
    second = 5 + 0.7 * base + applied @ effects
    found = free.free_slope(torch.cat([base, second]), draw, p)
    torch.testing.assert_close(found, effects, rtol=0.03, atol=0.01)


def test_flips_and_slopes_of_an_objective_that_is_linear_in_gates_are_its_effects(free: ModuleType) -> None:
    policy, random = kd.Policy({"rotate": 30.0, "invert": None}, 2, probability=0.2), generator("linear")
    draw, effects = policy.draw(500, random), torch.tensor([1.5, -0.5], dtype=torch.float64)
    here = draw.gates.double() @ effects
    there = (here[:, None] + torch.where(draw.gates, -effects, effects)).flatten()
    p = policy.probability.detach()
    by_flips = free.added(draw, here, there, p)
    torch.testing.assert_close(by_flips, effects.expand(500, 2))
    by_slopes = free.free_slope(torch.cat([torch.zeros(500), here]), draw, p)
    torch.testing.assert_close(by_slopes, effects, rtol=0.03, atol=0.01)
    noise = 0.01 * torch.randn(500, 2, generator=random)
    row = free.compared(policy.operations, by_flips + noise, 0.5 * by_slopes + noise, by_slopes + noise, 64)
    assert row["slope"] == pytest.approx(0.5, abs=0.03) and row["evaluation mode"] == pytest.approx(1, abs=0.03)
    assert row["correlation"] == pytest.approx(1) and row["noise"] == pytest.approx(8, rel=1e-3)


def test_looking_at_a_student_changes_nothing(free: ModuleType, ready: Ready) -> None:
    rows = list(free.run_rows(ready, 1, 40, 3))
    assert [(row["at"], row["objective"]) for row in rows] == [
        (moment, name) for moment in free.MOMENTS.values() for name in free.OBJECTIVES
    ]
    assert len({row["slope"] for row in rows}) == len(rows) and not {*free.TERMS} & {*TABLE}
    policy, _ = free.second_view(ready, "free")
    looked = []
    for _, student in free.students(ready, policy, 0):
        before = {name: value.clone() for name, value in student.state_dict().items()}
        free.flips_of(ready, policy, student, 20, 0)
        free.Slopes(ready, policy, student).run(2, 0)
        looked.append(all(torch.equal(value, before[name]) for name, value in student.state_dict().items()))
    assert looked == [True] * len(free.MOMENTS)
    plain = run_trial(ready, None, policy=policy, seed=0).student
    assert plain is not None
    for one, other in zip(plain.state_dict().values(), student.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_evaluation_mode_is_training_mode_where_a_student_has_no_statistics(free: ModuleType, ready: Ready) -> None:
    def without() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 10))

    ready = replace(ready, study=replace(ready.study, student=without))
    policy, _ = free.second_view(ready, "free")
    slopes = free.Slopes(ready, policy, ready.student())
    slopes.run(2, 0)
    for name in free.OBJECTIVES:
        torch.testing.assert_close(slopes.moving[name], slopes.still[name])
        assert len(slopes.moving[name]) == 2 and slopes.moving[name][0].any()
