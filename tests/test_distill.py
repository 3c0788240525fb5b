"""What the alternation does, and what it must never do."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div

from kdsearch.augment.policy import Policy
from kdsearch.augment.presets import trivial
from kdsearch.core.errors import Diverged, KdsearchError
from kdsearch.core.maths import generator
from kdsearch.core.values import Batch, Outputs
from kdsearch.data.batches import ArrayData
from kdsearch.distill.distiller import Distiller, EpochRecord, Phase, PolicyStep
from kdsearch.distill.phase import PolicySteps
from kdsearch.losses.table import TABLE as LOSSES
from kdsearch.networks.teachers import Teacher
from kdsearch.networks.wrappers import Normalised
from kdsearch.probe.evaluation import evaluate, measure_teacher
from kdsearch.tasks import Classification

TASK = Classification.of(10)
KD = LOSSES["kd"]()
PHASE = Phase((KD,), epochs=2, steps=6, batch=16, policy_steps=PolicySteps(interval=2))


class Recorder(nn.Module):
    """Passes images on and notes the mode of the network and the images of each forward."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[bool, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((self.training, x.detach().clone()))
        return x


def network(seed: int = 0) -> nn.Sequential:
    """A recorder, a convolution with BatchNorm whose statistics are not the initial ones, dropout and a linear head."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            Recorder(),
            nn.Conv2d(1, 4, 3, stride=2),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.1),
            nn.Linear(16, 10),
        )
        net(torch.rand(32, 1, 16, 16))
    net[0].seen.clear()
    return net


def policy() -> Policy:
    return Policy(["rotate", "translate_x", "contrast", "invert", "noise"], 2)


@pytest.fixture(scope="module")
def data(digits_images: Tensor) -> ArrayData:
    return ArrayData(digits_images[:96], torch.arange(96) % 10)


@pytest.fixture
def batch(data: ArrayData) -> Batch:
    return Batch(data.images[:16], data.labels[:16], torch.arange(16))


def state(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def modes(net: nn.Module) -> list[bool]:
    return [module.training for module in net.modules()]


def distiller(learner: Policy | None = None, *, seed: int = 0, **kwargs: Any) -> Distiller:
    return Distiller(Teacher(network(1)), network(2), learner, TASK, seed=seed, **kwargs)


def stepped(d: Distiller, batch: Batch, steps: PolicySteps, *, times: int = 1) -> PolicyStep:
    optimizer = torch.optim.Adam(d.policy.parameters(), lr=steps.learning_rate)
    return [d.policy_step(batch, steps, optimizer, generator("step", i)) for i in range(times)][-1]


# Nothing changes that should not


def test_policy_steps_take_no_draw_from_the_student(data: ArrayData) -> None:
    """A policy that learns at rate 0 trains the very student that the policy held still does."""
    ends = []
    for steps in (None, PolicySteps(interval=2, learning_rate=0.0)):
        d = distiller(policy(), clean_loss=2.0)
        records = list(d.run(replace(PHASE, policy_steps=steps), data, data))
        assert (records[-1].policy_steps > 0) == (steps is not None)
        ends.append(state(d.student))
    assert same(*ends)


def test_a_policy_step_changes_the_policy_and_neither_network(batch: Batch) -> None:
    learner = policy()
    d = distiller(learner, clean_loss=2.0)
    d.student.train()
    d.student[2].eval()  # a module the user holds in evaluation mode
    before, flags = state(d.student), [p.requires_grad for p in d.student.parameters()]
    student_modes, teacher, start = modes(d.student), state(d.teacher.network), state(learner)
    stepped(d, batch, PolicySteps())
    assert same(state(d.student), before) and same(state(d.teacher.network), teacher)
    assert modes(d.student) == student_modes
    assert [p.requires_grad for p in d.student.parameters()] == flags
    assert all(p.grad is None for net in (d.student, d.teacher.network) for p in net.parameters())
    assert not any(torch.equal(getattr(learner, name), start[name]) for name in ("logit", "a", "b"))
    assert {training for training, _ in d.student[0].seen} == {False}


@pytest.mark.parametrize(
    "disturb",
    [lambda net: net, lambda net: net.train(), lambda net: net[1].train()],
    ids=["as given", "put in train mode", "inner network in train mode"],
)
def test_the_teacher_is_bit_identical_after_a_run_however_the_user_left_it(
    disturb: Callable[[nn.Module], object], data: ArrayData
) -> None:
    inner = network(1)
    d = Distiller(Teacher(nn.Sequential(nn.Identity(), inner)), network(2), policy(), TASK)
    before = state(d.teacher.network)
    for _ in d.run(PHASE, data, data):
        disturb(d.teacher.network)
    assert same(state(d.teacher.network), before)
    assert not any(training for training, _ in inner[0].seen)
    assert not any(p.requires_grad for p in d.teacher.network.parameters())


def test_a_teacher_inside_an_adapter_stays_in_evaluation_mode_when_its_inner_network_is_trained_on(
    batch: Batch,
) -> None:
    inner = network(1)
    teacher = Teacher(Normalised(inner, [0.5], [0.5]))
    inner.train()
    before = state(inner)
    teacher(batch.images)
    assert same(state(inner), before)


def test_the_student_learns_in_train_mode_also_after_it_was_scored(data: ArrayData) -> None:
    d = distiller(policy())
    d.student.eval()
    for _ in d.run(PHASE, data, data):
        d.student.eval()
    sizes = {len(images): training for training, images in d.student[0].seen}
    assert sizes == {32: True, 8: False, 16: False, 96: False}  # student steps, policy steps, flipped gates, scores
    assert sum(training for training, _ in d.student[0].seen) == 12


def test_scoring_leaves_modes_and_statistics_as_they_were(data: ArrayData) -> None:
    net = network()
    net.train()
    net[2].eval()
    before, net_modes = state(net), modes(net)
    first = evaluate(net, data, TASK, 16, "cpu")
    assert same(state(net), before) and modes(net) == net_modes
    assert evaluate(net, data, TASK, 16, "cpu") == first
    assert not any(training for training, _ in net[0].seen)


def test_scores_are_the_share_of_right_answers_with_its_binomial_error(data: ArrayData) -> None:
    class Says3(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.eye(10)[3].repeat(len(x), 1)

    rate, error, _ = evaluate(Says3(), data, TASK, 16, "cpu")
    assert rate == pytest.approx(10 / 96)
    assert error == pytest.approx(math.sqrt(rate * (1 - rate) / 96))


def test_the_clean_loss_of_the_teacher_is_its_mean_cross_entropy(data: ArrayData) -> None:
    teacher = Teacher(network(1))
    expected = cross_entropy(teacher.network(data.images), data.labels)
    whole = ArrayData(data.images.repeat(4, 1, 1, 1), data.labels.repeat(4))  # more than one part
    for given in (data, whole):
        assert measure_teacher(teacher, given, TASK, 16, "cpu").loss == pytest.approx(expected.item(), abs=1e-5)


# Numbers that are not


def test_logits_that_are_not_finite_never_count_as_right() -> None:
    logits = torch.zeros(4, 10)
    logits[0, 3], logits[1, 3], logits[2, 5], logits[3, 3] = math.nan, math.inf, math.nan, 1.0
    assert TASK.correct(Outputs(logits), torch.full((4,), 3)).tolist() == [False, False, False, True]


def broken(value: float) -> Phase:
    return replace(
        PHASE, losses=(replace(KD, function=lambda student, teacher, target: student.logits.sum(1) * value),)
    )


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_run(value: float, data: ArrayData) -> None:
    for learner in (None, policy()):
        with pytest.raises(Diverged, match="epoch 1"):
            list(distiller(learner).run(broken(value), data, data))


def test_an_objective_that_is_not_finite_ends_the_run(data: ArrayData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "kdsearch.tasks.classification.weighted_sum",
        lambda weights, student, teacher, target: student.sum(1) * math.nan,
    )
    with pytest.raises(Diverged):
        list(distiller(policy()).run(PHASE, data, data))


def test_a_policy_that_is_always_or_never_applied_stays_finite_in_a_policy_step(batch: Batch) -> None:
    """A policy out of a file holds probabilities of exactly 0 and 1."""
    learner = trivial(["rotate", "invert", "noise"])
    with torch.no_grad():
        learner.logit[1] = -math.inf
    stepped(distiller(learner, clean_loss=2.0), batch, PolicySteps(), times=3)
    assert all(torch.isfinite(p).all() for p in learner.ranges())
    assert not any(torch.isnan(p).any() for p in learner.parameters())


def test_a_network_that_returns_no_logits_is_refused_by_name(batch: Batch) -> None:
    d = Distiller(Teacher(nn.Identity()), network(), None, TASK)
    with pytest.raises(KdsearchError, match=r"teacher: returned \(16, 1, 16, 16\)"):
        d.student_step(batch, PHASE, generator("x"))
    d = Distiller(Teacher(network()), nn.Conv2d(1, 1, 1), None, TASK)
    with pytest.raises(KdsearchError, match=r"student: returned \(32, 1, 16, 16\)"):
        d.student_step(batch, PHASE, generator("x"))


# The student step


class Table(nn.Module):
    """Logits that are a parameter, whatever the images: what reaches it is the whole gradient."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits.clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.logits


