"""Losses on features: functions of student's and teacher's features, one number per image."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate, normalize

from kdsearch.augment.operations.warp import inside_mask
from kdsearch.core.errors import KdsearchError
from kdsearch.core.values import ViewBatch
from kdsearch.losses.loss import Kind, Loss, Pairs, feature_loss

SHAPES = {2: "vectors (B, D)", 3: "tokens (B, N, D)", 4: "maps (B, C, H, W)"}
CHANNELS = {2: 1, 3: 2, 4: 1}  # the axis of the channels


def hint_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of features.

    Of two maps the larger is averaged down to the size of the smaller. The paper trains on half the sum of squares
    before, and not beside, the distillation; re-implementations take the mean, with weight 100.

    Args:
        student: (B, C, H, W), tokens (B, N, D) or vectors (B, D).
        teacher: Of the same kind, with as many channels.

    Returns:
        (B,), in the square of the features' unit.

    Raises:
        KdsearchError: shapes that cannot be compared.

    Reference:
        Romero et al., FitNets: hints for thin deep nets, ICLR 2015, arXiv:1412.6550

    >>> hint_loss(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 5.0]])).item()
    4.5
    """
    _check(student, teacher, (2, 3, 4), channels=True)
    if student.ndim == 4:
        student, teacher = _pooled(student, teacher)
    return (student - teacher).square().flatten(1).mean(1)


def at_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of attention: the mean over the channels of the squares at each position, with norm 1.

    Of two maps the larger is averaged down to the size of the smaller; channels may differ. The authors' weight is 1000
    for the sum over their three pairs.

    Args:
        student: (B, C, H, W).
        teacher: (B, C', H', W').

    Returns:
        (B,), 0 to 2 / (H W).

    Raises:
        KdsearchError: not maps.

    Reference:
        Zagoruyko and Komodakis, Paying more attention to attention, ICLR 2017, arXiv:1612.03928

    >>> at_loss(torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 7.0]]]])).item()
    1.0
    """
    _check(student, teacher, (4,), channels=False)
    a, b = (normalize(f.square().mean(1).flatten(1), dim=1) for f in _pooled(student, teacher))
    return (a - b).square().mean(1)


def nfd_loss(student: Tensor, teacher: Tensor, valid: Tensor | None = None, *, eps: float = 1e-5) -> Tensor:
    """Mean squared difference of maps of which each has mean 0 and variance 1 over its positions.

    `(f - mean) / sqrt(var + eps)` per image and channel; the result is `2 (1 - r)`, r the correlation of the two maps,
    where eps is small beside the variance. So it does not see what a change of brightness or contrast does to a whole
    channel. The student's map is resized to the teacher's, bilinearly.

    Args:
        student: (B, C, H', W').
        teacher: (B, C, H, W).
        valid: (B, 1, H, W) bool, the positions that count, in mean and variance also; all by default.

    Returns:
        (B,), 0 to 4; 0 where no position is valid.

    Raises:
        KdsearchError: not maps, or channels that differ.

    Reference:
        Liu et al., Normalized feature distillation for semantic segmentation, 2022, arXiv:2207.05256

    >>> f = torch.tensor([[[[1.0, 2.0, 4.0]]]])
    >>> nfd_loss(3 * f + 5, f).item() < 1e-6, round(nfd_loss(-f, f).item(), 3)
    (True, 4.0)
    """
    _check(student, teacher, (4,), channels=True)
    if student.shape[2:] != teacher.shape[2:]:
        student = interpolate(student, teacher.shape[2:], mode="bilinear", align_corners=False)
    counts = torch.ones_like(teacher[:, :1]) if valid is None else valid.to(teacher)
    total = counts.sum((2, 3), keepdim=True).clamp(min=1)

    def mean(f: Tensor) -> Tensor:
        return (f * counts).sum((2, 3), keepdim=True) / total

    def standard(f: Tensor) -> Tensor:
        centred = f - mean(f)
        return centred / (mean(centred.square()) + eps).sqrt()

    return mean((standard(student) - standard(teacher)).square()).flatten(1).mean(1)


def _check(student: Tensor, teacher: Tensor, axes: tuple[int, ...], *, channels: bool) -> None:
    """Can they be compared? The one who calls knows the paths, and puts them in front of the message."""
    s, t = student.shape, teacher.shape
    if len(s) not in axes or len(s) != len(t):
        raise KdsearchError(f"cannot be compared; allowed: both {', or both '.join(SHAPES[n] for n in axes)}")
    if s[0] != t[0]:
        raise KdsearchError("different numbers of images; allowed: the same images in both")
    if channels and s[CHANNELS[len(s)]] != t[CHANNELS[len(t)]]:
        raise KdsearchError(
            "different numbers of channels; allowed: as many in both, a projection fitted before the "
            "training, or the losses at, rkd and sp, which compare any"
        )
    if len(s) == 3 and s[1] != t[1]:
        raise KdsearchError("different numbers of tokens; allowed: layers with as many tokens")


def _pooled(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Maps averaged down to the smaller height and the smaller width."""
    height, width = (min(a, b) for a, b in zip(student.shape[2:], teacher.shape[2:], strict=True))
    small = (height, width)
    student, teacher = (f if f.shape[2:] == small else adaptive_avg_pool2d(f, small) for f in (student, teacher))
    return student, teacher


