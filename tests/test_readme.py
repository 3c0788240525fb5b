"""What the README and the pages of docs show runs."""

import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import conftest
import pytest

import kdsearch as kd
from kdsearch.commands.cli import app
from kdsearch.study.space import SearchSpace

ROOT = Path(__file__).parent.parent
PAGES = [
    "own_networks",
    "spaces",
    "policies",
    "ranking",
    "analysis",
    "loop",
]  # docs/train_with_a_policy.md has its own test
README = (ROOT / "README.md").read_text()
SHOWN = README + "".join((ROOT / "docs" / f"{page}.md").read_text() for page in PAGES)
FOLDER, *PYTHON = re.findall(r"```python\n(.*?)```", SHOWN, re.DOTALL)  # the first one is a shipped study
(STUDY,) = (block for block in PYTHON if block.startswith('"""rare.py'))
BLOCKS = [block for block in PYTHON if block != STUDY]
SHELL = "".join(block for block in SHOWN.split("```")[1::2] if block.startswith("\n"))
SMALLER = {  # how much is searched is not what is shown
    "kd.Budget(trials=2, epochs=3, steps=10, batch=32, confirmation=2)": "kd.Budget(1, 1, 4, 16, 1)",
    "Shapes(360, 660)": "Shapes(360, 420)",
    "moved=True), 64, 300)": "moved=True), 64, 100)",
    "readers=2": "readers=1",
}
COMMANDS = [
    line for line in re.findall(r"^(kdsearch .*?)(?:  .*)?$", SHELL, re.MULTILINE) if "image_folder" not in line
]


def smaller(*texts: str) -> list[str]:
    """The texts with smaller budgets; each of them is in one."""
    assert all(sum(text.count(old) for text in texts) == 1 for old in SMALLER)
    for old, new in SMALLER.items():
        texts = tuple(text.replace(old, new) for text in texts)
    return list(texts)


*BLOCKS, STUDY = smaller(*BLOCKS, STUDY)


@pytest.fixture
def here(finished, tiny_study, tmp_path, monkeypatch):
    """An empty folder with a finished search in runs/digits, with a study file whose test split can be read."""
    monkeypatch.chdir(tmp_path)
    run = shutil.copytree(finished.folder, tmp_path / "runs" / "digits")
    monkeypatch.setattr(conftest, "STUDY", replace(tiny_study, test=kd.data.digits()[2]), raising=False)
    (run / "study.py").write_text("from conftest import STUDY as study\n")


@pytest.mark.parametrize("block", BLOCKS, ids=[f"block {i}" for i in range(len(BLOCKS))])
def test_python_blocks_run(block, here, capsys):
    exec(compile(block, "a page", "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out


def test_the_study_file_runs_from_the_command_line_and_from_python_with_its_own_everything(
    tmp_path, monkeypatch, capsys
):
    (tmp_path / "rare.py").write_text(STUDY)
    short = ["--trials", "1", "--epochs", "1", "--confirmation", "0"]
    command = [sys.executable, "-m", "kdsearch", "search", "./rare.py", *short]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "trial 0  epoch 1/1  balanced_accuracy 0." in ran.stdout
    monkeypatch.chdir(tmp_path)
    kd.search("./rare.py", trials=2, epochs=1, confirmation=0)
    said = capsys.readouterr().out
    assert "resuming: 1 of 2 trials is done" in said and re.search(r"(?s)trial [01] .*\bconfirmed\b", said)
    tables = kd.frames(tmp_path / "runs" / "rare")
    assert tables["studies"]["metric"].tolist() == ["balanced_accuracy"]
    assert tables["trials"]["state"].tolist() == ["COMPLETE"] * 7
    assert {*tables["losses"]["loss"]} == {"kd, temperature 4", "hint, second to second"}


def test_the_search_space_loads(tmp_path):
    (text,) = re.findall(r"```toml\n(.*?)```", SHOWN, re.DOTALL)
    (tmp_path / "mine.toml").write_text(text)
    space = SearchSpace.load(str(tmp_path / "mine.toml"))
    assert set(space.ranges) == {"prior_strength", "operations_per_image", "floor", "student_wrong"}
    in_pauses = text.replace("interval = 3 ", "pauses = [0.125, 0.375]\npasses = 10 ")
    (tmp_path / "mine.toml").write_text(re.sub(r"\nwarm_up[^\n]*", "", in_pauses))
    assert SearchSpace.load(str(tmp_path / "mine.toml")).pauses == (0.125, 0.375)


def test_the_first_example_is_the_shipped_study():
    shipped = (ROOT / "studies" / "image_folder.py").read_text()
    assert shipped.endswith(FOLDER) and shipped.count(FOLDER) == 1  # tests/test_image_folder_study.py runs it


def test_links_lead_somewhere():
    pages = [
        ROOT / "README.md",
        ROOT / "ARCHITECTURE.md",
        ROOT / "CONTRIBUTING.md",
        *sorted((ROOT / "docs").glob("*.md")),
    ]
    for page in pages:
        for link in re.findall(r"\]\(([^)#]+)", page.read_text()):
            assert link.startswith("https://") or (page.parent / link).exists(), f"{page.name}: {link}"


def test_there_is_a_line_for_every_command():
    named = {shlex.split(command)[1] for command in COMMANDS}
    assert named == {command.callback.__name__ for command in app.registered_commands}


def test_the_commands_run(here, kdsearch):
    assert sum("--epochs 40" in command for command in COMMANDS) == 1
    assert "kdsearch evaluate runs/digits --study digits" in COMMANDS  # here the run is of another study of that name
    shorter = [
        command.replace("--epochs 40", "--epochs 1")
        .replace("--study digits", "--study runs/digits/study.py")
        .replace("compare digits --seeds 5", "compare runs/digits/study.py --out runs/digits --seeds 1 --top 0")
        for command in COMMANDS
    ]
    ran = [words for words in map(shlex.split, shorter) if words[1] != "search"]
    assert len(ran) >= 9
    for words in ran:
        kdsearch(*words[1:])
