"""The peers of `benchmarks/augment.py`: the same operations at the same magnitudes, as each library does them.

Where a library has no such operation, its nearest: Kornia's noise has a fixed deviation and is not clamped, and it
shifts the red channel where ours shifts any one. Albumentations is in `peers_on_cpu.py`.
"""

import math
import random
from collections.abc import Callable
from typing import Any

import kornia.augmentation as K
import torch
from kornia.augmentation.auto import RandAugment
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

import kdsearch as kd

Row = tuple[Callable, str]
BILINEAR = InterpolationMode.BILINEAR


def rows(operations: tuple[str, ...], per_image: int, device: str) -> dict[str, Row]:
    """Name -> (function from the uint8 batch to a float batch in [0, 1], what is random)."""
    every = "all, per image"
    found: dict[str, Row] = {
        "Kornia AugmentationSequential": (
            _kornia(operations, device, share=per_image / len(operations)),
            f"all, per image; {per_image} operations on average",
        ),
        "Kornia AugmentationSequential, random_apply": (
            _kornia(operations, device, random_apply=per_image),
            "operations per batch, magnitudes per image",
        ),
        "Kornia RandAugment": (_kornia_rand_augment(per_image, device), "operations per batch, magnitude fixed"),
        "torchvision v2, per batch": (_torchvision(operations, per_image, one=False), "all, per batch"),
        "one batched affine warp": (_warp, "matrices per image"),
        "uint8 to float, a memory copy": (floats, "nothing"),
    }
    found["torchvision v2, per image"] = (_torchvision(operations, per_image, one=True), every)
    if device == "cpu":
        from peers_on_cpu import albumentations

        auto = v2.RandAugment(per_image, interpolation=BILINEAR)
        found["torchvision RandAugment, per image"] = (
            lambda images: torch.stack([auto(image) for image in images]).float() / 255,
            "all but the magnitude, per image",
        )
        found["albumentations"] = (albumentations(operations, per_image), every)
    return found


def floats(images: Tensor) -> Tensor:
    return images.float() / 255


def _warp(images: Tensor) -> Tensor:
    theta = torch.eye(2, 3).repeat(len(images), 1, 1) + 0.2 * (torch.rand(len(images), 2, 3) - 0.5)
    grid = affine_grid(theta.to(images.device), list(images.shape), align_corners=False)
    return grid_sample(floats(images), grid, align_corners=False)


def limit(name: str) -> float:
    return kd.operations.TABLE[name].limit or 0.0


def degrees(name: str) -> float:
    return math.degrees(math.atan(limit(name)))


# torchvision: functions of one image or a batch (..., C, H, W), uint8, and a magnitude


def _affine(
    image: Tensor, angle: float = 0.0, x: float = 0.0, y: float = 0.0, scale: float = 1.0, **shear: float
) -> Tensor:
    height, width = image.shape[-2:]
    slopes = [math.degrees(math.atan(shear.get(axis, 0.0))) for axis in ("shear_x", "shear_y")]
    return F.affine(image, angle, [x * width, y * height], scale, slopes, interpolation=BILINEAR)


def _perspective(image: Tensor, m: float) -> Tensor:
    height, width = image.shape[-2:]
    corners = [[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]]
    moved = [[abs(x - m * width * random.random()), abs(y - m * height * random.random())] for x, y in corners]
    return F.perspective(image, corners, moved, interpolation=BILINEAR)


def _erase(image: Tensor, m: float) -> Tensor:
    height, width = image.shape[-2:]
    h, w = round(m * height), round(m * width)
    y, x = random.randint(0, height - h), random.randint(0, width - w)
    return F.erase(image, y, x, h, w, torch.zeros((), dtype=image.dtype))


def _shift(image: Tensor, m: float) -> Tensor:
    offset = torch.zeros(3, 1, 1, dtype=torch.int16)
    offset[random.randrange(3)] = round(255 * m)
    return (image + offset.to(image.device)).clamp(0, 255).to(torch.uint8)


def _noise(image: Tensor, m: float) -> Tensor:
    return (image + 255 * m * torch.randn(image.shape, device=image.device)).clamp(0, 255).to(torch.uint8)


TORCHVISION: dict[str, Callable[[Tensor, float], Tensor]] = {
    "horizontal_flip": lambda x, m: F.horizontal_flip(x),
    "vertical_flip": lambda x, m: F.vertical_flip(x),
    "scale": lambda x, m: _affine(x, scale=1 + m),
    "shear_x": lambda x, m: _affine(x, shear_x=m),
    "shear_y": lambda x, m: _affine(x, shear_y=m),
    "rotate": lambda x, m: F.rotate(x, m, interpolation=BILINEAR),
    "translate_x": lambda x, m: _affine(x, x=m),
    "translate_y": lambda x, m: _affine(x, y=m),
    "perspective": _perspective,
    "brightness": lambda x, m: F.adjust_brightness(x, 1 + m),
    "contrast": lambda x, m: F.adjust_contrast(x, 1 + m),
    "saturation": lambda x, m: F.adjust_saturation(x, 1 + m),
    "gray": lambda x, m: F.rgb_to_grayscale(x, num_output_channels=3),
    "channel_shift": _shift,
    "hue": F.adjust_hue,
    "gamma": lambda x, m: F.adjust_gamma(x, 1 + m),
    "autocontrast": lambda x, m: F.autocontrast(x),
    "equalize": lambda x, m: F.equalize(x),
    "solarize": lambda x, m: F.solarize(x, 255 * (1 - m)),
    "posterize": lambda x, m: F.posterize(x, 8 - round(m)),
    "invert": lambda x, m: F.invert(x),
    "sharpness": lambda x, m: F.adjust_sharpness(x, 1 + m),
    "gaussian_blur": lambda x, m: F.gaussian_blur(x, [7, 7], [max(m, 0.01)] * 2),
    "noise": _noise,
    "erase": _erase,
}


