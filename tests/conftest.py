"""Real images and forced draws for the laws."""

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

import kdsearch as kd
from kdsearch.augment.export import export
from kdsearch.augment.operations import TABLE as OPERATIONS
from kdsearch.augment.spec import PolicySpec
from kdsearch.core.maths import generator
from kdsearch.core.values import Draw
from kdsearch.data.batches import digits

torch.set_num_threads(1)  # with more, a busy machine makes small steps many times slower

Force = Callable[..., Draw]
LONG = os.environ.get("KDSEARCH_LONG") == "1"
DATA = Path(os.environ.get("KDSEARCH_DATA", Path(__file__).parents[1] / "data"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long forms run in `make long` alone."""
    for item in items:
        if not LONG and item.get_closest_marker("long"):
            item.add_marker(pytest.mark.skip(reason="a long form: make long, or KDSEARCH_LONG=1 pytest"))


@pytest.fixture(scope="session")
def data_file() -> Callable[[str], Path]:
    """Finds files of real data sets, or skips the test."""

    def found(name: str) -> Path:
        if not (DATA / name).exists():
            pytest.skip(f"{name} is not there: KDSEARCH_DATA, or data beside the tests, is its folder")
        return DATA / name

    return found


@pytest.fixture(scope="module")
def load_benchmark() -> Iterator[Callable[[str], ModuleType]]:
    """Imports a benchmark as it is run, its folder first on the path; its modules are gone after a file of tests."""
    folder = Path(__file__).parents[1] / "benchmarks"
    before = {*sys.modules}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield importlib.import_module
    for name in ({*sys.modules} - before) & {path.stem for path in folder.glob("*.py")}:
        del sys.modules[name]


@pytest.fixture(scope="session")
def digits_images() -> Tensor:
    """(797, 1, 16, 16): the training images of the embedded digits."""
    return digits()[0].images


@pytest.fixture(scope="session")
def photos() -> Tensor:
    """(120, 3, 32, 32): crops of scikit-learn's two sample photographs at half their size, in a shuffled order."""
    from sklearn.datasets import load_sample_images

    pictures = [torch.from_numpy(picture.copy()) for picture in load_sample_images().images]
    whole = torch.stack(pictures).movedim(-1, 1).float() / 255  # (2, 3, 427, 640)
    half = torch.nn.functional.avg_pool2d(whole, 2)
    crops = half.unfold(2, 32, 32).unfold(3, 32, 32).movedim(1, 3).reshape(-1, 3, 32, 32)
    return crops[torch.randperm(len(crops), generator=generator("photos"))]


@pytest.fixture(scope="session", params=["digits_images", "photos"])
def images(request: pytest.FixtureRequest) -> Tensor:
    """Each kind of real images in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def force() -> Force:
    """A draw in which every image has the given operations, in place of a policy's choice."""

    def forced(
        magnitudes: Mapping[str, float | Tensor], size: int, *, gates: bool = True, seed: int = 0, fill: str = "zero"
    ) -> Draw:
        random = generator("forced", seed)
        names = tuple(name for name in OPERATIONS if name in magnitudes)
        m = [torch.as_tensor(magnitudes[name], dtype=torch.float64).expand(size) for name in names]
        return Draw(
            operations=names,
            chosen=torch.arange(len(names)).repeat(size, 1),
            gates=torch.full((size, len(names)), gates),
            signs=torch.ones(size, len(names), dtype=torch.float64),
            uniforms=torch.rand(size, len(names), 9, generator=random, dtype=torch.float64),
            magnitudes=torch.stack(m, 1),
            seeds=torch.randint(-(2**63), 2**63 - 1, (size,), generator=random),
            fill=fill,
        )

    return forced


@pytest.fixture
def kdsearch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the command line in this process: its output, or with another `code` what it says of the mistake."""
    from kdsearch.commands.cli import main

    def run(*arguments: object, code: int = 0) -> str:
        monkeypatch.setattr("sys.argv", ["kdsearch", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        assert (ended.value.code or 0) == code, err or out
        return err if code == 2 else out

    return run


class Untouchable:
    """A test split whose every access raises."""

    def __len__(self):
        raise AssertionError("the test split was touched")

    def __getitem__(self, index):
        raise AssertionError("the test split was touched")

    def __iter__(self):
        raise AssertionError("the test split was touched")


@pytest.fixture(scope="session")
def teacher():
    """Makes the same briefly trained teacher each time."""

    def make():
        torch.manual_seed(0)
        network = kd.networks.small_convnet(8)
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
        for batch in kd.data.shuffled(kd.data.digits()[0], 64, 60, 0):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(batch.images), batch.target).backward()
            optimizer.step()
        return network

    return make


def quick_student():
    """Learns something within a few steps: its statistics of BatchNorm follow fast, and its head sees where."""
    network = kd.networks.small_convnet(2)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.5
    network[9], network[11] = torch.nn.AdaptiveAvgPool2d(4), torch.nn.Linear(128, 10)
    return network


@pytest.fixture(scope="session")
def tiny_study(teacher):
    """Digits with a budget of seconds, over images as they are."""
    train, validation, _ = kd.data.digits()
    return kd.Study(
        name="tiny",
        train=train.subset(torch.arange(100)),
        search_validation=validation.subset(torch.arange(100)),
        confirm=validation.subset(torch.arange(100, 140)),
        test=Untouchable(),
        teacher=teacher(),
        student=quick_student,
        optimizer=partial(torch.optim.AdamW, lr=2e-2),
        classes=[f"digit {i}" for i in range(10)],
        teacher_saw="train",
        base=None,
        budget=kd.Budget(
            trials=2, epochs=3, steps=6, batch=32, confirmation=2, look_images=100, look_bins=5, look_operations=25
        ),
    )


@pytest.fixture(scope="session")
def finished(tiny_study, tmp_path_factory):
    """A search of 2 trials, done once."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    return kd.search(tiny_study, out=folder, quiet=True)


@pytest.fixture(scope="session")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[[PolicySpec, str], ModuleType]:
    """The module that an export's text defines."""

    def load(spec: PolicySpec, to: str) -> ModuleType:
        path = tmp_path_factory.mktemp("exported") / f"{to}_policy.py"
        path.write_text(export(spec, to), encoding="utf-8")
        module_spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(module_spec)
        module_spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def without_kdsearch() -> str:
    """The head of a program that cannot import kdsearch."""
    return """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "kdsearch":
            raise ImportError("kdsearch is blocked")

sys.meta_path.insert(0, Block())
"""
