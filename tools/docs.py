"""Pages of the site that are made of what the repository already has, and links that hold in both.

MkDocs calls `on_files` and `on_page_markdown`. README.md is the start page; results, ARCHITECTURE.md and the like are
pages as they are; notebooks, the command line and the reference are written here, the latter from the stubs, so that a
new public name is on the site without anybody listing it.
"""

import ast
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator
from enum import EnumMeta
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_type_hints

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"\[([^\]]*)\]\((?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?\)")
PAGES = {  # of the site, by the name of the file in the repository
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
COLUMNS = {  # of the tables that rooms have: field, heading
    "kdsearch.augment.operations": {
        "name": "operation",
        "unit": "unit of the magnitude",
        "limit": "limit",
        "hard": "hard limit",
        "signed": "sign drawn",
        "gradient": "gradient",
        "range": "range learns",
        "reference": "meaning after",
    },
    "kdsearch.losses": {
        "name": "loss",
        "says": "formula",
        "compares": "compares",
        "relational": "relational",
        "status": "status",
        "reference": "source",
    },
    "kdsearch.losses.objectives": {
        "name": "term",
        "seeks": "seeks images that",
        "bound": "nats",
        "reference": "source",
    },
}


class Name(NamedTuple):
    """A public name."""

    shown: str  # as it is written: kd.losses.kd
    path: str  # where it can be imported from: kdsearch.losses.kd
    node: ast.AST  # what defines it
    docstring: str


def _file(module: str) -> Path:
    place = ROOT / module.replace(".", "/")
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


def _is_module(path: str) -> bool:
    return _file(path).exists()


@cache
def _parse(module: str) -> ast.Module:
    return ast.parse(_file(module).read_text(encoding="utf-8"))


def _imports(tree: ast.Module) -> dict[str, str]:
    """Names that a module imports, and from where; a stub has nothing else."""
    found = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module]
    return {alias.asname or alias.name: f"{node.module}.{alias.name}" for node in found for alias in node.names}


def public_imports(package: str) -> dict[str, str]:
    """The names of a package with a stub, and where each is defined."""
    return _imports(ast.parse(_file(package).with_suffix(".pyi").read_text(encoding="utf-8")))


def _all(module: str) -> list[str]:
    """What `__all__` of a module lists."""
    for node in _parse(module).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    raise LookupError(f"{module} has no __all__")


def _definition(path: str) -> tuple[ast.AST, str]:
    """What defines a name, and its docstring; an alias or a table has the string below it."""
    module, _, name = path.rpartition(".")
    body = _parse(module).body
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return node, ast.get_docstring(node) or ""
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id == name:
            said = after.value if isinstance(after, ast.Expr) else None
            return node, str(said.value) if isinstance(said, ast.Constant) else ""
    imported = _imports(_parse(module))
    if name not in imported:
        raise LookupError(f"{module} defines no {name}")
    return _definition(imported[name])


def _functions(module: str) -> list[str]:
    """Public functions that a module defines."""
    return [n.name for n in _parse(module).body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")]


def _names(shown: str, package: str) -> Iterator[Name]:
    """The public names of the top level or of a room; for a family its functions that have no other name."""
    has_stub = _file(package).with_suffix(".pyi").exists()
    found = public_imports(package) if has_stub else {name: f"{package}.{name}" for name in _all(package)}
    for name, path in found.items():
        if not _is_module(path):
            yield Name(f"{shown}.{name}", f"{package}.{name}", *_definition(path))
        elif package != "kdsearch":
            taken = set(found.values())
            yield from (
                Name(f"{shown}.{name}.{inner}", f"{path}.{inner}", *_definition(f"{path}.{inner}"))
                for inner in _functions(path)
                if f"{path}.{inner}" not in taken
            )


def _order(name: Name) -> tuple[int, int, str]:
    """Functions, then classes, then tables; those of families last."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    kind = next((place for place, kind in enumerate(kinds) if isinstance(name.node, kind)), len(kinds))
    return name.shown.count("."), kind, name.shown.lower()


def public_names() -> dict[str, list[Name]]:
    """By page of the reference: words (classes) and verbs (functions) of the top level, then each room."""
    top = sorted(_names("kd", "kdsearch"), key=_order)
    rooms = {name: path for name, path in public_imports("kdsearch").items() if _is_module(path)}
    return {
        "words": [name for name in top if isinstance(name.node, ast.ClassDef)],
        "verbs": [name for name in top if isinstance(name.node, ast.FunctionDef)],
        **{room: sorted(_names(f"kd.{room}", package), key=_order) for room, package in rooms.items()},
    }


def _title(page: str, package: str) -> str:
    titles = {"words": "Words: the classes of the top level", "verbs": "Verbs: the functions of the top level"}
    said = ast.get_docstring(_parse(package)) or ""
    return f"# {titles.get(page, f'kd.{page}')}\n\n" + ("" if page in titles else f"{said}\n\n")


def _row(cells: Iterable[object]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |\n"


def _said(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else ""
    return f"{value:g}" if isinstance(value, float) else str(value or "")


def _table(package: str) -> str:
    """The rows of a room's TABLE, which is imported for it."""
    from importlib import import_module

    columns = COLUMNS[package]
    rows = [[_said(getattr(entry, field)) for field in columns] for entry in import_module(package).TABLE.values()]
    marked = [[f"`{name}`", *rest] for name, *rest in rows]
    return _row(columns.values()) + _row("-" * len(columns)) + "".join(map(_row, marked)) + "\n"


def reference_names() -> list[str]:
    """The pages of the reference."""
    return ["reference/index.md", *(f"reference/{page}.md" for page in public_names())]


def reference_pages() -> dict[str, str]:
    """Markdown by the page's name: an overview of every public name, and a page for each group of them."""
    names = public_names()
    rooms = public_imports("kdsearch")
    pages, overview = {}, ["# Reference\n\nEvery public name; `import kdsearch as kd`.\n"]
    for page, found in names.items():
        package = rooms.get(page, "kdsearch")
        parts = [_title(page, package), _table(package) if package in COLUMNS else ""]
        parts += [
            f"::: {n.path}\n    options:\n      heading: {n.shown}\n      toc_label: {n.shown}\n\n" for n in found
        ]
        pages[f"reference/{page}.md"] = "".join(parts)
        title = _title(page, package).split("\n")[0].lstrip("# ")
        rows = [[f"[`{n.shown}`]({page}.md#{n.path})", _first_sentence(n.docstring)] for n in found]
        overview.append(f"\n## {title}\n\n" + _row(["name", "what it is"]) + _row("--") + "".join(map(_row, rows)))
    return {"reference/index.md": "".join(overview), **pages}


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[.?])\s", " ".join(text.split("\n\n")[0].split()), maxsplit=1)[0]


