"""The command line: what it says to a person, what it refuses, and what it loads."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kdsearch.augment.export import EXPORTERS
from kdsearch.augment.operations import TABLE as OPERATIONS
from kdsearch.augment.policy import Policy
from kdsearch.commands.cli import app
from kdsearch.commands.policies import Target
from kdsearch.losses.objectives import TABLE as OBJECTIVES
from kdsearch.losses.table import TABLE as LOSSES
from kdsearch.study import catalogue

COMMANDS = [command.callback.__name__ for command in app.registered_commands]
STUDY = """
import torch
import kdsearch as kd
images, labels = {images}, torch.arange(64) % {classes}
data, other = kd.data.ArrayData(images, labels), kd.data.ArrayData(1 - images, labels)
teacher = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, {outputs}))
with torch.no_grad():
    teacher[1].weight.copy_(torch.randn({outputs}, 256, generator=torch.Generator().manual_seed(0)))
study = kd.Study(name="mine", train=data, search_validation=other, teacher={teacher}, classes=10,
                 student=lambda: kd.networks.small_convnet(2), {more})
"""
GOOD = {
    "images": "torch.rand(64, 1, 16, 16)",
    "classes": 10,
    "outputs": 10,
    "teacher": "teacher",
    "more": "",
}


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Writes a study file with something wrong in it; the working directory is empty beside it."""
    monkeypatch.chdir(tmp_path)

    def write(**wrong: object) -> str:
        (tmp_path / "mine.py").write_text(STUDY.format(**{**GOOD, **wrong}))
        return "./mine.py"

    return write


