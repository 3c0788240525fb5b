"""Whatever a user hands over, networks, weights, data sets, study files: it works, or one sentence says why not."""

import sys
import warnings
from collections import namedtuple
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import kdsearch as kd
from kdsearch.augment.operations import move_labels
from kdsearch.core.memory import largest_batch, peak_bytes
from kdsearch.core.values import Batch
from kdsearch.data.batches import batches_in_order, first_batch
from kdsearch.data.images import image_file
from kdsearch.data.loading import run_file
from kdsearch.distill.steps import make_views
from kdsearch.networks.factories import batch_norm_warning, check_fresh
from kdsearch.networks.state import load_state_tensors, state_tensors
from kdsearch.networks.teachers import weights_hash
from kdsearch.networks.wrappers import unwrap
from kdsearch.probe.evaluation import measure
from kdsearch.study.facts import search_identity
from kdsearch.study.preflight import preflight

Wrap = Callable[[nn.Module], nn.Module]
WRAPPERS: dict[str, Wrap] = {
    "data parallel": nn.DataParallel,
    "compiled": lambda network: torch.compile(network, backend="eager"),
    "averaged": AveragedModel,
    "normalised": lambda network: kd.networks.Normalised(network, [0.5], [0.25]),
}


def tiny() -> nn.Module:
    return kd.networks.small_convnet(2, classes=3)


@pytest.mark.parametrize(
    ("outer", "within"), [pair for pair in product(WRAPPERS, WRAPPERS) if pair != ("compiled", "compiled")]
)
def test_wrappers_are_seen_through_in_any_nesting(outer: str, within: str, tmp_path: Path) -> None:
    network = tiny()
    wrapped = WRAPPERS[outer](WRAPPERS[within](network))
    own = unwrap(wrapped)
    assert list(own.state_dict()) == list(network.state_dict()) and type(own) is type(network)
    save_file(state_tensors(wrapped), tmp_path / "student.safetensors")
    fresh = tiny()
    fresh.load_state_dict(load_file(tmp_path / "student.safetensors"))  # the line that a search prints
    assert weights_hash(fresh) == weights_hash(network)


@pytest.mark.parametrize("wrap", [*WRAPPERS, "compiled in place"])
def test_layers_have_the_paths_of_the_network_in_the_wrappers(wrap: str) -> None:
    network, images = tiny().eval(), torch.rand(2, 1, 8, 8)
    if wrap == "compiled in place":
        network.compile(backend="eager")
    wrapped = WRAPPERS[wrap](network) if wrap in WRAPPERS else network
    with torch.no_grad():
        wrapped(images)  # a compiled network does not see hooks that come after its first call
    with torch.no_grad(), kd.networks.tapped(wrapped, ["6"]) as seen:
        wrapped(images)
    assert seen["6"].shape == (2, 8, 2, 2)
    with (
        pytest.raises(kd.KdsearchError, match=r"unknown layer .head.; known: 0, 1,"),
        kd.networks.tapped(wrapped, ["head"]),
    ):
        pass


def test_a_fingerprint_knows_the_normalisation_and_no_wrapper() -> None:
    network = tiny()
    assert weights_hash(nn.DataParallel(network)) == weights_hash(network)
    assert weights_hash(kd.networks.Normalised(network, [0.5], [0.5])) != weights_hash(
        kd.networks.Normalised(network, [0.4], [0.5])
    )


def test_a_normalised_network_takes_the_names_of_the_network_in_it() -> None:
    network, twice = tiny(), kd.networks.Normalised(kd.networks.Normalised(tiny(), [0.5], [0.5]), [0.5], [0.5])
    twice.load_state_dict(state_tensors(network))
    assert weights_hash(twice.network.network) == weights_hash(network)
    once = kd.networks.Normalised(tiny(), [0.5], [0.5])
    once.load_state_dict({f"network.{name}": value for name, value in network.state_dict().items()})
    assert weights_hash(once.network) == weights_hash(network)


class Stateful(nn.Module):
    """A network with extra state."""

    def __init__(self, state: Any) -> None:
        super().__init__()
        self.net, self.state = tiny(), state

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def get_extra_state(self) -> Any:
        return self.state

    def set_extra_state(self, state: Any) -> None:
        self.state = state


class Odd:
    """What no file can keep."""

    def __reduce__(self) -> str:
        raise TypeError("not this")


@pytest.mark.parametrize("state", [{"format": 3}, {"sizes": (3, 4)}, {"mean": torch.ones(2)}, "ü", torch.ones(2, 3)])
def test_extra_state_is_kept_and_put_back(state: Any, tmp_path: Path) -> None:
    save_file(state_tensors(Stateful(state)), tmp_path / "w.safetensors")
    fresh = Stateful(None)
    load_state_tensors(fresh, load_file(tmp_path / "w.safetensors"))
    assert type(fresh.state) is type(state) and str(fresh.state) == str(state)


