"""What kdsearch does on one GPU, in one command of at most 9 minutes; without a GPU a dry run of it on the CPU.

    python benchmarks/gpu.py [--json FILE] [--minutes 9] [--parts waits shares precision augment compiled cifar10]

waits      do steps read anything back? by torch.cuda.set_sync_debug_mode("error"), and how often by "warn"
shares     of a student step, halted after each stage: data, augmentation, teacher, student, loss, backward, optimizer;
           beside it student and policy steps as they run
precision  images a second and memory of both kinds of steps, in bfloat16 and in float32
augment    images a second beside Kornia, torchvision v2 by the batch, and by the image in a plain loop
compiled   the same beside Kornia through torch.compile
cifar10    ResNet-56 teaches ResNet-20: test accuracy with an identical second view and with the policy, as many epochs
           as the time left has; on the data of the shipped study where both files are there, else on made-up images

ResNet-56 and ResNet-20 with 128 random images of 32x32 in all of them but augment and compiled. Each part has its time;
one that fails or runs out of it is a row that says so, and the others go on.
"""

import argparse
import importlib.metadata
import json
import logging
import os
import platform
import signal
import statistics
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import chain, count, product
from pathlib import Path
from types import FrameType
from typing import Any, Literal
from unittest.mock import patch

import torch
from augment import AUTOAUGMENT, PER_IMAGE, always, measure, memory, ours, photographs
from cifar10 import STUDY, train
from common import find_costs
from distill import TEMPERATURE, Pair, in_turn, make_pair
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import kdsearch as kd
from kdsearch.distill.distiller import Distiller
from kdsearch.distill.phase import Phase, PolicySteps
from kdsearch.distill.views import VIEWS
from kdsearch.study.study import load_study

WAITS = "synchronizing CUDA operation"  # torch's words, in errors and in warnings
STAGES = ("data", "augmentation", "teacher", "student", "loss", "backward", "optimizer", "other")
COMPILED = 60.0  # seconds, at most, of one pipeline
MARGIN = 30.0  # seconds, for imports, the table and what no alarm interrupts at once


class OutOfTime(BaseException):
    """Not an Exception, so that nothing on its way takes it for a failure of its own."""


@dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    device: str
    depths: tuple[int, int] = (56, 20)  # of teacher and student
    batch: int = 128
    rounds: int = 9
    steps: int = 5  # in a row, before the device is waited for
    images: tuple[tuple[int, int], ...] = ((256, 32), (32, 224))  # augmented at once: how many, of which side
    repeats: int = 15
    compiled: tuple[str, ...] = AUTOAUGMENT  # the operations that Kornia is compiled with
    backend: str = "inductor"  # of torch.compile
    study: int = 50_000  # made-up images, where CIFAR-10 is not there
    teacher_steps: int = 200  # of training, on those
    epochs: int = 20  # at most


FULL = Sizes("cuda")
DRY = Sizes("cpu", (8, 8), 8, 1, 1, ((4, 32),), 2, AUTOAUGMENT[:2], "eager", 300, 40, 1)


@dataclass(frozen=True)
class Row:
    """One thing that was measured."""

    row: str
    value: float | None
    unit: str = ""
    note: str = ""
    part: str = field(default="", kw_only=True)


Rows = Iterator[Row]


# Does a step wait?


