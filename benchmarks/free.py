"""Is what student steps tell of a policy for nothing the derivative that flipped gates give? Slope, correlation, noise.

Every student step holds the objective of each image under a known draw. `variants.py` has a row, `free`, whose
probabilities learn from it by regression (`free_slope`); here that regression is compared with flips, for the sum of
TST and for the gap (CE of the student less CE of the teacher, each at most 2 log K). A student is trained as that row
trains it, over the automatic base view with all operations drawn at .2 each, but no probability learns. After 10 %,
50 % and 100 % of its steps it is held still, and for each operation is measured what it adds to the objective:

    flip    with the operation less without it, student in evaluation mode, all gates of each of `--images` training
            images as a policy step flips them: the reference
    free    the mean of `free_slope` over `--batches` student steps with the student's weights as they are, in training
            mode: BatchNorm by batch, base views and second views in one

Over operations free is regressed on flip, with an intercept. The table has:

    slope, least       of that, the mean over students and the smallest; under .8 it cannot be the default
    correlation        of that
    evaluation mode    the slope of the same regression on the same views in evaluation mode: the difference is what
                       training mode does, and how far this is from 1 the rest
    noise              the deviation of one free step over that of one step of flips, all gates flipped, of as many
                       images: the median over operations
    error              of the reference: standard errors over the spread of operations, root mean squares; its square
                       is the share by which slopes are too small

Run:  python benchmarks/free.py [--study digits] [--steps 300] [--seeds 5] [--images 8192] [--batches 500] [--json FILE]
          (6 minutes for digits on one core)
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from unittest.mock import patch

import torch
from common import interval, kept, made_ready, options
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from variants import TERMS, TST, VARIANTS, free_slope, second_view

import kdsearch as kd
from kdsearch.augment.operations import apply
from kdsearch.core.maths import derive_seed, generator, own_generators, seed_everything
from kdsearch.core.values import Draw, Outputs, ViewBatch
from kdsearch.distill.estimators import Sample, flip, flipped
from kdsearch.distill.phase import OptimizerFactory
from kdsearch.distill.steps import BaseDraw, view_base
from kdsearch.losses.loss import Loss
from kdsearch.losses.objectives import TABLE
from kdsearch.networks.outputs import run_network
from kdsearch.study.ready import Ready
from kdsearch.study.study import load_study

EPOCHS = 10
MOMENTS = {1: "early", 5: "middle", 10: "late"}  # epochs after which the student is held still
OBJECTIVES: Mapping[str, Mapping[str, float]] = {"sum": TST, "gap": VARIANTS["gap"].objective}
STILL = partial(torch.optim.SGD, lr=0.0)


def main() -> None:
    parser = options(__doc__, seeds=5)
    parser.add_argument("--study", default="digits", help="a shipped study, or the path of one")
    parser.add_argument("--steps", type=int, help="of each student; the study's own unless given")
    parser.add_argument("--images", type=int, default=8192, help="whose gates are flipped")
    parser.add_argument("--batches", type=int, default=500, help="student steps whose regressions are averaged")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    study = load_study(arguments.study)[0]
    steps = arguments.steps or study.budget.epochs * study.budget.steps
    if steps % EPOCHS:
        raise SystemExit(f"--steps {steps}: allowed: multiples of {EPOCHS}")
    study = replace(study, budget=replace(study.budget, epochs=EPOCHS, steps=steps // EPOCHS))
    ready = replace(made_ready(study), ruler=None)
    rows = run_rows(ready, arguments.seeds, arguments.images, arguments.batches)
    show(study.name, steps, kept(rows, arguments.json))


def run_rows(ready: Ready, seeds: int, images: int, batches: int) -> Iterator[dict]:
    """A row for each seed, moment and objective."""
    for seed in range(seeds):
        policy, _ = second_view(ready, "free")
        assert isinstance(policy, kd.Policy)
        for moment, student in students(ready, policy, seed):
            flips = flips_of(ready, policy, student, images, seed)
            free = Slopes(ready, policy, student)
            free.run(batches, seed)
            for name in OBJECTIVES:
                row = {"study": ready.study.name, "seed": seed, "objective": name, "at": moment}
                parts = flips[name], torch.stack(free.moving[name]), torch.stack(free.still[name])
                yield row | compared(policy.operations, *parts, ready.study.budget.batch)


def students(ready: Ready, policy: kd.Policy, seed: int) -> Iterator[tuple[str, nn.Module]]:
    """A student as a run of this seed trains it, at its moments."""
    with own_generators(ready.device):
        seed_everything(derive_seed(seed, "student"))
        student = ready.student()
    study = ready.study
    distiller = made(ready, policy, student, study.optimizer, seed)
    for record in distiller.run(ready.phase(None), study.train, study.search_validation):
        if record.epoch in MOMENTS:
            yield MOMENTS[record.epoch], student


def made(ready: Ready, policy: kd.Policy, student: nn.Module, optimizer: OptimizerFactory, seed: int) -> kd.Distiller:
    return kd.Distiller(
        ready.teacher,
        student,
        policy,
        ready.task,
        optimizer=optimizer,
        device=ready.device,
        seed=seed,
        precision=ready.study.precision,
        tables=ready.tables,
    )


def flips_of(ready: Ready, policy: kd.Policy, student: nn.Module, images: int, seed: int) -> dict[str, Tensor]:
    """By objective what each operation adds to each image, (images, S), in evaluation mode."""
    still, random, size = copy.deepcopy(student).eval(), generator(seed, "flips"), ready.study.budget.batch
    batches = kd.data.shuffled(ready.study.train, size, -(-images // size), seed, "flips", device=ready.device)
    found = [flip_batch(ready, policy, still, batch, random) for batch in batches]
    return {name: torch.cat([part[name] for part in found]) for name in OBJECTIVES}


@torch.no_grad()
def flip_batch(
    ready: Ready, policy: kd.Policy, student: nn.Module, batch: kd.Batch, random: torch.Generator
) -> dict[str, Tensor]:
    """By objective what each operation adds to each image of a batch, (B, S); as a policy step draws and flips them."""
    size, count, phase = len(batch), len(policy.operations), ready.phase(None)
    draw = policy.draw(size, random)
    if phase.base is not None and phase.views.second_from == "base":
        base = BaseDraw(phase.base, phase.base.draw(size, random))
        if base.draw.operations:
            draw = base.under(draw)
        else:
            batch = replace(batch, images=view_base(batch, base).images)

    def losses(draw: Draw, rows: Tensor) -> dict[str, Tensor]:
        found = []
        for part in torch.arange(len(rows)).split(2 * size):
            view = apply(draw.rows(part), batch.images[rows[part]])
            answers = run_network(student, view.images, "student"), ready.teacher(view.images)
            found.append(objectives(ready, *answers, ready.task.follow(batch.target[rows[part]], view.matrix)))
        return {name: torch.cat([part[name] for part in found]) for name in OBJECTIVES}

    rows = torch.arange(size)
    each, slots = rows.repeat_interleave(count), torch.arange(count).repeat(size)
    here, there = losses(draw, rows), losses(flipped(draw, each, slots), each)
    return {name: added(draw, here[name], there[name], policy.probability) for name in OBJECTIVES}


def added(draw: Draw, here: Tensor, there: Tensor, probability: Tensor) -> Tensor:
    """Loss with less loss without, (B, S), by `flip`, from the losses of a draw and of all that it tries."""
    sample = Sample(draw, here, lambda other, rows: there)
    return flip(sample, probability[draw.chosen]) / (probability * (1 - probability))


class Slopes:
    """Told each student step as a loss of no weight: its regression, and what it were in evaluation mode."""

    def __init__(self, ready: Ready, policy: kd.Policy, student: nn.Module) -> None:
        self.ready, self.policy, self.student = ready, policy, copy.deepcopy(student).eval()
        self.moving: dict[str, list[Tensor]] = {name: [] for name in OBJECTIVES}  # (S,) of each step
        self.still: dict[str, list[Tensor]] = {name: [] for name in OBJECTIVES}

    def run(self, steps: int, seed: int) -> None:
        """Student steps of a copy whose weights stay; its running statistics have no part in training mode."""
        ready = self.ready
        moving = copy.deepcopy(self.student)
        distiller = made(ready, self.policy, moving, STILL, derive_seed(seed, "free"))
        phase = replace(ready.phase(None), epochs=1, steps=steps, losses=(Loss("slopes", self, weight=0.0),))
        for _ in distiller.run(phase, ready.study.train, ready.study.search_validation):
            pass

    @torch.no_grad()
    def __call__(self, student: Outputs, teacher: Outputs, views: ViewBatch) -> Tensor:
        assert views.draw is not None
        still = run_network(self.student, views.images, "student")
        for answers, found in ((student, self.moving), (still, self.still)):
            for name, aim in objectives(self.ready, answers, teacher, views.target).items():
                found[name].append(free_slope(aim, views.draw, self.policy.probability))
        return student.logits.new_zeros(len(views))


def objectives(ready: Ready, student: Outputs, teacher: Outputs, target: Tensor) -> dict[str, Tensor]:
    with patch.dict(TABLE, TERMS):
        return {name: ready.task.objective(weights, student, teacher, target) for name, weights in OBJECTIVES.items()}


def compared(operations: tuple[str, ...], flips: Tensor, free: Tensor, still: Tensor, batch: int) -> dict:
    """Free slopes (steps, S), in training and in evaluation mode, beside flips (images, S)."""
    truth, found = flips.mean(0), free.mean(0)
    noise = free.std(0) / (flips.std(0) / batch**0.5)
    error = (flips.var(0) / len(flips)).mean() / truth.var()
    effects = {name: [round(a, 4), round(b, 4)]
               for name, a, b in zip(operations, truth.tolist(), found.tolist(), strict=True)}  # fmt: skip
    return {
        "slope": slope(truth, found),
        "correlation": torch.corrcoef(torch.stack([truth, found]))[0, 1].item(),
        "evaluation mode": slope(truth, still.mean(0)),
        "noise": noise.median().item(),
        "error": error.sqrt().item(),
        "effects": effects,  # by flips and for nothing, nats
    }


def slope(truth: Tensor, found: Tensor) -> float:
    """Of a line through what was found, over what is true."""
    away = truth - truth.mean()
    return (away @ found / away.square().sum()).item()


def show(study: str, steps: int, rows: list[dict]) -> None:
    """A line for each objective and moment, over the seeds."""
    table = Table("objective", "at", "slope", "least", "correlation", "evaluation mode", "noise", "error", box=None)
    for name in OBJECTIVES:
        for moment in MOMENTS.values():
            mine = [row for row in rows if (row["objective"], row["at"]) == (name, moment)]
            slopes, *others = (
                interval([row[key] for row in mine]) for key in ("slope", "correlation", "evaluation mode")
            )
            noise, error = (sum(row[key] for row in mine) / len(mine) for key in ("noise", "error"))
            least = min(row["slope"] for row in mine)
            table.add_row(name, moment, slopes, f"{least:+.2f}", *others, f"{noise:.1f}", f"{error:.2f}")
    console = Console(width=150, highlight=False)
    seeds = len({row["seed"] for row in rows})
    console.print(f"\n{study}, {steps} steps, {seeds} seeds: means with 95 % t intervals over students")
    console.print(table)


if __name__ == "__main__":
    main()