def test_extra_state_that_no_file_can_keep_stays_the_networks_own(tmp_path: Path) -> None:
    save_file(state_tensors(Stateful(Odd())), tmp_path / "w.safetensors")
    fresh = Stateful(7)
    load_state_tensors(fresh, load_file(tmp_path / "w.safetensors"))
    assert fresh.state == 7


def test_weights_of_any_layout_and_tied_ones_are_kept(tmp_path: Path) -> None:
    network = kd.networks.small_convnet(2, classes=3, channels=3).to(memory_format=torch.channels_last)
    network.add_module("tied", nn.Linear(8, 3))
    network[-1].weight = network[-2].weight
    save_file(state_tensors(network), tmp_path / "w.safetensors")
    fresh = kd.networks.small_convnet(2, classes=3, channels=3)
    fresh.add_module("tied", nn.Linear(8, 3))
    fresh.load_state_dict(load_file(tmp_path / "w.safetensors"))
    assert weights_hash(fresh) == weights_hash(network)


def test_wrappers_around_modules_inside_leave_their_names() -> None:
    network, other = nn.Sequential(nn.DataParallel(nn.DataParallel(tiny()))), nn.Sequential(tiny())
    assert list(state_tensors(network)) == list(other.state_dict())
    load_state_tensors(network, state_tensors(other))
    assert weights_hash(network) == weights_hash(other)


# Weights in files


def under(prefix: str, network: nn.Module) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in network.state_dict().items()}


HELD: dict[str, Callable[[nn.Module], dict[str, Any]]] = {
    "Lightning": lambda n: {"state_dict": under("model.", n), "epoch": 3, "hyper_parameters": {"lr": 0.1}},
    "Lightning, a loss beside": lambda n: {"state_dict": {**under("net.", n), "criterion.weight": torch.ones(3)}},
    "Lightning, EMA beside": lambda n: {"state_dict": {**under("model.", n), **under("ema_model.module.", tiny())}},
    "Lightning, another student": lambda n: {
        "state_dict": {**under("teacher.", n), **under("student.", kd.networks.small_convnet(3, classes=3))}
    },
    "in a part": lambda n: {**under("backbone.encoder.", n), "head.weight": torch.ones(3, 3)},
    "compile in Lightning in DDP": lambda n: {"state_dict": under("module.model._orig_mod.", n)},
    "EMA beside": lambda n: {"model": n.state_dict(), "model_ema": tiny().state_dict(), "optimizer": {"state": {}}},
    "EMA alone": lambda n: {"model_ema": under("module.", n)},
    "averaged": lambda n: AveragedModel(n).state_dict(),
    "net": lambda n: {"net": n.state_dict(), "acc": 93.1},
    "network": lambda n: {"network": under("module.", n)},
    "two of the same": lambda n: {"model": n.state_dict(), "best": dict(n.state_dict())},
    "any name": lambda n: {"checkpoint": {"generator": n.state_dict()}},
}


@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("into", [tiny, lambda: kd.networks.Normalised(nn.DataParallel(tiny()), [0.5], [0.5])])
def test_weights_are_found_whatever_stands_before_their_names(
    held: str, into: Callable[[], nn.Module], tmp_path: Path
) -> None:
    network, other = tiny(), into()
    torch.save(HELD[held](network), tmp_path / "last.ckpt")
    kd.networks.load_weights(other, tmp_path / "last.ckpt")
    assert weights_hash(unwrap(other)) == weights_hash(network)


@pytest.mark.parametrize("suffix", [".ckpt", ".bin", ".pth.tar", ".tar", ".PT"])
def test_files_that_torch_writes_have_many_suffixes(suffix: str, tmp_path: Path) -> None:
    network = tiny()
    torch.save(network.state_dict(), tmp_path / f"w{suffix}")
    assert weights_hash(kd.networks.load_weights(tiny(), tmp_path / f"w{suffix}")) == weights_hash(network)


def test_of_two_weights_that_fit_one_is_asked_for(tmp_path: Path) -> None:
    student, teacher, path = tiny(), tiny(), tmp_path / "both.ckpt"
    torch.save({"state_dict": {**under("student.", student), **under("teacher.", teacher)}}, path)
    with pytest.raises(kd.KdsearchError, match=r"'state_dict/student.' and 'state_dict/teacher.' fit .* prefix='"):
        kd.networks.load_weights(tiny(), path)
    for prefix in ("teacher.", "state_dict/teacher."):
        assert weights_hash(kd.networks.load_weights(tiny(), path, prefix=prefix)) == weights_hash(teacher)
    with pytest.raises(kd.KdsearchError, match=r"unknown prefix 'techer\.'; did you mean 'teacher\.'"):
        kd.networks.load_weights(tiny(), path, prefix="techer.")


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants", "ignore:Sparse invariant checks")
@pytest.mark.parametrize("odd", ["meta", "sparse"])
def test_weights_without_dense_numbers_are_named(odd: str, tmp_path: Path) -> None:
    state = tiny().state_dict()
    name, value = next((name, value) for name, value in state.items() if value.ndim == 4)
    state[name] = value.to("meta") if odd == "meta" else value.to_sparse()
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(kd.KdsearchError, match=rf"no dense numbers: {name} on (meta as strided|cpu as sparse_coo)"):
        kd.networks.load_weights(tiny(), tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (under("0.", tiny()) | under("1.", nn.Linear(3, 3)), "unexpected: 0.0.weight"),
        (under("model.", nn.Sequential(*tiny(), nn.Linear(3, 3))), "unexpected: 12.weight"),
        ({n: v.long() for n, v in tiny().state_dict().items()}, "another type: 0.weight torch.int64 in place of"),
    ],
    ids=["a part of a Sequential", "of a larger network", "integers"],
)
def test_weights_of_more_than_the_network_are_refused(state: dict[str, Tensor], said: str, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "w.pt")
    network = tiny()
    before = weights_hash(network)
    with pytest.raises(kd.KdsearchError, match=said):
        kd.networks.load_weights(network, tmp_path / "w.pt")
    assert weights_hash(network) == before


