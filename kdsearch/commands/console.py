"""What commands share: their arguments, tables on the terminal, and the policy that a path means."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kdsearch.core.errors import KdsearchError
from kdsearch.core.files import as_path
from kdsearch.core.terminal import escape_unprintable, say

PATH: Mapping[str, Any] = {"parser": as_path, "metavar": "PATH"}  # of options that are paths
Folder = Annotated[Path, typer.Argument(parser=as_path, metavar="DIR", help="A run folder, such as runs/digits.")]
Storage = Annotated[
    str | None, typer.Option(help="Database URL of a search that kept its trials outside its run folder.")
]

MANY = 200  # rows; folding the cells of a thousand takes rich a second


def print_frame(frame, columns: list[str]) -> None:  # type: ignore[no-untyped-def]
    """Columns of a pandas frame, without those that are empty."""
    rows = [[_cell(value) for value in row] for row in frame[columns].itertuples(index=False)]
    used = [i for i in range(len(columns)) if any(row[i] for row in rows)]
    print_table([columns[i] for i in used], [[row[i] for i in used] for row in rows])


def print_table(columns: list[str], rows: list[list[str]]) -> None:
    """Rows of text; on a terminal as wide as it is, many rows as long as they are."""
    columns, rows = (
        [escape_unprintable(cell) for cell in columns],
        [[escape_unprintable(cell) for cell in row] for row in rows],
    )
    if len(rows) > MANY:
        rows = [[cell.replace("\n", " ") for cell in row] for row in rows]
        widths = [max(map(cell_len, cells)) for cells in zip(columns, *rows, strict=True)]
        for row in (columns, *rows):
            padded = (cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True))
            print("  ".join(padded).rstrip())
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(Text(column), overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # nothing in them is markup
    console = Console(highlight=False)
    console.print(table) if console.is_terminal else Console(width=200, highlight=False).print(table)


def print_mark(tables: Mapping[str, Any]) -> None:
    """What to bear in mind of the frames of a search whose teacher has seen search-validation."""
    from kdsearch.analysis.compare import memory_note

    if note := memory_note(tables):
        say(note)


def policy_path(path: Path, storage: str | None = None) -> Path:
    """The policy file that is meant: a file itself, that of a trial's folder, the best one of a run folder.

    Args:
        storage: Database URL of a search that kept its trials outside its folder.
    """
    if not path.is_dir():
        return path
    if (path / "policy.json").is_file():
        return path / "policy.json"
    from kdsearch.analysis.frames import frames
    from kdsearch.study.run_folder import trial_folder

    best = frames(path, storage=storage, only=("studies",))["studies"]["best_trial"].dropna()
    if best.empty:
        raise KdsearchError(f"{path}: no trial has finished, so there is no policy")
    return trial_folder(path, best.iloc[0]) / "policy.json"


def _cell(value: object) -> str:
    if str(value) in ("None", "nan", "<NA>"):
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
