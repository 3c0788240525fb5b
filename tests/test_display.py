"""What a person sees beside the command line: records as they come, short reprs, pictures, a display in a notebook."""

import io
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from torch.utils.data import Subset

import kdsearch as kd
from kdsearch.analysis import plots
from kdsearch.analysis.compare import describe_outcome
from kdsearch.analysis.diff import policy_diff
from kdsearch.analysis.scale import scale_columns
from kdsearch.analysis.sheet import policy_sheet
from kdsearch.augment.export import export
from kdsearch.commands.display import Display
from kdsearch.core.terminal import on_command_line
from kdsearch.data.batches import ArrayData, known_labels, varied_batch
from kdsearch.data.folders import image_folder
from kdsearch.data.images import photographs
from kdsearch.data.items import picture_tensor
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
    references = ("identity", "trivial", "rand_augment", "labels_only", "start")
    places = {name: f"references/{name}" for name in references} | {"trial 0": "trials/0000"}

    def on_record(run: str, record: EpochRecord) -> None:
        assert isinstance(record, EpochRecord)
        lines = (folder / places[run] / "epochs.jsonl").read_text().splitlines() if run in places else None
        told.append((run, record.epoch, lines is None or len(lines) == record.epoch))
        if len(told) < 3:
            raise (ValueError if len(told) == 1 else SystemExit)("no route to the logger")

    result = kd.search(shortest, out=folder, on_record=on_record)
    runs = [*places]
    if (folder / "confirmation.json").exists():  # no student at chance is confirmed
        runs += [f"confirm {name}" for name in ("learned", "frozen", "start")]
        runs[len(references) : len(references)] = [f"confirm {name}" for name in references[:-1]]  # before the trial
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


ODD = "<b>&\x1b[31m"  # a name that would change a page or a terminal


def test_reprs_are_short_and_print_no_tensors(tiny_study: kd.Study, finished: kd.Result) -> None:
    policy = kd.Policy(["rotate", "invert", "solarize", "noise"], 2)
    assert repr(policy) == "Policy(2 of 4 operations an image, fill zero)"
    assert repr(policy.freeze()) == str(policy.freeze())
    assert repr(policy.freeze()) == (
        "PolicySpec(2 of 4 operations an image: rotate on 25 %, solarize on 25 %, invert on 25 %, ...)"
    )
    assert repr(kd.Policy(["invert"], 1, probability=0.001).freeze()) == (
        "PolicySpec(1 of 1 operation an image: none ever applied)"
    )
    assert repr(tiny_study.train) == "ArrayData(100 images, 1x16x16 float32)"
    first, second = repr(finished).splitlines()
    assert first.startswith(f"Result('{finished.folder}', value 0.") and "PolicySpec(" in first
    assert second == finished.sentence
    told = repr(tiny_study)  # and the test split is not touched
    assert "tensor(" not in told and "\n" not in told and len(told) < 500
    for part in ("'tiny'", "test=Untouchable", "teacher=Sequential", "student=quick_student", "2 trials of 3 epochs"):
        assert part in told
    assert "budget=int" in repr(replace(tiny_study, budget=3, loss=None, name=ODD))  # type: ignore[arg-type]


