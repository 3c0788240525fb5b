"""The notebooks run from their first cell to their last, in a short form, and their cells end in what can be shown."""

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import kdsearch as kd

FOLDER = Path(__file__).parents[1] / "notebooks"
NAMES = sorted(path.name for path in FOLDER.glob("*.py"))


def cells(name: str) -> Iterator[tuple[str, str]]:
    """The kind and the text of each cell."""
    first, *parts = (FOLDER / name).read_text().split("# %%")
    assert not first
    for part in parts:
        head, _, text = part.partition("\n")
        yield head.strip(), text


def run(name: str) -> list[Any]:
    """Run the cells of a notebook; what the last lines give that are an expression."""
    names: dict[str, Any] = {"__name__": "__main__"}
    shown = []
    for kind, text in cells(name):
        if kind:
            continue
        body = ast.parse(text).body
        last = body.pop() if isinstance(body[-1], ast.Expr) else None
        exec(compile(ast.Module(body, []), name, "exec"), names)
        if isinstance(last, ast.Expr):
            shown.append(eval(compile(ast.Expression(last.value), name, "eval"), names))
    return shown


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_and_shows_what_it_ends_in(
    name: str, finished: kd.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDSEARCH_SHORT", "1")
    shutil.copytree(finished.folder, tmp_path / "runs" / ("first" if name.startswith("03") else "tiny"))
    for thing in run(name):
        page, picture = getattr(thing, "_repr_html_", None), getattr(thing, "_repr_png_", None)
        if picture:
            assert picture()[:4] == b"\x89PNG"
        elif page:
            assert page().count("<table") == page().count("</table")
        assert len(repr(thing)) < 5000


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_tells_before_it_does(name: str) -> None:
    told = list(cells(name))
    assert told[0][0] == "[markdown]" and told[0][1].startswith("# # ")
    for kind, text in told:
        assert kind in ("", "[markdown]") and text.strip()
        if kind:
            assert all(line.startswith("#") for line in text.strip().splitlines())


def test_there_are_three() -> None:
    assert [name[:2] for name in NAMES] == ["01", "02", "03"]
