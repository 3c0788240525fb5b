"""A teacher is only evaluated: its BatchNorm is fused into its convolutions where nobody can tell, else left alone."""

import copy
import random
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu
from torch.nn.utils import prune

import kdsearch as kd
from kdsearch.networks.fusing import fused_copy
from kdsearch.networks.state import state_tensors
from kdsearch.networks.teachers import Teacher

BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
TOLERANCE = 1e-4


def lived(network: nn.Module) -> nn.Module:
    """Statistics, scales and shifts as training leaves them; in evaluation mode."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.running_mean is not None:
                module.running_mean.normal_(0.0, 0.5)
                module.running_var.uniform_(0.5, 2.0)
            if module.weight is not None:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0.0, 0.3)
    return network.eval()


def pixels(channels: int, size: int, batch: int = 4) -> Tensor:
    return torch.rand(batch, channels, size, size, generator=torch.Generator().manual_seed(1))


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())


def torchvision_resnet() -> nn.Module:
    return lived(kd.networks.torchvision_model("resnet18", classes=5, weights=None))


class Net(nn.Module):
    """A stem, then what a test makes of a convolution and a BatchNorm."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.conv0, self.bn0 = nn.Conv2d(channels, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv, self.bn = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.other = nn.BatchNorm2d(6)
        self.linear = nn.Linear(6, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(self.middle(relu(self.bn0(self.conv0(images)))).mean((2, 3)))

    def middle(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class Skip(Net):
    def middle(self, x: Tensor) -> Tensor:
        before = self.conv(x)
        return relu(self.bn(before)) + relu(before)


class TwoNorms(Net):
    def middle(self, x: Tensor) -> Tensor:
        before = self.conv(x)
        return relu(self.bn(before)) + self.other(before)


class Apart(Net):
    """The BatchNorm comes after the convolution in the order of modules, and reads something else."""

    def middle(self, x: Tensor) -> Tensor:
        return relu(self.conv(x)) + self.bn(x)


class InPlace(Net):
    def middle(self, x: Tensor) -> Tensor:
        before = self.conv(x)
        before += 0.5
        return self.bn(before)


class Twice(Net):
    def middle(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(relu(self.bn(self.conv(x)))))


class NormTwice(Net):
    def middle(self, x: Tensor) -> Tensor:
        return relu(self.bn(self.conv(x))) + self.bn(x)


class Returns(Net):
    """It gives what the convolution gave, and nothing of it goes into the logits but through the BatchNorm."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        before = self.conv(relu(self.bn0(self.conv0(images))))
        return {"logits": self.linear(self.bn(before).mean((2, 3))), "before": before}


class Bright(Net):
    """Of bright images, the convolution's output goes somewhere else as well."""

    def forward(self, images: Tensor) -> Tensor:
        before = self.conv(relu(self.bn0(self.conv0(images))))
        after = self.bn(before)
        return self.linear((after + before if images.mean() > 0.3 else after).mean((2, 3)))


class BatchStatistics(Net):
    """Its forward has the BatchNorm in training mode for a while."""

    def middle(self, x: Tensor) -> Tensor:
        self.bn.momentum = 0.0
        self.bn.train()
        x = self.bn(self.conv(x))
        self.bn.eval()
        return x


class OwnConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).clamp(-0.1, 0.1)


def changed(change: object) -> Net:
    network = lived(Net())
    change(network)
    return network


def no_statistics(network: Net) -> None:
    network.bn = nn.BatchNorm2d(6, track_running_stats=False).eval()


def own_forward_of_a_class(network: Net) -> None:
    network.conv = OwnConv(6, 6, 3, padding=1)


def own_forward_of_an_object(network: Net) -> None:
    network.conv.forward = lambda x: nn.Conv2d.forward(network.conv, x).clamp(-0.1, 0.1)


def in_half(network: Net) -> None:
    network.conv.register_forward_pre_hook(lambda module, given: (given[0].bfloat16(),))
    network.conv.register_forward_hook(lambda module, given, result: result.float())
    network.conv.bfloat16()


PARTLY = {  # networks whose second pair is no pair, while the stem is one
    "skip from before BatchNorm": Skip,
    "two BatchNorms": TwoNorms,
    "not in the flow of data": Apart,
    "changed in place between": InPlace,
    "both run twice": Twice,
    "BatchNorm run twice": NormTwice,
    "returned under a name": Returns,
    "no pair on other images": Bright,
    "in training mode": BatchStatistics,
    "without statistics": no_statistics,
    "a subclass": own_forward_of_a_class,
    "a forward of its own": own_forward_of_an_object,
    "half precision": in_half,
    "hook on the convolution": lambda net: net.conv.register_forward_hook(lambda module, given, result: result * 2),
    "hook on the BatchNorm": lambda net: net.bn.register_forward_pre_hook(lambda module, given: (given[0] + 1,)),
    "backward hook": lambda net: net.bn.register_full_backward_hook(lambda module, into, out: None),
    "spectral norm": lambda net: nn.utils.parametrizations.spectral_norm(net.conv),
    "spectral norm by hooks": lambda net: nn.utils.spectral_norm(net.conv),
}


@pytest.mark.parametrize(
    "network, images",
    [
        (lambda: lived(kd.networks.cifar_resnet(20)), pixels(3, 16)),
        (torchvision_resnet, pixels(3, 32)),
        (lambda: lived(kd.networks.small_convnet(8)), pixels(1, 8)),
        (lambda: kd.networks.Ensemble([lived(kd.networks.small_convnet(4)) for _ in range(2)]), pixels(1, 8)),
        (lambda: kd.networks.Normalised(lived(kd.networks.small_convnet(4)), [0.4], [0.2]), pixels(1, 8)),
        (lambda: nn.DataParallel(lived(kd.networks.small_convnet(4))), pixels(1, 8)),
    ],
    ids=["resnet", "torchvision", "small", "ensemble", "normalised", "parallel"],
)
def test_every_batch_norm_is_fused_and_answers_and_gradients_stay(network, images):
    torch.manual_seed(0)
    given = network()
    fused, said = fused_copy(given, images[:2])
    assert said == f"the teacher runs with {norms(given)} of {norms(given)} BatchNorm fused into convolutions"
    assert norms(given) and not norms(fused) and not any(module.training for module in fused.modules())
    one, other = Teacher(given)(images).logits, Teacher(given, fused)(images).logits
    assert (one - other).abs().max() < TOLERANCE * max(1.0, one.abs().max().item()) and not torch.equal(one, other)
    slopes = []  # in float64, so that rounding takes no ReLU to the other side of its kink
    for teacher in (Teacher(given.double()), Teacher(given, fused_copy(given, images[:2].double()).network)):
        x = images.double().requires_grad_()
        slopes += torch.autograd.grad(teacher(x).logits.log_softmax(1)[:, 0].sum(), x)
    assert slopes[0].abs().max() > 0
    assert (slopes[0] - slopes[1]).abs().max() < 1e-9 * slopes[0].abs().max() and not torch.equal(*slopes)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_of_each_kind_are_fused_or_left_alone(dimensions, transposed, groups):
    kind = getattr(nn, f"Conv{'Transpose' if transposed else ''}{dimensions}d")
    shape = {1: (64,), 2: (8, 8), 3: (4, 4, 4)}[dimensions]
    convolved = kind(2, 4, 3, padding=1, groups=groups), BATCH_NORMS[dimensions](4)
    network = lived(nn.Sequential(nn.Flatten(2), nn.Unflatten(2, shape), *convolved, nn.Flatten()))
    images = pixels(2, 8)
    fused, said = fused_copy(network, images)
    if transposed and groups > 1:
        assert fused is None and "none that is plain" in said
    else:
        assert torch.allclose(network(images), fused(images), atol=1e-5) and not norms(fused)


@pytest.mark.parametrize("make", PARTLY.values(), ids=PARTLY.keys())
def test_what_is_no_pair_stays_and_the_rest_is_fused(make):
    network = lived(make()) if isinstance(make, type) else changed(make)
    images = pixels(3, 8) / 4
    fused, said = fused_copy(network, images)
    assert fused is not None, said
    assert isinstance(fused.bn0, nn.Identity) and type(fused.bn) is nn.BatchNorm2d, said
    assert f"1 of {norms(network)}" in said
    one, other = (Teacher(which)(images) for which in (network, fused))
    assert torch.allclose(one.logits, other.logits, atol=TOLERANCE)
    assert all(torch.allclose(value, other.extras[name], atol=TOLERANCE) for name, value in one.extras.items())


class Noisy(Net):
    def middle(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)) + torch.rand(1)


