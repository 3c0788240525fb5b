"""A network that is only evaluated, with each BatchNorm fused into the convolution before it, where that is safe."""

import copy
from collections import Counter, defaultdict
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdsearch.core.errors import exception_text, user_call
from kdsearch.core.maths import full_precision, generator, own_generators, seed_generators, usual_modes
from kdsearch.core.values import Outputs
from kdsearch.networks.outputs import run_eagerly, run_network
from kdsearch.networks.teachers import evaluation_mode

TOLERANCE = 1e-4  # of answers; in units of the largest, where that is over 1
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class Fusing(NamedTuple):
    """A fused copy of a network, if it has one."""

    network: nn.Module | None  # in evaluation mode, its parameters held; None: the network is left alone
    said: str  # what was fused, or why nothing was, in one sentence


def fused_copy(network: nn.Module, images: Tensor) -> Fusing:
    """A copy of a network that answers the same with less work: a BatchNorm becomes part of the convolution before it.

    Nothing is traced. A pair is one where the BatchNorm, and nothing else, reads what the convolution gave, each is run
    once in a forward, and both are plain: torch's own classes in float32 or float64, without hooks, parametrizations or
    a forward of their own. The copy is kept if it answers as the network does, within `TOLERANCE`, on these images and
    on noise. A network whose answers change with the random state is left alone, as is whatever fails.

    Args:
        images: A few, (B, C, H, W), on the network's device.
    """
    if not any(map(_is_plain_convolution, network.modules())) or not any(map(_is_plain_norm, network.modules())):
        return _left("it has none that is plain, or no plain convolution")
    try:
        with (
            usual_modes(),
            torch.no_grad(),
            own_generators(images.device),
            evaluation_mode(network),
            run_eagerly(network),
            full_precision(),
            user_call("a copy of it"),
        ):
            return _fused(network, images)
    except Exception as error:  # of a user's network, of its copy, or out of memory
        return _left(exception_text(error).partition("\n")[0])


def _fused(network: nn.Module, images: Tensor) -> Fusing:
    fused = copy.deepcopy(network)
    fused.eval()
    if {*fused.modules()} & {*network.modules()}:
        return _left("its copy shares modules with it")
    noise = torch.rand(images.shape, generator=generator("fusing")).to(images)
    asked = ((images, 1), (images, 2), (noise, 3))
    expected = [_answer(network, *given) for given in asked]
    if not _agree(*expected[:2]):
        return _left("its answers change with the random state")
    others = _pairs(fused, noise)
    pairs = {conv: norm for conv, norm in _pairs(fused, images).items() if others.get(conv) is norm}
    if not pairs:
        return _left("it has no convolution whose output goes to one BatchNorm and nowhere else")
    for name, module in network.named_modules():
        if module._compiled_call_impl is not None:  # which a copy has not
            fused.get_submodule(name).compile()
    _replace(fused, {conv: fuse_conv_bn_eval(conv, norm, conv.transposed) for conv, norm in pairs.items()})
    _replace(fused, {norm: nn.Identity().eval() for norm in pairs.values()})
    with run_eagerly(fused):
        answers = [_answer(fused, *given) for given in asked]
    if not all(map(_agree, expected, answers)):
        return _left(f"its answers would change by more than {TOLERANCE:g}")
    count = sum(isinstance(module, _BatchNorm) for module in network.modules())
    return Fusing(fused, f"the teacher runs with {len(pairs)} of {count} BatchNorm fused into convolutions")


def _left(reason: str) -> Fusing:
    return Fusing(None, f"the teacher's BatchNorm is not fused: {reason}")


def _is_plain(module: nn.Module) -> bool:
    """Does it what its class does, and nothing else sees it?"""
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    return not any(hooks) and "forward" not in vars(module) and module._compiled_call_impl is None


def _is_plain_convolution(module: nn.Module) -> bool:
    return (
        isinstance(module, _ConvNd)
        and type(module) in CONVOLUTIONS
        and _is_plain(module)
        and type(weight := getattr(module, "weight", None)) is nn.Parameter
        and weight.dtype in (torch.float32, torch.float64)
        and (module.groups == 1 or not module.transposed)  # torch scales a transposed weight along its second axis
    )


def _is_plain_norm(module: nn.Module) -> bool:
    return type(module) in NORMS and _is_plain(module) and module.running_mean is not None


class _Readers(TorchDispatchMode):
    """While a network runs: what convolutions gave, and which BatchNorm reads it; None stands for anything else."""

    def __init__(self) -> None:
        super().__init__()
        self.given: dict[int, tuple[_ConvNd, Tensor]] = {}  # by id; held, so that no other tensor gets the same
        self.readers = defaultdict[int, set[_BatchNorm | None]](set)
        self.runs = Counter[nn.Module]()
        self.inside: _BatchNorm | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in tree_leaves((args, kwargs)):
            self.read(value, self.inside)
        return func(*args, **(kwargs or {}))

    def read(self, value: Any, reader: _BatchNorm | None) -> None:
        if id(value) in self.given:
            self.readers[id(value)].add(reader)

    def convolved(self, conv: _ConvNd, _: Any, output: Tensor) -> None:
        self.runs[conv] += 1
        self.given[id(output)] = conv, output

    def enter(self, norm: _BatchNorm, _: Any) -> None:
        self.runs[norm] += 1
        self.inside = None if norm.training else norm  # a forward may have changed its mode

    def leave(self, *_: Any) -> None:
        self.inside = None


def _pairs(network: nn.Module, images: Tensor) -> dict[_ConvNd, _BatchNorm]:
    """Each convolution whose output one BatchNorm reads, and nothing else, when the network runs on these images."""
    seen = _Readers()
    hooks = []
    for module in network.modules():
        if _is_plain_convolution(module):
            hooks.append(module.register_forward_hook(seen.convolved))
        elif _is_plain_norm(module):
            hooks += [module.register_forward_pre_hook(seen.enter), module.register_forward_hook(seen.leave)]
    with seen:
        answer = _answer(network, images, 0)
    for value in (answer.logits, *answer.extras.values()):
        seen.read(value, None)
    for hook in hooks:
        hook.remove()
    found = {}
    for place, (conv, _) in seen.given.items():
        reader, *more = seen.readers[place] or {None}
        if reader and not more and seen.runs[conv] == seen.runs[reader] == 1:
            found[conv] = reader
    return found


def _replace(network: nn.Module, new: dict[Any, nn.Module]) -> None:
    """Other modules in the place of some, wherever the network has them."""
    for parent in [*network.modules()]:
        for name, child in [*parent._modules.items()]:
            if child in new:
                parent._modules[name] = new[child]


def _answer(network: nn.Module, images: Tensor, seed: int) -> Outputs:
    seed_generators(seed)
    return run_network(network, images, "teacher")


def _agree(one: Outputs, other: Outputs) -> bool:
    """Are two answers the same up to rounding?"""
    values, others = ({"logits": answer.logits, **answer.extras} for answer in (one, other))
    return values.keys() == others.keys() and all(map(_close, values.values(), others.values()))


def _close(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or not one.is_floating_point():
        return torch.equal(one, other)
    largest = one[one.isfinite()].abs().max().item() if one.isfinite().any() else 0.0
    return torch.allclose(one, other, rtol=0.0, atol=TOLERANCE * max(1.0, largest))
