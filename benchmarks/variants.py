"""Does learning pay over a good base, and which learning? Rows of variants.toml, paired seeds, test images.

The file has second views of which nothing is learned, and policies that learn beside a student: what they seek, what
the teacher may lose, how they start, how far they may go, how they are estimated. Where gates are flipped and ranges
learn by the pixels or from both ends, what is subtracted from the loss of an image whatever is drawn changes nothing:
an objective as a difference to the base view of the same image is the objective, and has no row.

Rows are written to the file one by one; those that are there are not run again. Inherited: inherited competence on the
test images; differences are paired by seed, with 95 % t intervals. Seconds of `frozen` are those of both runs.

Run:  python benchmarks/variants.py [--study digits] [--steps 300] [--seeds 600 10] [--rows learned,former,...]
          [--minus trivial,rand_augment] [--device cpu] [--show] [--json FILE]    (digits: about an hour on one core)
"""

import argparse
import json
import math
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal
from unittest.mock import patch

import torch
from base import mean_and_error
from common import accuracy, interval, made_ready, options_of_rows, read_rows, rows_of
from pydantic import BaseModel, ConfigDict, TypeAdapter
from rich.console import Console
from rich.table import Table
from spread import GROUPS
from torch import Tensor, nn

import kdsearch as kd
from kdsearch.augment.bases import Base
from kdsearch.augment.presets import rand_augment
from kdsearch.core.values import Draw, Outputs, ViewBatch
from kdsearch.losses.loss import Loss
from kdsearch.losses.objectives import TABLE, Objective, student_wrong, teacher_right
from kdsearch.probe.shifts import VERSION
from kdsearch.study.ready import Ready
from kdsearch.study.run import run_trial
from kdsearch.study.space import Settings
from kdsearch.study.study import load_study

LEAST = 0.1  # probability, of a policy that is kept varied
WARM_UP = 0.1
TST = {"teacher_right": 1.0, "student_wrong": 1.0}
Switch = float | Literal[False]