def waits(sizes: Sizes) -> Rows:
    """A row for each kind of step: how often it waits for the device, and where."""
    on = Stepper(make_pair(sizes.device, depths=sizes.depths, batch=sizes.batch))
    half = Stepper(make_pair(sizes.device, "bfloat16", depths=sizes.depths, batch=sizes.batch))
    policy, images = always(tuple(kd.operations.TABLE)), on.batch.images
    steps: dict[str, tuple[Callable[[], object], str]] = {
        "a batch of data on the device": (on.next_batch, "nothing"),
        "augmentation, all operations": (lambda: policy.augment(policy.draw(len(images)), images), "nothing"),
        "a student step without a policy": (Stepper(on.pair, learns=False).student_step, "nothing"),
        "a student step with a policy": (on.student_step, "nothing"),
        "a student step with a policy, bfloat16": (half.student_step, "nothing"),
        "a student step with a policy, in 2 parts": (partial(on.student_step, parts=2), "nothing"),
        "a student step with a policy, one view": (partial(on.student_step, views="one"), "nothing"),
        "a policy step": (on.policy_step, "the policy's gradients, as it lives on the host"),
    }
    for name, (step, expected) in steps.items():
        yield attempted(name, partial(waiting, name, step, expected, sizes.device))


def waiting(name: str, step: Callable[[], object], expected: str, device: str) -> Row:
    """How often a step waits, after two that warm up."""
    step(), step()
    if device == "cpu":
        return Row(name, None, "waits", "not looked at: no GPU")
    place = first_wait(step)
    if place is None:
        return Row(name, 0, "waits", f"expected to wait for: {expected}")
    found = all_waits(step)
    where = ", ".join(f"{place} ({n})" for place, n in found.most_common(4))
    note = f"first at {place}; most at {where}; expected to wait for: {expected}"
    return Row(name, max(1, found.total()), "waits", note)


def first_wait(step: Callable[[], object]) -> str | None:
    """Where a step first waits for the device; None where it does not."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    except Exception as error:
        told: BaseException | None = error
        while told is not None and WAITS not in str(told):
            told = told.__cause__ or told.__context__
        if told is None:
            raise
        frames = [f for f in traceback.extract_tb(told.__traceback__) if "kdsearch" in Path(f.filename).parts]
        return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "an unknown place"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return None


def all_waits(step: Callable[[], object]) -> Counter[str]:
    """Where, and how often, a step waits for the device."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return Counter(f"{Path(w.filename).name}:{w.lineno}" for w in told if WAITS in str(w.message))


class Stepper:
    """Steps of a distiller over a pair of networks."""

    def __init__(self, pair: Pair, *, learns: bool = True) -> None:
        self.pair, self.distiller = pair, pair.distiller()
        if not learns:
            self.distiller.policy = None
        self.random = torch.Generator().manual_seed(0)
        self.stream = chain.from_iterable(
            kd.data.shuffled(pair.data, pair.batch, 100, seed, device=pair.device) for seed in count()
        )
        self.batch = next(self.stream)
        self.steps = PolicySteps()
        policy = self.distiller.policy
        self.adam = torch.optim.Adam(policy.parameters()) if isinstance(policy, kd.Policy) else None

    def next_batch(self) -> kd.Batch:
        return next(self.stream)

    def phase(self, views: str = "default", parts: int = 1) -> Phase:
        return Phase((kd.losses.kd(TEMPERATURE),), batch=self.pair.batch, views=VIEWS[views], parts=parts)

    def student_step(self, views: str = "default", parts: int = 1) -> Tensor:
        return self.distiller.student_step(self.batch, self.phase(views, parts), self.random)

    def policy_step(self) -> object:
        """One of the default size, half the batch."""
        assert self.adam is not None
        half = self.batch.rows(slice(0, self.steps.images(self.pair.batch)))
        return self.distiller.policy_step(half, self.steps, self.adam, self.random)


# What a step spends its time on