def test_weights_with_extra_state_are_loaded_and_without_it_too(tmp_path: Path) -> None:
    torch.save(Stateful({"format": 3}).state_dict(), tmp_path / "w.pt")
    assert kd.networks.load_weights(Stateful(None), tmp_path / "w.pt").state == {"format": 3}
    torch.save(under("net.", tiny()), tmp_path / "w.pt")
    assert kd.networks.load_weights(Stateful(5), tmp_path / "w.pt").state == 5
    save_file(state_tensors(Stateful({"format": 4})), tmp_path / "w.safetensors")
    assert kd.networks.load_weights(Stateful(None), tmp_path / "w.safetensors").state == {"format": 4}


class Strict(Stateful):
    def set_extra_state(self, state: Any) -> None:
        raise SystemExit("not mine")


def test_what_a_users_module_raises_while_loading_is_told(tmp_path: Path) -> None:
    torch.save(Stateful(None).state_dict(), tmp_path / "w.pt")
    with pytest.raises(kd.KdsearchError, match="not the weights of this Strict: SystemExit: not mine"):
        kd.networks.load_weights(Strict(1), tmp_path / "w.pt")


def test_lazy_and_meta_networks(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    torch.save(network.state_dict(), tmp_path / "w.pt")
    lazy = kd.networks.load_weights(nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), tmp_path / "w.pt")
    assert torch.equal(lazy[1].weight, network[1].weight)
    with pytest.raises(kd.KdsearchError, match="the network is on the meta device"):
        kd.networks.load_weights(nn.Linear(64, 3, device="meta"), tmp_path / "w.pt")


def test_weights_that_cannot_be_downloaded_are_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fails(*args: Any, **kwargs: Any) -> None:
        raise URLError(OSError(-2, "Name or service not known"))

    monkeypatch.setattr("torch.hub.download_url_to_file", fails)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    said = (
        r"resnet18: weights DEFAULT cannot be had: URLError: .* put https://.*\.pth there as .*/checkpoints/resnet18-"
    )
    with pytest.raises(kd.KdsearchError, match=said):
        kd.networks.torchvision_model("resnet18", classes=1000, weights="DEFAULT")


# Networks as they are handed over


@pytest.fixture(scope="module")
def good() -> nn.Module:
    """A teacher of bars: 1 to 3 bright rows."""
    torch.manual_seed(0)
    network, (images, labels) = kd.networks.small_convnet(4, classes=3), bars(200, 1)
    adam = torch.optim.Adam(network.parameters(), lr=0.03)
    for _ in range(40):
        adam.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        adam.step()
    return network.eval()


