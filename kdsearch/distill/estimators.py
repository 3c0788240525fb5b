"""How a policy step learns: estimators of the derivative of the expected loss, for gates and for ranges.

All look at one batch drawn from the policy and give one number per image and drawn operation. Some look at
counterfactual images as well: the same image under the same draw, but for one decision. All are unbiased where the
pixels' gradient is exact; `benchmarks/estimators.py` compares them with the exact derivative, and with the straight-
through gate, which is biased beyond use.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kdsearch.augment.operations import apply
from kdsearch.augment.policy import Policy
from kdsearch.core.errors import KdsearchError, unknown_name, user_call
from kdsearch.core.values import Draw, View

LossOf = Callable[[Draw, Tensor], Tensor]  # b draws, the rows (b,) of the batch they are for -> losses (b,) in nats


@dataclass(frozen=True)
class Sample:
    """One batch that was drawn from a policy, and what came of it."""

    draw: Draw
    loss: Tensor  # (B,) in nats
    loss_of: LossOf  # what would have come of other draws
    tried: Tensor | None = None  # (B, m) int64, the slots of each image whose gates are flipped; None: all of them


Gates = Callable[[Sample, Tensor], Tensor]  # sample, probability (B, n) of the drawn -> (B, n)


def score_function(sample: Sample, probability: Tensor) -> Tensor:
    """Score function with the other images as baseline: `(loss - mean of the others) (gate - p)`.

    Unbiased for any loss, of two images or more. It costs nothing, and pays with the spread of losses between images.

    Reference:
        Williams, Simple statistical gradient-following algorithms, Machine Learning 1992; Kool et al., Buy 4 REINFORCE
        samples, get a baseline for free!, DeepRLStructPred at ICLR 2019
    """
    loss = sample.loss.cpu().double()
    others = (loss - loss.mean()) * len(loss) / max(len(loss) - 1, 1)
    return others[:, None] * (sample.draw.gates.double() - probability)


def flip(sample: Sample, probability: Tensor) -> Tensor:
    """`p (1 - p) (loss with - loss without)` for every operation that an image drew, the other decisions as they are.

    Unbiased for any loss, and free of the spread between images. Costs n more augmentations and forwards of both
    networks, without gradient; m where only m of the n gates of an image are flipped, which then count n / m times.

    Reference:
        Titsias and Lázaro-Gredilla, Local expectation gradients for black box variational inference, NeurIPS 2015
    """
    size, n = sample.draw.chosen.shape
    slots = torch.arange(n).repeat(size, 1) if sample.tried is None else sample.tried
    rows = torch.arange(size).repeat_interleave(slots.shape[1])
    other = sample.loss_of(flipped(sample.draw, rows, slots.flatten()), rows)
    change = (sample.loss[rows] - other).cpu().double().view_as(slots)
    p, gate = probability.gather(1, slots), sample.draw.gates.gather(1, slots)
    found = p * (1 - p) * torch.where(gate, change, -change) * n / slots.shape[1]
    return torch.zeros_like(probability).scatter(1, slots, found)


def balanced_slots(size: int, n: int, flips: int, random: torch.Generator | None = None) -> Tensor:
    """Which `flips` of n slots are tried of each of `size` images, (B, m) int64: each slot as often as any other.

    They go round, from image to image in a random order, over the slots in a random order; so each slot of each image
    is tried with probability m / n.

    >>> balanced_slots(4, 6, 3, torch.Generator().manual_seed(0)).flatten().bincount().tolist()
    [2, 2, 2, 2, 2, 2]
    """
    order, turn = torch.randperm(n, generator=random), torch.randperm(size, generator=random)
    return order[(turn[:, None] * flips + torch.arange(flips)) % n]


GATES: Mapping[str, Gates] = {"flip": flip, "score": score_function}


def endpoint(sample: Sample, low: Tensor, high: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives by both ends of a range, from the same images at the ends: for operations that pass no gradient.

    With m uniform on [low, high] and a given sign, `d/dhigh E f(m) = (f(high) - E f) / (high - low)` and
    `d/dlow E f(m) = (E f - f(low)) / (high - low)`. Unbiased for any loss; costs two more augmentations and forwards of
    each image with such an operation.

    Args:
        low, high: (B, n) of the drawn operations.
        wanted: (B, n) bool, where a derivative is asked for; it is 0 elsewhere, and where the gate is closed.

    Returns:
        Derivatives by low and by high, (B, n) each; 0 where both ends are one number in floating point.
    """
    rows, slots = (wanted & sample.draw.gates).nonzero(as_tuple=True)
    by_low, by_high = torch.zeros_like(low), torch.zeros_like(high)
    if not len(rows):
        return by_low, by_high
    ends = torch.cat([low[rows, slots], high[rows, slots]])
    both, places = rows.repeat(2), slots.repeat(2)
    draw = sample.draw.rows(both)
    magnitudes = draw.magnitudes.clone()
    index = torch.arange(len(both))
    magnitudes[index, places] = draw.signs[index, places] * ends
    at = sample.loss_of(replace(draw, magnitudes=magnitudes), both).cpu().double()
    at_low, at_high = at.chunk(2)
    here, width = sample.loss.cpu().double()[rows], (high - low)[rows, slots]
    narrow = width == 0  # a learned range can end so, and 0/0 would end the policy
    width = width.masked_fill(narrow, 1.0)
    by_low[rows, slots] = ((here - at_low) / width).masked_fill(narrow, 0.0)
    by_high[rows, slots] = ((at_high - here) / width).masked_fill(narrow, 0.0)
    return by_low, by_high


