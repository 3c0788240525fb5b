"""Files and paths as users give them: what is written and where, what is refused and how it is said."""

import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from kdsearch import files
from kdsearch.errors import KdsearchError
from kdsearch.files import as_path, read_text, write_bytes, write_text

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
