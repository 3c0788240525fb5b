"""How long distillation steps take, beside a plain loop that does the same work, in one run.

    python benchmarks/distill.py [--json FILE] [--device cuda] [--precision bfloat16] [--compiled] [--rounds 3]

ResNet-56 teaches ResNet-20 on 32x32 images, batch 128: as many views as a row says, the second one by the policy of the
default search space at its start, cross-entropy on the base view, soft targets on all. Rows take turns, 10 student
steps each, evaluation of 256 images at the end included.

"bare" has the images as they are as base views. A warm table has the teacher's answers on all of them, as every run of
a study after its first; a cold one is filled within the turn, and asked once about each of its 1,280 answers; tables
come with the fused teacher. In "identity" the second view is the base view. A base view that is drawn afresh is
shifted, flipped, turned and scaled, each with probability .5. Policy steps are of the default size, half the batch, one
every 10 student steps without warm-up, so that each turn has a whole one. A default run has one every 3 after a
warm-up, as the space starts, and the look for disagreement at its end; JPEGs are read by two processes.
Below stand parts of a step by themselves, in turn as well.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax, softmax
from torchvision.transforms.v2.functional import to_pil_image

import kdsearch as kd
from kdsearch.augment.bases import PARTS, base_of_parts
from kdsearch.data.batches import place_data
from kdsearch.data.folders import ImageFolder
from kdsearch.data.items import MapStyle
from kdsearch.distill.answers import AnswerTables
from kdsearch.distill.phase import Phase, PolicySteps, Precision
from kdsearch.distill.steps import BaseDraw
from kdsearch.distill.views import VIEWS
from kdsearch.networks.fusing import fused_copy
from kdsearch.networks.outputs import arrange_network
from kdsearch.probe.disagreement import Probe, plan_look
from kdsearch.probe.evaluation import TeacherMeasurement
from kdsearch.study.base_view import BaseView
from kdsearch.study.ready import Ready
from kdsearch.study.run import run_trial

BATCH, STEPS = 128, 10
TEMPERATURE = 4.0
OPERATIONS = 4  # per image: the default space's own
DEPTHS = (56, 20)  # of teacher and student
PLAIN, BARE, AFRESH = "plain loop", "bare, teacher as given", "base drawn afresh"
LOSS = kd.losses.kd(TEMPERATURE)


def plain_loop(
    teacher: nn.Module,
    student: nn.Module,
    data: kd.data.ArrayData,
    policy: kd.Policy,
    *,
    views: int,
    batch: int,
    device: str,
    half: Callable[[], AbstractContextManager],
) -> None:
    """Distillation as one writes it by hand."""
    optimizer = sgd(student.parameters())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    random = torch.Generator().manual_seed(0)
    order = torch.randperm(len(data), generator=random)
    teacher.eval()
    student.train()
    for step in range(STEPS):
        index = order[step * batch : (step + 1) * batch].to(device)
        images, labels = data.images[index] / 255, data.labels[index]
        with torch.no_grad(), half():
            view = policy.augment(policy.draw(batch, random), images).images
            seen = torch.cat([images, view]) if views == 2 else view
            told = teacher(seen)
        with half():
            said = student(seen)
        log_p, log_q = log_softmax(told / TEMPERATURE, 1), log_softmax(said / TEMPERATURE, 1)
        soft = (softmax(told / TEMPERATURE, 1) * (log_p - log_q)).sum(1).mean() * TEMPERATURE**2
        loss = cross_entropy(said[:batch], labels) + views * soft
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


def sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)


@dataclass(frozen=True)
class Pair:
    """A teacher and a student on a device, and random images."""

    device: str
    precision: Precision
    batch: int
    teacher: nn.Module
    student: nn.Module
    data: kd.data.ArrayData  # the images of `STEPS` batches
    depth: int  # of the student
    compiled: bool

    def half(self) -> AbstractContextManager:
        return torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.precision == "bfloat16")

    def policy(self) -> kd.Policy:
        """That of the default search space at its start."""
        return kd.Policy(default_space().limits, OPERATIONS, fill=default_space().fill)

    def fused(self) -> kd.networks.Teacher:
        """The teacher as a study has it."""
        copy = fused_copy(self.teacher, self.data.images[:16] / 255).network
        assert copy is not None
        return kd.networks.Teacher(self.teacher, copy)

    def distiller(
        self,
        teacher: kd.networks.Teacher | None = None,
        policy: kd.Policy | None = None,
        tables: AnswerTables | None = None,
    ) -> kd.Distiller:
        """The teacher as given and the policy of the default space, where there are no others."""
        return kd.Distiller(
            teacher or kd.networks.Teacher(self.teacher),
            self.student,
            policy or self.policy(),
            kd.Classification.of(10),
            optimizer=sgd,
            device=self.device,
            clean_loss=2.3,
            precision=self.precision,
            tables=tables,
        )


def make_pair(
    device: str,
    precision: Precision = "float32",
    *,
    compiled: bool = False,
    depths: Sequence[int] = DEPTHS,
    batch: int = BATCH,
) -> Pair:
    torch.manual_seed(0)
    images = torch.randint(256, (batch * STEPS, 3, 32, 32), dtype=torch.uint8)
    data = kd.data.ArrayData(images, torch.randint(10, (len(images),))).to(device)
    teacher, student = (
        arrange_network(kd.networks.cifar_resnet(d), device, channels=3, compiled=compiled) for d in depths
    )
    return Pair(device, precision, batch, teacher, student, data, depths[1], compiled)


class Turn(NamedTuple):
    """Some steps of one way to distil."""

    row: str
    views: int
    of: str  # the row that it is compared with
    call: Callable[[], object]


def turns(pair: Pair, folder: Path) -> list[Turn]:
    """One for each way to do it.

    Args:
        folder: An empty one, for images and a run.
    """
    device, data, batch = pair.device, pair.data, pair.batch
    few = kd.data.ArrayData(data.images[:256], data.labels[:256])
    given, fused = kd.networks.Teacher(pair.teacher), pair.fused()
    base = base_of_parts([*PARTS])
    files = place_data(write_folder(folder / "jpegs", data), readers=2, device=device)
    ready, warm = default_run(pair, fused, few), AnswerTables()

    def plain(views: int) -> None:
        plain_loop(
            pair.teacher, pair.student, data, pair.policy(), views=views, batch=batch, device=device, half=pair.half
        )

    def ours(phase: Phase, *, teacher: kd.networks.Teacher = fused, tables: AnswerTables | None = None,
             identity: bool = False, train: MapStyle = data) -> None:  # fmt: skip
        distiller = pair.distiller(teacher, tables=tables)
        if identity:
            distiller.policy = None
        list(distiller.run(phase, train, few))

    def run() -> None:
        settings = ready.space.settings()
        learner, steps = ready.policy(settings), ready.policy_steps(settings)
        run_trial(ready, folder / "run", policy=learner, policy_steps=steps, checkpoint=folder / "checkpoint.pt")
        (folder / "checkpoint.pt").unlink()

    whole = partial(Phase, (LOSS,), 1, STEPS, batch)
    bare, afresh, every = whole(), whole(base=base), PolicySteps(interval=STEPS, warm_up=0.0)
    alone = AnswerTables(False)
    return [
        Turn(PLAIN, 2, PLAIN, partial(plain, 2)),
        Turn(BARE, 2, PLAIN, partial(ours, bare, teacher=given, tables=alone)),
        Turn("bare, teacher fused", 2, PLAIN, partial(ours, bare, tables=alone)),
        Turn("bare, warm table", 2, PLAIN, partial(ours, bare, tables=warm)),
        Turn("bare, cold table", 2, PLAIN, partial(ours, bare)),
        Turn("identity, warm table", 2, PLAIN, partial(ours, bare, tables=warm, identity=True)),
        Turn("identity, cold table", 2, PLAIN, partial(ours, bare, identity=True)),
        Turn(AFRESH, 2, PLAIN, partial(ours, afresh)),
        Turn(f"{AFRESH}, a policy step every 10", 2, AFRESH, partial(ours, whole(base=base, policy_steps=every))),
        Turn("a whole default run", 2, AFRESH, run),
        Turn(f"{AFRESH}, JPEGs read by 2 processes", 2, AFRESH, partial(ours, afresh, train=files)),
        Turn(PLAIN, 1, PLAIN, partial(plain, 1)),
        Turn(BARE, 1, PLAIN, partial(ours, whole(views=VIEWS["one"]), teacher=given, tables=alone)),
    ]  # fmt: skip


def write_folder(folder: Path, data: kd.data.ArrayData) -> ImageFolder:
    """The images as JPEGs, in a folder for each class."""
    for place, (image, label) in enumerate(zip(data.images.cpu(), data.labels.tolist(), strict=True)):
        (folder / f"{label}").mkdir(parents=True, exist_ok=True)
        to_pil_image(image).save(folder / f"{label}" / f"{place}.jpg")
    return kd.data.image_folder(folder, size=data.images.shape[-1])


def default_run(pair: Pair, teacher: kd.networks.Teacher, few: kd.data.ArrayData) -> Ready:
    """A study of one epoch as the preflight makes it ready, but for a teacher that knows nothing."""
    space, task = default_space(), kd.Classification.of(10)
    study = kd.Study(
        name="pair",
        train=pair.data,
        search_validation=few,
        teacher=teacher.network,
        student=partial(kd.networks.cifar_resnet, pair.depth),
        classes=10,
        loss=LOSS,
        optimizer=sgd,
        precision=pair.precision,
        compiled=pair.compiled,
        budget=kd.Budget(trials=1, epochs=1, steps=STEPS, batch=pair.batch),
    )
    look = plan_look(space.limits, len(few), study.student_images // 4)
    probe = Probe(teacher, few, task, space.limits, fill=space.fill, look=look, device=pair.device)
    base = BaseView(base_of_parts([*PARTS]), "auto", "")
    known = TeacherMeasurement(0.1, 0.0, 2.3, 0.0)
    return Ready(study, task, teacher, space, known, probe, 3, pair.device, base_view=base)


def parts(pair: Pair) -> Iterator[dict]:
    """Steps of kdsearch over a base view and the parts of one, each by itself, in turn."""
    data, half, base = pair.data, pair.half, base_of_parts([*PARTS])
    policy, random = pair.policy(), torch.Generator().manual_seed(0)
    given, distiller = kd.networks.Teacher(pair.teacher), pair.distiller(pair.fused(), policy)
    steps, optimizer, phase = PolicySteps(), torch.optim.Adam(policy.parameters()), Phase((LOSS,), base=base)
    size = pair.batch
    batch = kd.Batch(data.images[:size] / 255, data.labels[:size], torch.arange(size))
    few = batch.rows(slice(0, steps.images(size)))
    both = torch.cat([batch.images, batch.images])

    def ask(teacher: kd.networks.Teacher, images: Tensor) -> None:
        with torch.no_grad(), half():
            teacher(images)

    def learn() -> None:
        distiller.student.train()
        with half():
            said = distiller.student(both)
        said.float().logsumexp(1).mean().backward()

    def step_policy() -> None:
        drawn = BaseDraw(base, base.draw(len(few), random))
        distiller.policy_step(few, steps, optimizer, random, base=drawn)

    found: dict[str, Callable[[], object]] = {
        "a student step over a base view": partial(distiller.student_step, batch, phase, random),
        "teacher forward, as given": partial(ask, given, both),
        "teacher forward, fused": partial(ask, distiller.teacher, both),
        "teacher forward of one view, fused": partial(ask, distiller.teacher, batch.images),
        "student forward and backward": learn,
        "augmentation, base view": lambda: base.augment(base.draw(size, random), batch.images),
        "augmentation, policy over it": lambda: policy.augment(
            BaseDraw(base, base.draw(size, random)).under(policy.draw(size, random)), batch.images
        ),
        "a policy step over a base view": step_policy,
    }
    times = in_turn(list(found.values()), 9, pair.device)
    seconds = [statistics.median(values) for values in times]
    for name, value in zip(found, seconds, strict=True):
        yield {"row": name, "views": 2, "seconds": value, "of": next(iter(found)), "ratio": value / seconds[0]}


def rows(pair: Pair, rounds: int) -> Iterator[dict]:
    """One row for each way to do it, then the parts."""
    with tempfile.TemporaryDirectory() as folder:
        ways = turns(pair, Path(folder))
        times = in_turn([way.call for way in ways], rounds, pair.device)
    known = {(way.row, way.views): values for way, values in zip(ways, times, strict=True)}
    for way, values in zip(ways, times, strict=True):
        others = known[way.of, way.views]
        seconds, other = (statistics.median(v) / STEPS for v in (values, others))
        yield {
            "row": way.row,
            "views": way.views,
            "seconds": seconds,
            "images_per_s": pair.batch / seconds,
            "of": way.of,
            "ratio": seconds / other,
            "paired": statistics.median(a / b for a, b in zip(values, others, strict=True)),
        }
    yield from parts(pair)


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
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    where = torch.cuda.get_device_name() if options.device != "cpu" else platform.machine()
    threads = torch.get_num_threads()
    found = list(rows(make_pair(options.device, options.precision, compiled=options.compiled), options.rounds))
    show(found, f"{where}, {threads} threads; torch {torch.__version__}; {options.precision}")
    if options.json:
        facts = {"machine": where, "threads": threads, "torch": torch.__version__, "precision": options.precision}
        options.json.write_text(json.dumps([{**facts, **row} for row in found], indent=1) + "\n")


def show(found: Sequence[dict], title: str) -> None:
    """A table: the ratio is that of the medians, "paired" the median of the ratios within rounds."""
    table = Table(title=title, box=None)
    for column in ("views", "row", "seconds", "images/s", "ratio", "paired", "to"):
        table.add_column(column, justify="left" if column in ("row", "to") else "right")
    for row in found:
        rate, paired = (
            f"{row[name]:{form}}" if name in row else "" for name, form in (("images_per_s", ",.0f"), ("paired", ".3f"))
        )
        table.add_row(
            str(row["views"]), row["row"], f"{row['seconds']:.4f}", rate, f"{row['ratio']:.3f}", paired, row["of"]
        )
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
