"""Run folders with a file that is not what a search wrote: a sentence that names it; nothing is written by reading."""

import json
import signal
import sys
from io import StringIO

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from law import holds
from shares import inputs
from strategies import (
    Cut,
    Drop,
    Flip,
    Insert,
    Put,
    Rename,
    Twice,
    Zero,
    as_json,
    bomb,
    bytes_edits,
    edited_bytes,
    edited_tree,
    header,
    json_text,
    value_edits,
)

import kdsearch as kd
from kdsearch.analysis.compare import describe_outcome
from kdsearch.commands.cli import main

FILES = (
    "study.json", "confirmation.json", "study.db", "trials/0000/result.json", "trials/0000/epochs.jsonl",
    "trials/0000/policy.json", "trials/0000/regions.json", "trials/0000/samples.npz", "references/start/result.json",
    "references/start/epochs.jsonl", "references/identity/regions.json", "references/trivial/policy.json",
)  # fmt: skip
READERS = (
    "frames",
    "frames",
    "frames",
    "status",
    "status",
    "regions",
    "sheet",
    "export",
    "trajectory",
    "diff",
    "report",
)


def put(world, run_folder, name: str, content: bytes | None) -> None:
    """The run folder with one file that is another, or that is not there."""
    world.clear()
    for path, own in run_folder.items():
        if path != name or content is not None:
            file = world.given / "run" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content if path == name else own)


def edited_file(name: str, own: bytes, values, edits) -> bytes | None:
    """A file of a run folder with edits: of its values where it has JSON in it, then of its bytes; None: it is gone."""
    if edits is None:
        return None
    if name.endswith(".json"):
        own = as_json(edited_tree(json.loads(own), values)).encode()
    elif name.endswith(".jsonl"):
        lines = [json.loads(line) for line in own.splitlines()]
        own = "".join(as_json(edited_tree(line, values)) + "\n" for line in lines).encode()
    return edited_bytes(own, edits)


def read(world, reader: str) -> str | None:
    """What a command or a function makes of the run folder; why it was refused."""
    folder = world.given / "run"
    if reader == "frames":
        tables = kd.frames(folder)
        describe_outcome(tables)
        if not tables["regions"].empty:
            kd.regions(folder)
        return None
    if reader == "report":
        kd.report(folder)
        return None
    more = {
        "sheet": ["-o", "sheet.png", "--most", "1"],
        "export": ["--to", "torchvision", "-o", "policy.py"],
        "trajectory": ["-o", "trajectory.png"],
        "diff": [str(folder)],
    }
    return command(reader, str(folder), *more.get(reader, []))


def command(*arguments: str) -> str | None:
    """A command in this process: what it says of a mistake, or None.

    Raises:
        AssertionError: it ends with a code that says nothing.
    """
    kept = sys.argv, sys.stdout, sys.stderr
    interrupts = signal.getsignal(signal.SIGINT)  # which an interrupted command ignores from then on
    sys.argv, sys.stdout, sys.stderr = ["kdsearch", *arguments], StringIO(), StringIO()
    try:
        main()
        code, said = 0, ""
    except SystemExit as ended:
        code, said = ended.code or 0, sys.stderr.getvalue()
    finally:
        sys.argv, sys.stdout, sys.stderr = kept
        signal.signal(signal.SIGINT, interrupts)
    assert code in (0, 2, 3, 130), f"exit {code}: {said}"
    assert "Traceback" not in said, said
    return (said or f"exit {code}") if code else None


@pytest.fixture(scope="module", autouse=True)
def warm(world, run_folder):
    put(world, run_folder, "", None)
    for reader in {*READERS, "report"}:
        assert read(world, reader) is None


@inputs("run folders")
@given(
    name=st.sampled_from(FILES),
    values=value_edits(json_text, most=2),
    edits=st.just(()) | bytes_edits | st.none(),
    reader=st.sampled_from(READERS),
)
@example("study.json", (), (), "frames")
@example("study.json", (), (), "report")
@example("study.json", (Put(0, "{}"),), (), "frames")
@example("study.json", (Put(0, "[]"),), (), "status")
@example("study.json", (Put(65535, '"sqlite:////tmp/elsewhere.db"'),), (), "status")
@example("confirmation.json", (Put(0, "{}"),), (), "frames")
@example("confirmation.json", (Put(30000, "deep list"),), (), "report")
@example("confirmation.json", (Drop(30000),), (), "report")
@example("trials/0000/regions.json", (Drop(3000),), (), "frames")
@example("trials/0000/regions.json", (Put(300, "0"), Rename(3000, "[/b]")), (), "regions")
@example("trials/0000/epochs.jsonl", (Put(30000, "5,000 digits"),), (), "frames")
@example("trials/0000/result.json", (Put(30000, "NaN"), Twice(0, "1")), (), "report")
@example("study.db", (), (Cut(0),), "status")
@example("study.db", (), (Zero(9000, 500), Flip(900, 1), Insert(0, b"\0")), "frames")
@example("trials/0000/samples.npz", (), (Cut(30000),), "sheet")
@example("study.db", (), None, "status")
@example("trials/0000/policy.json", (), None, "report")
@example("trials/0000/regions.json", (), None, "report")
def test_any_file_of_a_run_folder(world, run_folder, name, values, edits, reader):
    put(world, run_folder, name, edited_file(name, run_folder[name], values, edits))
    asked = (world.given / "run" / "report.html",) if reader == "report" else (world.cwd,)
    with holds(world, "run folders", *asked) as outcome:
        outcome.refused = read(world, reader)
    if not values and edits == ():
        assert outcome.refused is None


def test_samples_that_unpack_to_three_gigabytes(world, run_folder):
    put(world, run_folder, "trials/0000/samples.npz", bomb("images.npy", header("3 GB"), 3 * 10**9))
    with holds(world, "run folders", world.given / "run" / "report.html") as outcome:
        read(world, "report")
    assert outcome.refused
