"""Albumentations, which works on the CPU alone, for `benchmarks/augment.py`: operations and magnitudes of `peers.py`.

It sharpens only, draws the sides of a hole apart and the corners of a perspective from normal numbers, shifts the red
channel where ours shifts any one, and works with OpenCV's threads.
"""

from collections.abc import Callable

import albumentations as A
import numpy as np
import torch
from peers import degrees, floats, limit
from torch import Tensor

_FIXED = {"brightness": (1, 1), "contrast": (1, 1), "saturation": (1, 1), "hue": (0, 0), "p": 1}


def _jitter(name: str) -> A.BasicTransform:
    return A.ColorJitter(**{**_FIXED, name: (1 - limit(name), 1 + limit(name))})


TRANSFORMS: dict[str, Callable[[], A.BasicTransform]] = {  # of uint8 images (H, W, C)
    "horizontal_flip": lambda: A.HorizontalFlip(p=1),
    "vertical_flip": lambda: A.VerticalFlip(p=1),
    "scale": lambda: A.Affine(scale=(1 - limit("scale"), 1 + limit("scale")), keep_ratio=True, p=1),
    "shear_x": lambda: A.Affine(shear={"x": (-degrees("shear_x"), degrees("shear_x")), "y": (0, 0)}, p=1),
    "shear_y": lambda: A.Affine(shear={"x": (0, 0), "y": (-degrees("shear_y"), degrees("shear_y"))}, p=1),
    "rotate": lambda: A.Affine(rotate=(-limit("rotate"), limit("rotate")), p=1),
    "translate_x": lambda: A.Affine(
        translate_percent={"x": (-limit("translate_x"), limit("translate_x")), "y": (0, 0)}, p=1
    ),
    "translate_y": lambda: A.Affine(
        translate_percent={"x": (0, 0), "y": (-limit("translate_y"), limit("translate_y"))}, p=1
    ),
    "perspective": lambda: A.Perspective((0, limit("perspective")), p=1),
    "brightness": lambda: _jitter("brightness"),
    "contrast": lambda: _jitter("contrast"),
    "saturation": lambda: _jitter("saturation"),
    "gray": lambda: A.ToGray(p=1),
    "channel_shift": lambda: A.RGBShift(
        (-255 * limit("channel_shift"), 255 * limit("channel_shift")), (0, 0), (0, 0), p=1
    ),
    "hue": lambda: A.ColorJitter(**{**_FIXED, "hue": (-limit("hue"), limit("hue"))}),
    "gamma": lambda: A.RandomGamma((100 * (1 - limit("gamma")), 100 * (1 + limit("gamma"))), p=1),
    "autocontrast": lambda: A.AutoContrast(p=1),
    "equalize": lambda: A.Equalize(mode="pil", p=1),
    "solarize": lambda: A.Solarize((1 - limit("solarize"), 1.0), p=1),
    "posterize": lambda: A.Posterize((8 - int(limit("posterize")), 8), p=1),
    "invert": lambda: A.InvertImg(p=1),
    "sharpness": lambda: A.Sharpen(alpha=(0, limit("sharpness") / 13), lightness=(1, 1), p=1),
    "gaussian_blur": lambda: A.GaussianBlur((7, 7), (0.01, limit("gaussian_blur")), p=1),
    "noise": lambda: A.GaussNoise((0, limit("noise")), p=1),
    "erase": lambda: A.CoarseDropout((1, 1), (0.01, limit("erase")), (0.01, limit("erase")), p=1),
}


def albumentations(operations: tuple[str, ...], per_image: int) -> Callable[[list[np.ndarray]], Tensor]:
    transforms = [TRANSFORMS[name]() for name in operations]
    pipeline = A.Compose([A.SomeOf(transforms, n=per_image, replace=False, p=1)])

    def run(images: list[np.ndarray]) -> Tensor:
        changed = np.stack([pipeline(image=image)["image"] for image in images])
        return floats(torch.from_numpy(changed).movedim(-1, 1).contiguous())

    return run
