"""What a policy step minimises: terms per image, in log space, out of one table."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from kdsearch.core.errors import problems, unknown_name

__all__ = [
    "TABLE",
    "TST",
    "Objective",
    "Term",
    "divergence",
    "student_wrong",
    "teacher_entropy",
    "teacher_right",
    "weighted_sum",
]

Term = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Logits of student and teacher, (B, K, *space) each, and labels (B, *space) or shares of the classes (B, K, *space) ->
(B, *space), in nats."""


@dataclass(frozen=True)
class Objective:
    """One term, always minimised: what is sought is in its sign. Half-precision logits are taken to float32."""

    name: str
    function: Term
    seeks: str  # the images that minimising it makes more likely
    bound: str  # in nats
    reference: str  # where it comes from


def teacher_right(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    """`-log p_T(y)`, at most `2 log K`; for shares q of the classes `-sum_c q_c log p_T(c)`.

    Minimising it seeks images that the teacher still gets right. The cap keeps one ruined image from ruling a step:
    beyond it the gradient is 0, before it at most sqrt(2) per image.

    Returns:
        (B,), in nats, 0 to `2 log K`.

    Reference:
        Shao et al., Teaching what you should teach, IJCAI 2023, first term; the cap is ours

    >>> round(teacher_right(torch.zeros(1, 2), torch.tensor([[0.0, 9.0]]), torch.tensor([0])).item(), 4)  # 2 log 2
    1.3863
    """
    teacher = _wide(teacher)
    return cross_entropy(teacher, _shares(target, teacher), reduction="none").clamp(max=_cap(teacher))


def student_wrong(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    """`-log(1 - p_S(y))`, as `logsumexp(z) - logsumexp(z + log(1 - q))`; for shares q `-log(1 - sum_c q_c p_S(c))`.

    Minimising it seeks images that the student gets wrong. Not capped: it grows by a nat with each nat by which the
    student is too sure, and in this form its gradient, at most sqrt(2) per image, is alive there, where
    `log(1 - softmax + 1e-8)` rounds to a constant.

    Returns:
        (B,), in nats, 0 or more.

    Reference:
        Shao et al., Teaching what you should teach, IJCAI 2023, second term

    >>> student_wrong(torch.tensor([[0.0, 100.0]]), torch.zeros(1, 2), torch.tensor([1])).item()
    100.0
    """
    student = _wide(student)
    rest = torch.log1p(-_shares(target, student).clamp(max=1))  # -inf at a label
    return student.logsumexp(1) - (student + rest).logsumexp(1)


def divergence(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    """`-KL(p_T || p_S)`, the divergence held to `2 log K`; the target plays no part.

    Minimising it seeks images on which student and teacher differ, whoever is right. Below the cap the gradient is at
    most sqrt(2) per image to the student's logits and `sqrt(2) (2 log K + 1/e)` to the teacher's; beyond it 0.

    Returns:
        (B,), in nats, `-2 log K` to 0.

    Reference:
        Wang et al., What makes a good data augmentation in knowledge distillation, NeurIPS 2022, arXiv:2012.02909: a
        criterion by which its CutMixPick keeps images, there at temperature 4; the cap and the use as an objective are
        ours

    >>> x = torch.tensor([[2.0, 0.0]])
    >>> divergence(x, x, torch.tensor([0])).abs().item()
    0.0
    """
    log_q, log_p = _wide(student).log_softmax(1), _wide(teacher).log_softmax(1)
    return -(log_p.exp() * (log_p - log_q)).sum(1).clamp(max=_cap(teacher))


def teacher_entropy(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    """`-H(p_T) = sum_c p_T(c) log p_T(c)`; neither student nor target plays a part.

    Minimising it seeks images on which the teacher is unsure, where its soft answer says more than a label; on its own
    it is least on images that say nothing. The gradient is at most `sqrt(2) log K` per image.

    Returns:
        (B,), in nats, `-log K` to 0.

    Reference:
        Wang et al., What makes a good data augmentation in knowledge distillation, NeurIPS 2022, arXiv:2012.02909: a
        criterion by which its CutMixPick keeps images; the use as an objective is ours

    >>> round(teacher_entropy(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([0])).item(), 4)
    -0.6931
    """
    log_p = _wide(teacher).log_softmax(1)
    return (log_p.exp() * log_p).sum(1)


TST_PAPER = "Shao et al., IJCAI 2023"
PICK_PAPER = "CutMixPick (Wang et al., NeurIPS 2022)"
_TERMS = (
    Objective("teacher_right", teacher_right, "the teacher still gets them right", "0 to 2 log K", TST_PAPER),
    Objective("student_wrong", student_wrong, "the student gets them wrong", "0 or more", TST_PAPER),
    Objective("divergence", divergence, "student and teacher differ, whoever is right", "-2 log K to 0", PICK_PAPER),
    Objective("teacher_entropy", teacher_entropy, "the teacher is unsure", "-log K to 0", PICK_PAPER),
)
TABLE: Mapping[str, Objective] = {term.name: term for term in _TERMS}
"""The terms by name, each with what it seeks, its bound in nats and its source."""
TST: Mapping[str, float] = {"teacher_right": 1.0, "student_wrong": 1.0}
"""Weights of the terms of TST, which a study has unless it names others: images that the teacher gets right and the
student wrong.

Reference:
    Shao et al., Teaching what you should teach, IJCAI 2023
"""


def weighted_sum(weights: Mapping[str, float], student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    """Weighted sum of terms, (B, *space), in nats.

    Raises:
        KdsearchError: no terms, or an unknown one.
    """
    if not weights or weights.keys() - TABLE.keys():
        wrong = [unknown_name("term", name, TABLE) for name in weights if name not in TABLE]
        raise problems("objective", wrong or [f"no terms; known: {', '.join(TABLE)}"])
    return torch.stack([w * TABLE[name].function(student, teacher, target) for name, w in weights.items()]).sum(0)


def _wide(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _shares(target: Tensor, logits: Tensor) -> Tensor:
    """Each class's share of the target, (B, K, *space), in the type of the logits."""
    labels = target.ndim < logits.ndim
    return (one_hot(target, logits.shape[1]).movedim(-1, 1) if labels else target).to(logits.dtype)


def _cap(logits: Tensor) -> float:
    return 2 * math.log(logits.shape[1])
