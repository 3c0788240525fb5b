"""One network on one data set, a study before it is searched, and the test split of a run."""

import random
from collections import namedtuple

import numpy as np
import pytest
import torch
from torch import nn

import kdsearch as kd

# One network on one data set


def state(network: nn.Module) -> list[object]:
    """Mode, gradient flags and numbers of a network."""
    tensors = [*network.parameters(), *network.buffers()]
    return [module.training for module in network.modules()] + [(v.requires_grad, v.tolist()) for v in tensors]


def drawn() -> tuple[float, float, float]:
    """The next number of each global generator."""
    return random.random(), float(np.random.rand()), torch.rand(()).item()  # noqa: NPY002


class Draws(nn.Module):
    """Draws while it answers, as a network with stochastic depth in evaluation mode does."""

    def forward(self, images):
        torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002
        return images.flatten(1)[:, :10]


def test_a_network_is_measured_with_nothing_but_data(tiny_study) -> None:
    network, data = tiny_study.teacher, tiny_study.search_validation
    found = kd.evaluate(network, data)
    right = (kd.networks.Teacher(network)(data.images).logits.argmax(1) == data.labels).double()
    assert found.value == pytest.approx(right.mean().item()) and 0.5 < found.value < 1
    assert found.value_se == pytest.approx((found.value * (1 - found.value) / 100) ** 0.5)
    assert repr(found) == f"{100 * found.value:.1f} ± {100 * found.value_se:.1f} % of 100 images"
    assert found == kd.evaluate(network, list(data), kd.Classification.of(10), 7, "cpu")


def test_what_is_measured_and_its_caller_stay_as_they_were() -> None:
    network = nn.Sequential(nn.Dropout(), nn.BatchNorm2d(1), Draws(), nn.Linear(10, 3)).train()
    network[3].weight.requires_grad_(False)
    network[1].eval()
    data, before = kd.data.ArrayData(torch.rand(20, 1, 4, 4), torch.arange(20) % 3), state(network)
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(3)
    wanted = drawn()
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(3)
    with torch.inference_mode():
        kd.evaluate(network, data)
    assert drawn() == wanted and state(network) == before


@pytest.mark.parametrize("form", ["tuple", "dict", "named"])
def test_whatever_has_logits_is_measured_normalised_or_not(form: str, tiny_study) -> None:
    class Wrapped(nn.Module):
        def forward(self, images):
            logits = tiny_study.teacher(images)
            return {
                "tuple": (logits, images),
                "dict": {"logits": logits, "maps": images},
                "named": namedtuple("Answer", "maps logits")(images, logits),
            }[form]

    wrapped = kd.networks.Normalised(Wrapped(), [0.0], [1.0])
    wanted = kd.evaluate(tiny_study.teacher, tiny_study.search_validation)
    assert kd.evaluate(wrapped, tiny_study.search_validation) == wanted


def test_a_forward_has_at_most_the_images_it_is_given() -> None:
    sizes = []

    class Counted(nn.Module):
        def forward(self, images):
            sizes.append(len(images))
            return torch.eye(2)[:1].expand(len(images), 2)

    data = kd.data.ArrayData(torch.zeros(10, 1, 2, 2), torch.zeros(10, dtype=torch.int64))
    assert kd.evaluate(Counted(), data, kd.Classification.of(2), batch=4) == (1, 0, 10)
    assert sizes == [4, 4, 2]


def data(labels: list[object]) -> kd.data.ArrayData:
    return kd.data.ArrayData(torch.rand(len(labels), 1, 4, 4), torch.tensor(labels))


MISTAKES = {
    "network is the class Linear": (nn.Linear, data([0, 1]), {}),
    "lazy layers": (nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), data([0, 1]), {}),
    "items 0 to 2: labels from 0 to 20; allowed: 0 to 15 (16 classes)": (nn.Flatten(), data([0, 1, 20]), {}),
    "logits of shape (1, 4, 4) for an image are no classifier's": (nn.Identity(), data([0, 1]), {}),
    "16 logits; the task has 3 classes": (nn.Flatten(), data([0, 1]), {"task": kd.Classification.of(3)}),
    "the data set is empty": (nn.Flatten(), data([]), {}),
    "batch is 0; allowed: whole numbers, 1 or more": (nn.Flatten(), data([0]), {"batch": 0}),
    "a DataLoader is no map-style data set": (nn.Flatten(), torch.utils.data.DataLoader([]), {}),
}


@pytest.mark.parametrize("said", MISTAKES)
def test_what_cannot_be_measured_is_one_sentence(said: str) -> None:
    network, images, more = MISTAKES[said]
    with pytest.raises(kd.KdsearchError) as caught:
        kd.evaluate(network, images, **more)
    assert said in str(caught.value) and "\n" not in str(caught.value)
