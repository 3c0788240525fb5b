"""Do the policy's gradients pick the right numbers? Estimators against the exact gradient, with trained pairs.

Pairs: the study `digits` (its teacher, a student distilled once, 1x16x16), and an RGB pair on 3x16x16 patches of two
photographs (eight classes: which quarter of which photograph). The loss of an image is what a policy step minimises.

* Gates alone: one operation, p of .1, .5 and .9; exact: p (1 - p) (loss with - loss without), 64 images.
* Gates among all, several per image, p = .5; exact: every subset and every gate enumerated on 64 images.
  In both, signs, magnitudes and noise are common to all draws: what is left to chance are subsets and gates.
* Ranges (a: high = limit sigmoid(a), b: low = high sigmoid(b)) alone with an open gate, and among all, as they start;
  exact: central differences of the expected loss with common random numbers, 256 images; a draw takes 64 of them, all
  with the operation, times the share of images that would have it: deviation and time are those of such a batch.

A form is offered where, in all its rows, the standard error is at most .1 |exact| and |bias| <= .2 |exact| + 2 SE;
draws go on until the first holds, up to 8 times as many (100 times where all losses are known), else the row is
undecided. `error` is the root of the mean squared error by the time in which the first form makes 90 steps of 64
images, over |exact|; among others the time is that of a whole step with pathwise ranges.

Run:  python benchmarks/estimators.py [--pairs digits patches] [--draws 200] [--json FILE]      (20 minutes on 2 cores)
"""

import argparse
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import made_ready
from rich.console import Console
from rich.table import Table
from torch import Tensor

import kdsearch as kd
from kdsearch.augment.policy import LOW_START
from kdsearch.core.maths import generator
from kdsearch.core.values import Draw
from kdsearch.data.batches import batches_in_order
from kdsearch.data.images import photographs
from kdsearch.distill.estimators import GATES, Sample, endpoint, flipped
from kdsearch.losses.objectives import TST, weighted_sum
from kdsearch.study.run import run_trial

GATE_IMAGES, RANGE_IMAGES, STEPS = 64, 256, 90
MOST, MOST_KNOWN = 8, 100  # times as many draws, at most, where each runs the networks and where losses are known


@dataclass(frozen=True)
class Row:
    """One number of a policy, one estimator."""

    pair: str
    number: str
    operation: str
    estimator: str
    exact: float  # nats per unit of the logit, a or b
    exact_se: float
    bias: float
    bias_se: float
    deviation: float  # of one step
    sign_agrees: bool | None  # None: the exact one is within 2 standard errors of 0
    ms: float  # of one step, both networks included
    draws: int
    verdict: str
    error: float = math.nan


@dataclass(frozen=True)
class Pair:
    """Two trained networks and real images."""

    name: str
    teacher: Callable[[Tensor], Tensor]
    student: Callable[[Tensor], Tensor]
    images: Tensor
    target: Tensor
    limits: dict[str, float | None]
    per_image: int

    def loss(self, images: Tensor, rows: Tensor) -> Tensor:
        return weighted_sum(TST, self.student(images), self.teacher(images), self.target[rows])

    @torch.no_grad()
    def losses(self, draw: Draw, rows: Tensor) -> Tensor:
        return self.loss(kd.operations.apply(draw, self.images[rows]).images, rows)

    def sample(self, draw: Draw, rows: Tensor, pixels: bool, magnitudes: Tensor | None = None) -> "Seen":
        """What a policy step knows; with `pixels` also the gradient of the images, as a step with ranges has it."""
        view = kd.operations.apply(draw, self.images[rows], magnitudes).images
        seen = view.detach().requires_grad_(pixels)
        loss = self.loss(seen, rows)
        by_pixel = torch.autograd.grad(loss.sum(), seen)[0] if pixels else torch.zeros(())
        known = (draw, loss.detach(), lambda other, index: self.losses(other, rows[index]))
        return Seen(*known, images=self.images[rows], seen=seen.detach(), by_pixel=by_pixel, view=view)


