"""Is knowledge that only the teacher has found? Teachers trained with rotations up to 40 degrees, and without.

Digits, the full training set for teacher and student, teachers otherwise unaugmented, ten operations, rotations up to
80 degrees allowed, over the base view that each teacher tolerates. Per seed a planted and a null teacher of the same
start, and a policy learned with each beside a fresh student. The row of an operation: how far its probability rises
over the null policy.

The prior is stronger than the default (lambda 1): at .3 the probabilities of other operations differ between two runs
by more than rotation can rise, since with the null teacher its range shrinks until it is harmless.

Run:  python benchmarks/planted.py [--seeds 5] [--prior-strength 1] [--json FILE]      (6 minutes on one core)
"""

from collections.abc import Iterator
from functools import partial

import torch
from common import digits_teacher, kept, options
from rich.console import Console
from rich.table import Table

import kdsearch as kd
from kdsearch.probe.tolerance import find_tolerance

PLANT, LIMIT = 40.0, 80.0
NAMES = ["scale", "shear_x", "shear_y", "rotate", "translate_x", "translate_y", "brightness", "contrast", "sharpness",
         "noise"]  # fmt: skip
TASK = kd.Classification.of(10)


def main() -> None:
    parser = options(__doc__, seeds=5)
    parser.add_argument("--prior-strength", type=float, default=1.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    show(kept(runs(arguments.seeds, arguments.prior_strength), arguments.json))


def runs(seeds: int, prior_strength: float) -> Iterator[dict]:
    for seed in range(seeds):
        row: dict[str, float | str | int | dict[str, float]] = {"seed": seed}
        found = {}
        for kind, augment in (("null", None), ("planted", turning(PLANT))):
            teacher = digits_teacher("planted", seed, augment)
            row[f"{kind} teacher"], row[f"{kind} teacher, turned"] = accuracy(teacher, 0.0), accuracy(teacher, PLANT)
            found[kind], row[f"{kind} student"], row[f"{kind} rotate high"] = learned(teacher, seed, prior_strength)
        rise = {name: found["planted"][name] - found["null"][name] for name in NAMES}
        yield {**row, **found, "rise": rise, "first": max(rise, key=lambda name: rise[name])}


def turning(degrees: float) -> kd.Policy:
    """Always turned, by up to so many degrees either way."""
    return kd.Policy({"rotate": degrees}, 1, probability=0.999, extent=0.999)


@torch.no_grad()
def accuracy(network: torch.nn.Module, degrees: float) -> float:
    """On the test images, turned by up to so many degrees."""
    test = kd.data.digits()[2]
    images = test.images
    if degrees:
        policy = turning(degrees)
        images = policy.augment(policy.draw(len(test), torch.Generator().manual_seed(0)), images).images
    return 100 * kd.evaluate(network, kd.data.ArrayData(images, test.labels), TASK, 256, "cpu").value


def learned(teacher: torch.nn.Module, seed: int, prior_strength: float) -> tuple[dict[str, float], float, float]:
    """Probabilities, the student's test accuracy, and how far rotation goes."""
    train, search_validation, test = kd.data.digits()
    torch.manual_seed(seed)
    policy = kd.Policy({name: LIMIT if name == "rotate" else None for name in NAMES}, 4)
    optimizer = partial(torch.optim.AdamW, lr=2e-2, weight_decay=1e-2)
    asked = kd.networks.Teacher(teacher)
    distiller = kd.Distiller(asked, kd.networks.small_convnet(4), policy, TASK, optimizer=optimizer, seed=seed)
    base = find_tolerance(asked, search_validation, TASK, seed=seed).policy
    steps = kd.PolicySteps(prior_strength=prior_strength)
    phase = kd.Phase((kd.losses.kd(),), epochs=10, steps=60, batch=64, policy_steps=steps, base=base)
    for _ in distiller.run(phase, train, search_validation):
        pass
    found = dict(zip(policy.operations, policy.probability.tolist(), strict=True))
    high = policy.ranges()[1][policy.operations.index("rotate")].item()
    return found, 100 * kd.evaluate(distiller.student, test, TASK, 256, "cpu").value, high


def show(rows: list[dict]) -> None:
    table = Table("operation", "null", "planted", "rise", *(f"seed {row['seed']}" for row in rows), box=None)
    mean = {kind: {name: sum(row[kind][name] for row in rows) / len(rows) for name in NAMES}
            for kind in ("null", "planted", "rise")}  # fmt: skip
    for name in sorted(NAMES, key=lambda name: -mean["rise"][name]):
        cells = [f"{row['rise'][name]:+.2f}{' first' if row['first'] == name else ''}" for row in rows]
        table.add_row(name, *(f"{mean[kind][name]:.2f}" for kind in ("null", "planted")), f"{mean['rise'][name]:+.2f}",
                      *cells)  # fmt: skip
    console = Console(width=140, highlight=False)
    first = sum(row["first"] == "rotate" for row in rows)
    for kind in ("null", "planted"):
        keys = ("teacher", "teacher, turned", "student", "rotate high")
        a, b, c, d = (sum(row[f"{kind} {key}"] for row in rows) / len(rows) for key in keys)
        console.print(f"{kind} teacher {a:.1f} %, on images turned up to {PLANT:g} degrees {b:.1f} %; "
                      f"student {c:.1f} %; rotation learned up to {d:.0f} of {LIMIT:g} degrees")  # fmt: skip
    console.print(f"rotation rises most in {first} of {len(rows)} seeds")
    console.print(table)


if __name__ == "__main__":
    main()