def _torchvision(operations: tuple[str, ...], per_image: int, *, one: bool) -> Callable[[Tensor], Tensor]:
    def change(image: Tensor) -> Tensor:
        for name in random.sample(operations, per_image):
            op = kd.operations.TABLE[name]
            m = random.uniform(-limit(name) if op.signed else 0.0, limit(name))
            image = TORCHVISION[name](image, m)
        return image

    def per_image_of_batch(images: Tensor) -> Tensor:
        return floats(torch.stack([change(image) for image in images]))

    return per_image_of_batch if one else lambda images: floats(change(images))


# Kornia: modules of a float batch

_ALWAYS: dict[str, Any] = {"p": 1.0}
_WARP: dict[str, Any] = {"resample": "bilinear", "p": 1.0}
KORNIA: dict[str, Callable[[], Any]] = {
    "horizontal_flip": lambda: K.RandomHorizontalFlip(p=1.0),
    "vertical_flip": lambda: K.RandomVerticalFlip(p=1.0),
    "scale": lambda: K.RandomAffine(0.0, scale=(1 - limit("scale"), 1 + limit("scale")), **_WARP),
    "shear_x": lambda: K.RandomAffine(0.0, shear=(-degrees("shear_x"), degrees("shear_x")), **_WARP),
    "shear_y": lambda: K.RandomAffine(
        0.0,
        shear=(0.0, 0.0, -degrees("shear_y"), degrees("shear_y")),  # type: ignore[arg-type]
        **_WARP,
    ),
    "rotate": lambda: K.RandomRotation(limit("rotate"), **_WARP),
    "translate_x": lambda: K.RandomAffine(0.0, translate=(limit("translate_x"), 0.0), **_WARP),
    "translate_y": lambda: K.RandomAffine(0.0, translate=(0.0, limit("translate_y")), **_WARP),
    "perspective": lambda: K.RandomPerspective(2 * limit("perspective"), **_WARP),
    "brightness": lambda: K.ColorJitter(brightness=limit("brightness"), **_ALWAYS),
    "contrast": lambda: K.ColorJitter(contrast=limit("contrast"), **_ALWAYS),
    "saturation": lambda: K.ColorJitter(saturation=limit("saturation"), **_ALWAYS),
    "gray": lambda: K.RandomGrayscale(**_ALWAYS),
    "channel_shift": lambda: K.RandomRGBShift(limit("channel_shift"), 0.0, 0.0, **_ALWAYS),
    "hue": lambda: K.RandomHue((-limit("hue"), limit("hue")), **_ALWAYS),
    "gamma": lambda: K.RandomGamma((1 - limit("gamma"), 1 + limit("gamma")), **_ALWAYS),
    "autocontrast": lambda: K.RandomAutoContrast(**_ALWAYS),
    "equalize": lambda: K.RandomEqualize(**_ALWAYS),
    "solarize": lambda: K.RandomSolarize((1 - limit("solarize"), 1.0), (0.0, 0.0), **_ALWAYS),
    "posterize": lambda: K.RandomPosterize((8 - limit("posterize"), 8), **_ALWAYS),
    "invert": lambda: K.RandomInvert(**_ALWAYS),
    "sharpness": lambda: K.RandomSharpness((1 - limit("sharpness"), 1 + limit("sharpness")), **_ALWAYS),
    "gaussian_blur": lambda: K.RandomGaussianBlur((7, 7), (0.01, limit("gaussian_blur")), **_ALWAYS),
    "noise": lambda: K.RandomGaussianNoise(std=limit("noise") / 2, **_ALWAYS),
    "erase": lambda: K.RandomErasing((0.0, limit("erase") ** 2), (1.0, 1.0), **_ALWAYS),
}


def _kornia(
    operations: tuple[str, ...], device: str, *, share: float = 1.0, random_apply: int | bool = False
) -> Callable[[Tensor], Tensor]:
    modules = [KORNIA[name]() for name in operations]
    for module in modules:
        module.p = share
    sequential = K.AugmentationSequential(*modules, random_apply=random_apply, same_on_batch=False).to(device)
    return lambda images: sequential(floats(images))


def compiled(operations: tuple[str, ...], per_image: int, device: str, backend: str) -> dict[str, Row]:
    """Kornia's pipelines through `torch.compile`, which goes back to Python wherever it finds no graph."""
    eager = rows(operations, per_image, device)
    return {
        f"{name}, compiled": (torch.compile(function, backend=backend, dynamic=False), random)
        for name, (function, random) in eager.items()
        if name.startswith("Kornia AugmentationSequential")
    }


def _kornia_rand_augment(per_image: int, device: str) -> Callable[[Tensor], Tensor]:
    auto = RandAugment(n=per_image, m=10).to(device)
    return lambda images: auto(floats(images))