def test_what_a_notebook_shows_is_escaped(tiny_study: kd.Study, finished: kd.Result, tmp_path: Any) -> None:
    for name in ("cat", "<i>dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(policy_sheet(kd.Policy(["rotate"], 1).freeze(), most=0)._repr_png_())
    folder = image_folder(tmp_path, size=16)
    assert repr(folder) == "ImageFolder(2 images in 2 classes, made 3x16x16)"
    odd = [
        replace(tiny_study, name=ODD, classes=[ODD, "b"], space=ODD),
        replace(finished, sentence=ODD, folder=tmp_path / "<i>"),
        replace(finished, best=None, value=None, student_path=None),
        kd.Policy(["rotate", "invert"], 1),
        tiny_study.train,
        folder,
    ]
    for thing in odd:
        page = thing._repr_html_()
        assert "<b>&" not in page.replace("<b>&lt;", "") and "<i>" not in page and "\x1b" not in page
        assert page.count("<table") == page.count("</table") and page.count("<p>") == page.count("</p>") > 0
    assert folder._repr_html_().count("<img") == 2 and tiny_study.train._repr_html_().count("<img") == 8
    assert "±" in odd[3]._repr_html_() and "no trial finished" in repr(odd[2])
    empty = ArrayData(torch.zeros(0, 1, 4, 4), torch.zeros(0))
    many = ArrayData(torch.zeros(3, 5, 4, 4), torch.zeros(3, dtype=torch.int64))
    assert all("<img" not in data._repr_html_() for data in (empty, many))


class Told(torch.utils.data.Dataset):
    """A sorted data set with one image of its last class, which says its labels, and counts what is read."""

    def __init__(self, attribute: str) -> None:
        self.labels_ = [0] * 300 + [1] * 200 + [2]
        self.read: list[int] = []
        if attribute:
            setattr(self, attribute, self.labels_)

    def __len__(self) -> int:
        return len(self.labels_)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        self.read.append(index)
        return torch.full((1, 4, 4), index / 501), self.labels_[index]


@pytest.mark.parametrize("attribute", ["labels", "targets", ""])
def test_kept_images_are_one_of_each_class_first(attribute: str) -> None:
    data = Told(attribute)
    for given in (data, Subset(data, range(1, 501))):
        data.read.clear()
        before = torch.get_rng_state()
        batch = varied_batch(given, 4)
        assert torch.equal(batch.ids, varied_batch(given, 4).ids) and torch.equal(before, torch.get_rng_state())
        assert len({*batch.ids.tolist()}) == 4 and batch.target.tolist() == sorted(batch.target.tolist())
        if attribute:  # also the rare one, and no more are read
            assert {*batch.target.tolist()} == {0, 1, 2} and len(data.read) == 8
        else:
            assert {*batch.target.tolist()} == {0, 1}


def test_labels_that_are_no_plain_list_are_not_known() -> None:
    masks = ArrayData(torch.zeros(3, 1, 4, 4), torch.zeros(3, 4, 4))
    words = Told("")
    words.labels = ["a"] * 501
    assert known_labels(masks) is None and known_labels(words) is None and known_labels(Subset(words, [0])) is None
    assert len(varied_batch(masks, 2)) == 2


class Handle:
    """Stands for IPython's DisplayHandle."""

    def __init__(self) -> None:
        self.made, self.pages, self.texts = 0, list[str](), list[str]()

    def show(self, thing: Any, display_id: bool) -> "Handle":
        assert display_id is True
        self.made += 1
        return self

    def update(self, thing: Any) -> None:
        self.pages.append(thing._repr_html_())
        self.texts.append(repr(thing))


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> Handle:
    """A kernel of a notebook, as far as it is asked."""
    handle = Handle()
    shell = SimpleNamespace(kernel=None)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=handle.show))
    monkeypatch.setattr("kdsearch.commands.notebook.PAUSE", -1)
    return handle


def test_in_a_notebook_one_display_is_updated_in_place(cell: Handle, finished: kd.Result, capsys: Any) -> None:
    lines = [json.loads(line) for line in (finished.folder / "trials/0000/epochs.jsonl").read_text().splitlines()]
    with Display() as display:
        display.say(f"study {ODD}")
        for line in lines:
            display.epoch("trial 0", EpochRecord(**line), len(lines))
        display.look("trial 0", 50, 100)
        during = cell.pages[-1]
        display.say("the end")
    assert cell.made == 1 and capsys.readouterr().out == ""
    assert "looking for disagreement  50% of 100 images" in during and "<b>" not in during
    assert "study &lt;b&gt;" in during and "\x1b" not in during
    assert cell.texts[-1] == f"study {ODD}\nthe end" and "<table" not in cell.pages[-1]
    with Display() as display:
        for number in range(300):
            display.say(f"line {number}")
    assert cell.texts[-1].startswith("... 100 lines before these\nline 100\n") and cell.made == 2
    with Display(quiet=True) as display:
        display.say("nothing")
    assert cell.made == 2


def test_where_ipython_runs_in_a_terminal_lines_are_plain(
    cell: Handle, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: SimpleNamespace()))
    with Display() as display:
        display.say("a line")
    assert cell.made == 0 and capsys.readouterr().out == "a line\n"


