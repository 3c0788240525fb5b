"""What should trials be compared by, and how early? Fixed second views over the base view, one seed against the others.

Policies of which nothing is learned, drawn at random as `spread.py` has them. Each trains students on common seeds; at
every eighth of a run a criterion looks at the student on search-validation. What a policy is worth is measured by the
students of the *other* seeds on the test images, at the end: clean accuracy, inherited competence. Printed:

    correlation  rank correlation of one seed's criterion with the worth, mean over seeds, 95 % bootstrap interval over
                 policies
    ceiling      what a criterion without error would come to: the worth is known by few seeds alone
    regret       by how much the winner of 8 and of 20 trials, drawn at random, falls short of the best of them, points
    pair         standard deviation of a difference of two equal policies on one seed, points: what a pruner has to know

A pair whose spread of worth is under twice its error decides nothing; that is said first. Rows are written to the file
one by one; those that are there are not run again.

Run:  python benchmarks/fidelity.py [--study digits] [--steps 296] [--policies 34] [--seeds 6] [--show] [--json FILE]
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from common import accuracy, made_ready, options, read_rows
from rich.console import Console
from rich.table import Table
from scipy.stats import rankdata
from spread import random_policy, spread

import kdsearch as kd
from kdsearch.distill.records import EpochRecord
from kdsearch.probe.shifts import VERSION
from kdsearch.study.ready import Ready
from kdsearch.study.run import run_trial
from kdsearch.study.study import load_study

EIGHTHS = 8
DRAWS = 1000  # of the bootstrap, and of searches
TRIALS = (8, 20)
WORTHS = ("test clean", "test inherited")
Values = np.ndarray  # (policies, seeds)


def main() -> None:
    parser = options(__doc__, seeds=6)
    parser.add_argument("--study", default="digits", help="a shipped study, or the path of one")
    parser.add_argument("--steps", type=int, help="of each student, by eights; the study's own unless given")
    parser.add_argument("--policies", type=int, default=34)
    parser.add_argument("--show", action="store_true", help="run nothing, print what the file has")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    study = load_study(arguments.study)[0]
    steps = (arguments.steps or study.budget.epochs * study.budget.steps) // EIGHTHS
    study = replace(study, budget=replace(study.budget, epochs=EIGHTHS, steps=steps))
    asked = [(seed, number) for seed in range(arguments.seeds) for number in range(arguments.policies)]
    rows = read_rows(arguments.json) if arguments.show else list(run_rows(made_ready(study), asked, arguments.json))
    rows = [row for row in rows if (row["study"], row["steps"]) == (study.name, EIGHTHS * steps)]
    show(study.name, EIGHTHS * steps, rows)


def run_rows(ready: Ready, asked: Sequence[tuple[int, int]], file: Path | None) -> Iterator[dict]:
    """Of each seed and policy, those of the file first found there."""
    assert ready.study.test is not None and ready.ruler is not None
    ruler = kd.Ruler(ready.teacher, ready.study.test, ready.task, known=ready.space.limits, device=ready.device)
    before, budget = read_rows(file), ready.study.budget
    for seed, number in asked:
        fixed = {"study": ready.study.name, "steps": budget.epochs * budget.steps, "seed": seed, "policy": number,
                 "shifts": VERSION}  # fmt: skip
        if known := [row for row in before if fixed.items() <= row.items()]:
            yield known[0]
            continue
        records: list[EpochRecord] = []
        policy = random_policy(ready.space.limits, ready.space.fill, number)
        outcome = run_trial(ready, None, policy=policy, seed=2000 + seed, on_record=records.append)
        student = outcome.student
        assert student is not None and outcome.inheritance is not None
        row = fixed | {
            "clean": [100 * record.accuracy for record in records],
            "inherited": [100 * record.inherited for record in records],
            "kl": [record.kl for record in records],
            "all views": 100 * outcome.inheritance.inherited,
            "test clean": accuracy(ready, student),
            "test inherited": 100 * ruler.measure(student).inherited,
        }
        print({key: value for key, value in row.items() if not isinstance(value, list)}, flush=True)
        if file:
            with file.open("a") as lines:
                lines.write(json.dumps(row) + "\n")
        yield row


def criteria(row: Mapping) -> dict[str, list[float]]:
    """At each eighth, the larger the better; `all views` at the end alone, where a trial is measured on them."""
    ends = [float("nan")] * (EIGHTHS - 1)
    return {
        "clean": row["clean"],
        "inherited": row["inherited"],
        "mean of both": [(a + b) / 2 for a, b in zip(row["clean"], row["inherited"], strict=True)],
        "KL": [-value for value in row["kl"]],
        "inherited, all views": [*ends, row["all views"]],
        "mean, all views": [*ends, (row["clean"][-1] + row["all views"]) / 2],
    }


def ranks_of(values: Values) -> Values:
    """By column, less their mean, of length 1; columns of equal values are 0."""
    ranks = rankdata(values, axis=0)
    ranks = ranks - ranks.mean(0)
    return ranks / np.maximum(np.linalg.norm(ranks, axis=0), 1e-12)


def correlation(criterion: Values, worth: Values) -> float:
    """Rank correlation over policies of each seed's criterion with the mean worth of the other seeds; their mean."""
    return float((ranks_of(criterion) * ranks_of(of_others(worth))).sum(0).mean())


