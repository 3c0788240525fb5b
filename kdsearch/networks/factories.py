"""What a user's factories make, networks and optimizers, and which of it a search can work with."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from kdsearch.core.errors import KdsearchError, user_call
from kdsearch.networks.outputs import run_network

FEW = 8  # images, whose mean and deviation are too noisy for BatchNorm
FRESH = "allowed: a factory, which makes a new network each time, such as `lambda: Net()`"


def check_network(network: Any, who: str) -> nn.Module:
    """The same network, if it is one.

    Args:
        who: "teacher", "student": the subject of an error.

    Raises:
        KdsearchError: a class, a function or anything else.
    """
    if not isinstance(network, nn.Module):
        what = f"the class {network.__name__}" if isinstance(network, type) else f"a {type(network).__name__}"
        raise KdsearchError(f"{who} is {what}; allowed: a network, an instance of torch.nn.Module")
    return network


def check_weights(network: nn.Module, who: str) -> None:
    """Has a network its weights?

    Raises:
        KdsearchError: some are on the meta device.
    """
    if any(value.is_meta for value in (*network.parameters(), *network.buffers())):
        raise KdsearchError(f"{who}: its weights are on the meta device, which holds no numbers; allowed: cpu, cuda")


def fresh_network(factory: Callable[[], nn.Module], who: str = "student") -> nn.Module:
    """What a factory makes, if it is a network that can be trained; one with lazy layers is yet to be run.

    Raises:
        KdsearchError: no factory, or one that fails; no network; a network with no weights to train, or in float16.
    """
    if isinstance(factory, nn.Module):
        raise KdsearchError(f"{who} is a network, a {type(factory).__name__}; {FRESH}")
    if not callable(factory):
        raise KdsearchError(f"{who} is a {type(factory).__name__}; {FRESH}")
    with user_call(f"{who}()", FRESH):
        network = factory()
    if not isinstance(network, nn.Module):
        what = f"the class {network.__name__}" if isinstance(network, type) else type(network).__name__
        raise KdsearchError(f"{who}() gives {what}; {FRESH}")
    check_weights(network, f"{who}()")
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not trained:
        raise KdsearchError(f"{who}(): none of its weights has requires_grad; needed: something to train")
    if any(parameter.dtype == torch.float16 for parameter in trained):
        cure = "float32 weights, with Study(precision='bfloat16') where they are too slow"
        raise KdsearchError(f"{who}(): weights in float16 do not survive training; allowed: {cure}")
    return network


def check_fresh(one: nn.Module, other: nn.Module, who: str = "student") -> None:
    """Are two networks that a factory made two?

    Raises:
        KdsearchError: they are one, or share weights.
    """
    if one is other:
        raise KdsearchError(f"{who} gives the same network twice; {FRESH}")
    kept = {id(parameter) for parameter in one.parameters()}
    if shared := [name for name, parameter in other.named_parameters() if id(parameter) in kept]:
        raise KdsearchError(f"{who} gives networks that share the weights {shared[0]}; {FRESH}")


def batch_norm_warning(network: nn.Module, images: int) -> list[str]:
    """A warning, where the statistics of a network's BatchNorm would be those of very few images.

    Args:
        images: In one forward of a training step.
    """
    if images >= FEW or not any(isinstance(module, _BatchNorm) for module in network.modules()):
        return []
    return [
        f"BatchNorm of the student sees {images} images at a time (budget.batch, budget.parts); better: {FEW} or more"
    ]


def is_unbuilt(network: nn.Module) -> bool:
    """Has it lazy layers that have seen no images yet?"""
    return any(is_lazy(value) for value in (*network.parameters(), *network.buffers()))


def build_lazy(network: nn.Module, images: Tensor, who: str = "student") -> None:
    """Run a network with lazy layers on a few images (B, C, H, W), so that it has all its weights; buffers stay."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    with torch.no_grad():
        run_network(network, images, who)
    for module, mode in modes:
        module.training = mode


def fresh_optimizer(factory: Callable[[Iterable[nn.Parameter]], Optimizer], network: nn.Module) -> Optimizer:
    """An optimizer of a network's weights.

    Raises:
        KdsearchError: a factory that fails; what it makes is no optimizer, has no learning rate, trains other weights,
            or wants a closure.
    """
    cure = "allowed: a factory from parameters to an optimizer, such as `partial(torch.optim.SGD, lr=0.1)`"
    if not callable(factory):
        raise KdsearchError(f"optimizer is a {type(factory).__name__}; {cure}")
    with user_call("optimizer(parameters)", cure):
        optimizer = factory(network.parameters())
    if not isinstance(optimizer, Optimizer):
        raise KdsearchError(f"optimizer(parameters) gives {type(optimizer).__name__}; {cure}")
    kind = type(optimizer).__name__
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure and closure.default is inspect.Parameter.empty:
        raise KdsearchError(f"optimizer: {kind}.step() needs a closure, which a step here has not; {cure}")
    if not all("lr" in group for group in optimizer.param_groups):
        raise KdsearchError(f"optimizer: {kind} has no learning rate `lr` to warm up and let fall; {cure}")
    own = {id(parameter) for parameter in network.parameters()}
    if not any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"]):
        raise KdsearchError(f"optimizer: {kind} has none of the parameters that the factory was given; {cure}")
    return optimizer
