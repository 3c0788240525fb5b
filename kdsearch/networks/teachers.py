"""How a teacher comes about, and the guarantee that nothing here changes it."""

import hashlib
import inspect
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryFile, mkdtemp
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, load_file, save
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from kdsearch.core.errors import KdsearchError, describe_exception, user_call
from kdsearch.core.files import make_folder, write_bytes
from kdsearch.core.interrupts import hold_signals
from kdsearch.core.maths import derive_seed, own_generators, seed_everything
from kdsearch.core.sources import hash_source
from kdsearch.core.values import Outputs
from kdsearch.networks.factories import check_network, is_unbuilt
from kdsearch.networks.outputs import run_network
from kdsearch.networks.state import EXTRA, load_state_tensors, plain_names, state_tensors
from kdsearch.networks.wrappers import Normalised


@dataclass(frozen=True)
class Recipe:
    """A teacher that is trained on the spot: how it is built, and how it is trained.

    Its weights are kept in the run folder with a fingerprint of both: of their source, of what they call in their own
    file, and of what they are bound to.
    """

    build: Callable[[], nn.Module]
    train: Callable[[nn.Module], None]

    def fingerprint(self) -> str:
        """As it was when first asked for: training may change what the functions are bound to."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return hash_source(self.build, self.train)

    def _first_fingerprint(self) -> str | None:
        """As kdsearch made it at first, from the text of both functions alone; weights kept by it are still read."""
        try:
            text = inspect.getsource(self.build) + inspect.getsource(self.train)
        except (OSError, TypeError):
            return None
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def load(self, path: Path) -> nn.Module:
        """Read the weights kept at `path`; train and keep them, from a fixed seed, where there are none.

        One process trains at a time, others wait and read what it kept. Weights that cannot be kept all the same are
        put into a second place, or stay in this process; a warning says so.

        Raises:
            KdsearchError: weights of another recipe; a network that cannot be kept or a folder that cannot be written,
                before anything is trained; `build` or `train` fails.
        """
        if path.is_file():
            return self._read(path)
        try:
            with FileLock(make_folder(path.parent) / f"{path.stem}.lock") as lock:
                try:
                    return self._read(path) if path.is_file() else self._trained(path)
                finally:
                    Path(lock.lock_file).unlink(missing_ok=True)  # who waits for it finds the weights
        except OSError as error:
            raise KdsearchError(f"cannot keep the teacher as {path}: {describe_exception(error)}") from None

    def _trained(self, path: Path) -> nn.Module:
        with own_generators():
            network = self._build()
            shapes = self._check_kept(network, path)
            recipe = self.fingerprint()
            with user_call(f"teacher: {_named(self.train)}"):
                self.train(network)
        tensors = state_tensors(network)
        reason = "train() has left other weights than build() makes, which it could not read"
        for asked in [path, None] if shapes is None or shapes == _shapes(tensors) else [None]:
            try:
                place = asked or Path(mkdtemp(prefix="kdsearch-")) / path.name  # under a name that nobody guesses
                with hold_signals():
                    write_bytes(place, save(tensors, {"recipe": recipe}))
            except (KdsearchError, OSError, RuntimeError, ValueError) as error:
                reason = str(error)
                continue
            if asked is None:
                warnings.warn(f"the trained teacher is kept as {place}, not as {path}: {reason}", stacklevel=4)
            return network
        warnings.warn(f"the trained teacher is not kept, and the next search trains it again: {reason}", stacklevel=4)
        return network

    def _build(self) -> nn.Module:
        """A new network, from a fixed seed, which goes on in its training."""
        seed_everything(derive_seed("teacher"))
        with user_call(f"teacher: {_named(self.build)}"):
            network = self.build()
        if not isinstance(network, nn.Module):
            raise KdsearchError(f"teacher: {_named(self.build)} gave {type(network).__name__}; allowed: a network")
        return network

    def _check_kept(self, network: nn.Module, path: Path) -> dict[str, torch.Size] | None:
        """Will the folder take what training leaves, and a network take it back? The shapes, where they are known."""
        with TemporaryFile(dir=path.parent):
            pass
        if any(is_lazy(tensor) for tensor in (*network.parameters(), *network.buffers())):
            return None  # they get their shapes with the first images
        tensors = state_tensors(network)
        if lost := [name for name in plain_names(network).values() if name not in tensors]:
            raise KdsearchError(
                f"teacher: {lost[0]} of what {_named(self.build)} makes cannot be kept; allowed: extra state of "
                "tensors, or of what JSON has"
            )
        content = save(tensors)
        if len(content) > (free := shutil.disk_usage(path.parent).free):
            size, room = (f"{count / 2**20:.1f} MiB" for count in (len(content), free))
            raise KdsearchError(f"cannot keep the teacher as {path}: it takes {size}, and {room} are free")
        try:
            load_state_tensors(network, load(content))
        except Exception as error:  # of a user's set_extra_state as well
            raise KdsearchError(
                f"teacher: what {_named(self.build)} makes does not take back its own weights: "
                f"{describe_exception(error)}; "
                "allowed: a network that reads with load_state_dict what its state_dict gives"
            ) from error
        return _shapes(tensors)

    def _read(self, path: Path) -> nn.Module:
        with own_generators():
            network = self._build()
        try:
            with safe_open(path, framework="pt") as file:
                recipe = (file.metadata() or {}).get("recipe")
            if recipe is None or recipe not in (self.fingerprint(), self._first_fingerprint()):
                raise KdsearchError(
                    f"{path} was trained by another recipe than the study's, or kept by a kdsearch that told recipes "
                    "apart in another way; take another folder, or delete the file"
                )
            load_state_tensors(network, load_file(path))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise KdsearchError(f"{path}: not this teacher's weights: {str(error).splitlines()[0]}") from None
        return network


def _named(function: Callable[..., Any]) -> str:
    """A user's function as it is called in a message."""
    function = getattr(function, "func", function)  # of a partial
    return f"{getattr(function, '__name__', type(function).__name__)}()"


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items() if not name.endswith(EXTRA)}


