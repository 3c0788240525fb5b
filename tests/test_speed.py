"""What makes a run faster or smaller changes nothing else: layout, precision, parts, data on the device."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kdsearch as kd
from kdsearch.core.errors import KdsearchError
from kdsearch.core.maths import generator
from kdsearch.data.batches import ArrayData, batches_in_order, load_batches, place_data
from kdsearch.distill.distiller import Distiller
from kdsearch.distill.phase import Phase, PolicySteps
from kdsearch.distill.records import summarise_policy_steps
from kdsearch.distill.views import VIEWS
from kdsearch.networks.outputs import arrange_network
from kdsearch.probe.disagreement import Probe
from kdsearch.probe.evaluation import measure_teacher
from kdsearch.probe.scores import Baseline
from kdsearch.study.facts import search_identity
from kdsearch.study.preflight import check_inputs, preflight
from kdsearch.study.run import run_trial

KD = kd.losses.kd()
TASK = kd.Classification.of(10)


@pytest.fixture(scope="module")
def data(photos: Tensor) -> ArrayData:
    return ArrayData((photos * 255).round().to(torch.uint8), torch.arange(len(photos)) % 10)


def network(seed: int, *, norm: bool = True) -> nn.Sequential:
    torch.manual_seed(seed)
    middle = nn.BatchNorm2d(8) if norm else nn.Identity()
    head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10)]
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), middle, nn.ReLU(), *head)


def policy() -> kd.Policy:
    return kd.Policy(["rotate", "contrast", "solarize", "noise"], 2)


def distiller(**settings: Any) -> Distiller:
    return Distiller(kd.networks.Teacher(network(1, norm=False)), network(2, norm=False), policy(), TASK, **settings)


def noted_sizes(*networks: nn.Module) -> list[int]:
    """Filled with how many images each forward of these has."""
    sizes: list[int] = []
    for network in networks:
        network.register_forward_hook(lambda module, given, out: sizes.append(len(out)))
    return sizes


# Parts of a batch


@pytest.mark.parametrize("loss", ["kd", "dkd"])
def test_a_student_step_in_parts_is_the_step_of_the_whole_batch(loss: str, data: ArrayData) -> None:
    batch, ends = next(batches_in_order(data, 22)), []
    for parts, most in ((1, 44), (2, 22), (5, 10)):
        d = distiller(optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
        sizes = noted_sizes(d.student, d.teacher.network)
        phase = Phase((kd.losses.TABLE[loss](),), parts=parts)
        measured = d.student_step(batch, phase, generator("step"), progress=0.5)
        ends.append([measured, *d.student.parameters()])
        assert max(sizes) == most and sum(sizes) == 2 * 44
    for one, *others in zip(*ends, strict=True):
        for other in others:
            torch.testing.assert_close(one, other, atol=2e-6, rtol=1e-4)


def test_a_policy_step_in_parts_is_the_step_of_the_whole_batch(data: ArrayData) -> None:
    batch, found = next(batches_in_order(data, 22)), []
    for parts, first in ((1, 22), (2, 11), (5, 5)):
        d = distiller(clean_loss=2.0)
        d.dual = 0.5
        sizes = noted_sizes(d.teacher.network)
        for net in (d.teacher.network, d.student):
            net[-1].weight.data *= 20  # networks that are sure of something
        optimizer = torch.optim.SGD(d.policy.parameters(), lr=0.1)
        found.append(d.policy_step(batch, PolicySteps(), optimizer, generator("step"), parts))
        assert sizes[0] == first and max(sizes) <= 2 * first
    for other in found[1:]:
        assert other.objective == pytest.approx(found[0].objective, abs=1e-5)
        assert other.violation == pytest.approx(found[0].violation, abs=1e-5)
        torch.testing.assert_close(other.gradient, found[0].gradient, atol=1e-7, rtol=1e-3)
    assert found[0].gradient.abs().max() > 1e-3


@pytest.mark.parametrize(("asked", "taken"), [(None, 8), (6, 6), (20, 20)])
def test_a_policy_step_takes_half_the_images_of_a_student_step_or_as_many_as_it_is_told(
    asked: int | None, taken: int, data: ArrayData, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: dict[str, set[int]] = {"student_step": set(), "policy_step": set()}
    for name in sizes:
        original = getattr(Distiller, name)

        def noted(self: Distiller, batch: kd.Batch, *rest: Any, name: str = name, original: Any = original) -> Any:
            sizes[name].add(len(batch))
            return original(self, batch, *rest)

        monkeypatch.setattr(Distiller, name, noted)
    told: list[int] = []
    monkeypatch.setattr(
        "kdsearch.distill.distiller.summarise_policy_steps",
        lambda policy, steps, batch: told.append(batch) or summarise_policy_steps(policy, steps, batch),
    )
    steps = PolicySteps(interval=2, warm_up=0.0, batch=asked)
    (record,) = distiller(clean_loss=2.0).run(Phase((KD,), 1, 4, 16, steps), data, data)
    assert sizes == {"student_step": {16}, "policy_step": {taken}} and record.policy_steps == 2
    assert told == [taken]  # the noise scale is counted in these images


def test_pauses_are_passes_of_policy_batches() -> None:
    assert PolicySteps(pauses=(0.5,), batch=16).per_pause(100, 64) == 7
    assert PolicySteps(pauses=(0.5,)).per_pause(100, 64) == 4  # of half as many images as a student step's
    assert [PolicySteps().images(batch) for batch in (1, 2, 3, 4, 65)] == [2, 2, 2, 2, 32]


# Precision


def test_in_bfloat16_networks_compute_in_it_and_weights_and_losses_do_not(
    data: ArrayData, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[tuple[str, bool], set[torch.dtype]] = {}
    d = distiller(precision="bfloat16", clean_loss=2.0)
    for who, net in (("teacher", d.teacher.network), ("student", d.student)):
        net[0].register_forward_hook(
            lambda module, given, out, who=who: seen.setdefault((who, module.training), set()).add(out.dtype)
        )
    watched: list[torch.dtype] = []

    def watch(student: kd.Outputs, teacher: kd.Outputs, views: kd.losses.ViewBatch) -> Tensor:
        watched.extend((student.logits.dtype, teacher.logits.dtype))
        return student.logits.sum(1)

    def objective(
        task: kd.Classification, weights: Any, student: kd.Outputs, teacher: kd.Outputs, *rest: Any
    ) -> Tensor:
        watched.extend((student.logits.dtype, teacher.logits.dtype))
        return terms(task, weights, student, teacher, *rest)

    terms = kd.Classification.objective
    monkeypatch.setattr(kd.Classification, "objective", objective)
    phase = Phase((KD, kd.Loss("watch", watch, weight=0.0)), 1, 3, 8, PolicySteps(interval=1, warm_up=0.0))
    (record,) = d.run(phase, data, data)
    half, whole = torch.bfloat16, torch.float32
    # in evaluation mode the student takes policy steps in bfloat16, and is measured in float32
    assert seen == {("teacher", False): {half}, ("student", True): {half}, ("student", False): {half, whole}}
    assert set(watched) == {whole} == {p.dtype for p in d.student.parameters()} and record.policy_steps == 3
    (exact,) = distiller(clean_loss=2.0).run(phase, data, data)
    assert record.supervised_loss == pytest.approx(exact.supervised_loss, rel=0.01)
    assert record.supervised_loss != exact.supervised_loss


# Layout and compilation


def test_networks_for_images_with_several_channels_are_laid_out_channels_last() -> None:
    colour, gray = (arrange_network(network(1), "cpu", channels=channels) for channels in (3, 1))
    assert colour[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert gray[0].weight.is_contiguous()
    torch.testing.assert_close(colour.eval()(torch.ones(2, 3, 9, 9)), gray.eval()(torch.ones(2, 3, 9, 9)))
    assert kd.networks.Teacher(colour) and list(colour.state_dict()) == list(network(1).state_dict())


def test_a_compiled_study_has_compiled_networks_and_plain_weights(
    tiny_study: kd.Study, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(self))
    ready = preflight(replace(tiny_study, compiled=True), tmp_path).ready
    assert ready.teacher.network in compiled
    outcome = run_trial(ready, None, policy=None)
    assert compiled[-1] is outcome.student and list(outcome.student.state_dict()) == list(
        tiny_study.student().state_dict()
    )


def test_compiled_networks_answer_as_plain_ones_in_steps_of_both_kinds(data: ArrayData) -> None:
    batch, ends = next(batches_in_order(data, 16)), []
    for compiled in (True, False):
        nets = [arrange_network(network(seed), "cpu", channels=3, compiled=compiled) for seed in (1, 2)]
        d = Distiller(kd.networks.Teacher(nets[0]), nets[1], policy(), TASK, clean_loss=2.0)
        found = d.student_step(batch, Phase((KD,)), generator("step"))
        optimizer = torch.optim.SGD(d.policy.parameters(), lr=0.1)
        with torch.compiler.set_stance("default" if compiled else "force_eager"):
            step = d.policy_step(batch, PolicySteps(gates="score"), optimizer, generator("policy"))
        ends.append((found, step.gradient))
    torch.testing.assert_close(*(end[0] for end in ends), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(*(end[1] for end in ends), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"precision": "float16"}, r"unknown precision 'float16'.*bfloat16"),
        ({"compiled": True, "loss": kd.losses.at("2")}, r"losses on features .*; allowed: compiled=False"),
        ({"budget": kd.Budget(batch=8, parts=5)}, r"budget\.parts is 5; allowed: 1 to 4, at least 2 images in each"),
        ({"budget": kd.Budget(policy_batch=1)}, r"budget\.policy_batch is 1; allowed: whole numbers, 2 or more"),
    ],
)
def test_what_does_not_go_together_is_refused(wrong: dict[str, Any], said: str, tiny_study: kd.Study) -> None:
    with pytest.raises(KdsearchError, match=said):
        check_inputs(replace(tiny_study, **wrong))


def test_what_a_distiller_does_not_know_is_refused() -> None:
    with pytest.raises(KdsearchError, match=r"unknown precision 'bf16'.*bfloat16"):
        distiller(precision="bf16")
    with pytest.raises(KdsearchError, match="parts is 0; allowed: whole numbers, 1 or more"):
        Phase((KD,), parts=0)
    with pytest.raises(KdsearchError, match=r"epochs is 2\.5; allowed: whole numbers"):
        Phase((KD,), 2.5)  # type: ignore[arg-type]


def test_a_batch_of_few_images_is_cut_into_fewer_parts(data: ArrayData) -> None:
    d = distiller()
    sizes = noted_sizes(d.student)
    d.student_step(next(batches_in_order(data, 5)), Phase((KD,), parts=9), generator("step"))
    assert sizes == [6, 4]  # two views of 3 and of 2 images


# A study's own


@pytest.fixture
def fast(tiny_study: kd.Study) -> kd.Study:
    return replace(tiny_study, precision="bfloat16", budget=kd.Budget(1, 1, 4, 16, 0, policy_batch=6, parts=2))


def test_a_run_of_a_study_has_its_precision_parts_and_policy_batch(
    fast: kd.Study, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = preflight(fast, tmp_path).ready
    made: list[Distiller] = []
    sizes: dict[str, set[tuple[int, int]]] = {"student_step": set(), "policy_step": set()}
    original = Distiller.run
    monkeypatch.setattr(
        Distiller, "run", lambda self, *rest, **more: made.append(self) or original(self, *rest, **more)
    )
    for name in sizes:
        step = getattr(Distiller, name)

        def noted(self: Distiller, batch: kd.Batch, *rest: Any, name: str = name, step: Any = step) -> Any:
            parts = rest[0].parts if name == "student_step" else rest[3]
            sizes[name].add((len(batch), parts))
            return step(self, batch, *rest)

        monkeypatch.setattr(Distiller, name, noted)
    settings = ready.space.settings()
    run_trial(ready, None, policy=ready.policy(settings), policy_steps=ready.policy_steps(settings))
    assert made[0].precision == "bfloat16" and sizes == {"student_step": {(16, 2)}, "policy_step": {(6, 2)}}


def test_what_changes_a_run_fixes_a_search_and_names_a_checkpoint(
    tiny_study: kd.Study, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = preflight(tiny_study, tmp_path)
    ready = checked.ready
    names: list[str] = []

    class Stop(Exception):
        pass

    def named(path: Any, run: str) -> None:
        names.append(run)
        raise Stop

    monkeypatch.setattr("kdsearch.distill.checkpoint.Checkpoint.load", named)
    monkeypatch.setattr(nn.Module, "compile", lambda self: None)
    budget = tiny_study.budget
    changes: list[dict[str, Any]] = [
        {}, {"precision": "bfloat16"}, {"compiled": True}, {"budget": replace(budget, parts=2)},
        {"budget": replace(budget, policy_batch=6)},
    ]  # fmt: skip
    fixed = []
    for change in changes:
        other = replace(ready, study=replace(tiny_study, **change))
        fixed.append(search_identity(replace(checked, ready=other)))
        with pytest.raises(Stop):
            run_trial(
                other, None, policy=None, policy_steps=other.policy_steps(ready.space.settings()),
                checkpoint=tmp_path / "c.pt",
            )  # fmt: skip
    assert len(set(names)) == len(changes) and all(fixed.count(one) == 1 for one in fixed)
    half = replace(ready, study=replace(tiny_study, budget=replace(budget, policy_batch=budget.batch // 2)))
    assert search_identity(replace(checked, ready=half)) == fixed[0]
    with pytest.raises(Stop):
        steps = half.policy_steps(ready.space.settings())
        run_trial(half, None, policy=None, policy_steps=steps, checkpoint=tmp_path / "c.pt")
    assert names[-1] == names[0]  # what is the default is not another run


def test_a_study_s_arrays_go_to_the_device_after_it_was_looked_at(
    tiny_study: kd.Study, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed: list[tuple[int, str]] = []
    monkeypatch.setattr(
        "kdsearch.study.study.place_data", lambda data, *, readers, device: placed.append((readers, device)) or data
    )
    preflight(replace(tiny_study, readers=2), tmp_path, device="cpu:0")
    assert placed == [(2, "cpu:0")] * 3
    nowhere = replace(tiny_study, device="gpu")
    for run in (kd.search, kd.rank):
        with pytest.raises(KdsearchError, match="device 'gpu' cannot be used"):
            run(nowhere, out=tmp_path, quiet=True)
        with pytest.raises(KdsearchError, match="device 'tpu' cannot be used"):
            run(nowhere, out=tmp_path, quiet=True, device="tpu")


# Data on the device


class Counted:
    """A data set that counts who asks for an item."""

    def __init__(self, data: ArrayData) -> None:
        self.data, self.asked = data, 0

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.asked += 1
        return self.data[index]


def test_a_data_set_read_once_stays_uint8_and_gives_the_same_batches(data: ArrayData) -> None:
    items = Counted(data)
    held = kd.data.in_memory(items)
    assert held.images.dtype == torch.uint8 and torch.equal(held.images, data.images) and items.asked == len(data)
    for one, other in zip(batches_in_order(held, 50), batches_in_order(data, 50), strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.target, other.target)
    assert items.asked == len(data) and kd.data.in_memory(data) is data
    with pytest.raises(KdsearchError, match="the data set is empty"):
        kd.data.in_memory(Counted(data.subset(torch.arange(0))))


@pytest.mark.parametrize("odd", [3, 1500])
@pytest.mark.parametrize(
    ("image", "said"),
    [
        (torch.zeros(3, 4, 5, dtype=torch.uint8), r"an image of \(3, 4, 5\) after one of \(3, 4, 4\)"),
        (torch.zeros(3, 4, 4), r"an image of torch.float32 after one of torch.uint8"),
    ],
)
def test_a_data_set_of_unlike_images_is_not_read_into_memory(odd: int, image: Tensor, said: str) -> None:
    items = [(image if i == odd else torch.zeros(3, 4, 4, dtype=torch.uint8), i % 3) for i in range(1600)]
    with pytest.raises(KdsearchError, match=rf"item \d+.*: {said}; images of a data set are alike"):
        kd.data.in_memory(items)


def test_arrays_on_a_device_are_indexed_there_and_others_travel_as_they_are(
    data: ArrayData, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = data.to("meta")  # a device without memory: whoever looked at a pixel would fail
    (batch,) = load_batches(there, [[(3, 0), (1, 0)]], "meta")
    assert batch.images.device.type == batch.target.device.type == "meta"
    assert batch.images.dtype == torch.float32 and batch.images.shape == (2, 3, 32, 32)
    sent: list[torch.dtype] = []
    original = Tensor.to

    def noted(self: Tensor, *arguments: Any, **settings: Any) -> Tensor:
        if "meta" in arguments and self.ndim == 4:
            sent.append(self.dtype)
        return original(self, *arguments, **settings)

    monkeypatch.setattr(Tensor, "to", noted)
    for kept in (data, Counted(data)):
        (batch,) = load_batches(kept, [[(3, 0), (1, 0)]], "meta")
        assert batch.images.dtype == torch.float32
    assert sent == [torch.uint8, torch.uint8]


@pytest.mark.parametrize(("room", "moves"), [(8, True), (3, False), (None, False)])
def test_arrays_go_to_the_device_where_they_take_little_of_its_memory(
    room: int | None, moves: bool, data: ArrayData, monkeypatch: pytest.MonkeyPatch
) -> None:
    bytes_there = None if room is None else room * data.images.nbytes
    monkeypatch.setattr("kdsearch.data.batches.available_bytes", lambda device: bytes_there)
    assert (place_data(data, device="meta").images.device.type == "meta") == moves
    assert place_data(data, device="cpu") is data


# The loop


@pytest.mark.parametrize("rule", list(VIEWS))
@pytest.mark.parametrize("loss", ["kd", "dkd", "standardised", "dist", "at", "rkd"])
def test_a_student_step_reads_nothing_back_from_the_device(loss: str, rule: str, data: ArrayData) -> None:
    """On a device without memory, whoever looked at a value would fail: nothing waits for a GPU."""
    kind = kd.losses.TABLE[loss]
    made = kind("2") if kind.compares == "features" else kind()
    with torch.device("meta"):
        nets = [network(seed) for seed in (1, 2)]
    everything = kd.Policy(list(kd.operations.TABLE), 6)
    d = Distiller(kd.networks.Teacher(nets[0]), nets[1], everything, TASK, device="meta")
    (batch,) = load_batches(data.to("meta"), [[(i, 0) for i in range(64)]], "meta")
    measured = d.student_step(batch, Phase((made,), views=VIEWS[rule]), generator("step"))
    assert measured.device.type == "meta" and measured.shape == (7,)


def test_what_a_teacher_knows_is_measured_without_a_detour_over_the_host(
    data: ArrayData, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices: list[Any] = []

    def noted(data: ArrayData, size: int, device: Any = "cpu") -> Any:
        devices.append(device)
        return batches_in_order(data, size)

    def noted_too(data: ArrayData, index: list[int], size: int, device: Any = "cpu") -> Any:
        return noted(data.subset(torch.tensor(index)), size, device)

    for module in ("evaluation", "scores"):
        monkeypatch.setattr(f"kdsearch.probe.{module}.batches_in_order", noted)
    monkeypatch.setattr("kdsearch.probe.disagreement.batches_at", noted_too)
    teacher = kd.networks.Teacher(network(1))
    measure_teacher(teacher, data, TASK, 8, "cpu:0")
    kd.evaluate(teacher.network, data, TASK, 8, "cpu:0")
    Baseline.of(teacher, data, TASK, device="cpu:0")
    Probe(teacher, data, TASK, {"invert": None}, device="cpu:0").report(network(2), policy())
    assert {*map(str, devices)} == {"cpu:0"} and len(devices) >= 6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("there", [True, False])
def test_student_steps_do_not_wait_for_a_gpu(there: bool, data: ArrayData) -> None:
    d = distiller(device="cuda")
    batches = load_batches(data.to("cuda") if there else data, [[(i, 0) for i in range(8)]] * 3, "cuda")
    d.student_step(next(batches), Phase((KD,)), generator("warm"))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches:
            d.student_step(batch, Phase((KD,)), generator("step"))
    finally:
        torch.cuda.set_sync_debug_mode("default")
