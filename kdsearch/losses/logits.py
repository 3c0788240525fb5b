"""Losses on logits: functions of student's and teacher's logits, one number per image."""

from torch import Tensor


def soft_targets(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """`T^2 * KL(softmax(teacher / T) || softmax(student / T))` per image.

    The factor T^2 keeps the size of the gradient independent of the temperature.

    Args:
        student: Logits, (B, K).
        teacher: Logits, (B, K).

    Returns:
        (B,), in nats times T^2.

    Reference:
        Hinton et al., Distilling the knowledge in a neural network, 2015, arXiv:1503.02531

    >>> import torch
    >>> x = torch.tensor([[2.0, 0.0]])
    >>> soft_targets(x, x).item()
    0.0
    """
    log_p = (teacher / temperature).log_softmax(1)
    log_q = (student / temperature).log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1) * temperature**2
