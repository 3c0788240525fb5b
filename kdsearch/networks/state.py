"""The state of a network as plain tensors, whatever wraps it, with the extra state of its modules."""

import io
import json
import re
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from kdsearch.core.errors import user_call
from kdsearch.networks.wrappers import unwrap

EXTRA = "_extra_state"  # the end of the name of what `get_extra_state` of a module gives
_JSON, _SAVED = b"kdsearch json\n", b"kdsearch torch.save\n"  # before extra state that is kept as bytes


def state_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by the names of the network inside its wrappers, as safetensors keeps them.

    Copies on the host, each contiguous and with memory of its own, tied or not. Extra state of modules that is no
    tensor becomes bytes, of JSON or of `torch.save`; one that neither reads back is left out. `load_state_tensors` puts
    all of it back; a network without extra state takes it by its `load_state_dict`.
    """
    with user_call(f"{type(unwrap(network)).__name__}.state_dict()"):
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
