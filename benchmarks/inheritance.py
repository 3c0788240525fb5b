"""What does it cost to look at inherited competence, and what has a student inherited of which shift?

Runs of a study: an identical second view, another draw of the base view, TrivialAugment's rule, and the policy that
learns beside the student. The share is that of the glances after each epoch in the seconds of the CPU that a run takes
without them; all views are looked at once, at the end, after a first time in which the teacher was asked.

Run:  python benchmarks/inheritance.py [--study digits] [--seeds 1] [--json FILE]      (one minute on one core)
"""

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, replace

import torch
from common import kept, made_ready, options
from rich.console import Console
from rich.table import Table

from kdsearch.study.ready import Ready
from kdsearch.study.run import run_trial
from kdsearch.study.study import load_study

RUNS = ("identity", "twice", "trivial", "learned")


def main() -> None:
    parser = options(__doc__, seeds=1)
    parser.add_argument("--study", default="digits")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = kept(measured(made_ready(load_study(arguments.study)[0]), arguments.seeds), arguments.json)
    table = Table("second view", "seed", "run, s", "glances, s", "%", "all views, s", "%", "inherited, %", box=None)
    for row in rows:
        inherited = f"{100 * row['inherited']:.1f} ± {100 * row['inherited_se']:.1f}"
        cells = [
            text
            for name in ("glances", "whole")
            for text in (f"{row[name]:.2f}", f"{100 * row[name] / row['run']:.1f}")
        ]
        table.add_row(row["name"], f"{row['seed']}", f"{row['run']:.2f}", *cells, inherited)
    console = Console(width=120, highlight=False)
    console.print(table)
    shifts = Table("shift", *(row["name"] for row in rows if not row["seed"]), box=None)
    for shift in rows[0]["by_shift"]:
        found = ([row["by_shift"].get(shift, math.nan) for row in rows if row["name"] == name] for name in RUNS)
        shifts.add_row(shift, *(f"{100 * sum(values) / len(values):.1f}" for values in found))
    console.print(shifts)


def measured(ready: Ready, seeds: int) -> Iterator[dict]:
    ruler, settings, epochs = ready.ruler, ready.space.settings(), ready.study.budget.epochs
    assert ruler is not None
    without = replace(ready, ruler=None)
    for seed in range(seeds):
        for name in RUNS:
            learns = ready.policy_steps(settings) if name == "learned" else None
            policy = ready.policy(settings) if learns else ready.reference(name, settings)
            start = time.process_time()
            student = run_trial(without, None, policy=policy, policy_steps=learns, run=name, seed=seed).student
            assert student is not None
            run = time.process_time() - start
            ruler.glance(student)
            ruler.measure(student)  # the teacher is asked for both
            start = time.process_time()
            for _ in range(epochs):
                ruler.glance(student)
            glances, start = time.process_time() - start, time.process_time()
            found = asdict(ruler.measure(student))
            whole = time.process_time() - start
            yield {"name": name, "seed": seed, "run": run, "glances": glances, "whole": whole, **found}


if __name__ == "__main__":
    main()
