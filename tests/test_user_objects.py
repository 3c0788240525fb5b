"""Whatever a user hands over, networks, weights, data sets, study files: it works, or one sentence says why not."""

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import kdsearch as kd
from kdsearch.models import inner, load_state_tensors, state_tensors
from kdsearch.teachers import weights_hash

Wrap = Callable[[nn.Module], nn.Module]
WRAPPERS: dict[str, Wrap] = {
    "data parallel": nn.DataParallel,
    "compiled": lambda network: torch.compile(network, backend="eager"),
    "averaged": AveragedModel,
    "normalised": lambda network: kd.Normalised(network, [0.5], [0.25]),
}


def tiny() -> nn.Module:
    return kd.small_convnet(2, classes=3)


@pytest.mark.parametrize(
    ("outer", "within"), [pair for pair in product(WRAPPERS, WRAPPERS) if pair != ("compiled", "compiled")]
)
def test_wrappers_are_seen_through_in_any_nesting(outer: str, within: str, tmp_path: Path) -> None:
    network = tiny()
    wrapped = WRAPPERS[outer](WRAPPERS[within](network))
    own = inner(wrapped)
    assert list(own.state_dict()) == list(network.state_dict()) and type(own) is type(network)
    save_file(state_tensors(wrapped), tmp_path / "student.safetensors")
    fresh = tiny()
    fresh.load_state_dict(load_file(tmp_path / "student.safetensors"))  # the line that a search prints
    assert weights_hash(fresh) == weights_hash(network)


@pytest.mark.parametrize("wrap", [*WRAPPERS, "compiled in place"])
def test_layers_have_the_paths_of_the_network_in_the_wrappers(wrap: str) -> None:
    network, images = tiny().eval(), torch.rand(2, 1, 8, 8)
    if wrap == "compiled in place":
        network.compile(backend="eager")
    wrapped = WRAPPERS[wrap](network) if wrap in WRAPPERS else network
    with torch.no_grad():
        wrapped(images)  # a compiled network does not see hooks that come after its first call
    with torch.no_grad(), kd.tapped(wrapped, ["6"]) as seen:
        wrapped(images)
    assert seen["6"].shape == (2, 8, 2, 2)
    with pytest.raises(kd.KdsearchError, match=r"unknown layer '10'; did you mean '1'"), kd.tapped(wrapped, ["10"]):
        pass


def test_a_fingerprint_knows_the_normalisation_and_no_wrapper() -> None:
    network = tiny()
    assert weights_hash(nn.DataParallel(network)) == weights_hash(network)
    assert weights_hash(kd.Normalised(network, [0.5], [0.5])) != weights_hash(kd.Normalised(network, [0.4], [0.5]))


def test_a_normalised_network_takes_the_names_of_the_network_in_it() -> None:
    network, twice = tiny(), kd.Normalised(kd.Normalised(tiny(), [0.5], [0.5]), [0.5], [0.5])
    twice.load_state_dict(state_tensors(network))
    assert weights_hash(twice.network.network) == weights_hash(network)
    once = kd.Normalised(tiny(), [0.5], [0.5])
    once.load_state_dict({f"network.{name}": value for name, value in network.state_dict().items()})
    assert weights_hash(once.network) == weights_hash(network)


class Stateful(nn.Module):
    """A network with extra state."""

    def __init__(self, state: Any) -> None:
        super().__init__()
        self.net, self.state = tiny(), state

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def get_extra_state(self) -> Any:
        return self.state

    def set_extra_state(self, state: Any) -> None:
        self.state = state


class Odd:
    """What no file can keep."""

    def __reduce__(self) -> str:
        raise TypeError("not this")


@pytest.mark.parametrize("state", [{"format": 3}, {"sizes": (3, 4)}, {"mean": torch.ones(2)}, "ü", torch.ones(2, 3)])
def test_extra_state_is_kept_and_put_back(state: Any, tmp_path: Path) -> None:
    save_file(state_tensors(Stateful(state)), tmp_path / "w.safetensors")
    fresh = Stateful(None)
    load_state_tensors(fresh, load_file(tmp_path / "w.safetensors"))
    assert type(fresh.state) is type(state) and str(fresh.state) == str(state)


def test_extra_state_that_no_file_can_keep_stays_the_networks_own(tmp_path: Path) -> None:
    save_file(state_tensors(Stateful(Odd())), tmp_path / "w.safetensors")
    fresh = Stateful(7)
    load_state_tensors(fresh, load_file(tmp_path / "w.safetensors"))
    assert fresh.state == 7


def test_weights_of_any_layout_and_tied_ones_are_kept(tmp_path: Path) -> None:
    network = kd.small_convnet(2, classes=3, channels=3).to(memory_format=torch.channels_last)
    network.add_module("tied", nn.Linear(8, 3))
    network[-1].weight = network[-2].weight
    save_file(state_tensors(network), tmp_path / "w.safetensors")
    fresh = kd.small_convnet(2, classes=3, channels=3)
    fresh.add_module("tied", nn.Linear(8, 3))
    fresh.load_state_dict(load_file(tmp_path / "w.safetensors"))
    assert weights_hash(fresh) == weights_hash(network)
