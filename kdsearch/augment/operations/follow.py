"""How masks and boxes follow the matrix that moved an image's pixels: for tasks whose targets have a place."""

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from kdsearch.augment.operations.warp import sampling_grid


def move_labels(labels: Tensor, matrix: Tensor, outside: int) -> Tensor:
    """Masks moved as their images were, each pixel with the label of the nearest pixel it comes from.

    Args:
        labels: (B, H, W), integers; neither they nor they minus `outside` reach 2^24.
        matrix: (B, 3, 3), of the `View`.
        outside: The label where no pixel comes from, such as the one that a task ignores.
    """
    shifted = labels[:, None].float() - outside  # grid_sample pads with zeros
    moved = grid_sample(shifted, sampling_grid(matrix, shifted), mode="nearest", align_corners=False)
    return (moved[:, 0] + outside).to(labels.dtype)


def move_boxes(boxes: Tensor, matrix: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Upright boxes around the moved boxes, cut at the edges of the image.

    A box around a turned box is larger than one around the turned object: less so the less it was turned.

    Args:
        boxes: (B, M, 4), x0, y0, x1, y1 in pixels from the upper left corner of the image.
        matrix: (B, 3, 3), of the `View`.
        height: Of the images, in pixels.
        width: Of the images, in pixels.

    Returns:
        The boxes (B, M, 4), and what share of each is inside the image (B, M).

    >>> turn = torch.tensor([[[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]])  # a quarter, about the centre
    >>> move_boxes(torch.tensor([[[0.0, 0.0, 4.0, 2.0]]]), turn, 8, 8)
    (tensor([[[6., 0., 8., 4.]]]), tensor([[1.]]))
    """
    boxes = boxes if boxes.is_floating_point() else boxes.to(torch.get_default_dtype())
    x0, y0, x1, y1 = boxes.unbind(-1)
    x, y = torch.stack([x0, x1, x1, x0], -1) - width / 2, torch.stack([y0, y0, y1, y1], -1) - height / 2
    corners = torch.stack([x, y, torch.ones_like(x)], -1)  # (B, M, 4, 3)
    moved = corners @ matrix.to(boxes.device, boxes.dtype).transpose(1, 2)[:, None]
    column, row = moved[..., 0] / moved[..., 2] + width / 2, moved[..., 1] / moved[..., 2] + height / 2
    whole = torch.stack([column.amin(2), row.amin(2), column.amax(2), row.amax(2)], -1)
    seen = torch.stack(
        [side.clamp(0, most) for side, most in zip(whole.unbind(-1), (width, height) * 2, strict=True)], -1
    )
    return seen, _area(seen) / _area(whole).clamp(min=torch.finfo(boxes.dtype).tiny)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).prod(-1)
