"""How much of what a teacher knows of shifted images has its student inherited? Twelve shifts, the same for everybody.

Eleven on gray images. Each has one magnitude, with random signs where the operation has one; what is random comes from
the seeds below, not from any policy. Geometry fills a gray image with its dark ground and a colour one by reflection,
as a moved camera would find more of either. At most 2,000 of the test images are taken, the first ones.

This file is frozen: rows that were read with it are compared with rows that will be. It stays as it is, shifts,
magnitudes, fills and seeds, until inherited competence takes its place as a measurement of kdsearch.

The table is what the shifts cost a study's teacher.

Run:  python benchmarks/shifted.py [--study digits] [--json FILE]      (half a minute on one core)
"""

import json
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

import torch
from common import made_ready, options
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import kdsearch as kd
from kdsearch.augment.operations import TABLE, apply
from kdsearch.core.maths import generator
from kdsearch.core.values import Draw
from kdsearch.data.batches import batches_in_order
from kdsearch.networks.outputs import run_network
from kdsearch.networks.teachers import evaluation_mode
from kdsearch.study.study import load_study

SHIFTS: Mapping[str, Mapping[str, float]] = {  # operations with their magnitudes, in their units
    "shift .1": {"translate_x": 0.1, "translate_y": 0.1},
    "across .2": {"translate_x": 0.2},
    "turn 15": {"rotate": 15.0},
    "scale .2": {"scale": 0.2},
    "shear .2": {"shear_x": 0.2},
    "perspective .2": {"perspective": 0.2},
    "brightness .4": {"brightness": 0.4},
    "contrast .4": {"contrast": 0.4},
    "hue .1": {"hue": 0.1},
    "gamma .5": {"gamma": 0.5},
    "blur .8": {"gaussian_blur": 0.8},
    "noise .08": {"noise": 0.08},
}
FILL = {1: "zero", 3: "reflect"}  # by channels
IMAGES, BATCH = 2_000, 500


class Shifted(NamedTuple):
    """What a network did on shifted images."""

    accuracy: float  # mean over shifts
    inherited: float  # of the images on which the teacher is right, the share it gets right; mean over shifts


def main() -> None:
    parser = options(__doc__, seeds=1)
    parser.add_argument("--study", default="digits", help="a shipped study, or the path of one")
    arguments = parser.parse_args()
    ready = made_ready(load_study(arguments.study)[0])
    assert isinstance(ready.study.test, kd.data.ArrayData)
    right = teacher_right(ready.teacher.network, ready.study.test, ready.task)
    rows = {name: 100 * found.double().mean().item() for name, found in right.items()}
    rows["mean"] = sum(rows.values()) / len(rows)
    table = Table("shift", "teacher's accuracy, %", box=None)
    for name, value in rows.items():
        table.add_row(name, f"{value:.1f}")
    console = Console(width=120, highlight=False)
    console.print(f"\n{arguments.study}, {min(IMAGES, len(ready.study.test)):,} test images")
    console.print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


def shifted_accuracy(
    network: nn.Module, teacher: nn.Module, data: kd.data.ArrayData, task: kd.Classification
) -> Shifted:
    """How well a network does on shifted images, all of them and those on which the teacher is right."""
    mine, told = right_on_shifted(network, data, task), teacher_right(teacher, data, task)
    accuracy = torch.stack([right.double().mean() for right in mine.values()])
    inherited = torch.stack([right[told[name]].double().mean() for name, right in mine.items()])
    return Shifted(accuracy.mean().item(), inherited.mean().item())


@cache
def shifted_images(data: kd.data.ArrayData) -> tuple[Mapping[str, Tensor], Tensor]:
    """The images (N, C, H, W) of each shift that suits them, and their labels (N,); kept, as students are many."""
    batch = next(batches_in_order(data, IMAGES))
    channels = batch.images.shape[1]
    fits = {name: parts for name, parts in SHIFTS.items() if all(TABLE[op].suits(channels) for op in parts)}
    return {name: apply(_drawn(name, len(batch), channels), batch.images).images for name in fits}, batch.target


@cache
def teacher_right(teacher: nn.Module, data: kd.data.ArrayData, task: kd.Classification) -> Mapping[str, Tensor]:
    """Where the teacher is right, (N,) bool of each shift; asked once."""
    return right_on_shifted(teacher, data, task)


@torch.no_grad()
def right_on_shifted(network: nn.Module, data: kd.data.ArrayData, task: kd.Classification) -> Mapping[str, Tensor]:
    """Where a network is right, (N,) bool of each shift."""
    shifted, target = shifted_images(data)
    found = {}
    with evaluation_mode(network):
        for name, images in shifted.items():
            answers = [run_network(network, part, "network").logits for part in images.split(BATCH)]
            found[name] = task.correct(kd.Outputs(torch.cat(answers)), target).bool()
    return found


def _drawn(name: str, size: int, channels: int) -> Draw:
    """All operations of a shift for each image, in the table's order, at its magnitudes with random signs."""
    operations = tuple(op for op in TABLE if op in SHIFTS[name])
    random, shape = generator("shifted", name), (size, len(operations))
    extra = max(TABLE[op].uniforms for op in operations)
    signed = torch.tensor([TABLE[op].signed for op in operations])
    flipped = torch.rand(shape, generator=random, dtype=torch.float64) < 0.5
    signs = torch.where(signed & flipped, -1.0, 1.0).double()
    return Draw(
        operations=operations,
        chosen=torch.arange(len(operations)).expand(shape),
        gates=torch.ones(shape, dtype=torch.bool),
        signs=signs,
        uniforms=torch.rand(*shape, 1 + extra, generator=random, dtype=torch.float64),
        magnitudes=signs * torch.tensor([SHIFTS[name][op] for op in operations], dtype=torch.float64),
        seeds=torch.randint(-(2**63), 2**63 - 1, (size,), generator=random),
        fill=FILL[channels],
    )


if __name__ == "__main__":
    main()