@dataclass(frozen=True, kw_only=True)
class Seen(Sample):
    """A sample with its images."""

    images: Tensor
    seen: Tensor
    by_pixel: Tensor  # derivative of each image's loss by what was seen
    view: Tensor  # what was seen, with its gradient to the magnitudes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in arguments.pairs:
        pair = PAIRS[name]()
        for part in (gates_alone, gates_among, ranges_alone, ranges_among):
            for group in part(pair, arguments.draws):
                rows += with_errors(group)
                print(*(f"{r.number} {r.operation} {r.estimator}: {r.verdict}" for r in group), sep="\n", flush=True)
                if arguments.json:  # after each, as it takes long
                    arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    show(rows)


def digits() -> Pair:
    ready = made_ready()
    student = run_trial(ready, None, policy=ready.policy(ready.space.settings()), seed=1).student
    assert student is not None
    batch = next(batches_in_order(kd.data.digits()[0], RANGE_IMAGES))
    return _pair("digits", ready.teacher.network, student, batch, dict(ready.space.limits), 4)


def patches() -> Pair:
    """A teacher and a student on patches of scikit-learn's two photographs."""
    random = generator("patches")
    images, labels = [], []
    for photo, picture in enumerate(photographs()):
        small = torch.nn.functional.avg_pool2d(picture, 2)
        height, width = small.shape[-2] - 16, small.shape[-1] - 16
        for y, x in zip(torch.randint(height, (2000,), generator=random).tolist(),
                        torch.randint(width, (2000,), generator=random).tolist(), strict=True):  # fmt: skip
            images.append(small[:, y : y + 16, x : x + 16])
            labels.append(4 * photo + 2 * (2 * y >= height) + (2 * x >= width))
    order = torch.randperm(len(images), generator=random)
    data = kd.data.ArrayData(torch.stack(images)[order], torch.tensor(labels)[order])
    limits = {name: op.limit for name, op in kd.operations.TABLE.items()}
    networks = []
    for width, augmented in ((24, False), (6, True)):
        torch.manual_seed(width)
        network = kd.networks.small_convnet(width, classes=8, channels=3)
        optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
        policy = kd.Policy(limits, 2)
        for batch in kd.data.shuffled(data.subset(torch.arange(3000)), 64, 400, "patches", width):
            logits = network(policy(batch.images, random) if augmented else batch.images)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(logits, batch.target).backward()
            optimizer.step()
        networks.append(network.eval())
        task = kd.Classification.of(8)
        right = kd.evaluate(network, data.subset(torch.arange(3000, 4000)), task, 256, "cpu").value
        print(f"patches: network of width {width} is right on {right:.1%} of held-out patches")
    batch = next(batches_in_order(data, RANGE_IMAGES))
    teacher, student = networks
    return _pair("patches", teacher, student, batch, limits, 2)


PAIRS: dict[str, Callable[[], Pair]] = {"digits": digits, "patches": patches}


def _pair(name: str, teacher: torch.nn.Module, student: torch.nn.Module, batch: kd.Batch, *rest: Any) -> Pair:
    for network in (teacher, student):
        network.eval().requires_grad_(False)
    return Pair(name, teacher, student, batch.images, batch.target, *rest)


# Gates


def straight_through(sample: Seen, probability: Tensor) -> Tensor:
    """`p (1 - p) <dloss/dpixels, image with - image without>`: the loss taken as linear between the two images.

    Biased where it is not. Costs n more augmentations of each image, and no network.

    Reference:
        Bengio et al., Estimating or propagating gradients through stochastic neurons, 2013; the images with and without
        in place of a scaled magnitude, as the sign of the latter's gradient is often wrong for geometry
    """
    size, n = sample.draw.chosen.shape
    rows = torch.arange(size).repeat_interleave(n)
    slots = torch.arange(n).repeat(size)
    other = kd.operations.apply(flipped(sample.draw, rows, slots), sample.images[rows]).images
    here = sample.draw.gates.flatten().to(other.device)
    change = (sample.seen[rows] - other).mul(sample.by_pixel[rows]).flatten(1).sum(1)
    effect = torch.where(here, change, -change).view(size, n)
    return probability * (1 - probability) * effect.cpu()


