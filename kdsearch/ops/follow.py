"""How masks and boxes follow the matrix that moved an image's pixels: for tasks whose targets have a place."""

import torch
from torch import Tensor

from kdsearch.ops.warp import grid


def move_labels(labels: Tensor, matrix: Tensor, outside: int) -> Tensor:
    """Masks moved as their images were, each pixel with the label of the nearest pixel it comes from.

    Args:
        labels: (B, H, W), integers.
        matrix: (B, 3, 3), of the `View`.
        outside: The label where no pixel comes from, such as the one that a task ignores.
    """
    height, width = labels.shape[1:]
    places = grid(matrix, labels[:, None].float())
    column, row = ((places + 1) * places.new_tensor([width, height]) / 2).floor().long().unbind(-1)
    there = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    found = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
    return labels.flatten(1).gather(1, found.flatten(1)).view_as(labels).where(there, outside)


def move_boxes(boxes: Tensor, matrix: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Upright boxes around the moved boxes, cut at the edges of the image.

    A box around a turned box is larger than one around the turned object: less so the less it was turned.

    Args:
        boxes: (B, M, 4), x0, y0, x1, y1 in pixels from the upper left corner of the image.
        matrix: (B, 3, 3), of the `View`.
        height, width: Of the images.

    Returns:
        The boxes (B, M, 4), and what share of each is inside the image (B, M).

    >>> turn = torch.tensor([[[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]])  # a quarter, about the centre
    >>> move_boxes(torch.tensor([[[0.0, 0.0, 4.0, 2.0]]]), turn, 8, 8)
    (tensor([[[6., 0., 8., 4.]]]), tensor([[1.]]))
    """
    centre = boxes.new_tensor([width / 2, height / 2])
    x, y = boxes[..., [0, 2, 2, 0]] - centre[0], boxes[..., [1, 1, 3, 3]] - centre[1]
    corners = torch.stack([x, y, torch.ones_like(x)], -1)  # (B, M, 4, 3)
    moved = corners @ matrix.to(boxes.device, boxes.dtype).transpose(1, 2)[:, None]
    places = moved[..., :2] / moved[..., 2:] + centre
    whole = torch.cat([places.amin(2), places.amax(2)], -1)
    seen = whole.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))
    return seen, _area(seen) / _area(whole).clamp(min=torch.finfo(boxes.dtype).tiny)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).prod(-1)