def notebook_page(text: str) -> str:
    """A notebook kept as a Python file with percent cells: prose as it is, code in fences."""
    parts = []
    for cell in re.split(r"^# %%", text, flags=re.MULTILINE)[1:]:
        head, _, body = cell.partition("\n")
        if "[markdown]" in head:
            parts.append(re.sub(r"^# ?", "", body.strip(), flags=re.MULTILINE))
        elif body.strip():
            parts.append(f"```python\n{body.strip()}\n```")
    return "\n\n".join(parts) + "\n"


def command_reference() -> str:
    """Every command with its arguments and options, from the commands themselves."""
    import typer

    from kdsearch.commands.cli import COMMANDS, app

    described: dict[str, Any] = vars(typer.main.get_command(app))["commands"]
    parts = []
    for function in COMMANDS:
        name, command = function.__name__, described[function.__name__]
        facts = _facts(function)
        arguments = [p for p in command.params if not p.opts[0].startswith("-")]
        typed = " ".join(p.name.upper() if p.required else f"[{p.name.upper()}]" for p in arguments)
        parts.append(f"\n## kdsearch {name}\n\n{command.help}\n\n```\nkdsearch {name} {typed}\n```\n\n")
        rows = [
            [
                f"`{p.name.upper() if p in arguments else ' '.join([*p.opts, *p.secondary_opts])}`",
                f"{p.help}{facts[p.name]}".replace("<", "&lt;"),
            ]
            for p in command.params
        ]
        if rows:
            parts += [_row(["argument or option", "what it is"]), _row("--"), *map(_row, rows)]
    return "".join(parts)


def _facts(function: Callable[..., None]) -> dict[str, str]:
    """Of each parameter of a command what is allowed, and what it is where it is not given, in brackets."""
    found = {}
    hints = get_type_hints(function)
    for name, parameter in signature(function).parameters.items():
        kinds = [kind for kind in (hints[name], *get_args(hints[name])) if isinstance(kind, EnumMeta)]
        default = getattr(parameter.default, "value", parameter.default)
        facts = [f"allowed: {', '.join(map(str, kind))}" for kind in kinds]
        if isinstance(default, str | int) and not isinstance(default, bool):
            facts.append(f"default: {default}")
        found[name] = f" ({'; '.join(facts)})" if facts else ""
    return found


def taken_files() -> dict[str, str]:
    """Files of the repository outside docs/ that are pages, and the name of the page."""
    results = {f"results/{file.name}": f"results/{file.name}" for file in sorted((ROOT / "results").glob("*.md"))}
    notebooks = {f"notebooks/{f.name}": f"notebooks/{f.stem}.md" for f in sorted((ROOT / "notebooks").glob("*.py"))}
    return {**PAGES, **results, **notebooks}


def relink(markdown: str, page: str) -> str:
    """Links of a page between files of the repository as links of the site; what has no page there is only named.

    Args:
        page: Its name on the site.
    """
    taken = taken_files()
    here = {new: old for old, new in taken.items()}.get(page, f"docs/{page}")

    def change(match: re.Match[str]) -> str:
        text, target, anchor = match.groups("")
        file = posixpath.normpath(posixpath.join(posixpath.dirname(here), target))
        new = taken.get(file) or (file.removeprefix("docs/") if file.startswith("docs/") else None)
        if new is None:
            return text if (ROOT / file).exists() else match[0]
        return f"[{text}]({posixpath.relpath(new, posixpath.dirname(page) or '.')}{anchor})"

    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else LINK.sub(change, part) for part in parts)


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages that are not in docs/."""
    from mkdocs.structure.files import File

    made = reference_pages()
    for file, page in taken_files().items():
        text = (ROOT / file).read_text(encoding="utf-8")
        made[page] = notebook_page(text) if file.endswith(".py") else text
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **rest: Any) -> str:
    """Links between files of the repository become links of the site; the command line gets its commands."""
    name = page.file.src_uri
    if name == "command_line.md":
        markdown += command_reference()
    return markdown if name.startswith("reference/") else relink(markdown, name)
