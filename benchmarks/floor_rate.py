"""Does a default run end inside the floor? The digits study learned online, by the rate of the floor's dual variable.

The violation is the teacher's cross-entropy on the images of policy steps, over its clean one and the floor of .3 nats,
mean of the last three epochs; test accuracy beside it, paired by seed.

Run:  python benchmarks/floor_rate.py [--seeds 15] [--rates 0.1 0.5] [--json FILE]      (5 minutes on one core)
"""

from dataclasses import replace
from itertools import product

import torch
from common import accuracy, interval, kept, made_ready, options
from rich.console import Console
from rich.table import Table

from kdsearch.distill.records import EpochRecord
from kdsearch.study.ready import Ready
from kdsearch.study.run import run_trial

LAST = 3  # epochs


def main() -> None:
    parser = options(__doc__, seeds=15)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.1, 0.5])
    arguments = parser.parse_args()
    ready, rates = made_ready(), arguments.rates
    rows = kept((run(ready, rate, seed) for seed, rate in product(range(arguments.seeds), rates)), arguments.json)
    columns = (
        "rate",
        "over the floor, nats",
        "runs over it",
        "dual",
        "test accuracy, %",
        f"minus that at {rates[0]:g}",
    )
    table = Table(*columns, box=None)
    for rate in rates:
        mine, first = ([row for row in rows if row["rate"] == of] for of in (rate, rates[0]))
        over, dual, right = (torch.tensor([row[name] for row in mine]) for name in ("over", "dual", "accuracy"))
        differences = [one["accuracy"] - other["accuracy"] for one, other in zip(mine, first, strict=True)]
        table.add_row(
            f"{rate:g}", interval(over.tolist()), f"{int((over > 0).sum())} of {len(mine)}", f"{dual.mean():.2f}",
            f"{right.mean():.1f} ± {right.std() / len(mine) ** 0.5:.1f}",
            "" if rate == rates[0] else interval(differences, 1),
        )  # fmt: skip
    console = Console(width=140, highlight=False)
    console.print(f"{arguments.seeds} paired seeds; means with 95 % t intervals, accuracy ± standard error")
    console.print(table)


def run(ready: Ready, rate: float, seed: int) -> dict[str, float]:
    settings, records = ready.space.settings(), list[EpochRecord]()
    steps = replace(ready.policy_steps(settings), floor_rate=rate)
    ended = run_trial(
        ready, None, policy=ready.policy(settings), policy_steps=steps, seed=seed, on_record=records.append
    )
    over = sum(record.floor_violation for record in records[-LAST:]) / LAST
    return {
        "seed": seed, "rate": rate, "over": over, "dual": records[-1].dual, "accuracy": accuracy(ready, ended.student),
    }  # fmt: skip


if __name__ == "__main__":
    main()