def shares(sizes: Sizes) -> Rows:
    """The stages of a student step, then whole steps."""
    for precision in ("float32", "bfloat16"):
        on = Stepper(make_pair(sizes.device, precision, depths=sizes.depths, batch=sizes.batch))
        stages = median_stages(on, sizes)
        whole = sum(stages.values())
        for name in STAGES:
            yield Row(f"{precision}, {name}", 1e3 * stages[name], "ms", f"{100 * stages[name] / whole:.0f} % of a step")
        halted = "the same stages, halted after each"
        yield Row(f"{precision}, a student step by stages", 1e3 * whole, "ms", halted)
        steps = {"student": on.student_step, "policy": on.policy_step}
        calls = [partial(repeated, step, sizes.steps) for step in steps.values()]
        times = in_turn(calls, sizes.rounds, sizes.device)
        student, policy = (1e3 * statistics.median(found) / sizes.steps for found in times)
        note = f"{sizes.steps} in a row, {sizes.batch} images, two views"
        yield Row(f"{precision}, a student step as it runs", student, "ms", note)
        note = f"{policy / student:.2f} student steps, {on.steps.images(sizes.batch)} images"
        yield Row(f"{precision}, a policy step as it runs", policy, "ms", note)


def repeated(step: Callable[[], object], times: int) -> None:
    for _ in range(times):
        step()


def median_stages(on: Stepper, sizes: Sizes) -> Mapping[str, float]:
    """Seconds of each stage, the device waited for after each; medians over the rounds, two to warm up."""
    watch = Watch(sizes.device)
    with ExitStack() as hooks:
        watch.follow(on.distiller, hooks)
        rounds = []
        for _ in range(sizes.rounds + 2):
            watch.begin()
            on.batch = on.next_batch()
            watch.end("data")
            on.student_step()
            watch.end("other")
            rounds.append(watch.seconds)
    return {name: statistics.median(found[name] for found in rounds[2:]) for name in STAGES}


class Watch:
    """A stopwatch over the stages of a step: what has passed since the last end of one counts for that which ends."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.begin()

    def begin(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._wait()
        self.last = time.perf_counter()

    def end(self, stage: str) -> None:
        self._wait()
        now = time.perf_counter()
        self.seconds[stage] += now - self.last
        self.last = now

    def _wait(self) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize(self.device)

    def follow(self, distiller: Distiller, hooks: ExitStack) -> None:
        """Have the steps of a distiller tell where a stage ends, until the hooks are taken off."""
        networks = {"teacher": distiller.teacher.network, "student": distiller.student}
        for stage, network in networks.items():
            hooks.callback(network.register_forward_pre_hook(lambda *_: self.end("other")).remove)
            hooks.callback(network.register_forward_hook(partial(self._ended, stage)).remove)
        hooks.callback(distiller.optimizer.register_step_pre_hook(lambda *_: self.end("other")).remove)
        hooks.callback(distiller.optimizer.register_step_post_hook(lambda *_: self.end("optimizer")).remove)
        for name in ("draw", "augment"):
            method = getattr(distiller.policy, name)
            hooks.enter_context(patch.object(distiller.policy, name, self._around(method, "other", "augmentation")))
        hooks.enter_context(
            patch.object(torch.Tensor, "backward", self._around(torch.Tensor.backward, "loss", "backward"))
        )

    def _ended(self, stage: str, *_: object) -> None:
        self.end(stage)

    def _around(self, function: Callable, before: str, after: str) -> Callable:
        def told(*args: Any, **kwargs: Any) -> Any:
            self.end(before)
            result = function(*args, **kwargs)
            self.end(after)
            return result

        return told


# bfloat16 against float32


def precision(sizes: Sizes) -> Rows:
    """Steps of both kinds in both precisions, in turn."""
    names: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    on = {name: Stepper(make_pair(sizes.device, name, depths=sizes.depths, batch=sizes.batch)) for name in names}
    steps = {
        (name, kind): step
        for name, stepper in on.items()
        for kind, step in (("student", stepper.student_step), ("policy", stepper.policy_step))
    }
    losses = {name: stepper.student_step()[:2].tolist() for name, stepper in on.items()}
    times = in_turn([partial(repeated, step, sizes.steps) for step in steps.values()], sizes.rounds, sizes.device)
    seconds = {key: statistics.median(found) / sizes.steps for key, found in zip(steps, times, strict=True)}
    tf32 = "TF32 in convolutions" if torch.backends.cudnn.allow_tf32 else "no TF32"
    for (name, kind), step in steps.items():
        before = memory(sizes.device, reset=True)
        step()
        peak = memory(sizes.device, reset=False) - before
        images = sizes.batch if kind == "student" else on[name].steps.images(sizes.batch)
        times_faster = seconds["float32", kind] / seconds[name, kind]
        note = f"{times_faster:.2f} times float32; {peak:.0f} MB more at the peak"
        if kind == "student":
            said = "cross-entropy {:.4f}, distillation {:.4f} of the first step".format(*losses[name])
            note += f"; {said}" + (f"; {tf32}" if name == "float32" else "")
        yield Row(f"{name}, {kind} step", images / seconds[name, kind], "images/s", note)


# Augmentation


def augment(sizes: Sizes) -> Rows:
    """kdsearch beside its peers, for each set of operations and size of images."""
    for operations, size in product((AUTOAUGMENT, tuple(kd.operations.TABLE)), sizes.images):
        functions = ours(operations)
        try:
            import peers

            functions |= peers.rows(operations, PER_IMAGE, sizes.device)
        except ImportError as error:
            yield Row("the peers", None, "", f"not there: {error}")
        yield from beside(functions, operations, size, sizes)


def compiled(sizes: Sizes) -> Rows:
    """kdsearch beside each of Kornia's pipelines through `torch.compile`, which take a while at first."""
    import peers
    from torch._dynamo.utils import counters

    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)  # what it could not compile is counted
    operations = sizes.compiled
    for size in sizes.images:
        for name, function in peers.compiled(operations, PER_IMAGE, sizes.device, sizes.backend).items():
            counters.clear()
            start = time.perf_counter()
            try:
                with time_box(COMPILED):
                    for row in beside(
                        {"kdsearch": ours(operations)["kdsearch"], name: function}, operations, size, sizes
                    ):
                        if row.row.startswith(name):
                            breaks = counters["graph_break"].total()
                            took = f"{time.perf_counter() - start:.0f} s in all, {breaks} breaks of the graph"
                            row = replace(row, note=f"{row.note}; {took}")
                        yield row
            except OutOfTime:
                yield Row(f"{name}; {described(operations, size)}", None, "", f"out of time: {COMPILED:.0f} s")


