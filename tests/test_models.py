"""Networks of any kind become outputs; their layers can be tapped; their weights come from files."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

import kdsearch as kd
from kdsearch.core.errors import KdsearchError
from kdsearch.networks.outputs import run_network, tapped

IMAGES = torch.linspace(0, 1, 4 * 16 * 16).view(4, 1, 16, 16)


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


LOGITS, FEATURES = torch.arange(12.0).view(4, 3), torch.arange(8.0).view(4, 2)


class Returns(nn.Module):
    def __init__(self, result):
        super().__init__()
        self.result = result

    def forward(self, images):
        return self.result


class Named(NamedTuple):
    logits: torch.Tensor
    features: torch.Tensor


class Other(NamedTuple):
    scores: torch.Tensor
    features: torch.Tensor


@dataclass
class Data:
    features: torch.Tensor
    logits: torch.Tensor
    loss: None = None


class Thing:
    def __init__(self):
        self.logits, self.features, self._kept, self.words = LOGITS, FEATURES, FEATURES, "words"


FORMS = {
    "tensor": (LOGITS, set()),
    "tuple": ((LOGITS, FEATURES), set()),
    "list": ([LOGITS], set()),
    "dict": ({"features": FEATURES, "logits": LOGITS}, {"features"}),
    "segmentation": (OrderedDict(out=LOGITS, aux=FEATURES), {"aux"}),
    "both names": ({"out": FEATURES, "logits": LOGITS}, {"out"}),
    "named tuple": (Named(LOGITS, FEATURES), {"features"}),
    "named tuple of others": (Other(LOGITS, FEATURES), {"features"}),
    "data class": (Data(FEATURES, LOGITS), {"features"}),
    "object": (Thing(), {"features"}),
    "not per image": ({"logits": LOGITS, "loss": torch.tensor(1.0), "centres": torch.zeros(3, 2)}, set()),
}


@pytest.mark.parametrize("form", FORMS)
def test_logits_are_found_in_every_form_and_the_rest_under_its_name(form):
    result, names = FORMS[form]
    found = run_network(Returns(result), IMAGES, "student")
    assert found.logits is LOGITS
    assert set(found.extras) == names and all(extra is FEATURES for extra in found.extras.values())
    assert not found.features
    assert found.rows(slice(2)).logits.shape == (2, 3)


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (None, "student: returned NoneType; allowed: a tensor, a tuple"),
        ((), "student: returned an empty tuple; allowed"),
        ({"scores": LOGITS}, "student: returned dict with scores; allowed"),
        ({}, "student: returned dict with nothing in it; allowed"),
        (([LOGITS], LOGITS), "student: its logits are list, not a tensor"),
        ({"logits": None}, "student: its logits are NoneType, not a tensor"),
        (LOGITS.long(), "student: returned torch.int64; logits are floating"),
        (LOGITS[:, 0], r"student: returned \(4,\) for 4 images; logits are \(4, classes\) or \(4, classes, \*space\)"),
        (LOGITS[:3], r"student: returned \(3, 3\) for 4 images"),
        (torch.tensor(1.0), r"student: returned \(\) for 4 images"),
    ],
)
def test_anything_else_is_refused_by_name(result, said):
    with pytest.raises(KdsearchError, match=said):
        run_network(Returns(result), IMAGES, "student")


def test_a_task_of_labels_wants_one_answer_per_image():
    dense = run_network(Returns(torch.zeros(4, 3, 2, 2)), IMAGES, "teacher")
    with pytest.raises(KdsearchError, match=r"teacher: returned \(4, 3, 2, 2\); a classifier returns logits of shape"):
        kd.Classification.of(3).check(dense, "teacher")


# Taps


def hooks(network):
    return sum(len(module._forward_hooks) for module in network.modules())


def test_features_are_what_the_layers_return_and_nothing_stays_on_them():
    network = kd.networks.small_convnet(2).eval()
    found = run_network(network, IMAGES, "student", ["0", "7", "11"])
    assert torch.equal(found.features["0"], network[0](IMAGES))
    assert torch.equal(found.features["7"], network[:8](IMAGES))
    assert torch.equal(found.features["11"], found.logits)
    assert found.features["7"].requires_grad
    assert hooks(network) == 0


def test_the_network_inside_a_normalised_one_and_a_teacher_are_tapped_by_its_own_paths():
    inner = kd.networks.small_convnet(2)
    teacher = kd.networks.Teacher(kd.networks.Normalised(kd.networks.Normalised(inner, [0.0], [1.0]), [0.5], [0.5]))
    found = teacher(IMAGES, ["0"])
    assert torch.equal(found.features["0"], inner[0]((IMAGES - 0.5) / 0.5))
    assert not teacher(IMAGES).features


def test_a_module_in_place_does_not_change_what_was_tapped_and_the_last_call_counts():
    half = nn.Linear(2, 2)
    shared = nn.Sequential(nn.Flatten(), nn.Linear(256, 2), nn.ReLU(inplace=True), half, half)
    nn.init.constant_(shared[1].bias, -5.0)  # so that the ReLU has something to change
    found = run_network(shared, IMAGES, "student", ["1", "3", "4"])
    assert torch.equal(found.features["1"], shared[1](IMAGES.flatten(1)))
    assert (found.features["1"] < 0).any()
    assert torch.equal(found.features["3"], found.logits) and torch.equal(found.features["4"], found.logits)


class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.unused, self.recurrent, self.head = nn.Linear(2, 2), nn.GRU(16, 3, batch_first=True), nn.Flatten()

    def forward(self, images):
        return self.head(self.recurrent(images[:, 0])[0])


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        (["recurent"], "student: unknown layer 'recurent'; did you mean 'recurrent'?"),
        (["recurrent"], "student: layer 'recurrent' returns tuple; allowed: a tensor"),
        (["head", "unused"], "student: layer 'unused' was not run"),
        ("head", r"layers is the string 'head'; allowed: a list of module paths, \['head'\]"),
    ],
)
def test_a_wrong_layer_is_one_clear_error_and_leaves_nothing(layers, said):
    network = Branch()
    with pytest.raises(KdsearchError, match=said):
        run_network(network, IMAGES, "student", layers)
    assert hooks(network) == 0


def test_taps_are_removed_when_the_network_fails():
    network = kd.networks.small_convnet(2)
    with pytest.raises(RuntimeError, match="mine"), tapped(network, ["0"]) as seen:
        network(IMAGES)
        raise RuntimeError("mine")
    assert hooks(network) == 0 and set(seen) == {"0"}


# Ensembles


def test_an_ensemble_is_the_weighted_mean_of_the_probabilities():
    others = [Returns(LOGITS), Returns({"logits": LOGITS.flip(1)}), Returns((LOGITS / 3,))]
    mean = sum(
        share * x.softmax(1) for share, x in zip((0.5, 0.2, 0.3), (LOGITS, LOGITS.flip(1), LOGITS / 3), strict=True)
    )
    torch.testing.assert_close(kd.networks.Ensemble(others, [5, 2, 3])(IMAGES).softmax(1), mean)
    torch.testing.assert_close(kd.networks.Ensemble(others[:1])(IMAGES).softmax(1), LOGITS.softmax(1))


def test_an_ensemble_is_stable_where_probabilities_are_zero_in_float():
    far = torch.tensor([[0.0, 1000.0]]).expand(4, 2)
    found = kd.networks.Ensemble([Returns(far), Returns(far)])(IMAGES)
    torch.testing.assert_close(found, far - 1000)
    assert kd.networks.Ensemble([Returns(far.half())])(IMAGES).dtype == torch.float32


def test_an_ensemble_of_dense_networks_and_as_a_teacher():
    maps = torch.rand(4, 3, 2, 2)
    torch.testing.assert_close(kd.networks.Ensemble([Returns(maps), Returns(maps)])(IMAGES), maps.log_softmax(1))
    teacher = kd.networks.Teacher(kd.networks.Ensemble([kd.networks.small_convnet(2), kd.networks.small_convnet(4)]))
    found = teacher(IMAGES, ["networks.1.0"])
    assert found.logits.shape == (4, 10) and found.features["networks.1.0"].shape == (4, 4, 8, 8)


@pytest.mark.parametrize(
    ("networks", "weights", "said"),
    [
        ([], None, "ensemble: no networks"),
        ([Returns(LOGITS)], [1, 2], "ensemble: 2 weights for 1 networks"),
        ([Returns(LOGITS)] * 2, [1, 0], "ensemble: weights 1, 0; allowed: positive numbers"),
        ([Returns(LOGITS)], [float("nan")], "ensemble: weights nan; allowed"),
        ([Returns(LOGITS)], [float("inf")], "ensemble: weights inf; allowed"),
        ([Returns(LOGITS), Returns(FEATURES)], None, r"ensemble: logits of shapes \(4, 3\) and \(4, 2\); needed"),
        ([Returns(LOGITS), Returns(None)], None, "ensemble's network 1: returned NoneType"),
    ],
)
def test_a_wrong_ensemble_is_refused(networks, weights, said):
    with pytest.raises(KdsearchError, match=said):
        kd.networks.Ensemble(networks, weights)(IMAGES)


# Weights


def write(state, path):
    if path.suffix == ".npz":
        np.savez(path, **{name: value.numpy() for name, value in state.items()})
    else:
        (save_file if path.suffix == ".safetensors" else torch.save)(state, path)
    return path


def same(network, state):
    return all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pt", ".pth"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_of_every_kind_of_file_are_loaded(tmp_path, suffix, prefix):
    state = kd.networks.small_convnet(2).state_dict()
    path = write({prefix + name: value for name, value in state.items()}, tmp_path / f"a{suffix}")
    network = kd.networks.small_convnet(2)
    assert not same(network, state)
    assert kd.networks.load_weights(network, path) is network
    assert same(network, state)
    wrapped = kd.networks.load_weights(kd.networks.Normalised(kd.networks.small_convnet(2), [0.0], [1.0]), path)
    assert same(wrapped.network, state)
    whole = write({f"{prefix}network.{name}": value for name, value in state.items()}, tmp_path / f"b{suffix}")
    assert same(
        kd.networks.load_weights(kd.networks.Normalised(kd.networks.small_convnet(2), [0.0], [1.0]), whole).network,
        state,
    )


@pytest.mark.parametrize("holder", ["state_dict", "model", "model_state_dict"])
def test_weights_beside_other_things_are_found(tmp_path, holder):
    state = kd.networks.small_convnet(2).state_dict()
    path = write({"epoch": 3, holder: state}, tmp_path / "a.pt")
    assert same(kd.networks.load_weights(kd.networks.small_convnet(2), path), state)


def test_weights_without_counts_of_batches_are_read_as_torch_reads_them(tmp_path):
    state = {
        k: v for k, v in kd.networks.small_convnet(2).state_dict().items() if not k.endswith("num_batches_tracked")
    }
    network = kd.networks.load_weights(kd.networks.small_convnet(2), write(state, tmp_path / "old.npz"))
    assert torch.equal(network.state_dict()["0.weight"], state["0.weight"])


def test_weights_of_another_network_are_one_error_and_nothing_is_loaded(tmp_path):
    state = kd.networks.small_convnet(2).state_dict()
    state["0.wieght"] = state.pop("0.weight")
    state["11.weight"] = torch.zeros(3, 8)
    path = write(state, tmp_path / "a.pt")
    network = kd.networks.small_convnet(2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(KdsearchError) as caught:
        kd.networks.load_weights(network, path)
    assert str(caught.value).splitlines() == [
        f"{path}: not the weights of this Sequential: 3 problems",
        "  missing: 0.weight",
        "  unexpected: 0.wieght (did you mean 0.weight?)",
        "  another shape: 11.weight (3, 8) in place of (10, 8)",
    ]
    assert same(network, before)


def test_a_mismatch_of_many_names_shows_a_handful(tmp_path):
    path = write(kd.networks.small_convnet(3).state_dict(), tmp_path / "a.pt")
    with pytest.raises(KdsearchError) as caught:
        kd.networks.load_weights(kd.networks.small_convnet(2), path)
    assert len(str(caught.value).splitlines()) == 2
    assert str(caught.value).endswith("and 11 more")
    with pytest.raises(KdsearchError, match=r"missing: .* and 15 more\n  unexpected: b"):
        kd.networks.load_weights(kd.networks.small_convnet(2), write({"b": torch.zeros(1)}, tmp_path / "b.safetensors"))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.zip", b"", r"weights in a .zip; allowed: .safetensors .npz .pt .pth .th .ckpt .bin .tar"),
        ("a.pt", b"", "cannot be read as weights: EOFError"),
        ("a.pt", b"nonsense", "holds Python objects or is torn, which is not read"),
        ("a.npz", b"nonsense", "cannot be read as weights"),
        ("a.safetensors", b"nonsense", "cannot be read as weights"),
        ("a.pt", kd.networks.small_convnet(2), "holds Python objects"),
        ("a.pt", [torch.zeros(1)], "holds list; allowed: weights by name"),
        ("a.pt", {"epoch": 3}, "holds epoch; allowed: weights by name, or these under state_dict"),
        ("a.npz", np.array([object()]), "cannot be read as weights: Object arrays"),
        ("b.pt", None, "b.pt: no such file"),
    ],
)
def test_a_file_without_weights_is_named(tmp_path, name, content, said):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, np.ndarray):
        np.savez(path, a=content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(KdsearchError, match=said):
        kd.networks.load_weights(kd.networks.small_convnet(2), path)


# Networks of torchvision


def test_a_torchvision_network_by_its_name_with_weights_of_a_file(tmp_path):
    plain = kd.networks.torchvision_model("resnet18", classes=3)
    assert plain(torch.rand(2, 3, 32, 32)).shape == (2, 3)
    path = write(plain.state_dict(), tmp_path / "mine.safetensors")
    assert same(kd.networks.torchvision_model("resnet18", classes=3, weights=path), plain.state_dict())
    assert same(kd.networks.torchvision_model("resnet18", classes=3, weights=str(path)), plain.state_dict())


def test_a_torchvision_segmentation_network_gives_logits_in_space():
    network = kd.networks.torchvision_model("lraspp_mobilenet_v3_large", classes=4).eval()
    found = run_network(network, torch.rand(2, 3, 32, 32), "teacher", ["classifier.low_classifier"])
    assert found.logits.shape == (2, 4, 32, 32)


def test_weights_of_torchvision_come_normalised(monkeypatch):
    given = torchvision.models.resnet18().state_dict()
    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", lambda self, **more: given)
    network = kd.networks.torchvision_model("resnet18", classes=1000, weights="DEFAULT")
    assert isinstance(network, kd.networks.Normalised) and same(network.network, given)
    torch.testing.assert_close(network.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))
    torch.testing.assert_close(network.std.flatten(), torch.tensor([0.229, 0.224, 0.225]))


@pytest.mark.parametrize(
    ("name", "weights", "said"),
    [
        ("resnet81", None, "unknown torchvision network 'resnet81'; did you mean 'resnet18'?"),
        ("resnet18", "DEFUALT", "resnet18: unknown weights 'DEFUALT'; did you mean 'DEFAULT'?"),
        ("resnet18", "DEFAULT", "resnet18: weights DEFAULT are for 1000 classes, not 10; train a head"),
        ("resnet18", "nowhere.pt", "nowhere.pt: no such file"),
    ],
)
def test_a_wrong_name_is_refused_before_anything_is_fetched(name, weights, said):
    with pytest.raises(KdsearchError, match=said):
        kd.networks.torchvision_model(name, classes=10, weights=weights)