def test_both_losses_are_means_over_images_and_the_distillation_weight_counts_each_view(batch: Batch) -> None:
    random = generator("table")
    student, teacher = (torch.randn(32, 10, generator=random) for _ in range(2))
    table, weight = Table(student), 0.7
    d = Distiller(
        Teacher(Table(teacher)), table, policy(), TASK, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0)
    )
    supervised, distillation = d.student_step(batch, replace(PHASE, losses=(KD.times(weight),)), random)[:2]
    expected = student.clone().requires_grad_()
    ce = cross_entropy(expected[:16], batch.target)
    kd = 16 * kl_div((expected / 4).log_softmax(1), (teacher / 4).softmax(1), reduction="batchmean")
    torch.testing.assert_close(supervised, ce.detach())
    torch.testing.assert_close(distillation, weight * kd.detach())
    (ce + 2 * weight * kd).backward()
    torch.testing.assert_close(student - table.logits.detach(), expected.grad)


def test_teacher_and_student_see_the_same_pixels_and_the_first_half_is_the_base_view(batch: Batch) -> None:
    d = distiller(trivial(["invert"]))
    d.student_step(batch, PHASE, generator("pixels"))
    seen, shown = d.student[0].seen[0][1], d.teacher.network[0].seen[0][1]
    assert torch.equal(seen, shown)
    assert torch.equal(seen[:16], batch.images) and torch.equal(seen[16:], 1 - batch.images)


