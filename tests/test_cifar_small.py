"""The pair on CIFAR-10 at 16 pixels: its teacher, read or trained, and its study; shifted images, read the same way."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import kdsearch as kd
from kdsearch.study.study import load_study

NAME = "cifar10_small"
EXPECTED = {  # of the shifted images of a test below
    "shift .1": 1161.01,
    "across .2": 1147.9,
    "turn 15": 1168.65,
    "scale .2": 1146.42,
    "shear .2": 1156.34,
    "perspective .2": 1157.01,
    "brightness .4": 1101.76,
    "contrast .4": 1156.73,
    "hue .1": 1158.78,
    "gamma .5": 1236.96,
    "blur .8": 1155.55,
    "noise .08": 1160.84,
}
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def little_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a cifar10.npz of 3,200 random training images, as large as the study needs."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    images, labels = random.integers(256, size=(3_200, 32, 32, 3), dtype=np.uint8), random.integers(10, size=3_200)
    np.savez(folder / "cifar10.npz", x_train=images, y_train=labels, x_test=images[:20], y_test=labels[:20])
    return folder


@pytest.fixture
def shifted(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("shifted")
    for name in ("shifted", "common"):
        sys.modules.pop(name, None)


def test_the_weights_are_those_of_a_teacher_that_is_right_on_807_percent_of_the_test_images(
    data_file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDSEARCH_DATA", str(data_file("cifar10.npz").parent))
    data_file("cifar10_16px_resnet20.npz")
    study = load_study(NAME)[0]
    assert isinstance(study.teacher, torch.nn.Module) and study.test is not None
    assert round(100 * kd.evaluate(study.teacher, study.test).value, 1) == 80.7
    assert min(np.bincount([int(label) for _, label in study.train])) > 180


def test_images_are_halved_by_their_mean_and_the_splits_share_none(
    little_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDSEARCH_DATA", str(little_data))
    study = load_study(NAME)[0]
    parts = [study.train, study.search_validation, study.test]
    assert all(isinstance(part, kd.data.ArrayData) for part in parts)
    assert [len(part) for part in parts] == [2_000, 1_000, 20] and study.teacher_saw == "both"
    whole = np.load(little_data / "cifar10.npz")["x_test"][3].astype(np.float64).transpose(2, 0, 1)
    mean = whole.reshape(3, 16, 2, 16, 2).mean((2, 4)) / 255
    assert np.allclose(study.test[3][0].numpy(), mean, atol=1e-6)
    keys = [{image.numpy().tobytes() for image, _ in part} for part in parts[:2]]
    assert not keys[0] & keys[1] and [len(part) for part in keys] == [2_000, 1_000]
    assert study.fresh_student()(study.train[0][0][None]).shape == (1, 10)


def test_without_its_weights_the_teacher_is_trained_by_a_recipe_on_all_images_and_kept(
    little_data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KDSEARCH_DATA", str(little_data))
    recipe = load_study(NAME)[0].teacher
    assert isinstance(recipe, kd.Recipe)
    monkeypatch.setitem(recipe.train.__globals__, "TEACHER_STEPS", 3)
    before = recipe.build().state_dict()
    trained = recipe.load(tmp_path / "teacher.safetensors").state_dict()
    assert trained["bn1.num_batches_tracked"] == 3
    assert not torch.equal(trained["conv1.weight"], before["conv1.weight"])
    again = load_study(NAME)[0].teacher
    assert isinstance(again, kd.Recipe)
    monkeypatch.setitem(again.train.__globals__, "TEACHER_STEPS", 3)
    read = again.load(tmp_path / "teacher.safetensors").state_dict()
    assert all(torch.equal(value, read[name]) for name, value in trained.items())


class Mean(torch.nn.Module):
    """Says class 1 of bright images, otherwise 0."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        bright = (images.mean((1, 2, 3)) > self.threshold).long()
        return torch.nn.functional.one_hot(bright, 2).float()


@pytest.mark.parametrize("channels", [1, 3])
def test_inherited_is_what_a_student_gets_right_of_what_its_teacher_does_shift_by_shift(
    shifted: ModuleType, channels: int
) -> None:
    images = torch.rand(40, channels, 16, 16, generator=torch.Generator().manual_seed(0))
    images = images * torch.linspace(0.5, 1.0, 40)[:, None, None, None]
    data, task = kd.data.ArrayData(images, torch.arange(40) // 20), kd.Classification.of(2)
    teacher, student = Mean(0.37), Mean(0.3)
    views = shifted.shifted_images(data)[0]
    assert len(views) == {1: 11, 3: 12}[channels] and ("hue .1" in views) == (channels == 3)
    assert all((view - images).abs().mean() > 0.005 for view in views.values())
    accuracy, inherited = [], []
    for view in views.values():
        right, told = (net(view).argmax(1) == data.labels for net in (student, teacher))
        accuracy.append(right.double().mean())
        inherited.append((right & told).double().sum() / told.sum())
    found = shifted.shifted_accuracy(student, teacher, data, task)
    assert found.accuracy == pytest.approx(float(sum(accuracy)) / len(views))
    assert found.inherited == pytest.approx(float(sum(inherited)) / len(views))
    assert found.inherited != pytest.approx(found.accuracy)
    assert shifted.shifted_accuracy(teacher, teacher, data, task).inherited == 1.0


def test_shifted_images_are_those_that_rows_were_read_with(shifted: ModuleType) -> None:
    """The script is frozen: the same images as ever, from the same seeds."""
    images, weights = torch.rand(2, 6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    data = kd.data.ArrayData(images, torch.zeros(6, dtype=torch.long))
    found = {name: round(float((view * weights).sum()), 2) for name, view in shifted.shifted_images(data)[0].items()}
    assert found == pytest.approx(EXPECTED, abs=0.05)
