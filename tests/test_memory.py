"""What a step needs is what a hand count says, and what a longer run then uses."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import kdsearch as kd
from kdsearch.core import memory
from kdsearch.core.memory import Fit, available_bytes, largest_batch, peak_bytes

KILO = 4000  # bytes of 1,000 float32 numbers

HELD = torch.ones(1000)
SPARSE = torch.eye(3).to_sparse()
LEARNED = torch.ones(1000, requires_grad=True)

COUNTED = {
    "nothing": (lambda: None, 0),
    "what was there": (lambda: HELD.view(10, 100)[3:].T, 0),
    "in place": (lambda: HELD.mul_(1).add_(0), 0),
    "one result": (lambda: HELD + 1, KILO),
    "a freed intermediate": (lambda: (HELD + 1).exp().log().abs(), 2 * KILO),
    "kept intermediates": (lambda: [HELD + 1, HELD + 2, HELD + 3], 3 * KILO),
    "views of a new one": (lambda: (HELD + 1).view(10, 100).T[2:].unbind(), KILO),
    "in place of a new one": (lambda: (HELD + 1).mul_(2).relu_(), KILO),
    "several results": (lambda: HELD.view(2, 500).max(0), 500 * 4 + 500 * 8),
    "on no device": (lambda: torch.ones(1000, device="meta") + 1, 0),
    "sparse, without a storage": (lambda: SPARSE * 2, 0),
    "a list": (lambda: torch._foreach_add([HELD, HELD], 1), 2 * KILO),
    "without gradient": (lambda: torch.no_grad()(lambda: LEARNED.exp().exp().exp().exp())(), 2 * KILO),
    "kept for backward": (lambda: LEARNED.exp().exp().exp().exp(), 4 * KILO),
    # its two exponentials and one gradient, the sum, the gradient of the sum
    "backward": (lambda: torch.autograd.grad(LEARNED.exp().exp().sum(), LEARNED), 3 * KILO + 8),
}


@pytest.mark.parametrize("step", COUNTED)
def test_the_peak_is_the_one_counted_by_hand(step):
    assert peak_bytes(COUNTED[step][0]) == COUNTED[step][1]


def test_a_measured_step_gives_what_it_gives_otherwise():
    network = kd.networks.small_convnet(2)
    images = torch.rand(3, 1, 16, 16)
    expected = copy.deepcopy(network)(images)
    seen = []
    peak_bytes(lambda: seen.append(network(images)))
    assert torch.equal(seen[0], expected) and seen[0].requires_grad


def trained(network, make, size=16):
    """A training step of any number of images."""
    optimizer = make(network.parameters())

    def step(batch):
        optimizer.zero_grad()
        cross_entropy(network(torch.rand(batch, 1, size, size)), torch.zeros(batch, dtype=torch.long)).backward()
        optimizer.step()

    return step


OPTIMIZERS = {
    "adamw": torch.optim.AdamW,
    "fused": lambda parameters: torch.optim.AdamW(parameters, fused=True),
    "foreach": lambda parameters: torch.optim.AdamW(parameters, foreach=True),
    "sgd": lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.9),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("batch", [2, 9, 64])
def test_a_large_batch_is_foreseen_from_small_ones(make, batch):
    network = kd.networks.small_convnet(8)
    step = trained(copy.deepcopy(network), make)
    measured = peak_bytes(lambda: [step(batch), step(batch)])  # with the state that the first step makes
    assert largest_batch(trained(network, make), batch, 10**9) == Fit(pytest.approx(measured, rel=0.01), batch)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_the_peak_may_move_from_the_optimiser_to_the_activations(make):
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 800), nn.ReLU(), nn.Linear(800, 10))  # 59 thousand weights
    step = trained(copy.deepcopy(network), make, size=8)
    measured = peak_bytes(lambda: [step(500), step(500)])
    assert largest_batch(trained(network, make, size=8), 500, 10**9).needed == pytest.approx(measured, rel=0.02)


def test_distances_between_images_grow_with_the_square():
    step = lambda batch: torch.cdist(*[torch.zeros(batch, 2)] * 2).exp()  # noqa: E731
    assert largest_batch(step, 300, 10**9).needed == pytest.approx(peak_bytes(lambda: step(300)), rel=0.01)


@pytest.mark.parametrize("batch", [2, 3, 13, 14])
def test_no_more_images_are_run_than_asked_for(batch):
    run = []
    largest_batch(run.append, batch, 0)
    assert max(run) <= batch and min(run) >= 2


def test_the_largest_batch_fits_and_one_more_does_not():
    network = kd.networks.small_convnet(8)
    step = trained(network, torch.optim.AdamW)
    measured = {n: peak_bytes(lambda n=n: [trained(network, torch.optim.AdamW)(n)]) for n in (30, 31)}
    state = 2 * 4 * sum(p.numel() for p in network.parameters())
    fit = largest_batch(step, 64, (measured[30] + measured[31]) // 2 + state)
    assert fit.largest == 30 and fit.needed > 1.9 * measured[30]
    assert largest_batch(step, 64, 1000).largest == 0


def test_memory_is_known_of_the_cpu_and_not_of_mps():
    here = available_bytes("cpu")
    assert 2**20 < here < 2**50
    assert available_bytes("mps") is None


def test_a_control_group_leaves_what_its_limit_and_its_cache_say(tmp_path, monkeypatch):
    own = tmp_path / "own"
    own.write_text("1:name=x:/y\n0::/job/step\n")
    for group, most, used, cache in (("job", "max", 900, 0), ("job/step", "1000", 700, 200), ("", "2000", 1900, 50)):
        (tmp_path / group).mkdir(exist_ok=True)
        for name, text in (("max", most), ("current", used), ("stat", f"anon 5\ninactive_file {cache}")):
            (tmp_path / group / f"memory.{name}").write_text(f"{text}\n")
    assert memory._left_by_groups(tmp_path, own) == [500, 150]
    assert memory._left_by_groups(tmp_path, tmp_path / "none") == [150]
    monkeypatch.setattr(memory, "CGROUPS", tmp_path)
    assert available_bytes("cpu") == 150
