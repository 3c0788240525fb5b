"""The table of operations, in the fixed order in which they are applied, and `apply`."""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from kdsearch.augment.operations.colour import COLOUR, SHIFT, apply_linear
from kdsearch.augment.operations.follow import move_boxes, move_labels
from kdsearch.augment.operations.geometric import GEOMETRIC
from kdsearch.augment.operations.operation import Operation
from kdsearch.augment.operations.photometric import PHOTOMETRIC
from kdsearch.augment.operations.warp import warp
from kdsearch.core.errors import KdsearchError, unknown_name
from kdsearch.core.values import FILLS, Draw, View

__all__ = ["TABLE", "Operation", "apply", "move_boxes", "move_labels"]

TABLE: Mapping[str, Operation] = {op.name: op for op in (*GEOMETRIC, *COLOUR, *PHOTOMETRIC)}
"""The operations by name, in the order in which they are applied."""
LINEAR = tuple(op.name for op in COLOUR)  # clamped once, after the last of them


def apply(draw: Draw, images: Tensor, magnitudes: Tensor | None = None) -> View:
    """Carry out a draw: geometry as one matrix and one warp, colours as one map, then pixels, in table order.

    A draw over a base view carries that out first: in the same warp, by the product of the matrices, where the base
    view is geometry alone and both fill alike; otherwise pixels first.

    Each operation sees only the images that drew it with an open gate. With `magnitudes` that carry a gradient
    (`Policy.magnitudes`) the result does too; otherwise the same code runs on the draw's own numbers. Which image gets
    what is known on the host, where a draw lives, so that nothing here waits for a device.

    Args:
        draw: Of B images.
        images: (B, C, H, W), float in [0, 1] or uint8; not changed. An operation with a meaning for RGB alone leaves
            images with other channels as they are.
        magnitudes: (B, n) in place of the draw's own.

    Returns:
        Images in the dtype (float where uint8 came) and memory format of those given, computed in float32 or float64.

    Raises:
        KdsearchError: other shapes or types; values outside [0, 1] or not finite, looked for on the CPU alone.
    """
    check_images(images)
    check_draw(draw, images)
    if not draw.operations:
        raise KdsearchError("draw: it is that of a fixed transform; carry it out with the transform's `augment`")
    if draw.base is not None and not shares_warp(draw, draw.base):
        first = apply(draw.base, images)
        view = apply(replace(draw, base=None), first.images, magnitudes)
        return View(view.images, view.matrix @ first.matrix)
    if magnitudes is not None and magnitudes.shape != draw.chosen.shape:
        got, needed = tuple(magnitudes.shape), tuple(draw.chosen.shape)
        raise KdsearchError(f"magnitudes: got {got}; need one for each operation drawn, {needed}")
    given = images.dtype if images.is_floating_point() else torch.get_default_dtype()
    x = images.to(torch.promote_types(given, torch.float32), copy=True)
    x = x.div_(255) if images.dtype == torch.uint8 else x.clamp_(0, 1)  # of OUTSIDE, or whatever a GPU was given
    moves, changes = _by_operation(draw, draw.magnitudes if magnitudes is None else magnitudes, x)
    matrix = _move(draw, moves, x)
    _recolour(changes, x)
    for name, part in changes.items():
        op = TABLE[name]
        if op.pixels and op.suits(x.shape[1]):
            changed = op.pixels(x.index_select(0, part.image), part.magnitude, part.uniforms, part.seeds)
            _put(x, part.image, changed)
    return View(x.to(given), matrix)


def shares_warp(draw: Draw, base: Draw) -> bool:
    """Can a draw and the base view under it be one warp? Where that is geometry alone, filled alike."""
    return base.fill == draw.fill and all(TABLE[name].matrix is not None for name in base.operations)


