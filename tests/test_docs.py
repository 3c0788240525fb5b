"""The site says something of every public name, and its pages are where it says they are; nothing here builds it."""

import ast
import re
from pathlib import Path
from runpy import run_path

import pytest
import yaml

from kdsearch.commands.cli import COMMANDS

ROOT = Path(__file__).parent.parent
DOCS = run_path(str(ROOT / "tools/docs.py"))
NAMES = [name for names in DOCS["public_names"]().values() for name in names]
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
WRITTEN = sorted((ROOT / "docs").glob("**/*.md"))
SHAPE = re.compile(r"\(([BCHKMNSbn]|\d)\b[^)]*\)")


def functions():
    """Public functions, and public methods of public classes, with their names."""
    for name in NAMES:
        if isinstance(name.node, ast.FunctionDef):
            yield name.shown, name.node, name.docstring
        elif isinstance(name.node, ast.ClassDef):
            for node in name.node.body:
                if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and ast.get_docstring(node):
                    yield f"{name.shown}.{node.name}", node, f"{ast.get_docstring(node)}\n{name.docstring}"


def has_tensors(node):
    asked = [a.annotation for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs) if a.annotation]
    return any("Tensor" in ast.unparse(said) for said in (*asked, node.returns) if said)


def raises(node):
    return any("KdsearchError" in ast.unparse(inner) for inner in ast.walk(node) if isinstance(inner, ast.Raise))


def pages(entries):
    for entry in entries:
        inner = next(iter(entry.values())) if isinstance(entry, dict) else entry
        yield from pages(inner) if isinstance(inner, list) else [inner]


def test_every_public_name_has_a_docstring():
    assert len(NAMES) > 80
    assert not [name.shown for name in NAMES if len(name.docstring) < 20]


def test_what_takes_or_gives_tensors_says_their_shapes():
    assert not [shown for shown, node, said in functions() if has_tensors(node) and not SHAPE.search(said)]


def test_what_raises_says_so():
    assert not [shown for shown, node, said in functions() if raises(node) and "Raises:" not in said]


def test_arguments_that_docstrings_tell_of_are_there():
    for shown, node, _ in functions():
        section = re.search(r"^Args:\n((?:    .*\n|\n)*)", f"{ast.get_docstring(node)}\n", re.MULTILINE)
        told = re.findall(r"^    (\S[^:]*):", section[1], re.MULTILINE) if section else []
        given = [a.arg for a in (*node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg) if a]
        assert not [name for name in told if name.lstrip("*") not in given], shown


def test_every_page_is_in_the_navigation_and_there():
    made = {*DOCS["reference_names"](), *DOCS["taken_files"]().values()}
    listed = list(pages(SITE["nav"]))
    assert len(listed) == len(set(listed))
    there = made | {str(page.relative_to(ROOT / "docs")) for page in WRITTEN}
    assert not there - set(listed), "put it into the navigation in mkdocs.yml"
    assert not set(listed) - there


@pytest.mark.parametrize("page", [*WRITTEN, *(ROOT / file for file in DOCS["taken_files"]())], ids=lambda p: p.name)
def test_links_between_files_lead_somewhere(page):
    found = [target for _, target, _ in DOCS["LINK"].findall(page.read_text())]
    assert not [target for target in found if not (page.parent / target).exists()]


def test_nothing_of_the_site_comes_from_elsewhere():
    assert SITE["theme"]["font"] is False and SITE["strict"] is True
    assert "site_url" not in SITE and "://" not in (ROOT / "mkdocs.yml").read_text()
    assert not [file.name for file in (ROOT / "docs").glob("**/*.css") if "://" in file.read_text()]


def test_a_notebook_becomes_a_page():
    text = "# %% [markdown]\n# # Title\n# says\n\n# %%\nx = 1  # %%\n\n# %% [markdown]\n# end\n"
    assert DOCS["notebook_page"](text) == "# Title\nsays\n\n```python\nx = 1  # %%\n```\n\nend\n"


def test_links_hold_in_the_repository_and_on_the_site():
    relink = DOCS["relink"]
    assert relink("[a](results/digits.md#b)", "index.md") == "[a](results/digits.md#b)"
    assert relink("![a](docs/report.png)", "index.md") == "![a](report.png)"
    assert relink("[a](../README.md) [b](spaces.md)", "loop.md") == "[a](index.md) [b](spaces.md)"
    assert relink("[a](../docs/loop.md#x)", "results/digits.md") == "[a](../loop.md#x)"
    assert relink("[tests](../tests/test_docs.py)", "loop.md") == "tests"
    assert (
        relink("```\n[a](../README.md)\n```\n[a](https://a.b)", "loop.md")
        == "```\n[a](../README.md)\n```\n[a](https://a.b)"
    )


@pytest.mark.parametrize("page", ["choose.md"])
def test_python_of_a_page_runs(page, capsys):
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL):
        exec(compile(block, page, "exec"), {})
    assert capsys.readouterr().out == " ".join(["torch.Size([64, 1, 16, 16])"] * 3) + "\n"


def test_the_page_of_the_commands_has_all_of_them_with_what_is_allowed():
    page = DOCS["command_reference"]()
    assert re.findall(r"^## kdsearch (\w+)$", page, re.MULTILINE) == [command.__name__ for command in COMMANDS]
    assert "| `--to` | What trains with it. (allowed: json, torchvision, kornia, albumentations" in page
    assert "./runs/&lt;study> by default" in page
