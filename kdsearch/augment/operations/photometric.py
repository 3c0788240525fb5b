"""Operations on pixel values that are not linear in the colours, with the meanings of torchvision and PIL."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from kdsearch.augment.operations.operation import AUTOAUGMENT, Operation
from kdsearch.core.maths import normal_field

MOST_BLUR = 3.0  # pixels, the hard range of gaussian_blur


def _image(m: Tensor) -> Tensor:
    """(b,) -> (b, 1, 1, 1)."""
    return m[:, None, None, None]


def _straight_through(x: Tensor, value: Tensor) -> Tensor:
    """`value`, with the gradient of x."""
    return x + (value - x).detach() if x.requires_grad else value


def hue(x: Tensor, m: Tensor, u: Tensor, seeds: Tensor) -> Tensor:
    """Colours turned by m of the colour circle; value and saturation (HSV) stay. RGB images alone."""
    red, green, blue = x.unbind(1)
    most = x.amax(1)
    span = most - x.amin(1)
    divisor = torch.where(span == 0, 1.0, span)
    sixths = torch.where(
        most == red,
        (green - blue) / divisor,
        torch.where(most == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    turns = (sixths / 6 + m[:, None, None])[:, None] + torch.arange(5, 0, -2, device=x.device)[:, None, None] / 6
    phase = 6 * (turns - turns.floor())  # of red, green, blue
    return (most[:, None] - span[:, None] * torch.minimum(phase, 4 - phase).clamp(0, 1)).clamp(0, 1)


def gamma(x: Tensor, m: Tensor, u: Tensor, seeds: Tensor) -> Tensor:
    """x ** (1 + m); values under 1/1000, where the slope has no bound, pass no gradient to earlier operations."""
    base = torch.where(x > 1e-3, x, x.detach()) if x.requires_grad else x
    return base ** (1 + _image(m))


def autocontrast(x: Tensor, m: Tensor, u: Tensor, seeds: Tensor) -> Tensor:
    """Each channel stretched to [0, 1]; a constant one stays."""
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    flat = low == high
    return ((x - low.masked_fill(flat, 0.0)) / (high - low).masked_fill(flat, 1.0)).clamp(0, 1)


def equalize(x: Tensor, m: Tensor, u: Tensor, seeds: Tensor) -> Tensor:
    """Histogram of each channel made flat, on 256 levels.

    PIL's rule, whose steps are those of the images without their brightest level; a channel whose step is 0 stays.
    """
    levels = (x.detach() * 255.999).int().long().flatten(2)  # (b, C, HW); by way of int32, which is faster
    count = levels.shape[2]
    one = torch.ones(1, 1, 1, dtype=x.dtype, device=x.device)
    histogram = torch.zeros(*x.shape[:2], 256, dtype=x.dtype, device=x.device).scatter_add_(
        2, levels, one.expand_as(levels)
    )
    upto = histogram.cumsum(2)
    step = (torch.where(upto < count, upto, 0).amax(2, keepdim=True) / 255).floor()  # without the brightest level
    # A half added to whole numbers keeps rounding from crossing the next whole number.
    table = ((upto - histogram + (step / 2).floor() + 0.5) / step).floor().clamp(0, 255)
    table = torch.where(step == 0, torch.arange(256, device=x.device, dtype=x.dtype), table) / 255
    return _straight_through(x, table.gather(2, levels).view_as(x))


def solarize(x: Tensor, m: Tensor, u: Tensor, seeds: Tensor) -> Tensor:
    """Values of at least 1 - m are inverted."""
    # The comparison as a clamped ramp, 0 or 1 to the last digits of x, takes much less time.
    inverted = (x.detach() - (1 - _image(m.detach()))).mul_(1e12).add_(1).clamp_(0, 1)
    return torch.addcmul(x, inverted, torch.rsub(x, 1, alpha=2))


def posterize(x: Tensor, m: Tensor, u: Tensor, seeds: Tensor) -> Tensor:
    """m of 8 bits dropped (m rounded); the gradient to earlier operations is the identity."""
    levels = 2 ** (8 - _image(m).detach().round())
    return _straight_through(x, ((x.detach() * levels).floor().minimum(levels - 1)) / levels)


def invert(x: Tensor, m: Tensor, u: Tensor, seeds: Tensor) -> Tensor:
    """1 - x."""
    return 1 - x


def sharpness(x: Tensor, m: Tensor, u: Tensor, seeds: Tensor) -> Tensor:
    """Away from a 3x3 smoothed image (centre weight 5/13, others 1/13); the border row of pixels stays as it is."""
    if min(x.shape[-2:]) < 3:
        return x
    rows = x[..., :-2, :] + x[..., 1:-1, :] + x[..., 2:, :]
    nine = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    inner, m = x[..., 1:-1, 1:-1], _image(m)
    out = x.clone()
    out[..., 1:-1, 1:-1] = torch.addcmul(inner * (1 + 9 / 13 * m), nine, -m / 13).clamp_(0, 1)
    return out


def gaussian_blur(x: Tensor, m: Tensor, u: Tensor, seeds: Tensor) -> Tensor:
    """Gaussian weights of standard deviation m pixels, over 9 pixels to each side, mirrored without the edge."""
    return _blur(_blur(x, m, 3), m, 2).clamp_(0, 1)


def _blur(x: Tensor, sigma: Tensor, axis: int) -> Tensor:
    """Along one axis. A sum of shifted images, not a matrix product, whose last digits depend on the batch."""
    side = x.shape[axis]
    radius = min(int(3 * MOST_BLUR), side - 1)
    offset = torch.arange(radius + 1, device=x.device, dtype=x.dtype)
    weights = torch.exp(-0.5 * (offset / sigma[:, None].clamp(min=1e-3)) ** 2)  # (b, radius + 1)
    weights = (weights / (2 * weights.sum(1, keepdim=True) - 1))[..., None, None, None]
    margin = (radius, radius, 0, 0) if axis == 3 else (0, 0, radius, radius)
    padded = pad(x, margin, mode="reflect") if radius else x
    out = x * weights[:, 0]
    for k in range(1, radius + 1):
        both = padded.narrow(axis, radius - k, side) + padded.narrow(axis, radius + k, side)
        out = out.addcmul_(both, weights[:, k])
    return out


def noise(x: Tensor, m: Tensor, u: Tensor, seeds: Tensor) -> Tensor:
    """Independent Gaussian noise of standard deviation m on every value, from the image's own seed."""
    field = normal_field(seeds, x[0].numel()).to(x.dtype).view_as(x)
    return torch.addcmul(x, _image(m), field).clamp_(0, 1)


