"""Geometric operations as matrices, and the one warp that applies their product.

A matrix maps where a pixel was to where it goes, in pixels relative to the image centre (x right, y down), in the
conventions of torchvision's `affine`: positive angles turn clockwise, a shear of slope s moves x by -s*y. Applied in
the order of the table (flip, scale, shear, rotate, translate) the product is exactly torchvision's affine map.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from kdsearch.ops.operation import Operation


def _matrix(m: Tensor, entries: Mapping[tuple[int, int], Tensor | float]) -> Tensor:
    """The identity with some entries replaced by numbers or (b,) tensors: (b, 3, 3)."""
    matrix = torch.eye(3, dtype=m.dtype, device=m.device).repeat(len(m), 1, 1)
    for (row, column), value in entries.items():
        matrix[:, row, column] = value
    return matrix


def flip_x(m: Tensor, height: int, width: int) -> Tensor:
    """Left and right exchanged; has no magnitude."""
    return _matrix(m, {(0, 0): -1.0})


def scale(m: Tensor, height: int, width: int) -> Tensor:
    """Both sides become 1 + m times as long: content grows with positive m."""
    return _matrix(m, {(0, 0): 1 + m, (1, 1): 1 + m})


def shear_x(m: Tensor, height: int, width: int) -> Tensor:
    """x moves by -m per pixel of y."""
    return _matrix(m, {(0, 1): -m})


def shear_y(m: Tensor, height: int, width: int) -> Tensor:
    """y moves by -m per pixel of x."""
    return _matrix(m, {(1, 0): -m})


def rotate(m: Tensor, height: int, width: int) -> Tensor:
    """Turns clockwise by m degrees around the centre."""
    cos, sin = torch.deg2rad(m).cos(), torch.deg2rad(m).sin()
    return _matrix(m, {(0, 0): cos, (0, 1): -sin, (1, 0): sin, (1, 1): cos})


def translate_x(m: Tensor, height: int, width: int) -> Tensor:
    """Moves right by m widths."""
    return _matrix(m, {(0, 2): m * width})


def translate_y(m: Tensor, height: int, width: int) -> Tensor:
    """Moves down by m heights."""
    return _matrix(m, {(1, 2): m * height})


def warp(images: Tensor, matrix: Tensor) -> Tensor:
    """Images moved by affine forward maps: bilinear, one pass, zeros where nothing comes from.

    Computed per image from elementwise maths, so that an image's pixels do not depend on its batch.

    Args:
        images: (b, C, H, W).
        matrix: (b, 3, 3) in pixels relative to the centre, on the host or on the images' device.
    """
    height, width = images.shape[-2:]
    inverse = torch.linalg.inv(matrix).to(images.device, images.dtype)[:, :2, :, None, None]  # (b, 2, 3, 1, 1)
    y = torch.arange(height, device=images.device, dtype=images.dtype)[:, None] - (height - 1) / 2
    x = torch.arange(width, device=images.device, dtype=images.dtype) - (width - 1) / 2
    from_x = inverse[:, 0, 0] * x + inverse[:, 0, 1] * y + inverse[:, 0, 2]  # (b, H, W)
    from_y = inverse[:, 1, 0] * x + inverse[:, 1, 1] * y + inverse[:, 1, 2]
    grid = torch.stack([from_x * (2 / width), from_y * (2 / height)], -1)
    return grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


GEOMETRIC = (
    Operation("horizontal_flip", "", None, None, matrix=flip_x),
    Operation("scale", "change of the side", 0.3, 0.9, signed=True, matrix=scale),
    Operation("shear_x", "slope", 0.3, 1.0, signed=True, matrix=shear_x),
    Operation("shear_y", "slope", 0.3, 1.0, signed=True, matrix=shear_y),
    Operation("rotate", "degrees", 30.0, 180.0, signed=True, matrix=rotate),
    Operation("translate_x", "fraction of the width", 0.3, 1.0, signed=True, matrix=translate_x),
    Operation("translate_y", "fraction of the height", 0.3, 1.0, signed=True, matrix=translate_y),
)