def described(operations: tuple[str, ...], size: tuple[int, int]) -> str:
    count, side = size
    return f"{count}x3x{side}x{side}, {len(operations)} operations"


def beside(
    functions: dict[str, tuple[Callable, str]], operations: tuple[str, ...], size: tuple[int, int], sizes: Sizes
) -> Rows:
    """Images a second of each function, in turn; one that does not run is a row that says why."""
    batch, where = photographs(*size), described(operations, size)
    inputs: dict[str, Any] = {"batch": batch.to(sizes.device)}
    inputs["albumentations"] = list(batch.movedim(1, -1).contiguous().numpy())
    for name, (function, _) in list(functions.items()):
        try:
            function(inputs["albumentations" if name == "albumentations" else "batch"])
        except Exception as error:
            del functions[name]
            yield Row(f"{name}; {where}", None, "", f"failed: {in_short(error)}")
    found = measure(functions, inputs, sizes.device, sizes.repeats)
    reference = statistics.median(found["kdsearch"][0])
    for name, (seconds, peak) in found.items():
        middle = statistics.median(seconds)
        faster = f"kdsearch is {middle / reference:.2f} times as fast; " if name != "kdsearch" else ""
        note = f"{faster}peak {peak:.0f} MB; random: {functions[name][1]}"
        yield Row(f"{name}; {where}", len(batch) / middle, "images/s", note)


# CIFAR-10


