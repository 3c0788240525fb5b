"""Losses on logits: functions of student's and teacher's logits, one number per image."""

import torch
from torch import Tensor

from kdsearch.core.values import Outputs, ViewBatch
from kdsearch.losses.loss import Kind, Loss, Ramp, check_temperature

SPREAD = 1e-3  # logits that deviate less count as deviating by this much: bounds the gradient where all are equal


def kd_loss(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """`T^2 * KL(softmax(teacher / T) || softmax(student / T))` per image, or per point of dense logits.

    The factor T^2 keeps the size of the gradient independent of the temperature.

    Args:
        student: Logits, (B, K, *space).
        teacher: Logits, (B, K, *space).

    Returns:
        (B, *space), in nats times T^2.

    Reference:
        Hinton et al., Distilling the knowledge in a neural network, 2015, arXiv:1503.02531

    >>> import torch
    >>> x = torch.tensor([[2.0, 0.0]])
    >>> kd_loss(x, x).item()
    0.0
    """
    log_p = (teacher / temperature).log_softmax(1)
    log_q = (student / temperature).log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1) * temperature**2


def dkd_loss(
    student: Tensor, teacher: Tensor, target: Tensor, *, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0
) -> Tensor:
    """`T^2 * (alpha TKD + beta NKD)` per image.

    TKD is the divergence between "the label or not", (p_y, 1 - p_y); NKD the one among the other classes, normalised
    to 1. Soft targets are `TKD + (1 - p_y) NKD`: here what a sure teacher says of the other classes counts in full.
    Everything stays in log space and the label is left out, not masked by a large number. The authors weigh it up
    linearly over the first 20 of 240 epochs, beside a cross-entropy of weight 1.

    Args:
        student: Logits, (B, K).
        teacher: Logits, (B, K).
        target: Labels, (B,).

    Returns:
        (B,), in nats times T^2.

    Reference:
        Zhao et al., Decoupled knowledge distillation, CVPR 2022, arXiv:2203.08679

    >>> import torch
    >>> x, y = torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([0])
    >>> dkd_loss(x, x, y).item(), dkd_loss(x, x + torch.tensor([9.0, 0.0, 0.0]), y, alpha=0.0).item()
    (0.0, 0.0)
    """
    (p, p_rest), (q, q_rest) = (_parts(logits / temperature, target) for logits in (teacher, student))
    return temperature**2 * (alpha * kd_loss(q, p, 1.0) + beta * kd_loss(q_rest, p_rest, 1.0))


def _parts(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of "the label or not", (B, 2), and of the classes other than the label, (B, K - 1)."""
    index = torch.arange(logits.shape[1] - 1, device=logits.device)
    label = target[:, None]
    rest = logits.gather(1, index + (index >= label))
    return torch.cat([logits.gather(1, label), rest.logsumexp(1, keepdim=True)], 1), rest


def standardised_loss(student: Tensor, teacher: Tensor, temperature: float = 2.0) -> Tensor:
    """Soft targets of `(z - mean) / std`, the mean and standard deviation of an image's logits over the classes.

    The student has to match the teacher's logits but for shift and scale. The deviation divides by K - 1. The authors
    give it the weight 9, beside a cross-entropy of weight 0.1.

    Args:
        student: Logits, (B, K, *space).
        teacher: Logits, (B, K, *space).

    Returns:
        (B, *space), in nats times T^2.

    Reference:
        Sun et al., Logit standardization in knowledge distillation, CVPR 2024, arXiv:2403.01427

    >>> import torch
    >>> x = torch.tensor([[2.0, 0.0, 1.0]])
    >>> standardised_loss(5 * x - 3, x).item() < 1e-6
    True
    """
    return kd_loss(_standard(student), _standard(teacher), temperature)


def _standard(logits: Tensor) -> Tensor:
    centred = logits - logits.mean(1, keepdim=True)
    variance = centred.square().sum(1, keepdim=True) / max(logits.shape[1] - 1, 1)
    return centred / variance.clamp(min=SPREAD**2).sqrt()


# What a study is given


def kd(temperature: float = 4.0) -> Loss:
    """Soft targets, per image or point: `kd_loss`.

    Reference:
        Hinton et al., Distilling the knowledge in a neural network, 2015, arXiv:1503.02531
    """
    check_temperature("kd", temperature)

    def loss(student: Outputs, teacher: Outputs, views: ViewBatch) -> Tensor:
        return kd_loss(student.logits, teacher.logits, temperature)

    return Loss(f"kd, temperature {temperature:g}", loss, per="point")


def dkd(alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0) -> Loss:
    """Decoupled distillation, per image: `dkd_loss`.

    Its weight rises from 0 to 1 over the first twelfth of the phase, as in the paper's 20 of 240 epochs.

    Reference:
        Zhao et al., Decoupled knowledge distillation, CVPR 2022, arXiv:2203.08679
    """
    check_temperature("dkd", temperature)

    def loss(student: Outputs, teacher: Outputs, views: ViewBatch) -> Tensor:
        return dkd_loss(student.logits, teacher.logits, views.target, alpha=alpha, beta=beta, temperature=temperature)

    name = f"dkd, alpha {alpha:g}, beta {beta:g}, temperature {temperature:g}"
    return Loss(name, loss, weight=Ramp(0.0, 1.0, over=1 / 12))


def standardised(temperature: float = 2.0) -> Loss:
    """Distillation of standardised logits, per image or point: `standardised_loss`.

    Reference:
        Sun et al., Logit standardization in knowledge distillation, CVPR 2024, arXiv:2403.01427
    """
    check_temperature("standardised", temperature)

    def loss(student: Outputs, teacher: Outputs, views: ViewBatch) -> Tensor:
        return standardised_loss(student.logits, teacher.logits, temperature)

    return Loss(f"standardised, temperature {temperature:g}", loss, per="point")


KINDS = (
    Kind(
        "kd",
        kd,
        "T^2 KL(p_T || p_S)",
        "paper form",
        "Hinton et al., Distilling the knowledge in a neural network, 2015",
    ),
    Kind(
        "dkd",
        dkd,
        "T^2 (alpha KL of label or not + beta KL of the other classes)",
        "faithful",
        "Zhao et al., Decoupled knowledge distillation, CVPR 2022",
    ),
    Kind(
        "standardised",
        standardised,
        "kd of logits with mean 0, deviation 1",
        "faithful",
        "Sun et al., Logit standardization in knowledge distillation, CVPR 2024",
    ),
)
