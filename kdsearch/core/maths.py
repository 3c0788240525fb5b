"""Formulas that several layers share: reproducible randomness, bounded logarithms, intervals."""

import hashlib
import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from scipy.special import betaincinv
from torch import Tensor


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from the things that fix a stream of random numbers: the same on every machine.

    >>> derive_seed(0, "draws", 3) == derive_seed(0, "draws", 3) != derive_seed(0, "draws", 4)
    True
    """
    text = "/".join(repr(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def trial_seed(seed: int, index: int) -> int:
    """The seed of a trial of a study, by its place in the order."""
    return derive_seed(seed, "trial", index) % 2**31


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator whose stream is fixed by `parts`."""
    return torch.Generator().manual_seed(derive_seed(*parts))


@contextmanager
def own_generators(device: torch.device | str = "cpu") -> Iterator[None]:
    """The global generators of torch (on the CPU and on a CUDA device), NumPy and Python, put back at the end."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    place = torch.device(device)
    index = torch.cuda.current_device() if place.type == "cuda" and place.index is None else place.index
    try:
        with torch.random.fork_rng(devices=[index] if place.type == "cuda" else []):
            yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)


def seed_everything(seed: int) -> None:
    """Seed these three and the GPUs' with up to 63 bits: what networks and their training draw from."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)


@contextmanager
def usual_modes() -> Iterator[None]:
    """torch as a search needs it, whatever its caller has set: gradients, no inference mode, tensors on the host."""
    with torch.inference_mode(False), torch.enable_grad():
        host = nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")
        with host:
            yield


@contextmanager
def full_precision() -> Iterator[None]:
    """A GPU's arithmetic without TF32, whose rounding is larger than differences between networks that are alike."""
    cudnn: Any = torch.backends.cudnn
    places: list[Any] = [cudnn.conv, torch.backends.cuda.matmul]
    before = [place.fp32_precision for place in places]
    for place in places:
        place.fp32_precision = "ieee"
    try:
        yield
    finally:
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision


def seed_generators(seed: int) -> None:
    """Seed these three, with at most 32 bits: what user's transforms and data sets draw from."""
    torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which seeds the GPUs too
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)


