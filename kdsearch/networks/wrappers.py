"""Wrappers around a network that leave what it answers, or only normalise its images."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel


class Normalised(nn.Module):
    """A network that wants images with mean and deviation removed, fed with images in [0, 1], or with uint8 ones.

    >>> seen = Normalised(nn.Identity(), [0.5], [0.5])
    >>> seen(torch.tensor([[[[255, 0]]]], dtype=torch.uint8)).tolist(), seen(torch.tensor([[[[1.0, 0.0]]]])).tolist()
    ([[[[1.0, -1.0]]]], [[[[1.0, -1.0]]]])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Any:
        values = images / 255 if images.dtype == torch.uint8 else images
        return self.network(cast_images(self.network, (values - self.mean) / self.std))

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


def cast_images(network: nn.Module, images: Tensor) -> Tensor:
    """Images in the floating type of a network's weights."""
    kind = next((weight.dtype for weight in network.parameters() if weight.is_floating_point()), images.dtype)
    return images.to(kind)
