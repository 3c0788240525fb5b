"""Laws over the tables of losses and objectives, and numbers worked out by hand."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from kdsearch.losses import LOSSES, soft_targets
from kdsearch.maths import generator
from kdsearch.objectives import OBJECTIVES, TST, objective, student_wrong, teacher_right
from kdsearch.values import Outputs


def logits(*seed: int | str, size: int = 16, classes: int = 5) -> Tensor:
    return 4 * torch.randn(size, classes, generator=generator("logits", *seed), dtype=torch.float64)


def value(name: str, student: Tensor, teacher: Tensor) -> Tensor:
    return LOSSES[name]().function(Outputs(student), Outputs(teacher))


# Losses


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_one_number_per_image_and_not_negative(name: str) -> None:
    assert LOSSES[name]().per == "image"
    result = value(name, logits("s"), logits("t"))
    assert result.shape == (16,)
    assert (result > 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_zero_where_student_and_teacher_agree(name: str) -> None:
    torch.testing.assert_close(value(name, logits("t"), logits("t")), torch.zeros(16).double(), atol=1e-12, rtol=0)
    student = logits("t").requires_grad_()
    value(name, student, logits("t")).sum().backward()
    torch.testing.assert_close(student.grad, torch.zeros(16, 5).double(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_is_its_images_one_by_one(name: str) -> None:
    student, teacher = logits("s"), logits("t")
    single = torch.cat([value(name, student[i : i + 1], teacher[i : i + 1]) for i in range(16)])
    torch.testing.assert_close(value(name, student, teacher), single)


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_to_the_student_is_right_and_none_reaches_a_detached_teacher(name: str) -> None:
    student, teacher = logits("s").requires_grad_(), logits("t").requires_grad_()
    value(name, student, teacher.detach()).sum().backward()
    assert teacher.grad is None
    assert torch.autograd.gradcheck(lambda s: value(name, s, logits("t")), (student,))


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_stays_finite_on_very_sure_networks(name: str) -> None:
    student = torch.tensor([[200.0, 0.0], [0.0, 200.0]]).requires_grad_()
    result = value(name, student, torch.tensor([[0.0, 200.0], [0.0, 200.0]]))
    result.sum().backward()
    assert torch.isfinite(result).all() and torch.isfinite(student.grad).all()


def test_soft_targets_worked_out_by_hand() -> None:
    """Teacher (3/4, 1/4) at temperature 4, student (1/2, 1/2): .75 log 1.5 + .25 log .5, times 16."""
    teacher = torch.tensor([[4 * math.log(3), 0.0], [1.0, 1.0]], dtype=torch.float64)
    loss = soft_targets(torch.zeros(2, 2).double(), teacher, 4.0)
    assert loss[0].item() == pytest.approx(16 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5)))
    assert loss[0].item() == pytest.approx(2.0930, abs=1e-4)
    assert loss.mean().item() == pytest.approx(1.0465, abs=1e-4)  # over 2 images, not over 4 elements


def test_soft_targets_are_torchs_divergence_in_direction_and_size() -> None:
    student, teacher = logits("s"), logits("t")
    arguments = (student / 3).log_softmax(1), (teacher / 3).softmax(1)
    torch.testing.assert_close(
        soft_targets(student, teacher, 3.0).mean(), 9 * kl_div(*arguments, reduction="batchmean")
    )


def test_the_default_distillation_loss_has_temperature_four() -> None:
    expected = soft_targets(logits("s"), logits("t"), 4.0)
    torch.testing.assert_close(value("kd", logits("s"), logits("t")), expected)


def test_the_temperature_changes_the_gradient_in_shape_and_not_in_size() -> None:
    sizes = []
    for temperature in (50.0, 100.0):
        student = (logits("s") / 10).requires_grad_()
        soft_targets(student, logits("t") / 10, temperature).sum().backward()
        sizes.append(student.grad.norm().item())
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)


# Objectives, always minimised


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_term_is_one_number_per_image_and_a_batch_is_its_images_one_by_one(name: str) -> None:
    student, teacher, target = logits("s"), logits("t"), torch.arange(16) % 5
    whole = OBJECTIVES[name](student, teacher, target)
    parts = [OBJECTIVES[name](student[i : i + 1], teacher[i : i + 1], target[i : i + 1]) for i in range(16)]
    assert whole.shape == (16,)
    torch.testing.assert_close(whole, torch.cat(parts))


def test_the_gradient_of_student_wrong_is_alive_on_an_over_confident_image() -> None:
    student = torch.tensor([[40.0, 0.0, 0.0]]).requires_grad_()
    loss = student_wrong(student, torch.zeros(1, 3), torch.tensor([0]))
    loss.sum().backward()
    assert loss.item() == pytest.approx(40 - math.log(2), abs=1e-4)
    torch.testing.assert_close(student.grad, torch.tensor([[1.0, -0.5, -0.5]]), atol=1e-4, rtol=0)


def test_student_wrong_is_minus_log_of_the_probability_of_the_other_classes() -> None:
    student, target = logits("s"), torch.arange(16) % 5
    right = student.softmax(1).gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(student_wrong(student, logits("t"), target), -torch.log1p(-right))


def test_student_wrong_falls_as_the_student_errs_and_does_not_see_the_teacher() -> None:
    student, target = torch.tensor([[3.0, 0.0], [0.0, 0.0], [0.0, 3.0]]), torch.zeros(3, dtype=torch.int64)
    loss = student_wrong(student, logits("t", size=3, classes=2), target)
    assert (loss.diff() < 0).all()
    assert torch.equal(loss, student_wrong(student, logits("u", size=3, classes=2), target))


def test_teacher_right_is_the_cross_entropy_of_the_teacher_up_to_its_cap() -> None:
    target, teacher = torch.arange(16) % 5, logits("t")
    plain = cross_entropy(teacher, target, reduction="none")
    assert 0 < (plain > 2 * math.log(5)).sum() < 16
    torch.testing.assert_close(teacher_right(logits("s"), teacher, target), plain.clamp(max=2 * math.log(5)))
    ruined = teacher_right(torch.zeros(1, 5), torch.tensor([[0.0, 99.0, 0.0, 0.0, 0.0]]), torch.tensor([0]))
    assert ruined.item() == pytest.approx(2 * math.log(5))


def test_an_objective_is_the_weighted_sum_of_its_terms() -> None:
    arguments = logits("s"), logits("t"), torch.arange(16) % 5
    both = objective({"teacher_right": 0.5, "student_wrong": 2.0}, *arguments)
    torch.testing.assert_close(both, 0.5 * teacher_right(*arguments) + 2 * student_wrong(*arguments))
    torch.testing.assert_close(objective(TST, *arguments), teacher_right(*arguments) + student_wrong(*arguments))
