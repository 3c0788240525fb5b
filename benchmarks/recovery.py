"""Does a policy find what only the teacher knows? Teachers that were trained to bear an operation, and others not.

The cases stand in a TOML file. For each case and seed a planted and a null teacher of the same start, trained on the
full training set, the planted one with its operations on every image; and with each a policy learned beside a fresh
student, over the base view that the teacher tolerates. What is looked at:

    rise      probability times high / limit, with the planted teacher less with the null one: is the planted
              operation's the largest (of several: are they the first ones)?
    end       the upper end of the planted operation's range, and the largest magnitude at which the planted teacher's
              cross-entropy on training images is within the floor of its own on them as they are
    handed    of what the planted teacher is better at than the null one, on test images under the planted operations,
              the share by which its student is better than the null one's
    clean     accuracy on test images, less that of a student whose second view is the base view, with the same planted
              teacher, trained longer by what policy steps cost on ResNets

Rows are written to the file one by one; those that are there are not run again.

Run:  python benchmarks/recovery.py [--cases benchmarks/recovery.toml] [--seeds 5] [--show] [--json FILE]
          (80 minutes on one core)
"""

import json
import tomllib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
from common import digits_teacher, interval, options, read_rows
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console
from rich.table import Table

import kdsearch as kd
from kdsearch.core.maths import generator
from kdsearch.networks.teachers import Teacher
from kdsearch.probe.tolerance import find_tolerance

TASK = kd.Classification.of(10)
EPOCHS, STEPS, BATCH = 10, 60, 64
SHARE, LEARNS = 0.2, kd.PolicySteps(flips=4)  # as the default space has it
STEP = 1.14  # of a policy step, in student steps (results/distill.md)
NEAR, GAIN, HARM = 0.2, 0.75, -0.5  # of the measured end; of the teacher's advantage; points of clean accuracy
MAGNITUDES = 20  # that the end is looked for among


class Case(BaseModel):
    """What a teacher was trained to bear."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    plants: Annotated[dict[str, float], Field(min_length=1)]

    @property
    def name(self) -> str:
        return " + ".join(self.plants)


class Cases(BaseModel):
    """A file of cases."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    pair: str
    seeds: int
    operations: list[str]
    reach: float
    case: list[Case]

    def limits(self, case: Case) -> dict[str, float | None]:
        """Of the space: planted operations may go beyond what was planted."""
        table = kd.operations.TABLE
        return {name: min(self.reach * case.plants[name], table[name].hard or 0.0) if name in case.plants else None
                for name in self.operations}  # fmt: skip


def main() -> None:
    parser = options(__doc__, seeds=0)
    parser.add_argument("--cases", type=Path, default=Path(__file__).with_suffix(".toml"))
    parser.add_argument("--show", action="store_true", help="run nothing, print what the file has")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases = Cases.model_validate(tomllib.loads(arguments.cases.read_text()))
    seeds = range(arguments.seeds or cases.seeds)
    rows = read_rows(arguments.json) if arguments.show else list(run_rows(cases, seeds, arguments.json))
    show(cases, rows)


def run_rows(cases: Cases, seeds: range, file: Path | None) -> Iterator[dict]:
    """Of each case and seed, those of the file first found there."""
    before = read_rows(file)
    for seed in seeds:
        for case in cases.case:
            fixed = {"case": case.name, "seed": seed}
            if known := [row for row in before if fixed.items() <= row.items()]:
                yield known[0]
                continue
            row = fixed | recover(cases, case, seed)
            print({name: value for name, value in row.items() if not isinstance(value, dict)}, flush=True)
            if file:
                with file.open("a") as lines:
                    lines.write(json.dumps(row) + "\n")
            yield row


def recover(cases: Cases, case: Case, seed: int) -> dict:
    """One case on one seed."""
    limits, planted = cases.limits(case), kd.Policy.uniform(case.plants, len(case.plants))
    row: dict = {}
    for kind, augment in (("null", None), ("planted", planted)):
        network = digits_teacher("recovery", seed, augment)
        teacher = Teacher(network)
        policy = kd.Policy(limits, len(limits), probability=SHARE)
        base = find_tolerance(teacher, kd.data.digits()[1], TASK, seed=seed).policy
        student = train(teacher, policy, base, seed, LEARNS)
        high = policy.ranges()[1]
        row[kind] = {
            name: (p * h / limit, h) if limit else (p, 0.0)
            for name, p, h, limit in zip(
                policy.operations, policy.probability.tolist(), high.tolist(), policy.limit.tolist(), strict=True
            )
        }
        row[f"{kind} teacher"], row[f"{kind} student"] = (accuracy(net, planted) for net in (network, student))
        row[f"{kind} clean"] = accuracy(student, None)
    steps = LEARNS.count(EPOCHS, STEPS, len(kd.data.digits()[0]), BATCH)
    more = round((EPOCHS * STEPS + STEP * steps) / EPOCHS)
    row["plain clean"] = accuracy(train(teacher, None, base, seed, None, more), None)
    row["ends"] = {name: measured_end(network, name, limits[name] or 0.0) for name in case.plants}
    return row


