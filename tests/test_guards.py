"""Guards: what a run says of a policy that should not be trusted."""

from dataclasses import replace

import pytest
import torch

from kdsearch.augment.policy import Policy
from kdsearch.core.maths import noise_scale, spoiled_shares
from kdsearch.distill.distiller import EpochRecord
from kdsearch.distill.guards import policy_warnings

FINE = EpochRecord(
    epoch=10,
    progress=1.0,
    supervised_loss=0.1,
    distillation_loss=0.1,
    losses={},
    value=0.9,
    value_se=0.01,
    accuracy=0.9,
    accuracy_se=0.01,
    learning_rate=0.0,
    policy_steps=10,
    policy_objective=1.0,
    policy_prior=0.1,
    teacher_accuracy=0.95,
    teacher_clean_accuracy=1.0,
    floor_violation=0.05,
    dual=1.0,
    emptied=0.01,
    saturated=0.02,
    gates_at_bound=0,
    ranges_at_limit=0,
    gradient_norm=0.1,
    noise_scale=100.0,
    seconds=1.0,
)


def test_nothing_is_said_where_all_is_well() -> None:
    assert policy_warnings([FINE], Policy(["rotate", "invert"], 1), 0.9) == ()
    unmeasured = replace(FINE, floor_violation=float("nan"))
    assert policy_warnings([unmeasured], Policy(["rotate"], 1), 0.9) == ()
    before = replace(FINE, floor_violation=0.2)  # of a phase, some epochs before the last
    assert len(policy_warnings([before, unmeasured], Policy(["rotate"], 1), 0.9)) == 1


def test_on_one_view_the_teacher_is_compared_with_what_it_knows_of_the_training_images() -> None:
    one = replace(FINE, teacher_clean_accuracy=float("nan"), teacher_accuracy=0.45)
    policy = Policy(["rotate"], 1)
    assert policy_warnings([one], policy, 0.94) == () != policy_warnings([one], policy, 0.96)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"emptied": 0.04}, "4% of the augmented images are empty, 2% saturated"),
        ({"teacher_accuracy": 0.49}, "the teacher is right on 49% of the augmented images, on 100% of the base views"),
        ({"floor_violation": 0.11}, "the teacher's cross-entropy is 0.11 nats over the floor"),
    ],
)
def test_what_is_wrong_is_said_with_its_numbers(changes: dict[str, float], said: str) -> None:
    assert policy_warnings([FINE, replace(FINE, **changes)], Policy(["rotate"], 1), 0.9) == (said,)


def test_gates_and_ranges_at_their_bounds_are_named() -> None:
    policy = Policy(["rotate", "solarize", "invert"], 1)
    with torch.no_grad():
        policy.logit.copy_(torch.tensor([-5.2, 5.4, 5.2]))  # .0055, .9955, .9945
        policy.a.copy_(torch.tensor([3.8, 4.0]))  # .978, .982 of the limit
    assert policy.at_bounds() == (["solarize"], ["solarize"])
    assert policy_warnings([FINE], policy, 0.9) == (
        "probabilities at 0 or 1: solarize; a stronger prior keeps them off",
        "ranges at their limit: solarize; a higher limit lets them go on",
    )
    assert policy.freeze().final["solarize"].probability == 1.0
    assert Policy.from_spec(policy.freeze()).at_bounds() == (["solarize"], [])  # its ranges are held, not learned


def test_emptied_is_measured_against_the_image_and_saturated_against_what_it_was() -> None:
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    flat = x.mean((1, 2, 3), keepdim=True) + 0.05 * (x - x.mean((1, 2, 3), keepdim=True))
    black_and_white = (x > 0.5).float()
    assert spoiled_shares(x, x).tolist() == [0.0, 0.0]
    assert spoiled_shares(x, torch.cat([flat[:1], x[1:]])).tolist() == [0.5, 0.0]
    assert spoiled_shares(x, torch.cat([black_and_white[:1], x[1:]])).tolist() == [0.0, 0.5]
    assert spoiled_shares(black_and_white, 1 - black_and_white).tolist() == [0.0, 0.0]  # it was so before
    assert spoiled_shares(x, torch.ones_like(x)).tolist() == [1.0, 0.0]  # emptied, counted once


def test_the_noise_scale_is_the_batch_at_which_noise_and_signal_are_alike() -> None:
    """Mean gradients of batches of 16 independent numbers of mean m and deviation s: the scale is s^2 / m^2."""
    random = torch.Generator().manual_seed(1)
    mean, deviation = torch.tensor([0.3, -0.4]).double(), 2.0
    steps = mean + deviation * torch.randn(4000, 16, 2, generator=random, dtype=torch.float64).mean(1)
    norm, scale = noise_scale(list(steps), 16)
    assert norm == pytest.approx(0.5, rel=0.05)
    assert scale == pytest.approx(2 * deviation**2 / 0.25, rel=0.1)
    nothing = list(steps[:8] - steps[:8].mean(0))
    assert noise_scale(nothing, 16)[1] != noise_scale(nothing, 16)[1]  # NaN: no signal is left
    assert [value != value for value in noise_scale([], 16)] == [True, True]
    assert noise_scale([steps[0]], 16)[0] == pytest.approx(steps[0].norm().item())
