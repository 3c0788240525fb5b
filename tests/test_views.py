"""The rules of a student step, against steps written out by hand."""

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div

from kdsearch.augment.fixed import FixedTransform
from kdsearch.augment.operations import apply
from kdsearch.augment.policy import Policy
from kdsearch.core.errors import KdsearchError
from kdsearch.core.maths import generator
from kdsearch.core.values import Batch, Outputs, ViewBatch
from kdsearch.data.batches import ArrayData
from kdsearch.distill.distiller import Distiller, Phase
from kdsearch.distill.views import VIEWS, Views, keep_geometry
from kdsearch.losses.loss import Loss, Ramp
from kdsearch.losses.table import TABLE as LOSSES
from kdsearch.networks.teachers import Teacher
from kdsearch.study.preflight import check_inputs
from kdsearch.study.study import Study
from kdsearch.tasks import Classification

KD = LOSSES["kd"]()
NAMES = ["rotate", "brightness", "invert"]


@pytest.fixture(scope="module")
def batch(digits_images: Tensor) -> Batch:
    return Batch(digits_images[:12], torch.arange(12) % 10, torch.arange(12))


def network(seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 10)
        )


def policy() -> Policy:
    return Policy(NAMES, 2, probability=0.8)


def second_view(batch: Batch) -> Tensor:
    return apply(policy().draw(len(batch), generator("views")), batch.images).images


def stepped(batch: Batch, phase: Phase, learner: Any = None, progress: float = 0.0) -> tuple[nn.Sequential, Tensor]:
    """The student after one step of gradient descent, and what was measured."""
    d = Distiller(
        Teacher(network(1)),
        network(2),
        learner or policy(),
        Classification.of(10),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    )
    measured = d.student_step(batch, phase, generator("views"), progress)
    return d.student, measured


def by_hand(loss: Any) -> nn.Sequential:
    student, teacher = network(2).train(), network(1).eval()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    loss(student, teacher).backward()
    optimizer.step()
    return student


def assert_same(a: nn.Module, b: nn.Module) -> None:
    for name, value in a.state_dict().items():
        torch.testing.assert_close(value, b.state_dict()[name], atol=1e-6, rtol=1e-5, msg=name)


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    log_q, p = (student / temperature).log_softmax(1), (teacher / temperature).softmax(1)
    return temperature**2 * kl_div(log_q, p.detach(), reduction="batchmean")


def test_the_rule_of_tst_is_the_mean_over_both_views_of_cross_entropy_and_distillation_in_one_forward(
    batch: Batch,
) -> None:
    x, y = batch.images, batch.target

    def loss(student: nn.Module, teacher: nn.Module) -> Tensor:
        both = torch.cat([second_view(batch), x])  # TST's order
        s, t = student(both), teacher(both)
        views = [
            cross_entropy(s[part], y) + 0.5 * divergence(s[part], t[part], 4.0) for part in (slice(12), slice(12, 24))
        ]
        return (views[0] + views[1]) / 2

    ours, _ = stepped(batch, Phase((KD.times(0.5),), views=VIEWS["tst"]))
    assert_same(ours, by_hand(loss))


def test_the_rule_of_wang_et_al_is_cross_entropy_on_the_base_view_and_the_sum_of_distillation_in_two_forwards(
    batch: Batch,
) -> None:
    x, y = batch.images, batch.target

    def loss(student: nn.Module, teacher: nn.Module) -> Tensor:
        x_prime = second_view(batch)
        s, s_prime = student(x), student(x_prime)  # each with its own BatchNorm statistics
        distilled = divergence(s, teacher(x), 4.0) + divergence(s_prime, teacher(x_prime), 4.0)
        return 0.1 * cross_entropy(s, y) + 0.9 * distilled

    phase = Phase((KD.times(0.9),), label_weight=0.1, views=VIEWS["wang"])
    ours, _ = stepped(batch, phase)
    assert_same(ours, by_hand(loss))
    joint, _ = stepped(batch, replace(phase, views=VIEWS["default"]))
    with pytest.raises(AssertionError):
        assert_same(ours, joint)