def flip_one(sample: Sample, probability: Tensor, random: torch.Generator) -> Tensor:
    """`flip` for one drawn operation of each image, chosen at random, n times as heavy."""
    size, n = sample.draw.chosen.shape
    rows, slots = torch.arange(size), torch.randint(n, (size,), generator=random)
    other = sample.loss_of(flipped(sample.draw, rows, slots), rows)
    change = (sample.loss - other).cpu().double()
    p = probability[rows, slots]
    derivative = n * p * (1 - p) * torch.where(sample.draw.gates[rows, slots], change, -change)
    return torch.zeros_like(probability).index_put_((rows, slots), derivative)


FORMS: Mapping[str, Callable[..., Tensor]] = {
    **GATES,
    "flip one": partial(flip_one, random=generator("flip one")),
    "straight-through": straight_through,
}


class Common:
    """Signs, magnitudes and noise of each image and operation, the same in every draw."""

    def __init__(self, policy: kd.Policy, size: int) -> None:
        every = kd.Policy(dict(zip(policy.operations, [v or None for v in policy.limit.tolist()], strict=True)),
                          len(policy.operations))  # fmt: skip
        self.policy, self.all = policy, every.draw(size, generator("common"))

    def draw(self, chosen: Tensor, gates: Tensor, rows: Tensor) -> Draw:
        part = self.all.rows(rows)
        index = torch.arange(len(rows))[:, None]
        values = {f: getattr(part, f)[index, chosen] for f in ("signs", "uniforms", "magnitudes")}
        return replace(part, chosen=chosen, gates=gates, **values)


def gates_alone(pair: Pair, draws: int) -> Iterator[list[Row]]:
    rows = torch.arange(GATE_IMAGES)
    for name, limit in pair.limits.items():
        for p in (0.1, 0.5, 0.9):
            policy = kd.Policy({name: limit}, 1, probability=p)
            common, chosen = Common(policy, len(rows)), torch.zeros(len(rows), 1, dtype=torch.int64)
            with torch.no_grad():
                off, on = (
                    pair.losses(common.draw(chosen, torch.full_like(chosen, gate, dtype=torch.bool), rows), rows)
                    for gate in (False, True)
                )
            exact = p * (1 - p) * (on - off).double().mean()
            known = Known({(): off, (0,): on})
            yield _gates(pair, policy, common, exact[None], known, f"gate alone, p {p}", draws)


def gates_among(pair: Pair, draws: int) -> Iterator[list[Row]]:
    policy = kd.Policy(pair.limits, pair.per_image)
    common = Common(policy, GATE_IMAGES)
    exact, known = enumerated(pair, policy, common)
    yield _gates(pair, policy, common, exact, known, f"gate among {len(pair.limits)}", draws)


@torch.no_grad()
def enumerated(pair: Pair, policy: kd.Policy, common: Common) -> tuple[Tensor, "Known"]:
    """Derivative of the expected loss by each logit, over all subsets and all their gates, and all losses."""
    count, n = len(policy.operations), policy.operations_per_image
    rows, losses = torch.arange(GATE_IMAGES), {}
    for size in range(n + 1):
        for applied in itertools.combinations(range(count), size):
            rest = [i for i in range(count) if i not in applied][: n - size]
            chosen = torch.tensor(sorted([*applied, *rest]))
            gates = torch.tensor([i in applied for i in chosen.tolist()])
            draw = common.draw(chosen.expand(len(rows), n), gates.expand(len(rows), n), rows)
            losses[applied] = pair.losses(draw, rows)
    means = {applied: values.double().mean().item() for applied, values in losses.items()}
    p = policy.probability.tolist()
    derivative = torch.zeros(count, dtype=torch.float64)
    for subset in itertools.combinations(range(count), n):
        for gates_ in itertools.product((False, True), repeat=n):
            applied = tuple(i for i, gate in zip(subset, gates_, strict=True) if gate)
            weight = math.prod(p[i] if gate else 1 - p[i] for i, gate in zip(subset, gates_, strict=True))
            for i, gate in zip(subset, gates_, strict=True):  # d log weight / d logit = gate - p
                derivative[i] += weight * means[applied] * (gate - p[i])
    return derivative / math.comb(count, n), Known(losses)