@pytest.mark.parametrize("arguments", [["--help"], *([command, "--help"] for command in COMMANDS)], ids=" ".join)
def test_help_is_there_and_loads_no_torch(arguments):
    code = f"""import sys; sys.argv = ['kdsearch', *{arguments}]
from kdsearch.commands.cli import main
try:
    main()
finally:
    print(sorted({{'torch', 'optuna', 'pandas', 'kornia'}} & set(sys.modules)), file=sys.stderr)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr.strip() == "[]"
    assert "Usage: kdsearch" in done.stdout


@pytest.mark.parametrize("name", ["spaces", "studies", "operations", "objectives", "losses"])
def test_what_is_shipped_is_listed(name, kdsearch):
    listed = kdsearch(name)
    table = {
        "spaces": catalogue.shipped_names("search_spaces"),
        "studies": catalogue.shipped_names("studies"),
        "operations": ["rotate"],
        "objectives": list(OBJECTIVES),
        "losses": list(LOSSES),
    }
    assert all(shipped in listed for shipped in table[name])


def test_operations_are_listed_with_unit_and_limits(kdsearch):
    lines = kdsearch("operations").splitlines()
    row = next(line for line in lines if line.startswith("rotate"))
    assert row.split()[:7] == ["rotate", "degrees", "30", "180", "±", "1", "exact"] and "AutoAugment" in row
    assert len(lines) - 1 == len(OPERATIONS) >= 24


def test_objectives_are_listed_with_what_they_seek_and_the_weight_they_start_with(kdsearch):
    lines = kdsearch("objectives").splitlines()
    rows = [next(line for line in lines if line.startswith(name)) for name in ("student_wrong", "divergence")]
    assert [" 1 " in row for row in rows] == [True, False]
    assert "the student gets them wrong" in rows[0] and "-2 log K to 0" in rows[1]
    assert len(lines) - 1 == len(OBJECTIVES) == 4


def test_losses_are_listed_with_formula_and_status(kdsearch):
    lines = kdsearch("losses").splitlines()
    rows = [next(line for line in lines if line.startswith(name)) for name in ("dist", "nfd")]
    assert "T^2 (1 - r over classes + 1 - r over images)" in rows[0] and "NeurIPS 2022" in rows[0]
    assert ["relational" in row for row in rows] == [True, False]
    assert ["reconstruction" in row for row in rows] == [False, True]
    assert len(lines) - 1 == len(LOSSES) == 9


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"images": "torch.rand(64, 1, 16, 16) * 2"}, r"image values from .* to .*; allowed: \[0, 1\]"),
        ({"images": "torch.full((64, 1, 16, 16), float('nan'))"}, "an image contains NaN or infinity"),
        (
            {"images": "torch.rand(64, 5, 16, 16)"},
            r"images of shape \(5, 16, 16\); allowed: \(1, H, W\) or \(3, H, W\)",
        ),
        ({"images": "torch.rand(0, 1, 16, 16)"}, "64 labels for 0 images; needed: one each"),
        ({"classes": 11}, r"item 10: labels from 10 to 10; allowed: 0 to 9 \(10 classes\)"),
        ({"outputs": 12}, "teacher: 12 logits; the task has 10 classes"),
        ({"outputs": 10}, "the teacher is right on .* chance is 10.0%"),
        ({"teacher": "torch.load('nowhere.pt')"}, r"mine.py, line \d+: FileNotFoundError: .*nowhere.pt"),
        ({"more": "space='defalt'"}, "unknown search space 'defalt'; did you mean 'default'"),
        ({"more": "objective={'teacher_wright': 1.0}"}, "unknown term 'teacher_wright'; did you mean 'teacher_right'"),
        ({"more": "budget=kd.Budget(epochs=0, batch=1)"}, r"(?s)2 problems.*epochs is 0.*batch is 1"),
        ({"more": "budget=kd.Budget(epoch=1)"}, "unexpected keyword argument 'epoch'"),
        ({"more": "clases=3"}, "unexpected keyword argument 'clases'"),
    ],
)
def test_a_wrong_study_is_one_message_and_nothing_written(wrong, said, study, kdsearch, tmp_path):
    message = kdsearch("search", study(**wrong), code=2)
    assert re.search(said, message), message
    assert "Traceback" not in message
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["search", "digit"], "unknown study 'digit'; did you mean 'digits'?"),
        (
            ["search", "nowhere/mine.py"],
            "no study file nowhere/mine.py; shipped: cifar10_resnet56_resnet20, cifar10_small, digits",
        ),
        (["search", "./space.toml"], "a study is a .py file, not .toml"),
        (["search", "digits", "--device", "cuda:99"], "device 'cuda:99' cannot be used"),
        (["search", "digits", "--device", "gpu"], "device 'gpu' cannot be used"),
        (["search", "digits", "--storage", "mysqlite:///x.db"], "unknown storage 'mysqlite'; did you mean 'sqlite'?"),
        (["search", "digits", "--storage", "x.db"], "storage 'x.db' is not a URL; allowed: sqlite:///PATH"),
        (["search", "digits", "--sampler", "tpee"], "unknown sampler 'tpee'; did you mean 'tpe'?"),
        (["search", "digits", "--pruner", "meidan"], "unknown pruner 'meidan'; did you mean 'median'?"),
        (["export", "broken.json", "--to", "kornia"], "broken.json: not a JSON policy"),
        (["export", "nowhere.json", "--to", "kornia"], "cannot read the policy nowhere.json"),
        (["export", ".", "--to", "kornia"], ". is not a run folder: it has no study.json"),
        (["status", "nowhere"], "nowhere is not a run folder"),
        (["report", "."], "is not a run folder"),
        (["frames", "."], "is not a run folder"),
        (["regions", "."], "is not a run folder"),
        (["copy", "digit"], "unknown study or search space 'digit'; did you mean 'digits'?"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_wrong_arguments_are_one_message_and_nothing_written(arguments, said, kdsearch, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("broken.json").write_text('{"format": ')
    Path("space.toml").write_text("")
    message = kdsearch(*arguments, code=2)
    assert said in message
    assert "Traceback" not in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.json", "space.toml"]


def test_an_unknown_export_target_names_the_targets(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "kdsearch", "export", "x.json", "--to", "tensorflow"], capture_output=True
    )
    assert done.returncode == 2
    assert b"torchvision" in done.stderr


def test_a_policy_of_a_stranger_lists_every_problem(tmp_path, kdsearch):
    data = json.loads(Policy(["rotate", "invert"], 1).freeze().to_json())
    data["operations"]["rotate"]["limit"] = 900.0
    data["schedule"][0]["settings"]["invert"]["probability"] = 2
    data["hook"] = "os.system"
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(data))
    message = kdsearch("export", path, "--to", "torchvision", code=2)
    assert "2 problems" in message
    assert "probability" in message
    assert "[hook] unknown field" in message


def test_copy_copies_and_says_how_to_run_it(kdsearch, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "kdsearch search ./digits.py" in kdsearch("copy", "digits")
    assert (tmp_path / "digits.py").read_text() == catalogue.find_shipped("studies", "digits").read_text()
    assert "exists; nothing was copied" in kdsearch("copy", "digits", code=2)
    kdsearch("copy", "default", "spaces")
    assert (tmp_path / "spaces" / "default.toml").is_file()


def test_an_export_into_a_folder_is_refused(kdsearch, tmp_path):
    (tmp_path / "policy.json").write_text(Policy(["rotate"], 1).freeze().to_json())
    said = kdsearch("export", tmp_path / "policy.json", "--to", "json", "-o", tmp_path, code=2)
    assert said == f"kdsearch: cannot write {tmp_path}: it is a folder\n"


def test_the_export_targets_that_help_names_are_those_there_are() -> None:
    assert {target.value for target in Target} == {*EXPORTERS}


def test_an_argument_that_is_missing_is_named() -> None:
    """With a new click an old typer calls the command all the same, with None in its place."""
    done = subprocess.run([sys.executable, "-m", "kdsearch", "diff"], capture_output=True, text=True)
    assert done.returncode == 2 and "Missing argument 'POLICY'" in done.stderr
