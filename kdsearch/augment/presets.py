"""Published policies that nothing is learned of, ready to train with."""

from collections.abc import Mapping, Sequence

from kdsearch.augment.fixed import FixedTransform
from kdsearch.augment.operations import TABLE as OPERATIONS
from kdsearch.augment.policy import Policy
from kdsearch.core.errors import KdsearchError

__all__ = ["random_resized_crop", "trivial", "trivial_augment_wide"]


def trivial(limits: Mapping[str, float | None] | Sequence[str], *, fill: str = "zero") -> Policy:
    """One operation per image, always applied, magnitudes uniform over the full range.

    Reference:
        Müller and Hutter, TrivialAugment: tuning-free yet state-of-the-art data augmentation, ICCV 2021
    """
    return Policy.uniform(limits, 1, fill=fill)


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
