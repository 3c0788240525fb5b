"""Does a learned policy do harm where it can do little good? Digits with the full training set, paired seeds.

The teacher knows nothing special: it was trained without augmentation. The policy is learned beside the student at the
default settings; against it stands KD with the same number of images, a second view identical to the first.

Run:  python benchmarks/harm.py [--seeds 15] [--json FILE]      (6 minutes on one core)
"""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from scipy import stats

import kdsearch as kd
from kdsearch.preflight import preflight
from kdsearch.study import load_study, run_trial


def plain_teacher() -> torch.nn.Module:
    torch.manual_seed(0)
    network = kd.small_convnet(24)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=600)
    for batch in kd.shuffled(kd.digits()[0], 64, 600, "plain"):
        loss = torch.nn.functional.cross_entropy(network(batch.images), batch.target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    study, _ = load_study("digits")
    study = replace(study, train=kd.digits()[0], teacher=plain_teacher())
    with tempfile.TemporaryDirectory() as folder:
        ready = preflight(study, Path(folder)).ready
    settings, rows = ready.space.settings(), []

    def accuracy(network: torch.nn.Module | None) -> float:
        assert network is not None
        return 100 * kd.evaluate(network, study.test, ready.task, 256, "cpu")[0]

    right = accuracy(ready.teacher.network)
    for seed in range(arguments.seeds):
        steps, policy = ready.policy_steps(settings), ready.policy(settings)
        plain = run_trial(ready, None, policy=None, seed=seed)
        learned = run_trial(ready, None, policy=policy, policy_steps=steps, seed=seed)
        rows.append({"seed": seed, "identity": accuracy(plain.student), "learned": accuracy(learned.student),
                     "warnings": learned.warnings})  # fmt: skip
        print(rows[-1], flush=True)
    difference = torch.tensor([row["learned"] - row["identity"] for row in rows], dtype=torch.float64)
    error = difference.std() / len(rows) ** 0.5
    half = stats.t.ppf(0.975, len(rows) - 1) * error
    table = Table("second view", "test accuracy, %", box=None)
    for name in ("identity", "learned"):
        values = torch.tensor([row[name] for row in rows], dtype=torch.float64)
        table.add_row(name, f"{values.mean():.2f} ± {values.std() / len(rows) ** 0.5:.2f}")
    table.add_row("difference", f"{difference.mean():+.2f} ({difference.mean() - half:+.2f} to "
                  f"{difference.mean() + half:+.2f})")  # fmt: skip
    console = Console(width=120, highlight=False)
    console.print(f"teacher {right:.1f} %; {len(rows)} paired seeds, mean ± standard error; 95 % interval")
    console.print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