def test_without_a_policy_the_second_view_is_the_first(batch: Batch) -> None:
    d = distiller(None)
    d.student_step(batch, PHASE, generator("none"))
    seen = d.student[0].seen[0][1]
    assert torch.equal(seen[:16], batch.images) and torch.equal(seen[16:], batch.images)


# The run


def finished(seed: int, data: ArrayData, learner: Policy | None = None) -> tuple[Distiller, list[EpochRecord]]:
    d = distiller(policy() if learner is None else learner, seed=seed)
    return d, list(d.run(PHASE, data, data))


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(data: ArrayData) -> None:
    torch.manual_seed(1)
    (first, records), (other, _) = finished(0, data), finished(1, data)
    torch.manual_seed(2)  # nothing depends on the state the caller left
    again, again_records = finished(0, data)
    for part in ("student", "policy"):
        assert same(state(getattr(first, part)), state(getattr(again, part))), part
        assert not same(state(getattr(first, part)), state(getattr(other, part))), part
    assert [replace(r, seconds=0.0) for r in records] == [replace(r, seconds=0.0) for r in again_records]


def test_each_epoch_has_other_batches_and_other_draws(data: ArrayData) -> None:
    d = distiller(policy())
    list(d.run(replace(PHASE, policy_steps=None), data, data))
    seen = [images for training, images in d.student[0].seen if training]
    first, second = torch.cat(seen[:6]), torch.cat(seen[6:])
    assert len(seen) == 12 and not torch.equal(first[:16], second[:16]) and not torch.equal(first[16:32], second[16:32])
    ids = torch.cat([view[:16] for view in seen[:6]]).flatten(1)
    assert len(ids.unique(dim=0)) == len(data.images.flatten(1).unique(dim=0))  # an epoch is a whole permutation


