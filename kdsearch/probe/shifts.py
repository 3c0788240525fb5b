"""The ruler of inherited competence: moves and changes of images that no space and no policy has a say in.

The list is fixed and has a version, which stands beside every number that is kept. A number made by another version is
not compared with it. Beside the common operations stand shifts that the default space does not have; those of them
that a study's own space has are left out for all rows of the study.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate, pad

from kdsearch.augment.operations import TABLE, Operation, apply
from kdsearch.core.maths import generator, normal_field
from kdsearch.core.values import Draw

VERSION = 1
BINS = 3  # of a magnitude
FILL = {1: "zero", 3: "reflect"}  # by channels: gray grounds are mostly dark, photos go on beyond their edge
COARSE = 4  # cells of each side, in which neighbours move alike
BLOCK = 8  # pixels, the side of a block of frequencies


def jpeg(x: Tensor, m: Tensor, u: Tensor, seeds: Tensor) -> Tensor:
    """Loss as of JPEG: in blocks of 8 x 8 pixels frequency (i, j) is rounded to multiples of m (1 + i + j) / 8.

    Each channel by itself; a side that is no multiple of 8 is continued by its last pixels.

    Reference:
        Wallace, The JPEG still picture compression standard, Communications of the ACM 1991, without its tables,
        colours and code
    """
    height, width = x.shape[-2:]
    padded = pad(x, (0, -width % BLOCK, 0, -height % BLOCK), mode="replicate")
    k = torch.arange(BLOCK, device=x.device, dtype=x.dtype)
    cosines = torch.cos(math.pi / BLOCK * (k + 0.5) * k[:, None]) * math.sqrt(2 / BLOCK)  # (frequency, place)
    cosines[0] /= math.sqrt(2)
    blocks = padded.unfold(2, BLOCK, BLOCK).unfold(3, BLOCK, BLOCK)  # (b, C, rows, columns, 8, 8)
    step = m[:, None, None] * (1 + k + k[:, None]) / BLOCK
    step = step.clamp(min=1e-6)[:, None, None, None]
    frequencies = ((cosines @ blocks @ cosines.T) / step).round() * step
    restored = (cosines.T @ frequencies @ cosines).transpose(3, 4).reshape(padded.shape)
    return restored[..., :height, :width].clamp(0, 1)


def elastic(x: Tensor, m: Tensor, u: Tensor, seeds: Tensor) -> Tensor:
    """Pixels moved by a smooth random field, of standard deviation m of the side at the corners of 4 x 4 cells.

    Bilinear; beyond its edge an image goes on as its own mirror.

    Reference:
        Simard et al., Best practices for convolutional neural networks applied to visual document analysis, ICDAR 2003
    """
    height, width = x.shape[-2:]
    field = normal_field(seeds, 2 * (COARSE + 1) ** 2).to(x.dtype).view(len(x), 2, COARSE + 1, COARSE + 1)
    moved = interpolate(field, (height, width), mode="bicubic", align_corners=True) * 2 * m[:, None, None, None]
    y = (torch.arange(height, device=x.device, dtype=x.dtype) + 0.5) * 2 / height - 1
    z = (torch.arange(width, device=x.device, dtype=x.dtype) + 0.5) * 2 / width - 1
    places = torch.stack([z.expand(height, width), y[:, None].expand(height, width)], 2)
    return grid_sample(
        x, places + moved.movedim(1, 3), mode="bilinear", padding_mode="reflection", align_corners=False
    ).clamp(0, 1)


def salt_and_pepper(x: Tensor, m: Tensor, u: Tensor, seeds: Tensor) -> Tensor:
    """A share m of the pixels black or white, half of them each, all channels alike."""
    field = normal_field(seeds, x.shape[2] * x.shape[3]).to(x.dtype).view(len(x), 1, *x.shape[2:])
    chance = torch.special.ndtr(field)
    below, above = (m / 2)[:, None, None, None], (1 - m / 2)[:, None, None, None]
    return torch.where(chance < below, 0.0, torch.where(chance >= above, 1.0, x))


COMMON: Mapping[str, float | None] = {
    "horizontal_flip": None,
    "scale": 0.3,
    "shear_x": 0.3,
    "shear_y": 0.3,
    "rotate": 30.0,
    "translate_x": 0.3,
    "translate_y": 0.3,
    "brightness": 0.5,
    "contrast": 0.5,
    "saturation": 0.75,
    "equalize": None,
    "solarize": 0.8,
    "posterize": 4.0,
    "invert": None,
    "sharpness": 0.9,
    "noise": 0.2,
    "erase": 0.5,
}
"""The common operations with the limits of their magnitudes."""

OWN: Mapping[str, Operation] = {
    op.name: op
    for op in (
        Operation("jpeg", "step of the lowest frequency, in eighths", 1.0, 8.0, pixels=jpeg),
        Operation("elastic", "standard deviation, share of the side", 0.04, 0.5, pixels=elastic),
        Operation("salt_and_pepper", "share of the pixels", 0.1, 1.0, pixels=salt_and_pepper),
    )
}
"""Those that are no operations of a policy."""

HELD_OUT: Mapping[str, float | None] = {
    "gaussian_blur": 1.0,
    "gamma": 0.5,
    "perspective": 0.2,
    **{name: op.limit for name, op in OWN.items()},
}
"""Shifts that the default space does not have, with the limits of their magnitudes."""


@dataclass(frozen=True)
class Shifts:
    """One view of each shift for each of n images, drawn: J columns, the first of which is the image as it is.

    A magnitude lies in a third of its limit, which goes round with the image and the shift.
    """

    names: tuple[str, ...]  # of the columns: "clean", then the shifts
    bin: Tensor  # (n, J) int64, 0 to 2; 0 without a magnitude
    draw: Draw  # n * T rows, image by image: of the first T columns
    magnitudes: Tensor  # (n, J - T) float64, of the others, in the order of `OWN`
    seeds: Tensor  # (n, J - T) int64

    @classmethod
    def drawn(cls, names: Iterable[str], images: int, channels: int, seed: int) -> Self:
        """For so many images, the first ones always the same; shifts that do nothing to their channels are left out.

        Args:
            names: Of shifts; `COMMON` and `HELD_OUT` have them.
        """
        limits, asked = {**COMMON, **HELD_OUT}, {*names}
        in_table = [name for name, op in TABLE.items() if name in asked and op.suits(channels)]
        columns = ("clean", *in_table, *(name for name in OWN if name in asked))
        more = 1 + max((TABLE[name].uniforms for name in in_table), default=0)
        turn = torch.arange(images)
        parts = []
        for name in columns:  # each from a stream of its own: what is left out changes nothing of the others
            values, signs, fields = (
                generator(seed, "shifts", VERSION, name, use) for use in ("values", "signs", "seeds")
            )
            limit = limits.get(name)
            place = torch.zeros_like(turn) if limit is None else (turn + list(limits).index(name)) % BINS
            u = torch.zeros(images, more, dtype=torch.float64)
            own = 1 + (TABLE[name].uniforms if name in TABLE else 0)
            u[:, :own] = torch.rand(images, own, generator=values, dtype=torch.float64)
            negative = torch.rand(images, generator=signs) < 0.5
            sign = 1.0 - 2.0 * (negative & (name in TABLE and TABLE[name].signed)).double()
            magnitude = sign * (limit or 0.0) * (place + u[:, 0]) / BINS
            parts.append((place, u, sign, magnitude, torch.randint(-(2**63), 2**63 - 1, (images,), generator=fields)))
        bins, u, sign, magnitudes, seeds = (torch.stack(part, 1) for part in zip(*parts, strict=True))
        size = 1 + len(in_table)
        gates = torch.ones(images, size, dtype=torch.bool)
        gates[:, 0] = False
        draw = Draw(
            operations=tuple(in_table),
            chosen=(torch.arange(size) - 1).clamp(min=0).repeat(images)[:, None],
            gates=gates.view(-1, 1),
            signs=sign[:, :size].reshape(-1, 1),
            uniforms=u[:, :size].flatten(0, 1)[:, None],
            magnitudes=magnitudes[:, :size].reshape(-1, 1),
            seeds=seeds[:, :size].flatten(),
            fill=FILL[channels],
        )
        return cls(columns, bins, draw, magnitudes[:, size:], seeds[:, size:])

    def apply(self, images: Tensor, rows: slice) -> Tensor:
        """Images (b, C, H, W) that these rows were drawn for, as (b, J, C, H, W)."""
        b, size = len(images), len(self.names) - self.magnitudes.shape[1]
        repeated = images.repeat_interleave(size, 0)
        views = apply(self.draw.rows(slice(rows.start * size, rows.stop * size)), repeated).images
        found = [views.view(b, size, *images.shape[1:])]
        for j, name in enumerate(self.names[size:]):
            pixels = OWN[name].pixels
            assert pixels is not None
            m = self.magnitudes[rows, j].to(images.device, images.dtype)
            seeds = self.seeds[rows, j].to(images.device)
            found.append(pixels(images, m, m.new_empty(b, 0), seeds)[:, None])
        return torch.cat(found, 1)
