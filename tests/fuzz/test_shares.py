"""The suite's size is what the issue of speed allows, and the law sees what it forbids."""

import os
import time
from pathlib import Path

import law
import numpy as np
import pytest
from shares import SHARES

from kdsearch.core.errors import KdsearchError


def test_five_hundred_inputs_and_ten_thousand():
    assert [sum(share[i] for share in SHARES.values()) for i in (0, 1)] == [500, 10_000]
    assert SHARES["preflights"][0] <= 25


def writes_beside(world):
    (world.root / "home" / "x").write_text("x")


def writes_by_number(world):
    number = os.open(world.root / "home" / "kept.txt", os.O_WRONLY)
    os.write(number, b"x")
    os.close(number)


def removes(world):
    os.unlink(world.root / "tmp" / "kept.txt")


def runs_code(world):
    os.system(f"touch {world.root}/canary")


def takes_memory(_):
    np.ones(10_000_000)


def takes_time(_):
    end = time.process_time() + 6
    while time.process_time() < end:
        pass


def asks_without_end(_):
    while True:
        pass


def raises(_):
    raise ValueError


@pytest.mark.parametrize(
    "breaks", [writes_beside, writes_by_number, removes, runs_code, takes_memory, raises], ids=lambda f: f.__name__
)
def test_the_law_sees_what_breaks_it(breaks, world, monkeypatch):
    monkeypatch.setattr(law, "MOST_BYTES", 50e6)
    with pytest.raises((AssertionError, ValueError, PermissionError)), law.holds(world, "broken"):
        breaks(world)
    law.COUNTS.pop("broken", None)


@pytest.mark.long
@pytest.mark.parametrize("breaks", [takes_time, asks_without_end], ids=lambda f: f.__name__)
def test_the_law_sees_what_takes_too_long(breaks, world):
    with pytest.raises(AssertionError, match=r"s of CPU"), law.holds(world, "broken"):
        breaks(world)
    law.COUNTS.pop("broken", None)


def test_the_law_lets_what_is_asked_be_written_and_refusals_pass(world):
    out = world.cwd / "out"
    with law.holds(world, "kept", out) as outcome:
        out.mkdir()
        Path(out / "x").write_text("x")
        raise KdsearchError("no")
    assert outcome.refused == "no"
    law.COUNTS.pop("kept")
