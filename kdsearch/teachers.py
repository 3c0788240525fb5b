"""How a teacher comes about, and the guarantee that nothing here changes it."""

import hashlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kdsearch.errors import KdsearchError
from kdsearch.maths import derive_seed
from kdsearch.models import Normalised, outputs, state_tensors
from kdsearch.values import Outputs


@dataclass(frozen=True)
class Recipe:
    """A teacher that is trained on the spot: how it is built, and how it is trained.

    Its weights are kept in the run folder with a fingerprint of both functions' source.
    """

    build: Callable[[], nn.Module]
    train: Callable[[nn.Module], None]

    def fingerprint(self) -> str:
        text = inspect.getsource(self.build) + inspect.getsource(self.train)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def load(self, path: Path) -> nn.Module:
        """Read the weights kept at `path`; train and keep them, from a fixed seed, where there are none."""
        torch.manual_seed(derive_seed("teacher"))
        network = self.build()
        if path.is_file():
            self._read(network, path)
            return network
        self.train(network)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        save_file(network.state_dict(), partial, metadata={"recipe": self.fingerprint()})
        partial.replace(path)
        return network

    def _read(self, network: nn.Module, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                recipe = (file.metadata() or {}).get("recipe")
            if recipe != self.fingerprint():
                raise KdsearchError(
                    f"{path} was trained by another recipe than the study's; take another folder, or delete the file"
                )
            network.load_state_dict(load_file(path))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise KdsearchError(f"{path}: not this teacher's weights: {str(error).splitlines()[0]}") from None


class Teacher:
    """A live teacher: always in evaluation mode, its parameters without gradient.

    The network is the user's own and is not copied; `network.training` and `requires_grad` are set here, once.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network.eval().requires_grad_(False)

    def __call__(self, images: Tensor, layers: Sequence[str] = ()) -> Outputs:
        """Outputs on (B, C, H, W), with the features of `layers`; the gradient reaches the pixels that carry one."""
        if any(module.training for module in self.network.modules()):
            self.network.eval()
        return outputs(self.network, images, "teacher", layers)


@contextmanager
def still(network: nn.Module) -> Iterator[None]:
    """A network in evaluation mode without gradients to its parameters; as it was afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    network.eval().requires_grad_(False)
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
