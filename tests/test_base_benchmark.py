"""Rows of `benchmarks/base.py`: each base with each second view, gone on with where they ended, paired by seed."""

import json
from argparse import ArgumentTypeError
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

import kdsearch as kd
from kdsearch.study.preflight import preflight
from kdsearch.study.ready import Ready

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def base(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("base")


@pytest.fixture(scope="module")
def ready(tiny_study: kd.Study, tmp_path_factory: pytest.TempPathFactory) -> Ready:
    test = kd.data.digits()[2].subset(torch.arange(60))
    return preflight(replace(tiny_study, test=test, base="auto"), tmp_path_factory.mktemp("tiny")).ready


def test_every_base_and_every_second_view_is_a_row_and_no_row_is_run_again(
    base: ModuleType, ready: Ready, tmp_path: Path
) -> None:
    file, seconds = tmp_path / "rows.jsonl", [f"auto/{second}" for second in base.SECONDS]
    others = ["bare/identity", "image/trivial", "r8/identity", "r64/identity", "floor/learned_4"]
    asked = [(name, 3) for name in (*seconds, *others)]
    first = list(base.run_rows(ready, 8, asked[:2], file))
    rest = list(base.run_rows(ready, 8, asked, file))
    rows = base.read_rows(file)
    assert [row["row"] for row in rows] == [name for name, _ in asked] and rows == [*first, *rest]
    assert all({row["study"], row["steps"], row["seed"]} == {"tiny", 8, 3} for row in rows)
    assert all(0 <= row[key] <= 100 for row in rows for key in ("clean", "shifted", "kept"))
    found = {row["row"]: (row["clean"], row["shifted"], row["kept"]) for row in rows}
    assert len({*found.values()}) >= len(found) - 1  # each does something else; the floor may be far away
    assert not list(base.run_rows(ready, 8, asked, file))
    again = next(base.run_rows(ready, 8, [("r8/identity", 3)], None))
    assert (again["clean"], again["shifted"], again["kept"]) == found["r8/identity"]
    assert again["base_versions"] == 8 and again["second_from"] == "base" and again["second"] == "identity"


def test_a_base_is_filled_as_was_found_or_by_reflection(base: ModuleType, ready: Ready) -> None:
    view = ready.base_view
    assert view.spec is not None
    zero = replace(ready, base_view=replace(view, spec=view.spec.model_copy(update={"fill": "zero"})))
    found = [base.over_base(zero, base.BASES[name], 8).base_view.base.fill for name in ("auto", "reflect")]
    assert found == ["zero", "reflect"]


def test_second_views_are_what_they_are_called(base: ModuleType, ready: Ready) -> None:
    def view(second: str) -> tuple[kd.Policy | None, kd.PolicySteps | None]:
        found: tuple[kd.Policy | None, kd.PolicySteps | None] = base.second_view(ready, second)
        return found

    count = len(ready.space.limits)
    assert view("identity") == (None, None)
    rand, steps = view("rand")
    assert isinstance(rand, kd.Policy) and steps is None
    draw = rand.draw(50, torch.Generator().manual_seed(0))
    assert draw.chosen.shape == (50, 2) and bool(draw.gates.all())
    assert torch.allclose(draw.magnitudes.abs(), 0.6 * rand.limit[draw.chosen])
    start, steps = view("start_all")
    assert isinstance(start, kd.Policy) and start.operations_per_image == count and steps is None
    assert torch.allclose(start.rate, torch.full((count,), 0.2).double())
    learned, steps = view("learned_4")
    assert isinstance(learned, kd.Policy) and learned.operations_per_image == 4 and steps is not None


def test_the_table_pairs_rows_by_seed(base: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    clean = {"bare/trivial": {1: 90.0, 2: 92.0, 3: 70.0}, "auto/trivial": {2: 95.0, 1: 92.0}, "r8/trivial": {1: 91.0}}
    rows = [
        {"study": "tiny", "steps": 12, "row": name, "seed": seed, "clean": value, "shifted": 1.0, "kept": 2.0}
        | {"seconds": 5.0}
        for name, values in clean.items()
        for seed, value in values.items()
    ]
    base.show(rows, [*clean], ["bare/trivial", "auto"])
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if "/trivial " in line[:15]}
    assert "+2.5 (-3.9 to +8.9)" in lines["auto/trivial"]  # 2 and 3 points, of the seeds that both have
    assert "-1.0" in lines["r8/trivial"] and "84.0 ± 7.0" in lines["bare/trivial"]


def test_a_row_that_is_none_is_refused_with_those_there_are(base: ModuleType) -> None:
    assert base.names_of_rows("bare/identity,r16/twice") == ["bare/identity", "r16/twice"]
    for name in ("bare/twice", "auto/trivia", "auto"):
        with pytest.raises(ArgumentTypeError, match=f"row '{name}'; allowed: one of bare, auto"):
            base.names_of_rows(name)


def test_the_floor_may_count_from_the_loss_on_base_views(base: ModuleType, ready: Ready) -> None:
    rise = ready.base_view.loss_rise
    assert rise is not None and rise > 0.01
    found = {name: base.over_base(ready, base.BASES[name], 8).clean.loss for name in ("auto", "floor")}
    assert found == {"auto": ready.clean.loss, "floor": ready.clean.loss + rise}


def test_rows_of_a_file_are_shown_without_running_any(
    base: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"study": "digits", "row": "auto/identity", "seed": 500, "clean": 1.0, "shifted": 1.0, "kept": 2.0}
    lines = [json.dumps({**row, "steps": steps, "seconds": steps}) for steps in (900, 300, 900)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr("sys.argv", ["base", "--show", "--json", str(tmp_path / "rows.jsonl")])
    base.main()
    out = capsys.readouterr().out
    assert "digits, 300 steps" in out and out.count("auto/identity") == 1
    assert "300" in next(line for line in out.splitlines() if "auto/identity" in line)
