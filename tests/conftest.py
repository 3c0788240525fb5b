"""Real images and forced draws for the laws."""

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor

from kdsearch.data import digits
from kdsearch.maths import generator
from kdsearch.ops import OPERATIONS
from kdsearch.values import Draw

torch.set_num_threads(2)

Force = Callable[..., Draw]


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

    def forced(magnitudes: Mapping[str, float | Tensor], size: int, *, gates: bool = True, seed: int = 0) -> Draw:
        random = generator("forced", seed)
        names = tuple(name for name in OPERATIONS if name in magnitudes)
        m = [torch.as_tensor(magnitudes[name], dtype=torch.float64).expand(size) for name in names]
        return Draw(
            operations=names,
            chosen=torch.arange(len(names)).repeat(size, 1),
            gates=torch.full((size, len(names)), gates),
            signs=torch.ones(size, len(names), dtype=torch.float64),
            uniforms=torch.rand(size, len(names), 3, generator=random, dtype=torch.float64),
            magnitudes=torch.stack(m, 1),
            seeds=torch.randint(-(2**63), 2**63 - 1, (size,), generator=random),
        )

    return forced


@pytest.fixture
def kdsearch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the command line in this process: its output, or with another `code` what it says of the mistake."""
    from kdsearch.cli import main

    def run(*arguments: object, code: int = 0) -> str:
        monkeypatch.setattr("sys.argv", ["kdsearch", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        assert (ended.value.code or 0) == code, err or out
        return err if code == 2 else out

    return run
