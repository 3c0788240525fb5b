"""How much is the clean view beside the augmented one worth? Few-shot digits, a frozen policy, test accuracy.

A policy is confirmed with two views of each image, the clean one and the policy's; most training loops have one. Rows:
the frozen policy of a default learned run with two views, as it was confirmed; its view alone for as many steps (half
as many images through the student), for twice the steps, and for as many steps of twice the images (as many images
through the student); images as they are, one view, for as many steps and for twice as many; two views for twice the
steps. The policy of a seed is the one that another seed learned. Student starts are the same in all rows of a seed.

Run:  python benchmarks/one_view.py [--seeds 12] [--json FILE]      (about 15 minutes on one quiet core)
"""

import json
from dataclasses import replace

import torch
from common import accuracy, interval, made_ready, options
from rich.console import Console
from rich.table import Table

import kdsearch as kd
from kdsearch.study.ready import Ready
from kdsearch.study.run import run_trial

BOTH, SECOND, BASE = kd.Views(), kd.Views("second", "second"), kd.Views("base", "base")
ROWS = {  # the policy, the views, and what epochs and batch are multiplied by
    "policy, two views": (True, BOTH, 1, 1),
    "policy, one view": (True, SECOND, 1, 1),
    "policy, one view, twice the steps": (True, SECOND, 2, 1),
    "policy, one view, twice the batch": (True, SECOND, 1, 2),
    "clean, one view": (False, BASE, 1, 1),
    "clean, one view, twice the steps": (False, BASE, 2, 1),
    "policy, two views, twice the steps": (True, BOTH, 2, 1),
}
COMPARED = {"policy, two views": "two views minus it", "policy, two views, twice the steps": "for twice the steps"}


def main() -> None:
    arguments = options(__doc__, seeds=12).parse_args()
    ready = made_ready()
    settings = ready.space.settings()
    learned = []
    for seed in range(arguments.seeds):
        policy = ready.policy(settings)
        run_trial(ready, None, policy=policy, policy_steps=ready.policy_steps(settings), seed=seed)
        learned.append(policy.freeze())
    rows: list[dict[str, float]] = []
    for seed in range(arguments.seeds):
        rows.append({"seed": seed, **{name: trained(ready, name, learned[seed - 1], seed) for name in ROWS}})
        print({name: round(value, 1) for name, value in rows[-1].items()}, flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    show(ready, rows)


def trained(ready: Ready, name: str, spec: kd.PolicySpec, seed: int) -> float:
    """The test accuracy of a fresh student, in percent."""
    augmented, views, epochs, batch = ROWS[name]
    budget = ready.study.budget
    budget = replace(budget, epochs=epochs * budget.epochs, batch=batch * budget.batch)
    made = replace(ready, study=replace(ready.study, views=views, budget=budget))
    policy = kd.Policy.from_spec(spec) if augmented else None
    return accuracy(ready, run_trial(made, None, policy=policy, seed=seed).student)


def show(ready: Ready, rows: list[dict[str, float]]) -> None:
    """Means with standard errors, and what two views are better by, paired by seed, with 95 % t intervals."""
    budget, test = ready.study.budget, ready.study.test
    assert test is not None
    values = {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in ROWS}
    table = Table("trained on", "steps", "student images", "test accuracy, %", *COMPARED.values(), box=None)
    for name, (_, views, epochs, batch) in ROWS.items():
        steps = epochs * budget.epochs * budget.steps
        images = steps * batch * budget.batch * (2 if views.used == "both" else 1)
        error = values[name].std() / len(rows) ** 0.5
        differences = [
            "" if name == mine else interval((values[mine] - values[name]).tolist(), digits=1) for mine in COMPARED
        ]
        table.add_row(name, str(steps), f"{images:,}", f"{values[name].mean():.1f} ± {error:.1f}", *differences)
    console = Console(width=120, highlight=False)
    console.print(
        f"\n{len(rows)} seeds, mean ± standard error; 95 % intervals of paired differences over seeds (policy, "
        f"student's start,\nbatches); the {len(test)} test images are the same for all seeds: what others would change "
        "is not in the intervals"
    )
    console.print(table)


if __name__ == "__main__":
    main()
