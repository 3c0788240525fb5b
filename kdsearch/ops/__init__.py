"""The table of operations, in the fixed order in which they are applied, and `apply`."""

from collections.abc import Mapping

import torch
from torch import Tensor

from kdsearch.ops.geometric import GEOMETRIC, warp
from kdsearch.ops.operation import Operation
from kdsearch.ops.photometric import LINEAR, PHOTOMETRIC
from kdsearch.values import Draw, View

__all__ = ["OPERATIONS", "Operation", "apply"]

OPERATIONS: Mapping[str, Operation] = {op.name: op for op in (*GEOMETRIC, *PHOTOMETRIC)}


def apply(draw: Draw, images: Tensor, magnitudes: Tensor | None = None) -> View:
    """Carry out a draw: geometry composed into one matrix and one warp, then pixel operations in table order.

    Each operation sees only the images that drew it with an open gate. With `magnitudes` that carry a gradient
    (`Policy.magnitudes`) the result does too; otherwise the same code runs on the draw's own numbers. Row lists
    are made on the host, where a draw lives.

    Args:
        draw: Of B images.
        images: (B, C, H, W), float in [0, 1]; not changed.
        magnitudes: (B, n) in place of the draw's own.
    """
    m = draw.magnitudes if magnitudes is None else magnitudes
    rows = {name: torch.nonzero((draw.chosen == i) & draw.gates).unbind(1) for i, name in enumerate(draw.operations)}
    matrix = _compose(draw, m, rows, images.shape[-2:])
    moved = torch.unique(torch.cat([rows[name][0] for name in draw.operations if OPERATIONS[name].matrix] or [_NONE]))
    out = images.clone()
    if len(moved):
        on_device = moved.to(images.device)
        out[on_device] = warp(images[on_device], matrix[moved])
    clamp = [rows[name][0] for name in draw.operations if name in LINEAR]
    for name, op in OPERATIONS.items():
        if op.pixels and name in rows and len(rows[name][0]):
            image, slot = rows[name]
            on_device = image.to(images.device)
            m_op, u_op = (v[image, slot].to(images.device, images.dtype) for v in (m, draw.uniforms[..., 1:]))
            out[on_device] = op.pixels(out[on_device], m_op, u_op, draw.seeds[image])
        if name == LINEAR[-1] and any(map(len, clamp)):
            on_device = torch.unique(torch.cat(clamp)).to(images.device)
            out[on_device] = out[on_device].clamp(0, 1)
    return View(out, matrix)


_NONE = torch.zeros(0, dtype=torch.int64)


def _compose(draw: Draw, m: Tensor, rows: Mapping[str, tuple[Tensor, ...]], size: torch.Size) -> Tensor:
    """The product of each image's open matrices, (B, 3, 3) on the host; the identity where there is none."""
    matrix = torch.eye(3, dtype=m.dtype).repeat(len(draw), 1, 1)
    for name, op in OPERATIONS.items():
        if op.matrix and name in rows and len(rows[name][0]):
            image, slot = rows[name]
            step = op.matrix(m[image, slot], *size)
            matrix = matrix.index_copy(0, image, (step[..., None] * matrix[image, None]).sum(-2))
    return matrix