def check_images(images: Tensor) -> None:
    """Is this what operations work on? Values are looked at on the CPU alone: elsewhere it would wait for the device.

    Raises:
        KdsearchError: not (B, C, H, W), no pixels, neither float nor uint8, values outside [0, 1] or not finite.
    """
    known = images.is_floating_point() or images.dtype == torch.uint8
    if images.ndim != 4 or not known or 0 in images.shape[1:]:
        kind = f"{images.dtype} {tuple(images.shape)}"
        raise KdsearchError(f"images: need (B, C, H, W), float in [0, 1] or uint8; got {kind}")
    if images.is_floating_point() and images.device.type == "cpu" and images.numel():
        low, high = (v.item() for v in torch.aminmax(images.detach()))
        if low != low:
            raise KdsearchError("images: some values are not a number")
        if not (low >= -OUTSIDE and high <= 1 + OUTSIDE):
            raise KdsearchError(
                f"images: values from {low:g} to {high:g}; need [0, 1]: augment before the normalisation, "
                "and divide uint8 values that were made float by 255"
            )


def check_draw(draw: Draw, images: Tensor) -> None:
    """Are there as many images as were drawn, and can the draw be carried out?

    Raises:
        KdsearchError: other numbers of images; operations that are unknown, there twice or out of the table's order;
            parts of other shapes; a choice of what the draw has not.
    """
    if len(draw) != len(images):
        raise KdsearchError(f"images: a draw of {len(draw)} images, applied to {len(images)}")
    for name in draw.operations:
        if name not in TABLE:
            raise KdsearchError(f"draw: {unknown_name('operation', name, TABLE)}")
    ordered = tuple(name for name in TABLE if name in draw.operations)
    if draw.operations != ordered:
        raise KdsearchError(f"draw: operations {', '.join(draw.operations)}; needed, once each: {', '.join(ordered)}")
    if draw.base is not None:
        if draw.base.base is not None or not draw.base.operations:
            under = "that of a fixed transform" if not draw.base.operations else "over another one"
            raise KdsearchError(f"draw: its base view is {under}; allowed: the draw of a policy, over the image")
        check_draw(draw.base, images)
    if draw.fill not in FILLS:
        raise KdsearchError(f"draw: {unknown_name('fill', draw.fill, FILLS)}")
    shape = tuple(draw.chosen.shape)
    parts = {"gates": draw.gates, "signs": draw.signs, "magnitudes": draw.magnitudes}
    wrong = [f"{name} {tuple(part.shape)}" for name, part in parts.items() if tuple(part.shape) != shape]
    if tuple(draw.seeds.shape) != shape[:1]:
        wrong.append(f"seeds {tuple(draw.seeds.shape)}")
    if draw.uniforms.ndim != 3 or tuple(draw.uniforms.shape[:2]) != shape:
        wrong.append(f"uniforms {tuple(draw.uniforms.shape)}")
    if len(shape) != 2 or wrong:
        raise KdsearchError(f"draw: chosen is {shape}, {', '.join(wrong)}; needed: a row per image in all, (B, n)")
    if draw.operations and draw.chosen.numel():
        low, high = (int(end) for end in draw.chosen.aminmax())
        if low < 0 or high >= len(draw.operations):
            raise KdsearchError(f"draw: chosen from {low} to {high}; allowed: 0 to {len(draw.operations) - 1}")
        if draw.chosen.shape[1] > 1 and bool((draw.chosen.diff(dim=1) <= 0).any()):
            raise KdsearchError("draw: chosen is not ascending; needed: each image's operations in order, once each")


OUTSIDE = 1e-3  # rounding that values may have beyond [0, 1]


class _Move(NamedTuple):
    """What one operation of geometry does to a batch, on the host."""

    image: Tensor  # (b,) rows of the batch
    place: Tensor  # (b,) image * n + slot
    magnitude: Tensor  # (b,)
    uniforms: Tensor  # (b, extra)


class _Change(NamedTuple):
    """What one operation on pixels does to a batch, on the device and in the type of the images."""

    row: Tensor  # (b,) rows of the batch, on the host
    image: Tensor  # (b,) the same
    magnitude: Tensor  # (b,)
    uniforms: Tensor  # (b, extra)
    seeds: Tensor  # (b,)


