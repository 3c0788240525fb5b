"""Does a default run end inside the floor? The digits study learned online, by the rate of the floor's dual variable.

"in steps" is the teacher's cross-entropy on the images of policy steps, over its clean one and the floor,
mean of the last three epochs; "at the end" that of the policy a run ends with, on 30,000 views of training images over
their base views; test accuracy beside it, paired by seed. Below, of the default's rate, what the teacher loses by each
operation alone on all images, and what that makes at the rate at which the policy applies it.

Run:  python benchmarks/floor_rate.py [--seeds 15] [--rates 0.1 0.5] [--json FILE]      (5 minutes on one core)
"""

from dataclasses import replace
from itertools import product

import torch
from common import accuracy, interval, kept, made_ready, options
from rich.console import Console
from rich.table import Table

import kdsearch as kd
from kdsearch.core.maths import generator
from kdsearch.data.batches import batches_in_order
from kdsearch.distill.phase import PolicySteps
from kdsearch.distill.records import EpochRecord
from kdsearch.distill.steps import BaseDraw
from kdsearch.study.ready import Ready
from kdsearch.study.run import run_trial

LAST = 3  # epochs
VIEWS = 30_000  # at the end
ALONE = 3_000  # of each operation alone


def main() -> None:
    parser = options(__doc__, seeds=15)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.1, 0.5])
    arguments = parser.parse_args()
    ready, rates = made_ready(), arguments.rates
    rows = kept((run(ready, rate, seed) for seed, rate in product(range(arguments.seeds), rates)), arguments.json)
    columns = (
        "rate",
        "over the floor, nats: in steps",
        "at the end",
        "runs over it",
        "dual",
        "test accuracy, %",
        f"minus that at {rates[0]:g}",
    )
    table = Table(*columns, box=None)
    for rate in rates:
        mine, first = ([row for row in rows if row["rate"] == of] for of in (rate, rates[0]))
        names = ("over", "at the end", "dual", "accuracy")
        over, end, dual, right = (torch.tensor([row[name] for row in mine]) for name in names)
        differences = [one["accuracy"] - other["accuracy"] for one, other in zip(mine, first, strict=True)]
        table.add_row(
            f"{rate:g}", interval(over.tolist()), interval(end.tolist()), f"{int((end > 0).sum())} of {len(mine)}",
            f"{dual.mean():.2f}",
            f"{right.mean():.1f} ± {right.std() / len(mine) ** 0.5:.1f}",
            "" if rate == rates[0] else interval(differences, 1),
        )  # fmt: skip
    console = Console(width=140, highlight=False)
    console.print(f"{arguments.seeds} paired seeds; means with 95 % t intervals, accuracy ± standard error")
    console.print(table)
    mine = [row["operations"] for row in rows if row["rate"] == PolicySteps().floor_rate]
    if mine:
        console.print(by_operation(mine))


def by_operation(rows: list[dict[str, tuple[float, float]]]) -> Table:
    """Means over seeds: the rate of each operation, what it costs the teacher alone, and the product."""
    table = Table("operation", "rate", "alone, nats", "rate x alone", box=None)
    means = {name: torch.tensor([row[name] for row in rows]).mean(0).tolist() for name in rows[0]}
    for name, (rate, alone) in sorted(means.items(), key=lambda item: -item[1][0] * item[1][1]):
        table.add_row(name, f"{rate:.2f}", f"{alone:.2f}", f"{rate * alone:.3f}")
    return table


def run(ready: Ready, rate: float, seed: int) -> dict:
    settings, records = ready.space.settings(), list[EpochRecord]()
    steps, policy = replace(ready.policy_steps(settings), floor_rate=rate), ready.policy(settings)
    ended = run_trial(ready, None, policy=policy, policy_steps=steps, seed=seed, on_record=records.append)
    end = teacher_loss(ready, policy, VIEWS) - ready.clean.loss - (settings.floor or 0.0)
    low, high = (part.tolist() for part in policy.ranges())
    base = teacher_loss(ready, None, ALONE)
    operations = {}
    for i, (name, share) in enumerate(zip(policy.operations, policy.rate.tolist(), strict=True)):
        alone = kd.Policy.uniform({name: policy.limit[i].item() or None}, 1, fill=policy.fill)
        alone.fixed_low.fill_(low[i])
        alone.fixed_high.fill_(high[i])
        operations[name] = (share, teacher_loss(ready, alone, ALONE) - base)
    over = sum(record.floor_violation for record in records[-LAST:]) / LAST
    return {
        "seed": seed, "rate": rate, "over": over, "at the end": end, "dual": records[-1].dual,
        "accuracy": accuracy(ready, ended.student), "operations": operations,
    }  # fmt: skip


@torch.no_grad()
def teacher_loss(ready: Ready, policy: kd.Policy | None, views: int) -> float:
    """The teacher's mean cross-entropy, nats, on so many views of training images over their base views."""
    train, base, found = ready.study.train, ready.base_view.base, []
    for i in range(-(-views // len(train))):
        random = generator("teacher loss", i)
        for batch in batches_in_order(train, 256, ready.device):
            under = base and BaseDraw(base, base.draw(len(batch), random))
            draw = policy and policy.draw(len(batch), random)
            if draw and under:
                draw = under.under(draw)
            elif under:
                draw = under.draw
            images = kd.operations.apply(draw, batch.images).images if draw else batch.images
            found.append(ready.task.supervised(ready.teacher(images), batch.target))
    return torch.cat(found).mean().item()


if __name__ == "__main__":
    main()
