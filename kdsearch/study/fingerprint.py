"""What tells one data set or one student from another: numbers that depend on every pixel, names, structure, start."""

import hashlib
import json
import re
from collections.abc import Callable
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from kdsearch.augment.bases import Base
from kdsearch.augment.fixed import FixedTransform
from kdsearch.augment.policy import Policy
from kdsearch.core.maths import generator, own_generators, seed_everything
from kdsearch.core.sources import PLAIN, hash_source
from kdsearch.networks.teachers import weights_hash

DIGITS = 9  # of a policy's numbers, whose last ones change as a probability becomes a logit and comes back
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")  # of an object, in its repr: another one in each process
WORD = 8  # bytes
_OTHERS = ("builtins", "torch", "torchvision", "kdsearch")  # packages whose classes are fixed by their names
_OF_ANY_MODULE = frozenset(vars(nn.Module()))
_VALUES = (
    *PLAIN,
    list,
    tuple,
    dict,
    set,
    Tensor,
    np.ndarray,
    type,
    FunctionType,
    MethodType,
    BuiltinFunctionType,
    partial,
)


def image_keys(images: Tensor) -> Tensor:
    """A number for each image that every bit of every pixel changes: equal images, and hardly any others, share it.

    The bytes of the pixels as whole numbers of 64 bits, each times an odd number of its place, summed modulo 2^64: the
    same on any device, in any batch, on any number of threads.

    Args:
        images: (B, C, H, W), of any type.

    Returns:
        (B,) int64, on the host.

    >>> images = torch.rand(2, 1, 4, 4)
    >>> keys = image_keys(torch.cat([images, images[:1], images[:1].flip(3)]))
    >>> [bool(keys[0] == key) for key in keys]
    [True, False, True, False]
    """
    flat = images.detach().flatten(1).contiguous().view(torch.uint8)
    words = pad(flat, (0, -flat.shape[1] % WORD)).view(torch.int64)
    weights = torch.randint(-(2**62), 2**62, (words.shape[1],), generator=generator("keys")) * 2 + 1
    return (words * weights.to(words.device)).sum(1).cpu()


def digest_parts(*parts: Tensor | str) -> str:
    """A fingerprint of tensors on the host and texts, in their order."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(f"{part.dtype} {tuple(part.shape)}".encode())
            digest.update(np.ascontiguousarray(part.numpy()).tobytes())
        else:
            digest.update(part.encode(errors="backslashreplace"))
    return digest.hexdigest()


def stable_repr(thing: object) -> str:
    """The `repr` of an object without addresses, which no two processes share."""
    return ADDRESS.sub("", repr(thing))


def describe_transform(transform: FixedTransform | None) -> str:
    """What tells a fixed transform from others, the same in every process."""
    if transform is None:
        return ""
    called = [transform.transform, *([transform.reseed] if transform.reseed else [])]
    codes = [code for code in (getattr(function, "__code__", None) for function in called) if code]
    steps = [part for code in codes for part in (code.co_code, code.co_consts, code.co_names)]  # lambdas of one line
    return f"{stable_repr(called[0])} {hash_source(*called, *steps, settings=True)} {transform.takes}"


def policy_numbers(policy: Policy) -> dict[str, Any]:
    """What tells a policy from others, as plain values; frozen twice it is the same."""
    spec = policy.freeze()
    rounded = {
        name: [None if value is None else round(value, DIGITS) for value in (s.probability, s.low, s.high)]
        for name, s in spec.final.items()
    }
    return {"operations_per_image": spec.operations_per_image, "fill": spec.fill, "operations": rounded}


def describe_base(base: Base | None) -> str:
    """What tells a base view from others, in one line.

    >>> describe_base(None)
    'none'
    """
    if base is None:
        return "none"
    if isinstance(base, FixedTransform):
        return f"transform {digest_parts(describe_transform(base))}"
    return f"policy {digest_parts(json.dumps(policy_numbers(base)))[:12]} of {', '.join(base.operations)}"


def student_digest(make: Callable[[], nn.Module]) -> str:
    """A fingerprint of what a factory makes: layers, the source of own methods, what modules hold, start weights.

    What differs between two students made under one seed, such as the start of their weights, does not count.
    """
    starts = []
    with own_generators():
        for _ in range(2):
            seed_everything(0)
            starts.append(make())
    weights, again = (network_digest(start) for start in starts)
    held, once_more = (hash_source(_held(start)) for start in starts)
    parts = [weights] if weights == again else _structure(starts[0])
    return digest_parts(*parts, *([held] if held == once_more else []))


def network_digest(network: nn.Module) -> str:
    """A fingerprint of a network: its structure, parameters and all buffers, those of its wrappers too."""
    buffers = [value.detach().cpu() for _, value in network.named_buffers()]
    return digest_parts(*_structure(network), weights_hash(network), *buffers)


def _structure(network: nn.Module) -> list[str]:
    """Layers with their numbers, and the source of the methods of a user's own classes with what they call.

    What `__init__` does is seen in what it leaves.
    """
    kinds = dict.fromkeys(kind for module in network.modules() for kind in type(module).__mro__)
    own = [kind for kind in kinds if kind.__module__.partition(".")[0] not in _OTHERS]
    methods = [(name, getattr(value, "__func__", getattr(value, "fget", value)))
               for kind in own for name, value in vars(kind).items()]  # fmt: skip
    made = [method for name, method in methods if isinstance(method, FunctionType) and name != "__init__"]
    return [stable_repr(network), hash_source(*made)]


def _held(network: nn.Module) -> list[Any]:
    """What modules hold beside layers, weights and buffers: values, functions, hooks; and which weights are frozen.

    Of other objects, such as a logger, the class alone: what they hold may be another in each process.
    """
    found: list[Any] = [name for name, weight in network.named_parameters() if not weight.requires_grad]
    for path, module in network.named_modules():
        own = {name: value if isinstance(value, _VALUES) else type(value)
               for name, value in vars(module).items() if name not in _OF_ANY_MODULE}  # fmt: skip
        hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        found += [path, own, *hooks]
    return found
