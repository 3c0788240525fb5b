"""The learner: per operation a probability and a magnitude range, drawn per image."""

from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor, nn

from kdsearch.augment.operations import TABLE as OPERATIONS
from kdsearch.augment.operations import apply
from kdsearch.augment.spec import Limits, PolicySpec, Setting, Snapshot
from kdsearch.core.errors import KdsearchError, problems, unknown_name
from kdsearch.core.html import html_paragraph
from kdsearch.core.maths import bernoulli_kl
from kdsearch.core.terminal import number_of
from kdsearch.core.values import FILLS, Draw, View

LOW_START = -2.0  # low = high * sigmoid(LOW_START) at the start and in the prior
AT_LIMIT = 0.98  # of high / limit, from where on a range is called at its limit


class Policy(nn.Module):
    """A distribution over augmentations with learnable probabilities and magnitude ranges.

    Each image draws n of S operations without replacement, uniformly. A drawn operation is applied with probability
    `sigmoid(logit)`; its magnitude is uniform on [low, high], `high = limit * sigmoid(a)`, `low = high * sigmoid(b)`,
    its sign random where the operation is signed.
    It lives on the host, in float64: 3 S numbers, so that drawing needs no copy from a device.

    Args:
        limits: The largest magnitude of each operation, in its unit; None for the operation's default, and for
            operations without a magnitude.
        operations_per_image: n.
        probability: Where every probability starts, and the centre of its prior.
        extent: Where every `high / limit` starts, and the centre of its prior.
        fill: What stands where geometry finds no pixel: zero, mean (of each channel of the image) or reflect.

    >>> policy = Policy({"rotate": 30.0, "invert": None}, operations_per_image=1)
    >>> draw = policy.draw(4, torch.Generator().manual_seed(0))
    >>> draw.chosen.shape, len(draw)
    (torch.Size([4, 1]), 4)
    """

    def __init__(
        self,
        limits: Mapping[str, float | None] | Sequence[str],
        operations_per_image: int,
        *,
        probability: float = 0.5,
        extent: float = 0.5,
        fill: str = "zero",
    ) -> None:
        super().__init__()
        if isinstance(limits, str):
            raise KdsearchError(f"policy: operations are a list or a mapping; got the string {limits!r}")
        given = dict(limits) if isinstance(limits, Mapping) else dict.fromkeys(limits)
        _check(given, operations_per_image, probability, extent, fill)
        self.operations = tuple(name for name in OPERATIONS if name in given)
        self.operations_per_image = operations_per_image
        self.fill = fill
        self.prior = (probability, extent)
        ops = [OPERATIONS[name] for name in self.operations]
        limit = [given[op.name] or op.limit or 0.0 for op in ops]
        self.limit: Tensor
        self.signed: Tensor
        self.learned: Tensor
        self.endpoint: Tensor
        self.fixed_high: Tensor
        self.fixed_low: Tensor
        self.register_buffer("limit", torch.tensor(limit, dtype=torch.float64))  # (S,), 0 without a magnitude
        self.register_buffer("signed", torch.tensor([op.signed for op in ops]), persistent=False)  # (S,) bool
        learned = torch.tensor([i for i, op in enumerate(ops) if op.range != "none"], dtype=torch.int64)
        self.register_buffer("learned", learned)  # (R,), which ranges learn
        endpoint = torch.tensor([op.range == "endpoint" for op in ops])
        self.register_buffer("endpoint", endpoint, persistent=False)  # (S,) bool, learned from the images at both ends
        self.register_buffer("fixed_high", self.limit * extent)
        self.register_buffer("fixed_low", self.fixed_high * torch.tensor(LOW_START).double().sigmoid())
        start = torch.logit(torch.tensor([probability, extent], dtype=torch.float64))
        self.logit = nn.Parameter(start[0].repeat(len(ops)))  # (S,)
        self.a = nn.Parameter(start[1].repeat(len(learned)))  # (R,)
        self.b = nn.Parameter(torch.full((len(learned),), LOW_START, dtype=torch.float64))  # (R,)

    def extra_repr(self) -> str:
        return (
            f"{self.operations_per_image} of {number_of(len(self.operations), 'operation')} an image, fill {self.fill}"
        )

    def _repr_html_(self) -> str:
        return html_paragraph("A Policy, as it is now:") + self.freeze().in_html()

    @property
    def probability(self) -> Tensor:
        """(S,) that a drawn operation is applied."""
        return self.logit.sigmoid()

    @property
    def rate(self) -> Tensor:
        """(S,) marginal probability that an operation is applied to an image."""
        return self.probability * self.operations_per_image / len(self.operations)

    def ranges(self) -> tuple[Tensor, Tensor]:
        """Low and high of each magnitude, (S,) each, in the operation's unit; 0 without a magnitude."""
        high = self.limit[self.learned] * self.a.sigmoid()
        low = high * self.b.sigmoid()
        return self.fixed_low.index_copy(0, self.learned, low), self.fixed_high.index_copy(0, self.learned, high)

    @torch.no_grad()
    def draw(self, size: int, generator: torch.Generator | None = None) -> Draw:
        """Decide what happens to each of `size` images; `generator` is a CPU generator."""
        n, extra = self.operations_per_image, max(OPERATIONS[name].uniforms for name in self.operations)
        order = torch.rand(size, len(self.operations), generator=generator)
        chosen = order.topk(n, dim=1, sorted=False).indices.sort(1).values
        u = torch.rand(size, n, 3 + extra, generator=generator, dtype=torch.float64)  # gate, sign, magnitude and more
        seeds = torch.randint(-(2**63), 2**63 - 1, (size,), generator=generator)
        signs = torch.where(self.signed.cpu()[chosen] & (u[..., 1] < 0.5), -1.0, 1.0).double()
        gates = u[..., 0] < self.probability.cpu()[chosen]
        u = u[..., 2:].contiguous()
        magnitudes = _magnitudes(chosen, signs, u, *(v.cpu() for v in self.ranges()))
        return Draw(self.operations, chosen, gates, signs, u, magnitudes, seeds, self.fill)

    def magnitudes(self, draw: Draw) -> Tensor:
        """The magnitudes of a draw under the live parameters, (B, n), with the gradient of pathwise ranges."""
        low, high = (torch.where(self.endpoint, end.detach(), end) for end in self.ranges())
        return _magnitudes(draw.chosen, draw.signs, draw.uniforms, low, high)

    def prior_loss(self) -> Tensor:
        """How far the policy is from its prior, in nats, weighted by the share of images each operation reaches.

        `sum_o n/S * (KL(Bern(p) || Bern(p0)) + KL(Bern(high/limit) || Bern(h0)) + KL(Bern(low/high) || Bern(.12)))`
        """
        p0, h0 = self.prior
        gates = bernoulli_kl(self.probability, p0).sum()
        extent = bernoulli_kl(self.a.sigmoid(), h0).sum()
        width = bernoulli_kl(self.b.sigmoid(), torch.tensor(LOW_START, dtype=torch.float64).sigmoid()).sum()
        return (gates + extent + width) * self.operations_per_image / len(self.operations)

    def augment(self, draw: Draw, images: Tensor) -> View:
        """Carry out a draw on images (B, C, H, W): `kdsearch.operations.apply`."""
        return apply(draw, images)

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Augmented images in training mode, the same images in evaluation mode."""
        return self.augment(self.draw(len(images), generator), images).images if self.training else images

    @torch.no_grad()
    def at_bounds(self) -> tuple[list[str], list[str]]:
        """Operations whose probability is frozen as 0 or 1, and those whose learned range reaches its limit."""
        gates = [
            name for name, p in zip(self.operations, self.probability.tolist(), strict=True) if _written(p) in (0, 1)
        ]
        share = self.a.sigmoid().tolist()
        learned = [self.operations[i] for i in self.learned.tolist()]
        return gates, [name for name, s in zip(learned, share, strict=True) if s > AT_LIMIT]

    @torch.no_grad()
    def snapshot(self, progress: float) -> Snapshot:
        """The present numbers; probabilities under .005 are written as 0, over .995 as 1."""
        low, high = (v.tolist() for v in self.ranges())
        settings = {}
        for i, (name, p) in enumerate(zip(self.operations, self.probability.tolist(), strict=True)):
            has = OPERATIONS[name].limit is not None
            settings[name] = Setting(
                probability=_written(p), low=low[i] if has else None, high=high[i] if has else None
            )
        return Snapshot(progress=progress, settings=settings)

    def freeze(
        self,
        schedule: Sequence[Snapshot] = (),
        provenance: Mapping[str, str | int | float | None] | None = None,
        base: "Policy | None" = None,
    ) -> PolicySpec:
        """The policy as a value. Without a `schedule` its only moment is now.

        Args:
            base: The base view that it was learned over, kept as it is now. A fixed transform is code, which no policy
                file holds: over one, as over bare images, this is None.
        """
        learned = set(self.learned.tolist())
        operations = {
            name: Limits(
                unit=OPERATIONS[name].unit,
                limit=limit or None,
                range=OPERATIONS[name].range if i in learned or not limit else "fixed",
            )
            for i, (name, limit) in enumerate(zip(self.operations, self.limit.tolist(), strict=True))
        }
        return PolicySpec(
            operations_per_image=self.operations_per_image,
            fill=self.fill,  # type: ignore[arg-type]
            operations=operations,
            schedule=tuple(schedule) or (self.snapshot(1.0),),
            base=None if base is None else base.freeze(),
            provenance=dict(provenance or {}),
        )

    @classmethod
    def uniform(
        cls,
        limits: Mapping[str, float | None] | Sequence[str],
        operations_per_image: int,
        *,
        probability: float = 1.0,
        fill: str = "zero",
    ) -> Self:
        """One probability for all, magnitudes from 0 to their limits, which are held: a policy to be used as it is."""
        start = cls(limits, operations_per_image, fill=fill)
        settings = {
            name: Setting(probability=probability, low=0.0 if limit else None, high=limit or None)
            for name, limit in zip(start.operations, start.limit.tolist(), strict=True)
        }
        return cls.from_spec(start.freeze([Snapshot(progress=1.0, settings=settings)]))

    @classmethod
    def from_spec(cls, spec: PolicySpec, which: str = "final") -> Self:
        """A policy at the numbers of a spec, `final` or `average`; its ranges are held, its prior is the default's.

        The base view of the spec is left aside: it is a policy of its own, `spec.base and Policy.from_spec(spec.base)`.
        """
        limits = {name: operation.limit for name, operation in spec.operations.items()}
        policy = cls(limits, spec.operations_per_image, fill=spec.fill)
        policy.learned, policy.endpoint = policy.learned[:0], torch.zeros_like(policy.endpoint)
        policy.a, policy.b = nn.Parameter(policy.a[:0]), nn.Parameter(policy.b[:0])
        policy.hold(spec.which(which))
        return policy

    @torch.no_grad()
    def hold(self, settings: Mapping[str, Setting]) -> None:
        """Take these numbers, of each operation; for a policy whose ranges are held."""
        held = [settings[name] for name in self.operations]
        self.logit.copy_(torch.logit(torch.tensor([s.probability for s in held], dtype=torch.float64)))
        self.fixed_low.copy_(torch.tensor([s.low or 0.0 for s in held], dtype=torch.float64))
        self.fixed_high.copy_(torch.tensor([s.high or 0.0 for s in held], dtype=torch.float64))


def _written(probability: float) -> float:
    return 0.0 if probability < 0.005 else 1.0 if probability > 0.995 else probability


def _magnitudes(chosen: Tensor, signs: Tensor, uniforms: Tensor, low: Tensor, high: Tensor) -> Tensor:
    low, high = low[chosen], high[chosen]
    return signs * (low + (high - low) * uniforms[..., 0])


def _check(limits: Mapping[str, float | None], n: int, probability: float, extent: float, fill: str) -> None:
    found = [] if fill in FILLS else [unknown_name("fill", fill, FILLS)]
    for name, limit in limits.items():
        op = OPERATIONS.get(name)
        if op is None:
            found.append(unknown_name("operation", name, OPERATIONS))
        elif limit is not None and not isinstance(limit, int | float):
            found.append(f"{name}: limit {limit!r}; allowed: a number")
        elif limit is not None and (op.hard is None or not 0 < limit <= op.hard):
            allowed = "none, it has no magnitude" if op.hard is None else f"more than 0, at most {op.hard:g} {op.unit}"
            found.append(f"{name}: limit {limit:g}; allowed: {allowed}")
    if not limits:
        found.append("no operations; known: " + ", ".join(OPERATIONS))
    elif not isinstance(n, int) or not 1 <= n <= len(limits):
        found.append(f"operations_per_image {n}; allowed: 1 to {len(limits)}")
    for name, value in (("probability", probability), ("extent", extent)):
        if not 0 < value < 1:
            found.append(f"{name} {value:g}; allowed: between 0 and 1, both excluded")
    if found:
        raise problems("policy", found)
