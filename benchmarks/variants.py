"""Does learning pay over a good base, and which learning? Variants of the learner, paired seeds, test images.

Rows beside the learned ones: a second draw of the base view (`twice`), TrivialAugment's rule (`trivial`), two
operations at .6 of their limits (`rand`), two geometric ones at the same (`geometry`), and the policies that learn,
before they do (`start_4`, `start_all`, `start_2`). The learned ones:

    default       as a study has it: 4 operations an image, each at .5 at first
    default_floor_1  the same with a floor of 1 nat
    all           all operations drawn, each at .2 at first
    few           the same, 4 gates of an image flipped in a policy step
    capped        few, `student_wrong` at most 2 log K, as the teacher's term is
    gap           few, CE of the student less CE of the teacher, each at most 2 log K
    kl            few, the divergence of the student from the teacher in place of both terms
    entropy       few, the teacher's entropy sought as well, at a weight of 1
    prior_.03     few, a prior of .03 nats; `prior_1` of 1 nat
    floor_1       few, a floor of 1 nat; `floor_2` of 2 nats, `no_floor` without one
    kl_floor_1    kl with a floor of 1 nat; `entropy_floor_1`, `two_floor_1` likewise, `prior_1_floor_1` with both
    groups        few, one probability and one range for all operations of a group, as `spread.py` has them
    varied        few, no probability under .1 after an epoch
    frozen        the policy of `few` that another seed learned, held still
    two           starts as a strong and varied policy: 2 operations an image, each at .9 at first and up to .8 of its
                  limit, so that no rate can grow much, and learning says what to leave out; `two_kl` by the divergence,
                  `two_gap` by the gap, `two_prior_.03` with a prior of .03 nats
    free          no policy steps: probabilities learn from the student's own steps, in which the logits of each image
                  under a known draw are at hand, by regression of the objective on (gate - p); ranges stay

Where gates are flipped and ranges learn by the pixels or from both ends, what is subtracted from the loss of an image
whatever is drawn changes nothing: an objective as a difference to the base view of the same image is the objective.

Rows are written to the file one by one; those that are there are not run again. Inherited: inherited competence on the
test images; differences are paired by seed, with 95 % t intervals. Seconds of `frozen` are those of both runs.

Run:  python benchmarks/variants.py [--study digits] [--steps 300] [--seeds 600 10] [--rows default,few,...]
          [--minus trivial,rand] [--show] [--json FILE]      (25 minutes for digits on one core)
"""

import argparse
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from base import SHARE, mean_and_error, rand_augment
from common import accuracy, interval, made_ready, options_of_rows, read_rows, rows_of
from rich.console import Console
from rich.table import Table
from spread import GROUPS
from torch import Tensor

import kdsearch as kd
from kdsearch.augment.bases import Base
from kdsearch.core.values import Outputs, ViewBatch
from kdsearch.losses.loss import Loss
from kdsearch.losses.objectives import TABLE, Objective, student_wrong, teacher_right
from kdsearch.probe.shifts import VERSION
from kdsearch.study.ready import Ready
from kdsearch.study.run import run_trial
from kdsearch.study.study import load_study

FLIPS, LEAST = 4, 0.1
FIXED = ("twice", "trivial", "rand", "geometry", "start_4", "start_all", "start_2")
TWO: Mapping[str, Any] = {"operations_per_image": 2, "probability": 0.9, "extent": 0.8}
GAP = {"teacher_right": 1.0, "student_loss": 1.0}
TST = {"teacher_right": 1.0, "student_wrong": 1.0}
LEARNED: Mapping[str, Mapping[str, Any]] = {  # what differs in the policy steps
    "default": {},
    "default_floor_1": {"floor": 1.0},
    "all": {},
    "few": {},
    "capped": {"objective": {"teacher_right": 1.0, "student_wrong_capped": 1.0}},
    "gap": {"objective": GAP},
    "kl": {"objective": {"divergence": 1.0}},
    "entropy": {"objective": {**TST, "teacher_entropy": 1.0}},
    "prior_.03": {"prior_strength": 0.03},
    "prior_1": {"prior_strength": 1.0},
    "floor_1": {"floor": 1.0},
    "floor_2": {"floor": 2.0},
    "no_floor": {"floor": None},
    "kl_floor_1": {"objective": {"divergence": 1.0}, "floor": 1.0},
    "entropy_floor_1": {"objective": {**TST, "teacher_entropy": 1.0}, "floor": 1.0},
    "prior_1_floor_1": {"prior_strength": 1.0, "floor": 1.0},
    "groups": {},
    "varied": {},
    "frozen": {},
    "two": {},
    "two_kl": {"objective": {"divergence": 1.0}},
    "two_gap": {"objective": GAP},
    "two_prior_.03": {"prior_strength": 0.03},
    "two_floor_1": {"floor": 1.0},
    "free": {},
}
NAMES = (*FIXED, *LEARNED)


