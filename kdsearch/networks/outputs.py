"""Adapters to networks: whatever they return becomes `Outputs`; features by module path; ensembles; the digits pair."""

import io
import json
import math
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from kdsearch.core.errors import KdsearchError, calling, unknown
from kdsearch.core.values import Outputs

RETURNED = "a tensor, a tuple whose first element is the logits, or a dict or an object with `logits` (or `out`)"


class Normalised(nn.Module):
    """A network that wants images with mean and deviation removed, fed with images in [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Any:
        return self.network(_in_dtype_of(self.network, (images - self.mean) / self.std))

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Takes the weights of the network in it by that network's own names too."""
        if not any(name.startswith(f"{prefix}network.") for name in state):
            for name in [name for name in state if name.startswith(prefix)]:
                state[f"{prefix}network.{name.removeprefix(prefix)}"] = state.pop(name)
        super()._load_from_state_dict(state, prefix, *rest)


def unwrap(network: nn.Module) -> nn.Module:
    """The network inside wrappers that leave what it answers, or only normalise its images, in any nesting.

    >>> network = nn.Flatten()
    >>> unwrap(Normalised(nn.DataParallel(network), [0.5], [0.5])) is network
    True
    """
    while True:
        if isinstance(network, Normalised):
            network = network.network
        elif isinstance(network, DataParallel | DistributedDataParallel | AveragedModel):
            network = network.module
        elif type(network).__name__ == "OptimizedModule":  # of torch.compile, whose module is slow to import
            network = network._orig_mod  # type: ignore[assignment]
        else:
            return network


EXTRA = "_extra_state"  # the end of the name of what `get_extra_state` of a module gives
_JSON, _SAVED = b"kdsearch json\n", b"kdsearch torch.save\n"  # before extra state that is kept as bytes


def state_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by the names of the network inside its wrappers, as safetensors keeps them.

    Copies on the host, each contiguous and with memory of its own, tied or not. Extra state of modules that is no
    tensor becomes bytes, of JSON or of `torch.save`; one that neither reads back is left out. `load_state_tensors` puts
    all of it back; a network without extra state takes it by its `load_state_dict`.
    """
    with calling(f"{type(unwrap(network)).__name__}.state_dict()"):
        state = unwrap(network).state_dict()
    names = plain_names(network)
    kept = {names[name]: value if isinstance(value, Tensor) else _as_bytes(value) for name, value in state.items()}
    return {
        name: value.detach().cpu().resolve_conj().clone(memory_format=torch.contiguous_format)
        for name, value in kept.items()
        if value is not None
    }


def load_state_tensors(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `state_tensors` gave.

    Raises:
        RuntimeError: as `load_state_dict` does, of other names or shapes.
    """
    own, names = unwrap(network).state_dict(), {plain: name for name, plain in plain_names(network).items()}
    state = OrderedDict((names.get(name, name), value) for name, value in tensors.items())
    for name, value in own.items():
        if name.endswith(EXTRA):
            state[name] = extra_from_bytes(state[name]) if name in state else value
    if set(state) == set(own):
        state._metadata = own._metadata  # type: ignore[attr-defined]  # the modules' present versions
    unwrap(network).load_state_dict(state)


def plain_names(network: nn.Module) -> dict[str, str]:
    """From the names in the state of the network inside wrappers to those without wrappers around its own modules."""
    own = unwrap(network)
    wrapped = [path for path, module in own.named_modules(remove_duplicate=False) if unwrap(module) is not module]

    def plain(name: str) -> str:
        for path in reversed(wrapped):  # the innermost first
            if match := re.match(rf"{re.escape(path)}\.(module|_orig_mod|network)\.", name):
                name = f"{path}.{name[match.end() :]}"
        return name

    return {name: plain(name) for name in own.state_dict()}


def _as_bytes(value: Any) -> Tensor | None:
    """Extra state as uint8, if it can be read back."""
    with suppress(TypeError, ValueError, RecursionError):
        text = json.dumps(value, sort_keys=True)
        if json.loads(text) == value:
            return torch.frombuffer(bytearray(_JSON + text.encode()), dtype=torch.uint8)
    file = io.BytesIO()
    with suppress(Exception):  # whatever keeps an object of the user's from being pickled, or from being read
        torch.save(value, file)
        torch.load(io.BytesIO(file.getvalue()), weights_only=True)
        return torch.frombuffer(bytearray(_SAVED + file.getvalue()), dtype=torch.uint8)
    return None


