"""The main job, end to end on tiny digits, with a test split that nobody may touch."""

import re
import shutil
from dataclasses import replace

import optuna
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import kdsearch as kd
from kdsearch.analysis.frames import COLUMNS, make_frame
from kdsearch.core.errors import KdsearchError
from kdsearch.core.maths import trial_seed
from kdsearch.study.hpo import open_search, run_trials
from kdsearch.study.preflight import preflight
from kdsearch.study.run import run_trial


def test_a_search_leaves_policy_student_report_and_frames(finished, tiny_study):
    assert finished.best is not None
    assert finished.student_path.is_file()
    assert "On 2 fresh seeds" in finished.sentence
    assert finished.best.operations["rotate"].unit == "degrees"
    page = (finished.folder / "report.html").read_text()
    assert finished.sentence.split(";")[0].replace("'", "&#39;") in page
    assert "data:image/png;base64," in page
    assert "http" not in page.replace("http-equiv", "")
    assert "digit 3" in page and "sampler tpe, pruner none" in page
    tiny_study.student().load_state_dict(load_file(finished.student_path))


def test_the_page_shows_the_parameters_of_trials_before_their_long_texts(finished):
    page = (finished.folder / "report.html").read_text().split("<h2>Trials</h2>")[1]
    heads = re.findall("<th>(.*?)</th>", page.split("</thead>")[0])
    names = [name.replace("_", " ") for name in kd.frames(finished.folder)["params"]["name"].unique()]
    assert heads[: 6 + len(names)] == ["run", "state", "value, %", "value se, %", "seconds", "origin", *names]
    assert "learning rate" in names


def test_the_disagreement_is_announced_where_it_is_looked_for(tiny_study, tmp_path, capsys):
    study = replace(tiny_study, budget=replace(tiny_study.budget, trials=1, epochs=2, confirmation=1))
    kd.search(study, out=tmp_path / "run")
    lines = capsys.readouterr().out.splitlines()
    said = [line.removesuffix("  looking for disagreement") for line in lines if line.endswith("disagreement")]
    assert said == ["identity", "trivial", "rand_augment", "labels_only", "start", "trial 0"]  # not in the confirmation
    assert "confirm learned  epoch 2/2" in "\n".join(lines)
    first = lines.index("trial 0  looking for disagreement")
    assert lines[first - 1].startswith("trial 0  epoch 2/2")
    after = [line for line in lines[first:] if "looking for disagreement" not in line]  # more of them take 10 seconds
    assert after[0].startswith("trial 0: ") and "% of clean images" in after[0]


def test_the_references_ran_through_the_same_loop(finished):
    tables = kd.frames(finished.folder)
    references = tables["trials"].query("origin == 'reference'")
    assert list(references["run"]) == ["identity", "trivial", "rand_augment", "labels_only", "start"]
    assert references["value"].notna().all()
    start = tables["policies"].query("run == 'start'")
    assert set(start["probability"].round(6)) == {0.2}
    assert set(tables["evaluations"]["run"]) == {
        "learned", "frozen", "identity", "trivial", "rand_augment", "labels_only", "start",
    }  # fmt: skip
    assert (tables["evaluations"].groupby("run")["seed"].nunique() == 2).all()


def test_frames_have_the_declared_columns_and_types_also_through_parquet(finished, tmp_path):
    tables = kd.frames(finished.folder)
    for name, columns in COLUMNS.items():
        assert len(tables[name]), name
        read = pd.read_parquet(finished.folder / "frames" / f"{name}.parquet")
        for table in (tables[name], read, make_frame(name, [])):
            assert {c: str(t) for c, t in table.dtypes.items()} == dict(columns), name
        make_frame(name, []).to_parquet(tmp_path / "empty.parquet", index=False)
        assert dict(pd.read_parquet(tmp_path / "empty.parquet").dtypes.astype(str)) == dict(columns)
    regions = tables["regions"].query("kind == 'operation'")
    assert (regions["n"] == 100).all()
    counts = regions[["both", "teacher_only", "student_only", "neither"]].sum(axis=1)
    assert (counts == regions["n"]).all()
    assert (regions["teacher_only_low"] <= regions["teacher_only_rate"]).all()
    assert (regions["teacher_only_rate"] <= regions["teacher_only_high"]).all()


def test_several_folders_give_one_set_of_frames(finished):
    one, two = kd.frames(finished.folder), kd.frames([finished.folder, finished.folder])
    assert len(two["epochs"]) == 2 * len(one["epochs"])


