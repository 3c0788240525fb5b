"""torchvision's TrivialAugmentWide, at the size of small images too."""

import warnings
from typing import Any

import torch
from torchvision.transforms import v2

from kdsearch.augment.fixed import FixedTransform

WIDE = 64  # pixels: the side from which TrivialAugment's 32 pixels are kept


class _Wide(v2.TrivialAugmentWide):
    """torchvision's, its translation a share of the side where 32 pixels are more than half of it."""

    said = False  # the warning

    def forward(self, *inputs: Any) -> Any:
        height, width = v2.functional.get_size(inputs[0])
        if min(height, width) < WIDE and not self.said:
            self.said = True
            warnings.warn(
                f"TrivialAugmentWide translates by up to 32 pixels; images of {height} x {width} are moved by no more "
                f"than half a side",
                stacklevel=2,
            )
        return super().forward(*inputs)

    _AUGMENTATION_SPACE = {  # noqa: RUF012  read by the class it extends
        **v2.TrivialAugmentWide._AUGMENTATION_SPACE,
        "TranslateX": (lambda bins, height, width: torch.linspace(0.0, min(32.0, width / 2), bins), True),
        "TranslateY": (lambda bins, height, width: torch.linspace(0.0, min(32.0, height / 2), bins), True),
    }


def trivial_augment_wide() -> FixedTransform:
    """torchvision's TrivialAugmentWide, which translates by up to 32 pixels whatever the image.

    Under 64 pixels that would push half of the image or all of it out: there it moves by up to half the side instead,
    and warns so once. RandAugment needs no such care, its translation is a share of the width:
    `FixedTransform(v2.RandAugment())`.

    Reference:
        Müller and Hutter, TrivialAugment: tuning-free yet state-of-the-art data augmentation, ICCV 2021
    """
    return FixedTransform(_Wide())