class Known:
    """The losses of all images under all sets of applied operations, so that further draws cost nothing."""

    def __init__(self, losses: dict[tuple[int, ...], Tensor]) -> None:
        keys = torch.tensor([sum(1 << i for i in applied) for applied in losses])
        self.keys, order = keys.sort()
        self.losses = torch.stack(list(losses.values()))[order]  # (sets, images)

    def __call__(self, draw: Draw, rows: Tensor) -> Tensor:
        key = ((1 << draw.chosen) * draw.gates).sum(1)
        return self.losses[torch.searchsorted(self.keys, key), rows]


def _gates(
    pair: Pair, policy: kd.Policy, common: Common, exact: Tensor, known: Known, number: str, draws: int
) -> list[Row]:
    among, found = len(policy.operations) > 1, []
    names = [name for name in FORMS if among or name != "flip one"]
    for name in names:
        random, needs_pixels = generator("gates", number, name), name == "straight-through"
        step = partial(_gate_step, pair, policy, common, known, name, among or needs_pixels, random)
        found.append(_measure(step, exact, torch.zeros_like(exact), draws, MOST if needs_pixels else MOST_KNOWN))
    return _rows(pair, number, policy.operations, names, exact, torch.zeros_like(exact), found)


def _gate_step(
    pair: Pair,
    policy: kd.Policy,
    common: Common,
    known: Known,
    form: str,
    pixels: bool,  # among others, a step has ranges to learn as well
    random: torch.Generator,
    cheap: bool,
) -> Tensor:
    """One estimate of the derivatives by all logits; `cheap` looks losses up where the estimator asks for no more."""
    size = GATE_IMAGES
    rows, drawn = torch.arange(size), policy.draw(size, random)
    draw = common.draw(drawn.chosen, drawn.gates, rows)
    if cheap and form != "straight-through":
        sample = Sample(draw, known(draw, rows), known)
    else:
        sample = pair.sample(draw, rows, pixels)
    derivative = FORMS[form](sample, policy.probability.detach()[draw.chosen])
    total = torch.zeros(len(policy.operations), dtype=torch.float64)
    return total.index_add_(0, draw.chosen.flatten(), derivative.flatten() / size)


# Ranges


def ranges_alone(pair: Pair, draws: int) -> Iterator[list[Row]]:
    for name, limit in pair.limits.items():
        if limit:
            yield from _ranges(pair, kd.Policy({name: limit}, 1), name, "alone", draws)


def ranges_among(pair: Pair, draws: int) -> Iterator[list[Row]]:
    policy = kd.Policy(pair.limits, pair.per_image)
    for name, limit in pair.limits.items():
        if limit:
            yield from _ranges(pair, policy, name, f"among {len(pair.limits)}", draws)


def _open(policy: kd.Policy, i: int, size: int, random: torch.Generator) -> tuple[Draw, Tensor]:
    """A draw in which every image got operation i with an open gate, and its slot (size, n)."""
    count, n = len(policy.operations), policy.operations_per_image
    order = torch.rand(size, count, generator=random)
    order[:, i] = 2.0
    chosen = order.topk(n, dim=1).indices.sort(1).values
    every = kd.Policy(dict(zip(policy.operations, [v or None for v in policy.limit.tolist()], strict=True)), count)
    draw = every.draw(size, random)
    index = torch.arange(size)[:, None]
    slot = chosen == i
    values = {f: getattr(draw, f)[index, chosen] for f in ("signs", "uniforms", "magnitudes", "gates")}
    return replace(draw, chosen=chosen, **{**values, "gates": values["gates"] | slot}), slot


def _at(draw: Draw, slot: Tensor, low: float, high: float) -> Draw:
    """The draw with the magnitudes of a slot from another range."""
    magnitudes = torch.where(slot, draw.signs * (low + (high - low) * draw.uniforms[..., 0]), draw.magnitudes)
    return replace(draw, magnitudes=magnitudes)


def _range(limit: float, a: float, b: float) -> tuple[float, float]:
    high = limit / (1 + math.exp(-a))
    return high / (1 + math.exp(-b)), high