def test_the_default_rule_is_cross_entropy_on_the_base_view_and_the_sum_of_distillation_in_one_forward(
    batch: Batch,
) -> None:
    def loss(student: nn.Module, teacher: nn.Module) -> Tensor:
        both = torch.cat([batch.images, second_view(batch)])
        s, t = student(both), teacher(both)
        return cross_entropy(s[:12], batch.target) + divergence(s[:12], t[:12], 4.0) + divergence(s[12:], t[12:], 4.0)

    ours, measured = stepped(batch, Phase((KD,)))
    assert_same(ours, by_hand(loss))
    s, t = (net(torch.cat([batch.images, second_view(batch)])) for net in (network(2).train(), network(1).eval()))
    rounding = 4.0**2 * 4 * math.log(10) * torch.finfo().eps  # T^2 times what two log-probabilities are off by
    assert measured[1].item() == pytest.approx(divergence(s, t, 4.0).item(), abs=rounding)


@pytest.mark.parametrize("which", ["base", "second"])
def test_labels_and_distillation_of_one_view_leave_the_other_out(which: str, batch: Batch) -> None:
    images = batch.images if which == "base" else second_view(batch)

    def loss(student: nn.Module, teacher: nn.Module) -> Tensor:
        s, t = student(images), teacher(images)
        return cross_entropy(s, batch.target) + divergence(s, t, 4.0)

    ours, measured = stepped(batch, Phase((KD,), views=Views(labels=which, distillation=which)))  # type: ignore[arg-type]
    assert_same(ours, by_hand(loss))
    right = (network(1).eval()(images).argmax(1) == batch.target).float().mean()
    on_second, on_base = measured[2:4]
    assert (on_base if which == "base" else on_second) == right
    assert (on_second if which == "base" else on_base).isnan()


def test_a_run_on_one_view_records_what_it_has(digits_images: Tensor) -> None:
    data = ArrayData(digits_images[:32], torch.arange(32) % 10)
    distiller = Distiller(Teacher(network(1)), network(2), policy(), Classification.of(10))
    (record,) = distiller.run(Phase((KD,), 1, 2, 8, views=VIEWS["one"]), data, data)
    assert math.isnan(record.teacher_clean_accuracy) and 0 <= record.teacher_accuracy <= 1
    assert math.isfinite(record.supervised_loss + record.distillation_loss)


@pytest.mark.parametrize("sees", ["clean", "weak"])
def test_a_teacher_may_see_another_view_than_the_student(sees: str, batch: Batch) -> None:
    draw = policy().draw(12, generator("views"))
    shown = batch.images
    if sees == "weak":
        rotation = draw.gates & (draw.chosen == NAMES.index("rotate"))
        shown = apply(replace(draw, gates=rotation), batch.images).images
        assert torch.equal(keep_geometry(draw).gates, rotation) and 0 < rotation.sum() < draw.gates.sum()

    def loss(student: nn.Module, teacher: nn.Module) -> Tensor:
        s = student(torch.cat([batch.images, second_view(batch)]))
        t = teacher(torch.cat([batch.images, shown]))
        return cross_entropy(s[:12], batch.target) + divergence(s[:12], t[:12], 4.0) + divergence(s[12:], t[12:], 4.0)

    ours, _ = stepped(batch, Phase((KD,), views=Views(teacher=sees)))  # type: ignore[arg-type]
    assert_same(ours, by_hand(loss))


def test_weak_views_of_a_fixed_transform_are_refused(batch: Batch) -> None:
    with pytest.raises(KdsearchError, match="needs a policy"):
        stepped(batch, Phase((KD,), views=Views(teacher="weak")), FixedTransform(lambda image: image))


def test_weights_of_several_losses_add_up_and_ramps_follow_the_phase(batch: Batch) -> None:
    def right(student: Outputs, teacher: Outputs, views: ViewBatch) -> Tensor:
        return cross_entropy(student.logits, views.target, reduction="none")

    own = Loss("own", right, weight=Ramp(1.0, 3.0, over=0.5))
    for progress, weight in ((0.0, 1.0), (0.25, 2.0), (0.5, 3.0), (1.0, 3.0)):
        ours, measured = stepped(batch, Phase((KD.times(2.0), own)), progress=progress)
        assert measured[1].item() == pytest.approx((2 * measured[6] + weight * measured[7]).item(), rel=1e-5)

        def loss(student: nn.Module, teacher: nn.Module, weight: float = weight) -> Tensor:
            both, y = torch.cat([batch.images, second_view(batch)]), torch.cat([batch.target, batch.target])
            s, t = student(both), teacher(both)
            return cross_entropy(s[:12], batch.target) + 4 * divergence(s, t, 4.0) + 2 * weight * cross_entropy(s, y)

        assert_same(ours, by_hand(loss))


