"""What fixes a function of a user's: its source, and that of whatever it calls in its own file."""

import dis
import hashlib
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from enum import Enum
from functools import partial
from itertools import islice
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
from torch import Tensor, nn

PLAIN = (bool, int, float, complex, str, bytes, type(None))
MOST = 1000  # parts of a container, and thousands of numbers of an array, that are looked at
DEEP = 30  # of things in one another
_HOLDERS = (dict, list, tuple, set, frozenset)
_CODE = (FunctionType, MethodType, BuiltinFunctionType, partial, type)
_OF_ANY_MODULE = frozenset(vars(nn.Module()))  # its weights, layers and hooks, and whether it trains
_PACKAGES = {"builtins", "collections", "functools", "kdsearch", "numpy", "torch", "torchvision"}


def hash_source(*things: Any, settings: bool = False) -> str:
    """A hash of functions, classes, methods, partials, objects or values, the same in every process.

    Followed are the functions, classes and plain values of the same file that their code names, and what they are bound
    to: arguments of a partial, attributes of an object, variables of an outer function. Where there is no source, as of
    what was typed, the compiled code counts. What is kdsearch's own counts by its name, wherever it lives there.

    Args:
        settings: Of an `nn.Module` what it holds beside tensors counts too; otherwise its layers and the names of its
            weights alone.
    """
    digest = hashlib.blake2b(digest_size=16)
    seen: dict[int, Any] = {}
    for thing in things:
        for text in _described(thing, seen, 0, settings):
            digest.update(text.encode(errors="surrogatepass") + b"\0")
    return digest.hexdigest()


def _described(thing: Any, seen: dict[int, Any], depth: int, settings: bool) -> Iterator[str]:
    """Texts without addresses.

    Args:
        seen: Functions, classes and objects by identity, which keeps each alive; they are described once.
    """
    kind = f"{_package(type(thing))}.{type(thing).__qualname__}"
    if isinstance(thing, PLAIN):
        yield f"{kind} {thing!r}"
        return
    yield f"{kind} {getattr(thing, '__qualname__', '')}"
    if id(thing) in seen or depth > DEEP:
        return
    parts: Iterable[Any] = ()
    if isinstance(thing, Mapping):
        pairs = sorted(islice(thing.items(), MOST), key=lambda pair: str(pair[0]))
        parts = [len(thing), *(part for pair in pairs for part in pair)]
    elif isinstance(thing, list | tuple):
        parts = [len(thing), *thing[:MOST]]
    elif isinstance(thing, set | frozenset):
        parts = sorted(repr(part) for part in thing if isinstance(part, PLAIN))
    elif isinstance(thing, Tensor | np.ndarray):
        parts = [str(tuple(thing.shape)), str(thing.dtype), *_numbers(thing)]
    else:
        seen[id(thing)] = thing
        parts = _parts(thing)
        if settings and isinstance(thing, nn.Module):
            parts = [*parts, *map(_settings, thing.modules())]
    for part in parts:
        yield from _described(part, seen, depth + 1, settings)


def _module(thing: Any) -> str:
    """Where a function or class is written; `functools.wraps` makes a function say the place of another."""
    return str(thing.__globals__.get("__name__") if isinstance(thing, FunctionType) else thing.__module__)


def _top(thing: Any) -> str:
    """The package that a function or class is of."""
    return _module(thing).partition(".")[0]


def _package(thing: Any) -> str:
    """The module of a function or class; where inside kdsearch one lives is no part of what it is."""
    return "kdsearch" if _top(thing) == "kdsearch" else _module(thing)


def _parts(thing: Any) -> Iterable[Any]:
    """What a function, class or object is made of."""
    if isinstance(thing, partial):
        return [thing.func, thing.args, thing.keywords]
    if isinstance(thing, MethodType):
        return [thing.__func__, thing.__self__]
    if isinstance(thing, FunctionType) and _package(thing) == "kdsearch":  # by its name, as its classes are
        return [thing.__defaults__, thing.__kwdefaults__, *_cells(thing)]
    if isinstance(thing, FunctionType):
        used = _used(thing.__code__, thing.__globals__)
        return [_source(thing, thing.__code__), thing.__defaults__, thing.__kwdefaults__, *_cells(thing), *used]
    if isinstance(thing, type):
        if _top(thing) in _PACKAGES:
            return []
        own = (getattr(value, "__func__", getattr(value, "fget", value)) for value in vars(thing).values())
        return [_source(thing), *thing.__bases__, *(value for value in own if isinstance(value, FunctionType))]
    if isinstance(thing, BuiltinFunctionType):
        return [str(thing.__module__)]
    if isinstance(thing, nn.Module):  # its numbers are drawn anew in each process, as a rule
        return [*map(type, thing.modules()), *(name for name, _ in thing.named_parameters())]
    return [type(thing), dict(getattr(thing, "__dict__", {}))]


def _settings(module: nn.Module) -> dict[str, Any]:
    """What a module itself holds beside tensors, by name: values, code, data classes; of other objects the class alone.

    What a call may leave is passed over: None, tensors, and containers that are empty or hold tensors.
    """
    found: dict[str, Any] = {}
    for name, value in vars(module).items():
        within = list(value.values() if isinstance(value, Mapping) else value) if isinstance(value, _HOLDERS) else [0]
        left = value is None or not within or any(isinstance(part, Tensor) for part in [value, *within])
        if name not in _OF_ANY_MODULE and not left:
            plain = isinstance(value, (*PLAIN, *_HOLDERS, *_CODE, np.ndarray, Enum, nn.Module)) or is_dataclass(value)
            kind = type(value)  # of Python's own by name: their modules hold clocks and counters
            named = _top(kind) in sys.stdlib_module_names
            found[name] = value if plain else kind.__qualname__ if named else kind
    return found


def _numbers(array: Any) -> list[str]:
    """A hash of the first numbers of a tensor or an array."""
    flat = (array.detach().flatten() if isinstance(array, Tensor) else array.reshape(-1))[: 1000 * MOST]
    return [hashlib.blake2b(repr(flat.tolist()).encode()).hexdigest()]


def _source(thing: Any, code: CodeType | None = None) -> str:
    """The text of a function or class; of a function without one, what its compiled code does."""
    try:
        return inspect.getsource(thing)
    except (OSError, TypeError, SyntaxError):
        return _compiled(code) if code else thing.__qualname__


def _compiled(code: CodeType) -> str:
    """The steps of compiled code, and its constants."""
    steps = [(step.opname, None if isinstance(step.argval, CodeType | frozenset) else repr(step.argval))
             for step in dis.get_instructions(code)]  # fmt: skip
    inner = [_compiled(part) for part in code.co_consts if isinstance(part, CodeType)]
    sets = [sorted(map(repr, part)) for part in code.co_consts if isinstance(part, frozenset)]
    return repr((steps, inner, sets))


def _cells(function: FunctionType) -> Iterator[Any]:
    """The variables of outer functions that a function uses."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not assigned yet
            yield None


def _used(code: CodeType, names: Mapping[str, Any]) -> Iterator[Any]:
    """Functions, classes and plain values of the same file that code names, also code inside it."""
    found = {step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    for name in sorted(found & names.keys()):
        value = names[name]
        here = isinstance(value, partial) or getattr(value, "__module__", None) == names.get("__name__")
        if isinstance(value, PLAIN) or (here and isinstance(value, FunctionType | type | partial)):
            yield value
    for part in code.co_consts:
        if isinstance(part, CodeType):
            yield from _used(part, names)
