"""One network on one data set, a study before it is searched, and the test split of a run."""

import json
import random
import re
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import conftest
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import Subset

import kdsearch as kd
from kdsearch.analysis.compare import describe_outcome
from kdsearch.commands.evaluate import evaluate_run
from kdsearch.core.locks import lock_folder
from kdsearch.data.batches import known_labels

# One network on one data set


def state(network: nn.Module) -> list[object]:
    """Mode, gradient flags and numbers of a network."""
    tensors = [*network.parameters(), *network.buffers()]
    return [module.training for module in network.modules()] + [(v.requires_grad, v.tolist()) for v in tensors]


def drawn() -> tuple[float, float, float]:
    """The next number of each global generator."""
    return random.random(), float(np.random.rand()), torch.rand(()).item()  # noqa: NPY002


class Draws(nn.Module):
    """Draws while it answers, as a network with stochastic depth in evaluation mode does."""

    def forward(self, images):
        torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002
        return images.flatten(1)[:, :10]


def test_a_network_is_measured_with_nothing_but_data(tiny_study) -> None:
    network, data = tiny_study.teacher, tiny_study.search_validation
    found = kd.evaluate(network, data)
    right = (kd.networks.Teacher(network)(data.images).logits.argmax(1) == data.labels).double()
    assert found.value == pytest.approx(right.mean().item()) and 0.5 < found.value < 1
    assert found.value_se == pytest.approx((found.value * (1 - found.value) / 100) ** 0.5)
    assert repr(found) == f"{100 * found.value:.1f} ± {100 * found.value_se:.1f} % of 100 images"
    assert found == kd.evaluate(network, list(data), kd.Classification.of(10), 7, "cpu")


def test_what_is_measured_and_its_caller_stay_as_they_were() -> None:
    network = nn.Sequential(nn.Dropout(), nn.BatchNorm2d(1), Draws(), nn.Linear(10, 3)).train()
    network[3].weight.requires_grad_(False)
    network[1].eval()
    data, before = kd.data.ArrayData(torch.rand(20, 1, 4, 4), torch.arange(20) % 3), state(network)
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(3)
    wanted = drawn()
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(3)
    with torch.inference_mode():
        kd.evaluate(network, data)
    assert drawn() == wanted and state(network) == before


@pytest.mark.parametrize("form", ["tuple", "dict", "named"])
def test_whatever_has_logits_is_measured_normalised_or_not(form: str, tiny_study) -> None:
    class Wrapped(nn.Module):
        def forward(self, images):
            logits = tiny_study.teacher(images)
            return {
                "tuple": (logits, images),
                "dict": {"logits": logits, "maps": images},
                "named": namedtuple("Answer", "maps logits")(images, logits),
            }[form]

    wrapped = kd.networks.Normalised(Wrapped(), [0.0], [1.0])
    wanted = kd.evaluate(tiny_study.teacher, tiny_study.search_validation)
    assert kd.evaluate(wrapped, tiny_study.search_validation) == wanted


def test_a_forward_has_at_most_the_images_it_is_given() -> None:
    sizes = []

    class Counted(nn.Module):
        def forward(self, images):
            sizes.append(len(images))
            return torch.eye(2)[:1].expand(len(images), 2)

    data = kd.data.ArrayData(torch.zeros(10, 1, 2, 2), torch.zeros(10, dtype=torch.int64))
    assert kd.evaluate(Counted(), data, kd.Classification.of(2), batch=4) == (1, 0, 10)
    assert sizes == [4, 4, 2]


def data(labels: list[object], size: int = 4) -> kd.data.ArrayData:
    return kd.data.ArrayData(torch.rand(len(labels), 1, size, size), torch.tensor(labels))


MISTAKES = {
    "network is the class Linear": (nn.Linear, data([0, 1]), {}),
    "lazy layers": (nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), data([0, 1]), {}),
    "items 0 to 2: labels from 0 to 20; allowed: 0 to 15 (16 classes)": (nn.Flatten(), data([0, 1, 20]), {}),
    "logits of shape (1, 4, 4) for an image are no classifier's": (nn.Identity(), data([0, 1]), {}),
    "16 logits; the task has 3 classes": (nn.Flatten(), data([0, 1]), {"task": kd.Classification.of(3)}),
    "the data set is empty": (nn.Flatten(), data([]), {}),
    "batch is 0; allowed: whole numbers, 1 or more": (nn.Flatten(), data([0]), {"batch": 0}),
    "device 'bogus' cannot be used": (nn.Flatten(), data([0]), {"device": "bogus"}),
    "task is '3'; allowed: a task, such as kd.Classification.of(3)": (nn.Flatten(), data([0]), {"task": 3}),
    "a DataLoader is no map-style data set": (nn.Flatten(), torch.utils.data.DataLoader([]), {}),
}