def test_a_relational_loss_compares_the_images_of_one_view(batch: Batch) -> None:
    sizes = []

    def centred(student: Outputs, teacher: Outputs, views: ViewBatch) -> Tensor:
        sizes.append((len(student.logits), len(teacher.logits), views.target.tolist()))
        return (student.logits - student.logits.mean(0)).square().sum(1)

    stepped(batch, Phase((Loss("centred", centred, relational=True),)))
    assert sizes == [(12, 12, batch.target.tolist())] * 2


@pytest.mark.parametrize("sees", ["same", "weak", "clean"])
def test_a_loss_is_told_the_views_as_both_networks_see_them(sees: str, batch: Batch) -> None:
    told: list[ViewBatch] = []

    def watch(student: Outputs, teacher: Outputs, views: ViewBatch) -> Tensor:
        told.append(views)
        return student.logits.square().sum(1)

    batch = replace(batch, ids=torch.arange(12) + 100)
    stepped(batch, Phase((Loss("watch", watch),), views=Views(teacher=sees)))  # type: ignore[arg-type]
    views, draw = told[0], policy().draw(12, generator("views"))
    second = apply(draw, batch.images)
    weak = apply(keep_geometry(draw), batch.images).images
    assert torch.equal(views.images, torch.cat([batch.images, second.images]))
    assert torch.equal(views.shown[12:], {"same": second.images, "weak": weak, "clean": batch.images}[sees])
    assert torch.equal(views.shown[:12], batch.images)
    assert views.ids.tolist() == [*range(100, 112)] * 2 and views.view.tolist() == [0] * 12 + [1] * 12
    assert torch.equal(views.target, batch.target.repeat(2)) and torch.equal(views.draw.chosen, draw.chosen)
    assert torch.equal(views.matrix, torch.cat([torch.eye(3).double().expand(12, 3, 3), second.matrix]))
    assert len(views) == 24 and views.rows(slice(12, 24)).view.unique().tolist() == [1]


def test_rules_with_unknown_names_are_refused_together() -> None:
    with pytest.raises(KdsearchError) as caught:
        Views(labels="bse", over="average", teacher="strong")  # type: ignore[arg-type]
    assert str(caught.value) == (
        "views: 3 problems\n"
        "  unknown labels of views 'bse'; did you mean 'base'?\n"
        "  unknown over of views 'average'; known: mean, sum\n"
        "  unknown teacher of views 'strong'; known: clean, same, weak"
    )


def test_the_progress_of_a_run_goes_from_nothing_to_all_but_the_last_step(digits_images: Tensor) -> None:
    seen = []

    class Watching(Distiller):
        def student_step(
            self, batch: Batch, phase: Phase, random: torch.Generator, progress: float = 0.0, *rest: torch.Generator
        ) -> Tensor:
            seen.append(progress)
            return super().student_step(batch, phase, random, progress, *rest)

    data = ArrayData(digits_images[:32], torch.arange(32) % 10)
    d = Watching(Teacher(network(1)), copy.deepcopy(network(2)), policy(), Classification.of(10))
    list(d.run(Phase((KD,), epochs=2, steps=2, batch=8), data, data))
    assert seen == [0.0, 0.25, 0.5, 0.75]


def test_losses_on_features_see_both_networks_at_their_layers(batch: Batch) -> None:
    def loss(student: nn.Module, teacher: nn.Module) -> Tensor:
        both = torch.cat([batch.images, second_view(batch)])
        maps = (student[0](both) - teacher[0](both).detach()).square().mean((1, 2, 3))
        return cross_entropy(student(both)[:12], batch.target) + 3 * (maps[:12].mean() + maps[12:].mean())

    student = by_hand(loss)
    ours, _ = stepped(batch, Phase((LOSSES["hint"]("0").times(3.0),)))
    for name, value in ours.named_parameters():
        torch.testing.assert_close(value, student.get_parameter(name), atol=1e-6, rtol=1e-5)
    with pytest.raises(KdsearchError, match="student"):
        stepped(batch, Phase((LOSSES["hint"]("conv7", "0"),)))


