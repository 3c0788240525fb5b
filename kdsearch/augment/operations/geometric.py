"""Geometric operations as matrices: the entries in which they differ from the identity.

A matrix maps where a pixel was to where it goes, in pixels relative to the image centre (x right, y down), in the
conventions of torchvision's `affine`: positive angles turn clockwise, a shear of slope s moves x by -s*y. Applied in
the order of the table (flips, scale, shear, rotate, translate) the product is exactly torchvision's affine map;
perspective comes last.
"""

import torch
from torch import Tensor

from kdsearch.augment.operations.operation import AUTOAUGMENT, Entries, Operation


def horizontal_flip(m: Tensor, u: Tensor, height: int, width: int) -> Entries:
    """Left and right exchanged; has no magnitude."""
    return {(0, 0): torch.full_like(m, -1.0)}


def vertical_flip(m: Tensor, u: Tensor, height: int, width: int) -> Entries:
    """Top and bottom exchanged; has no magnitude."""
    return {(1, 1): torch.full_like(m, -1.0)}


def scale(m: Tensor, u: Tensor, height: int, width: int) -> Entries:
    """Both sides become 1 + m times as long: content grows with positive m."""
    return {(0, 0): 1 + m, (1, 1): 1 + m}


def shear_x(m: Tensor, u: Tensor, height: int, width: int) -> Entries:
    """x moves by -m per pixel of y."""
    return {(0, 1): -m}


def shear_y(m: Tensor, u: Tensor, height: int, width: int) -> Entries:
    """y moves by -m per pixel of x."""
    return {(1, 0): -m}


def rotate(m: Tensor, u: Tensor, height: int, width: int) -> Entries:
    """Turns clockwise by m degrees around the centre."""
    angle = torch.deg2rad(m)
    cos, sin = angle.cos(), angle.sin()
    return {(0, 0): cos, (0, 1): -sin, (1, 0): sin, (1, 1): cos}


def translate_x(m: Tensor, u: Tensor, height: int, width: int) -> Entries:
    """Moves right by m widths."""
    return {(0, 2): m * width}


def translate_y(m: Tensor, u: Tensor, height: int, width: int) -> Entries:
    """Moves down by m heights."""
    return {(1, 2): m * height}


def perspective(m: Tensor, u: Tensor, height: int, width: int) -> Entries:
    """Each corner moves inwards, along each side by m times a uniform number of its own: (b, 8) of them.

    The map of the unit square to the quadrilateral (top left, top right, bottom right, bottom left) in closed form.

    Reference:
        Heckbert, Fundamentals of texture mapping and image warping, 1989, section 2.2.3
    """
    inwards = m[:, None] * u
    x0, y0, x1, y1 = inwards[:, 0], inwards[:, 1], 1 - inwards[:, 2], inwards[:, 3]
    x2, y2, x3, y3 = 1 - inwards[:, 4], 1 - inwards[:, 5], inwards[:, 6], 1 - inwards[:, 7]
    dx1, dx2, sx = x1 - x2, x3 - x2, x0 - x1 + x2 - x3
    dy1, dy2, sy = y1 - y2, y3 - y2, y0 - y1 + y2 - y3
    area = dx1 * dy2 - dx2 * dy1
    g, h = (sx * dy2 - dx2 * sy) / area, (dx1 * sy - sx * dy1) / area
    # With the corner of the image as origin; moving the origin to the centre takes half a side off each end.
    a, b, c = x1 - x0 + g * x1, x3 - x0 + h * x3, x0
    d, e, f = y1 - y0 + g * y1, y3 - y0 + h * y3, y0
    shift = (g + h) / 2 + 1
    return {
        (0, 0): a - g / 2,
        (0, 1): (b - h / 2) * width / height,
        (0, 2): (a / 2 + b / 2 + c - shift / 2) * width,
        (1, 0): (d - g / 2) * height / width,
        (1, 1): e - h / 2,
        (1, 2): (d / 2 + e / 2 + f - shift / 2) * height,
        (2, 0): g / width,
        (2, 1): h / height,
        (2, 2): shift,
    }


_TORCHVISION = "torchvision's affine"

GEOMETRIC = (
    Operation("horizontal_flip", "", None, None, reference="torchvision's hflip", matrix=horizontal_flip),
    Operation("vertical_flip", "", None, None, reference="torchvision's vflip", matrix=vertical_flip),
    Operation("scale", "change of the side", 0.3, 0.9, signed=True, reference=_TORCHVISION, matrix=scale),
    Operation("shear_x", "slope", 0.3, 1.0, signed=True, reference=AUTOAUGMENT, matrix=shear_x),
    Operation("shear_y", "slope", 0.3, 1.0, signed=True, reference=AUTOAUGMENT, matrix=shear_y),
    Operation("rotate", "degrees", 30.0, 180.0, signed=True, reference=AUTOAUGMENT, matrix=rotate),
    Operation("translate_x", "fraction of the width", 0.3, 1.0, signed=True, reference=AUTOAUGMENT, matrix=translate_x),
    Operation(
        "translate_y", "fraction of the height", 0.3, 1.0, signed=True, reference=AUTOAUGMENT, matrix=translate_y
    ),
    Operation(
        "perspective",
        "largest move of a corner, fraction of the sides",
        0.2,
        0.22,  # at .23 a corner of the image can lie on the horizon
        uniforms=8,
        reference="torchvision's RandomPerspective; its distortion_scale is twice this",
        matrix=perspective,
    ),
)