def bars(count: int, seed: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = 0.2 * torch.rand(count, 1, 8, 8, generator=random)
    for image, label in zip(images, labels, strict=True):
        image[0, : 2 * int(label) + 2] += 0.7
    return images, labels


SPACE = """
[policy]
learning_rate = 0.1
prior_strength = 0.3
operations_per_image = 1
interval = 1
[operations.rotate]
limit = 20.0
[operations.invert]
"""


@pytest.fixture
def study(tmp_path: Path, good: nn.Module) -> kd.Study:
    (tmp_path / "two.toml").write_text(SPACE)
    return kd.Study(
        name="bars",
        train=kd.data.ArrayData(*bars(24, 2)),
        search_validation=kd.data.ArrayData(*bars(60, 3)),
        teacher=deepcopy(good),
        student=tiny,
        classes=3,
        teacher_saw="none",
        space=str(tmp_path / "two.toml"),
        budget=kd.Budget(trials=1, epochs=1, steps=2, batch=8, confirmation=0),
    )


def train(study: kd.Study) -> float:
    """What a run of a study does with its networks: steps of both kinds, their memory, accuracy, weights kept."""
    check_fresh(study.fresh_student(), student := study.fresh_student())
    policy, every = kd.Policy({"rotate": 20.0, "invert": None}, 1), kd.PolicySteps(interval=1, warm_up=0.0)
    phase = kd.Phase(study.losses, 1, 2, 8, every)
    distiller = kd.Distiller(
        kd.networks.Teacher(study.teacher), student, policy, kd.Classification.of(3), optimizer=study.optimizer
    )
    (record,) = distiller.run(phase, study.train, study.search_validation)
    batch, random = first_batch(study.train, 8), torch.Generator().manual_seed(0)
    peak_bytes(lambda: distiller.student_step(batch, phase, random))
    state_tensors(student)
    return record.value


def says(said: str, study: kd.Study) -> None:
    with pytest.raises(kd.KdsearchError, match=said) as caught:
        train(study)
    assert len(str(caught.value).splitlines()) == 1


def scripted(network: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(network)


def traced(network: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(network, torch.rand(2, 1, 8, 8), check_trace=False)


TEACHERS: dict[str, Wrap] = {
    "scripted": scripted,
    "traced": traced,
    "float16": lambda n: n.half(),
    "bfloat16": lambda n: n.bfloat16(),
    "float64": lambda n: n.double(),
    "data parallel": nn.DataParallel,
    "normalised in half": lambda n: kd.networks.Normalised(n.half(), [0.0], [1.0]),
    "an ensemble of types": lambda n: kd.networks.Ensemble([deepcopy(n).half(), n.double()]),
    "frozen": lambda n: n.requires_grad_(False),
    "in training": lambda n: n.train(),
}
STUDENTS: dict[str, Callable[[], nn.Module]] = {
    "scripted": lambda: scripted(tiny()),
    "traced": lambda: traced(tiny()),
    "bfloat16": lambda: tiny().bfloat16(),
    "float64": lambda: tiny().double(),
    "data parallel": lambda: nn.DataParallel(tiny()),
    "lazy": lambda: nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(3)),
    "in evaluation": lambda: tiny().eval(),
    "with extra state": lambda: Stateful({"format": 3}),
    "half frozen": lambda: nn.Sequential(tiny().requires_grad_(False), nn.Linear(3, 3)),
}


@pytest.mark.parametrize("kind", TEACHERS)
def test_teachers_of_all_kinds_work(kind: str, study: kd.Study, good: nn.Module) -> None:
    assert 0 <= train(replace(study, teacher=TEACHERS[kind](deepcopy(good)))) <= 1


@pytest.mark.parametrize("kind", STUDENTS)
def test_students_of_all_kinds_work(kind: str, study: kd.Study) -> None:
    assert 0 <= train(replace(study, student=STUDENTS[kind])) <= 1


def test_what_the_caller_has_set_in_torch_does_not_count(study: kd.Study, tmp_path: Path) -> None:
    lazy = replace(study, student=STUDENTS["lazy"])
    with torch.inference_mode(), torch.no_grad(), torch.device("meta"):
        checked = preflight(lazy, tmp_path)
    assert checked.validation.accuracy > 0.9 and search_identity(checked)["student"]
    with torch.no_grad():
        train(study)


def test_another_default_type_works(study: kd.Study) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        assert 0 <= train(study) <= 1
    finally:
        torch.set_default_dtype(torch.float32)


class Doing(nn.Module):
    """A network whose forward does what it is told to."""

    def __init__(self, act: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.net, self.act = tiny(), act

    def forward(self, images: Tensor) -> Any:
        return self.act(self.net, images)


def stop(net: nn.Module, images: Tensor) -> Any:
    raise SystemExit(0)


FORWARDS: dict[str, tuple[Callable[[nn.Module, Tensor], Any], str]] = {
    "exit": (stop, r"student, called with images \(4, 1, 8, 8\) torch.float32: SystemExit: 0 \(test_user"),
    "None": (lambda net, x: None, "student: returned NoneType; allowed: a tensor"),
    "text": (lambda net, x: "cat", "student: returned str"),
    "labels": (lambda net, x: net(x).argmax(1), "logits are floating, before any argmax"),
    "channels": (lambda net, x: net(x.expand(-1, 3, -1, -1)), r"images \(4, 1, 8, 8\) .*RuntimeError: Given groups=1"),
    "detached": (lambda net, x: net(x).detach(), "its logits carry no gradient"),
    "backward": (
        lambda net, x: torch.sigmoid(net(x)).mul_(2),
        r"the gradient of what they answer by the images: RuntimeError: one of the",
    ),
}


@pytest.mark.parametrize("what", FORWARDS)
def test_what_goes_wrong_in_a_forward_is_one_sentence(what: str, study: kd.Study) -> None:
    act, said = FORWARDS[what]
    says(said, replace(study, student=lambda: Doing(act)))


def test_a_teacher_that_changes_its_images_is_refused(study: kd.Study) -> None:
    said = r"teacher: its forward changes the images it is given; allowed: `images = images.clone\(\)` first"
    says(said, replace(study, teacher=nn.Sequential(nn.ReLU(inplace=True), study.teacher)))


class Sized(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()


once = tiny()
FACTORIES: dict[str, tuple[Any, str]] = {
    "a network": (tiny(), "student is a network, a Sequential; allowed: a factory, which makes a new network each"),
    "text": ("tiny", "student is a str; allowed: a factory"),
    "arguments": (
        Sized,
        r"student\(\): TypeError: .*missing 1 required positional argument: 'width'.*; allowed: a factory",
    ),
    "None": (lambda: None, r"student\(\) gives NoneType; allowed: a factory"),
    "a class": (lambda: nn.Linear, r"student\(\) gives the class Linear; allowed"),
    "the same": (lambda: once, "student gives the same network twice; allowed: a factory"),
    "around the same": (lambda: nn.Sequential(once), "student gives networks that share the weights 0.0.weight"),
    "frozen": (lambda: tiny().requires_grad_(False), r"student\(\): none of its weights has requires_grad"),
    "without weights": (nn.Flatten, r"student\(\): none of its weights has requires_grad"),
    "half": (lambda: tiny().half(), r"student\(\): weights in float16 do not survive training; allowed: float32"),
    "meta": (lambda: nn.Linear(64, 3, device="meta"), r"student\(\): its weights are on the meta device"),
}


@pytest.mark.parametrize("what", FACTORIES)
def test_a_factory_that_makes_no_student_is_one_sentence(what: str, study: kd.Study) -> None:
    factory, said = FACTORIES[what]
    says(said, replace(study, student=factory))


@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        (
            lambda images: images.mean((2, 3)),
            "teacher is a function; allowed: a network, an instance of torch.nn.Module",
        ),
        (nn.Linear, "teacher is the class Linear; allowed"),
        (None, "teacher is a NoneType; allowed"),
        (nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), "teacher: it has lazy layers that were never run"),
    ],
    ids=["function", "class", "None", "lazy"],
)
def test_what_is_no_teacher_is_one_sentence(teacher: Any, said: str, study: kd.Study) -> None:
    says(said, replace(study, teacher=teacher))


def apart(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(tiny().parameters(), lr=0.1)


OPTIMIZERS: dict[str, tuple[Any, str]] = {
    "closure": (torch.optim.LBFGS, r"optimizer: LBFGS.step\(\) needs a closure, which a step here has not; allowed"),
    "fails": (lambda parameters: torch.optim.SGD(parameters, lr=-1), r"optimizer\(parameters\): ValueError: Invalid"),
    "no optimizer": (lambda parameters: None, r"optimizer\(parameters\) gives NoneType; allowed"),
    "an optimizer": (torch.optim.SGD(once.parameters(), lr=0.1), "optimizer is a SGD; allowed: a factory"),
    "other weights": (apart, "optimizer: SGD has none of the parameters that the factory was given"),
    "step fails": (torch.optim.SparseAdam, r"optimizer's step, SparseAdam.step\(\): RuntimeError: SparseAdam does not"),
}


@pytest.mark.parametrize("what", OPTIMIZERS)
def test_an_optimizer_that_cannot_be_used_is_one_sentence(what: str, study: kd.Study) -> None:
    optimizer, said = OPTIMIZERS[what]
    says(said, replace(study, optimizer=optimizer))


def test_a_student_that_changes_its_images_is_refused(study: kd.Study) -> None:
    student = nn.Sequential(nn.ReLU(inplace=True), tiny())
    with pytest.raises(kd.KdsearchError, match="student: its forward changes the images it is given; allowed:"):
        measure(student, study.search_validation, kd.Classification.of(3), 8, "cpu")


def test_a_teacher_on_the_meta_device_is_refused(study: kd.Study, tmp_path: Path) -> None:
    with pytest.raises(kd.KdsearchError, match="teacher: its weights are on the meta device, which holds no numbers"):
        preflight(replace(study, teacher=tiny().to("meta")), tmp_path)


def test_layers_of_torchscript_are_refused(study: kd.Study) -> None:
    said = "student: layer '6' is TorchScript, which runs whole"
    says(said, replace(study, student=lambda: scripted(tiny()), loss=kd.losses.rkd("6")))


# Data sets and their items

GRAY = np.arange(64, dtype=np.uint8).reshape(8, 8)
COLOURS = np.stack([GRAY, GRAY * 2, GRAY * 3], -1)
RGB = torch.from_numpy(COLOURS).movedim(-1, 0)
Named = namedtuple("Named", ["label", "img", "path"])
ITEMS: dict[str, Any] = {
    "dict": {"image": COLOURS, "label": 2},
    "Hugging Face": {"pixel_values": RGB, "labels": torch.tensor(2), "id": "x"},
    "CIFAR-100": {"img": PIL.Image.fromarray(COLOURS), "fine_label": 2, "coarse_label": 0},
    "list": [RGB, np.int64(2)],
    "named tuple": Named(2, COLOURS, "a.png"),
    "channels first": (RGB.numpy(), 2),
    "strided": (np.ascontiguousarray(COLOURS[:, ::-1])[:, ::-1], 2),
    "16 bits": (COLOURS.astype(np.uint16) * 257, 2),
    "big endian": (COLOURS.astype(">u2") * 257, 2),
    "16-bit tensor": ((RGB.int() * 257).to(torch.uint16), 2),
    "with a gradient": (RGB.to(torch.float64).requires_grad_(), 2),
}
PICTURES: dict[str, tuple[PIL.Image.Image, int]] = {
    "palette": (PIL.Image.fromarray(COLOURS).quantize(64), 3),
    "gray palette": (PIL.Image.fromarray(GRAY).convert("P"), 3),
    "alpha": (PIL.Image.fromarray(COLOURS).convert("RGBA"), 3),
    "gray and alpha": (PIL.Image.fromarray(GRAY).convert("LA"), 3),
    "palette and alpha": (PIL.Image.fromarray(COLOURS).convert("PA"), 3),
    "ink": (PIL.Image.fromarray(COLOURS).convert("CMYK"), 3),
    "YCbCr": (PIL.Image.fromarray(COLOURS).convert("YCbCr"), 3),
    "HSV": (PIL.Image.fromarray(COLOURS).convert("HSV"), 3),
    "gray": (PIL.Image.fromarray(GRAY), 1),
    "16 bits": (PIL.Image.fromarray(GRAY.astype(np.uint16) * 257), 1),
    "bits": (PIL.Image.fromarray(GRAY * 4).convert("1"), 1),
}


@pytest.mark.parametrize("kind", ITEMS)
def test_items_of_many_kinds_are_read(kind: str) -> None:
    batch = first_batch([ITEMS[kind]], 1)
    assert batch.target.tolist() == [2]
    levels = batch.images if kind == "with a gradient" else batch.images * 255
    torch.testing.assert_close(levels[0].float(), RGB.float())


@pytest.mark.parametrize("mode", PICTURES)
def test_pictures_of_all_modes_become_gray_or_rgb_as_files_do(mode: str, tmp_path: Path) -> None:
    picture, channels = PICTURES[mode]
    images = first_batch([(picture, 0)], 1).images
    assert images.shape == (1, channels, 8, 8)
    if mode not in ("YCbCr", "HSV", "palette and alpha"):  # what no file that is read here can hold
        suffix = ".tif" if mode == "ink" else ".png"
        picture.save(tmp_path / f"a{suffix}")
        torch.testing.assert_close(images[0] * 255, image_file(tmp_path / f"a{suffix}").float())
    gray = torch.from_numpy(GRAY).float()
    assert mode == "bits" or not mode.startswith("gray") or (images[0, 0] * 255 - gray).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("array", "low", "high"),
    [(GRAY > 30, 0, 1), (GRAY / 64, 0, 63 / 64), (GRAY.astype(np.float16) / 64, 0, 63 / 64), (GRAY, 0, 63 / 255)],
)
def test_gray_arrays_have_one_channel(array: Any, low: float, high: float) -> None:
    images = first_batch([(array, 0)], 1).images
    assert images.shape == (1, 1, 8, 8)
    assert images.min().item() == low and images.max().item() == pytest.approx(high)


def leave() -> None:
    sys.exit(0)


class Lying:
    """A data set whose methods do what they are told to."""

    def __init__(self, item: Callable[[], Any] = lambda: (RGB, 0), count: Callable[[], int] = lambda: 4) -> None:
        self.item, self.count = item, count

    def __len__(self) -> int:
        return self.count()

    def __getitem__(self, index: int) -> Any:
        return self.item()


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self) -> Any:
        yield RGB, 0


