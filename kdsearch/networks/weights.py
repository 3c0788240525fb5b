"""Weights in files, and networks by torchvision's names."""

import pickle
import re
from collections import Counter, OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from copy import deepcopy
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from kdsearch.core.archives import check_zip, load_npz
from kdsearch.core.errors import KdsearchError, describe_exception, problems, unknown_name, user_call
from kdsearch.core.files import as_path, check_file
from kdsearch.networks.state import EXTRA, extra_from_bytes, plain_names
from kdsearch.networks.wrappers import Normalised, unwrap

SUFFIXES = (".safetensors", ".npz", ".pt", ".pth", ".th", ".ckpt", ".bin", ".tar")
WEIGHTS = "weights"  # what a file should be, in messages
HOLDERS = ("state_dict", "model_state_dict", "model", "net", "network", "ema")  # where a file may hold its weights
OPTIONAL = ("num_batches_tracked", EXTRA)  # ends of names that a file need not have
AVERAGED = frozenset(("ema", "swa", "averaged"))  # in the names of what is left aside where the weights are there too
SHOWN = 5  # names of each kind of mismatch


def load_weights(network: nn.Module, path: Path | str, *, prefix: str | None = None) -> nn.Module:
    """Put the weights of a file into a network, all of them, and return it; of a wrapped one the network in it.

    Read are .safetensors, .npz without Python objects, and .pt, .pth, .th, .ckpt, .bin or .tar as
    `torch.load(weights_only=True)` reads them: parameters and buffers by name, also in dicts in a dict. What stands
    before all of the network's names is taken away, such as `module.` of DataParallel or `model.` of Lightning, and
    what a file has beside them under other names is left aside.

    Args:
        prefix: Before the names of the wanted weights, where a file has several that fit.

    Raises:
        KdsearchError: a file that cannot be read; weights that are not this network's, which then is as it was; several
            that are.
    """
    path = as_path(path)
    file, versions = _flat(path, _read(path))
    target, plain = unwrap(network), plain_names(network)
    own, kind = target.state_dict(), f"{path}: not the weights of this {type(unwrap(network)).__name__}"
    if any(isinstance(value, Tensor) and value.is_meta for value in own.values()):
        raise KdsearchError(f"{path}: the network is on the meta device, which holds no numbers; allowed: cpu, cuda")
    if all(len({*map(_unwrapped, names)}) == len(names) for names in (file, plain.values())):
        file = {_unwrapped(name): value for name, value in file.items()}
        plain = {name: _unwrapped(short) for name, short in plain.items()}
    wanted = {short: own[name] for name, short in plain.items()}
    before = _prefix(path, file, wanted, prefix)
    if found := _differences(wanted, _under(before, file, wanted)):
        raise problems(kind, found)
    state = OrderedDict((name, file[before + short]) for name, short in plain.items() if before + short in file)
    for name in own:
        if name.endswith(EXTRA):
            state[name] = extra_from_bytes(state[name]) if name in state else own[name]
    if set(state) == set(own):  # otherwise torch fills in what older versions of its modules did not have
        state._metadata = versions.get(before, own._metadata)  # type: ignore[attr-defined]
    kept = OrderedDict((name, deepcopy(value) if isinstance(value, Tensor) else value) for name, value in own.items())
    try:
        with user_call(kind):
            target.load_state_dict(state)
    except KdsearchError:
        with suppress(KdsearchError), user_call(kind):
            target.load_state_dict(kept)
        raise
    return network