def _ranges(pair: Pair, policy: kd.Policy, name: str, setting: str, draws: int) -> Iterator[list[Row]]:
    i, limit = policy.operations.index(name), pair.limits[name] or 0.0
    share = policy.operations_per_image / len(policy.operations) * (0.5 if setting != "alone" else 1.0)
    exact, error = differences(pair, policy, i, limit, share)
    estimators = ["pathwise", "endpoint"] if kd.operations.TABLE[name].gradient == "exact" else ["endpoint"]
    found = []
    for estimator in estimators:
        random = generator("ranges", setting, name, estimator)
        step = partial(_range_step, pair, policy, i, limit, share, estimator, random)
        found.append(_measure(step, exact, error, draws, MOST))
    for k, number in enumerate(("a", "b")):
        chosen = [(ms, values[:, k : k + 1]) for ms, values in found]
        title = f"{number} {setting}"
        yield _rows(pair, title, [name], estimators, exact[k : k + 1], error[k : k + 1], chosen)


def _range_step(
    pair: Pair, policy: kd.Policy, i: int, limit: float, share: float, estimator: str, random: torch.Generator, _: bool
) -> Tensor:
    """One estimate of the derivatives by a and b."""
    rows = torch.randperm(RANGE_IMAGES, generator=random)[:64]
    draw, slot = _open(policy, i, 64, random)
    low, high = _range(limit, 0.0, LOW_START)
    if estimator == "pathwise":
        live = draw.magnitudes.clone().requires_grad_()
        sample = pair.sample(draw, rows, True, live)
        sample.view.backward(sample.by_pixel)
        assert live.grad is not None
        by, u = (live.grad * draw.signs)[slot], draw.uniforms[..., 0][slot]
        by_low, by_high = (by * (1 - u)).mean(), (by * u).mean()
    else:
        sample = pair.sample(draw, rows, False)
        lows, highs = (torch.full(slot.shape, end, dtype=torch.float64) for end in (low, high))
        by_low, by_high = (by[slot].mean() for by in endpoint(sample, lows, highs, slot))
    part = 1 / (1 + math.exp(-LOW_START))
    by_a = 0.5 * high * (by_high + part * by_low)  # d high / d a = high (1 - sigmoid(a))
    return share * torch.stack([by_a, high * part * (1 - part) * by_low])


@torch.no_grad()
def differences(pair: Pair, policy: kd.Policy, i: int, limit: float, share: float) -> tuple[Tensor, Tensor]:
    """Derivatives by a and b, with standard errors over 8 replicates of 8 stratified draws, or more."""
    rows, h, strata = torch.arange(RANGE_IMAGES), (0.1, 0.2), 8
    values: list[Tensor] = []
    while len(values) < 64:
        for replicate in range(len(values), len(values) + 8):
            random, total = generator("differences", i, replicate), torch.zeros(2, dtype=torch.float64)
            start = torch.rand(RANGE_IMAGES, 1, generator=random, dtype=torch.float64)
            for k in range(strata):
                draw, slot = _open(policy, i, RANGE_IMAGES, random)
                u = draw.uniforms.clone()
                u[..., 0] = torch.where(slot, ((start + k) / strata).expand_as(slot), u[..., 0])
                draw = replace(draw, uniforms=u)
                for which in range(2):
                    ends = []
                    for step in (h[which], -h[which]):
                        a, b = (step, LOW_START) if which == 0 else (0.0, LOW_START + step)
                        moved = _at(draw, slot, *_range(limit, a, b))
                        ends.append(pair.loss(kd.operations.apply(moved, pair.images).images, rows).double().mean())
                    total[which] += (ends[0] - ends[1]) / (2 * h[which]) / strata
            values.append(share * total)
        stacked = torch.stack(values)
        error = stacked.std(0) / len(values) ** 0.5
        if (error <= 0.05 * stacked.mean(0).abs()).all():
            break
    return stacked.mean(0), error


# Verdicts