def student_wrong_capped(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    return student_wrong(student, teacher, target).clamp(max=2 * math.log(student.shape[1]))


def student_loss(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    return -teacher_right(teacher, student, target)


TERMS = {term.__name__: Objective(term.__name__, term, "", "", "") for term in (student_wrong_capped, student_loss)}
"""Terms that are known while a row is trained, and no longer."""


def main() -> None:
    parser = options_of_rows(__doc__, names_of_rows, seeds=(600, 10), rows=NAMES, minus="trivial,rand")
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
    if unknown := [name for name in names if name not in NAMES]:
        raise argparse.ArgumentTypeError(f"row {unknown[0]!r}; allowed: {', '.join(NAMES)}")
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
            if name in LEARNED and policy
            else {},
        }
        print({key: value for key, value in row.items() if key != "rates"}, flush=True)
        if file:
            with file.open("a") as lines:
                lines.write(json.dumps(row) + "\n")
        yield row


def train(ready: Ready, name: str, seed: int) -> tuple[torch.nn.Module, Any]:
    """One student, and the policy that it ended with."""
    if name == "frozen":  # by another seed's
        _, learned = train(ready, "few", seed + 1)
        policy: Base | None = kd.Policy.from_spec(learned.freeze())
        learns = None
    else:
        policy, learns = second_view(ready, name)

    def keep_varied(record: object) -> None:
        if name == "varied" and isinstance(policy, kd.Policy):
            with torch.no_grad():
                policy.logit.clamp_(min=math.log(LEAST / (1 - LEAST)))

    if name == "free":
        assert isinstance(policy, kd.Policy)
        watch = Loss("free gates", FreeGates(policy, ready), weight=0.0)
        ready = replace(ready, study=replace(ready.study, loss=(*ready.study.losses, watch)))
    student = run_trial(
        ready, None, policy=policy, policy_steps=learns, run=name, seed=seed, on_record=keep_varied
    ).student
    assert student is not None
    return student, policy


def second_view(ready: Ready, name: str) -> tuple[Base | None, kd.PolicySteps | None]:
    """The policy of a second view, and how it learns."""
    settings, limits = ready.space.settings(), ready.space.limits
    if name in ("twice", "trivial"):
        return ready.reference(name, settings), None
    if name in ("rand", "geometry"):
        mine = {op: limit for op, limit in limits.items() if name == "rand" or op in GROUPS["geometry"]}
        return rand_augment(mine, ready.space.fill), None
    if name.startswith("two") or name == "start_2":
        settings = replace(settings, **TWO)
    elif name not in ("default", "default_floor_1", "start_4"):
        settings = replace(settings, operations_per_image=len(limits), probability=SHARE)
    policy = ready.policy(settings)
    if name not in LEARNED:
        return policy, None
    if name == "groups":
        tie(policy)
    if name == "free":
        return policy, None
    flips = None if settings.operations_per_image <= FLIPS or name == "all" else FLIPS
    return policy, replace(ready.policy_steps(settings), flips=flips, **LEARNED[name])


class FreeGates:
    """Told each student step as a loss of no weight: the probabilities learn of a policy that draws all operations.

    The objective of the second views, less that of the base views by a fitted coefficient, is regressed on all gates at
    once: the slope of a gate is what its operation adds, in training mode, over the other decisions of these images.
    """

    def __init__(self, policy: kd.Policy, ready: Ready) -> None:
        budget, self.steps = ready.study.budget, kd.PolicySteps()
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
            base, second = aim.double().split(size)
            p = policy.probability
            gates = views.draw.gates.double() - p[views.draw.chosen]
            gates = gates.new_zeros(size, len(p)).scatter(1, views.draw.chosen, gates)
            known = torch.cat([gates, (base - base.mean())[:, None]], 1)
            ridge = 1e-3 * size * torch.eye(known.shape[1]).to(known)
            slope = torch.linalg.solve(known.T @ known + ridge, known.T @ (second - second.mean()))[:-1]
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


def tie(policy: kd.Policy) -> None:
    """One gradient for the operations of a group, which start alike and so stay alike."""
    group = {name: kind for kind, names in GROUPS.items() for name in names}
    kinds = [group[name] for name in policy.operations]
    ranges = [kinds[i] for i in policy.learned.tolist()]
    for parameter, names in ((policy.logit, kinds), (policy.a, ranges), (policy.b, ranges)):
        order = list(dict.fromkeys(names))
        place = torch.tensor([order.index(kind) for kind in names])
        share = torch.nn.functional.one_hot(place, len(order)).double()
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
