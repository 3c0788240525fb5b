"""The linear map of colours: brightness, contrast, saturation, gray and channel shift, carried out as one.

Each of these operations sets one coefficient of its images; the map is then applied in one pass and clamped once, which
is this library's stated semantics. Kornia's functions, which clamp one by one, are the oracle of each alone.
"""

import torch
from torch import Tensor

from kdsearch.augment.operations.operation import AUTOAUGMENT, Operation

BRIGHTNESS, CONTRAST, SATURATION, GRAY, SHIFT = range(5)  # columns of the coefficients; SHIFT is the first of C


def brightness(m: Tensor, u: Tensor, channels: int) -> tuple[int, Tensor]:
    """x * (1 + m)."""
    return BRIGHTNESS, 1 + m


def contrast(m: Tensor, u: Tensor, channels: int) -> tuple[int, Tensor]:
    """Away from the mean gray of the image: mean + (1 + m) * (x - mean)."""
    return CONTRAST, 1 + m


def saturation(m: Tensor, u: Tensor, channels: int) -> tuple[int, Tensor]:
    """Away from the gray image: gray + (1 + m) * (x - gray)."""
    return SATURATION, 1 + m


def gray(m: Tensor, u: Tensor, channels: int) -> tuple[int, Tensor]:
    """The gray image in all channels."""
    return GRAY, torch.zeros_like(m)


def channel_shift(m: Tensor, u: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """x + m in one channel, each as likely."""
    return SHIFT + (u[:, 0] * channels).long().clamp(max=channels - 1), m


def luma(x: Tensor) -> Tensor:
    """Gray values, (b, C, H, W) -> (b, 1, H, W): ITU-R 601 as torchvision rounds it; the mean where not RGB."""
    weights = _weights(x.shape[1])
    out = x[:, :1] * weights[0]
    for channel, weight in enumerate(weights[1:], 1):
        out = out.add_(x[:, channel : channel + 1], alpha=weight)
    return out


def _weights(channels: int) -> list[float]:
    return [0.2989, 0.587, 0.114] if channels == 3 else [1 / channels] * channels


def apply_linear(x: Tensor, coefficients: Tensor, *, colours: bool, means: bool) -> Tensor:
    """The linear map, clamped to [0, 1].

    With the factors k of brightness, c of contrast, s of saturation and the shift d of each channel:
    `k c s x + k c (1-s) luma(x) + k (1-c) (s + (1-s) sum of the weights) mean(luma(x)) + d`.

    Args:
        x: (b, C, H, W).
        coefficients: (b, 4 + C): k, c, the two factors of s (saturation, gray), d.
        colours: Is any s not 1?
        means: Is any c not 1?
    """
    k, c, s, shift = coefficients[:, 0], coefficients[:, 1], coefficients[:, 2], coefficients[:, SHIFT:, None, None]
    s = s * coefficients[:, GRAY]
    gray_pixels = luma(x) if colours or means else None
    if means and gray_pixels is not None:
        mean = gray_pixels.mean(3).mean(2)[:, 0]  # by rows: torch splits a long sum over its threads
        shift = shift + (k * (1 - c) * (s + (1 - s) * sum(_weights(x.shape[1]))) * mean)[:, None, None, None]
    out = (x * (k * c * s)[:, None, None, None]).add_(shift)
    if colours and gray_pixels is not None:
        out = out.addcmul_((k * c * (1 - s))[:, None, None, None], gray_pixels)
    return out.clamp_(0, 1)


COLOUR = (
    Operation(
        "brightness",
        "change of the factor",
        0.5,
        1.0,
        signed=True,
        endpoint=True,
        reference=AUTOAUGMENT,
        coefficient=brightness,
    ),
    Operation("contrast", "change of the factor", 0.5, 1.0, signed=True, reference=AUTOAUGMENT, coefficient=contrast),
    Operation(
        "saturation",
        "change of the factor",
        0.75,
        1.0,
        signed=True,
        channels=3,
        reference=AUTOAUGMENT,
        coefficient=saturation,
    ),
    Operation("gray", "", None, None, channels=3, reference="torchvision's rgb_to_grayscale", coefficient=gray),
    Operation(
        "channel_shift",
        "added to one channel, values in [0, 1]",
        0.2,
        1.0,
        signed=True,
        uniforms=1,
        reference="Kornia's shift_rgb, one channel at a time",
        coefficient=channel_shift,
    ),
)