class Teacher:
    """A live teacher: always in evaluation mode, its parameters without gradient.

    The network is the user's own and is not copied; `network.training` and `requires_grad` are set here, once.

    Args:
        fused: What answers in its place where no layer is asked for, as `fused_copy` gives it.
    """

    def __init__(self, network: nn.Module, fused: nn.Module | None = None) -> None:
        self.network = check_network(network, "teacher")
        self._fused = network if fused is None else check_network(fused, "the teacher's fused copy")
        network.eval()
        if is_unbuilt(network):
            raise KdsearchError("teacher: it has lazy layers that were never run; needed: a network with its weights")
        _hold(network)
        _hold(self._fused)

    def __call__(self, images: Tensor, layers: Sequence[str] = ()) -> Outputs:
        """Outputs on (B, C, H, W), with the features of `layers`; the gradient reaches the pixels that carry one."""
        network = self.network if layers else self._fused
        if any(module.training for module in network.modules()):
            network.eval()
        return run_network(network, images, "teacher", layers)

    @property
    def is_fused(self) -> bool:
        """Does a fused copy answer in the network's place?"""
        return self._fused is not self.network

    def to(self, device: torch.device | str) -> None:
        """Move it, in place."""
        self.network.to(device)
        self._fused.to(device)


def _hold(network: nn.Module) -> None:
    """No gradients to the parameters; `requires_grad_` of a network is refused by TorchScript."""
    for parameter in network.parameters():
        parameter.requires_grad_(False)


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """A network in evaluation mode without gradients to its parameters; as it was afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    network.eval()
    _hold(network)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def weights_hash(network: nn.Module) -> str:
    """A fingerprint of parameters and buffers, the same in any wrappers that leave the answers as they are."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in state_tensors(network).items():
        digest.update(name.encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    for wrapper in network.modules():
        if isinstance(wrapper, Normalised):
            digest.update(repr((wrapper.mean.tolist(), wrapper.std.tolist())).encode())
    return digest.hexdigest()