def test_a_second_search_resumes_and_a_finished_one_trains_nothing(finished, tiny_study, monkeypatch):
    def trained(*args, **kwargs):
        raise AssertionError("something was trained again")

    monkeypatch.setattr("kdsearch.commands.search.run_trial", trained)
    again = kd.search(tiny_study, out=finished.folder, quiet=True)
    assert again.sentence == finished.sentence
    assert again.best == finished.best


def test_an_interrupted_trial_is_replaced(tiny_study, tmp_path, monkeypatch):
    import kdsearch.commands.search as job

    real, calls = job.run_trial, []

    def interrupt_the_first_trial(ready, folder, **kwargs):
        if folder and folder.parent.name == "trials":
            calls.append(folder.name)
            if len(calls) == 1:
                raise KeyboardInterrupt
        return real(ready, folder, **kwargs)

    monkeypatch.setattr(job, "run_trial", interrupt_the_first_trial)
    study = replace(tiny_study, budget=replace(tiny_study.budget, trials=1, epochs=1, confirmation=0))
    with pytest.raises(KeyboardInterrupt):
        kd.search(study, out=tmp_path / "run", quiet=True)
    assert (tmp_path / "run" / "report.html").is_file()
    result = kd.search(study, out=tmp_path / "run", quiet=True)
    trials = kd.frames(tmp_path / "run")["trials"].query("origin != 'reference'")
    assert list(trials["state"]) == ["FAIL", "COMPLETE"]
    assert list(trials["fail_reason"].fillna("")) == ["interrupted", ""]
    assert result.best is not None


def test_a_search_of_another_study_is_refused_with_the_differences(finished, tiny_study):
    other = replace(tiny_study, label_weight=2.0)
    with pytest.raises(KdsearchError, match=r"label weight: stored 1\.0, now 2\.0"):
        kd.search(other, out=finished.folder, quiet=True)


def test_a_diverging_student_ends_the_search_with_a_sentence(tiny_study, tmp_path):
    def explode(parameters):
        return torch.optim.SGD(parameters, lr=1e30)

    budget = replace(tiny_study.budget, trials=2, epochs=1)
    study = replace(tiny_study, optimizer=explode, budget=budget)
    result = kd.search(study, out=tmp_path / "run", quiet=True)
    assert result.best is None
    assert result.sentence.startswith("No trial finished (2 pruned, 0 failed)")
    tables = kd.frames(tmp_path / "run")
    assert tables["trials"].query("origin != 'reference'")["fail_reason"].str.startswith("nan").all()


def test_a_programming_error_in_the_first_trial_ends_the_search_at_once(tiny_study, tmp_path, monkeypatch):
    import kdsearch.commands.search as job

    real = job.run_trial

    def broken(ready, folder, **kwargs):
        if folder and folder.parent.name == "trials":
            raise ZeroDivisionError("a mistake of the user's")
        return real(ready, folder, **kwargs)

    monkeypatch.setattr(job, "run_trial", broken)
    study = replace(tiny_study, budget=replace(tiny_study.budget, epochs=1, confirmation=0))
    with pytest.raises(ZeroDivisionError):
        kd.search(study, out=tmp_path / "run", quiet=True)
    trials = kd.frames(tmp_path / "run")["trials"].query("origin != 'reference'")
    assert list(trials["fail_reason"]) == ["ZeroDivisionError: a mistake of the user's"]


def test_the_folder_alone_is_enough_after_it_has_moved(finished, tmp_path, kdsearch, monkeypatch):
    """Status, regions, frames, report and export need neither the study nor the place it ran in."""
    moved = tmp_path / "moved"
    shutil.copytree(finished.folder, moved)
    assert "2 complete" in kdsearch("status", moved)
    assert "rotate" in kdsearch("regions", moved, "--most", 70, "--picture", tmp_path / "regions.png")
    assert str(tmp_path / "csv" / "trials.csv") in kdsearch("frames", moved, "--to", "csv", "-o", tmp_path / "csv")
    kdsearch("report", moved, "--no-images")
    kdsearch("export", moved, "--to", "torchvision", "-o", tmp_path / "policy.py")
    assert "kornia" in kdsearch("export", moved / "trials/0000/policy.json", "--to", "kornia", "--which", "average")
    assert (tmp_path / "regions.png").stat().st_size > 10_000
    assert "Original images" not in (moved / "report_without_images.html").read_text()
    assert not [line for line in (tmp_path / "policy.py").read_text().splitlines() if "import kdsearch" in line]
    monkeypatch.chdir("/")
    kdsearch("report", moved)
    assert "Original images" in (moved / "report.html").read_text()