def extra_from_bytes(value: Any) -> Any:
    """Extra state as it was given, from its bytes; a tensor of a module's own stays one."""
    if not isinstance(value, Tensor) or value.dtype != torch.uint8 or value.ndim != 1:
        return value
    kept = value.cpu().numpy().tobytes()
    if kept.startswith(_JSON):
        return json.loads(kept.removeprefix(_JSON))
    if kept.startswith(_SAVED):
        return torch.load(io.BytesIO(kept.removeprefix(_SAVED)), weights_only=True)
    return value


class Ensemble(nn.Module):
    """Several networks as one: its logits are the log of the weighted mean of their probabilities.

    Its softmax is that mean, so that losses and temperatures take it as any other network's. The mean is taken in log
    space, and logits of half precision in float32.

    Args:
        networks: They return anything that `run_network` reads, all for the same classes.
        weights: One positive number each, equal unless given; what counts is their ratio.

    Raises:
        KdsearchError: no networks; weights that are not positive, or not as many; when run, different logits.

    >>> one, other = nn.Flatten(), nn.Sequential(nn.Flatten(), nn.ReLU())  # the images as they are; zeros
    >>> images = torch.tensor([0.2, 0.8]).log().view(1, 1, 1, 2)
    >>> [round(p, 3) for p in Ensemble([one, other], [3, 1])(images).softmax(1)[0].tolist()]
    [0.275, 0.725]
    """

    log_weights: Tensor

    def __init__(self, networks: Sequence[nn.Module], weights: Sequence[float] | None = None) -> None:
        super().__init__()
        shares = [1.0] * len(networks) if weights is None else [float(weight) for weight in weights]
        if not len(networks):
            raise KdsearchError("ensemble: no networks; needed: at least one")
        if len(shares) != len(networks):
            raise KdsearchError(f"ensemble: {len(shares)} weights for {len(networks)} networks; needed: one each")
        if not all(0 < share < math.inf for share in shares):
            raise KdsearchError(f"ensemble: weights {', '.join(f'{s:g}' for s in shares)}; allowed: positive numbers")
        self.networks = nn.ModuleList(networks)
        log_weights = torch.tensor([math.log(share) - math.log(math.fsum(shares)) for share in shares])
        self.register_buffer("log_weights", log_weights, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        members = [
            run_network(one, images, f"ensemble's network {i}").to_float32().logits
            for i, one in enumerate(self.networks)
        ]
        shapes = list(dict.fromkeys(tuple(logits.shape) for logits in members))
        if len(shapes) > 1:
            found = " and ".join(str(shape) for shape in shapes)
            raise KdsearchError(f"ensemble: logits of shapes {found}; needed: the same classes from all networks")
        terms = [x.log_softmax(1) + share for x, share in zip(members, self.log_weights.unbind(), strict=True)]
        return torch.stack(terms).logsumexp(0)


def arrange_network(
    network: nn.Module, device: torch.device | str, *, channels: int, compiled: bool = False
) -> nn.Module:
    """A network on a device, laid out as it runs fastest there; what it answers changes by rounding alone.

    For images with several channels its weights are laid out channels last, on the CPU too (results/distill.md).

    Args:
        channels: Of the images.
        compiled: Run it through `torch.compile`, in place.
    """
    network.to(device)
    if channels > 1:
        for weight in network.parameters():
            if weight.ndim == 4:
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    if compiled:
        # modes, batches, layouts and gradients of both networks are variants of one code object
        torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
        network.compile()
    return network


def small_convnet(width: int, *, classes: int = 10, channels: int = 1) -> nn.Sequential:
    """Three 3x3 convolutions with BatchNorm, the first two of stride 2, global average, linear: the digits pair."""

    def block(into: int, out: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(into, out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]

    return nn.Sequential(
        *block(channels, width, 2),
        *block(width, 2 * width, 2),
        *block(2 * width, 4 * width, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, classes),
    )


def run_network(network: nn.Module, images: Tensor, who: str, layers: Sequence[str] = ()) -> Outputs:
    """Run a network on images (B, C, H, W) and read what it returns.

    A network may return its logits, a tuple or list that starts with them, or a dict or an object that has them as
    `logits` (in a dict also as `out`, as torchvision's segmentation networks have). What else it returns under a name
    is in `extras`, if it is a tensor with a row per image.

    Args:
        who: "teacher", "student": the subject of an error.
        layers: Module paths whose outputs are wanted as `features`.

    Raises:
        KdsearchError: anything else returned; logits that are not floating, (B, K, *space); of a layer see `tapped`.
    """
    given = _in_dtype_of(network, images)
    version = None if given.is_inference() else given._version
    call = f"{who}, called with images {tuple(images.shape)} {given.dtype}"
    with tapped(network, layers, who) as features, calling(call):
        result = network(given)
    if version is not None and given._version != version:
        cure = "allowed: `images = images.clone()` first, or what changes them without `inplace`"
        raise KdsearchError(f"{who}: its forward changes the images it is given; {cure}")
    named = _named(result)
    key = next((key for key in ("logits", "out") if key in named), None)
    if key is None:
        raise KdsearchError(f"{who}: returned {_described(result, named)}; allowed: {RETURNED}")
    logits = named.pop(key)
    if not isinstance(logits, Tensor):
        raise KdsearchError(f"{who}: its logits are {type(logits).__name__}, not a tensor; allowed: {RETURNED}")
    if not logits.is_floating_point():
        raise KdsearchError(f"{who}: returned {logits.dtype}; logits are floating, before any argmax")
    if logits.ndim < 2 or len(logits) != len(images):
        shape = f"({len(images)}, classes) or ({len(images)}, classes, *space)"
        raise KdsearchError(f"{who}: returned {tuple(logits.shape)} for {len(images)} images; logits are {shape}")
    extras = {k: v for k, v in named.items() if isinstance(v, Tensor) and v.ndim and len(v) == len(images)}
    return Outputs(logits, features, extras).to_float32()


def _in_dtype_of(network: nn.Module, images: Tensor) -> Tensor:
    """Images in the floating type of a network's weights."""
    kind = next((weight.dtype for weight in network.parameters() if weight.is_floating_point()), images.dtype)
    return images.to(kind)


def _named(result: Any) -> dict[str, Any]:
    """The parts of a network's result under their names; the logits are `logits` or `out`, or missing."""
    if isinstance(result, Tensor):
        return {"logits": result}
    if isinstance(result, Mapping):
        return {str(name): value for name, value in result.items()}
    if isinstance(result, tuple | list):
        parts = dict(zip(getattr(result, "_fields", ()), result, strict=False))  # named, in a named tuple
        if "logits" not in parts and result:
            first = next(iter(parts), None)
            parts = {"logits": result[0], **{name: value for name, value in parts.items() if name != first}}
        return parts
    if not hasattr(result, "logits"):
        return {}
    names = [part.name for part in fields(result)] if is_dataclass(result) else list(getattr(result, "__dict__", ()))
    return {"logits": result.logits, **{name: getattr(result, name) for name in names if not name.startswith("_")}}


def _described(result: Any, named: Mapping[str, Any]) -> str:
    kind = type(result).__name__
    if isinstance(result, Mapping):
        return f"{kind} with {', '.join(list(named)[:8]) or 'nothing in it'}"
    return f"an empty {kind}" if isinstance(result, tuple | list) else kind


@contextmanager
def tapped(network: nn.Module, layers: Sequence[str], who: str = "network") -> Iterator[dict[str, Tensor]]:
    """While inside, keep what modules return: a dict from module path to the tensor of the module's last call.

    The tensors are copies, which a ReLU in place cannot change, and carry the gradient. Paths are those of
    `named_modules()` of the network inside its wrappers (`unwrap`). Nothing stays on the modules.

    Raises:
        KdsearchError: no such module; a module that returns no tensor; at the end, a module that was not run.
    """
    if isinstance(layers, str):
        raise KdsearchError(f"{who}: layers is the string '{layers}'; allowed: a list of module paths, ['{layers}']")
    known = {path: module for path, module in unwrap(network).named_modules(remove_duplicate=False) if path}
    for path in layers:
        if path not in known:
            raise KdsearchError(f"{who}: {unknown('layer', path, known)}")
        if isinstance(known[path], torch.jit.ScriptModule):
            raise KdsearchError(f"{who}: layer '{path}' is TorchScript, which runs whole; allowed: the network itself")
    seen: dict[str, Tensor] = {}

    def keep(path: str, result: Any) -> None:
        if not isinstance(result, Tensor):
            raise KdsearchError(f"{who}: layer '{path}' returns {type(result).__name__}; allowed: a tensor")
        seen[path] = result.clone()

    hooks = [
        known[path].register_forward_hook(lambda module, given, result, path=path: keep(path, result))
        for path in dict.fromkeys(layers)
    ]
    compiled = any(type(m).__name__ == "OptimizedModule" or m._compiled_call_impl for m in network.modules())
    eager = torch.compiler.set_stance("force_eager") if layers and compiled else nullcontext()  # it runs no new hooks
    try:
        with eager:
            yield seen
    finally:
        for hook in hooks:
            hook.remove()
    for path in layers:
        if path not in seen:
            raise KdsearchError(f"{who}: layer '{path}' was not run on these images, so that it has no output")