def _measure(
    step: Callable[[bool], Tensor], exact: Tensor, exact_se: Tensor, draws: int, most: int
) -> tuple[float, Tensor]:
    """Milliseconds of a step and values (draws, k) of steps, until each standard error is at most .1 |exact|.

    The first draws are timed and run the networks; further ones look losses up where all of them are known.
    """
    times, values = list[float](), list[Tensor]()
    while len(values) < draws * most:
        for _ in range(draws):
            start = time.perf_counter()
            values.append(step(len(times) >= draws))
            times.append(time.perf_counter() - start)
        error = (torch.stack(values).var(0) / len(values) + exact_se**2).sqrt()
        if (error <= 0.1 * exact.abs()).all():
            break
    return 1000 * sorted(times[:draws])[draws // 2], torch.stack(values)


def _rows(
    pair: Pair,
    number: str,
    operations: Sequence[str],
    estimators: list[str],
    exact: Tensor,
    exact_se: Tensor,
    found: list[tuple[float, Tensor]],
) -> list[Row]:
    rows = []
    for k, operation in enumerate(operations):
        for estimator, (ms, values) in zip(estimators, found, strict=True):
            mean, deviation = values[:, k].mean(), values[:, k].std()
            truth, error = exact[k], exact_se[k]
            se = (deviation**2 / len(values) + error**2).sqrt()
            bias = mean - truth
            verdict = "offered" if bias.abs() <= 0.2 * truth.abs() + 2 * se else "biased"
            rows.append(
                Row(
                    pair=pair.name, number=number, operation=operation, estimator=estimator, exact=truth.item(),
                    exact_se=error.item(), bias=bias.item(), bias_se=se.item(), deviation=deviation.item(),
                    sign_agrees=bool(mean * truth > 0) if truth.abs() > 2 * error else None,
                    ms=ms, draws=len(values),
                    verdict=verdict if se <= 0.1 * truth.abs() or verdict == "biased" else "undecided",
                )
            )  # fmt: skip
    return rows


def with_errors(rows: list[Row]) -> list[Row]:
    """Root mean squared errors at equal time, over |exact|; the rows are of the same numbers."""
    first = {row.operation: row.ms for row in reversed(rows)}
    out = []
    for row in rows:
        bias = max(0.0, row.bias**2 - row.bias_se**2)
        steps = STEPS * first[row.operation] / row.ms
        out.append(replace(row, error=(bias + row.deviation**2 / steps) ** 0.5 / (abs(row.exact) or math.nan)))
    return out


def show(rows: list[Row]) -> None:
    """A line per number and operation, a group of cells per estimator."""
    table = Table("pair", "number", "operation", "exact, nats", "estimator", "bias/|exact|", "deviation/|exact|",
                  "sign", "ms", "draws", "error", "verdict", box=None)  # fmt: skip
    for row in rows:
        scale = abs(row.exact) or math.nan
        table.add_row(
            row.pair, row.number, row.operation, f"{row.exact:+.4f}", row.estimator,
            f"{row.bias / scale:+.2f} ± {row.bias_se / scale:.2f}", f"{row.deviation / scale:.2f}",
            {True: "agrees", False: "differs", None: "-"}[row.sign_agrees], f"{row.ms:.0f}", str(row.draws),
            f"{row.error:.3f}", row.verdict,
        )  # fmt: skip
    Console(width=170, highlight=False).print(table)
    kinds: dict[str, str | tuple[str, ...]] = {"gates": "gate", "ranges": ("a ", "b ")}
    for kind, prefix in kinds.items():
        some = [row for row in rows if row.number.startswith(prefix)]
        for estimator in dict.fromkeys(row.estimator for row in some):
            of: dict[tuple[str, str], set[str]] = {}
            for row in some:
                if row.estimator == estimator:
                    of.setdefault((row.pair, row.operation), set()).add(row.verdict)
            named = {v: [" ".join(key) for key, seen in of.items() if v in seen] for v in ("biased", "undecided")}
            offered = sum(seen == {"offered"} for seen in of.values())
            print(f"{kind}, {estimator}: offered for {offered} of {len(of)}", end="")
            print(*(f"; {verdict} somewhere: {', '.join(names)}" for verdict, names in named.items() if names), sep="")


if __name__ == "__main__":
    main()