def _by_operation(draw: Draw, magnitudes: Tensor, x: Tensor) -> tuple[dict[str, _Move], dict[str, _Change]]:
    """What each operation has to do, for those that have something to do; one copy of it all to the device."""
    names, n = draw.operations, draw.chosen.shape[1]
    key = torch.where(draw.gates, draw.chosen, len(names)).flatten()
    counts = key.bincount(minlength=len(names) + 1).tolist()
    place = key.argsort(stable=True)[: sum(counts[:-1])]  # by operation, without the closed gates
    image, uniforms = place // n, draw.uniforms[..., 1:].flatten(0, 1).index_select(0, place)
    m, seeds = magnitudes.flatten().index_select(0, place), draw.seeds.index_select(0, image)
    first = sum(TABLE[name].matrix is not None for name in names)  # geometry comes first
    moved = sum(counts[:first])
    host = (v[:moved].split(counts[:first]) for v in (image, place, m, uniforms))
    rest = [v[moved:] for v in (image, image, m, uniforms, seeds)]
    rest[1:] = (v.to(x.device, x.dtype if v.is_floating_point() else None, non_blocking=True) for v in rest[1:])
    device = (v.split(counts[first:-1]) for v in rest)
    moves = {name: _Move(*part) for name, part in zip(names, zip(*host, strict=True), strict=False) if len(part[0])}
    changes = zip(names[first:], zip(*device, strict=True), strict=True)
    return moves, {name: _Change(*part) for name, part in changes if len(part[0])}


def _move(draw: Draw, moves: Mapping[str, _Move], x: Tensor) -> Tensor:
    """Geometry, that of the base view first, in place: the product of each image's matrices, (B, 3, 3) on the host."""
    product, image = _multiply(draw, moves, x)
    if draw.base is not None:
        base = draw.base
        first, also = _multiply(base, _by_operation(base, base.magnitudes, x)[0], x)
        product, image = product @ first, [*image, *also]
    if image:
        rows = torch.cat(image).unique()
        places = rows.to(x.device, non_blocking=True)
        _put(x, places, warp(x.index_select(0, places), product.index_select(0, rows), draw.fill))
    return product


def _multiply(draw: Draw, moves: Mapping[str, _Move], x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The product of each image's matrices, (B, 3, 3), and the rows of images that have any."""
    size, n = draw.chosen.shape
    steps = torch.eye(3, dtype=draw.magnitudes.dtype).expand(size * n, 3, 3).clone()
    if not moves:
        return steps[:size], []
    places, values = [], []
    for name, part in moves.items():
        matrix, first = TABLE[name].matrix, part.place * 9
        assert matrix is not None
        for (row, column), value in matrix(part.magnitude, part.uniforms, *x.shape[-2:]).items():
            places.append(first + (3 * row + column))
            values.append(value)
    steps = steps.flatten().index_copy(0, torch.cat(places), torch.cat(values)).view(size, n, 3, 3)
    product = steps[:, 0]
    for slot in range(1, n):  # slots are in the order of the table
        product = steps[:, slot] @ product
    return product, [part.image for part in moves.values()]


def _recolour(changes: Mapping[str, _Change], x: Tensor) -> None:
    """The linear map of colours, in place."""
    channels = x.shape[1]
    parts = {name: part for name, part in changes.items() if name in LINEAR and TABLE[name].suits(channels)}
    if not parts:
        return
    places, values = [], []
    for name, part in parts.items():
        coefficient = TABLE[name].coefficient
        assert coefficient is not None
        column, value = coefficient(part.magnitude, part.uniforms, channels)
        places.append(part.image * (SHIFT + channels) + column)
        values.append(value)
    neutral = x.new_zeros(len(x), SHIFT + channels)
    neutral[:, :SHIFT] = 1
    coefficients = neutral.flatten().index_copy(0, torch.cat(places), torch.cat(values)).view_as(neutral)
    image = torch.cat([part.row for part in parts.values()]).unique().to(x.device, non_blocking=True)
    colours, means = "saturation" in parts or "gray" in parts, "contrast" in parts
    numbers = coefficients.index_select(0, image)
    _put(x, image, apply_linear(x.index_select(0, image), numbers, colours=colours, means=means))


def _put(x: Tensor, image: Tensor, changed: Tensor) -> None:
    """`x[image] = changed`, in place; 16 bytes at a time where no gradient is recorded, which is much faster."""
    flat = x.is_contiguous() and changed.is_contiguous() and not changed.requires_grad and not x.requires_grad
    if flat and x[:1].nbytes % 16 == 0 and x.data_ptr() % 16 == changed.data_ptr() % 16 == 0:
        x.flatten(1).view(torch.complex128).index_copy_(0, image, changed.flatten(1).view(torch.complex128))
    else:
        x.index_copy_(0, image, changed)
