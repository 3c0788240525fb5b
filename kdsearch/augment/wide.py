"""torchvision's TrivialAugmentWide, at the size of small images too."""

import warnings
from typing import Any

import torch
from torchvision.transforms import v2

WIDE = 64  # pixels: the side from which TrivialAugment's 32 pixels are kept


class TrivialAugmentWide(v2.TrivialAugmentWide):
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
