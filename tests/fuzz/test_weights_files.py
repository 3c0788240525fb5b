"""Weights and checkpoints in files: refused with the network as it was, or a network that runs; no code either way."""

import os
import warnings
import zipfile
from collections.abc import Callable, Mapping
from functools import cache
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from law import holds
from shares import inputs
from strategies import (
    Array,
    BytesEdit,
    Cut,
    Flip,
    Insert,
    Member,
    Npz,
    Zero,
    arrays,
    bomb,
    bytes_edits,
    edited_archive,
    edited_bytes,
    header,
    members,
    npz,
    tabled,
)

import kdsearch as kd
from kdsearch.distill.checkpoint import Checkpoint

torch.manual_seed(0)
NETWORK = kd.networks.small_convnet(2, classes=3)
STATE = {name: value.clone() for name, value in NETWORK.state_dict().items()}
NAMES = list(STATE)


class _Runs:
    """An object whose unpickling runs a command."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def _huge() -> torch.Tensor:
    return torch.zeros(1).expand(10**6, 10**6)


ODD: Mapping[str, Callable[[], Any]] = {  # in the place of a tensor
    "none": lambda: None,
    "text": lambda: "x",
    "number": lambda: 3,
    "list": lambda: [1.0],
    "dict": dict,
    "command": lambda: _Runs(os.system, "touch canary"),
    "code": lambda: _Runs(exec, "open('canary', 'w')"),
    "file": lambda: _Runs(open, "canary", "w"),
    "module": lambda: torch.nn.Linear(2, 2),
    "array": lambda: np.zeros(3),
    "empty": lambda: torch.zeros(0),
    "scalar": lambda: torch.tensor(1.0),
    "whole": lambda: torch.zeros(2, dtype=torch.int64),
    "complex": lambda: torch.zeros(2, dtype=torch.complex64),
    "bool": lambda: torch.zeros(2, dtype=torch.bool),
    "half": lambda: torch.zeros(2, dtype=torch.float16),
    "float8": lambda: torch.zeros(2).to(torch.float8_e4m3fn),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "meta": lambda: torch.zeros(2, device="meta"),
    "expanded": _huge,
    "parameter": lambda: torch.nn.Parameter(torch.zeros(2)),
    "NaN": lambda: torch.full((2,), torch.nan),
}
HELD: Mapping[str, Callable[[Any], Any]] = {  # how a file holds the weights
    "bare": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model": lambda state: {"model": {"state_dict": state}},
    "list": lambda state: [state],
    "module.": lambda state: {f"module.{name}": value for name, value in state.items()},
    "_orig_mod.module.": lambda state: {f"_orig_mod.module.{name}": value for name, value in state.items()},
    "numbers": lambda state: dict(enumerate(state.values())),
    "deep": lambda state: _deep(state, 400),
    "itself": lambda state: _itself(),
    "nothing": lambda state: {},
    "none": lambda state: None,
    "text": lambda state: "x",
    "tensor": lambda state: torch.zeros(3),
    "command": lambda state: {"state_dict": state, "x": _Runs(os.system, "touch canary")},
}


def _deep(state: Any, levels: int) -> Any:
    for _ in range(levels):
        state = {"model": state}
    return state


def _itself() -> dict[str, Any]:
    found: dict[str, Any] = {}
    found["model"] = found
    return found


class Entry(NamedTuple):
    """What is wrong with one tensor: another object, or as `like` says."""

    which: int
    odd: str


def _like(state: dict[str, Any], name: str, how: str) -> None:
    value = state[name]
    match how:
        case "dropped":
            del state[name]
        case "renamed":
            state[name + "x"] = state.pop(name)
        case "odd name":
            state["a.b\n\x1b[31m{x}\ud7ff"] = state.pop(name)
        case "doubled":
            state[name] = value.double()
        case "transposed":
            state[name] = value.T if value.ndim == 2 else value[None]
        case "strided":
            state[name] = value[..., None].expand(*value.shape, 2)[..., 0]
        case "not finite":
            state[name] = value / 0


LIKE = ("dropped", "renamed", "odd name", "doubled", "transposed", "strided", "not finite")
FORMATS = (".safetensors", ".npz", ".pt", ".pth", ".th", ".pt old", ".ts", "")
SAFE: Mapping[str, bytes] = {  # headers of .safetensors, in the place of its own
    "long": (2**62).to_bytes(8, "little"),
    "torn": (100).to_bytes(8, "little") + b'{"a"',
    "deep": (80000).to_bytes(8, "little") + b"[" * 80000,
    "outside": (64).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,400000000]}}  ',
    "huge": (80).to_bytes(8, "little")
    + b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4]}}'.ljust(80),
    "list": (2).to_bytes(8, "little") + b"[]",
    "empty": (2).to_bytes(8, "little") + b"{}",
}


class File(NamedTuple):
    """A file of weights: its format, how it holds them, what is wrong with tensors, pickle, archive, bytes."""

    kind: str = ".pt"
    held: str = "bare"
    entries: tuple[Entry, ...] = ()
    pickle: tuple[BytesEdit, ...] = ()  # of data.pkl
    members: tuple[Member, ...] = ()
    edits: tuple[BytesEdit, ...] = ()


def content(file: File) -> bytes:
    state: dict[str, Any] = dict(STATE)
    for which, odd in file.entries:
        if odd in ODD:
            state[NAMES[which]] = ODD[odd]()
        elif isinstance(there := state.get(NAMES[which]), torch.Tensor) and there.numel() < 10**6:
            _like(state, NAMES[which], odd)
    made = BytesIO()
    if file.kind == ".safetensors":
        if file.held in SAFE:
            return edited_bytes(SAFE[file.held] + bytes(64), file.edits)
        kept = {n: v for n, v in state.items() if isinstance(v, torch.Tensor) and v.layout == torch.strided}
        plain = {n: v.detach().contiguous() for n, v in kept.items() if v.device.type == "cpu" and v.numel() < 10**6}
        whole = HELD["module." if file.held.startswith("_") else "bare"](plain)
        return edited_bytes(safetensors.torch.save(whole), file.edits)
    if file.kind == ".npz":
        named = {n: v for n, v in state.items() if isinstance(v, torch.Tensor) and v.dtype == torch.float32}
        files = {
            f"{n}.npy": _npy(v.detach().numpy())
            for n, v in named.items()
            if v.device.type == "cpu" and v.layout == torch.strided and v.numel() < 10**6
        }
        return edited_bytes(edited_archive(files, file.members, method=zipfile.ZIP_DEFLATED), file.edits)
    if file.kind == ".ts":
        return edited_bytes(_scripted(), file.edits)
    torch.save(HELD[file.held](state), made, _use_new_zipfile_serialization=file.kind != ".pt old")
    if file.kind == ".pt old" or not (file.pickle or file.members):
        return edited_bytes(made.getvalue(), (*file.pickle, *file.edits))
    with zipfile.ZipFile(made) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    own = {name: edited_bytes(c, file.pickle) if name.endswith("data.pkl") else c for name, c in files.items()}
    return edited_bytes(edited_archive(own, file.members, method=zipfile.ZIP_STORED), file.edits)


@cache
def _scripted() -> bytes:
    made = BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", ".*is deprecated", DeprecationWarning)
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), made)
    return made.getvalue()


def _npy(array: np.ndarray) -> bytes:
    made = BytesIO()
    np.save(made, array)
    return made.getvalue()


weights_files = st.builds(
    File,
    st.sampled_from(FORMATS),
    st.just("bare") | tabled(HELD) | tabled(SAFE).filter(lambda name: name not in HELD),
    st.lists(st.builds(Entry, st.integers(0, len(NAMES) - 1), tabled(ODD) | st.sampled_from(LIKE)), max_size=2).map(
        tuple
    ),
    st.just(()) | bytes_edits,
    st.lists(members, max_size=1).map(tuple),
    st.just(()) | bytes_edits,
).map(lambda file: file._replace(held=file.held if file.held in HELD or file.kind == ".safetensors" else "bare"))


def _check(network: torch.nn.Module, refused: str | None) -> None:
    """As it was where the file was refused; otherwise a network of the same parts that runs."""
    state = network.state_dict()
    assert {n: v.shape for n, v in state.items()} == {n: v.shape for n, v in STATE.items()}
    if refused:
        assert all(torch.equal(value, STATE[name]) for name, value in state.items()), refused
    else:
        assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 3)


def _fresh() -> torch.nn.Module:
    made = kd.networks.small_convnet(2, classes=3)
    made.load_state_dict(STATE)
    return made.eval()


@pytest.fixture(scope="module", autouse=True)
def warm(world):
    for kind in FORMATS[:-2]:
        kd.networks.load_weights(_fresh(), world.put(f"weights{kind.split()[0]}", content(File(kind))))


@inputs("weights")
@given(file=weights_files | st.sampled_from(["bomb", "claim"]) | st.tuples(st.sampled_from(NAMES), arrays))
@example("bomb")
@example("claim")
@example(File())
@example(File(".pt old", held="command"))
@example(File(".pt", entries=(Entry(0, "code"),)))
@example(File(".pt", entries=(Entry(0, "expanded"),)))
@example(File(".pt", held="deep"))
@example(File(".pt", held="deep", entries=(Entry(1, "float8"),)))
@example(File(".npz", held="bare", entries=(Entry(0, "parameter"),)))
@example(File(".pt", held="deep", entries=(Entry(1, "meta"),)))
@example(File(".safetensors", entries=(Entry(3, "expanded"), Entry(3, "doubled"))))
@example(File(".pt", held="itself"))
@example(File(".pt", pickle=(Flip(200, 3),)))
@example(File(".npz", members=(Member(0, "called ../x.npy"),), edits=(Zero(30000, 4),)))
@example(File(".safetensors", edits=(Cut(30000), Insert(0, b"\0"))))
def test_any_weights_file(world, file):
    network = _fresh()
    if isinstance(file, File):
        path = world.put(f"weights{file.kind.split()[0] if file.kind else ''}", content(file))
    elif file == "bomb":
        path = world.put("weights.npz", bomb("images.npy", header("3 GB"), 3 * 10**9))
    elif file == "claim":
        path = world.put("weights.npz", npz(Npz((("images", Array("3 GB", "()", "none")),))))
    else:
        path = world.put("weights.npz", npz(Npz((file,))))
    with holds(world, "weights") as outcome:
        kd.networks.load_weights(network, path)
    _check(network, outcome.refused)
    if file == File():
        assert outcome.refused is None


def _checkpoint() -> dict[str, Any]:
    return {"run": "x", "state": {"student": dict(STATE), "epoch": 1}, "records": [], "schedule": [], "seconds": 1.0}


CHECKPOINT: Mapping[str, Callable[[dict[str, Any]], Any]] = {
    "as it is": lambda kept: kept,
    "of another run": lambda kept: {**kept, "run": "y"},
    "run is a list": lambda kept: {**kept, "run": ["x"]},
    "run is a tensor": lambda kept: {**kept, "run": torch.zeros(2)},
    "no run": lambda kept: {name: value for name, value in kept.items() if name != "run"},
    "records of another kind": lambda kept: {**kept, "records": [{"x": 1}]},
    "records are a number": lambda kept: {**kept, "records": 3},
    "a moment of another kind": lambda kept: {**kept, "schedule": [{"progress": 2.0, "settings": {}}]},
    "state is a command": lambda kept: {**kept, "state": _Runs(os.system, "touch canary")},
    "a list": lambda kept: [kept],
}


@inputs("checkpoints")
@given(which=tabled(CHECKPOINT), edits=st.just(()) | bytes_edits, pickle=st.just(()) | bytes_edits)
@example("as it is", (), ())
@example("state is a command", (), ())
def test_any_checkpoint(world, which, edits, pickle):
    made = BytesIO()
    torch.save(CHECKPOINT[which](_checkpoint()), made)
    if pickle:
        with zipfile.ZipFile(made) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
        own = {name: edited_bytes(c, pickle) if name.endswith("data.pkl") else c for name, c in files.items()}
        made = BytesIO(edited_archive(own, (), method=zipfile.ZIP_STORED))
    path = world.put("checkpoint.pt", edited_bytes(made.getvalue(), edits))
    with holds(world, "checkpoints", world.given), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*cannot be read as a checkpoint.*")
        kept = Checkpoint.load(path, "x")
    if not edits and not pickle and which in ("as it is", "of another run"):
        assert (kept is not None) == (which == "as it is")
