"""Running a network, laid out for its device: whatever it returns becomes `Outputs`; features by module path."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kdsearch.core.errors import KdsearchError, unknown_name, user_call
from kdsearch.core.values import Outputs
from kdsearch.networks.wrappers import cast_images, unwrap

RETURNED = "a tensor, a tuple whose first element is the logits, or a dict or an object with `logits` (or `out`)"


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
    given = cast_images(network, images)
    version = None if given.is_inference() else given._version
    call = f"{who}, called with images {tuple(images.shape)} {given.dtype}"
    with tapped(network, layers, who) as features, user_call(call):
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
    """While inside, keep what modules return: a dict from module path to the tensor (B, ...) of its last call.

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
            raise KdsearchError(f"{who}: {unknown_name('layer', path, known)}")
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
    try:
        with run_eagerly(network) if layers else nullcontext():
            yield seen
    finally:
        for hook in hooks:
            hook.remove()
    for path in layers:
        if path not in seen:
            raise KdsearchError(f"{who}: layer '{path}' was not run on these images, so that it has no output")


def run_eagerly(network: nn.Module) -> AbstractContextManager[object]:
    """While inside, what is compiled of a network runs as it is written: compiled, it would run no new hooks."""
    compiled = any(type(m).__name__ == "OptimizedModule" or m._compiled_call_impl for m in network.modules())
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()