ViewLoss = Callable[[View, Tensor], Tensor]  # what was seen of some images, their rows (b,) in the batch -> (b,)


def policy_gradient(
    policy: Policy,
    draw: Draw,
    images: Tensor,
    loss: ViewLoss,
    *,
    gates: str = "flip",
    flips: int | None = None,
    random: torch.Generator | None = None,
) -> None:
    """Add to the gradients of a policy the derivative of the mean expected loss of a batch.

    Probabilities learn by an estimator out of `GATES`, ranges through the pixels or from both their ends, as the table
    of operations says. Networks inside `loss` should be in evaluation mode, their parameters without gradient.

    Args:
        draw: Of B images, from this policy.
        images: (B, C, H, W) before the draw.
        loss: Called with gradients on all B images under the draw, then without on up to 2 B counterfactual ones at a
            time.
        flips: How many gates of an image are flipped, at most those drawn; None for all of them. Each is flipped as
            often as any other, and counts as much more as it is rarer: unbiased, and cheaper where an image draws many.
        random: Chooses them; torch's own generator where None.

    Raises:
        KdsearchError: no such estimator of gates.
    """
    if gates not in GATES:
        raise KdsearchError(unknown_name("estimator of gates", gates, GATES))
    size = len(draw)
    view = apply(draw, images, policy.magnitudes(draw))
    seen, moved = (part.detach().requires_grad_() for part in view)
    here = loss(View(seen, moved), torch.arange(size))
    with user_call("teacher and student, the gradient of what they answer by the images"):
        found = torch.autograd.grad(here.sum(), (seen, moved), allow_unused=True)
    live = [(part, by / size) for part, by in zip(view, found, strict=True) if part.requires_grad and by is not None]
    if live:  # pathwise ranges: by the pixels, and by targets that move with them
        torch.autograd.backward([part for part, _ in live], [by for _, by in live])

    @torch.no_grad()
    def loss_of(other: Draw, rows: Tensor) -> Tensor:
        """In parts of twice the batch, as many as a student step sees at once."""
        parts = torch.arange(len(rows)).split(2 * size)
        return torch.cat([loss(apply(other.rows(part), images[rows[part]]), rows[part]) for part in parts])

    n = draw.chosen.shape[1]
    tried = None if flips is None or flips >= n else balanced_slots(size, n, flips, random)
    sample = Sample(draw, here.detach(), loss_of, tried)
    low, high = (end[draw.chosen] for end in policy.ranges())
    by_logit = GATES[gates](sample, policy.probability.detach()[draw.chosen])
    by_low, by_high = endpoint(sample, low.detach(), high.detach(), policy.endpoint[draw.chosen])
    total = by_logit * policy.logit[draw.chosen] + by_low * low + by_high * high
    if total.requires_grad:
        (total.sum() / size).backward()


def flipped(draw: Draw, rows: Tensor, slots: Tensor) -> Draw:
    """The draws of `rows`, each with the gate of one slot the other way."""
    other = draw.rows(rows)
    gates = other.gates.clone()
    index = torch.arange(len(rows))
    gates[index, slots] = ~gates[index, slots]
    return replace(other, gates=gates)
