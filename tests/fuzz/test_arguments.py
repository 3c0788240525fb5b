"""Command lines of any kind, and places that are no files: an exit code that says it, and no traceback."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from law import World, holds
from shares import inputs
from strategies import NUMBERS, TEXTS
from test_run_folders import command, put

import kdsearch as kd

STUDY = """\
import kdsearch as kd
import torch

def train(network):
    raise kd.KdsearchError("here training would begin")

images, labels = torch.rand(12, 1, 8, 8), torch.arange(12) % 3
data = kd.data.ArrayData(images, labels)
study = kd.Study(name="bars", train=data, search_validation=data,
                 teacher=kd.Recipe(lambda: kd.networks.small_convnet(2, classes=3), train), classes=3, seed=0,
                 student=lambda: kd.networks.small_convnet(2, classes=3))
"""
GIVEN = (
    "run",
    "run/trials/0000",
    "run/trials/0000/policy.json",
    "study.py",
    "run/study.json",
    "run/study.db",
    "no",
    "",
)
OPTIONS: Mapping[str, tuple[str, ...]] = {
    "search": ("--trials", "--epochs", "--confirmation", "--storage", "--sampler", "--pruner", "--seed", "--device",
               "--out"),
    "status": (),
    "regions": ("--trial", "--most", "--picture"),
    "export": ("--to", "--which", "--output", "-o"),
    "rank": ("--on", "--views", "--most", "--which", "--table", "--picture", "--device", "--out"),
    "sheet": ("--images", "--which", "--most", "--output", "-o"),
    "diff": ("--which", "--output", "-o"),
    "trajectory": ("--output", "-o"),
    "frames": ("--to", "--output", "-o"),
    "report": ("--images", "--no-images"),
    "copy": (),
    "spaces": (), "studies": (), "operations": (), "losses": (), "objectives": (), "nowhere": (), "": (),
}  # fmt: skip
OUTPUTS = ("out.png", "out.csv", "out.parquet", "out.py", "out", "no/out.png", ".", "/dev/null", "/dev/full", "x" * 300,
           "a?b#c%d.png", "e\u0301.png", "\udcff.png", "{x}.png", "kept.txt/x", "link.png", "loop")  # fmt: skip
VALUES = ("json", "torchvision", "kornia", "albumentations", "csv", "parquet", "average", "final", "train", "tpe",
          "random", "median", "none", "cpu", "cuda", "cuda:99", "mps", "meta", "sqlite:///{x", "sqlite://", "sqlite:///no/x.db",
          "mysql://x", "x://", "sqlite:///:memory:", "1", "2", "99999999999", "--help", "--", "-")  # fmt: skip
values = st.sampled_from(VALUES) | st.sampled_from(OUTPUTS) | st.sampled_from(NUMBERS) | st.sampled_from(TEXTS)


@st.composite
def arguments(draw: st.DrawFn) -> tuple[str, ...]:
    """A command, what it is given, options of it or of another command."""
    name = draw(st.sampled_from(sorted(OPTIONS)))
    positional = st.sampled_from(GIVEN).map(lambda path: f"GIVEN/{path}") | st.sampled_from([*TEXTS[:20], "digits"])
    if name in ("search", "rank"):
        positional = st.sampled_from(["GIVEN/study.py", "GIVEN/no.py", "GIVEN/run", "no", ""])
    count = {"diff": 2, "copy": 1, "rank": 2}.get(name, 1 if OPTIONS[name] or name == "status" else 0)
    made = [draw(positional) for _ in range(draw(st.sampled_from([count, count, count, count + 1, 0])))]
    known = OPTIONS[name] or ("--to",)
    for option in draw(st.lists(st.sampled_from(known) | st.sampled_from(["--nowhere", "--to", "-x"]), max_size=3)):
        made += [option, draw(values)]
    return (name, *made)


@pytest.fixture(scope="module", autouse=True)
def warm(world, run_folder):
    lay(world, run_folder)
    for line in (("status", "GIVEN/run"), ("rank", "GIVEN/study.py"), ("search", "GIVEN/study.py", "--out", "x"),
                 ("spaces",), ("losses",), ("studies",), ("export", "GIVEN/run", "--to", "albumentations"),
                 ("report", "GIVEN/run"), ("sheet", "GIVEN/run"), ("diff", "GIVEN/run", "GIVEN/run"),
                 ("frames", "GIVEN/run")):  # fmt: skip
        refused = run(world, line)
        assert (refused is not None) == (line[0] in ("rank", "search")), refused


def lay(world: World, run_folder: Mapping[str, bytes]) -> None:
    """What the arguments name: a run folder, a study file, and a working directory with a link and a loop."""
    put(world, run_folder, "", None)
    (world.given / "study.py").write_text(STUDY)
    for path, folders, files in os.walk(world.cwd, topdown=False):
        for name in files:
            os.unlink(os.path.join(path, name))
        for name in folders:
            os.rmdir(os.path.join(path, name))
    (world.cwd / "kept.txt").write_text("kept")
    (world.cwd / "link.png").symlink_to("target.png")
    (world.cwd / "loop").symlink_to("loop")


def run(world: World, line: tuple[str, ...]) -> str | None:
    return command(
        *(str(world.given / word.removeprefix("GIVEN/")) if word.startswith("GIVEN/") else word for word in line)
    )


@inputs("arguments")
@given(line=arguments())
@example(("export", "GIVEN/run", "--to", "json", "-o", "/dev/full"))
@example(("export", "GIVEN/run", "--to", "json", "-o", "x" * 300))
@example(("export", "GIVEN/run", "--to", "json", "-o", "loop"))
@example(("search", "GIVEN/study.py", "--storage", "sqlite:///{x"))
@example(("search", "GIVEN/study.py", "--seed", "18446744073709551616"))
@example(("sheet", "GIVEN/run", "--most", "99999999999"))
@example(("rank", "GIVEN/study.py", "--picture", "link.png"))
def test_any_command_line(world, run_folder, line):
    lay(world, run_folder)
    report = (
        [world.given / "run" / name for name in ("report.html", "report_without_images.html")]
        if line[0] == "report"
        else []
    )
    with holds(world, "arguments", world.cwd, *report) as outcome:
        outcome.refused = run(world, line)


READERS: Mapping[str, tuple[str, Callable[[Path], object]]] = {
    "policy": (".json", kd.PolicySpec.load),
    "space": (".toml", lambda path: kd.SearchSpace.load(str(path))),
    "weights": (".pt", lambda path: kd.networks.load_weights(kd.networks.small_convnet(2), path)),
    "safetensors": (".safetensors", lambda path: kd.networks.load_weights(kd.networks.small_convnet(2), path)),
    "weights of arrays": (".npz", lambda path: kd.networks.load_weights(kd.networks.small_convnet(2), path)),
    "arrays": (".npz", kd.data.load_arrays),
    "pictures of arrays": (".npz", kd.data.load_images),
    "picture": (".png", kd.data.load_images),
    "pictures": ("", kd.data.load_images),
    "image folder": ("", lambda path: kd.data.in_memory(kd.data.image_folder(path, size=8))),
    "frames": ("", kd.frames),
    "study": (".py", lambda path: command("search", str(path))),
    "export": (".json", lambda path: command("export", str(path), "--to", "json")),
    "status": ("", lambda path: command("status", str(path))),
}
PLACES = ("nothing", "empty", "zeros", "folder", "link to nothing", "link to itself", "link to /dev/zero",
          "link to a folder", "/dev/zero", "/dev/null", "fifo", "/proc/self/mem", "NUL", "surrogate", "long name",
          "~nobody", "dots")  # fmt: skip


def odd_place(world: World, what: str, suffix: str) -> Path:
    """A path that is not that of the file one wants."""
    world.clear()
    path = world.given / f"x{suffix}"
    match what:
        case "empty":
            path.write_bytes(b"")
        case "zeros":
            path.write_bytes(bytes(5000))
        case "folder":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "link to a folder":
            path.symlink_to(".")
        case "NUL":
            return world.given / f"a\0b{suffix}"
        case "surrogate":
            return world.given / f"\udcff\ud800{suffix}"
        case "long name":
            return world.given / ("x" * 300 + suffix)
        case "~nobody":
            return Path(f"~nobody{suffix}")
        case "dots":
            return world.given / ".." / ".." / "nowhere" / f"x{suffix}"
        case _ if what.startswith("link to"):
            path.symlink_to(path if what == "link to itself" else what.removeprefix("link to "))
        case _ if what.startswith("/"):
            return Path(what)
    return path


@inputs("places")
@given(reader=st.sampled_from(sorted(READERS)), what=st.sampled_from(PLACES))
@example("policy", "/dev/zero")
@example("policy", "NUL")
@example("policy", "fifo")
@example("space", "/dev/zero")
@example("weights", "link to /dev/zero")
@example("arrays", "surrogate")
def test_any_place_in_the_place_of_a_file(world, reader, what):
    suffix, read = READERS[reader]
    path = odd_place(world, what, suffix)
    with holds(world, "places") as outcome:
        said = read(path)
        outcome.refused = said if isinstance(said, str) else None
    assert outcome.refused is not None
