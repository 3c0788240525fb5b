"""Every distillation loss in the few-shot digits study: test accuracy over paired seeds, alone and beside KD.

The policy is the study's start, held still, so that only the loss differs; cross-entropy with the labels of the base
view is in every row. Features are those after each of the three blocks, of 4, 8, 16 channels in the student and 24, 48,
96 in the teacher, so that hint and nfd learn projections; rkd has the pooled vector. Losses on logits have weight 1;
one on features gets the weight, two digits of it, that makes it as large as KD on the first batch: nothing is tuned.

Run:  python benchmarks/losses.py [--seeds 10] [--json FILE]      (about half an hour on 1 core)
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from common import accuracy, interval, kept, made_ready, options
from rich.console import Console
from rich.table import Table

import kdsearch as kd
from kdsearch.study.ready import Ready
from kdsearch.study.run import run_trial

PAIRS = [("2", "2"), ("5", "5"), ("8", "8")]  # after the ReLU of each block
LAST = "10"  # the pooled vector before the linear layer


def losses_of(ready: Ready) -> dict[str, tuple[kd.Loss, ...]]:
    """The losses of each row."""
    plain = kd.losses.kd()
    made: dict[str, tuple[kd.Loss, ...]] = {"labels alone": (plain.times(0.0),)}
    for name, kind in kd.losses.TABLE.items():
        if kind.compares == "logits":
            made[name] = (kind(),)
            continue
        loss = kind(LAST) if name == "rkd" else kind(pairs=PAIRS)
        first, other = sizes(ready, (plain, loss))
        loss = loss.times(float(f"{first / other:.2g}"))
        made |= {name: (loss,), f"kd + {name}": (plain, loss)}
    return made


def sizes(ready: Ready, losses: tuple[kd.Loss, ...]) -> list[float]:
    """Of each loss on the first batch, with a student at its start."""
    torch.manual_seed(0)
    study, phase = ready.study, kd.Phase(losses, batch=ready.study.budget.batch)
    batch = next(kd.data.shuffled(study.train, phase.batch, 1, 0))
    policy = ready.policy(ready.space.settings())
    distiller = kd.Distiller(ready.teacher, study.student(), policy, ready.task)
    distiller.fit(phase, batch.images[:2])
    return distiller.student_step(batch, phase, torch.Generator().manual_seed(0))[6:].tolist()


def measured(seeds: int) -> Iterator[dict]:
    ready = made_ready()
    study, settings, rows = ready.study, ready.space.settings(), losses_of(ready)
    for seed in range(seeds):
        for name, losses in rows.items():
            other = replace(ready, study=replace(study, loss=losses))
            outcome = run_trial(other, None, policy=ready.policy(settings), seed=seed)
            right = accuracy(ready, outcome.student)
            weight = losses[-1].weight
            yield {
                "losses": name,
                "weight": weight if isinstance(weight, float) else weight.last,
                "seed": seed,
                "accuracy": right,
                "seconds": outcome.seconds,
            }


def main() -> None:
    arguments = options(__doc__, seeds=10).parse_args()
    found = kept(measured(arguments.seeds), arguments.json)
    names = list(dict.fromkeys(row["losses"] for row in found))
    weights = {row["losses"]: row["weight"] for row in found}
    values = {name: torch.tensor([r["accuracy"] for r in found if r["losses"] == name]).double() for name in names}
    plain, labels = values["kd"], values["labels alone"]
    seconds = {name: [r["seconds"] for r in found if r["losses"] == name] for name in values}
    base = sum(seconds["kd"])
    table = Table("losses", "weight", "test accuracy, %", "minus labels alone", "minus kd", "time / kd", box=None)
    for name, mine in values.items():
        error = mine.std() / len(mine) ** 0.5
        differences = [
            "" if other is mine else interval((mine - other).tolist(), digits=1) for other in (labels, plain)
        ]
        table.add_row(
            name,
            f"{weights[name]:g}",
            f"{mine.mean():.1f} ± {error:.1f}",
            *differences,
            f"{sum(seconds[name]) / base:.2f}",
        )
    console = Console(width=120, highlight=False)
    console.print(f"\n{arguments.seeds} paired seeds, mean ± standard error; 95 % intervals of paired differences")
    console.print(table)


if __name__ == "__main__":
    main()
