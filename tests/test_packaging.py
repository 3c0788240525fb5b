"""What a package promises beside its code: types, one version, lower bounds that can be tried."""

import importlib.metadata
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from runpy import run_path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from typer.testing import CliRunner

import kdsearch as kd
from kdsearch.commands.cli import app

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOWEST = run_path(str(ROOT / "tools/lowest.py"))


def test_a_type_checker_may_read_the_types_of_the_wheel(tmp_path: Path) -> None:
    builder = pytest.importorskip("hatchling.builders.wheel", reason="hatchling is not installed")
    wheel = next(builder.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"]))
    assert "kdsearch/py.typed" in zipfile.ZipFile(wheel).namelist()


def test_the_version_is_written_once() -> None:
    printed = CliRunner().invoke(app, ["--version"])
    assert (printed.exit_code, printed.output) == (0, f"kdsearch {PROJECT['version']}\n")
    assert kd.__version__ == importlib.metadata.version("kdsearch") == PROJECT["version"]
    assert str(yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]) == PROJECT["version"]


def test_the_version_loads_no_torch() -> None:
    code = """import sys
from kdsearch.commands.cli import app
app(["--version"], standalone_mode=False)
print(sorted({"torch", "optuna", "pandas", "kornia"} & set(sys.modules)))"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == f"kdsearch {kd.__version__}\n[]\n"


def test_each_lower_bound_becomes_a_pin() -> None:
    asked = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
    pinned = LOWEST["pins"](LOWEST["requirements"](ROOT / "pyproject.toml"))
    assert set(pinned) == {canonicalize_name(Requirement(text).name) for text in asked}
    assert all(pinned[canonicalize_name(r.name)] in r.specifier for r in map(Requirement, asked))


def test_a_pin_is_the_highest_of_the_lower_bounds_of_a_project() -> None:
    asked = ["one>=0.9,<0.10", "Two_2>=2", "two-2>=2.5", "two.2>=2.1", "three==2.0.8"]
    expected = {"one": Version("0.9"), "two-2": Version("2.5"), "three": Version("2.0.8")}
    assert LOWEST["pins"](asked) == expected
    with pytest.raises(SystemExit, match="'four<5' has no lower bound"):
        LOWEST["pins"](["four<5"])
