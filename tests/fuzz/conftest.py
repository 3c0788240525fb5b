"""A user's computer to be harmed, something valid to be edited, and the table at the end of `make fuzz`."""

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from importlib import import_module

import law
import pytest
import torch
from shares import FULL

import kdsearch as kd

SPACE = """\
summary = "two operations"
[policy]
learning_rate = 0.1
prior_strength = 0.3
operations_per_image = 1
interval = 1
[operations.rotate]
limit = 20.0
[operations.invert]
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[law.World]:
    """Scratch folders in the place of home, working directory and temporary files, with a file in each."""
    import_module("kdsearch.analysis.report")  # and matplotlib, which keeps a cache in the home folder
    root = tmp_path_factory.mktemp("world")
    for name in ("home", "cwd", "tmp", "given"):
        (root / name).mkdir()
        (root / name / "kept.txt").write_text("kept")
    (root / "given" / "kept.txt").unlink()
    patch = pytest.MonkeyPatch()
    patch.setenv("HOME", str(root / "home"))
    patch.setattr(tempfile, "tempdir", str(root / "tmp"))
    patch.setattr(sys, "dont_write_bytecode", True)
    patch.setattr(sys, "path", [*sys.path])  # study files add to it
    patch.chdir(root / "cwd")
    yield law.World(root)
    patch.undo()


def bars(count: int, seed: int, size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Lying bars, upright bars, crosses: images (count, 1, size, size) and labels."""
    labels = torch.arange(count) % 3
    images = 0.3 * torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(seed))
    images[labels != 0, :, :, size // 2 - 1 : size // 2 + 1] += 0.5
    images[labels != 1, :, size // 2 - 1 : size // 2 + 1, :] += 0.5
    return images.clamp(0, 1), labels


@pytest.fixture(scope="session")
def bars_study(tmp_path_factory: pytest.TempPathFactory) -> kd.Study:
    """The smallest study that has all its parts."""
    torch.manual_seed(0)
    teacher, (images, labels) = kd.networks.small_convnet(8, classes=3), bars(200, 1)
    adam = torch.optim.Adam(teacher.parameters(), lr=0.02)
    for _ in range(60):
        adam.zero_grad()
        torch.nn.functional.cross_entropy(teacher(images), labels).backward()
        adam.step()
    space = tmp_path_factory.mktemp("space") / "two.toml"
    space.write_text(SPACE)
    return kd.Study(
        name="bars",
        train=kd.data.ArrayData(*bars(40, 2)),
        search_validation=kd.data.ArrayData(*bars(60, 3)),
        teacher=teacher,
        student=lambda: kd.networks.small_convnet(4, classes=3),
        classes=["lying", "upright", "cross"],
        teacher_saw="none",
        space=str(space),
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.03),
        budget=kd.Budget(trials=1, epochs=1, steps=20, batch=8, confirmation=2),  # enough to be above chance
    )


class Files(dict[str, bytes]):
    """The files of a folder by their paths in it; written short in a find."""

    def __repr__(self) -> str:
        return f"<{len(self)} files>"


@pytest.fixture(scope="session")
def run_folder(bars_study: kd.Study, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The files of a finished search."""
    folder = tmp_path_factory.mktemp("runs") / "bars"
    kd.search(bars_study, out=folder, quiet=True)
    return Files(
        {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
    )


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker tells its counts."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["fuzz"] = {target: asdict(count) for target, count in law.COUNTS.items()}


def pytest_testnodedown(node: object) -> None:
    """The counts of a worker that has ended."""
    for target, told in getattr(node, "workeroutput", {}).get("fuzz", {}).items():
        count = law.COUNTS.setdefault(target, law.Count())
        for name in ("inputs", "refused", "seconds"):
            setattr(count, name, getattr(count, name) + told[name])
        for name in ("slowest", "megabytes"):
            setattr(count, name, max(getattr(count, name), told[name]))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What became of the inputs, target by target."""
    if not FULL or not law.COUNTS:
        return
    line = "{:<16}{:>8}{:>10}{:>9}{:>14}{:>12}{:>10}".format
    terminalreporter.write_line(line("target", "inputs", "accepted", "refused", "CPU s in all", "slowest s", "MB most"))
    for target, c in law.COUNTS.items():
        row = line(target, c.inputs, c.inputs - c.refused, c.refused, f"{c.seconds:.0f}", f"{c.slowest:.2f}",
                   f"{c.megabytes:.0f}")  # fmt: skip
        terminalreporter.write_line(row)
    every = [sum(getattr(c, name) for c in law.COUNTS.values()) for name in ("inputs", "refused")]
    terminalreporter.write_line(line("all", every[0], every[0] - every[1], every[1], "", "", ""))