def wide(seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(1, 9, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(36, 10))


def test_features_of_other_channels_are_compared_through_a_projection_that_learns_beside_the_student(
    batch: Batch, digits_images: Tensor
) -> None:
    phase = Phase((LOSSES["hint"]("0").times(3.0),), epochs=1, steps=1, batch=12)
    made, ends, names = [], [], list(network(2).state_dict())

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        made.append(torch.optim.SGD(parameters, lr=0.1))
        return made[-1]

    for seed in (0, 0, 1):
        d = Distiller(Teacher(wide(1)), network(2), policy(), Classification.of(10), optimizer=optimizer, seed=seed)
        with pytest.raises(
            KdsearchError, match="different numbers of channels; allowed: as many in both, a projection"
        ):
            d.student_step(batch, phase, generator("views"))
        d.fit(phase, batch.images[:2])
        start = copy.deepcopy(d.projections)
        d.student_step(batch, phase, generator("views"))
        assert list(d.student.state_dict()) == names
        ends.append(d.projections.maps[0].weight.detach())
    assert torch.equal(ends[0], ends[1]) and not torch.equal(ends[1], ends[2])

    def by_hand(student: nn.Module, teacher: nn.Module, convolution: nn.Module) -> Tensor:
        both = torch.cat([batch.images, second_view(batch)])
        hints = (convolution(student[0](both)) - teacher[0](both)).square().flatten(1).mean(1).view(2, 12)
        return cross_entropy(student(both)[:12], batch.target) + 2 * 3.0 * hints.mean()

    student, convolution = network(2).train(), start.maps[0]
    descent = torch.optim.SGD([*student.parameters(), *convolution.parameters()], lr=0.1)
    by_hand(student, wide(1).eval(), convolution).backward()
    descent.step()
    torch.testing.assert_close(convolution.weight, ends[2], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(student[0].weight, d.student[0].weight, atol=1e-6, rtol=1e-5)


def test_projections_come_in_the_order_of_their_pairs_and_later_phases_add_theirs(batch: Batch) -> None:
    """Their start is drawn one after another: an order that changed with the process would change the student."""
    pairs = [(s, t) for t in ("1", "0") for s in ("2", "0", "1")]
    first, second = (Phase((LOSSES["hint"](pairs=some),)) for some in (pairs[:5], pairs[1:]))
    d = Distiller(Teacher(wide(1)), network(2), policy(), Classification.of(10))
    d.fit(first, batch.images[:2])
    assert d.projections.pairs == pairs[:5]
    d.fit(second, batch.images[:2])
    assert d.projections.pairs == pairs and len(d.optimizer.param_groups) == 3
    d.student_step(batch, second, generator("views"))  # the first pair's layer may be missing now
    d.student_step(batch, Phase((LOSSES["hint"]("1", "0"),)), generator("views"))


def test_a_run_fits_its_projections_and_their_rate_follows_the_schedule(digits_images: Tensor) -> None:
    data = ArrayData(digits_images[:48], torch.arange(48) % 10)
    d = Distiller(Teacher(wide(1)), network(2), policy(), Classification.of(10))
    records = list(d.run(Phase((LOSSES["hint"]("0"), KD), epochs=2, steps=20, batch=12), data, data))
    assert [sorted(r.losses) for r in records] == [["hint, 0 to 0", KD.name]] * 2
    assert records[1].losses["hint, 0 to 0"] < 0.8 * records[0].losses["hint, 0 to 0"]
    student, projection = d.optimizer.param_groups
    assert student["lr"] == projection["lr"] and len(projection["params"]) == 2


def test_losses_and_weights_of_a_study_that_make_no_sense_are_refused(tiny_study: Study) -> None:
    with pytest.raises(KdsearchError, match=r"loss is Kind; allowed: call it, as kdsearch.losses.kd\(\)"):
        check_inputs(replace(tiny_study, loss=[KD, LOSSES["dkd"]]))  # type: ignore[list-item]
    with pytest.raises(KdsearchError, match=r"loss is function; allowed: one of kdsearch.losses, or a Loss"):
        check_inputs(replace(tiny_study, loss=divergence))  # type: ignore[arg-type]
    with pytest.raises(KdsearchError, match="label_weight is nan; allowed: 0 or more"):
        check_inputs(replace(tiny_study, label_weight=float("nan")))
    for over in (0.0, -1.0, 1.5, float("nan")):
        with pytest.raises(KdsearchError, match="more than 0, at most 1"):
            Ramp(0.0, 1.0, over=over)
    check_inputs(replace(tiny_study, loss=[KD, LOSSES["dkd"]().times(0.5)], views=VIEWS["tst"]))
