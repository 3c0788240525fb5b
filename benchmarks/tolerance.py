"""What does a study's teacher tolerate? Costs of each part of a base view alone, and of those that stay together.

Points are of accuracy on search-validation, the rest shares of the accuracy above chance; ± 95 % over images.
In the last line every image is shifted, turned and scaled, by the same draws filled one way and the other.

Run:  python benchmarks/tolerance.py [--study digits] [--draws 8] [--seeds 1] [--json FILE]      (20 seconds)
"""

import time
from collections.abc import Iterator
from dataclasses import asdict

import torch
from common import kept, made_ready, options
from rich.console import Console
from rich.table import Table

from kdsearch.augment.bases import base_of_parts
from kdsearch.augment.operations import apply
from kdsearch.core.maths import generator
from kdsearch.data.batches import batches_in_order
from kdsearch.probe.tolerance import DRAWS, FILLS, INTERVAL, Cost, find_tolerance
from kdsearch.study.ready import Ready
from kdsearch.study.study import load_study


def main() -> None:
    parser = options(__doc__, seeds=1)
    parser.add_argument("--study", default="digits")
    parser.add_argument("--draws", type=int, default=DRAWS, help="of each image")
    arguments = parser.parse_args()
    ready = made_ready(load_study(arguments.study)[0])
    console = Console(width=120, highlight=False)
    for row in kept(rows(ready, arguments.seeds, arguments.draws), arguments.json):
        table = Table("part", "draws", "points", "share lost, %", "worst class", "of it, %", box=None)
        for cost in (Cost(**found) for found in row["costs"]):
            lost, of_class = (
                f"{100 * value:.1f} ± {100 * INTERVAL * se:.1f}"
                for value, se in ((cost.loss, cost.se), (cost.worst_class_loss, cost.worst_class_se))
            )
            table.add_row(
                cost.part, str(cost.draws), f"{100 * cost.points:.1f}", lost, cost.worst_class or "-", of_class
            )
        console.print(row["found"])
        console.print(f"fill {row['fill']}; {row['seconds']:.1f} s")
        console.print(table)
        console.print(
            f"teacher right, all of it: {', '.join(f'{v:.2%} by {name}' for name, v in row['by fill'].items())}"
        )


def rows(ready: Ready, seeds: int, draws: int) -> Iterator[dict]:
    for seed in range(seeds):
        start = time.perf_counter()
        found = find_tolerance(
            ready.teacher, ready.study.search_validation, ready.task, device=ready.device, draws=draws, seed=seed
        )
        seconds = time.perf_counter() - start
        yield {"seed": seed, "found": found.describe(), "fill": found.fill, "seconds": seconds,
               "costs": [asdict(cost) for cost in found.costs],
               "by fill": {fill: right_when_moved(ready, fill, draws, seed) for fill in FILLS}}  # fmt: skip


@torch.no_grad()
def right_when_moved(ready: Ready, fill: str, draws: int, seed: int) -> float:
    """The teacher's accuracy on search-validation where every image is shifted, turned and scaled."""
    base, right = base_of_parts(["shift", "turn", "scale"], fill=fill, probability=1.0), []
    for batch in batches_in_order(ready.study.search_validation, 256, ready.device):
        for i in range(draws):
            images = apply(base.draw(len(batch), generator(seed, "by fill", i)), batch.images).images
            right.append(ready.task.correct(ready.teacher(images), batch.target))
    return torch.cat(right).float().mean().item()


if __name__ == "__main__":
    main()
