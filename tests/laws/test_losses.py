"""Laws over the table of losses, and numbers worked out by hand."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import kl_div

from kdsearch.losses import LOSSES, soft_targets
from kdsearch.maths import generator
from kdsearch.values import Outputs


def logits(*seed: int | str, size: int = 16, classes: int = 5) -> Tensor:
    return 4 * torch.randn(size, classes, generator=generator("logits", *seed), dtype=torch.float64)


def value(name: str, student: Tensor, teacher: Tensor) -> Tensor:
    return LOSSES[name]()(Outputs(student), Outputs(teacher), torch.arange(len(student)) % student.shape[1])


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