class SizedStream(Stream):
    def __len__(self) -> int:
        return 4


def divided() -> Any:
    return 1 / 0


WRONG_DATA: dict[str, tuple[Any, str]] = {
    "dict without label": (
        [{"image": RGB, "caption": "a"}],
        r"item 0 of list: it is a dict with image, caption; allowed",
    ),
    "two labels": ([{"image": RGB, "label": 1, "target": 2}], "it is a dict with image, label, target; allowed"),
    "three parts": ([(RGB, 1, "a")], r"it has 3 parts \(Tensor, int, str\); allowed: \(image, label\)"),
    "images alone": ([RGB], r"it is one array of shape \(3, 8, 8\), without a label; allowed: \(image, label\)"),
    "text": (["a.png"], r"it is a str; allowed: \(image, label\)"),
    "None": ([None], r"it is a NoneType; allowed: \(image, label\)"),
    "label of text": ([(RGB, "cat")], "its label is text 'cat'; allowed: integers from 0 on"),
    "label None": ([(RGB, None)], "its label is None; allowed: integers"),
    "label of an object": ([(RGB, object())], "its label is a object; allowed: integers"),
    "path for an image": ([("a.png", 1)], "its image is text 'a.png'; allowed: a tensor"),
    "swapped": ([(1, RGB)], r"its image is a int; allowed: a tensor \(C, H, W\), a PIL image or a NumPy array"),
    "objects": ([(np.array([[None]]), 1)], "an image of object; allowed: numbers"),
    "whole numbers": ([(RGB.long(), 1)], r"an image of torch.int64; allowed: uint8, or floating in \[0, 1\]"),
    "complex": ([(RGB * 1j, 1)], "an image of torch.complex64; allowed: uint8"),
    "sparse": ([(RGB.float().to_sparse(), 1)], "an image that is sparse; allowed: a dense tensor"),
    "meta": ([(RGB.to("meta"), 1)], "an image that is on the meta device"),
    "32 bits": ([(PIL.Image.fromarray(GRAY.astype(np.int32)), 1)], "an image of 32 bits a pixel; allowed: 8 or 16"),
    "exit": (Lying(leave), r"item 0 of Lying: SystemExit: 0 \(test_user_objects.py, line"),
    "divided": (Lying(divided), r"item 0 of Lying: ZeroDivisionError: division by zero \(test_user_objects.py"),
    "stream": (
        Stream(),
        r"a Stream is no map-style data set: needed are len\(data\) and data\[i\] as \(image, label\)",
    ),
    "sized stream": (SizedStream(), "a SizedStream is no map-style data set"),
    "loader": (torch.utils.data.DataLoader(Lying()), "is no map-style data set: .*; pass loader.dataset"),
    "path": ("data/train", r"a str is no map-style data set: .*; kdsearch.data.image_folder\(path\) reads a folder"),
    "generator": ((i for i in ()), "a generator is no map-style data set"),
    "nothing": (None, "a NoneType is no map-style data set"),
    "splits": ({"train": [(RGB, 0)]}, "a dict is no map-style data set"),
    "len fails": (Lying(count=divided), r"len\(\) of Lying: ZeroDivisionError"),
    "len exits": (Lying(count=leave), r"len\(\) of Lying: SystemExit"),
    "len is huge": (Lying(count=lambda: 10**12), r"len\(\) of Lying is 1,000,000,000,000; allowed: up to 100,000,000"),
    "len is negative": (Lying(count=lambda: -1), r"len\(\) of Lying: ValueError"),
    "empty": ([], "the data set is empty"),
}