@pytest.mark.parametrize("to", ["torchvision", "kornia"])
def test_an_exported_policy_says_what_it_does(to: str) -> None:
    spec = kd.Policy({"rotate": 30.0, "invert": None, "solarize": 0.5}, 2).freeze()
    names: dict[str, Any] = {}
    exec(export(spec, to), names)
    assert (
        repr(names["policy"])
        == """Policy(
  each image draws 2 of 3 operations
  rotate: probability 0.50, +-1.79 to 15
  solarize: probability 0.50, 0.0298 to 0.25
  invert: probability 0.50
)"""
    )


def test_options_are_called_as_whoever_runs_a_search_gives_them(finished: kd.Result) -> None:
    tables = kd.frames(finished.folder)
    tables["evaluations"] = tables["evaluations"].iloc[:0]
    assert "(confirmation=4 does it)" in describe_outcome(tables)
    with on_command_line():
        assert "(--confirmation 4 does it)" in describe_outcome(tables)


def test_what_is_transparent_is_black_and_what_is_opaque_as_it_was() -> None:
    colours = np.random.default_rng(0).integers(0, 255, (4, 4, 4), dtype=np.uint8)
    colours[..., 3] = [0, 128, 255, 255]
    image = PIL.Image.fromarray(colours)
    pixels = picture_tensor(image).movedim(0, -1).numpy()
    assert not pixels[:, 0].any() and np.array_equal(pixels[:, 2:], colours[:, 2:, :3])
    assert np.abs(pixels[:, 1].astype(int) - colours[:, 1, :3] * 128.0 / 255).max() <= 1
    assert np.array_equal(picture_tensor(image.convert("RGB")).movedim(0, -1).numpy(), colours[..., :3])
    gray = PIL.Image.fromarray(colours[..., 0])
    file = io.BytesIO()
    gray.save(file, format="png", transparency=int(colours[1, 1, 0]))  # that gray is transparent
    shown = picture_tensor(PIL.Image.open(file))
    assert shown.shape == (1, 4, 4) and shown[0, 1, 1] == 0 and shown[0, 0, 0] == colours[0, 0, 0]


def test_a_page_without_images_leaves_the_whole_one_as_it_is(finished: kd.Result, tmp_path: Any) -> None:
    run = shutil.copytree(finished.folder, tmp_path / "run")
    (run / "report.html").write_text("the whole one")
    assert kd.report(run, images=False) == run / "report_without_images.html"
    assert (run / "report.html").read_text() == "the whole one"


def test_tables_that_are_read_by_people_have_accuracies_in_percent(finished: kd.Result, kdsearch: Any) -> None:
    assert finished.value is not None
    head, *rows = kdsearch("status", finished.folder).splitlines()[1:]
    assert "value, %" in head and "value_se, %" in head
    assert any(f" {100 * finished.value:.3g} " in row for row in rows)
    kappa = kd.frames(finished.folder)["trials"]
    assert scale_columns(kappa, "kappa") is kappa


def test_a_notebook_without_widgets_is_not_told_of_them() -> None:
    """tqdm, which Optuna imports, warns in a kernel without ipywidgets; here a stand-in for that part of it does."""
    program = """if True:
        import importlib.machinery, sys, warnings
        warnings.simplefilter("always")

        class Loud:
            def find_spec(self, name, path=None, target=None):
                return importlib.machinery.ModuleSpec(name, self) if name == "tqdm.auto" else None
            def create_module(self, spec):
                return None
            def exec_module(self, module):
                import tqdm.std
                warnings.warn("IProgress not found. Please update jupyter and ipywidgets.")
                module.tqdm = tqdm.std.tqdm

        sys.meta_path.insert(0, Loud())
        import kdsearch as kd
        kd.search
        assert "tqdm.auto" in sys.modules
        warnings.warn("what a user is told")
    """
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stderr
    assert "IProgress" not in said and "what a user is told" in said


def test_interrupted_before_the_first_trial_there_is_a_report(
    tiny_study: kd.Study, tmp_path: Path, capsys: Any
) -> None:
    study = replace(
        tiny_study, budget=replace(tiny_study.budget, trials=1, epochs=1, confirmation=1, look_operations=0)
    )

    def stop(run: str, record: EpochRecord) -> None:
        if run in ("confirm trivial", "start"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kd.search(study, out=tmp_path / "run", on_record=stop)
    said = capsys.readouterr().out
    assert "no report" not in said and "No trial finished" in said
    assert (tmp_path / "run" / "report.html").exists()