def cifar10(sizes: Sizes, seconds: float) -> Rows:
    """Test accuracy with an identical second view and with the policy learned, in about so many seconds."""
    start = time.perf_counter()
    study, data = study_and_data(sizes)
    small = replace(study.budget, epochs=1, confirmation=0, look_images=1, look_bins=1, look_operations=0)
    found = find_costs(replace(study, budget=small))
    left = 0.8 * (seconds - (time.perf_counter() - start))
    share = left / (found.seconds_per_run + found.seconds_per_reference)  # of both runs, one epoch each
    epochs, steps = max(1, min(sizes.epochs, int(share))), max(2, int(small.steps * min(1.0, share)))
    ready = replace(found.ready, study=replace(found.ready.study, budget=replace(small, epochs=epochs, steps=steps)))
    for name in ("identity", "policy"):
        row = train(ready, name)
        note = f"{epochs} epochs of {steps} steps, {row['images_per_s']:,.0f} images/s, {row['precision']}; {data}"
        yield Row(f"second view: {name}", row["accuracy"], "% of test", note)


def study_and_data(sizes: Sizes) -> tuple[kd.Study, str]:
    """The shipped study where its files are there, else one of made-up images; and what it is, in words."""
    folder = Path(os.environ.get("KDSEARCH_DATA", "data"))
    there = (folder / "cifar10.npz").exists() and any(folder.glob("cifar10_resnet56.*"))
    if sizes is FULL and there:
        study = load_study(STUDY)[0]
        return study, f"CIFAR-10, {len(study.train):,} training images"
    study = made_up(sizes)
    why = f"no cifar10.npz and cifar10_resnet56.npz in {folder}" if sizes is FULL else "dry run"
    return study, f"{len(study.train):,} made-up images ({why}), on which accuracies say nothing"