# What a study is given


def hint(student: str | None = None, teacher: str | None = None, *, pairs: Pairs = ()) -> Loss:
    """Mean squared difference of features, where channels differ of what a learned projection makes: `hint_loss`.

    Args:
        student: Module path in the student.
        teacher: Module path in the teacher; the student's by default.
        pairs: Several such pairs, summed.

    Reference:
        Romero et al., FitNets: hints for thin deep nets, ICLR 2015, arXiv:1412.6550
    """
    return feature_loss("hint", lambda s, t, views: hint_loss(s, t), student, teacher, pairs, projects=True)


def at(student: str | None = None, teacher: str | None = None, *, pairs: Pairs = ()) -> Loss:
    """Attention transfer, of maps of any channels: `at_loss`; arguments as of `hint`.

    Reference:
        Zagoruyko and Komodakis, Paying more attention to attention, ICLR 2017, arXiv:1612.03928
    """
    return feature_loss("at", lambda s, t, views: at_loss(s, t), student, teacher, pairs)


def nfd(student: str | None = None, teacher: str | None = None, *, pairs: Pairs = (), valid: bool = False) -> Loss:
    """Normalised features, of what a projection makes where channels differ: `nfd_loss`; arguments as of `hint`.

    With `valid` the positions are left out of which the policy's geometry filled more than half of the pixels.

    Reference:
        Liu et al., Normalized feature distillation for semantic segmentation, 2022, arXiv:2207.05256
    """

    def compare(student: Tensor, teacher: Tensor, views: ViewBatch) -> Tensor:
        counts = None
        if valid:
            here = inside_mask(views.matrix, views.images)
            counts = adaptive_avg_pool2d(here.to(teacher.dtype), (teacher.shape[2], teacher.shape[3])) >= 0.5
        return nfd_loss(student, teacher, counts)

    made = feature_loss("nfd", compare, student, teacher, pairs, projects=True)
    return replace(made, name=f"{made.name}, valid positions") if valid else made


KINDS = (
    Kind(
        "hint",
        hint,
        "mean (f_S - f_T)^2",
        "paper form",
        "Romero et al., FitNets: hints for thin deep nets, ICLR 2015",
        compares="features",
    ),
    Kind(
        "at",
        at,
        "mean (a_S - a_T)^2, a = mean_c f^2 with norm 1",
        "faithful",
        "Zagoruyko and Komodakis, Paying more attention to attention, ICLR 2017",
        compares="features",
    ),
    Kind(
        "nfd",
        nfd,
        "mean (n(f_S) - n(f_T))^2 = 2 (1 - r), n: mean 0, variance 1",
        "reconstruction",
        "Liu et al., Normalized feature distillation, 2022",
        compares="features",
    ),
)