@pytest.mark.parametrize("said", MISTAKES)
def test_what_cannot_be_measured_is_one_sentence(said: str) -> None:
    network, images, more = MISTAKES[said]
    with pytest.raises(kd.KdsearchError) as caught:
        kd.evaluate(network, images, **more)
    assert said in str(caught.value) and "\n" not in str(caught.value)


# A study before it is searched


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def opening(text: str) -> list[str]:
    """What is said of a study, up to the line that says what is about to be run; without times."""
    lines = text.partition(": about ")[0].splitlines()
    return lines[next(i for i, line in enumerate(lines) if line.startswith("looking at the study")) :]


def open_search(study: kd.Study, folder: Path, monkeypatch) -> None:
    """A search up to where its first run would begin."""

    def stop(*_: object) -> None:
        raise InterruptedError

    monkeypatch.setattr("kdsearch.commands.search._Search.references", stop)
    monkeypatch.setattr("kdsearch.commands.search._Search.finish", lambda search: None)
    with pytest.raises(kd.KdsearchError, match="InterruptedError"):
        kd.search(study, out=folder)


def test_a_search_opens_with_what_a_check_says_and_takes_the_teacher_that_it_trained(
    tiny_study, teacher, tmp_path, capsys, monkeypatch
) -> None:
    trained = []
    study = replace(tiny_study, teacher=kd.Recipe(teacher, trained.append), budget=kd.Budget(2, 3, 4, 4, 1))
    found = kd.check(study, out=tmp_path / "run")
    said = capsys.readouterr().out
    assert said.endswith("no student was trained; the teacher's weights are kept for the search\n")
    assert tree(tmp_path) == {"run/teacher.safetensors"}
    open_search(study, tmp_path / "run", monkeypatch)
    assert len(trained) == 1
    assert opening(said) == opening(capsys.readouterr().out)
    assert opening(said)[-1] == "2 trials of 3 epochs, 5 references, confirmation on 1 seed"
    assert f"left out: saturation ({found.dropped['saturation']})" in said and "saturation" not in found.operations
    assert all(f"warning: {warning}" in said for warning in found.warnings) and found.warnings
    assert "a training step takes about" in said and 0 < found.memory.needed < found.memory.available
    assert repr(found).startswith(f"Check(tiny: teacher {100 * found.teacher_accuracy:.1f} ± ")


def test_a_check_counts_runs_by_the_numbers_given_and_writes_nothing(tiny_study, tmp_path, capsys) -> None:
    found = kd.check(tiny_study, out=tmp_path / "run", trials=7, epochs=1, confirmation=1)
    assert (found.budget.trials, found.budget.epochs, found.budget.confirmation) == (7, 1, 1)
    assert found.seconds == pytest.approx(8 * found.seconds_per_trial + 11 * found.seconds_per_reference)
    assert capsys.readouterr().out.endswith("no student was trained; nothing was written\n")
    assert not [*tmp_path.iterdir()]


def test_a_check_refuses_what_a_search_refuses(tiny_study, tmp_path, kdsearch) -> None:
    with pytest.raises(kd.KdsearchError, match=r"(?s)study tiny: 2 problems.*epochs is 0.*batch is 1"):
        kd.check(replace(tiny_study, budget=kd.Budget(epochs=0, batch=1)), out=tmp_path)
    assert "did you mean 'digits'" in kdsearch("check", "digit", code=2)
    assert not [*tmp_path.iterdir()]


