"""What makes a run faster or smaller changes nothing else: layout, precision, parts, data on the device."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kdsearch as kd
from kdsearch.alternation import Phase, PolicySteps
from kdsearch.data import ArrayData, in_order, load
from kdsearch.distill import Distiller
from kdsearch.errors import KdsearchError
from kdsearch.maths import generator
from kdsearch.models import arranged
from kdsearch.preflight import check, preflight
from kdsearch.run import run_trial

KD = kd.LOSSES["kd"]()
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
    return Distiller(kd.Teacher(network(1, norm=False)), network(2, norm=False), policy(), TASK, **settings)


# Parts of a batch


@pytest.mark.parametrize("loss", ["kd", "dkd"])
def test_a_student_step_in_parts_is_the_step_of_the_whole_batch(loss: str, data: ArrayData) -> None:
    batch, ends = next(in_order(data, 22)), []
    for parts in (1, 2, 5):
        d = distiller(optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
        phase = Phase((kd.LOSSES[loss](),), parts=parts)
        measured = d.student_step(batch, phase, generator("step"), progress=0.5)
        ends.append([measured, *d.student.parameters()])
    for one, *others in zip(*ends, strict=True):
        for other in others:
            torch.testing.assert_close(one, other, atol=2e-6, rtol=1e-4)


def test_a_policy_step_in_parts_is_the_step_of_the_whole_batch(data: ArrayData) -> None:
    batch, found = next(in_order(data, 22)), []
    for parts in (1, 2, 5):
        d = distiller(clean_loss=2.0)
        d.dual = 0.5
        for net in (d.teacher.network, d.student):
            net[-1].weight.data *= 20  # networks that are sure of something
        optimizer = torch.optim.SGD(d.policy.parameters(), lr=0.1)
        found.append(d.policy_step(batch, PolicySteps(), optimizer, generator("step"), parts))
    for other in found[1:]:
        assert other.objective == pytest.approx(found[0].objective, abs=1e-5)
        assert other.violation == pytest.approx(found[0].violation, abs=1e-5)
        torch.testing.assert_close(other.gradient, found[0].gradient, atol=1e-7, rtol=1e-3)
    assert found[0].gradient.abs().max() > 1e-3


def test_a_policy_step_may_take_another_number_of_images_than_a_student_step(
    data: ArrayData, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: dict[str, set[int]] = {"student_step": set(), "policy_step": set()}
    for name in sizes:
        original = getattr(Distiller, name)

        def noted(self: Distiller, batch: kd.Batch, *rest: Any, name: str = name, original: Any = original) -> Any:
            sizes[name].add(len(batch))
            return original(self, batch, *rest)

        monkeypatch.setattr(Distiller, name, noted)
    steps = PolicySteps(interval=2, warm_up=0.0, batch=6)
    (record,) = distiller(clean_loss=2.0).run(Phase((KD,), 1, 4, 16, steps), data, data)
    assert sizes == {"student_step": {16}, "policy_step": {6}} and record.policy_steps == 2


def test_phases_are_passes_of_policy_batches() -> None:
    assert PolicySteps(phases=(0.5,), batch=16).per_phase(100, 64) == 7
    assert PolicySteps(phases=(0.5,)).per_phase(100, 64) == 2


# Precision


def test_in_bfloat16_networks_compute_in_it_and_weights_and_losses_do_not(data: ArrayData) -> None:
    seen: dict[tuple[str, bool], set[torch.dtype]] = {}
    d = distiller(precision="bfloat16", clean_loss=2.0)
    for who, net in (("teacher", d.teacher.network), ("student", d.student)):
        net[0].register_forward_hook(
            lambda module, given, out, who=who: seen.setdefault((who, module.training), set()).add(out.dtype)
        )
    watched: list[torch.dtype] = []

    def watch(student: kd.Outputs, teacher: kd.Outputs, views: kd.ViewBatch) -> Tensor:
        watched.extend((student.logits.dtype, teacher.logits.dtype))
        return student.logits.sum(1)

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
    colour, gray = (arranged(network(1), "cpu", channels=channels) for channels in (3, 1))
    assert colour[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert gray[0].weight.is_contiguous()
    torch.testing.assert_close(colour.eval()(torch.ones(2, 3, 9, 9)), gray.eval()(torch.ones(2, 3, 9, 9)))
    assert kd.Teacher(colour) and list(colour.state_dict()) == list(network(1).state_dict())


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
    batch, ends = next(in_order(data, 16)), []
    for compiled in (True, False):
        nets = [arranged(network(seed), "cpu", channels=3, compiled=compiled) for seed in (1, 2)]
        d = Distiller(kd.Teacher(nets[0]), nets[1], policy(), TASK, clean_loss=2.0)
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
        ({"compiled": True, "loss": kd.LOSSES["at"]("2")}, r"losses on features .*; allowed: compiled=False"),
        ({"budget": kd.Budget(batch=8, parts=5)}, r"budget\.parts is 5; allowed: 1 to 4, at least 2 images in each"),
        ({"budget": kd.Budget(batch=8, policy_batch=4, parts=3)}, r"budget\.parts is 3; allowed: 1 to 2"),
        ({"budget": kd.Budget(policy_batch=1)}, r"budget\.policy_batch is 1; allowed: 2 or more"),
    ],
)
def test_what_does_not_go_together_is_refused(wrong: dict[str, Any], said: str, tiny_study: kd.Study) -> None:
    with pytest.raises(KdsearchError, match=said):
        check(replace(tiny_study, **wrong))


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
    held = kd.in_memory(items)
    assert held.images.dtype == torch.uint8 and torch.equal(held.images, data.images) and items.asked == len(data)
    for one, other in zip(in_order(held, 50), in_order(data, 50), strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.target, other.target)
    assert items.asked == len(data) and kd.in_memory(data) is data
    with pytest.raises(KdsearchError, match="the data set is empty"):
        kd.in_memory(Counted(data.subset(torch.arange(0))))


def test_arrays_on_a_device_are_indexed_there_and_others_travel_as_they_are(
    data: ArrayData, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = data.to("meta")  # a device without memory: whoever looked at a pixel would fail
    (batch,) = load(there, [[(3, 0), (1, 0)]], "meta")
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
        (batch,) = load(kept, [[(3, 0), (1, 0)]], "meta")
        assert batch.images.dtype == torch.float32
    assert sent == [torch.uint8, torch.uint8]


@pytest.mark.parametrize(("room", "moves"), [(8, True), (3, False), (None, False)])
def test_arrays_go_to_the_device_where_they_take_little_of_its_memory(
    room: int | None, moves: bool, data: ArrayData, monkeypatch: pytest.MonkeyPatch
) -> None:
    bytes_there = None if room is None else room * data.images.nbytes
    monkeypatch.setattr("kdsearch.data.available_bytes", lambda device: bytes_there)
    assert (kd.placed(data, device="meta").images.device.type == "meta") == moves
    assert kd.placed(data, device="cpu") is data


# The loop


@pytest.mark.parametrize("rule", list(kd.VIEWS))
@pytest.mark.parametrize("loss", ["kd", "dkd", "standardised", "dist", "at", "rkd"])
def test_a_student_step_reads_nothing_back_from_the_device(loss: str, rule: str, data: ArrayData) -> None:
    """On a device without memory, whoever looked at a value would fail: nothing waits for a GPU."""
    kind = kd.LOSSES[loss]
    made = kind("2") if kind.compares == "features" else kind()
    with torch.device("meta"):
        nets = [network(seed) for seed in (1, 2)]
    everything = kd.Policy(list(kd.OPERATIONS), 6)
    d = Distiller(kd.Teacher(nets[0]), nets[1], everything, TASK, device="meta")
    (batch,) = load(data.to("meta"), [[(i, 0) for i in range(64)]], "meta")
    measured = d.student_step(batch, Phase((made,), views=kd.VIEWS[rule]), generator("step"))
    assert measured.device.type == "meta" and measured.shape == (7,)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_student_steps_do_not_wait_for_a_gpu(data: ArrayData) -> None:
    held = kd.placed(data, device="cuda")
    d = distiller(device="cuda")
    first, *batches = load(held, [[(i, 0) for i in range(8)]] * 3, "cuda")
    d.student_step(first, Phase((KD,)), generator("warm"))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches:
            d.student_step(batch, Phase((KD,)), generator("step"))
    finally:
        torch.cuda.set_sync_debug_mode("default")
