"""What a policy step minimises: terms per image, in log space, out of one table."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

Term = Callable[[Tensor, Tensor, Tensor], Tensor]  # student (B,K), teacher (B,K), target (B,) -> (B,)


def teacher_right(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    """`-log p_T(y)`, at most 2 log K per image, so that no single ruined image rules a step.

    Reference:
        Shao et al., Teaching what you should teach, IJCAI 2023, first term
    """
    return cross_entropy(teacher, target, reduction="none").clamp(max=2 * math.log(teacher.shape[1]))


def student_wrong(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    """`-log(1 - p_S(y))`, as `logsumexp(all) - logsumexp(all but y)`: its gradient stays bounded and alive on
    over-confident images, where the probability form rounds to nothing.

    Reference:
        Shao et al., Teaching what you should teach, IJCAI 2023, second term

    >>> student_wrong(torch.tensor([[0.0, 100.0]]), torch.zeros(1, 2), torch.tensor([1])).item()
    100.0
    """
    rest = student.masked_fill(torch.nn.functional.one_hot(target, student.shape[1]).bool(), -math.inf)
    return student.logsumexp(1) - rest.logsumexp(1)


OBJECTIVES: Mapping[str, Term] = {"teacher_right": teacher_right, "student_wrong": student_wrong}
TST: Mapping[str, float] = {"teacher_right": 1.0, "student_wrong": 1.0}


def objective(weights: Mapping[str, float], student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    """Weighted sum of terms, (B,), in nats."""
    return torch.stack([w * OBJECTIVES[name](student, teacher, target) for name, w in weights.items()]).sum(0)
