"""Laws over the table of the terms that a policy step minimises, and a number worked out by hand for each."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from kdsearch.core.maths import generator
from kdsearch.losses.objectives import TABLE as OBJECTIVES
from kdsearch.losses.objectives import TST, Term, student_wrong, teacher_right, weighted_sum

ROOT = math.sqrt(2)
LOW: dict[str, Callable[[int], float]] = {
    "teacher_right": lambda k: 0.0,
    "student_wrong": lambda k: 0.0,
    "divergence": lambda k: -2 * math.log(k),
    "teacher_entropy": lambda k: -math.log(k),
}
HIGH: dict[str, Callable[[int], float]] = {
    "teacher_right": lambda k: 2 * math.log(k),
    "student_wrong": lambda k: math.inf,
    "divergence": lambda k: 0.0,
    "teacher_entropy": lambda k: 0.0,
}
STEEPEST: dict[str, Callable[[int], float]] = {  # norm of the gradient per image and network
    "teacher_right": lambda k: ROOT,
    "student_wrong": lambda k: ROOT,
    "divergence": lambda k: ROOT * (2 * math.log(k) + 1 / math.e),
    "teacher_entropy": lambda k: ROOT * math.log(k),
}
GAPS = (0.0, 0.5, 2.0, 8.0, 18.0, 40.0, 90.0, 200.0)

every_term = pytest.mark.parametrize("term", [t.function for t in OBJECTIVES.values()], ids=list(OBJECTIVES))
every_name = pytest.mark.parametrize("name", OBJECTIVES)


def logits(*seed: int | str, size: int = 16, classes: int = 5, scale: float = 4.0) -> Tensor:
    return scale * torch.randn(size, classes, generator=generator("logits", *seed), dtype=torch.float64)


def shares(size: int = 16, classes: int = 5) -> Tensor:
    return logits("shares", size=size, classes=classes, scale=1.0).softmax(1)


def labels(size: int = 16, classes: int = 5) -> Tensor:
    return torch.arange(size) % classes


def sure(classes: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Student and teacher at every pair of gaps, each sure of the right class or of a wrong one; label 0."""
    one = torch.zeros(2 * len(GAPS), classes)
    for i, gap in enumerate(GAPS):
        one[2 * i, 0] = one[2 * i + 1, 1] = gap
    one += 0.1 * torch.randn(one.shape, generator=generator("sure"))
    n = len(one)
    student, teacher = one.repeat_interleave(n, 0), one.roll(1, 0).repeat(n, 1)
    return student.to(dtype), teacher.to(dtype), torch.zeros(n * n, dtype=torch.int64)


