"""What a person sees beside the command line: records as they come, short reprs, pictures, a display in a notebook."""

from dataclasses import replace
from typing import Any

import pytest

import kdsearch as kd
from kdsearch.analysis import plots
from kdsearch.analysis.diff import policy_diff
from kdsearch.analysis.sheet import policy_sheet
from kdsearch.data.images import photographs
from kdsearch.distill.records import EpochRecord


@pytest.fixture(scope="module")
def shortest(tiny_study: kd.Study) -> kd.Study:
    """One trial."""
    budget = replace(tiny_study.budget, trials=1, epochs=2, steps=4, confirmation=1, look_operations=0)
    return replace(tiny_study, budget=budget)


def test_each_epoch_of_each_run_is_told_and_a_logger_that_fails_ends_nothing(
    shortest: kd.Study, tmp_path: Any, capsys: Any
) -> None:
    told: list[tuple[str, int, bool]] = []
    folder = tmp_path / "run"
    places = {name: f"references/{name}" for name in ("identity", "trivial", "start")} | {"trial 0": "trials/0000"}

    def on_record(run: str, record: EpochRecord) -> None:
        assert isinstance(record, EpochRecord)
        lines = (folder / places[run] / "epochs.jsonl").read_text().splitlines() if run in places else None
        told.append((run, record.epoch, lines is None or len(lines) == record.epoch))
        if len(told) < 3:
            raise (ValueError if len(told) == 1 else SystemExit)("no route to the logger")

    result = kd.search(shortest, out=folder, on_record=on_record)
    confirmed = [f"confirm {name}" for name in ("learned", "frozen", "identity", "trivial", "start")]
    runs = [*places, *(confirmed if (folder / "confirmation.json").exists() else [])]  # no student at chance is
    assert result.best is not None and told == [(run, epoch, True) for run in runs for epoch in (1, 2)]
    said = capsys.readouterr().out
    assert said.count("on_record") == 1
    assert "warning: on_record: ValueError: no route to the logger (test_display.py, line " in said


def test_an_interruption_in_a_logger_interrupts(shortest: kd.Study, tmp_path: Any) -> None:
    def on_record(run: str, record: EpochRecord) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kd.search(shortest, out=tmp_path / "run", quiet=True, on_record=on_record)


def test_what_cannot_be_called_is_refused_before_anything_is_done(shortest: kd.Study, tmp_path: Any) -> None:
    with pytest.raises(kd.KdsearchError, match=r"^search: on_record is '3'; allowed: a function of"):
        kd.search(shortest, out=tmp_path / "run", quiet=True, on_record=3)  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


PNG = b"\x89PNG"


def test_figures_show_themselves_in_a_notebook(finished: kd.Result) -> None:
    tables = kd.frames(finished.folder)
    assert finished.best is not None
    figures = [
        plots.plot_diff(policy_diff(finished.best, finished.best), ("a", "b")),
        plots.plot_sweeps(kd.regions(finished.folder)),
        plots.plot_trajectory(tables["policies"].query("run == 'trial 0'")),
        plots.curves(tables),
    ]
    assert all(callable(getattr(figure, "_repr_png_", None)) for figure in figures)
    assert figures[0]._repr_png_()[:4] == PNG


def test_a_sheet_without_images_is_that_of_the_command() -> None:
    spec = kd.Policy(["rotate", "saturation"], 1).freeze()
    shown = policy_sheet(spec)._repr_png_()
    assert shown[:4] == PNG and shown == policy_sheet(spec, photographs())._repr_png_()
