"""Weights in files, and networks by torchvision's names."""

import pickle
from collections import OrderedDict
from collections.abc import Mapping
from copy import deepcopy
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn

from kdsearch.errors import KdsearchError, problems, unknown
from kdsearch.models import Normalised

SUFFIXES = (".safetensors", ".npz", ".pt", ".pth", ".th")
HOLDERS = ("state_dict", "model_state_dict", "model")  # names under which a file holds its weights
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel, of torch.compile
SHOWN = 5  # names of each kind of mismatch


def load_weights(network: nn.Module, path: Path | str) -> nn.Module:
    """Put the weights of a file into a network, all of them, and return it; of a `Normalised` one the network in it.

    Read are .safetensors, .npz without Python objects, and .pt, .pth or .th as `torch.load(weights_only=True)` reads
    them: parameters and buffers by name, or a dict that has them as state_dict, model_state_dict or model. A `module.`
    before all names, which DataParallel leaves, is taken away.

    Raises:
        KdsearchError: a file that cannot be read; weights that are not this network's, which then is as it was.
    """
    path = Path(path).expanduser()
    state = _state(path, _read(path))
    inner = target = network
    while isinstance(inner, Normalised):
        inner = inner.network
    for prefix in PREFIXES:
        if all(n.startswith(prefix) for n in state) and not all(n.startswith(prefix) for n in inner.state_dict()):
            state = OrderedDict((name.removeprefix(prefix), value) for name, value in state.items())
    while isinstance(target, Normalised) and not set(state) & set(target.state_dict()):
        target = target.network  # the file is of the network inside, as most are
    own = target.state_dict()
    if not hasattr(state, "_metadata") and set(state) == set(own):
        state._metadata = own._metadata  # type: ignore[attr-defined]  # the modules' present versions
    kept = deepcopy(own)
    try:
        target.load_state_dict(state)
    except (RuntimeError, AssertionError) as error:
        target.load_state_dict(kept)
        found = _differences(own, state) or [str(error)]
        raise problems(f"{path}: not the weights of this {type(target).__name__}", found) from None
    return network


def _read(path: Path) -> Any:
    """Whatever a file holds."""
    if not path.is_file():
        raise KdsearchError(f"{path}: no such file")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise KdsearchError(f"{path}: weights in a {suffix or 'file without suffix'}; allowed: {' '.join(SUFFIXES)}")
    try:
        if suffix == ".safetensors":
            return load_file(path)
        if suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return {name: torch.from_numpy(archive[name]) for name in archive.files}
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        cure = "save its weights alone, torch.save(network.state_dict(), path)"
        raise KdsearchError(f"{path}: holds Python objects or is torn, which is not read; {cure}") from None
    except Exception as error:  # whatever a reader makes of a torn file
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise KdsearchError(f"{path}: cannot be read as weights: {reason}") from None


def _state(path: Path, held: Any) -> "OrderedDict[str, Tensor]":
    """The weights by name; with the versions of the modules that wrote them, where the file tells."""
    while isinstance(held, Mapping):
        name = next((name for name in HOLDERS if isinstance(held.get(name), Mapping)), None)
        if name is None:
            break
        held = held[name]
    if not isinstance(held, Mapping):
        raise KdsearchError(f"{path}: holds {type(held).__name__}; allowed: weights by name")
    if not held or not all(isinstance(value, Tensor) for value in held.values()):
        there = ", ".join(str(name) for name in list(held)[:8]) or "nothing"
        raise KdsearchError(f"{path}: holds {there}; allowed: weights by name, or these under {', '.join(HOLDERS)}")
    state = OrderedDict((str(name), value) for name, value in held.items())
    if hasattr(held, "_metadata"):
        state._metadata = held._metadata  # type: ignore[attr-defined]
    return state


def _differences(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """What keeps a file's weights out of a network, a handful of names each."""
    missing = [name for name in own if name not in state]
    extra = [name for name in state if name not in own]
    shapes = [
        f"{name} {tuple(state[name].shape)} in place of {tuple(own[name].shape)}"
        for name in own
        if name in state and getattr(own[name], "shape", None) != state[name].shape
    ]

    def near(name: str) -> str:
        found = get_close_matches(name, missing, n=1)
        return f"{name} (did you mean {found[0]}?)" if found else name

    kinds = {
        "missing": missing,
        "unexpected": [near(name) for name in extra[:SHOWN]] + extra[SHOWN:],
        "another shape": shapes,
    }
    return [
        f"{kind}: {', '.join(names[:SHOWN])}{f' and {len(names) - SHOWN} more' if len(names) > SHOWN else ''}"
        for kind, names in kinds.items()
        if names
    ]


def torchvision_model(name: str, *, classes: int, weights: Path | str | None = None) -> nn.Module:
    """One of torchvision's networks for classification or segmentation, by its name there.

    With torchvision's own weights it comes `Normalised` as they want it, to be fed with images in [0, 1]. They also
    want a size of images, which torchvision says in their `transforms()`.

    Args:
        name: "resnet18", as in `torchvision.models.list_models()`.
        weights: None for none, a file for `load_weights`, or the name of weights of torchvision, such as "DEFAULT",
            which are downloaded.

    Raises:
        KdsearchError: no such network or weights; weights for another number of classes.
    """
    models = torchvision.models
    dense = models.list_models(module=models.segmentation)
    known = models.list_models(module=models) + dense
    if name not in known:
        raise KdsearchError(unknown("torchvision network", name, known))
    more: dict[str, Any] = {"weights_backbone": None} if name in dense else {}
    if name in ("googlenet", "inception_v3"):
        more["init_weights"] = True  # as they do with a warning where nothing is said
    if weights is None or isinstance(weights, Path) or Path(weights).suffix.lower() in SUFFIXES:
        network = models.get_model(name, weights=None, num_classes=classes, **more)
        return network if weights is None else load_weights(network, weights)
    offered = models.get_model_weights(name)
    if weights not in offered.__members__:
        hint = unknown("weights", weights, offered.__members__)
        raise KdsearchError(f"{name}: {hint}; a file ends in {' '.join(SUFFIXES)}")
    chosen = offered[weights]
    there = len(chosen.meta["categories"])
    if classes != there:
        cure = "train a head for yours and give the file of its weights, or take None to train from the start"
        raise KdsearchError(f"{name}: weights {weights} are for {there} classes, not {classes}; {cure}")
    preset = chosen.transforms()
    more.pop("init_weights", None)
    return Normalised(models.get_model(name, weights=chosen, **more), preset.mean, preset.std)
