"""Estimators of a policy's gradient, by hand and against enumeration."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kdsearch.augment.operations import apply
from kdsearch.augment.policy import Policy
from kdsearch.core.errors import KdsearchError
from kdsearch.core.maths import generator
from kdsearch.core.values import Draw, View
from kdsearch.distill.estimators import (
    GATES,
    Sample,
    balanced_slots,
    endpoint,
    flip,
    flipped,
    policy_gradient,
    score_function,
)
from kdsearch.distill.phase import PolicySteps

DOUBLE = torch.float64


def loss(images: Tensor) -> Tensor:
    """Far from linear in the pixels, and different where operations meet."""
    return (9 * images.flatten(1).mean(1)).sin() + images.flatten(1).std(1) ** 2


def sample(draw: Draw, images: Tensor) -> Sample:
    return Sample(draw, loss(apply(draw, images).images), lambda other, rows: loss(apply(other, images[rows]).images))


def test_the_score_is_the_loss_over_the_mean_of_the_others_times_gate_minus_probability() -> None:
    policy = Policy(["invert"], 1)
    draw = replace(policy.draw(3), gates=torch.tensor([[True], [False], [True]]))
    made = Sample(draw, torch.tensor([1.0, 2.0, 6.0]), _never)
    derivative = score_function(made, torch.full((3, 1), 0.25, dtype=DOUBLE))
    torch.testing.assert_close(derivative, torch.tensor([[-3 * 0.75], [-1.5 * -0.25], [4.5 * 0.75]], dtype=DOUBLE))
    one = Sample(draw.rows(torch.tensor([0])), torch.tensor([5.0]), _never)
    assert score_function(one, torch.full((1, 1), 0.25, dtype=DOUBLE)).item() == 0


@pytest.mark.parametrize("gate", [True, False])
def test_a_flip_is_the_difference_that_the_operation_makes(gate: bool) -> None:
    policy = Policy(["invert"], 1, probability=0.2)
    draw = replace(policy.draw(5), gates=torch.full((5, 1), gate))
    images = torch.rand(5, 1, 4, 4, generator=generator("flip"))
    derivative = flip(sample(draw, images), torch.full((5, 1), 0.2, dtype=DOUBLE))
    expected = 0.2 * 0.8 * (loss(1 - images) - loss(images)).double()
    torch.testing.assert_close(derivative[:, 0], expected)


def test_flipped_changes_one_gate_and_nothing_else() -> None:
    policy = Policy(["rotate", "invert", "noise"], 2)
    draw = policy.draw(4, generator("flipped"))
    other = flipped(draw, torch.tensor([2, 2, 0]), torch.tensor([0, 1, 1]))
    assert (other.gates ^ draw.gates[[2, 2, 0]]).tolist() == [[True, False], [False, True], [False, True]]
    for field in ("chosen", "signs", "uniforms", "magnitudes", "seeds"):
        assert torch.equal(getattr(other, field), getattr(draw, field)[[2, 2, 0]]), field


def enumerated(policy: Policy, image: Tensor) -> Tensor:
    """Derivative of the expected loss by each logit: every subset, every gate; operations without a magnitude."""
    count, n, p = len(policy.operations), policy.operations_per_image, policy.probability.detach()
    total = torch.zeros(count, dtype=DOUBLE)
    subsets = list(itertools.combinations(range(count), n))
    draw = policy.draw(1)
    for subset, gates in itertools.product(subsets, itertools.product((False, True), repeat=n)):
        one = replace(draw, chosen=torch.tensor([subset]), gates=torch.tensor([gates]))
        value = loss(apply(one, image).images).item()
        here = p[list(subset)]
        weight = torch.where(torch.tensor(gates), here, 1 - here).prod() / len(subsets)
        total[list(subset)] += weight * value * (torch.tensor(gates).double() - here)
    return total


@pytest.mark.parametrize(("gates", "flips"), [*((name, None) for name in GATES), ("flip", 1), ("flip", 2)])
def test_the_mean_over_many_draws_is_the_enumerated_derivative(gates: str, flips: int | None) -> None:
    policy = Policy(["horizontal_flip", "autocontrast", "equalize", "solarize", "invert"], 3)
    with torch.no_grad():
        policy.logit.copy_(torch.tensor([-1.0, 0.5, 2.0, 0.0, -0.5]))
    policy.fixed_low.fill_(0.5)
    policy.fixed_high.fill_(0.5)  # one magnitude, so that enumeration is exact
    policy.learned, policy.endpoint = policy.learned[:0], torch.zeros_like(policy.endpoint)
    image = torch.rand(1, 1, 6, 6, generator=generator("enumerated"))
    size = 60_000
    draw = policy.draw(size, generator("many"))
    probability = policy.probability.detach()[draw.chosen]
    made = sample(draw, image.expand(size, -1, -1, -1))
    if flips:
        made = replace(made, tried=balanced_slots(size, 3, flips, generator("tried")))
    derivative = GATES[gates](made, probability)
    assert flips is None or derivative.count_nonzero(1).max() <= flips
    parts = torch.zeros(size, 5, dtype=DOUBLE).scatter_add_(1, draw.chosen, derivative)
    error = parts.std(0) / size**0.5
    exact = enumerated(policy, image)
    assert (exact.abs() > 8 * error).sum() >= 3  # it can fail
    assert ((parts.mean(0) - exact).abs() < 4 * error).all()


@pytest.mark.parametrize(("size", "n", "flips"), [(32, 16, 4), (5, 3, 2), (1, 4, 4), (7, 16, 1), (2, 5, 3)])
def test_each_gate_is_tried_as_often_as_any_other(size: int, n: int, flips: int) -> None:
    tried = balanced_slots(size, n, flips, generator("balanced"))
    assert tried.shape == (size, flips) and all(len({*row}) == flips for row in tried.tolist())
    counts = tried.flatten().bincount(minlength=n)
    assert counts.max() - counts.min() <= 1 and counts.sum() == size * flips


def test_each_gate_of_each_image_is_tried_with_the_same_probability() -> None:
    random, tries, found = generator("inclusion"), 3000, torch.zeros(3, 5)
    for _ in range(tries):
        found += torch.zeros(3, 5).scatter(1, balanced_slots(3, 5, 2, random), 1.0)
    assert (found / tries - 2 / 5).abs().max() < 4 * (0.4 * 0.6 / tries) ** 0.5


def test_a_policy_step_flips_as_many_gates_as_it_is_told() -> None:
    policy, images = Policy(["invert", "equalize", "autocontrast", "posterize"], 4), torch.rand(8, 1, 4, 4)
    for flips, seen in ((None, 4), (1, 1), (3, 3), (4, 4), (9, 4)):
        rows: list[int] = []

        def counted(view: View, places: Tensor, rows: list[int] = rows) -> Tensor:
            rows.append(len(places))
            return loss(view.images)

        policy.endpoint = torch.zeros_like(policy.endpoint)
        policy_gradient(policy, policy.draw(8, generator("told")), images, counted, flips=flips, random=generator("m"))
        assert sum(rows) == 8 + 8 * seen


def test_the_ends_give_the_derivative_of_a_mean_over_a_uniform_range() -> None:
    """Solarize of a ramp: the mean pixel is quadratic in the magnitude, so both derivatives are known."""
    size = 40_000
    policy = Policy({"solarize": 1.0}, 1)
    low, high = (end.item() for end in policy.ranges())
    draw = policy.draw(size, generator("ends"))
    ramp = ((torch.arange(4096) + 0.5) / 4096).view(1, 1, 64, 64)

    def mean(draw: Draw, rows: Tensor) -> Tensor:
        return apply(draw, ramp.expand(len(draw), -1, -1, -1)).images.flatten(1).mean(1)

    values: list[Tensor] = []
    for part in torch.arange(size).split(2000):
        rows = draw.rows(part)
        made = Sample(rows, mean(rows, part), mean)
        ends = (torch.full((len(part), 1), end, dtype=DOUBLE) for end in (low, high))
        values.append(torch.cat(endpoint(made, *ends, torch.ones(len(part), 1, dtype=torch.bool)), 1))
    by_low, by_high = torch.cat(values)[draw.gates[:, 0]].unbind(1)
    assert (torch.cat(values)[~draw.gates[:, 0]] == 0).all()
    # The mean pixel at magnitude m is 1/2 - m + m^2; its mean over [low, high] and that one's derivatives by hand.
    width = high - low

    def at(m: float) -> float:
        return 0.5 - m + m * m

    expected = 0.5 - (low + high) / 2 + (low**2 + low * high + high**2) / 3
    for got, exact in ((by_high, (at(high) - expected) / width), (by_low, (expected - at(low)) / width)):
        assert got.mean().item() == pytest.approx(exact, abs=4 * got.std().item() / len(got) ** 0.5 + 1e-3)
        assert abs(exact) > 0.05
    assert (at(high) - expected) / width == pytest.approx(-0.5 + (low + 2 * high) / 3)


def test_the_ends_of_a_signed_operation_keep_the_sign_that_was_drawn() -> None:
    policy = Policy({"brightness": 0.5}, 1)
    draw = replace(policy.draw(64, generator("signs")), gates=torch.ones(64, 1, dtype=torch.bool))
    images = torch.full((64, 1, 2, 2), 0.5)

    def mean(draw: Draw, rows: Tensor) -> Tensor:
        return apply(draw, images[rows]).images.flatten(1).mean(1)

    made = Sample(draw, mean(draw, torch.arange(64)), mean)
    low, high = (torch.full((64, 1), end.item(), dtype=DOUBLE) for end in policy.ranges())
    by_low, by_high = endpoint(made, low, high, torch.ones(64, 1, dtype=torch.bool))
    u, sign = draw.uniforms[..., 0], draw.signs
    assert set(sign.flatten().tolist()) == {-1.0, 1.0}
    torch.testing.assert_close(by_high, 0.5 * sign * (1 - u), atol=1e-5, rtol=0)  # the mean is 1/2 (1 + sign m)
    torch.testing.assert_close(by_low, 0.5 * sign * u, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "limit"), [("solarize", 0.8), ("brightness", 0.8)])
def test_gradients_go_through_the_sigmoids_of_gates_and_ranges(name: str, limit: float) -> None:
    """Of brightness, whose pixels pass a gradient too, from the ends alone: nothing is counted twice."""
    policy = Policy({name: limit, "invert": None}, 2, probability=0.3)
    draw = replace(policy.draw(3, generator("sum")), gates=torch.tensor([[True, True]] * 3))
    images = torch.rand(3, 1, 8, 8, generator=generator("sum images"))
    policy_gradient(policy, draw, images, lambda view, rows: loss(view.images))
    made = sample(draw, images)
    by_logit = flip(made, policy.probability.detach()[draw.chosen])
    torch.testing.assert_close(policy.logit.grad, by_logit.sum(0)[[0, 1]] / 3)
    low, high = (end.detach()[draw.chosen] for end in policy.ranges())
    by_low, by_high = (d[:, 0].mean().item() for d in endpoint(made, low, high, draw.chosen == 0))
    share, top = 1 / (1 + math.exp(2)), 0.4
    assert policy.a.grad.item() == pytest.approx(0.5 * top * (by_high + share * by_low))
    assert policy.b.grad.item() == pytest.approx(top * share * (1 - share) * by_low)


def test_the_loss_sees_rows_views_and_matrices_of_the_images_it_is_asked_about() -> None:
    policy = Policy(["horizontal_flip", "solarize"], 2)
    images = torch.rand(5, 1, 8, 8, generator=generator("rows"))
    calls = []

    def marked(view: View, rows: Tensor) -> Tensor:
        calls.append((rows, torch.is_grad_enabled()))
        turned = view.matrix[:, 0, 0] < 0
        mirrored = torch.where(turned[:, None, None, None], view.images.flip(3), view.images)
        inverted = torch.minimum(mirrored, 1 - mirrored)  # what solarize leaves alone
        torch.testing.assert_close(inverted, torch.minimum(images, 1 - images)[rows], atol=1e-5, rtol=0)
        return view.images.flatten(1).mean(1)

    policy_gradient(policy, policy.draw(5, generator("rows draw")), images, marked)
    assert calls[0][0].tolist() == list(range(5)) and [grad for _, grad in calls] == [True, False, False]
    assert calls[1][0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_a_policy_held_still_asks_for_nothing_at_its_ends() -> None:
    frozen = Policy.from_spec(Policy(["solarize", "rotate"], 2).freeze())
    calls = []

    def counted(view: View, rows: Tensor) -> Tensor:
        calls.append(len(rows))
        return loss(view.images)

    images = torch.rand(8, 1, 8, 8, generator=generator("frozen images"))
    policy_gradient(frozen, frozen.draw(8, generator("frozen")), images, counted, gates="score")
    assert calls == [8] and not len(frozen.a) and (frozen.logit.grad != 0).any()


def test_counterfactual_images_come_in_parts_and_the_parts_change_nothing() -> None:
    """Of four operations each image has four: never more than twice the batch at a time."""
    policy = Policy(["solarize", "invert", "horizontal_flip", "autocontrast"], 4)
    images, sizes = torch.rand(6, 1, 8, 8, generator=generator("parts images")), []

    def counted(view: View, rows: Tensor) -> Tensor:
        sizes.append(len(rows))
        return loss(view.images)

    draw = policy.draw(6, generator("parts"))
    policy_gradient(policy, draw, images, counted)
    assert sizes[:3] == [6, 12, 12] and sum(sizes[3:]) == 2 * (draw.gates & (draw.chosen == 2)).sum()
    whole = flip(sample(draw, images), policy.probability.detach()[draw.chosen])
    torch.testing.assert_close(
        policy.logit.grad, torch.zeros(4).double().index_add(0, draw.chosen.flatten(), whole.flatten()) / 6
    )


def _never(draw: Draw, rows: Tensor) -> Tensor:
    raise AssertionError("no counterfactual image is needed")


def test_policy_steps_that_make_no_sense_are_refused_together() -> None:
    with pytest.raises(KdsearchError) as caught:
        PolicySteps(
            gates="flop", flips=0, interval=0, passes=2.5, pauses=(0.5, 1.0), objective={"studnet_wrong": 0.0},
            floor=-1.0, warm_up=1.0,
        )  # fmt: skip
    assert str(caught.value) == (
        "policy steps: 8 problems\n"
        "  unknown estimator of gates 'flop'; did you mean 'flip'?\n"
        "  unknown term 'studnet_wrong'; did you mean 'student_wrong'?\n"
        "  interval is 0; allowed: whole numbers, 1 or more\n"
        "  passes is 2.5; allowed: whole numbers, 1 or more\n"
        "  flips is 0; allowed: whole numbers, 1 or more\n"
        "  floor -1; allowed: 0 or more\n"
        "  warm_up 1; allowed: 0 to less than 1\n"
        "  pauses: 1; allowed: between 0 and 1"
    )


def test_phases_that_fall_off_a_short_run_or_together_are_refused() -> None:
    assert PolicySteps(pauses=(0.125, 0.375)).pause_epochs(8) == [1, 3]
    for shares, epochs in (((0.95,), 10), ((0.125,), 3), ((0.5,), 1), ((0.3, 0.32), 10)):
        with pytest.raises(KdsearchError, match=f"with {epochs} epochs they come after epoch"):
            PolicySteps(pauses=shares).pause_epochs(epochs)


def test_an_unknown_estimator_is_refused_before_anything_runs() -> None:
    policy = Policy(["invert"], 1)
    with pytest.raises(KdsearchError, match="unknown estimator of gates 'flop'; did you mean 'flip'"):
        policy_gradient(policy, policy.draw(2), torch.zeros(2, 1, 4, 4), _never, gates="flop")