@pytest.mark.parametrize("kind", WRONG_DATA)
def test_what_is_no_data_set_or_item_is_one_sentence(kind: str) -> None:
    data, said = WRONG_DATA[kind]
    with pytest.raises(kd.KdsearchError, match=said) as caught:
        first_batch(data, 4)
    assert len(str(caught.value).splitlines()) == 1


def test_a_data_set_that_is_longer_than_it_says_is_named_with_its_item() -> None:
    with pytest.raises(kd.KdsearchError, match="item 1 of Short: IndexError: list index out of range"):
        list(batches_in_order(Short([(RGB, 0)]), 4))


class Short(list):  # type: ignore[type-arg]
    def __len__(self) -> int:
        return 3


def test_an_interruption_while_an_item_is_read_stays_one() -> None:
    def interrupted() -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first_batch(Lying(interrupted), 1)


def test_numpy_arrays_become_tensors() -> None:
    images, labels = bars(6, 0)
    for given in (images.numpy(), images[:, 0].numpy(), images.movedim(1, -1).numpy()):
        data = kd.data.ArrayData(given, labels.numpy())
        assert torch.equal(data.images, images) and torch.equal(data.labels, labels)
    assert kd.data.ArrayData(images.numpy() > 0.5, labels.numpy()).images.unique().tolist() == [0, 255]
    assert not kd.data.ArrayData(images.clone().requires_grad_(), labels).images.requires_grad


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (torch.rand(4, 1, 8, 8), torch.zeros(3), "ArrayData: 3 labels for 4 images; needed: one each"),
        ([RGB], torch.zeros(1), "ArrayData: images is a list; allowed: a tensor or a NumPy array"),
        (torch.rand(2, 1, 8, 8), [0, 1], "ArrayData: labels is a list"),
        (torch.rand(2, 1, 8, 8), np.array(["a", "b"]), "ArrayData: labels of <U1; allowed: numbers"),
        (
            torch.rand(2, 1, 8, 8).to_sparse(),
            torch.zeros(2),
            "ArrayData: images is .*sparse.*; allowed: a dense tensor",
        ),
        (torch.rand(2, 1, 8, 8) * 1j, torch.zeros(2), "ArrayData: images is torch.complex64"),
        (torch.tensor(1.0), torch.zeros(2), r"ArrayData: images is torch.float32 \(\)"),
    ],
)
def test_arrays_that_do_not_fit_are_one_sentence(images: Any, labels: Any, said: str) -> None:
    with pytest.raises(kd.KdsearchError, match=said):
        kd.data.ArrayData(images, labels)