def train(
    teacher: Teacher,
    policy: kd.Policy | None,
    base: kd.Policy | None,
    seed: int,
    learns: kd.PolicySteps | None,
    steps: int = STEPS,
) -> torch.nn.Module:
    """A student of the whole training set."""
    train, search_validation, _ = kd.data.digits()
    torch.manual_seed(seed)
    optimizer = partial(torch.optim.AdamW, lr=2e-2, weight_decay=1e-2)
    student = kd.networks.small_convnet(4)
    distiller = kd.Distiller(teacher, student, policy, TASK, optimizer=optimizer, seed=seed)
    phase = kd.Phase((kd.losses.kd(),), EPOCHS, steps, BATCH, policy_steps=learns, base=base)
    for _ in distiller.run(phase, train, search_validation):
        pass
    return student


@torch.no_grad()
def accuracy(network: torch.nn.Module, policy: kd.Policy | None) -> float:
    """On the test images, in percent, by four draws of a policy or as they are."""
    test, right = kd.data.digits()[2], []
    for i in range(4 if policy else 1):
        images = test.images
        if policy:
            images = policy.augment(policy.draw(len(test), generator("recovery", i)), images).images
        right.append(kd.evaluate(network, kd.data.ArrayData(images, test.labels), TASK, 256, "cpu").value)
    return 100 * sum(right) / len(right)


@torch.no_grad()
def measured_end(teacher: torch.nn.Module, name: str, limit: float) -> float:
    """The largest magnitude at which the teacher's cross-entropy on training images is within the floor of its own."""
    train, floor = kd.data.digits()[0], LEARNS.floor or 0.0
    labels = train.labels

    def loss(images: torch.Tensor) -> float:
        return torch.nn.functional.cross_entropy(teacher(images), labels).item()

    clean, end = loss(train.images), 0.0
    for k in range(1, MAGNITUDES + 1):
        at = limit * k / MAGNITUDES
        policy = kd.Policy.uniform({name: limit}, 1)
        policy.fixed_low.fill_(at)
        policy.fixed_high.fill_(at)
        draw = policy.draw(len(train), generator("end", name, k))
        if loss(policy.augment(draw, train.images).images) > clean + floor:
            break
        end = at
    return end


def show(cases: Cases, rows: list[dict]) -> None:
    """A row for each case, and how many fulfil what is asked of them."""
    table = Table(
        "planted", "found first", "high", "measured end", "teacher", "student", "handed, %", "clean", box=None
    )
    first = near = ends = 0
    handed, clean = [], []
    for case in cases.case:
        mine = [row for row in rows if row["case"] == case.name]
        if not mine:
            continue
        found = sum({*ranked(row)[: len(case.plants)]} == {*case.plants} for row in mine)
        highs = {name: mean(row["planted"][name][1] for row in mine) for name in case.plants}
        measured = {name: mean(row["ends"][name] for row in mine) for name in case.plants}
        close = [abs(highs[name] - measured[name]) <= NEAR * measured[name] for name in case.plants]
        advantage, gain = (
            mean(row[f"planted {who}"] - row[f"null {who}"] for row in mine) for who in ("teacher", "student")
        )
        harm = [row["planted clean"] - row["plain clean"] for row in mine]
        if len(case.plants) == 1:
            first, near, ends = first + (2 * found > len(mine)), near + sum(close), ends + len(close)
        handed.append(gain / advantage)
        clean.append(sum(harm) / len(harm))
        texts = (", ".join(f"{value:.2g}" for value in part.values()) for part in (highs, measured))
        table.add_row(case.name, f"{found} of {len(mine)}", *texts, f"{advantage:+.1f}", f"{gain:+.1f}",
                      f"{100 * gain / advantage:.0f}", interval(harm, 1))  # fmt: skip
    console = Console(width=150, highlight=False)
    console.print("\nteacher, student: by how much the planted one is better under what was planted, points")
    console.print(table)
    singles = sum(len(case.plants) == 1 for case in cases.case)
    told = {
        "the planted operation first in most seeds": (first, singles),
        f"its upper end within {NEAR:.0%} of the measured one": (near, ends),
        f"at least {GAIN:.0%} handed over": (sum(share >= GAIN for share in handed), len(handed)),
        f"clean accuracy above {HARM:g} points": (sum(points > HARM for points in clean), len(clean)),
    }
    for what, (count, of) in told.items():
        console.print(f"{what}: {count} of {of} cases")


def ranked(row: Mapping) -> list[str]:
    """Operations by how far they rise over the null teacher's policy."""
    return sorted(row["planted"], key=lambda name: row["null"][name][0] - row["planted"][name][0])


def mean(values: Iterator[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


if __name__ == "__main__":
    main()