def made_up(sizes: Sizes) -> kd.Study:
    """Ten shapes in noise, as large as CIFAR-10's images."""
    random = torch.Generator().manual_seed(0)
    shapes = nn.functional.interpolate(torch.rand(10, 3, 4, 4, generator=random), scale_factor=8.0, mode="bilinear")
    labels = torch.arange(sizes.study) % 10
    images = (128 * shapes[labels]).to(torch.uint8)
    images += torch.randint(128, images.shape, generator=random, dtype=torch.uint8)
    order = torch.randperm(sizes.study, generator=random)
    test, validation, rest = order.split([sizes.study // 5, sizes.study // 10, sizes.study - 3 * sizes.study // 10])
    data = kd.data.ArrayData(images, labels)
    seen, (teacher, student) = data.subset(rest), sizes.depths

    def learn(network: nn.Module) -> None:
        optimizer = torch.optim.SGD(network.to(sizes.device).parameters(), lr=0.05, momentum=0.9)
        for batch in kd.data.shuffled(seen, sizes.batch, sizes.teacher_steps, device=sizes.device):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(batch.images), batch.target).backward()
            optimizer.step()
        network.cpu()

    return kd.Study(
        name="made_up",
        train=seen,
        search_validation=data.subset(validation),
        test=data.subset(test),
        teacher=kd.Recipe(partial(kd.networks.cifar_resnet, teacher), learn),
        teacher_saw="train",
        student=partial(kd.networks.cifar_resnet, student),
        classes=10,
        optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4),
        device=sizes.device,
        precision="bfloat16" if sizes is FULL else "float32",
        budget=kd.Budget(epochs=1, steps=max(2, len(rest) // sizes.batch), batch=sizes.batch),
    )


# All parts, each in its time

Part = Callable[[Sizes, float], Rows]  # sizes, seconds
PARTS: Mapping[str, tuple[Part, float]] = {  # with the seconds that each may take; the last takes what is left
    "waits": (lambda sizes, seconds: waits(sizes), 50),
    "shares": (lambda sizes, seconds: shares(sizes), 50),
    "precision": (lambda sizes, seconds: precision(sizes), 40),
    "augment": (lambda sizes, seconds: augment(sizes), 90),
    "compiled": (lambda sizes, seconds: compiled(sizes), 130),
    "cifar10": (cifar10, 600),
}


def run_parts(parts: Mapping[str, tuple[Part, float]], sizes: Sizes, end: float, tell: Callable[[Row], None]) -> None:
    """Tell the rows of all parts; a part that fails or takes too long is a row that says so.

    Args:
        end: When all has to be over, on the clock of `time.monotonic`.
    """
    for name, (part, most) in parts.items():
        seconds = min(most, end - time.monotonic())
        try:
            with time_box(seconds):
                for row in part(sizes, seconds):
                    tell(replace(row, part=name))
        except OutOfTime:
            tell(Row("the rest of it", None, "", f"out of time: {max(0.0, seconds):.0f} s", part=name))
        except Exception as error:
            tell(Row("the rest of it", None, "", f"failed: {in_short(error)}", part=name))


@contextmanager
def time_box(seconds: float) -> Iterator[None]:
    """Raise OutOfTime in what takes longer, every 5 seconds should something swallow it; one box may be in another."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise OutOfTime

    if seconds <= 0:
        raise OutOfTime
    start, before = time.monotonic(), signal.signal(signal.SIGALRM, ring)
    around, _ = signal.setitimer(signal.ITIMER_REAL, seconds, 5.0)  # of a box around this one; 0 without
    if around:
        signal.setitimer(signal.ITIMER_REAL, min(seconds, around), 5.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
        if around:
            signal.setitimer(signal.ITIMER_REAL, max(0.001, around - (time.monotonic() - start)), 5.0)


def attempted(name: str, make: Callable[[], Row]) -> Row:
    """A row, or what kept it from being measured."""
    try:
        return make()
    except Exception as error:
        return Row(name, None, "", f"failed: {in_short(error)}")


def in_short(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:160]}"


def facts(sizes: Sizes) -> dict[str, Any]:
    """Where it ran, and with what."""
    versions = {}
    for name in ("kdsearch", "torch", "torchvision", "kornia"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = ""
    machine = torch.cuda.get_device_name() if sizes is FULL else platform.machine()
    return {"machine": machine, "dry": sizes is DRY, **versions, "cuda": torch.version.cuda}


def show(rows: Sequence[Row], about: Mapping[str, Any], seconds: float) -> None:
    said = ", ".join(f"{name} {about[name]}" for name in ("torch", "torchvision", "kornia", "cuda") if about[name])
    table = Table(box=None, title=f"{about['machine']}; {said}; {seconds:.0f} s", title_justify="left")
    for column in ("part", "row", "value", "unit", "note"):
        table.add_column(column, justify="right" if column == "value" else "left", overflow="fold")
    for row in rows:
        value = "" if row.value is None else f"{row.value:,.0f}" if row.value >= 1000 else f"{row.value:.4g}"
        table.add_row(row.part, row.row, value, row.unit, row.note)
    Console(width=200, highlight=False).print(table)


def main() -> None:
    start = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--minutes", type=float, default=9.0, help="that all of it may take")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    arguments = parser.parse_args()
    sizes = FULL if torch.cuda.is_available() else DRY
    if sizes is DRY:
        print("no GPU here: a dry run on the CPU with tiny sizes, whose numbers say nothing", flush=True)
    about, rows = facts(sizes), list[Row]()

    def tell(row: Row) -> None:
        rows.append(row)
        value = "" if row.value is None else f"{row.value:.4g} {row.unit}"
        print(f"{time.monotonic() - start:5.0f} s  {row.part}: {row.row}: {value}  {row.note}", flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps([{**about, **asdict(row)} for row in rows], indent=1) + "\n")

    run_parts({name: PARTS[name] for name in arguments.parts}, sizes, start + 60 * arguments.minutes - MARGIN, tell)
    show(rows, about, time.monotonic() - start)


if __name__ == "__main__":
    main()
