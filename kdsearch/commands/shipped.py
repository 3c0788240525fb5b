"""The commands that list what there is, and copy what is shipped: studies, spaces, operations, losses, terms."""

from pathlib import Path
from typing import Annotated

import typer

from kdsearch.commands.console import print_table
from kdsearch.core.errors import KdsearchError
from kdsearch.core.files import as_path
from kdsearch.core.terminal import say
from kdsearch.study import catalogue


def spaces() -> None:
    """The shipped search spaces."""
    from kdsearch.study.space import SearchSpace

    loaded = [SearchSpace.load(name) for name in catalogue.shipped_names("search_spaces")]
    print_table(["space", "operations", "searched", "summary"],
                [[s.name, str(len(s.limits)), ", ".join(s.ranges), s.summary] for s in loaded])  # fmt: skip


def studies() -> None:
    """The shipped studies, with the first line of each."""
    import ast

    rows = []
    for name in catalogue.shipped_names("studies"):
        text = catalogue.find_shipped("studies", name).read_text(encoding="utf-8")
        rows.append([name, (ast.get_docstring(ast.parse(text)) or "").split("\n")[0]])
    print_table(["study", "what it is"], rows)


def operations() -> None:
    """The operations, in the order in which they are applied."""
    from kdsearch.augment.operations import TABLE as OPERATIONS

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:g}"

    rows = [
        [
            op.name,
            op.unit or "-",
            number(op.limit),
            number(op.hard),
            "±" if op.signed else "",
            str(op.channels),
            op.gradient,
            op.range,
            op.reference,
        ]
        for op in OPERATIONS.values()
    ]
    print_table(
        [
            "operation",
            "unit of the magnitude",
            "limit",
            "hard",
            "sign",
            "channels",
            "gradient",
            "range",
            "meaning after",
        ],
        rows,
    )


def objectives() -> None:
    """The terms that a policy step may minimise, and what each seeks."""
    from kdsearch.losses.objectives import TABLE as OBJECTIVES
    from kdsearch.losses.objectives import TST

    rows = [
        [t.name, t.seeks, t.bound, f"{TST[t.name]:g}" if t.name in TST else "-", t.reference]
        for t in OBJECTIVES.values()
    ]
    print_table(["term", "seeks images where", "nats", "default weight", "after"], rows)


def losses() -> None:
    """The distillation losses, on logits and on features."""
    from kdsearch.losses.table import TABLE as LOSSES

    rows = [
        [k.name, k.compares, k.says, "relational" if k.relational else "image", k.status, k.reference]
        for k in LOSSES.values()
    ]
    print_table(["loss", "compares", "formula", "per", "status", "after"], rows)


def copy(
    name: Annotated[str, typer.Argument(help="A shipped study or search space.")],
    folder: Annotated[Path, typer.Argument(parser=as_path, metavar="[DIR]", help="Where to.")] = Path("."),
) -> None:
    """Copy a shipped study or search space, to edit it."""
    from kdsearch.core.errors import unknown_name
    from kdsearch.core.files import make_folder, write_text

    kinds = [kind for kind in catalogue.SUFFIX if name in catalogue.shipped_names(kind)]
    if not kinds:
        known = [shipped for kind in catalogue.SUFFIX for shipped in catalogue.shipped_names(kind)]
        raise KdsearchError(unknown_name("study or search space", name, known))
    for kind in kinds:
        source = catalogue.find_shipped(kind, name)
        target = make_folder(folder) / source.name
        if target.exists():
            raise KdsearchError(f"{target} exists; nothing was copied")
        write_text(target, source.read_text(encoding="utf-8"))
        path = target if target.is_absolute() else f"./{target}"
        say(
            f"{path}: run it with  kdsearch search {path}"
            if kind == "studies"
            else f"{path}: name it as a study's space"
        )
