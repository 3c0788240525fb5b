"""Published policies that nothing is learned of, ready to train with."""

from collections.abc import Callable, Mapping, Sequence

from kdsearch.augment.fixed import FixedTransform
from kdsearch.augment.operations import TABLE as OPERATIONS
from kdsearch.augment.policy import Policy
from kdsearch.augment.spec import Setting, Snapshot
from kdsearch.core.errors import KdsearchError

__all__ = ["FIXED", "rand_augment", "random_resized_crop", "trivial", "trivial_augment_wide"]


def trivial(limits: Mapping[str, float | None] | Sequence[str], *, fill: str = "zero") -> Policy:
    """One operation per image, always applied, magnitudes uniform over the full range.

    Reference:
        Müller and Hutter, TrivialAugment: tuning-free yet state-of-the-art data augmentation, ICCV 2021
    """
    return Policy.uniform(limits, 1, fill=fill)


def rand_augment(
    limits: Mapping[str, float | None] | Sequence[str],
    operations_per_image: int = 2,
    extent: float = 0.6,
    *,
    fill: str = "zero",
) -> Policy:
    """So many operations per image, always applied, each at the same share of its limit.

    Over a base view no second view was shown to be better on digits and on CIFAR-10 at 16 pixels (results/variants.md).

    Args:
        operations_per_image: All of them where there are not so many.
        extent: The share of the limit.

    Raises:
        KdsearchError: a share that is not more than 0 and at most 1.

    Reference:
        Cubuk et al., RandAugment: practical automated data augmentation with a reduced search space, NeurIPS 2020

    >>> import torch
    >>> rand_augment({"rotate": 30.0, "shear_x": 0.3, "invert": None})(torch.rand(4, 3, 8, 8)).shape
    torch.Size([4, 3, 8, 8])
    """
    if not 0 < extent <= 1:
        raise KdsearchError(f"rand_augment: extent {extent:g}; allowed: more than 0, at most 1")
    start = Policy(limits, min(operations_per_image, len(limits)), fill=fill)
    at = {name: extent * limit or None for name, limit in zip(start.operations, start.limit.tolist(), strict=True)}
    settings = {name: Setting(probability=1.0, low=value, high=value) for name, value in at.items()}
    return Policy.from_spec(start.freeze([Snapshot(progress=1.0, settings=settings)]))


def random_resized_crop(side: float = 0.7, *, fill: str = "reflect") -> Policy:
    """Scale and both translations together, always: what a random resized crop does, out of the operations there are.

    Content is enlarged to at most `1 / side` of its size and moved by as much as a crop of that size could be. Unlike a
    crop it is also made smaller, as often, and moved whatever its size; the fill stands where nothing comes from.

    Args:
        side: The smallest crop, as a fraction of the side: from .527, the hard range of the scale, to less than 1.

    Raises:
        KdsearchError: another side.
    """
    smallest = 1 / (1 + (OPERATIONS["scale"].hard or 0.0))
    if not smallest <= side < 1:
        raise KdsearchError(f"random_resized_crop: side {side:g}; allowed: {smallest:.3g} to less than 1")
    most = 1 / side - 1
    return Policy.uniform({"scale": most, "translate_x": most / 2, "translate_y": most / 2}, 3, fill=fill)


def trivial_augment_wide() -> FixedTransform:
    """torchvision's TrivialAugmentWide, which translates by up to 32 pixels whatever the image.

    Under 64 pixels that would push half of the image or all of it out: there it moves by up to half the side instead,
    and warns so once. RandAugment needs no such care, its translation is a share of the width:
    `FixedTransform(v2.RandAugment())`.

    Reference:
        Müller and Hutter, TrivialAugment: tuning-free yet state-of-the-art data augmentation, ICCV 2021
    """
    from kdsearch.augment.wide import TrivialAugmentWide  # torchvision takes seconds to import

    return FixedTransform(TrivialAugmentWide())


FIXED: Mapping[str, Callable[..., Policy]] = {"trivial": trivial, "rand_augment": rand_augment}
"""Of the operations of a search space, with their limits: second views that nothing is learned of, by name."""


def _torchvision_rand_augment() -> FixedTransform:
    from torchvision.transforms import v2  # takes seconds to import

    return FixedTransform(v2.RandAugment())


TORCHVISION: Mapping[str, Callable[[], FixedTransform]] = {
    "trivial_augment_wide": trivial_augment_wide,
    "torchvision_rand_augment": _torchvision_rand_augment,
}
"""torchvision's own, by name, as second views: image by image, so slower than those above."""