def slopes(term: Term, student: Tensor, teacher: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The term and its gradients to the logits of student and teacher."""
    student, teacher = student.clone().requires_grad_(), teacher.clone().requires_grad_()
    value = term(student, teacher, target)
    value.sum().backward()
    zero = torch.zeros(1)
    return value.detach(), *(zero.expand_as(z) if z.grad is None else z.grad for z in (student, teacher))


# The whole table


def test_the_table_says_what_each_term_seeks_and_these_laws_know_them_all() -> None:
    assert set(OBJECTIVES) == set(LOW) == set(HIGH) == set(STEEPEST) >= set(TST)
    assert all(name == t.name == t.function.__name__ for name, t in OBJECTIVES.items())
    assert all(t.seeks and t.bound and t.reference for t in OBJECTIVES.values())


@every_term
@pytest.mark.parametrize("target", [labels(), shares()], ids=["labels", "shares"])
def test_a_term_is_one_number_per_image_and_a_batch_is_its_images_one_by_one(term: Term, target: Tensor) -> None:
    student, teacher = logits("s"), logits("t")
    whole = term(student, teacher, target)
    parts = [term(student[i : i + 1], teacher[i : i + 1], target[i : i + 1]) for i in range(16)]
    assert whole.shape == (16,)
    torch.testing.assert_close(whole, torch.cat(parts))


@every_term
def test_a_share_of_one_is_a_label(term: Term) -> None:
    student, teacher = logits("s").float(), logits("t").float()
    for dtype in (torch.float32, torch.float64, torch.int64):
        hot = one_hot(labels(), 5).to(dtype)
        assert torch.equal(term(student, teacher, hot), term(student, teacher, labels()))


@every_term
@pytest.mark.parametrize("soft", [False, True], ids=["labels", "shares"])
def test_the_order_of_the_classes_and_a_constant_play_no_part(term: Term, soft: bool) -> None:
    student, teacher, order = logits("s"), logits("t"), torch.tensor([3, 0, 4, 1, 2])
    target = shares() if soft else labels()
    moved = target[:, order] if soft else order.argsort()[target]
    before = term(student, teacher, target)
    torch.testing.assert_close(term(student[:, order] + 3, teacher[:, order] - 2, moved), before)
    assert before.std() > 0.1


@every_name
@pytest.mark.parametrize("classes", [2, 5, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_on_networks_however_sure_value_and_gradient_stay_within_their_bounds(
    name: str, classes: int, dtype: torch.dtype
) -> None:
    value, *gradients = slopes(OBJECTIVES[name].function, *sure(classes, dtype))
    assert value.dtype == torch.float32 and torch.isfinite(value).all()
    assert value.min() >= LOW[name](classes) - 1e-4 and value.max() <= HIGH[name](classes) + 1e-4
    for gradient in gradients:
        assert torch.isfinite(gradient).all()
        assert gradient.float().norm(dim=1).max() <= 1.01 * STEEPEST[name](classes)


@every_name
def test_a_gradient_comes_near_its_bound_somewhere(name: str) -> None:
    """So that the bounds say something: within a factor of four, over many random images of few classes."""
    student, teacher = logits("s", size=4000, classes=3, scale=6.0), logits("t", size=4000, classes=3, scale=6.0)
    _, *gradients = slopes(OBJECTIVES[name].function, student, teacher, labels(4000, 3))
    assert max(g.norm(dim=1).max() for g in gradients) > STEEPEST[name](3) / 4


@every_term
@pytest.mark.parametrize("target", [labels(), shares()], ids=["labels", "shares"])
def test_gradients_are_right_away_from_the_cap(term: Term, target: Tensor) -> None:
    student, teacher = (logits(who, scale=0.7).requires_grad_() for who in "st")
    value = term(student, teacher, target)
    assert value.abs().max() < 2 * math.log(5) - 0.1
    assert torch.autograd.gradcheck(lambda s, t: term(s, t, target), (student, teacher))


@pytest.mark.parametrize("name", ["teacher_right", "divergence"])
def test_beyond_the_cap_there_is_no_gradient(name: str) -> None:
    teacher = torch.tensor([[0.0, 9.0, 0.0], [0.0, 9.0, 0.0]])  # 9 nats wrong, over 2 log 3
    student = torch.tensor([[9.0, 0.0, 0.0], [40.0, 0.0, 0.0]])
    value, *gradients = slopes(OBJECTIVES[name].function, student, teacher, torch.zeros(2, dtype=torch.int64))
    torch.testing.assert_close(value.abs(), torch.full((2,), 2 * math.log(3)))
    assert not any(gradient.any() for gradient in gradients)


# By hand: K = 2, teacher (3/4, 1/4), student (1/2, 1/2), and the same with shares (.9, .1) of the classes


@pytest.mark.parametrize(
    ("name", "hard", "soft"),
    [
        ("teacher_right", math.log(4 / 3), 0.9 * math.log(4 / 3) + 0.1 * math.log(4)),
        ("student_wrong", math.log(2), math.log(2)),
        ("divergence", -0.75 * math.log(1.5) - 0.25 * math.log(0.5), None),
        ("teacher_entropy", 0.75 * math.log(0.75) + 0.25 * math.log(0.25), None),
    ],
)
def test_a_number_worked_out_by_hand(name: str, hard: float, soft: float | None) -> None:
    teacher, student = torch.tensor([[3.0, 1.0]]).double().log(), torch.zeros(1, 2).double()
    term = OBJECTIVES[name].function
    assert term(student, teacher, torch.tensor([0])).item() == pytest.approx(hard)
    assert term(student, teacher, torch.tensor([[0.9, 0.1]])).item() == pytest.approx(hard if soft is None else soft)


def test_student_wrong_of_shares_by_hand() -> None:
    """Student (1/2, 1/4, 1/4), shares (.5, .5, 0): right with .375."""
    student = torch.tensor([[2.0, 1.0, 1.0]]).double().log()
    value = student_wrong(student, student, torch.tensor([[0.5, 0.5, 0.0]]))
    assert value.item() == pytest.approx(-math.log(0.625))


# Shape


def test_terms_are_convex_where_they_are_said_to_be() -> None:
    """At the middle of two images a convex term is at most its mean: each in the argument in which it is convex."""
    a, b, q = logits("a", scale=0.7), logits("b", scale=0.7), shares()

    def gap(f: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
        return (f(x) + f(y)) / 2 - f((x + y) / 2)

    def term(name: str, student: Tensor, teacher: Tensor, target: Tensor = q) -> Tensor:
        return OBJECTIVES[name].function(student, teacher, target)

    p, r = a.softmax(1), b.softmax(1)
    convex = {
        "teacher_right in the teacher's logits": gap(lambda t: term("teacher_right", a, t), a, b),
        "student_wrong in the student's probabilities": gap(lambda s: term("student_wrong", s.log(), b), p, r),
        "- divergence in the student's logits": gap(lambda s: -term("divergence", s, shares().log()), a, b),
        "- divergence in the teacher's probabilities": gap(lambda t: -term("divergence", a, t.log()), p, r),
        "teacher_entropy in the teacher's probabilities": gap(lambda t: term("teacher_entropy", a, t.log()), p, r),
    }
    for which, by in convex.items():
        assert by.min() > 0, which
    affine = gap(lambda target: term("teacher_right", a, b, target), q, q.roll(1, 1))
    torch.testing.assert_close(affine, torch.zeros(16).double())


def test_student_wrong_grows_by_a_nat_per_nat_of_overconfidence() -> None:
    student = torch.tensor([[20.0, 0.0, 0.0], [40.0, 0.0, 0.0], [200.0, 0.0, 0.0]])
    value = student_wrong(student, torch.zeros(3, 3), torch.zeros(3, dtype=torch.int64))
    torch.testing.assert_close(value, student[:, 0] - math.log(2))


@pytest.mark.parametrize("gap", [18.0, 40.0, 200.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_student_wrong_is_alive_where_the_form_of_the_published_code_is_not(gap: float, dtype: torch.dtype) -> None:
    """`-log(1 - softmax + 1e-8)` passes nothing to the right class's logit at 18, and nothing to any from 40 on."""
    student = torch.tensor([[gap, 0.0, 0.0]], dtype=dtype)
    _, gradient, _ = slopes(student_wrong, student, torch.zeros(1, 3), torch.tensor([0]))
    torch.testing.assert_close(gradient, torch.tensor([[1.0, -0.5, -0.5]], dtype=dtype), atol=1e-3, rtol=0)
    assert gradient.norm() > 0.5
    published = student.float().requires_grad_()
    (-torch.log(1 - published.softmax(1)[:, 0] + 1e-8)).sum().backward()
    assert published.grad is not None
    dead = published.grad[0, 0].abs() if gap == 18 else published.grad.norm()
    assert dead < 0.02


# Each term


def test_student_wrong_is_minus_log_of_the_probability_of_the_other_classes() -> None:
    student = logits("s")
    right = student.softmax(1).gather(1, labels()[:, None])[:, 0]
    torch.testing.assert_close(student_wrong(student, logits("t"), labels()), -torch.log1p(-right))


def test_teacher_right_is_the_cross_entropy_of_the_teacher_up_to_its_cap() -> None:
    plain = cross_entropy(logits("t"), labels(), reduction="none")
    assert 0 < (plain > 2 * math.log(5)).sum() < 16
    torch.testing.assert_close(teacher_right(logits("s"), logits("t"), labels()), plain.clamp(max=2 * math.log(5)))


@pytest.mark.parametrize(
    ("name", "student", "teacher", "target"),
    [
        ("teacher_right", False, True, True),
        ("student_wrong", True, False, True),
        ("divergence", True, True, False),
        ("teacher_entropy", False, True, False),
    ],
)
def test_a_term_sees_what_it_is_about_and_nothing_else(name: str, student: bool, teacher: bool, target: bool) -> None:
    given = [logits("s", scale=0.7), logits("t", scale=0.7), labels()]
    other = [logits("u", scale=0.7), logits("v", scale=0.7), (labels() + 1) % 5]
    before = OBJECTIVES[name].function(*given)
    for i, seen in enumerate((student, teacher, target)):
        after = OBJECTIVES[name].function(*(other[j] if j == i else given[j] for j in range(3)))
        assert torch.equal(before, after) != seen


@pytest.mark.parametrize(
    ("name", "sought", "shunned"),
    [  # what is likely under (student, teacher), label 0
        ("teacher_right", ([0.0, 0.0], [3.0, 0.0]), ([0.0, 0.0], [0.0, 3.0])),
        ("student_wrong", ([0.0, 3.0], [0.0, 0.0]), ([3.0, 0.0], [0.0, 0.0])),
        ("divergence", ([0.0, 1.0], [1.0, 0.0]), ([1.0, 0.0], [1.0, 0.0])),
        ("teacher_entropy", ([0.0, 0.0], [0.1, 0.0]), ([0.0, 0.0], [3.0, 0.0])),
    ],
)
def test_what_is_sought_has_the_smaller_value(
    name: str, sought: tuple[list[float], list[float]], shunned: tuple[list[float], list[float]]
) -> None:
    less, more = (
        OBJECTIVES[name].function(torch.tensor([s]), torch.tensor([t]), torch.tensor([0])) for s, t in (sought, shunned)
    )
    assert less.item() < more.item() - 0.1


def test_an_objective_is_the_weighted_sum_of_its_terms() -> None:
    arguments = logits("s"), logits("t"), labels()
    both = weighted_sum({"teacher_right": 0.5, "student_wrong": 2.0}, *arguments)
    torch.testing.assert_close(both, 0.5 * teacher_right(*arguments) + 2 * student_wrong(*arguments))
    torch.testing.assert_close(weighted_sum(TST, *arguments), teacher_right(*arguments) + student_wrong(*arguments))
