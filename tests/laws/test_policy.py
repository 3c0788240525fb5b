"""Laws of the policy: what its gradients are, what it draws, and what survives freezing."""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from kdsearch.augment.operations import TABLE as OPERATIONS
from kdsearch.augment.operations import apply
from kdsearch.augment.policy import LOW_START, Policy
from kdsearch.augment.presets import random_resized_crop, trivial
from kdsearch.core.errors import KdsearchError
from kdsearch.core.maths import generator
from kdsearch.core.values import Batch, Draw
from kdsearch.data.batches import ArrayData
from kdsearch.distill.distiller import Distiller
from kdsearch.distill.estimators import GATES
from kdsearch.distill.phase import PolicySteps
from kdsearch.losses.objectives import student_wrong
from kdsearch.networks.teachers import Teacher
from kdsearch.tasks import Classification

NAMES = list(OPERATIONS)


def uneven(names: list[str], n: int) -> Policy:
    """A policy whose probabilities and ranges all differ, away from where they start."""
    policy = Policy(names, n)
    with torch.no_grad():
        for parameter, centre in ((policy.logit, 0.0), (policy.a, 0.5), (policy.b, -1.0)):
            parameter.copy_(centre + 1.5 * torch.rand(len(parameter), generator=generator("uneven")) - 0.75)
    return policy


# Gradients