def _read(path: Path) -> Any:
    """Whatever a file holds."""
    check_file(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise KdsearchError(f"{path}: weights in a {suffix or 'file without suffix'}; allowed: {' '.join(SUFFIXES)}")
    try:
        if suffix == ".safetensors":
            return load_file(path)
        if suffix == ".npz":
            return {name: torch.from_numpy(array) for name, array in load_npz(path, list, WEIGHTS).items()}
        check_zip(path, WEIGHTS)
        return torch.load(path, map_location="cpu", weights_only=True)
    except KdsearchError:
        raise
    except pickle.UnpicklingError:
        cure = "save its weights alone, torch.save(network.state_dict(), path)"
        other = "of a file that you trust, torch.save(torch.load(path, weights_only=False)[KEY], another)"
        raise KdsearchError(f"{path}: holds Python objects or is torn, which is not read; {cure}, or {other}") from None
    except Exception as error:  # whatever a reader makes of a torn file
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise KdsearchError(f"{path}: cannot be read as {WEIGHTS}: {reason}") from None


def _flat(path: Path, held: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors of a file by name, those of dicts in it under the dict's name and a slash; versions of modules.

    The versions are those of the modules that wrote a dict, where it tells, by the dict's name and slash.
    """
    if not isinstance(held, Mapping):
        raise KdsearchError(f"{path}: holds {type(held).__name__}; allowed: weights by name")
    found, versions = dict[str, Any](), dict[str, Any]()
    left, seen = [("", held)], {id(held)}
    while left:
        level, part = left.pop()
        if isinstance(written := getattr(part, "_metadata", None), Mapping):
            versions[level] = written
        for name, value in part.items():
            if not isinstance(name, str):
                continue
            if isinstance(value, Tensor) or name.endswith(EXTRA):
                found[level + name] = value
            elif isinstance(value, Mapping) and id(value) not in seen:
                seen.add(id(value))
                left.append((f"{level}{name}/", value))
    if not found:
        there = ", ".join(f"{name}"[:40] for name in list(held)[:8] if isinstance(name, str)) or "nothing"
        raise KdsearchError(f"{path}: holds {there}; allowed: weights by name, or these under {', '.join(HOLDERS)}")
    return found, versions


def _unwrapped(name: str) -> str:
    """A name without what DataParallel and torch.compile put into it.

    >>> _unwrapped("model/_orig_mod.module.0.weight")
    'model/0.weight'
    """
    return re.sub(r"(^|[./])(?:(?:module|_orig_mod)\.)+", r"\1", name)


def _under(prefix: str, file: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """What stands under a prefix, not in a dict of its own; of a part of a Sequential what is beside it too."""
    level, slash, start = prefix.rpartition("/")
    if start[:1].isdigit() and any(not name.startswith(prefix) for name in file if name.startswith(level + slash)):
        prefix = level + slash
    found = {name.removeprefix(prefix): value for name, value in file.items() if name.startswith(prefix)}
    aside = {name for name in found if "/" in name or name == "n_averaged"} - set(wanted)
    return {name: value for name, value in found.items() if name not in aside}


def _prefix(path: Path, file: Mapping[str, Any], wanted: Mapping[str, Any], given: str | None) -> str:
    """What stands before all names of the wanted weights in a file; where no weights fit, of those that are nearest."""
    near = Counter(
        name[: match.end()] for name in file for match in re.finditer(r"^|[./]", name) if name[match.end() :] in wanted
    )
    if given is not None:
        there = {start.rpartition("/")[2]: start for start in near} | {start: start for start in near}
        if given not in there:
            raise KdsearchError(f"{path}: {unknown_name('prefix', given, there)}")
        return there[given]
    anchor = next((name for name in wanted if not name.endswith(OPTIONAL)), "")
    fitting = [p for p in near if p + anchor in file and not _differences(wanted, _under(p, file, wanted))]
    fitting = [p for p in fitting if not _averaged(p)] or fitting
    if not fitting:
        holders = (f"{name}/" for name in HOLDERS if any(other.startswith(f"{name}/") for other in file))
        return max(near, key=lambda p: (near[p], not _averaged(p)), default=next(holders, ""))
    first = min(fitting, key=len)
    needed = [name for name in wanted if not name.endswith(OPTIONAL)]
    if first and not all(_equal(file[p + name], file[first + name]) for p in fitting for name in needed):
        all_of_them = " and ".join(f"'{p}'" for p in fitting)
        raise KdsearchError(
            f"{path}: the weights under {all_of_them} fit this network; allowed: one of them, as "
            f"load_weights(network, path, prefix='{first}')"
        )
    return first


def _equal(one: Tensor, other: Tensor) -> bool:
    """Bit for bit: there are types that torch does not compare."""
    same = (one.dtype, one.shape) == (other.dtype, other.shape)
    return same and torch.equal(*(part.contiguous().reshape(-1).view(torch.uint8) for part in (one, other)))


def _averaged(prefix: str) -> bool:
    """Does a prefix stand before weights averaged over training, which are beside those themselves?"""
    return not AVERAGED.isdisjoint(re.split(r"[./_]", prefix))


def _differences(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """What keeps a file's weights out of a network, a handful of names each."""
    missing = [name for name in wanted if name not in found]
    if all(name.endswith(OPTIONAL) for name in missing):
        missing = []
    extra = [name for name in found if name not in wanted]
    both = {
        name: (found[name], value)
        for name, value in wanted.items()
        if name in found and not name.endswith(EXTRA) and not is_lazy(value)
    }
    shapes = [
        f"{name} {tuple(other.shape)} in place of {tuple(own.shape)}"
        for name, (other, own) in both.items()
        if other.shape != own.shape
    ]
    types = [
        f"{name} {other.dtype} in place of {own.dtype}"
        for name, (other, own) in both.items()
        if own.is_floating_point() != other.is_floating_point()
    ]
    numberless = [
        f"{name} on {other.device} as {str(other.layout).removeprefix('torch.')}"
        for name, (other, _) in both.items()
        if other.is_meta or other.layout is not torch.strided or other.is_quantized
    ]

    def near(name: str) -> str:
        found = get_close_matches(name, missing, n=1)
        return f"{name} (did you mean {found[0]}?)" if found else name

    kinds = {
        "missing": missing,
        "unexpected": [near(name) for name in extra[:SHOWN]] + extra[SHOWN:],
        "another shape": shapes,
        "another type": types,
        "no dense numbers": numberless,
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
        raise KdsearchError(unknown_name("torchvision network", name, known))
    more: dict[str, Any] = {"weights_backbone": None} if name in dense else {}
    if name in ("googlenet", "inception_v3"):
        more["init_weights"] = True  # as they do with a warning where nothing is said
    if weights is None or isinstance(weights, Path) or as_path(weights).suffix.lower() in SUFFIXES:
        network = models.get_model(name, weights=None, num_classes=classes, **more)
        return network if weights is None else load_weights(network, weights)
    offered = models.get_model_weights(name)
    if weights not in offered.__members__:
        hint = unknown_name("weights", weights, offered.__members__)
        raise KdsearchError(f"{name}: {hint}; a file ends in {' '.join(SUFFIXES)}")
    chosen = offered[weights]
    there = len(chosen.meta["categories"])
    if classes != there:
        cure = "train a head for yours and give the file of its weights, or take None to train from the start"
        raise KdsearchError(f"{name}: weights {weights} are for {there} classes, not {classes}; {cure}")
    preset = chosen.transforms()
    more.pop("init_weights", None)
    try:
        network = models.get_model(name, weights=chosen, **more)
    except (OSError, RuntimeError) as error:  # no connection, no room, a torn file
        place = Path(torch.hub.get_dir(), "checkpoints", Path(chosen.url).name)
        raise KdsearchError(
            f"{name}: weights {weights} cannot be had: {describe_exception(error)}; "
            f"allowed: put {chosen.url} there as {place}"
        ) from None
    return Normalised(network, preset.mean, preset.std)
