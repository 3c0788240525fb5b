"""How long distillation steps take, beside a plain loop that does the same work, in one run.

    python benchmarks/distill.py [--json FILE] [--device cuda] [--precision bfloat16] [--compiled] [--rounds 5]

ResNet-56 teaches ResNet-20 on 32x32 images, batch 128: as many views as a row says, the second one by the policy of the
default search space at its start, cross-entropy on the base view, soft targets on all. Rows take turns, 10 student
steps each, evaluation of 256 images at the end included; a policy step of the default size, half the batch, comes every
10 student steps, without warm-up, so that each turn has a whole one. Below them stand steps and parts of one by
themselves, in turn as well.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax, softmax

import kdsearch as kd
from kdsearch.distill.phase import Phase, PolicySteps, Precision
from kdsearch.distill.views import VIEWS
from kdsearch.networks.outputs import arrange_network

BATCH, STEPS = 128, 10
TEMPERATURE = 4.0
OPERATIONS = 4  # per image: the default space's own


def plain_loop(
    teacher: nn.Module,
    student: nn.Module,
    data: kd.data.ArrayData,
    policy: kd.Policy,
    *,
    views: int,
    device: str,
    half: Callable[[], AbstractContextManager],
) -> None:
    """Distillation as one writes it by hand."""
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    random = torch.Generator().manual_seed(0)
    order = torch.randperm(len(data), generator=random)
    teacher.eval()
    student.train()
    for step in range(STEPS):
        index = order[step * BATCH : (step + 1) * BATCH].to(device)
        images, labels = data.images[index] / 255, data.labels[index]
        with torch.no_grad(), half():
            view = policy.augment(policy.draw(BATCH, random), images).images
            seen = torch.cat([images, view]) if views == 2 else view
            told = teacher(seen)
        with half():
            said = student(seen)
        log_p, log_q = log_softmax(told / TEMPERATURE, 1), log_softmax(said / TEMPERATURE, 1)
        soft = (softmax(told / TEMPERATURE, 1) * (log_p - log_q)).sum(1).mean() * TEMPERATURE**2
        loss = cross_entropy(said[:BATCH], labels) + views * soft
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    student.eval()
    with torch.no_grad():
        (student(data.images[:256] / 255).argmax(1) == data.labels[:256]).sum().item()


@cache
def default_space() -> kd.SearchSpace:
    return kd.SearchSpace.load("default")


@dataclass(frozen=True)
class Pair:
    """A teacher and a student on a device, and random images."""

    device: str
    precision: Precision
    batch: int
    teacher: nn.Module
    student: nn.Module
    data: kd.data.ArrayData  # the images of `STEPS` batches

    def half(self) -> AbstractContextManager:
        return torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.precision == "bfloat16")

    def policy(self) -> kd.Policy:
        """That of the default search space at its start."""
        return kd.Policy(default_space().limits, OPERATIONS, fill=default_space().fill)

    def distiller(self) -> kd.Distiller:
        return kd.Distiller(
            kd.networks.Teacher(self.teacher),
            self.student,
            self.policy(),
            kd.Classification.of(10),
            optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4),
            device=self.device,
            clean_loss=2.3,
            precision=self.precision,
        )


def make_pair(
    device: str,
    precision: Precision = "float32",
    *,
    compiled: bool = False,
    depths: Sequence[int] = (56, 20),
    batch: int = BATCH,
) -> Pair:
    torch.manual_seed(0)
    images = torch.randint(256, (batch * STEPS, 3, 32, 32), dtype=torch.uint8)
    data = kd.data.ArrayData(images, torch.randint(10, (len(images),))).to(device)
    teacher, student = (
        arrange_network(kd.networks.cifar_resnet(d), device, channels=3, compiled=compiled) for d in depths
    )
    return Pair(device, precision, batch, teacher, student, data)


def rows(options: argparse.Namespace) -> Iterator[dict]:
    """One row for each way to do it."""
    pair = make_pair(options.device, options.precision, compiled=options.compiled, batch=BATCH)
    device, data, half, policy, distiller = pair.device, pair.data, pair.half, pair.policy, pair.distiller
    few = kd.data.ArrayData(data.images[:256], data.labels[:256])
    contiguous = [kd.networks.cifar_resnet(depth).to(device) for depth in (56, 20)]

    def plain(views: int, networks: list[nn.Module]) -> Callable[[], None]:
        def turn() -> None:
            teacher, student = networks
            plain_loop(teacher, student, data, policy(), views=views, device=device, half=half)

        return turn

    def ours(views: str, steps: PolicySteps | None) -> Callable[[], None]:
        phase = Phase((kd.losses.kd(TEMPERATURE),), 1, STEPS, BATCH, steps, views=VIEWS[views])

        def turn() -> None:
            list(distiller().run(phase, data, few))

        return turn

    every = PolicySteps(interval=STEPS, warm_up=0.0)
    turns = {
        ("plain loop", 2): plain(2, [pair.teacher, pair.student]),
        ("kdsearch", 2): ours("default", None),
        ("kdsearch, a policy step every 10", 2): ours("default", every),
        ("kdsearch, a policy step of 128 images every 10", 2): ours("default", replace(every, batch=BATCH)),
        ("plain loop, weights not channels last", 2): plain(2, contiguous),
        ("plain loop", 1): plain(1, [pair.teacher, pair.student]),
        ("kdsearch", 1): ours("one", None),
        ("kdsearch, a policy step every 10", 1): ours("one", every),
    }
    times = in_turn(list(turns.values()), options.rounds, device)
    found = {key: statistics.median(values) / STEPS for key, values in zip(turns, times, strict=True)}
    ratios = {key: [a / b for a, b in zip(values, times[list(turns).index(base(key))], strict=True)]
              for key, values in zip(turns, times, strict=True)}  # fmt: skip
    for key, seconds in found.items():
        name, views = key
        row = {"row": name, "views": views, "seconds": seconds, "images_per_s": BATCH / seconds}
        yield row | {"of": base(key)[0], "ratio": statistics.median(ratios[key])}
    yield from parts(data, distiller(), device, half)


def base(key: tuple[str, int]) -> tuple[str, int]:
    """What a row is compared with, in the same round."""
    name, views = key
    return ("kdsearch" if "policy" in name else "plain loop", views)


def parts(
    data: kd.data.ArrayData, distiller: kd.Distiller, device: str, half: Callable[[], AbstractContextManager]
) -> Iterator[dict]:
    """Steps of kdsearch and the parts of one, each by itself, in turn."""
    policy, random = distiller.policy, torch.Generator().manual_seed(0)
    assert isinstance(policy, kd.Policy)
    steps, optimizer = PolicySteps(), torch.optim.Adam(policy.parameters())
    batch = kd.Batch(data.images[:BATCH] / 255, data.labels[:BATCH], torch.arange(BATCH, device=device))
    few = batch.rows(slice(0, BATCH // 2))

    for views, rule in ((2, "default"), (1, "one")):
        phase, x = Phase((kd.losses.kd(TEMPERATURE),), views=VIEWS[rule]), torch.cat([batch.images] * views)

        def told(x: Tensor = x) -> None:
            distiller.teacher.network.eval()
            with torch.no_grad(), half():
                distiller.teacher.network(x)

        def learned(x: Tensor = x) -> None:
            distiller.student.train()
            with half():
                said = distiller.student(x)
            said.float().logsumexp(1).mean().backward()

        found: dict[str, Callable[[], object]] = {
            "a student step": partial(distiller.student_step, batch, phase, random),
            "teacher forward": told,
            "student forward and backward": learned,
            "augmentation": lambda: policy.augment(policy.draw(BATCH, random), batch.images),
            "a policy step": partial(distiller.policy_step, few, steps, optimizer, random),
            "a policy step of 128 images": partial(distiller.policy_step, batch, steps, optimizer, random),
        }
        seconds = [statistics.median(times) for times in in_turn(list(found.values()), 9, device)]
        for name, value in zip(found, seconds, strict=True):
            yield {"row": name, "views": views, "seconds": value, "of": "a student step", "ratio": value / seconds[0]}


def in_turn(calls: Sequence[Callable[[], object]], rounds: int, device: str) -> list[list[float]]:
    """Seconds of each call, one after another, round by round; a round to warm up."""
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(rounds + 1):
        for call, kept in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            if device != "cpu":
                torch.cuda.synchronize(device)
            if turn:
                kept.append(time.perf_counter() - start)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    where = torch.cuda.get_device_name() if options.device != "cpu" else platform.machine()
    threads = torch.get_num_threads()
    table = Table(title=f"{where}, {threads} threads; torch {torch.__version__}; {options.precision}", box=None)
    for column in ("views", "row", "seconds", "images/s", "ratio", "to"):
        table.add_column(column, justify="left" if column in ("row", "to") else "right")
    found = list(rows(options))
    for row in found:
        rate = f"{row['images_per_s']:,.0f}" if "images_per_s" in row else ""
        table.add_row(str(row["views"]), row["row"], f"{row['seconds']:.4f}", rate, f"{row['ratio']:.3f}", row["of"])
    Console(width=150).print(table)
    if options.json:
        facts = {"machine": where, "threads": threads, "torch": torch.__version__, "precision": options.precision}
        options.json.write_text(json.dumps([{**facts, **row} for row in found], indent=1) + "\n")


if __name__ == "__main__":
    main()