class Variant(BaseModel):
    """A row of the file: how a policy starts, and how it learns unless it is fixed."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    about: str
    fixed: Literal["", "identity", "twice", "trivial", "rand_augment", "geometry", "start"] = ""
    how: Literal["learned", "free", "groups", "varied", "ranges held", "whole batch", "frozen"] = "learned"
    operations_per_image: int | Literal["all"] = "all"
    probability: float = 0.2
    extent: float = 0.5
    floor: Switch = 1.0
    prior_strength: Switch = 0.3
    flips: int | Literal[False] = 4
    gates: str = "flip"
    interval: int = 3
    learning_rate: float = 0.1
    objective: dict[str, float] = TST

    def settings(self, ready: Ready) -> Settings:
        """Of a trial."""
        numbers = self.model_dump(exclude={"about", "fixed", "how", "gates"})
        off = {name: None for name in numbers if numbers[name] is False}
        count = len(ready.space.limits)
        n = count if self.operations_per_image == "all" else min(self.operations_per_image, count)
        return replace(ready.space.settings(), **{**numbers, **off, "operations_per_image": n}, warm_up=WARM_UP)


FILE = Path(__file__).with_suffix(".toml")
VARIANTS = TypeAdapter(dict[str, Variant]).validate_python(tomllib.loads(FILE.read_text()))


def student_wrong_capped(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    return student_wrong(student, teacher, target).clamp(max=2 * math.log(student.shape[1]))


def student_loss(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    return -teacher_right(teacher, student, target)


TERMS = {term.__name__: Objective(term.__name__, term, "", "", "") for term in (student_wrong_capped, student_loss)}
"""Terms that are known while a row is trained, and no longer."""


def main() -> None:
    rows = list(VARIANTS)
    parser = options_of_rows(__doc__, names_of_rows, seeds=(600, 10), rows=rows, minus="trivial,rand_augment")
    parser.add_argument("--device", help="the study's own unless given")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    study = load_study(arguments.study)[0]
    steps = arguments.steps or study.budget.epochs * study.budget.steps
    if steps % (epochs := study.budget.epochs):
        raise SystemExit(f"--steps {steps}: allowed: multiples of the study's {epochs} epochs")
    budget = replace(study.budget, steps=steps // epochs)
    study = replace(study, budget=budget, device=arguments.device or study.device)

    def run(asked: Sequence[tuple[str, int]]) -> Iterator[dict]:
        return run_rows(made_ready(study), steps, asked, arguments.json)

    show(rows_of(arguments, study.name, steps, run), arguments.rows, arguments.minus)


def names_of_rows(text: str) -> list[str]:
    """The names after commas, each that of a row."""
    names = text.split(",")
    if unknown := [name for name in names if name not in VARIANTS]:
        raise argparse.ArgumentTypeError(f"row {unknown[0]!r}; allowed: {', '.join(VARIANTS)}")
    return names


def run_rows(ready: Ready, steps: int, asked: Sequence[tuple[str, int]], file: Path | None) -> Iterator[dict]:
    """The rows that a file does not have yet, by name and seed; each is printed and added to it."""
    assert ready.study.test is not None
    ruler = kd.Ruler(ready.teacher, ready.study.test, ready.task, known=ready.space.limits, device=ready.device)
    ready = replace(ready, ruler=None)
    for name, seed in asked:
        fixed = {"study": ready.study.name, "steps": steps, "seed": seed, "row": name, "shifts": VERSION}
        if any(fixed.items() <= row.items() for row in read_rows(file)):
            continue
        start = time.process_time()
        with patch.dict(TABLE, TERMS):
            student, policy = train(ready, name, seed)
        seconds = time.process_time() - start
        found = ruler.measure(student)
        row = fixed | {
            "clean": accuracy(ready, student),
            "inherited": 100 * found.inherited,
            "common": 100 * found.common,
            "held_out": 100 * found.held_out,
            "seconds": seconds,  # of the CPU
            "rates": dict(zip(policy.operations, policy.rate.tolist(), strict=True))
            if isinstance(policy, kd.Policy) and not VARIANTS[name].fixed
            else {},
        }
        print({key: value for key, value in row.items() if key != "rates"}, flush=True)
        if file:
            with file.open("a") as lines:
                lines.write(json.dumps(row) + "\n")
        yield row


def train(ready: Ready, name: str, seed: int) -> tuple[nn.Module, Base | None]:
    """One student, and the policy that it ended with."""
    policy, learns = second_view(ready, name)
    if VARIANTS[name].how == "frozen":
        assert isinstance(policy, kd.Policy)
        run(ready, name, seed + 1, policy, learns)
        policy, learns = kd.Policy.from_spec(policy.freeze()), None
    return run(ready, name, seed, policy, learns), policy


def run(ready: Ready, name: str, seed: int, policy: Base | None, learns: kd.PolicySteps | None) -> nn.Module:
    """A student."""
    variant = VARIANTS[name]

    def keep_varied(record: object) -> None:
        if variant.how == "varied" and isinstance(policy, kd.Policy):
            with torch.no_grad():
                policy.logit.clamp_(min=math.log(LEAST / (1 - LEAST)))

    if variant.how == "free":
        assert isinstance(policy, kd.Policy)
        watch = Loss("free gates", FreeGates(policy, ready, ready.policy_steps(variant.settings(ready))), weight=0.0)
        ready = replace(ready, study=replace(ready.study, loss=(*ready.study.losses, watch)))
    student = run_trial(
        ready, None, policy=policy, policy_steps=learns, run=variant.fixed or name, seed=seed, on_record=keep_varied
    ).student
    assert student is not None
    return student


def second_view(ready: Ready, name: str) -> tuple[Base | None, kd.PolicySteps | None]:
    """The policy of a second view, and how it learns."""
    variant, limits = VARIANTS[name], ready.space.limits
    settings = variant.settings(ready)
    if variant.fixed == "geometry":
        return rand_augment(
            {name: limits[name] for name in GROUPS["geometry"] if name in limits}, fill=ready.space.fill
        ), None
    if variant.fixed:
        return ready.reference(variant.fixed, settings), None
    policy = ready.policy(settings)
    if variant.how == "groups":
        tie(policy)
    if variant.how == "ranges held":
        for parameter in (policy.a, policy.b):
            parameter.register_hook(torch.zeros_like)
    if variant.how == "free":
        return policy, None
    learns = replace(ready.policy_steps(settings), gates=variant.gates)
    return policy, replace(learns, batch=ready.study.budget.batch) if variant.how == "whole batch" else learns


class FreeGates:
    """Told each student step as a loss of no weight: the probabilities learn of a policy that draws all operations.

    What an operation adds is a slope of `free_slope`, of the objective in training mode; `free.py` measures it.
    """

    def __init__(self, policy: kd.Policy, ready: Ready, steps: kd.PolicySteps) -> None:
        budget, self.steps = ready.study.budget, steps
        self.policy, self.clean, self.task = policy, ready.clean.loss, ready.task
        self.count, self.total, self.dual = 0, budget.epochs * budget.steps, 0.0
        self.adam = torch.optim.Adam([policy.logit], lr=self.steps.learning_rate)

    def __call__(self, student: Outputs, teacher: Outputs, views: ViewBatch) -> Tensor:
        self.count += 1
        nothing = student.logits.new_zeros(len(views))
        if self.count <= self.steps.warm_up * self.total or views.draw is None:
            return nothing
        size, policy = len(views) // 2, self.policy
        with torch.no_grad():
            ce = self.task.supervised(teacher, views.target)
            aim = self.task.objective(TST, student, teacher, views.target) + self.dual * ce
            p = policy.probability
            slope = free_slope(aim, views.draw, p)
            violation = (ce[size:].mean() - self.clean).item() - (self.steps.floor or 0.0)
            self.dual = max(0.0, self.dual + self.steps.floor_rate / self.steps.interval * violation)
        for group in self.adam.param_groups:
            group["lr"] = self.steps.learning_rate * 0.5 * (1 + math.cos(math.pi * self.count / self.total))
        self.adam.zero_grad()
        with torch.enable_grad():
            prior = (self.steps.prior_strength or 0.0) * policy.prior_loss()
            (prior + (p * (1 - p) * slope * policy.logit).sum()).backward()
        self.adam.step()
        return nothing


def free_slope(aim: Tensor, draw: Draw, probability: Tensor) -> Tensor:
    """What each operation adds to an objective, (S,), over the other decisions of a batch of B images.

    The objective of the second views, less that of the base views by a fitted coefficient, is regressed on all gates at
    once.

    Args:
        aim: (2 B,), of the base views and then of the second views.
        draw: Of the second views.
        probability: (S,) of the gates.
    """
    base, second = aim.cpu().double().chunk(2)
    gates = draw.gates.double() - probability[draw.chosen]
    gates = gates.new_zeros(len(draw), len(probability)).scatter(1, draw.chosen, gates)
    known = torch.cat([gates, (base - base.mean())[:, None]], 1)
    ridge = 1e-3 * len(draw) * torch.eye(known.shape[1]).to(known)
    return torch.linalg.solve(known.T @ known + ridge, known.T @ (second - second.mean()))[:-1]


def tie(policy: kd.Policy) -> None:
    """One gradient for the operations of a group, which start alike and so stay alike."""
    group = {name: kind for kind, names in GROUPS.items() for name in names}
    kinds = [group[name] for name in policy.operations]
    ranges = [kinds[i] for i in policy.learned.tolist()]
    for parameter, names in ((policy.logit, kinds), (policy.a, ranges), (policy.b, ranges)):
        order = list(dict.fromkeys(names))
        place = torch.tensor([order.index(kind) for kind in names])
        share = nn.functional.one_hot(place, len(order)).double()
        mean = share / share.sum(0) @ share.T  # of each group, (S, S)
        parameter.register_hook(lambda gradient, mean=mean: mean.to(gradient) @ gradient)


def show(rows: list[dict], names: Sequence[str], minus: Sequence[str]) -> None:
    """Means of the named rows with standard errors over seeds, and paired differences."""
    by_row: dict[str, dict[int, dict]] = {}
    for row in rows:
        by_row.setdefault(row["row"], {})[row["seed"]] = row
    if not by_row:
        print("no rows")
        return
    heads = [f"{what}\n- {other}" for other in minus for what in ("clean", "inherited")]
    table = Table("second view", "seeds", "clean", "inherited", "sec", *heads, box=None, padding=(0, 1, 0, 0))
    for name in (name for name in names if name in by_row):
        mine = by_row[name]
        values = [mean_and_error([row[key] for row in mine.values()]) for key in ("clean", "inherited")]
        seconds = sum(row["seconds"] for row in mine.values()) / len(mine)
        cells = []
        for other in minus:
            theirs = by_row.get(other, {})
            both = sorted({*mine} & {*theirs}) if other != name else []
            for key in ("clean", "inherited"):
                cells.append(interval([mine[seed][key] - theirs[seed][key] for seed in both], 1) if both else "")
        table.add_row(name, f"{len(mine)}", *values, f"{seconds:.0f}", *cells)
    console = Console(width=150, highlight=False)
    console.print(
        f"\n{rows[0]['study']}, {rows[0]['steps']} steps; test images, %, mean ± standard error over seeds; "
        "differences paired by seed, 95 % t intervals; sec: of the CPU"
    )
    console.print(table)


if __name__ == "__main__":
    main()