def of_others(values: Values) -> Values:
    """For each seed the mean of the other ones."""
    return (values.sum(1, keepdims=True) - values) / (values.shape[1] - 1)


def bootstrap(criterion: Values, worth: Values, random: np.random.Generator) -> tuple[float, float]:
    """The 95 % percentile interval of a correlation, over policies."""
    found = []
    for _ in range(DRAWS):
        drawn = random.integers(0, len(worth), len(worth))
        found.append(correlation(criterion[drawn], worth[drawn]))
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def regret(criterion: Values, worth: Values, trials: int, random: np.random.Generator) -> float:
    """By how much the winner of so many random trials on one seed falls short, in the worth of the other seeds."""
    truth, lost = of_others(worth), []
    for _ in range(DRAWS):
        drawn = random.permutation(len(worth))[:trials]
        seed = random.integers(worth.shape[1])
        winner = drawn[criterion[drawn, seed].argmax()]
        lost.append(truth[drawn, seed].max() - truth[winner, seed])
    return float(np.mean(lost))


def pair_deviation(criterion: Values) -> float:
    """Of a difference between two policies of equal worth on one seed: twice what neither policy nor seed explains."""
    policies, seeds = criterion.shape
    rest = criterion - criterion.mean(1, keepdims=True) - criterion.mean(0) + criterion.mean()
    return float(np.sqrt(2 * (rest**2).sum() / ((policies - 1) * (seeds - 1))))


def show(study: str, steps: int, rows: Sequence[Mapping]) -> None:
    """The spread of worth, then every criterion by its eighth."""
    if not rows:
        print("no rows")
        return
    seeds = sorted({row["seed"] for row in rows})
    by_place = {(row["policy"], row["seed"]): row for row in rows}
    policies = [p for p in sorted({row["policy"] for row in rows}) if all((p, seed) in by_place for seed in seeds)]
    console = Console(width=140, highlight=False)
    console.print(f"\n{study}, {steps} steps, {len(policies)} fixed policies on {len(seeds)} seeds; %, points")

    def values(of: str) -> Values:
        return np.array([[by_place[p, seed][of] for seed in seeds] for p in policies])

    worths, ceilings = {name: values(name) for name in WORTHS}, {}
    table = Table("worth", "lowest", "highest", "spread", "error", "spread / error", "ceiling", box=None)
    for name, worth in worths.items():
        true, error, _ = spread(torch.from_numpy(worth))
        others = error**2 * len(seeds) / (len(seeds) - 1)
        ceilings[name] = true / (true**2 + others) ** 0.5
        means = worth.mean(1)
        table.add_row(name, f"{means.min():.1f}", f"{means.max():.1f}", f"{true:.2f}", f"{error:.2f}",
                      f"{true / error:.1f}", f"{ceilings[name]:.2f}")  # fmt: skip
    console.print(table)
    heads = [f"{text}\n{name}" for name in WORTHS for text in ("correlation", *(f"regret of {n}" for n in TRIALS))]
    table = Table("criterion", "at", "pair", *heads, box=None, padding=(0, 1, 0, 0))
    looked = {key: criteria(by_place[key]) for key in ((p, seed) for p in policies for seed in seeds)}
    for name in criteria(rows[0]):
        for eighth in range(EIGHTHS):
            found = np.array([[looked[p, seed][name][eighth] for seed in seeds] for p in policies])
            if np.isnan(found).any():
                continue
            cells = []
            for worth in worths.values():
                random = np.random.default_rng(eighth)
                low, high = bootstrap(found, worth, random)
                cells.append(f"{correlation(found, worth):+.2f} ({low:+.2f} to {high:+.2f})")
                cells += [f"{regret(found, worth, min(n, len(policies)), random):.2f}" for n in TRIALS]
            table.add_row(name, f"{eighth + 1}/{EIGHTHS}", f"{pair_deviation(found):.2f}", *cells)
    console.print(table)


if __name__ == "__main__":
    main()
