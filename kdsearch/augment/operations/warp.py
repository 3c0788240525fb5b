"""The one warp that applies the product of an image's matrices."""

import torch
from torch import Tensor
from torch.nn.functional import grid_sample


def warp(images: Tensor, matrix: Tensor, fill: str = "zero") -> Tensor:
    """Images moved by forward maps: bilinear, one pass.

    Computed per image from elementwise maths, so that an image's pixels do not depend on its batch.

    Args:
        images: (b, C, H, W), float.
        matrix: (b, 3, 3) in pixels relative to the centre, on the host.
        fill: Where no pixel comes from stand zeros, the mean of each channel of the image, or the image mirrored at its
            edge, the edge repeated.
    """
    places = sampling_grid(matrix, images)
    if fill == "mean":
        mean = images.mean(3, keepdim=True).mean(2, keepdim=True)  # by rows: torch splits a long sum over its threads
        return _sample(images - mean, places, "zeros").add_(mean).clamp_(0, 1)
    # Weights that sum to a rounding error more than 1 leave [0, 1], and less than black has no gamma.
    return _sample(images, places, "reflection" if fill == "reflect" else "zeros").clamp_(0, 1)


def inside_mask(matrix: Tensor, images: Tensor) -> Tensor:
    """Which pixels came from inside the image, when images (b, C, H, W) were moved by matrices (b, 3, 3): (b, 1, H, W).

    The others are what `fill` stands for. On the device of the images; a half pixel at the edge counts as inside.
    """
    return (sampling_grid(matrix, images).abs() <= 1).all(3)[:, None]


def sampling_grid(matrix: Tensor, images: Tensor) -> Tensor:
    """Where each pixel comes from, in grid_sample's units: (b, H, W, 2).

    Sums of a complex row and a complex column, x + iy, because torch adds them much faster than pairs.
    """
    height, width = images.shape[-2:]
    inverse = torch.linalg.inv_ex(matrix).inverse * matrix.new_tensor([2 / width, 2 / height, 1.0])[:, None]
    back = inverse.to(images.device, images.dtype, non_blocking=True)
    y = torch.arange((1 - height) / 2, height / 2, device=images.device, dtype=images.dtype)
    x = torch.arange((1 - width) / 2, width / 2, device=images.device, dtype=images.dtype)
    row = torch.addcmul(back[:, None, :2, 2], x[:, None], back[:, None, :2, 0])  # (b, W, 2)
    column = y[:, None] * back[:, None, :2, 1]  # (b, H, 2)
    places = torch.view_as_real(torch.view_as_complex(row)[:, None] + torch.view_as_complex(column)[:, :, None])
    if matrix[:, 2, :2].any():
        projective = torch.nonzero(matrix[:, 2, :2].any(1))[:, 0].to(images.device, non_blocking=True)
        below = back[projective, 2, :, None, None]
        depth = below[:, 0] * x + below[:, 1] * y[:, None] + below[:, 2]  # (p, H, W)
        places = places.index_copy(0, projective, places[projective] / depth[..., None])
    return places


def _sample(images: Tensor, places: Tensor, outside: str) -> Tensor:
    return grid_sample(images, places, mode="bilinear", padding_mode=outside, align_corners=False)