# The test split of a run


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy of a finished search."""
    return shutil.copytree(finished.folder, tmp_path / "run")


@pytest.fixture
def study(tiny_study) -> kd.Study:
    """Its study, with a test split that can be read."""
    return replace(tiny_study, test=kd.data.digits()[2].subset(torch.arange(100)))


def test_teacher_and_students_are_measured_on_the_test_split_and_each_reading_is_kept(run, study, capsys) -> None:
    before = kd.frames(run)
    rows = evaluate_run(run, study=study)
    said = capsys.readouterr().out
    trials = before["trials"].query("state == 'COMPLETE'")
    assert [*rows["run"]] == ["teacher", *trials["run"][trials["trial"].isna()], "trial 0", "trial 1"]
    student = kd.networks.load_weights(study.student(), run / "trials" / "0001" / "student.safetensors")
    wanted = {"teacher": kd.evaluate(study.teacher, study.test), "trial 1": kd.evaluate(student, study.test)}
    for name, found in wanted.items():
        (row,) = rows[rows["run"] == name].to_dict("records")
        assert (row["value"], row["value_se"], row["images"]) == pytest.approx(found[:3])
    assert {*rows["split"]} == {"test"} and {*rows["command"]} == {"kdsearch evaluate"}
    assert "read before" not in said and said.count("winner, selected on search-validation") == 1
    (winner,) = re.findall(r"^(trial \d) .*winner, selected", said, re.MULTILINE)
    assert winner == trials[trials["is_best"].fillna(False)]["run"].item()
    evaluate_run(run, study=study, quiet=True)
    evaluate_run(run, study=study)
    assert re.search(r"was read 2 times before, last on \d{4}-\d\d-\d\d \d\d:\d\d UTC by kdsearch evaluate: it is no",
                     capsys.readouterr().out)  # fmt: skip
    kept = kd.frames(run)["evaluations"]
    assert [*kept["split"]] == ["confirm"] * 14 + ["test"] * 3 * len(rows)
    assert kept["read_at"].nunique() == 3
    assert describe_outcome(kd.frames(run)) == describe_outcome(before)
    pd.testing.assert_frame_equal(before["comparisons"], kd.frames(run)["comparisons"])


def test_only_the_study_that_is_named_is_run_and_a_student_trained_there_is_measured(
    run, kdsearch, monkeypatch, study
) -> None:
    shutil.copytree(run / "trials" / "0001", run / "train")
    monkeypatch.setattr(conftest, "STUDY", study, raising=False)
    kept, named = run / "study.py", "evaluating runs the study: name it, --study STUDY"
    assert kdsearch("evaluate", run, code=2).endswith(f"{named}\n")
    kept.write_text("raise SystemError('the folder has named it')")
    assert kdsearch("evaluate", run, code=2).endswith(f"{named}; the copy that the search kept is {kept}\n")
    with pytest.raises(kd.KdsearchError, match="evaluating runs the study"):
        evaluate_run(run)
    kept.write_text("from conftest import STUDY as study\n")
    assert re.search(r"^train .*%.*%$", kdsearch("evaluate", run, "--study", kept), re.MULTILINE)


class Other(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(256, 10))


TEN = [f"digit {i}" for i in range(10)]
REFUSED = {
    "study tiny has no test split; allowed: Study(test=...)": {"test": None},
    "is a run of the study tiny, not of other": {"name": "other"},
    "study tiny has 11 classes, 10 when it was searched in": {"classes": [*TEN, "more"]},
    "study tiny has other names of its classes than": {"classes": TEN[::-1]},
    "allowed: the study with the student that identity has trained": {"student": Other},
    "test: item 2: labels from 10 to 10": {
        "test": kd.data.ArrayData(torch.rand(3, 1, 16, 16), torch.tensor([0, 1, 10]))
    },
    "test: item 0: an image of (1, 4, 4) after ones of (1, 16, 16)": {"test": data([0, 1])},
}


def by_name(logits, labels):
    """A metric."""
    return float(labels.double().mean())


REFUSED["study tiny has the metric by_name, not accuracy as when it was searched in"] = {"metric": by_name}
REFUSED["device 'bogus' cannot be used"] = {"device": "bogus"}


@pytest.mark.parametrize("said", REFUSED)
def test_a_study_that_is_not_that_of_the_run_is_one_sentence_and_no_reading(said: str, run, study) -> None:
    with pytest.raises(kd.KdsearchError) as caught:
        evaluate_run(run, study=replace(study, **REFUSED[said]), quiet=True)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert not (run / "test_readings.jsonl").exists()


def test_a_folder_without_students_and_torn_readings_are_said(run, study) -> None:
    line = '{"run": "teacher", "value": 1.0, "read_at": "2026-01-01T00:00:00Z", "command": 3}\n'
    (run / "test_readings.jsonl").write_text(line)
    with pytest.raises(kd.KdsearchError, match=r"test_readings\.jsonl: 0\.command: Input should be a valid string"):
        evaluate_run(run, study=study, quiet=True)
    for student in run.rglob("student.safetensors"):
        student.unlink()
    with pytest.raises(kd.KdsearchError, match="no student is kept there"):
        evaluate_run(run, study=study, quiet=True)


def test_images_that_are_not_new_are_warned_of(run, study, capsys) -> None:
    evaluate_run(run, study=replace(study, test=study.search_validation))
    assert "warning: 100.0% of the test images are in search-validation (the same items)" in capsys.readouterr().out


ROW = '{"run": "teacher", "value": 1.0, "read_at": "2026-01-01T00:00:00Z", "command": "an older version"}'


def test_a_reading_goes_on_a_line_of_its_own_after_a_last_line_without_an_end(run, study) -> None:
    (run / "test_readings.jsonl").write_text(ROW)
    read = len(evaluate_run(run, study=study, quiet=True))
    assert kd.frames(run)["evaluations"]["split"].tolist().count("test") == 1 + read


def test_another_test_split_is_said_and_each_row_tells_metric_and_images(run, study, capsys) -> None:
    (run / "test_readings.jsonl").write_text(f"{ROW}\n")  # which does not tell of what it was
    first = evaluate_run(run, study=study)
    assert "test split of this study was read before, on 2026-01-01 00:00 UTC by an older" in capsys.readouterr().out
    other = evaluate_run(run, study=replace(study, test=kd.data.digits()[2].subset(torch.arange(100, 150))))
    said = capsys.readouterr().out
    assert "was read before, on 2026-01-01 00:00" in said
    assert re.search(r"another test split than this one was read before, on .* UTC by kdsearch evaluate: values", said)
    assert first["digest"].nunique() == other["digest"].nunique() == 1
    assert first["digest"].iloc[0] != other["digest"].iloc[0]
    kept = [json.loads(line) for line in (run / "test_readings.jsonl").read_text().splitlines()]
    assert {row.get("metric") for row in kept[1:]} == {"accuracy"}
    evaluate_run(run, study=study)  # one copy of the images is as good as another
    assert "was read 2 times before" in capsys.readouterr().out


@pytest.mark.parametrize("read_at", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_a_time_that_is_no_time_in_utc_is_one_sentence(read_at: str, run, study) -> None:
    (run / "test_readings.jsonl").write_text(ROW.replace("2026-01-01T00:00:00Z", read_at))
    with pytest.raises(kd.KdsearchError, match=r"test_readings\.jsonl: 0\.read_at: .* 0001-01-01 to 9999-12-31 UTC"):
        evaluate_run(run, study=study, quiet=True)


def test_a_reading_that_cannot_be_kept_is_refused_before_the_split_is_read(run, study) -> None:
    class Unread:
        def __len__(self):
            return 3

        def __getitem__(self, index):
            raise AssertionError("the test split was read")

    (run / "test_readings.jsonl").symlink_to("nowhere.jsonl")
    with pytest.raises(kd.KdsearchError, match=r"cannot write .*test_readings\.jsonl: it is a link to nowhere"):
        evaluate_run(run, study=replace(study, test=Unread()), quiet=True)


def test_whoever_evaluates_beside_another_is_told_what_may_be_at_work(run, study) -> None:
    with (
        lock_folder(run, "search"),
        pytest.raises(kd.KdsearchError, match="another search or evaluation is running in"),
    ):
        evaluate_run(run, study=study, quiet=True)


@pytest.mark.parametrize("policy", ["runs/digits/policy.json", kd.Policy({"rotate": 30.0}, 1)])
def test_what_is_no_spec_is_not_exported_and_told_how_to_become_one(policy) -> None:
    with pytest.raises(kd.KdsearchError, match=r"allowed: a PolicySpec, as of PolicySpec\.load\(path\), or of freeze"):
        kd.export(policy, "torchvision")


def test_a_subset_of_items_that_are_not_there_knows_no_labels() -> None:
    whole = data([0, 1, 2])
    assert known_labels(Subset(whole, [2, -1])) == [2, 2]
    assert known_labels(Subset(whole, [3])) is None and known_labels(Subset(whole, [-4])) is None
