"""Files and paths as users give them: what is written and where, what is refused and how it is said."""

import io
import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import tv_tensors

import kdsearch as kd
from kdsearch.analysis.diff import policy_diff
from kdsearch.analysis.frames import make_frame
from kdsearch.analysis.plots import plot_diff, plot_scores, save_figure
from kdsearch.augment.policy import Policy
from kdsearch.commands.cli import main
from kdsearch.commands.console import MANY, print_table
from kdsearch.commands.display import Display
from kdsearch.commands.rank import gather
from kdsearch.core import archives, files
from kdsearch.core.errors import KdsearchError
from kdsearch.core.files import as_path, read_text, write_bytes, write_text
from kdsearch.core.locks import lock_folder
from kdsearch.data.images import load_images
from kdsearch.distill.checkpoint import Checkpoint
from kdsearch.study.run_folder import as_text

root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may do this")


# Written


def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path):
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there/policy.py", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    write_text(link, "new")
    assert link.is_symlink() and target.read_text() == "new"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["link", "policy.py", "there"]


@root
def test_a_file_that_is_there_keeps_its_mode_and_owner(tmp_path):
    path = tmp_path / "policy.py"
    path.write_text("old")
    path.chmod(0o600)
    os.chown(path, 65534, 65534)
    write_text(path, "new")
    found = path.stat()
    assert (path.read_text(), stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == ("new", 0o600, 65534, 65534)


def test_a_new_file_has_the_mode_that_new_files_have(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "policy.py", "new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "policy.py").stat().st_mode) == 0o640


def test_a_link_laid_for_the_partial_file_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "policy.py.partial").symlink_to(victim)
    write_text(tmp_path / "policy.py", "new")
    assert victim.read_text() == "mine" and (tmp_path / "policy.py.partial").is_symlink()


@root
def test_a_device_stays_one_and_its_failure_is_named(tmp_path):
    null, full = tmp_path / "null", tmp_path / "full"  # never those of the machine, which a fault would replace
    try:
        os.mknod(null, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        os.mknod(full, 0o666 | stat.S_IFCHR, os.makedev(1, 7))
    except PermissionError:
        pytest.skip("this container makes no devices")
    write_text(null, "into nothing")
    with pytest.raises(KdsearchError, match=r"^cannot write .*full: No space left on device$"):
        write_text(full, "anything")
    assert null.is_char_device() and full.is_char_device() and len(list(tmp_path.iterdir())) == 2


def test_a_pipe_is_written_to(tmp_path):
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write_text(pipe, "through")
    reader.join(10)
    assert read == ["through"] and pipe.is_fifo()


def test_what_is_printed_into_a_file_is_not_replaced_by_its_other_name(tmp_path):
    with (tmp_path / "log").open("w") as log:
        log.write("before\n")
        log.flush()
        write_text(Path(f"/dev/fd/{log.fileno()}"), "policy\n")
        log.write("after\n")
    assert (tmp_path / "log").read_text() == "before\npolicy\nafter\n"


def _nowhere(folder: Path) -> dict[str, Path]:
    (folder / "folder").mkdir()
    (folder / "file").write_text("")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "dangling").symlink_to(folder / "gone")
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as at:
        at.bind(str(folder / "socket"))
    return {
        "it is a folder": folder / "folder",
        "it is a link to": folder / "dangling",
        "it is a socket": folder / "socket",
        "Too many levels of symbolic links": folder / "loop",
        "File name too long": folder / ("x" * 300),
        "null byte": folder / "a\0b",
        "half a letter": folder / "a\ud800b",
        "No such file or directory": folder / "gone/policy.py",
        "Not a directory": folder / "file/policy.py",
        "No such device or address": folder / "pipe",
    }


def test_what_takes_no_file_is_one_message_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PATIENCE", 0.05)
    places = _nowhere(tmp_path)
    before = sorted(tmp_path.iterdir())
    for said, place in places.items():
        with pytest.raises(KdsearchError, match=said) as error:
            write_text(place, "new")
        assert str(error.value).startswith("cannot write ") and "\n" not in str(error.value)
    assert sorted(tmp_path.iterdir()) == before


def test_a_name_of_255_letters_can_be_written(tmp_path):
    write_text(tmp_path / ("x" * 255), "new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["new"]


def test_a_failure_while_writing_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "policy.py"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KdsearchError, match=r"^cannot write .*policy.py: No space left on device$"):
        write_text(path, "new")
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [("policy.py", "old")]


def test_writers_at_one_time_do_not_meet(tmp_path):
    path, wrong = tmp_path / "policy.py", []
    barrier = threading.Barrier(4)

    def write(letter: bytes) -> None:
        try:
            for _ in range(20):
                barrier.wait(10)
                write_bytes(path, 100_000 * letter)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b", b"c", b"d")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    content = path.read_bytes()
    assert not wrong and content == 100_000 * content[:1] and list(tmp_path.iterdir()) == [path]


# Paths and what is read


def test_the_home_folder_is_meant_by_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert as_path("~/run") == tmp_path / "run" and as_path(Path("~")) == tmp_path
    assert as_path("~backup.json") == Path("~backup.json") and as_path("a/~") == Path("a/~")


@pytest.mark.parametrize("given", ["a\0b", "a\ud800b", "x" * 300, 3, None, b"bytes"])
def test_what_no_path_can_be_is_one_message(given):
    with pytest.raises(KdsearchError):
        as_path(given)


def test_only_files_are_read_and_only_so_much_of_them(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "latin").write_bytes("é".encode("latin-1"))
    (tmp_path / "marked").write_bytes(b"\xef\xbb\xbfwords")
    for path, said in {
        Path("/dev/zero"): "a device, not a file",
        tmp_path: "a folder, not a file",
        tmp_path / "pipe": "a pipe, not a file",
        tmp_path / "gone": "no such file",
        tmp_path / "latin": "cannot be read: 'utf-8' codec",
        tmp_path / "marked": "larger than 7 bytes",
    }.items():
        with pytest.raises(KdsearchError, match=f"^{path}: {said}"):
            read_text(path, 7)
    assert read_text(tmp_path / "marked", 8) == "words"


# Archives


def _npz(
    path: Path, *, header: bytes | None = None, flag: int = 0, packed: int = zipfile.ZIP_DEFLATED, **arrays
) -> Path:
    """An .npz file, with another text as header of its images, another flag, or packed in another way."""
    with zipfile.ZipFile(path, "w", packed) as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.save(content, array)
            data = content.getvalue()
            if header and name == "images":
                data = (
                    data[:8]
                    + len(header).to_bytes(2, "little")
                    + header
                    + data[10 + int.from_bytes(data[8:10], "little") :]
                )
            archive.writestr(f"{name}.npy", data)
    if flag:
        content = bytearray(path.read_bytes())
        content[6] |= flag  # of the first member; and in the directory
        content[content.index(b"PK\1\2") + 8] |= flag
        path.write_bytes(content)
    return path


IMAGES = np.random.default_rng(0).integers(0, 255, (20, 8, 8, 3)).astype(np.uint8)
LABELS = np.arange(20)


def _flipped(path: Path) -> Path:
    """One bit of the packed pixels changed."""
    content = bytearray(_npz(path, images=IMAGES, labels=LABELS).read_bytes())
    content[400] ^= 64
    path.write_bytes(content)
    return path


def _no_array(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images", b"text")
        archive.writestr("labels.npy", b"text")
    return path


TORN = {
    "a bit": _flipped,
    "no array": _no_array,
    "a header without end": lambda path: _npz(path, header=b"{'shape': 1", images=IMAGES, labels=LABELS),
    "a header of 10^12": lambda path: _npz(
        path,
        header=b"{'descr':'|u1','fortran_order':False,'shape':(1000000000000,8,8,3)}\n",
        images=IMAGES,
        labels=LABELS,
    ),
    "a header of less": lambda path: _npz(
        path, header=b"{'descr':'|u1','fortran_order':False,'shape':(-20,-8,8,3)}\n", images=IMAGES, labels=LABELS
    ),
    "deep": lambda path: _npz(path, header=b"(" * 5000, images=IMAGES, labels=LABELS),
    "encrypted": lambda path: _npz(path, flag=1, images=IMAGES, labels=LABELS),
    "patched": lambda path: _npz(path, flag=32, images=IMAGES, labels=LABELS),
    "bzip2": lambda path: _npz(path, packed=zipfile.ZIP_BZIP2, images=IMAGES, labels=LABELS),
    "objects": lambda path: _npz(path, images=np.array([object()] * 20), labels=LABELS),
}


@pytest.mark.parametrize("torn", TORN)
def test_a_torn_archive_is_one_message_whoever_reads_it(torn, tmp_path):
    path = TORN[torn](tmp_path / "torn.npz")
    for read in (
        kd.data.load_arrays,
        kd.data.load_images,
        lambda path: kd.networks.load_weights(nn.Linear(2, 2), path),
    ):
        with pytest.raises(KdsearchError, match=r"torn\.npz: "):
            read(path)


def test_an_archive_that_claims_too_much_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    zeros = np.zeros((400, 64, 64, 3), np.uint8)
    path = _npz(tmp_path / "bomb.npz", images=zeros, labels=np.zeros(400, int))
    assert len(kd.data.load_arrays(path)) == 400  # less than any archive may hold
    monkeypatch.setattr(archives, "ALWAYS", 2**20)
    monkeypatch.setattr(archives, "_array", None)
    said = r"bomb\.npz: [0-9,]+ bytes, which claim to unpack to 4,9[0-9,]+; allowed: at most 100 times as much"
    for read in (
        kd.data.load_arrays,
        kd.data.load_images,
        lambda path: kd.networks.load_weights(nn.Linear(2, 2), path),
    ):
        with pytest.raises(KdsearchError, match=said):
            read(path)
    monkeypatch.setattr(archives, "RATIO", 10_000)
    monkeypatch.setattr(archives, "available_bytes", lambda device: 8_000_000)
    with pytest.raises(KdsearchError, match=r"bomb\.npz: unpacks to 0\.0 GB; 0\.0 GB of memory are left"):
        kd.data.load_arrays(path)


def test_weights_that_claim_too_much_are_refused_before_they_are_unpacked(tmp_path, monkeypatch):
    torch.save({"weight": torch.zeros(10_000, 100)}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "bomb.pt", "w", 8) as bomb:
        for info in plain.infolist():
            bomb.writestr(info.filename, plain.read(info))
    monkeypatch.setattr(archives, "ALWAYS", 2**20)
    monkeypatch.setattr(torch, "load", None)
    with pytest.raises(KdsearchError, match=r"bomb\.pt: [0-9,]+ bytes, which claim to unpack to 4,0"):
        kd.networks.load_weights(nn.Linear(2, 2), tmp_path / "bomb.pt")


def test_what_is_no_file_is_refused_by_every_reader(tmp_path):
    for name in ("a.npz", "a.png", "a.pt", "a.safetensors", "a.json", "a.toml"):
        os.mkfifo(tmp_path / name)
    readers = {
        "a.npz": [kd.data.load_arrays, kd.data.load_images],
        "a.png": [kd.data.load_images],
        "a.pt": [lambda path: kd.networks.load_weights(nn.Linear(2, 2), path)],
        "a.safetensors": [lambda path: kd.networks.load_weights(nn.Linear(2, 2), path)],
        "a.json": [kd.PolicySpec.load],
        "a.toml": [lambda path: kd.SearchSpace.load(str(path))],
    }
    for name, reads in readers.items():
        for read in reads:
            for path in (
                tmp_path / name,
                tmp_path / f"x\0{name}",
                tmp_path / f"x\ud800{name}",
                tmp_path / ("x" * 300 + name),
            ):
                with pytest.raises(KdsearchError) as error:
                    read(path)
                assert "\n" not in str(error.value)


# Folders of images


def _pictures(folder: Path) -> Path:
    for i, name in enumerate(("cat", "cat", "dog", "dog", "dog")):
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(IMAGES[i]).save(folder / name / f"{i}.png")
    return folder


def test_all_files_that_cannot_be_read_are_named_at_once(tmp_path):
    folder = _pictures(tmp_path / "data")
    (folder / "cat/1.png").write_bytes(b"rubbish")
    (folder / "dog/3.png").write_bytes((folder / "dog/3.png").read_bytes()[:60])
    data = kd.data.image_folder(folder, size=8)
    assert data[0][0].shape == (3, 8, 8)
    with pytest.raises(KdsearchError) as error:
        data[1]
    first, *lines = str(error.value).splitlines()
    assert "of 5; image_folder(..., skip_unreadable=True) leaves them out: 2 problems" in first
    assert [line.strip().partition(": cannot be read as an image")[0] for line in lines] == [
        str(folder / name) for name in ("cat/1.png", "dog/3.png")
    ]


def test_files_that_cannot_be_read_can_be_left_out(tmp_path, recwarn):
    folder = _pictures(tmp_path / "data")
    assert len(kd.data.image_folder(folder, size=8, skip_unreadable=True)) == 5 and not len(recwarn)
    (folder / "dog/3.png").write_bytes(b"rubbish")
    with pytest.warns(
        UserWarning, match=r"1 of 5 files cannot be read and are left out: .*3\.png: cannot be read"
    ) as told:
        data = kd.data.image_folder(folder, size=8, skip_unreadable=True)
    assert len(told) == 1 and Path(told[0].filename).name == "test_files.py"
    assert [label for _, label in data] == [0, 0, 1, 1] and data.class_names == ("cat", "dog")
    (folder / "cat/0.png").write_bytes(b"rubbish")
    (folder / "cat/1.png").write_bytes(b"rubbish")
    with pytest.warns(UserWarning), pytest.raises(KdsearchError, match="no images in cat"):
        kd.data.image_folder(folder, size=8, skip_unreadable=True)


def test_a_huge_image_is_refused_before_it_is_decoded(tmp_path):
    Image.new("1", (10_000, 5_001)).save(tmp_path / "huge.png")
    with pytest.raises(KdsearchError, match=r"huge\.png: 10000 x 5001 pixels; allowed: 50,000,000 in all"):
        kd.data.load_images(tmp_path / "huge.png")


def test_an_image_of_one_row_is_not_made_larger_as_a_whole(tmp_path):
    (tmp_path / "data/thin").mkdir(parents=True)
    Image.new("L", (60_000, 1), 200).save(tmp_path / "data/thin/a.png")
    with torch.profiler.profile(profile_memory=True, acc_events=True) as seen:
        image, _ = kd.data.image_folder(tmp_path / "data", size=32)[0]
    assert image.shape == (3, 32, 32) and (image == 200).all()
    assert max(event.cpu_memory_usage for event in seen.key_averages()) < 10_000_000


def test_other_formats_under_the_name_of_an_image_are_not_read(tmp_path):
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    with pytest.raises(KdsearchError, match=r"a\.png: cannot be read as an image: cannot identify"):
        kd.data.load_images(tmp_path / "a.png")


# Search spaces and policies

SPACE = """[policy]
learning_rate = 0.1
prior_strength = 0.3
operations_per_image = 1
interval = 1
[operations.rotate]
limit = 20.0
"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a = " + "[" * 900, "not a TOML file of a search space: nested too deeply"),
        ("a = " + "[\n" * 9_000, "not a TOML file of a search space: nested too deeply"),
        (SPACE.replace("0.1", "9" * 5_000), "a line of more than 1,000 letters"),
        (
            SPACE.replace("0.1", "0x" + "f" * 900),
            r"\[policy.learning_rate\] input should be a valid number; got '[0-9]",
        ),
        ("#" * 100_000, "larger than 64,000 bytes"),
        ("\n".join(f"a{i}." + ".".join("a" * 490) + "=1" for i in range(9)), "11 problems"),
        (SPACE + "x = 2024-13-45", "not a TOML file"),
        (SPACE + "\ud800", "cannot be read: 'utf-8' codec"),
    ],
    ids=lambda value: value[:12],
)
def test_a_search_space_that_is_none_is_one_message(text, said, tmp_path):
    (tmp_path / "mine.toml").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(KdsearchError, match=rf"(?s)mine\.toml: .*{said}"):
        kd.SearchSpace.load(str(tmp_path / "mine.toml"))


def test_a_search_space_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "mine.toml").write_text(SPACE, encoding="utf-8-sig")
    assert kd.SearchSpace.load(str(tmp_path / "mine.toml")).limits == {"rotate": 20.0}


# The terminal


def _device(path: str) -> Path:
    if not Path(path).is_char_device():
        pytest.skip(f"this machine has no device {path}")
    return Path(path)


def _program(*arguments: object, **more) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "kdsearch", *map(str, arguments)], capture_output="stdout" not in more, **more
    )


def test_markup_and_control_characters_in_tables_are_shown_as_they_are_written(capsys):
    print_table(
        ["[bold]name"], [["[/b]"], ["[red]x[/red] :smile:"], ["\x1b]0;title\x07\x1b[31m\r"], ["\u202eevil\ud800"]]
    )
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == [
        "[bold]name",
        "[/b]",
        "[red]x[/red] :smile:",
        r"\x1b]0;title\x07\x1b[31m\r",
        r"\u202eevil\ud800",
    ]


def test_the_display_shows_markup_and_control_characters_as_they_are_written(capsys):
    display = Display()
    display.say("[/b] :smile: \x1b[31m \u202e")
    assert capsys.readouterr().out == "[/b] :smile: \\x1b[31m \\u202e\n"


def test_messages_and_names_do_not_steer_the_terminal(tmp_path, kdsearch, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "a[b]\x1b[31m\r\u202e.json"
    for path in (name, "b.json"):
        Path(path).write_text(Policy(["rotate"], 1, probability=len(path) / 30).freeze().to_json())
    said = kdsearch("diff", name, "b.json")
    assert r"a[b]\x1b[31m\r\u202e.json" in said and not {"\x1b", "\r", "\u202e"} & set(said)
    assert "\x1b" not in kdsearch("export", "gone\x1b[31m.json", "--to", "json", code=2)


def test_a_terminal_of_another_encoding_is_shown_what_it_can_show(tmp_path):
    for encoding, shown in (("ascii", rb"\u2192 \xb1"), ("latin-1", b"\\u2192 \xb1")):
        done = _program(
            "copy", "geometric", tmp_path / f"{encoding} → ±", env={**os.environ, "PYTHONIOENCODING": encoding}
        )
        assert (done.returncode, done.stderr) == (0, b"") and shown in done.stdout


def test_standard_output_that_takes_no_more_is_one_message():
    with _device("/dev/full").open("wb") as full:
        done = _program("studies", stdout=full, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (2, b"kdsearch: standard output: No space left on device\n")
    read, write = os.pipe()
    os.close(read)
    done = _program("studies", stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (2, b"kdsearch: standard output: Broken pipe\n")


def test_an_interruption_while_the_program_starts_is_no_traceback(tmp_path):
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt")
    for start in (["-m", "kdsearch"], ["-c", "from kdsearch.commands.cli import main; main()"]):
        environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(kd.__file__).parents[1]}"}
        done = subprocess.run([sys.executable, *start], capture_output=True, env=environment)
        assert (done.returncode, done.stderr) == (130, b"")


def test_samplers_and_pruners_are_shown_by_name(kdsearch):
    said = kdsearch("search", "--help")
    assert "<tpe|random>" in said and "<median|none>" in said


# The home folder


def test_the_home_folder_is_meant_wherever_a_path_is_given(tmp_path, monkeypatch, kdsearch, finished):
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    (home / "run").symlink_to(finished.folder)
    np.savez(home / "a.npz", images=IMAGES, labels=LABELS)
    (home / "mine.toml").write_text(SPACE)
    torch.save(nn.Linear(2, 2).state_dict(), home / "w.pt")
    _pictures(home / "data")
    policy = "~/run/trials/0000/policy.json"
    assert len(kd.frames("~/run")["studies"]) == 1 and len(kd.regions("~/run")) > 0
    kd.PolicySpec.load(policy)
    kd.SearchSpace.load("~/mine.toml")
    kd.networks.load_weights(nn.Linear(2, 2), "~/w.pt")
    assert len(kd.data.load_images("~/a.npz")) == 4 and len(kd.data.load_images("~/data")) == 2
    assert len(kd.data.load_arrays("~/a.npz")) == 20 and len(kd.data.image_folder("~/data", size=8)) == 5
    assert gather([policy])
    kdsearch("export", policy, "--to", "kornia", "--output=~/policy.py")
    kdsearch("diff", policy, policy, "-o", "~/diff.png")
    kdsearch("trajectory", policy, "-o", "~/trajectory.png")
    kdsearch("copy", "geometric", "~/mine")
    kdsearch("frames", "~/run", "--output=~/frames")
    assert {"policy.py", "diff.png", "trajectory.png", "mine", "frames"} <= {path.name for path in home.iterdir()}
    assert not list(here.iterdir())


# Exported policies


@pytest.mark.parametrize("to", ["torchvision", "kornia"])
def test_an_exported_policy_refuses_what_is_no_image_in_words_of_its_own(to):
    space: dict = {}
    exec(kd.export(Policy(["rotate", "brightness"], 2, probability=0.9).freeze(), to), space)
    policy, shape = space["policy"], (3, 12, 20) if to == "torchvision" else (2, 3, 12, 20)
    good = torch.rand(shape)
    assert policy(good).shape == shape and policy.eval()(good) is good
    wrong = {
        "got ndarray": (good.numpy(),),
        "got dict": ({"image": good},),
        "got tuple": ((good, good),),
        "got str": ("cat.png",),
        "got NoneType": (None,),
        "got 2 inputs": (good, good),
        "got 0 inputs": (),
    }
    if to == "torchvision":
        wrong["got Mask"] = (tv_tensors.Mask(torch.zeros(1, 12, 20, dtype=torch.uint8)),)
    for training in (True, False):
        policy.train(training)
        for said, given in wrong.items():
            with pytest.raises(TypeError, match=rf"^needs .*image.*{said}"):
                policy(*given)
    policy.train()
    for given in (4 * good, -good, good * float("nan"), (3 * good).bfloat16()):
        with pytest.raises(ValueError, match=r"^image values from .* to .*; allowed: .*\[0, 1\]"):
            policy(given)


# What a search has left


def test_a_checkpoint_that_is_no_file_or_claims_too_much_is_put_aside(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "ALWAYS", 2**10)
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("archive/data/0", bytes(10**6))
    os.mkfifo(tmp_path / "pipe.pt")
    monkeypatch.setattr(torch, "load", None)
    for name in ("bomb.pt", "pipe.pt"):
        with pytest.warns(UserWarning, match=rf"{name} cannot be read as a checkpoint \(KdsearchError\)"):
            assert Checkpoint.load(tmp_path / name, "x") is None


def test_a_search_removes_what_a_killed_one_was_writing(tmp_path):
    left = tmp_path / "trials/0000/.checkpoint.pt.0123456789abcdef.partial"
    left.parent.mkdir(parents=True)
    left.write_text("half")
    mine = [tmp_path / "notes.partial", tmp_path / ".film.mkv.partial", tmp_path / ".film.2.partial"]
    for path in mine:
        path.write_text("mine")
    theirs = tmp_path / "train/.student.safetensors.0123456789abcdef.partial"
    with lock_folder(theirs.parent, "training"):
        theirs.write_text("half")
        with lock_folder(tmp_path, "search"):
            assert not left.exists() and all(path.exists() for path in [*mine, theirs])


@pytest.fixture
def policy_file(tmp_path) -> Path:
    """A small policy."""
    path = tmp_path / "policy.json"
    path.write_text(Policy({"rotate": 30.0, "invert": None}, 1).freeze().to_json())
    return path


def test_many_rows_steer_a_terminal_no_more_than_few_do(capsys):
    print_table(["class \x1b[1m"], [[f"\x1b[31m{i}\u202e\n"] for i in range(MANY + 1)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == MANY + 2 and lines[:2] == [r"class \x1b[1m", r"\x1b[31m0\u202e"]


def test_a_program_without_standard_output_runs(policy_file, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdout", None)
    monkeypatch.setattr("sys.stderr", None)
    monkeypatch.setattr("sys.argv", ["kdsearch", "export", str(policy_file), "--to", "json", "-o", str(tmp_path / "a")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code and (tmp_path / "a").read_bytes() == policy_file.read_bytes()


def test_what_is_written_to_standard_output_is_the_file_alone(policy_file, capfd, monkeypatch):
    monkeypatch.setattr("sys.argv", ["kdsearch", "export", str(policy_file), "--to", "json", "-o", "/dev/stdout"])
    with pytest.raises(SystemExit):
        main()
    assert capfd.readouterr().out == policy_file.read_text()


def test_a_path_has_a_letter():
    with pytest.raises(KdsearchError, match=r"^'': a path has at least one letter$"):
        as_path("")
    assert as_path(".") == as_path(Path("")) == Path()


@pytest.mark.parametrize("name", ["$x^{b$", os.fsdecode(b"caf\xe9"), "\x1b[31m", "a\\b"])
def test_names_are_drawn_as_they_are(name, policy_file, tmp_path):
    spec = kd.PolicySpec.load(policy_file)
    save_figure(plot_diff(policy_diff(spec, spec), (name, name)), tmp_path / "diff.png")
    numbers = {"floor": 0.3, "keeps_floor": True, "stddev_ratio": 1.0, "stddev_ratio_se": 0.1,
               "teacher_loss_rise": 0.2, "teacher_loss_rise_se": 0.1}  # fmt: skip
    row = {"study": "s", "policy": as_text(name), "kind": "given", "split": "train", **numbers}
    save_figure(plot_scores(make_frame("scores", [row])), tmp_path / "scores.pdf")
    assert (tmp_path / "diff.png").stat().st_size and (tmp_path / "scores.pdf").stat().st_size


@pytest.fixture
def open_to_all():
    """A folder that everybody may enter, as those of pytest are not."""
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        yield Path(place)


@root
def test_what_may_not_be_looked_at_in_a_folder_of_images_is_said(open_to_all):
    folder, secret = open_to_all / "images", open_to_all / "secret"
    (folder / "a" / "deep").mkdir(parents=True)
    secret.mkdir(mode=0o700)
    Image.new("RGB", (20, 20)).save(folder / "a" / "x.png")
    Image.new("RGB", (20, 20)).save(secret / "x.png")
    (folder / "a" / "link.png").symlink_to(secret / "x.png")
    assert len(kd.data.image_folder(folder, size=8)) == 2
    os.seteuid(65534)
    try:
        data = kd.data.image_folder(folder, size=8)
        with pytest.raises(KdsearchError, match=r"link\.png: Permission denied"):
            data[0]
        with pytest.warns(UserWarning, match=r"1 of 2 files .*link\.png: Permission denied"):
            assert len(kd.data.image_folder(folder, size=8, skip_unreadable=True)) == 1
        with pytest.raises(KdsearchError, match=r"link\.png: Permission denied"):
            load_images(folder / "a")
        os.seteuid(0)
        (folder / "a" / "deep").chmod(0o700)
        os.seteuid(65534)
        with pytest.raises(KdsearchError, match=r"a/deep: cannot be listed: Permission denied$"):
            kd.data.image_folder(folder, size=8)
        os.seteuid(0)
        (folder / "b").symlink_to(secret / "folder")
        os.seteuid(65534)
        with pytest.raises(KdsearchError, match=r"images/b: Permission denied$"):
            kd.data.image_folder(folder, size=8)
    finally:
        os.seteuid(0)