def normal_field(seeds: Tensor, count: int) -> Tensor:
    """Standard normal numbers that depend on a seed and a position alone, hence the same in any batch on any device.

    Each pair comes by Box-Muller from two 32-bit hashes of its position, keyed by the two halves of the mixed seed.

    Args:
        seeds: (B,) int64.

    Returns:
        (B, count) float32.

    Reference:
        Wellons, Prospecting for hash functions, 2018 (the 32-bit mixer); Steele et al., Fast splittable pseudorandom
        number generators, OOPSLA 2014 (the mixer of seeds)

    >>> a = normal_field(torch.tensor([1, 2]), 5)
    >>> bool((a[1:] == normal_field(torch.tensor([2]), 5)).all())
    True
    """
    key = seeds + _signed(0x9E3779B97F4A7C15)
    key = (key ^ _shift(key, 30)) * _signed(0xBF58476D1CE4E5B9)
    key = (key ^ _shift(key, 27)) * _signed(0x94D049BB133111EB)
    key = key ^ _shift(key, 31)
    pair = torch.arange(1, (count + 1) // 2 + 1, device=seeds.device, dtype=torch.int32) * _signed(0x9E3779B9, 32)
    radius = _hash(pair + key.to(torch.int32)[:, None]).add_(0.5).div_(1 << 24).log_().mul_(-2).sqrt_()
    angle = _hash(~pair + _shift(key, 32).to(torch.int32)[:, None]).mul_(2 * math.pi / (1 << 24))
    return torch.view_as_real(torch.complex(radius * angle.cos(), radius * angle.sin())).flatten(1)[:, :count]


def _hash(x: Tensor) -> Tensor:
    """24 bits of a mixed int32, as whole float32 numbers; x is written over."""
    x.bitwise_xor_(_shift(x, 16, 32)).mul_(0x21F0AAAD)
    x.bitwise_xor_(_shift(x, 15, 32)).mul_(0x735A2D97)
    return _shift(x.bitwise_xor_(_shift(x, 15, 32)), 8, 32).float()


def _shift(x: Tensor, bits: int, size: int = 64) -> Tensor:
    """Logical right shift of integers of `size` bits."""
    return (x >> bits).bitwise_and_((1 << (size - bits)) - 1)


def _signed(x: int, size: int = 64) -> int:
    return x - (1 << size) if x >= 1 << (size - 1) else x


def bernoulli_kl(p: Tensor, q: Tensor | float) -> Tensor:
    """KL(Bern(p) || Bern(q)) in nats, elementwise; where p is 0 or 1 it is finite and its gradient 0.

    >>> bernoulli_kl(torch.tensor([0.5, 1.0], dtype=torch.float64), 0.5).round(decimals=9).tolist()
    [0.0, 0.693147181]
    """
    q = torch.as_tensor(q, dtype=p.dtype, device=p.device)
    p = p.clamp(torch.finfo(p.dtype).eps, 1 - torch.finfo(p.dtype).eps)
    return torch.xlogy(p, p / q) + torch.xlogy(1 - p, (1 - p) / (1 - q))


def clopper_pearson(successes: np.ndarray, trials: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Exact interval of a rate, elementwise: it holds the rate at `level` or more; (0, 1) where nothing was tried.

    Reference:
        Clopper and Pearson, The use of confidence or fiducial limits, Biometrika 1934

    >>> [round(float(end), 3) for end in clopper_pearson(np.array(5), np.array(10), 0.95)]
    [0.187, 0.813]
    """
    k, n = np.asarray(successes, dtype=np.float64), np.asarray(trials, dtype=np.float64)
    low = betaincinv(np.maximum(k, 0.5), n - k + 1, (1 - level) / 2)
    high = betaincinv(k + 1, np.maximum(n - k, 0.5), (1 + level) / 2)
    return np.where(k > 0, low, 0.0), np.where(k < n, high, 1.0)


def spoiled_shares(before: Tensor, after: Tensor) -> Tensor:
    """Shares of images that an augmentation has emptied and saturated, (2,), on the device.

    Emptied: the deviation of its values, over channels and space, is under a tenth of what it was. Saturated: over 95 %
    of its values are 0 or 1, and were not before.

    Args:
        before: (B, C, H, W) in [0, 1]; in a training step the base views.
        after: Likewise; the second views.

    >>> x = torch.linspace(0, 1, 100).view(1, 1, 10, 10)
    >>> spoiled_shares(x.repeat(4, 1, 1, 1), torch.cat([x, 0 * x, (9 * x - 4).clamp(0, 1), (x > 0.5).float()])).tolist()
    [0.25, 0.25]
    """
    deviation, left = (_spread(x.flatten(1)) for x in (before, after))
    bound_before, bound = ((1 - x).mul_(x).le_(0).flatten(1).mean(1) for x in (before, after))
    emptied = (left < 0.1 * deviation).float().mean()
    saturated = ((bound > 0.95) & (bound_before <= 0.95) & (left >= 0.1 * deviation)).float().mean()
    return torch.stack([emptied, saturated])


def _spread(x: Tensor) -> Tensor:
    """The deviation of rows (b, n) times the root of n, 0 for constant ones; in two passes, much faster than `std`."""
    x = x - x[:, :1]
    return x.sub_(x.mean(1, keepdim=True)).norm(dim=1)


def noise_scale(gradients: Sequence[Tensor], batch: int) -> tuple[float, float]:
    """Norm of the mean gradient of some steps, and their simple noise scale in images.

    The scale is `batch * tr(covariance) / |mean|^2`, the square without what the noise adds to it: about the batch from
    which on a step is more signal than noise. NaN where the noise hides the mean, or of fewer than two steps.

    Reference:
        McCandlish et al., An empirical model of large-batch training, 2018

    >>> noise_scale([torch.tensor([3.0, 4.0])] * 2, 8)
    (5.0, 0.0)
    """
    if not gradients:
        return math.nan, math.nan
    stacked = torch.stack(list(gradients)).double()
    square = stacked.mean(0).square().sum()
    if len(stacked) < 2:
        return square.sqrt().item(), math.nan
    noise = stacked.var(0).sum()
    signal = square - noise / len(stacked)
    return square.sqrt().item(), (batch * noise / signal).item() if signal > 0 else math.nan