# Study files


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"import sys\nsys.exit(0)", "line 2: SystemExit: 0$"),
        (b"\nraise SystemExit", "line 2: SystemExit$"),
        (b"raise GeneratorExit", "line 1: GeneratorExit$"),
        (b"raise BaseException('no')", "line 1: BaseException: no$"),
        (b"x = 1\ny = = 2", "line 2: SyntaxError: invalid syntax$"),
        (b"x = '\xff'", "SyntaxError: .*utf-8"),
        (b"x = 1\x00", "null bytes"),
        (b"raise ValueError('a\\nb')", "line 1: ValueError: a$"),
        (b"#" * 10_000_001, "10,000,001 bytes; allowed: 10,000,000"),
    ],
    ids=range(9),
)
def test_a_study_file_that_does_not_run_is_one_sentence_with_its_line(text: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_bytes(text)
    with pytest.raises(kd.KdsearchError, match=said) as caught:
        run_file(tmp_path / "mine.py")
    assert str(caught.value).startswith(str(tmp_path / "mine.py")) and "\n" not in str(caught.value)


def test_an_interruption_of_a_study_file_stays_one(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        run_file(tmp_path / "mine.py")


# Draws, targets that move, memory, BatchNorm


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"operations": ("invert", "rotate")}, "draw: operations invert, rotate; needed, once each: rotate, invert"),
        ({"operations": ("rotate", "rotate")}, "draw: operations rotate, rotate; needed, once each: rotate"),
        ({"operations": ("rotat", "invert")}, "draw: unknown operation 'rotat'; did you mean 'rotate'"),
        ({"chosen": torch.tensor([[0, 2], [0, 1]])}, "draw: chosen from 0 to 2; allowed: 0 to 1"),
        ({"chosen": torch.tensor([[1, 0], [0, 1]])}, "draw: chosen is not ascending"),
        ({"gates": torch.ones(2, 1, dtype=torch.bool)}, r"draw: chosen is \(2, 2\), gates \(2, 1\); needed: a row"),
        ({"seeds": torch.zeros(3).long()}, r"draw: chosen is \(2, 2\), seeds \(3,\); needed"),
        ({"uniforms": torch.zeros(2, 2).double()}, r"draw: chosen is \(2, 2\), uniforms \(2, 2\); needed"),
        ({"fill": "zeros"}, "draw: unknown fill 'zeros'; did you mean 'zero'"),
    ],
)
def test_a_draw_that_cannot_be_carried_out_is_one_sentence(changes: dict[str, Any], said: str) -> None:
    draw = kd.Policy({"rotate": 20.0, "invert": None}, 2).draw(2)
    images = torch.rand(2, 1, 8, 8)
    kd.operations.apply(draw, images)
    with pytest.raises(kd.KdsearchError, match=said):
        kd.operations.apply(replace(draw, **changes), images)


