"""Benchmarks: each answers --help and has --json; the one for a GPU goes on where a part of it fails."""

import importlib
import sys
import time
from pathlib import Path

import pytest

from kdsearch.core.errors import user_call
from kdsearch.networks.teachers import Teacher

FOLDER = Path(__file__).parents[1] / "benchmarks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if "def main(" in path.read_text())
PARTS_OF_OTHERS = {"cifar10_gray", "common", "peers", "peers_on_cpu"}


@pytest.fixture
def load(monkeypatch):
    """Imports a benchmark as it is run: with its folder first on the path."""
    monkeypatch.syspath_prepend(str(FOLDER))
    before = {*sys.modules}
    yield importlib.import_module
    for name in {*sys.modules} - before & {path.stem for path in FOLDER.glob("*.py")}:
        del sys.modules[name]


def test_each_file_is_a_benchmark_or_part_of_one():
    assert {path.stem for path in FOLDER.glob("*.py")} == {*NAMES} | PARTS_OF_OTHERS


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_answers_help_and_has_json(name, load, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        load(name).main()
    assert ended.value.code == 0
    assert "--json" in capsys.readouterr().out


def test_a_part_that_fails_or_takes_too_long_is_a_row_and_the_others_go_on(load):
    gpu, told = load("gpu"), []

    def rows(*numbers, then=lambda: None):
        def part(sizes, seconds):
            yield from (gpu.Row(f"row {number}", number) for number in numbers)
            then()

        return part, 0.2

    def swallow():
        with pytest.raises(gpu.OutOfTime), gpu.time_box(0.05):
            time.sleep(5)
        time.sleep(5)  # the box around it still rings

    parts = {"good": rows(1.0), "bad": rows(2.0, then=lambda: 1 / 0), "slow": rows(then=swallow), "last": rows(3.0)}
    gpu.run_parts(parts, gpu.DRY, time.monotonic() + 60, told.append)
    assert [(row.part, row.value) for row in told] == [
        ("good", 1.0), ("bad", 2.0), ("bad", None), ("slow", None), ("last", 3.0),
    ]  # fmt: skip
    assert "ZeroDivisionError" in told[2].note and "out of time" in told[3].note
    gpu.run_parts({"late": rows(1.0)}, gpu.DRY, time.monotonic() - 1, told.append)
    assert told[-1].part == "late" and told[-1].value is None


def test_where_a_step_waits_for_the_device_is_found_through_what_wraps_it(load, monkeypatch):
    gpu, modes = load("gpu"), []
    monkeypatch.setattr("torch.cuda.synchronize", lambda *_: None)
    monkeypatch.setattr("torch.cuda.set_sync_debug_mode", modes.append)

    def step():
        with user_call("student"):
            raise RuntimeError("called a synchronizing CUDA operation")

    assert gpu.first_wait(step).startswith("errors.py:") and gpu.first_wait(lambda: None) is None
    with pytest.raises(ZeroDivisionError):
        gpu.first_wait(lambda: 1 / 0)
    assert modes == ["error", "default"] * 3


def test_the_stages_of_a_step_are_all_seen_and_the_hooks_taken_off(load):
    gpu = load("gpu")
    on = gpu.Stepper(gpu.make_pair("cpu", depths=(8, 8), batch=4))
    watch = gpu.Watch("cpu")
    with gpu.ExitStack() as hooks:
        watch.follow(on.distiller, hooks)
        on.student_step()
        seen = dict(watch.seconds)
    on.student_step()
    assert min(seen[stage] for stage in gpu.STAGES if stage not in ("data", "other")) > 0
    assert watch.seconds == seen


def test_rows_of_distill_ask_the_teacher_as_they_say(load, monkeypatch, tmp_path):
    distill, asked = load("distill"), []
    call = Teacher.__call__

    def counted(teacher, images, layers=()):
        asked.append((len(images), teacher.is_fused))
        return call(teacher, images, layers)

    monkeypatch.setattr(Teacher, "__call__", counted)
    monkeypatch.setattr(distill, "STEPS", 3)
    ways = distill.turns(distill.make_pair("cpu", depths=(8, 8), batch=4), tmp_path)
    assert {way.of for way in ways} <= {way.row for way in ways}
    images = {}
    for way in ways:
        if "JPEG" not in way.row and way.views == 2:
            if "warm" in way.row:
                way.call()
            asked.clear()
            way.call()
            images[way.row] = sum(count for count, _ in asked)
            assert all(fused for _, fused in asked) == (way.row != distill.BARE), way.row
    each, tried = 4 * distill.STEPS, images["identity, cold table"] - 4 * distill.STEPS
    assert images[distill.PLAIN] == 0  # it asks the network itself
    assert images[distill.BARE] == images["bare, teacher fused"] == images[distill.AFRESH] == 2 * each
    assert images["bare, warm table"] == each and images["identity, warm table"] == 0
    assert images["bare, cold table"] == 2 * each + tried and 0 < tried < 100
    assert images["a whole default run"] > images[f"{distill.AFRESH}, a policy step every 10"] > 2 * each


def test_a_folder_of_jpegs_has_the_images_of_a_pair(load, tmp_path):
    distill = load("distill")
    data = distill.make_pair("cpu", depths=(8, 8), batch=4).data
    folder = distill.write_folder(tmp_path, data)
    assert sorted(folder.labels) == sorted(data.labels.tolist()) and len(folder) == len(data)
    assert folder[0][0].shape == data.images[0].shape


@pytest.mark.long
def test_the_dry_run_of_all_parts_has_no_row_that_failed(load, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.argv", ["gpu", "--json", str(tmp_path / "rows.json")])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    load("gpu").main()
    out = capsys.readouterr().out
    assert "a dry run on the CPU" in out and "second view: policy" in out
    assert "failed" not in out and "out of time" not in out and "not there" not in out
