"""Can a pair and a budget tell policies apart? Fixed second views over the base view, paired seeds, test images.

Twenty policies that do not learn are drawn at random: how many operations an image draws (1 to 6), how likely each
group of them is, and how strong (.25 to 1.5 of the limits). Each trains students on common seeds. The spread is the
standard deviation of what policies are truly worth, without that of seeds and of what is left, from a two-way
analysis of variance; the error is that of a policy's mean over the seeds. A pair whose spread is under twice its
error decides nothing about policies. Clean: accuracy on the test images; inherited: inherited competence on them.

Rows are written to the file one by one; those that are there are not run again.

Run:  python benchmarks/spread.py [--study digits] [--steps 300] [--policies 20] [--seeds 3] [--json FILE]
          (6 minutes for digits on one core, 2 hours for cifar10_small)
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from common import accuracy, made_ready, options, read_rows
from rich.console import Console
from rich.table import Table

import kdsearch as kd
from kdsearch.augment.spec import Setting, Snapshot
from kdsearch.core.maths import generator
from kdsearch.probe.shifts import VERSION
from kdsearch.study.ready import Ready
from kdsearch.study.run import run_trial
from kdsearch.study.study import load_study

GROUPS: Mapping[str, tuple[str, ...]] = {
    "flip": ("horizontal_flip",),
    "geometry": ("scale", "shear_x", "shear_y", "rotate", "translate_x", "translate_y"),
    "colour": ("brightness", "contrast", "saturation", "equalize", "solarize", "posterize", "invert"),
    "quality": ("sharpness", "noise"),
    "occlusion": ("erase",),
}
MEASURES = ("clean", "inherited")


def main() -> None:
    parser = options(__doc__, seeds=3)
    parser.add_argument("--study", default="digits", help="a shipped study, or the path of one")
    parser.add_argument("--steps", type=int, help="of each student; the study's own unless given")
    parser.add_argument("--policies", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    study = load_study(arguments.study)[0]
    steps = arguments.steps or study.budget.epochs * study.budget.steps
    study = replace(study, budget=replace(study.budget, epochs=1, steps=steps))
    rows = list(run_rows(made_ready(study), steps, arguments.policies, arguments.seeds, arguments.json))
    show(study.name, steps, rows)


def run_rows(ready: Ready, steps: int, policies: int, seeds: int, file: Path | None) -> Iterator[dict]:
    """Of each policy and seed, those of the file first found there."""
    assert ready.study.test is not None
    ruler = kd.Ruler(ready.teacher, ready.study.test, ready.task, known=ready.space.limits, device=ready.device)
    before = read_rows(file)
    for seed in range(seeds):
        for number in range(policies):
            fixed = {"study": ready.study.name, "steps": steps, "seed": seed, "policy": number, "shifts": VERSION}
            if known := [row for row in before if fixed.items() <= row.items()]:
                yield known[0]
                continue
            policy = random_policy(ready.space.limits, ready.space.fill, number)
            student = run_trial(replace(ready, ruler=None), None, policy=policy, seed=1000 + seed).student
            assert student is not None
            clean, inherited = accuracy(ready, student), 100 * ruler.measure(student).inherited
            row = fixed | {"clean": clean, "inherited": inherited}
            print(row, flush=True)
            if file:
                with file.open("a") as lines:
                    lines.write(json.dumps(row) + "\n")
            yield row


def random_policy(limits: Mapping[str, float | None], fill: str, number: int) -> kd.Policy:
    """One of the policies: each number has its own."""
    random = generator("fixed policies", number)
    n = int(torch.randint(1, 7, (), generator=random))
    chances = dict(zip(GROUPS, torch.rand(len(GROUPS), generator=random).tolist(), strict=True))
    chances["flip"] *= 0.5  # more than half is no more variety
    strengths = dict(zip(GROUPS, (0.25 + 1.25 * torch.rand(len(GROUPS), generator=random)).tolist(), strict=True))
    group = {name: kind for kind, names in GROUPS.items() for name in names}
    hard = {name: kd.operations.TABLE[name].hard for name in limits}
    scaled = {name: min(limit * strengths[group[name]], hard[name] or limit) if limit else None
              for name, limit in limits.items()}  # fmt: skip
    start = kd.Policy(scaled, min(n, len(scaled)), fill=fill)
    settings = {
        name: Setting(probability=chances[group[name]], low=0.0 if limit else None, high=limit or None)
        for name, limit in zip(start.operations, start.limit.tolist(), strict=True)
    }
    return kd.Policy.from_spec(start.freeze([Snapshot(progress=1.0, settings=settings)]))


def spread(values: torch.Tensor) -> tuple[float, float, float]:
    """The spread of true worth, the error of a policy's mean, and the spread of seeds.

    Args:
        values: (policies, seeds).

    Reference:
        Searle, Casella and McCulloch, Variance components, 1992 (the estimates by analysis of variance)
    """
    policies, seeds = values.shape
    by_policy, by_seed = values.mean(1, keepdim=True), values.mean(0, keepdim=True)
    rest = ((values - by_policy - by_seed + values.mean()) ** 2).sum() / ((policies - 1) * (seeds - 1))
    of_policies, of_seeds = by_policy.var() * seeds, by_seed.var() * policies
    true = ((of_policies - rest) / seeds).clamp(min=0).sqrt().item()
    return true, (rest / seeds).sqrt().item(), ((of_seeds - rest) / policies).clamp(min=0).sqrt().item()


def show(study: str, steps: int, rows: list[dict]) -> None:
    policies, seeds = (sorted({row[name] for row in rows}) for name in ("policy", "seed"))
    table = Table("", "lowest", "mean", "highest", "spread", "error", "spread / error", "of seeds", box=None)
    for what in MEASURES:
        found = {(row["policy"], row["seed"]): row[what] for row in rows}
        values = torch.tensor([[found[p, s] for s in seeds] for p in policies], dtype=torch.float64)
        means = values.mean(1)
        true, error, of_seeds = spread(values)
        ends = (f"{value:.1f}" for value in (means.min(), means.mean(), means.max()))
        table.add_row(what, *ends, f"{true:.2f}", f"{error:.2f}", f"{true / error:.1f}", f"{of_seeds:.2f}")
    console = Console(width=120, highlight=False)
    console.print(f"\n{study}, {steps} steps, {len(policies)} fixed policies on {len(seeds)} seeds; %, points")
    console.print(table)


if __name__ == "__main__":
    main()