def test_the_student_sees_the_same_base_images_with_any_policy(data: ArrayData) -> None:
    runs = [distiller(p, seed=3) for p in (None, policy(), trivial(["invert"]))]
    for d in runs:
        list(d.run(PHASE, data, data))
    base = [torch.cat([x[:16] for training, x in d.student[0].seen if training]) for d in runs]
    assert torch.equal(base[0], base[1]) and torch.equal(base[0], base[2])
    other = distiller(None, seed=4)
    list(other.run(PHASE, data, data))
    assert not torch.equal(base[0], torch.cat([x[:16] for training, x in other.student[0].seen if training]))


def test_no_policy_step_comes_in_the_first_tenth_and_then_one_in_every_interval(
    data: ArrayData, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    for name in ("student_step", "policy_step"):
        original = getattr(Distiller, name)

        def noted(self: Distiller, *args: object, name: str = name, original: Callable = original) -> Tensor:
            events.append(name)
            return original(self, *args)

        monkeypatch.setattr(Distiller, name, noted)
    phase = Phase((KD,), epochs=4, steps=10, batch=8, policy_steps=PolicySteps(interval=3))
    records = list(distiller(policy()).run(phase, data, data))
    done = [events[:i].count("student_step") for i, event in enumerate(events) if event == "policy_step"]
    assert done == [5, 8, 11, 14, 17, 20, 23, 26, 29, 32, 35, 38]  # before the steps 6, 9 to 39 of 40
    assert [r.policy_steps for r in records] == [2, 3, 4, 3]
    events.clear()
    list(distiller(policy()).run(replace(phase, policy_steps=None), data, data))
    assert events == ["student_step"] * 40


def test_warm_up_is_a_share_of_the_student_steps_and_the_count_is_known_before() -> None:
    steps = PolicySteps(interval=3, warm_up=0.5)
    assert [step for step in range(1, 41) if steps.due(step, 40)] == [21, 24, 27, 30, 33, 36, 39]
    assert steps.count(4, 10, 96, 8) == 7
    assert replace(steps, warm_up=0.0).count(4, 10, 96, 8) == 13
    pauses = PolicySteps(pauses=(0.125, 0.375), passes=2, batch=16)
    assert pauses.pause_epochs(240) == [30, 90]  # the epochs of TST
    assert pauses.count(240, 10, 100, 16) == 2 * 13


def test_phases_come_between_epochs_on_whole_passes_with_a_new_optimiser(
    data: ArrayData, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    optimizers: list[int] = []
    seen: list[Tensor] = []
    rates: list[float] = []
    original_policy, original_student = Distiller.policy_step, Distiller.student_step

    def policy_step(self: Distiller, batch: Batch, steps: PolicySteps, optimizer: Any, *rest: Any) -> PolicyStep:
        events.append("policy")
        optimizers.append(len(optimizer.state))
        rates.append(optimizer.param_groups[0]["lr"])
        seen.append(batch.ids)
        return original_policy(self, batch, steps, optimizer, *rest)

    def student_step(self: Distiller, *args: Any) -> Tensor:
        events.append("student")
        return original_student(self, *args)

    monkeypatch.setattr(Distiller, "policy_step", policy_step)
    monkeypatch.setattr(Distiller, "student_step", student_step)
    steps = PolicySteps(pauses=(0.25, 0.5), passes=2, learning_rate=0.2, batch=32)
    records = list(distiller(policy()).run(Phase((KD,), epochs=4, steps=2, batch=32, policy_steps=steps), data, data))
    assert events == [*["student"] * 2, *["policy"] * 6, *["student"] * 2, *["policy"] * 6, *["student"] * 4]
    assert [state > 0 for state in optimizers] == [False, *[True] * 5] * 2  # Adam begins anew
    assert rates[0] == rates[6] == 0.2 and rates[:6] == sorted(rates[:6], reverse=True) and rates[5] < 0.02
    assert torch.equal(torch.cat(seen[:3]).sort().values, torch.arange(96))  # a whole pass
    assert torch.equal(torch.cat(seen[3:6]).sort().values, torch.arange(96))
    assert [r.policy_steps for r in records] == [0, 6, 6, 0]


def test_the_learning_rate_of_the_policy_falls_over_the_run(data: ArrayData, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    original = Distiller.policy_step

    def noted(self: Distiller, batch: Batch, steps: PolicySteps, optimizer: Any, *rest: Any) -> PolicyStep:
        rates.append(optimizer.param_groups[0]["lr"])
        return original(self, batch, steps, optimizer, *rest)

    monkeypatch.setattr(Distiller, "policy_step", noted)
    phase = Phase((KD,), epochs=2, steps=10, batch=8, policy_steps=PolicySteps(interval=2, learning_rate=0.5))
    list(distiller(policy()).run(phase, data, data))
    count = len(rates)
    assert rates == pytest.approx([0.25 * (1 + math.cos(math.pi * i / count)) for i in range(count)])


def test_the_guards_look_at_the_second_views_of_every_run(data: ArrayData) -> None:
    inverted = next(iter(distiller(trivial(["invert"])).run(replace(PHASE, policy_steps=None), data, data)))
    assert (inverted.emptied, inverted.saturated, inverted.gates_at_bound) == (0.0, 0.0, 1)
    plain = next(iter(distiller(None).run(PHASE, data, data)))
    assert (plain.emptied, plain.saturated, plain.gates_at_bound, plain.ranges_at_limit) == (0.0, 0.0, 0, 0)
    assert plain.teacher_accuracy == plain.teacher_clean_accuracy
    hidden = trivial({"erase": 1.0})
    hidden.fixed_low.fill_(1.0)

    class Right(nn.Module):
        """Right on images with something on them."""

        def forward(self, images: Tensor) -> Tensor:
            known = torch.stack([(data.images - image).flatten(1).abs().sum(1).argmin() for image in images])
            answer = torch.where(images.flatten(1).sum(1) > 0, data.labels[known], (data.labels[known] + 1) % 10)
            return 9 * torch.nn.functional.one_hot(answer, 10).float()

    d = Distiller(Teacher(Right()), network(2), hidden, TASK)
    record = next(iter(d.run(replace(PHASE, policy_steps=None), data, data)))
    assert record.teacher_clean_accuracy == 1.0 and record.teacher_accuracy < 1.0
    assert 0 < record.emptied < 1  # the square covers the whole image where its centre is in the middle


def test_a_record_says_what_the_epoch_measured(data: ArrayData) -> None:
    d, records = finished(0, data)
    assert [r.epoch for r in records] == [1, 2]
    assert [r.progress for r in records] == [0.5, 1.0]
    last = records[-1]
    assert (last.accuracy, last.accuracy_se) == evaluate(d.student, data, TASK, 16, "cpu")[:2]
    assert last.learning_rate == pytest.approx(0.0, abs=1e-12)
    assert records[0].learning_rate > 0
    assert last.dual == d.dual
    assert (last.value, last.value_se) == (last.accuracy, last.accuracy_se)
    assert last.losses == {KD.name: last.distillation_loss}
    shifted = ("inherited", "inherited_se", "calibration_error", "kl")  # without a ruler nothing is measured
    numbers = [v for r in records for name, v in vars(r).items() if not isinstance(v, dict) and name not in shifted]
    assert all(math.isfinite(v) for v in numbers) and len(numbers) == 2 * 26
    images = PHASE.steps * PHASE.batch * 2  # of student steps; a policy step shows its images more than once
    assert all(r.student_images > images and r.teacher_images > 0 for r in records)
    assert all(math.isnan(getattr(r, name)) for r in records for name in shifted)
    _, still = finished(0, data, Policy(["invert"], 1))
    assert all(math.isfinite(r.policy_objective) for r in still)
    plain = list(distiller(None).run(PHASE, data, data))
    assert all(r.policy_steps == 0 and math.isnan(r.policy_objective) for r in plain)
    assert all(r.student_images == images for r in plain)


def test_a_small_student_learns(digits_images: Tensor) -> None:
    """Labels are the teacher's answers: a student of the same shape comes to give them."""
    teacher = network(1).eval()
    with torch.no_grad():
        teacher[-1].bias -= teacher(digits_images[:256]).mean(0)
        labels = teacher(digits_images[:256]).argmax(1)
    data = ArrayData(digits_images[:256], labels)
    d = Distiller(Teacher(teacher), network(2), None, TASK, optimizer=lambda p: torch.optim.AdamW(p, lr=0.02))
    records = list(d.run(Phase((KD,), epochs=3, steps=40, batch=32), data, data))
    assert records[-1].accuracy > labels.bincount().max().item() / 256 + 0.2
    assert records[-1].supervised_loss < records[0].supervised_loss


# The floor


def test_the_dual_follows_the_violation_of_the_floor_and_never_falls_below_zero(batch: Batch) -> None:
    steps = PolicySteps(floor=0.3, floor_rate=0.5)
    d = distiller(policy(), clean_loss=0.0)  # cross-entropy of an untrained teacher is far above
    expected = 0.0
    for i in range(4):
        violation = stepped(d, batch, steps, times=1).violation
        assert violation > 0
        expected += 0.5 * violation
        assert d.dual == pytest.approx(expected, rel=1e-5), i
    d.clean_loss = 100.0
    for _ in range(3):
        assert stepped(d, batch, steps).violation < -90
        assert d.dual == 0.0


def test_the_violation_is_the_cross_entropy_over_the_clean_one_and_the_floor(batch: Batch) -> None:
    d = distiller(trivial(["invert"]), clean_loss=0.25)
    d.policy.logit.requires_grad_(False)
    expected = cross_entropy(d.teacher(1 - batch.images).logits, batch.target).item() - 0.25 - 0.125
    steps = PolicySteps(floor=0.125, prior_strength=0.0)
    result = d.policy_step(batch, steps, torch.optim.SGD([torch.zeros(1)]), generator("floor"))
    assert result.violation == pytest.approx(expected, abs=1e-5)


def test_the_dual_weighs_the_teacher_on_counterfactual_images_too(batch: Batch) -> None:
    """With a dual of 2 and no weight on the student, a gate moves by what inverting does to the teacher."""
    learner = Policy(["invert"], 1, probability=0.3)
    d = distiller(learner, clean_loss=0.0)
    d.dual = 2.0
    steps = PolicySteps(prior_strength=None, objective={"student_wrong": 0.0}, floor=100.0)
    d.policy_step(batch, steps, torch.optim.SGD(learner.parameters(), lr=1.0), generator("dual"))
    on, off = (cross_entropy(d.teacher(x).logits, batch.target) for x in (1 - batch.images, batch.images))
    moved = learner.logit.item() - math.log(0.3 / 0.7)
    assert moved == pytest.approx(-2 * 0.3 * 0.7 * (on - off).item(), rel=1e-3) and abs(moved) > 1e-3


def test_a_step_says_how_far_the_policy_is_from_its_prior(batch: Batch) -> None:
    learner = policy()
    with torch.no_grad():
        learner.logit.add_(1.0)
    expected = learner.prior_loss().item()
    assert expected > 0.05
    for strength in (2.0, 0.0, None):
        steps = PolicySteps(prior_strength=strength, floor=None)
        held = torch.optim.SGD([torch.zeros(1)])
        result = distiller(learner).policy_step(batch, steps, held, generator("prior"))
        learner.zero_grad()
        assert result.prior == pytest.approx((strength or 0.0) * expected)


def test_without_a_floor_nothing_is_measured_against_it(data: ArrayData) -> None:
    d = distiller(policy())
    phase = replace(PHASE, policy_steps=PolicySteps(interval=2, floor=None))
    assert [r.dual for r in d.run(phase, data, data)] == [0.0, 0.0]
    assert d.clean_loss is None


def test_the_dual_weighs_the_cross_entropy_of_the_teacher_in_the_gradient(batch: Batch) -> None:
    """With the objective's own weight at zero, the policy moves through the floor alone."""
    moves = []
    for dual in (0.0, 1.0, 2.0):
        learner = policy()
        d = distiller(learner, clean_loss=2.0)
        d.dual = dual
        steps = PolicySteps(prior_strength=0.0, objective={"teacher_right": 0.0})
        d.policy_step(batch, steps, torch.optim.SGD(learner.parameters(), lr=1.0), generator("dual"))
        moves.append(
            torch.cat(
                [p.detach() - q.detach() for p, q in zip(learner.parameters(), policy().parameters(), strict=True)]
            )
        )
    assert (moves[0] == 0).all() and (moves[1] != 0).any()
    torch.testing.assert_close(moves[2], 2 * moves[1])


def test_a_strong_prior_holds_the_policy_where_it_started(batch: Batch) -> None:
    distances = []
    for strength in (0.0, 100.0):
        learner = policy()
        stepped(distiller(learner, clean_loss=2.0), batch, PolicySteps(prior_strength=strength), times=30)
        distances.append((learner.logit.detach()).abs().mean().item())
    assert distances[1] < distances[0] / 3
