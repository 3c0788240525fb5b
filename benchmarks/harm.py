"""Does a learned policy do harm where it can do little good? Digits with the full training set, paired seeds.

The teacher knows nothing special: it was trained without augmentation. The policy is learned beside the student at the
default settings; against it stands KD with the same number of images, a second view identical to the first.

Run:  python benchmarks/harm.py [--seeds 15] [--json FILE]      (6 minutes on one core)
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from common import accuracy, digits_teacher, interval, kept, made_ready, options
from rich.console import Console
from rich.table import Table

import kdsearch as kd
from kdsearch.study.ready import Ready
from kdsearch.study.run import run_trial
from kdsearch.study.study import load_study


def main() -> None:
    arguments = options(__doc__, seeds=15).parse_args()
    study, _ = load_study("digits")
    ready = made_ready(replace(study, train=kd.data.digits()[0], confirm=None, teacher=digits_teacher("plain", 0)))
    rows = kept(runs(ready, arguments.seeds), arguments.json)
    table = Table("second view", "test accuracy, %", box=None)
    for name in ("identity", "learned"):
        values = torch.tensor([row[name] for row in rows], dtype=torch.float64)
        table.add_row(name, f"{values.mean():.2f} ± {values.std() / len(rows) ** 0.5:.2f}")
    table.add_row("difference", interval([row["learned"] - row["identity"] for row in rows]))
    console = Console(width=120, highlight=False)
    right = accuracy(ready, ready.teacher.network)
    console.print(f"teacher {right:.1f} %; {len(rows)} paired seeds, mean ± standard error; 95 % interval")
    console.print(table)


def runs(ready: Ready, seeds: int) -> Iterator[dict[str, object]]:
    settings = ready.space.settings()
    for seed in range(seeds):
        steps, policy = ready.policy_steps(settings), ready.policy(settings)
        plain = run_trial(ready, None, policy=None, seed=seed)
        learned = run_trial(ready, None, policy=policy, policy_steps=steps, seed=seed)
        found = {"identity": accuracy(ready, plain.student), "learned": accuracy(ready, learned.student)}
        yield {"seed": seed, **found, "warnings": learned.warnings}


if __name__ == "__main__":
    main()