def erase(x: Tensor, m: Tensor, u: Tensor, seeds: Tensor) -> Tensor:
    """A rectangle of m times both sides set to 0, its centre uniform over the image."""
    height, width = x.shape[-2:]
    y = (torch.arange(height, device=x.device, dtype=x.dtype)[:, None] + 0.5) / height
    z = (torch.arange(width, device=x.device, dtype=x.dtype) + 0.5) / width
    inside_y = (y - u[:, 0, None, None]).abs() <= m[:, None, None] / 2
    inside_x = (z - u[:, 1, None, None]).abs() <= m[:, None, None] / 2
    return x.masked_fill((inside_y & inside_x)[:, None], 0.0)


_COLOUR_CIRCLE = "fraction of the colour circle"

PHOTOMETRIC = (
    Operation(
        "hue", _COLOUR_CIRCLE, 0.1, 0.5, signed=True, channels=3, reference="torchvision's adjust_hue", pixels=hue
    ),
    Operation(
        "gamma", "change of the exponent", 0.5, 0.9, signed=True, reference="torchvision's adjust_gamma", pixels=gamma
    ),
    Operation("autocontrast", "", None, None, reference=AUTOAUGMENT, pixels=autocontrast),
    Operation("equalize", "", None, None, gradient="straight-through", reference=AUTOAUGMENT, pixels=equalize),
    Operation(
        "solarize",
        "share of the value range inverted",
        0.8,
        1.0,
        gradient="none",
        reference=AUTOAUGMENT,
        pixels=solarize,
    ),
    Operation("posterize", "bits dropped", 4.0, 7.0, gradient="none", reference=AUTOAUGMENT, pixels=posterize),
    Operation("invert", "", None, None, reference=AUTOAUGMENT, pixels=invert),
    Operation("sharpness", "change of the factor", 0.9, 1.0, signed=True, reference=AUTOAUGMENT, pixels=sharpness),
    Operation(
        "gaussian_blur",
        "standard deviation in pixels",
        1.0,
        MOST_BLUR,
        reference="SimCLR (Chen et al., ICML 2020)",
        pixels=gaussian_blur,
    ),
    Operation(
        "noise",
        "standard deviation of values in [0, 1]",
        0.2,
        1.0,
        reference="RangeAugment (Mehta et al., 2022)",
        pixels=noise,
    ),
    Operation(
        "erase",
        "fraction of both sides",
        0.5,
        1.0,
        uniforms=2,
        gradient="none",
        reference="Cutout (DeVries and Taylor, 2017)",
        pixels=erase,
    ),
)
