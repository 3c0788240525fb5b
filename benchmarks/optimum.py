"""Does a probability end where the law says? `sigmoid(logit(p0) + (L0 - L1) / lambda)`, with a trained pair on digits.

L1 and L0 are the mean losses of the training images with and without the operation, measured. The networks and the
ranges are held, the floor is off, the learning rate falls as a cosine, and the probability is averaged over the last
quarter of the steps. lambda is |L0 - L1|, so that the loss moves the logit by one; p0 is chosen for optima of .1, .5
and .9. With several operations per image the others' gates are held at 0; lambda and p0 stay as they are.

Run:  python benchmarks/optimum.py [--seeds 5] [--json FILE]      (40 minutes on one core)
"""

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from common import kept, made_ready, options
from rich.console import Console
from rich.table import Table

import kdsearch as kd
from kdsearch.core.maths import generator
from kdsearch.data.batches import batches_in_order
from kdsearch.distill.distiller import Distiller
from kdsearch.distill.estimators import GATES
from kdsearch.study.ready import Ready
from kdsearch.study.run import run_trial

OPERATION, OTHERS, STEPS, WITHIN = "rotate", 7, 400, 0.05


def main() -> None:
    arguments = options(__doc__, seeds=5).parse_args()
    ready = made_ready()
    student = run_trial(ready, None, policy=ready.policy(ready.space.settings()), seed=1).student
    assert student is not None
    without, with_it = losses(ready, student)
    rows = kept(runs(ready, student, without - with_it, arguments.seeds), arguments.json)
    table = Table("per image", "of", "start", "gates", "optimum", "ends at", f"within {WITHIN}", box=None)
    for row in rows:
        ends = " ".join(f"{end:.3f}" for end in row["ends"])
        table.add_row(*(str(row[k]) for k in ("per image", "operations", "start", "gates", "optimum")), ends,
                      f"{row['inside']} of {len(row['ends'])}")  # fmt: skip
    console = Console(width=120, highlight=False)
    console.print(f"{OPERATION}: L0 {without:.3f}, L1 {with_it:.3f} nats; lambda {abs(without - with_it):.3f}")
    console.print(table)


def runs(ready: Ready, student: torch.nn.Module, gain: float, seeds: int) -> Iterator[dict[str, object]]:
    cases = [(1, 0, start) for start in (0.1, 0.9)] + [(n, OTHERS, 0.5) for n in (1, 2, 4)]
    for n, others, start in cases:
        for gates in GATES:
            for optimum in (0.1, 0.5, 0.9):
                ends = [learned(ready, student, optimum, gain, start, n, others, gates, seed) for seed in range(seeds)]
                inside = sum(abs(end - optimum) <= WITHIN for end in ends)
                yield {"per image": n, "operations": others + 1, "start": start, "gates": gates, "optimum": optimum,
                       "ends": ends, "inside": inside}  # fmt: skip


def start_policy(ready: Ready, n: int, others: int, probability: float) -> kd.Policy:
    limits = dict(ready.space.limits)
    names = [OPERATION, *[name for name in limits if name != OPERATION][:others]]
    return kd.Policy({name: limits[name] for name in names}, n, probability=probability)


@torch.no_grad()
def losses(ready: Ready, student: torch.nn.Module, repeats: int = 64) -> tuple[float, float]:
    """Mean losses of the training images without and with the operation, over its magnitudes."""
    policy, found = start_policy(ready, 1, 0, 0.5), []
    batch = next(batches_in_order(ready.study.train, len(ready.study.train)))
    for gate in (False, True):
        total = 0.0
        for i in range(repeats if gate else 1):
            draw = policy.draw(len(batch), generator("losses", i))
            draw = replace(draw, gates=torch.full_like(draw.gates, gate))
            images = kd.operations.apply(draw, batch.images).images
            logits = student.eval()(images), ready.teacher(images).logits
            total += kd.objectives.weighted_sum(ready.study.objective, *logits, batch.target).double().mean().item()
        found.append(total / (repeats if gate else 1))
    return found[0], found[1]


def learned(
    ready: Ready,
    student: torch.nn.Module,
    optimum: float,
    gain: float,
    start: float,
    n: int,
    others: int,
    gates: str,
    seed: int,
) -> float:
    """Where the probability ends."""
    strength = abs(gain)
    centre = 1 / (1 + math.exp(-(math.log(optimum / (1 - optimum)) - gain / strength)))
    policy = start_policy(ready, n, others, centre)
    here = policy.operations.index(OPERATION)
    hold = torch.full_like(policy.logit, -40.0)

    def set_others() -> None:
        with torch.no_grad():
            policy.logit.copy_(torch.where(torch.arange(len(hold)) == here, policy.logit, hold))

    with torch.no_grad():
        policy.logit.fill_(math.log(start / (1 - start)))
    set_others()
    for parameter in (policy.a, policy.b):
        parameter.requires_grad_(False)
    distiller = Distiller(ready.teacher, student, policy, ready.task)
    steps = kd.PolicySteps(prior_strength=strength, objective=ready.study.objective, floor=None, gates=gates)
    optimizer = torch.optim.Adam([policy.logit], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    random, values = generator("optimum", seed), []
    for batch in kd.data.shuffled(ready.study.train, 64, STEPS, "optimum", seed):
        distiller.policy_step(batch, steps, optimizer, random)
        schedule.step()
        set_others()
        values.append(policy.probability[here].item())
    return sum(values[-STEPS // 4 :]) / (STEPS // 4)


if __name__ == "__main__":
    main()