class Dropping(Net):
    def middle(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(self.bn(self.conv(x)), 0.5, training=True)


class Counting(Net):
    calls = 0

    def middle(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.bn(self.conv(x)) * self.calls


class NoCopy(Net):
    def __deepcopy__(self, memo: object) -> Net:
        raise TypeError("one of a kind")


class Same(Net):
    def __deepcopy__(self, memo: object) -> Net:
        return self


class Kept(Net):
    """It has its convolution a second time, where no module is looked for."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = [self.conv]

    def middle(self, x: Tensor) -> Tensor:
        return self.bn(self.kept[0](x))


class Hooked(Net):
    """A hook hands a value to the network that it was made for, which a copy never sees."""

    def middle(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)) + self.seen


def hooked_to_the_original() -> nn.Module:
    network = lived(Hooked())
    network.conv0.register_forward_hook(lambda module, given, result: setattr(network, "seen", result.detach()))
    network(pixels(3, 8))
    return network


def pruned(network: Net) -> None:
    prune.random_unstructured(network.conv, "weight", 0.5)


def half() -> nn.Module:
    return lived(Net()).bfloat16()


ALONE = {
    "noise in its forward": (lambda: lived(Noisy()), "random state"),
    "dropout in evaluation": (lambda: lived(Dropping()), "random state"),
    "counts its calls": (lambda: lived(Counting()), "random state"),
    "cannot be copied": (lambda: lived(NoCopy()), "a copy of it: TypeError: one of a kind"),
    "weights that are computed": (lambda: changed(pruned), "a copy of it: RuntimeError"),
    "its copy is itself": (lambda: lived(Same()), "shares modules"),
    "TorchScript": (lambda: torch.jit.script(lived(Net())), "none that is plain"),
    "traced": (lambda: torch.jit.trace(lived(Net()), pixels(3, 8)), "none that is plain"),
    "no BatchNorm": (lambda: nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten()), "none that is plain"),
    "half precision": (half, "none that is plain"),
    "BatchNorm alone": (lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 8), nn.Flatten()), "nowhere else"),
    "a module that is kept twice": (lambda: lived(Kept()), "would change"),
    "a forward that fails": (lambda: lived(Net(channels=1)), "RuntimeError"),
    "a hook that holds the network": (hooked_to_the_original, "would change"),
}


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("make, reason", ALONE.values(), ids=ALONE.keys())
def test_what_cannot_be_fused_is_left_alone_with_the_reason(make, reason):
    fused, said = fused_copy(make(), pixels(3, 8))
    assert fused is None
    assert said.startswith("the teacher's BatchNorm is not fused: ") and reason in said and "\n" not in said


def test_a_pair_under_two_names_is_fused_under_both():
    network = lived(Net())
    network.stem = nn.Sequential(network.conv0, network.bn0)
    fused = fused_copy(network, pixels(3, 8)).network
    assert fused.conv0 is fused.stem[0] is not network.conv0 and fused.bn0 is fused.stem[1]
    assert not norms(fused.stem) and torch.allclose(network(pixels(3, 8)), fused(pixels(3, 8)), atol=1e-5)


def test_the_network_and_the_callers_generators_are_untouched():
    network = lived(kd.networks.cifar_resnet(8)).train()
    network.layer1.eval()
    network.conv1.weight.requires_grad_(False)
    network.layer2.register_forward_hook(lambda module, given, result: None)

    def looks() -> list[object]:
        hooks = [(*module._forward_hooks, *module._forward_pre_hooks) for module in network.modules()]
        flags = [parameter.requires_grad for parameter in network.parameters()]
        places = [value.data_ptr() for value in network.state_dict().values()]
        return [[*network.modules()], [module.training for module in network.modules()], hooks, flags, places]

    before, state = looks(), state_tensors(network)
    random_states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    assert fused_copy(network, pixels(3, 16)).network is not None
    assert looks() == before
    assert all(torch.equal(value, state[name]) for name, value in state_tensors(network).items())
    assert torch.equal(torch.get_rng_state(), random_states[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == random_states[1:]  # noqa: NPY002


def test_a_fused_copy_takes_a_gradient_though_it_was_made_without():
    network = lived(Net())
    with torch.inference_mode():
        fused = fused_copy(network, pixels(3, 8)).network
    x = pixels(3, 8).requires_grad_()
    cross_entropy(fused(x), torch.tensor([0, 1, 2, 3])).backward()
    assert x.grad.abs().sum() > 0


def test_weights_stay_laid_out_and_what_is_compiled_stays_compiled(monkeypatch):
    stances = []
    monkeypatch.setattr(torch, "compile", lambda call, *_, **__: call)  # the real one takes seconds
    monkeypatch.setattr(torch.compiler, "set_stance", lambda stance: stances.append(stance) or nullcontext())
    network = kd.networks.outputs.arrange_network(lived(Net()), "cpu", channels=3, compiled=True)
    fused = fused_copy(network, pixels(3, 8)).network
    assert fused.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert fused._compiled_call_impl is not None and network._compiled_call_impl is not None
    assert stances == ["force_eager", "force_eager"]  # nothing is compiled for a look


def test_a_teacher_answers_by_its_fused_copy_unless_a_layer_is_asked_for():
    network = lived(kd.networks.small_convnet(4))
    fused = fused_copy(network, pixels(1, 8)).network
    fused.train().requires_grad_(True)
    asked = []
    network.register_forward_hook(lambda *_: asked.append("network"))
    fused.register_forward_hook(lambda *_: asked.append("fused"))
    teacher = Teacher(network, fused)
    assert teacher.network is network
    assert not any(parameter.requires_grad for parameter in fused.parameters())
    answers = teacher(pixels(1, 8))
    fused.train()
    again = teacher(pixels(1, 8))
    layered = teacher(pixels(1, 8), ["2", "1"])
    assert asked == ["fused", "fused", "network"] and torch.equal(answers.logits, again.logits)
    assert torch.equal(layered.features["1"], copy.deepcopy(network)[:2](pixels(1, 8)))
    assert not any(module.training for module in fused.modules())
    assert torch.allclose(answers.logits, layered.logits, atol=TOLERANCE)


def test_a_distiller_moves_both_networks():
    network = lived(kd.networks.small_convnet(2))
    teacher = Teacher(network, fused_copy(network, pixels(1, 8)).network)
    kd.Distiller(teacher, kd.networks.small_convnet(2), None, kd.Classification.of(10), device="meta")
    assert teacher(torch.empty(2, 1, 8, 8, device="meta")).logits.is_meta