class Masks(kd.Classification):
    """A task whose targets (B, H, W) move with the pixels."""

    def follow(self, target: Tensor, matrix: Tensor) -> Tensor:
        return move_labels(target, matrix, outside=255)


def test_a_fixed_transform_is_refused_where_targets_move() -> None:
    still_task = kd.Classification.of(3)
    transform, masks = kd.FixedTransform(lambda image: image.flip(-1)), Masks(still_task.class_names)
    images, labels = bars(2, 0)
    draw = transform.draw(2)
    make_views(Batch(images, labels, labels), draw, transform, still_task, kd.Views.named("default"))
    target = torch.arange(64).view(1, 8, 8).repeat(2, 1, 1)
    with pytest.raises(kd.KdsearchError, match="does not tell where it moves pixels, and targets of Masks move"):
        make_views(Batch(images, target, labels), draw, transform, masks, kd.Views.named("default"))


def test_memory_that_grows_with_the_cube_of_a_batch_is_foreseen() -> None:
    random = torch.Generator().manual_seed(0)
    student, teacher = torch.rand(64, 8, generator=random), torch.rand(64, 8, generator=random)

    def step(size: int) -> None:
        kd.losses.relational.rkd_angle_loss(student[:size].clone().requires_grad_(), teacher[:size]).sum().backward()

    foreseen = largest_batch(step, 64, 10**12).needed
    assert foreseen == pytest.approx(peak_bytes(lambda: step(64)), rel=0.1)


def test_batch_norm_of_few_images_is_warned_of() -> None:
    (said,) = batch_norm_warning(tiny(), 4)
    assert said.startswith("BatchNorm of the student sees 4 images at a time")
    assert batch_norm_warning(tiny(), 8) == batch_norm_warning(nn.Linear(3, 3), 2) == []


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested")
def test_arrays_without_numbers_or_of_many_shapes_are_refused() -> None:
    labels = torch.zeros(2, dtype=torch.long)
    with pytest.raises(kd.KdsearchError, match="its images are on the meta device, which holds no numbers"):
        first_batch(kd.data.ArrayData(torch.zeros(2, 1, 8, 8, device="meta"), labels), 2)
    nested = torch.nested.nested_tensor([torch.zeros(1, 8, 8), torch.zeros(1, 9, 9)])
    with pytest.raises(kd.KdsearchError, match=r"ArrayData: images is torch.float32 nested"):
        kd.data.ArrayData(nested, labels)
