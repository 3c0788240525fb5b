"""Losses on how images stand to each other: each image's share, such that the mean over the batch is the loss."""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import normalize, smooth_l1_loss
from torch.utils.checkpoint import checkpoint

from kdsearch.core.errors import KdsearchError
from kdsearch.core.memory import CUBED
from kdsearch.core.values import Outputs, ViewBatch
from kdsearch.losses.loss import Kind, Loss, Pairs, check_temperature, feature_loss

SHORTEST = 1e-6  # images nearer than this count as this far apart; they have no angle between them
FLATTEST = 1e-4  # probabilities whose deviations have a smaller norm count as having this one: bounds the gradient
MOST_NUMBERS = CUBED  # that the angles hold at once


def dist_loss(
    student: Tensor, teacher: Tensor, *, temperature: float = 1.0, inter: float = 1.0, intra: float = 1.0
) -> Tensor:
    """`T^2 * (inter (1 - r over the classes) + intra (1 - r over the images, mean of the classes))`.

    r is the correlation of student's and teacher's probabilities, so the student is free in their scale and shift. It
    is computed as `1 - r = |a - b|^2 / 2` of deviations with norm 1, which is exact near 0 and also 0 where both are
    constant; the authors' `1 - r` is 1 there. An image's share of a class is its term of that sum, times B. Of one
    image the part over images is 0. The authors' weights are 1 and 1 at temperature 1; others take 2 and 2 at
    temperature 4 for CIFAR-100.

    Args:
        student: Logits, (B, K).
        teacher: Logits, (B, K).

    Returns:
        (B,); the mean is 0 to `2 T^2 (inter + intra)`.

    Reference:
        Huang et al., Knowledge distillation from a stronger teacher, NeurIPS 2022, arXiv:2205.10536

    >>> x = torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    >>> dist_loss(x, x).tolist()
    [0.0, 0.0]
    """
    q, p = ((logits / temperature).softmax(1) for logits in (student, teacher))
    over_classes = (_deviations(q, 1) - _deviations(p, 1)).square().sum(1) / 2
    over_images = (_deviations(q, 0) - _deviations(p, 0)).square().mean(1) / 2 * len(q)
    return temperature**2 * (inter * over_classes + intra * over_images)