class Random(nn.Module):
    """A small network with fixed random weights, smooth and sensitive to what a policy does."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(channels * 16 * 16, 16), nn.Linear(16, 4)
        with torch.no_grad():
            for i, (name, parameter) in enumerate(self.named_parameters()):
                values = torch.randn(parameter.shape, generator=generator("random network", i, name))
                parameter.copy_(values * (1.5 / parameter.shape[1] ** 0.5 if parameter.ndim > 1 else 0.15))

    def forward(self, x: Tensor) -> Tensor:
        return 3 * self.head(torch.tanh(self.hidden((4 * x - 2).flatten(1))))


class Learning:
    """The expected loss of a policy in both its forms: the distiller's gradient, and finite differences over draws.

    The loss is `student_wrong` of a fixed random network in float64. One image many times over, so that its loss
    varies through the policy alone.
    """

    def __init__(self, images: Tensor, names: list[str], n: int, *, size: int) -> None:
        self.size = size
        self.policy = uneven([name for name in names if OPERATIONS[name].channels <= images.shape[1]], n)
        self.network = Random(images.shape[1]).double()
        self.images = images[:1, :, :16, :16].double().expand(self.size, -1, -1, -1)
        self.target = torch.zeros(self.size, dtype=torch.int64)
        self.draw = self.policy.draw(self.size, generator("learning"))

    def by_the_distiller(self, gates: str = "flip") -> dict[str, Tensor]:
        """Gradient of each parameter on the draw, out of `policy_step` itself: what a step of length 1 goes back."""
        start = {name: p.detach().clone() for name, p in self.policy.named_parameters()}
        distiller = Distiller(Teacher(self.network), self.network, self.policy, Classification.of(4))
        steps = PolicySteps(prior_strength=0.0, objective={"student_wrong": 1.0}, floor=None, gates=gates)
        optimizer = torch.optim.SGD(self.policy.parameters(), lr=1.0)
        batch = Batch(self.images, self.target, torch.arange(self.size))
        distiller.policy_step(batch, steps, optimizer, generator("learning"))
        gradient = {name: start[name] - p.detach() for name, p in self.policy.named_parameters()}
        self.policy.load_state_dict(start, strict=False)
        return gradient

    def by_differences(self, name: str, i: int, h: float) -> tuple[float, float]:
        """Derivative of the expected loss to one parameter from common random numbers, and its standard error.

        Of a range: central differences, its own error. Of a probability: the loss with the gate on minus the loss with
        it off, and the error of the score function on these draws, which is the larger one.
        """
        draw, differences = self.draw, torch.zeros(self.size, dtype=torch.float64)  # 0 where it was not drawn
        if name == "logit":
            slot = draw.chosen == i
            rows = torch.nonzero(slot.any(1))[:, 0]
            on, off = (self._loss(replace(draw, gates=draw.gates.masked_fill(slot, g)), rows) for g in (True, False))
            p, gate = self.policy.probability[i].item(), (slot & draw.gates).any(1)[rows].double()
            differences[rows] = (on - off) * p * (1 - p)
            score = torch.zeros_like(differences)
            score[rows] = (torch.where(gate == 1, on, off) - self.mean_loss) * (gate - p)
            return differences.mean().item(), score.std().item() / self.size**0.5
        rows = torch.nonzero(((draw.chosen == int(self.policy.learned[i])) & draw.gates).any(1))[:, 0]
        high, low = (self._loss(self._moved(name, i, step), rows) for step in (h, -h))
        differences[rows] = (high - low) / (2 * h)
        return differences.mean().item(), differences.std().item() / self.size**0.5

    @cached_property
    def mean_loss(self) -> Tensor:
        return self._loss(self.draw, torch.arange(self.size)).mean()

    @torch.no_grad()
    def _loss(self, draw: Draw, rows: Tensor) -> Tensor:
        logits = self.network(apply(draw.rows(rows), self.images[rows]).images)
        return student_wrong(logits, logits, self.target[rows])

    @torch.no_grad()
    def _moved(self, name: str, i: int, step: float) -> Draw:
        """The draw with one parameter of the policy moved."""
        parameter = self.policy.get_parameter(name)
        start = parameter[i].item()
        parameter[i] = start + step
        moved = replace(self.draw, magnitudes=self.policy.magnitudes(self.draw))
        parameter[i] = start
        return moved


GROUPS = {
    "geometry": [name for name, op in OPERATIONS.items() if op.matrix],
    "pixels": [name for name, op in OPERATIONS.items() if op.pixels],
}
# How many parameters have an effect that can be judged, of 10,000 draws.
JUDGED = {
    ("digits_images", "geometry", 1): {"logit": 6, "a": 6, "b": 6},
    ("photos", "geometry", 2): {"logit": 6, "a": 5, "b": 5},
    ("digits_images", "pixels", 1): {"logit": 2, "a": 3, "b": 3},
    ("photos", "pixels", 1): {"logit": 1, "a": 3, "b": 3},
}


@pytest.mark.parametrize(("kind", "group", "n"), JUDGED)
def test_every_learnable_number_moves_the_way_of_the_expected_loss(
    kind: str, group: str, n: int, request: pytest.FixtureRequest
) -> None:
    learning = Learning(request.getfixturevalue(kind), GROUPS[group], n, size=10_000)
    gradients = {gates: learning.by_the_distiller(gates) for gates in GATES}
    assert all(set(gradient) == {"logit", "a", "b"} for gradient in gradients.values())
    judged, wrong = dict.fromkeys(JUDGED[kind, group, n], 0), []
    for name in judged:
        for i in range(len(learning.policy.get_parameter(name))):
            expected, error = learning.by_differences(name, i, 0.05)
            if abs(expected) <= 4 * error:
                continue
            judged[name] += 1
            for gates, gradient in gradients.items():
                if expected * gradient[name][i] <= 0:
                    wrong.append(
                        f"{gates}, {name}[{i}]: {gradient[name][i]:.2e}, the expected loss says {expected:.2e}"
                    )
    assert not wrong
    assert all(judged[name] >= floor for name, floor in JUDGED[kind, group, n].items()), judged


def test_ranges_get_exactly_the_derivative_of_the_loss_on_the_same_draws(images: Tensor) -> None:
    steady = [name for name in NAMES if OPERATIONS[name].range == "pathwise"]  # no jumps after them
    learning = Learning(images, steady, 2, size=1024)
    gradient = learning.by_the_distiller()
    for name in ("a", "b"):
        numeric = torch.tensor([learning.by_differences(name, i, 1e-6)[0] for i in range(len(gradient[name]))])
        assert (numeric != 0).all()
        torch.testing.assert_close(gradient[name], numeric.double(), rtol=0.01, atol=1e-3 * numeric.abs().max().item())


def test_every_learnable_number_gets_a_gradient(images: Tensor) -> None:
    names = [name for name, op in OPERATIONS.items() if op.channels <= images.shape[1]]
    learning = Learning(images, names, 4, size=512)
    gradient = learning.by_the_distiller()
    assert len(gradient["a"]) == len(gradient["b"]) == sum(OPERATIONS[name].range != "none" for name in names)
    for name, values in gradient.items():
        assert (values != 0).all() and torch.isfinite(values).all(), name


def test_the_gradient_of_a_range_is_the_chain_rule_by_hand() -> None:
    policy = Policy({"rotate": 30.0}, 1)
    draw = policy.draw(1, generator("hand"))
    policy.magnitudes(draw).sum().backward()
    u, sign = draw.uniforms[0, 0, 0], draw.signs[0, 0]
    share = torch.sigmoid(torch.tensor(LOW_START, dtype=torch.float64))
    high_by_a = 30 * 0.25  # limit * sigmoid'(0)
    torch.testing.assert_close(policy.a.grad[0], sign * high_by_a * (share + (1 - share) * u))
    torch.testing.assert_close(policy.b.grad[0], sign * 15 * share * (1 - share) * (1 - u))


@pytest.mark.parametrize(("centre", "strength", "n"), [(0.5, 0.3, 1), (0.5, 0.03, 3), (0.2, 1.0, 2), (0.9, 3.0, 2)])
def test_the_prior_balances_a_linear_loss_where_its_formula_says(centre: float, strength: float, n: int) -> None:
    policy = Policy(["rotate", "invert", "noise"], n, probability=centre)
    without, with_it = torch.tensor([0.5, 0.2, 0.1]).double(), torch.tensor([0.4, 0.7, 0.1]).double()
    with torch.no_grad():
        policy.logit.copy_(torch.logit(torch.tensor(centre, dtype=torch.float64)) + (without - with_it) / strength)
    expected = (policy.rate * (with_it - without)).sum()
    (expected + strength * policy.prior_loss()).backward()
    torch.testing.assert_close(policy.logit.grad, torch.zeros(3).double(), atol=1e-9, rtol=0)
    for parameter in (policy.a, policy.b):  # the ranges are at their own optimum from the start
        torch.testing.assert_close(parameter.grad, torch.zeros(2).double(), atol=1e-9, rtol=0)


def test_the_prior_is_zero_where_a_policy_starts_and_grows_away_from_it() -> None:
    policy = Policy(NAMES, 3, probability=0.3, extent=0.7)
    assert policy.prior_loss().item() == pytest.approx(0, abs=1e-12)
    assert uneven(NAMES, 3).prior_loss().item() > 0.05


# Modes


def test_the_policy_is_the_identity_in_evaluation_mode_only(digits_images: Tensor) -> None:
    policy = Policy([name for name in NAMES if name != "saturation"], 3, probability=0.9)
    x = digits_images[:32]
    trained = policy.train()(x, generator("mode"))
    assert not torch.equal(trained, x)
    assert torch.equal(policy.eval()(x, generator("mode")), x)
    assert torch.equal(apply(policy.draw(32, generator("mode")), x).images, trained)


def test_the_same_generator_gives_the_same_draw_and_the_live_magnitudes_are_those_of_the_draw() -> None:
    policy = uneven(NAMES, 4)
    a, b, other = (policy.draw(64, generator("draws", i)) for i in (0, 0, 1))
    for field in ("chosen", "gates", "signs", "uniforms", "magnitudes", "seeds"):
        assert torch.equal(getattr(a, field), getattr(b, field)), field
        assert field == "gates" or not torch.equal(getattr(a, field), getattr(other, field)), field
    assert torch.equal(policy.magnitudes(a).detach(), a.magnitudes)
    assert not a.magnitudes.requires_grad and policy.magnitudes(a).requires_grad


# Statistics of draws: one family, wrongly rejected once in a thousand

DRAWS = 20_000


def family() -> dict[str, float]:
    """A p-value for each statistical law of each operation."""
    found = {}
    for n in (1, 4, len(NAMES)):
        policy = uneven(NAMES, n)
        draw = policy.draw(DRAWS, generator("family", n))
        low, high = (v.tolist() for v in policy.ranges())
        for i, (name, op) in enumerate(OPERATIONS.items()):
            slot = draw.chosen == i
            drawn, applied = int(slot.sum()), int((slot & draw.gates).sum())
            found[f"{n} {name} drawn"] = stats.binomtest(drawn, DRAWS, n / len(NAMES)).pvalue
            found[f"{n} {name} applied"] = stats.binomtest(applied, DRAWS, policy.rate[i].item()).pvalue
            m = draw.magnitudes[slot]
            if op.signed:
                found[f"{n} {name} positive"] = stats.binomtest(int((m > 0).sum()), drawn, 0.5).pvalue
                gated = int((m[draw.gates[slot]] > 0).sum())
                found[f"{n} {name} positive where applied"] = stats.binomtest(gated, applied, 0.5).pvalue
            if op.limit is not None:
                uniform = stats.uniform(low[i], high[i] - low[i])
                for part, values in (("", m.abs()), (" where applied", m[draw.gates[slot]].abs())):
                    found[f"{n} {name} uniform{part}"] = stats.kstest(values.numpy(), uniform.cdf).pvalue
        together = torch.zeros(len(NAMES), dtype=torch.int64).index_add(
            0, draw.chosen.flatten(), draw.gates.flatten().long()
        )
        assert together.sum() == draw.gates.sum()
    return found


def test_rates_signs_and_magnitudes_are_what_the_policy_says() -> None:
    found = family()
    assert len(found) > 150
    rejected = {name: p for name, p in found.items() if p < 1e-3 / len(found)}
    assert not rejected


@pytest.mark.parametrize("n", [1, 4, len(NAMES)])
def test_no_image_draws_an_operation_twice_and_the_order_is_that_of_the_table(n: int) -> None:
    chosen = Policy(NAMES, n).draw(2000, generator("twice")).chosen
    assert chosen.shape == (2000, n)
    assert (chosen.diff(dim=1) > 0).all()


def test_magnitudes_lie_in_their_ranges_and_are_zero_without_one() -> None:
    policy = uneven(NAMES, len(NAMES))
    draw = policy.draw(2000, generator("ranges"))
    low, high = policy.ranges()
    size = draw.magnitudes.detach().abs()
    assert (size >= low.detach() - 1e-12).all() and (size <= high.detach() + 1e-12).all()
    without = torch.tensor([op.limit is None for op in OPERATIONS.values()])
    assert (draw.magnitudes[:, without] == 0).all() and (size[:, ~without] > 0).all()
    unsigned = torch.tensor([not op.signed for op in OPERATIONS.values()])
    assert (draw.signs[:, unsigned] == 1).all()
    assert draw.seeds.unique().numel() == 2000


# Frozen and back


def test_a_frozen_policy_comes_back_with_its_probabilities_and_ranges() -> None:
    policy = uneven(NAMES, 3)
    back = Policy.from_spec(policy.freeze())
    torch.testing.assert_close(back.probability, policy.probability, atol=1e-12, rtol=0)
    for ours, theirs in zip(policy.ranges(), back.ranges(), strict=True):
        torch.testing.assert_close(theirs, ours.detach(), atol=1e-12, rtol=0)
    assert back.operations == policy.operations and back.operations_per_image == 3
    assert back.freeze().final == nearly(policy.freeze().final)


def nearly(settings: dict) -> dict:
    """Settings whose probability may differ in the last bit: logit and sigmoid are not exact inverses."""
    return {n: s.model_copy(update={"probability": pytest.approx(s.probability)}) for n, s in settings.items()}


def test_a_policy_from_a_spec_draws_what_the_frozen_one_drew() -> None:
    policy = uneven(NAMES, 3)
    ours, theirs = (p.draw(500, generator("same")) for p in (policy, Policy.from_spec(policy.freeze())))
    assert torch.equal(ours.gates, theirs.gates) and torch.equal(ours.chosen, theirs.chosen)
    torch.testing.assert_close(ours.magnitudes, theirs.magnitudes, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("raw", "written"), [(0.0049, 0.0), (0.0051, 0.0051), (0.9949, 0.9949), (0.9951, 1.0)])
def test_freezing_writes_nearly_never_as_zero_and_nearly_always_as_one(raw: float, written: float) -> None:
    spec = Policy(["rotate", "invert"], 1, probability=raw).freeze()
    for setting in spec.final.values():
        assert setting.probability == (written if written in (0, 1) else pytest.approx(written))


@pytest.mark.parametrize(("raw", "fires"), [(0.001, False), (0.999, True)])
def test_probabilities_written_as_zero_and_one_never_and_always_fire(raw: float, fires: bool) -> None:
    policy = Policy.from_spec(Policy(["rotate", "invert", "noise"], 2, probability=raw).freeze())
    assert (policy.draw(10_000, generator("extremes")).gates == fires).all()


def test_trivial_is_one_operation_always_over_the_full_range() -> None:
    policy = trivial(dict.fromkeys(NAMES) | {"rotate": 90.0})
    assert policy.operations_per_image == 1
    for name, setting in policy.freeze().final.items():
        limit = 90.0 if name == "rotate" else OPERATIONS[name].limit
        assert (setting.probability, setting.low, setting.high) == (1.0, None if limit is None else 0.0, limit), name
    draw = policy.draw(5000, generator("trivial"))
    assert draw.gates.all()
    turns = draw.magnitudes[draw.chosen == NAMES.index("rotate")]
    assert turns.max() > 80 and turns.min() < -80


# Refusals

REFUSED: dict[str, tuple[Callable[[], Policy], str]] = {
    "unknown name": (lambda: Policy(["rotat"], 1), "did you mean 'rotate'"),
    "limit above the hard range": (lambda: Policy({"rotate": 181.0}, 1), "at most 180 degrees"),
    "limit of nothing": (lambda: Policy({"rotate": 0.0}, 1), "more than 0"),
    "limit that is no number": (lambda: Policy({"rotate": float("nan")}, 1), "limit nan"),
    "limit without magnitude": (lambda: Policy({"invert": 1.0}, 1), "it has no magnitude"),
    "no operations": (lambda: Policy([], 1), "no operations"),
    "more per image than there are": (lambda: Policy(["rotate"], 2), "allowed: 1 to 1"),
    "none per image": (lambda: Policy(["rotate"], 0), "allowed: 1 to 1"),
    "probability of one": (lambda: Policy(["rotate"], 1, probability=1.0), "between 0 and 1"),
    "extent of zero": (lambda: Policy(["rotate"], 1, extent=0.0), "between 0 and 1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_policy_that_makes_no_sense_is_refused_with_what_is_allowed(case: str) -> None:
    make, message = REFUSED[case]
    with pytest.raises(KdsearchError, match=message):
        make()


def test_all_problems_of_a_policy_come_in_one_message() -> None:
    with pytest.raises(KdsearchError, match="4 problems") as caught:
        Policy({"rotat": 1.0, "invert": 2.0}, 3, probability=2.0)
    assert all(word in str(caught.value) for word in ("rotat", "invert", "operations_per_image", "probability"))


def test_a_learned_policy_finds_nothing_in_a_data_set_without_effect() -> None:
    """The effect of a gate on images that all have the same loss is exactly zero."""
    policy = uneven(NAMES, 3)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4)).double()
    nn.init.zeros_(network[1].weight)
    data = ArrayData(torch.rand(32, 3, 8, 8, dtype=torch.float64), torch.zeros(32, dtype=torch.int64))
    distiller = Distiller(Teacher(network), network, policy, Classification.of(4))
    before = [p.detach().clone() for p in policy.parameters()]
    optimizer = torch.optim.SGD(policy.parameters(), lr=1.0)
    batch = Batch(data.images, data.labels, torch.arange(32))
    distiller.policy_step(batch, PolicySteps(prior_strength=0.0, floor=None), optimizer, generator("none"))
    assert all(torch.allclose(p, b, atol=1e-12) for p, b in zip(policy.parameters(), before, strict=True))


def test_a_random_resized_crop_is_scale_and_translation_always() -> None:
    policy = random_resized_crop(0.8)
    draw = policy.draw(2000, generator("crop"))
    assert policy.operations == ("scale", "translate_x", "translate_y") and draw.gates.all()
    low, high = policy.ranges()
    assert low.tolist() == [0.0] * 3 and high.tolist() == pytest.approx([0.25, 0.125, 0.125])
    enlarged = draw.magnitudes[:, 0].max()
    assert enlarged == pytest.approx(0.25, rel=0.01)  # a crop of .8 made 1 / .8 times as large
    assert draw.fill == "reflect"
    for side in (0.5, 1.0, 0.0, -1.0):
        with pytest.raises(KdsearchError, match=rf"side {side:g}; allowed: 0\.526 to less than 1"):
            random_resized_crop(side)
