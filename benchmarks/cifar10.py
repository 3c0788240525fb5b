"""What is the second view worth on CIFAR-10? ResNet-56 teaches ResNet-20: paired seeds, test accuracy, images a second.

Rows: plain KD on the base view alone; a second view identical to it; flip and crop, as everybody does; TrivialAugment's
rule over the default space; and the policy: learned beside the student at the default settings, or, with `--policy`,
one that was searched, held fixed. Same images, steps and seeds for all, and the same losses of each view, of which the
first row has one. The study is the shipped one, whose data is looked for in `data` or in $KDSEARCH_DATA; on a GPU it
has the full set and 20 epochs. With several runs at once seconds and images/s are those of a run among the others.

Run:  python benchmarks/cifar10.py [--seeds 2] [--epochs EPOCHS] [--policy policy.json] [--at-once 1] [--json FILE]
"""

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache

import torch
from common import accuracy, interval, kept, made_ready, options
from rich.console import Console
from rich.table import Table
from torchvision.transforms import v2

import kdsearch as kd
from kdsearch.study.ready import Ready
from kdsearch.study.run import run_trial
from kdsearch.study.study import load_study

STUDY = "cifar10_resnet56_resnet20"
NAMES = ("one view", "identity", "flip and crop", "trivial", "policy")
Asked = tuple[str, int, int | None, str | None]  # row, seed, epochs, policy


def main() -> None:
    parser = options(__doc__, seeds=2)
    parser.add_argument("--epochs", type=int, help="of each run; the study's own unless given")
    parser.add_argument("--policy", help="a policy.json, held fixed in the last row")
    parser.add_argument("--at-once", type=int, default=1, help="runs at a time, each in a process of its own")
    arguments = parser.parse_args()
    asked = [(name, seed, arguments.epochs, arguments.policy) for seed in range(arguments.seeds) for name in NAMES]
    show(kept(runs(asked, arguments.at_once), arguments.json), arguments.at_once)


@cache
def ready() -> Ready:
    """The study made ready, once in each process."""
    return made_ready(load_study(STUDY)[0])


def runs(asked: list[Asked], at_once: int) -> Iterator[dict]:
    if at_once == 1:
        yield from map(run, asked)
        return
    load_study(STUDY)  # what is not there is downloaded once
    os.environ["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // at_once))  # of the processes
    with ProcessPoolExecutor(at_once, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(run, asked)


def run(asked: Asked) -> dict:
    name, seed, epochs, file = asked
    return train(ready(), name, seed, epochs, file)


def train(ready: Ready, name: str, seed: int = 0, epochs: int | None = None, file: str | None = None) -> dict:
    """One run with the second view of a row, and what it is worth on the test images."""
    study = ready.study
    budget = replace(study.budget, epochs=epochs or study.budget.epochs)
    views = kd.Views(labels="base", distillation="base") if name == "one view" else study.views
    here = replace(ready, study=replace(study, budget=budget, views=views))
    settings = here.space.settings()
    policy: kd.Policy | kd.FixedTransform | None = None
    if name == "flip and crop":
        policy = kd.FixedTransform(v2.Compose([v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()]))
    elif name == "policy" and file:
        policy = kd.Policy.from_spec(kd.PolicySpec.load(file))
    elif name != "one view":
        policy = here.reference("start" if name == "policy" else name, settings)
    steps = here.policy_steps(settings) if name == "policy" and not file else None
    outcome = run_trial(here, None, policy=policy, policy_steps=steps, seed=seed)
    images = budget.epochs * budget.steps * budget.batch
    return {
        "row": name,
        "seed": seed,
        "epochs": budget.epochs,
        "images": len(study.train),
        "device": torch.cuda.get_device_name() if here.device != "cpu" else "cpu",
        "precision": study.precision,
        "policy": file,
        "accuracy": accuracy(here, outcome.student),
        "seconds": outcome.seconds,
        "images_per_s": images / outcome.seconds,
    }


def show(rows: list[dict], at_once: int) -> None:
    """Means over seeds, and paired differences to the identical second view."""
    of = {name: [row for row in rows if row["row"] == name] for name in NAMES}
    first, seeds = rows[0], len(of["identity"])
    table = Table("second view", "test accuracy, %", "each seed", "minus identity", "seconds", "images/s", box=None)
    for name, mine in of.items():
        mean, seconds, rate = (
            torch.tensor([row[key] for row in mine]).mean() for key in ("accuracy", "seconds", "images_per_s")
        )
        pairs = [a["accuracy"] - b["accuracy"] for a, b in zip(mine, of["identity"], strict=True)]
        each = " ".join(f"{row['accuracy']:.1f}" for row in mine)
        less = interval(pairs, digits=1) if name != "identity" and seeds > 1 else ""
        table.add_row(name, f"{mean:.1f}", each, less, f"{seconds:.0f}", f"{rate:,.0f}")
    console = Console(width=120, highlight=False)
    console.print(
        f"\n{first['device']}, {first['precision']}, torch {torch.__version__}, {at_once} at once; "
        f"{first['images']:,} training images, {first['epochs']} epochs, {seeds} paired seeds, 95 % intervals"
    )
    console.print(table)


if __name__ == "__main__":
    main()
