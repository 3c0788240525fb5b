"""What does the floor hold back? A policy of noise alone, told only to make the student wrong, on digits.

The noise may go up to its hard range (deviation 1), the prior is weak (lambda .03). With the floor off nothing speaks
against it; with it on the teacher's cross-entropy on the policy's images should end within .1 nats of its clean one
plus .3. Everything is measured on the training images with the policy that a run ends with, over 50 draws of each.

Run:  python benchmarks/floor.py [--seeds 5] [--json FILE]      (3 minutes on one core)
"""

from dataclasses import replace

import torch
from common import kept, made_ready, options
from rich.console import Console
from rich.table import Table

import kdsearch as kd
from kdsearch.core.maths import generator
from kdsearch.data.batches import batches_in_order
from kdsearch.study.ready import Ready

DELTA = 0.3


def main() -> None:
    arguments = options(__doc__, seeds=5).parse_args()
    ready = made_ready()
    rows = kept((run(ready, floor, seed) for floor in (None, DELTA) for seed in range(arguments.seeds)), arguments.json)
    table = Table("floor", "seed", "probability of noise", "deviation of noise", "teacher right on noisy images",
                  "teacher CE on the policy's images", "clean CE + floor", "dual", box=None)  # fmt: skip
    for row in rows:
        limit = "" if row["floor"] is None else f"{ready.clean.loss + DELTA:.3f}"
        table.add_row(
            "off" if row["floor"] is None else "on", str(row["seed"]), f"{row['probability']:.3f}",
            f"{row['low']:.2f} to {row['high']:.2f}", f"{row['noisy']:.1%}", f"{row['teacher_ce']:.3f}", limit,
            f"{row['dual']:.2f}",
        )  # fmt: skip
    Console(width=150, highlight=False).print(table)


def run(ready: Ready, floor: float | None, seed: int) -> dict[str, float | int | None]:
    study, budget = ready.study, ready.study.budget
    policy = kd.Policy({"noise": kd.operations.TABLE["noise"].hard}, 1)
    torch.manual_seed(seed)
    distiller = kd.Distiller(
        ready.teacher, study.student(), policy, ready.task, optimizer=study.optimizer, seed=seed,
        clean_loss=ready.clean.loss,
    )  # fmt: skip
    steps = kd.PolicySteps(interval=1, prior_strength=0.03, objective={"student_wrong": 1.0}, floor=floor)
    phase = kd.Phase(study.losses, budget.epochs, budget.steps, budget.batch, steps)
    for _ in distiller.run(phase, study.train, study.search_validation):
        pass
    low, high = (end.item() for end in policy.ranges())
    ended = {"probability": policy.probability.item(), "low": low, "high": high, "dual": distiller.dual}
    return {"floor": floor, "seed": seed, **ended, **teacher_on(ready, policy)}


@torch.no_grad()
def teacher_on(ready: Ready, policy: kd.Policy, repeats: int = 50) -> dict[str, float]:
    """Accuracy on images that all got noise, cross-entropy on the images as the policy makes them."""
    batch = next(batches_in_order(ready.study.train, len(ready.study.train)))
    noisy, loss = 0.0, 0.0
    for i in range(repeats):
        draw = policy.draw(len(batch), generator("floor", i))
        outputs = ready.teacher(policy.augment(draw, batch.images).images)
        loss += ready.task.supervised(outputs, batch.target).mean().item() / repeats
        every = replace(draw, gates=torch.ones_like(draw.gates))
        outputs = ready.teacher(policy.augment(every, batch.images).images)
        noisy += ready.task.correct(outputs, batch.target).float().mean().item() / repeats
    return {"noisy": noisy, "teacher_ce": loss}


if __name__ == "__main__":
    main()