def test_the_best_trial_is_the_one_with_the_largest_value(finished):
    trials = kd.frames(finished.folder)["trials"].query("state == 'COMPLETE' and origin != 'reference'")
    assert trials.loc[trials["is_best"], "value"].item() == trials["value"].max() == finished.value


def test_teacher_weights_are_the_same_after_a_search(finished, tiny_study, teacher):
    assert finished.best is not None
    for (name, mine), other in zip(
        teacher().state_dict().items(), tiny_study.teacher.state_dict().items(), strict=True
    ):
        assert torch.equal(mine, other[1]), name


def test_a_run_repeats_bit_for_bit(tiny_study, tmp_path):
    ready = preflight(tiny_study, tmp_path).ready
    settings = ready.space.settings()
    students = []
    for disturbance in range(2):
        torch.rand(1 + disturbance)
        policy, steps = ready.policy(settings), ready.policy_steps(settings)
        outcome = run_trial(ready, None, policy=policy, policy_steps=steps, seed=3)
        students.append({**outcome.student.state_dict(), **policy.state_dict()})
    assert all(torch.equal(value, students[1][name]) for name, value in students[0].items())


def test_a_trial_left_running_by_a_killed_process_is_marked_and_replaced(tiny_study, tmp_path):
    study = replace(tiny_study, budget=replace(tiny_study.budget, trials=1, epochs=1, confirmation=0))
    kd.search(study, out=tmp_path / "run", quiet=True)
    url = f"sqlite:///{tmp_path / 'run' / 'study.db'}"
    optuna.load_study(study_name=None, storage=url).ask()  # what a SIGKILL leaves
    study = replace(study, budget=replace(study.budget, trials=2))
    kd.search(study, out=tmp_path / "run", quiet=True)
    trials = kd.frames(tmp_path / "run")["trials"].query("origin != 'reference'")
    assert list(trials["state"]) == ["COMPLETE", "FAIL", "COMPLETE"]
    assert trials["fail_reason"].iloc[1] == "interrupted"


def test_the_value_is_the_accuracy_of_the_kept_student_on_search_validation(finished, tiny_study):
    student = tiny_study.student()
    student.load_state_dict(load_file(finished.student_path))
    task = kd.Classification.of(tiny_study.classes)
    assert kd.evaluate(student, tiny_study.search_validation, task, 32, "cpu").value == pytest.approx(finished.value)


def test_a_search_that_is_done_says_so_and_foresees_nothing(finished, tiny_study, tmp_path, capsys):
    folder = tmp_path / "done"
    shutil.copytree(finished.folder, folder)
    kd.search(tiny_study, out=folder)
    said = capsys.readouterr().out
    assert "all of it is done; nothing is left to train" in said
    assert "about" not in said.split("\n\n")[0] and "confirming" not in said


HELD = """
summary = "two operations, and no policy step"
[policy]
interval = 1000
learning_rate = 0.1
prior_strength = 0.3
operations_per_image = 2
probability = { low = 0.1, high = 0.4, default = 0.2 }
[operations.rotate]
limit = 30.0
[operations.scale]
limit = 0.3
"""


@pytest.mark.parametrize("paired", [True, False])
def test_trials_have_the_seed_of_the_references_or_each_its_own(tmp_path, paired):
    def run(trial, report):
        return float(trial.number)

    space = kd.SearchSpace.load("default")
    opened = open_search(f"sqlite:///{tmp_path / 'x'}.db", {}, {}, sampler="random", pruner="none", epochs=1)
    run_trials(opened, space, run, target=3, seed=5, paired=paired, sampler="random", on_trial=lambda event: None)
    seeds = [trial.user_attrs["seed"] for trial in opened.get_trials()]
    assert seeds[0] == trial_seed(5, 0) and len({*seeds}) == (1 if paired else 3)


def test_a_paired_trial_starts_as_the_references_do_and_sees_the_same_batches(tiny_study, tmp_path):
    """A policy that stays as it starts, in a trial: the reference `start`, bit for bit."""
    space = tmp_path / "held.toml"
    space.write_text(HELD)
    budget = replace(tiny_study.budget, trials=1, confirmation=0)
    found = kd.search(replace(tiny_study, space=str(space), budget=budget), out=tmp_path / "run", quiet=True)
    values = kd.frames(found.folder)["epochs"].set_index("run")["distillation_loss"]
    assert [*values["trial 0"]] == [*values["start"]]