def rkd_distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth L1 difference of the distances between images, each network's divided by their mean over its pairs.

    Mean over all B images, the image itself included with 0, as the authors have it.

    Args:
        student: (B, D); of maps (B, C, H, W) or tokens (B, N, D) the mean over positions.
        teacher: (B, D'), or as the student; as many channels are not needed.

    Returns:
        (B,); 0 of fewer than two images.

    Raises:
        KdsearchError: not features of the same images.

    Reference:
        Park et al., Relational knowledge distillation, CVPR 2019, arXiv:1904.05068

    >>> x = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    >>> bool((rkd_distance_loss(7 * x.flip(1) + 2, x) < 1e-9).all())
    True
    """
    a, b = (_distances(_vectors(f)) for f in _same_images(student, teacher))
    return smooth_l1_loss(a, b, reduction="none").mean(1)


def rkd_angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth L1 difference of the cosines of the angles at an image between each two images, mean over all B^2.

    In parts of images, each computed again for the gradient, where all the B^3 angles are many: memory stays bounded.

    Args:
        student: (B, D); of maps (B, C, H, W) or tokens (B, N, D) the mean over positions.
        teacher: (B, D'), or as the student; as many channels are not needed.

    Returns:
        (B,); 0 of fewer than three images.

    Raises:
        KdsearchError: not features of the same images.

    Reference:
        Park et al., Relational knowledge distillation, CVPR 2019, arXiv:1904.05068

    >>> x = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    >>> bool((rkd_angle_loss(7 * x.flip(1) + 2, x) < 1e-9).all())
    True
    """
    a, b = (_vectors(f) for f in _same_images(student, teacher))
    size = len(a)
    part = max(1, MOST_NUMBERS // (size * max(size, a.shape[1], b.shape[1])))
    if part >= size:
        return _angles_at(a, b, 0, size)
    again = partial(checkpoint, _angles_at, use_reentrant=False, preserve_rng_state=False)
    return torch.cat([again(a, b, first, first + part) for first in range(0, size, part)])


def sp_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the rows of `F F^T`, F the features as vectors, each row with norm 1.

    The paper divides the sum by B^2 also, and weighs it by 3000.

    Args:
        student: (B, ...), flattened to (B, D).
        teacher: (B, ...), flattened; as many numbers are not needed.

    Returns:
        (B,), 0 to 4 / B.

    Raises:
        KdsearchError: not features of the same images.

    Reference:
        Tung and Mori, Similarity-preserving knowledge distillation, ICCV 2019, arXiv:1907.09682

    >>> x = torch.tensor([[0.0, 1.0], [3.0, 4.0]])
    >>> bool((sp_loss(7 * x.flip(1), x) < 1e-9).all())
    True
    """
    a, b = (f.flatten(1) for f in _same_images(student, teacher))
    return (_rows(a @ a.T) - _rows(b @ b.T)).square().mean(1)


def _deviations(p: Tensor, axis: int) -> Tensor:
    """From the mean along an axis, with norm 1."""
    return normalize(p - p.mean(axis, keepdim=True), dim=axis, eps=FLATTEST)


def _rows(gram: Tensor) -> Tensor:
    """Each with norm 1; one of zeros, of an image without features, stays and has no gradient."""
    return normalize(gram * (gram.norm(dim=1, keepdim=True) > SHORTEST), dim=1, eps=SHORTEST)


def _distances(x: Tensor) -> Tensor:
    """(B, B), with mean 1 off the diagonal and 0 on it; no product of matrices, which would round near images away."""
    apart = ~torch.eye(len(x), dtype=torch.bool, device=x.device)
    d = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").clamp(min=SHORTEST) * apart
    return d / (d.sum() / max(apart.numel() - len(x), 1)).clamp(min=SHORTEST)


def _angles_at(student: Tensor, teacher: Tensor, first: int, end: int) -> Tensor:
    """The shares of the images from `first` to before `end`, at which the angles are."""

    def cosines(x: Tensor) -> Tensor:
        away = x[None] - x[first:end, None]  # (b, B, D)
        square = away.square().sum(2, keepdim=True)
        direction = away * (square > SHORTEST**2) * square.clamp(min=SHORTEST**2).rsqrt()
        return direction @ direction.mT

    return smooth_l1_loss(cosines(student), cosines(teacher), reduction="none").mean((1, 2))


def _vectors(features: Tensor) -> Tensor:
    """(B, D): maps and tokens averaged over their positions."""
    return features.flatten(2).mean(2) if features.ndim == 4 else features.mean(1) if features.ndim == 3 else features


def _same_images(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    if min(student.ndim, teacher.ndim) < 2 or max(student.ndim, teacher.ndim) > 4 or len(student) != len(teacher):
        raise KdsearchError("cannot be compared; allowed: vectors, tokens or maps of the same images")
    return student, teacher


# What a study is given


def dist(temperature: float = 1.0, inter: float = 1.0, intra: float = 1.0) -> Loss:
    """Correlation over classes and over images, relational: `dist_loss`.

    Reference:
        Huang et al., Knowledge distillation from a stronger teacher, NeurIPS 2022, arXiv:2205.10536
    """
    check_temperature("dist", temperature)

    def loss(student: Outputs, teacher: Outputs, views: ViewBatch) -> Tensor:
        return dist_loss(student.logits, teacher.logits, temperature=temperature, inter=inter, intra=intra)

    name = f"dist, inter {inter:g}, intra {intra:g}, temperature {temperature:g}"
    return Loss(name, loss, relational=True)


def rkd(
    student: str | None = None,
    teacher: str | None = None,
    *,
    pairs: Pairs = (),
    distance: float = 25.0,
    angle: float = 50.0,
) -> Loss:
    """Distances and angles between the images of a view, relational: `rkd_distance_loss`, `rkd_angle_loss`.

    Weights as for classification; the authors' metric learning has 1 and 2.

    Args:
        student: Module path in the student.
        teacher: Module path in the teacher; the student's by default.
        pairs: Several such pairs, summed.

    Reference:
        Park et al., Relational knowledge distillation, CVPR 2019, arXiv:1904.05068
    """

    def compare(student: Tensor, teacher: Tensor, views: ViewBatch) -> Tensor:
        return distance * rkd_distance_loss(student, teacher) + angle * rkd_angle_loss(student, teacher)

    made = feature_loss("rkd", compare, student, teacher, pairs)
    return replace(made, name=f"{made.name}, distance {distance:g}, angle {angle:g}", relational=True)


def sp(student: str | None = None, teacher: str | None = None, *, pairs: Pairs = ()) -> Loss:
    """Similarities of the images of a view, relational: `sp_loss`; arguments as of `rkd`.

    Reference:
        Tung and Mori, Similarity-preserving knowledge distillation, ICCV 2019, arXiv:1907.09682
    """
    return replace(feature_loss("sp", lambda s, t, views: sp_loss(s, t), student, teacher, pairs), relational=True)


KINDS = (
    Kind(
        "dist",
        dist,
        "T^2 (1 - r over classes + 1 - r over images)",
        "faithful",
        "Huang et al., Knowledge distillation from a stronger teacher, NeurIPS 2022",
        relational=True,
    ),
    Kind(
        "rkd",
        rkd,
        "25 |d_S - d_T| + 50 |cos_S - cos_T|, smooth L1",
        "faithful",
        "Park et al., Relational knowledge distillation, CVPR 2019",
        compares="features",
        relational=True,
    ),
    Kind(
        "sp",
        sp,
        "mean (G_S - G_T)^2, G = F F^T with rows of norm 1",
        "paper form",
        "Tung and Mori, Similarity-preserving knowledge distillation, ICCV 2019",
        compares="features",
        relational=True,
    ),
)
