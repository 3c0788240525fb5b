"""The pair on CIFAR-10: its networks, its teacher's published accuracy, and its study."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import kdsearch as kd
from kdsearch.core.errors import KdsearchError
from kdsearch.data.batches import ArrayData
from kdsearch.networks.outputs import arrange_network, run_network
from kdsearch.study.study import load_study

NAME = "cifar10_resnet56_resnet20"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@pytest.mark.parametrize(
    ("depth", "parameters"), [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962)]
)
def test_residual_networks_have_as_many_weights_as_published(depth: int, parameters: int) -> None:
    network = kd.networks.cifar_resnet(depth)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    assert kd.networks.cifar_resnet(20, classes=100).linear.out_features == 100


def test_a_shortcut_takes_every_second_pixel_and_adds_channels_of_zeros() -> None:
    block = kd.networks.cifar_resnet(8).layer2[0].eval()
    torch.nn.init.zeros_(block.bn2.weight)
    x = torch.rand(1, 16, 4, 4)
    expected = torch.zeros(1, 32, 2, 2)
    expected[:, 8:24] = x[:, :, ::2, ::2]
    assert torch.equal(block(x), expected)


@pytest.mark.parametrize(("depth", "near"), [(18, 20), (2, 8), (57, 56)])
def test_a_depth_that_does_not_exist_is_refused_with_one_that_does(depth: int, near: int) -> None:
    with pytest.raises(KdsearchError, match=rf"depth {depth}; allowed: 6 n \+ 2, such as {near}"):
        kd.networks.cifar_resnet(depth)


@pytest.fixture
def study(data_file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> kd.Study:
    """The shipped study over the data that is here."""
    monkeypatch.setenv("KDSEARCH_DATA", str(data_file("cifar10.npz").parent))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    data_file("cifar10_resnet56.npz")
    return load_study(NAME)[0]


def test_the_teacher_is_right_on_9339_percent_of_the_test_images(study: kd.Study) -> None:
    assert study.teacher_saw == "both" and study.classes == CLASSES and len(study.test) == 10_000
    network = arrange_network(study.teacher, "cpu", channels=3)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    accuracy, error, _ = kd.evaluate(network, study.test, kd.Classification.of(study.classes), 256, "cpu")
    torch.set_num_threads(threads)
    assert round(100 * accuracy, 2) == 93.39 and error == pytest.approx(0.0025, abs=1e-4)


def test_the_splits_of_the_study_share_no_image_and_are_the_same_each_time(study: kd.Study) -> None:
    again = load_study(NAME)[0]
    assert torch.equal(study.train.images, again.train.images)
    kinds = [study.train, study.search_validation, study.test]
    keys = [{image.numpy().tobytes() for image in data.images} for data in kinds]
    assert len(study.train) == 10_000 and len(study.search_validation) == 1_000
    assert not keys[0] & keys[1] and len(keys[0]) > 9_990
    assert study.train.labels.bincount().min() > 900
    assert study.budget.steps * study.budget.batch <= len(study.train)
    assert study.device == "cpu" and study.precision == "float32"


def test_without_files_data_and_checkpoint_are_downloaded_into_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.randint(256, (16_000, 32, 32, 3), dtype=torch.uint8).numpy()
    asked: list[Any] = []

    class Downloaded:
        def __init__(self, root: Path, train: bool, download: bool) -> None:
            asked.append((Path(root), train, download))

        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
            return images[index], index % 10

    def fetch(url: str, path: str, hash_prefix: str) -> None:
        asked.append((url.rsplit("/", 1)[1], hash_prefix))
        torch.save(
            {"state_dict": {f"module.{k}": v for k, v in kd.networks.cifar_resnet(56).state_dict().items()}}, path
        )

    monkeypatch.setattr("torchvision.datasets.CIFAR10", Downloaded)
    monkeypatch.setattr("torch.hub.download_url_to_file", fetch)
    monkeypatch.setenv("KDSEARCH_DATA", str(tmp_path / "new"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = load_study(NAME)[0]
    folder = tmp_path / "new"
    fetched = ("resnet56-4bfd9763.th", "4bfd9763")
    assert {*asked} == {(folder, True, True), (folder, False, True), fetched} and len(asked) == 3
    assert isinstance(found.train, ArrayData) and found.train.images.dtype == torch.uint8
    assert len(found.train) == 10_000 and len(found.test) == 16_000
    assert run_network(found.teacher, torch.rand(2, 3, 32, 32), "teacher").logits.shape == (2, 10)
    assert len(list(folder.glob("cifar10_resnet56.*"))) == 1


def test_arrays_of_a_split_are_read_by_its_name(tmp_path: Path) -> None:
    x: Tensor = torch.randint(256, (6, 8, 8, 3), dtype=torch.uint8)
    np.savez(tmp_path / "a.npz", x_train=x, y_train=np.arange(6), x_test=x[:2], y_test=np.arange(2))
    assert len(kd.data.load_arrays(tmp_path / "a.npz", split="train")) == 6
    assert torch.equal(kd.data.load_arrays(tmp_path / "a.npz", split="test").images, x[:2].movedim(3, 1))
    with pytest.raises(KdsearchError, match=r"no images in it, but x_train, .*; allowed names: images_val, x_val"):
        kd.data.load_arrays(tmp_path / "a.npz", split="val")
    with pytest.raises(KdsearchError, match=r"no images in it, but x_train, .*; allowed names: images, x, data"):
        kd.data.load_arrays(tmp_path / "a.npz")
