"""Operations on pixel values, with the meanings of torchvision and PIL.

Brightness, contrast and saturation are linear and stand next to each other; they are left unclamped here and clamped
once after the group (`LINEAR`), which is this library's stated semantics.
"""

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d
from torchvision.transforms.v2.functional import equalize_image, rgb_to_grayscale_image

from kdsearch.maths import normal_field
from kdsearch.ops.operation import Operation


def _image(m: Tensor) -> Tensor:
    """(b,) -> (b, 1, 1, 1)."""
    return m[:, None, None, None]


def _gray(x: Tensor) -> Tensor:
    """(b, C, H, W) -> (b, 1, H, W): ITU-R 601 luma of colour images."""
    return rgb_to_grayscale_image(x, num_output_channels=1) if x.shape[1] == 3 else x.mean(1, keepdim=True)


def brightness(x: Tensor, m: Tensor, u: Tensor, seeds: Tensor) -> Tensor:
    """x * (1 + m)."""
    return x * (1 + _image(m))


def contrast(x: Tensor, m: Tensor, u: Tensor, seeds: Tensor) -> Tensor:
    """Away from the mean gray of the image: mean + (1 + m) * (x - mean)."""
    mean = _gray(x).mean((1, 2, 3), keepdim=True)
    return mean + (1 + _image(m)) * (x - mean)


def saturation(x: Tensor, m: Tensor, u: Tensor, seeds: Tensor) -> Tensor:
    """Away from the gray image: gray + (1 + m) * (x - gray)."""
    gray = _gray(x)
    return gray + (1 + _image(m)) * (x - gray)


def equalize(x: Tensor, m: Tensor, u: Tensor, seeds: Tensor) -> Tensor:
    """Histogram of each channel made flat, on 256 levels; the gradient to earlier operations is the identity."""
    return x + (equalize_image(x.detach()) - x).detach()


def solarize(x: Tensor, m: Tensor, u: Tensor, seeds: Tensor) -> Tensor:
    """Values of at least 1 - m are inverted."""
    return torch.where(x >= 1 - _image(m), 1 - x, x)


def posterize(x: Tensor, m: Tensor, u: Tensor, seeds: Tensor) -> Tensor:
    """m of 8 bits dropped (m rounded); the gradient to earlier operations is the identity."""
    levels = 2 ** (8 - _image(m).detach().round())
    quantised = ((x.detach() * levels).floor().clamp(max=levels - 1)) / levels
    return x + (quantised - x).detach()


def invert(x: Tensor, m: Tensor, u: Tensor, seeds: Tensor) -> Tensor:
    """1 - x."""
    return 1 - x


def sharpness(x: Tensor, m: Tensor, u: Tensor, seeds: Tensor) -> Tensor:
    """Away from a 3x3 smoothed image (centre weight 5/13, others 1/13); the border row of pixels stays as it is."""
    if min(x.shape[-2:]) < 3:
        return x
    inner = x[..., 1:-1, 1:-1]
    smooth = (avg_pool2d(x, 3, stride=1) * 9 + inner * 4) / 13
    out = x.clone()
    out[..., 1:-1, 1:-1] = (smooth + (1 + _image(m)) * (inner - smooth)).clamp(0, 1)
    return out


def noise(x: Tensor, m: Tensor, u: Tensor, seeds: Tensor) -> Tensor:
    """Independent Gaussian noise of standard deviation m on every value, from the image's own seed."""
    field = normal_field(seeds.to(x.device), x[0].numel()).to(x.dtype).view_as(x)
    return (x + _image(m) * field).clamp(0, 1)


def erase(x: Tensor, m: Tensor, u: Tensor, seeds: Tensor) -> Tensor:
    """A rectangle of m times both sides set to 0, its centre uniform over the image (Cutout).

    Reference:
        DeVries and Taylor, Improved regularization of convolutional neural networks with Cutout, 2017
    """
    height, width = x.shape[-2:]
    y = (torch.arange(height, device=x.device, dtype=x.dtype)[:, None] + 0.5) / height
    z = (torch.arange(width, device=x.device, dtype=x.dtype) + 0.5) / width
    u = u.to(x.dtype)
    inside_y = (y - u[:, 0, None, None]).abs() <= m[:, None, None] / 2
    inside_x = (z - u[:, 1, None, None]).abs() <= m[:, None, None] / 2
    return x.masked_fill((inside_y & inside_x)[:, None], 0.0)


LINEAR = ("brightness", "contrast", "saturation")  # clamped once, after the last of them

PHOTOMETRIC = (
    Operation("brightness", "change of the factor", 0.5, 1.0, signed=True, pixels=brightness),
    Operation("contrast", "change of the factor", 0.5, 1.0, signed=True, pixels=contrast),
    Operation("saturation", "change of the factor", 0.75, 1.0, signed=True, channels=3, pixels=saturation),
    Operation("equalize", "", None, None, pixels=equalize),
    Operation("solarize", "share of the value range inverted", 0.8, 1.0, differentiable=False, pixels=solarize),
    Operation("posterize", "bits dropped", 4.0, 7.0, differentiable=False, pixels=posterize),
    Operation("invert", "", None, None, pixels=invert),
    Operation("sharpness", "change of the factor", 0.9, 1.0, signed=True, pixels=sharpness),
    Operation("noise", "standard deviation of values in [0, 1]", 0.2, 1.0, pixels=noise),
    Operation("erase", "fraction of both sides", 0.5, 1.0, uniforms=2, differentiable=False, pixels=erase),
)
