"""Files written whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any

from kdsearch.errors import KdsearchError


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step: readers see the old content or the new one."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file in one step: readers see the old content or the new one."""
    if path.is_dir():
        raise KdsearchError(f"cannot write {path}: it is a folder")
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as error:
        raise KdsearchError(f"cannot write {path}: {error.strerror}") from None


def write_json(path: Path, data: Any) -> None:
    """JSON of plain values; NaN becomes null."""
    write_text(path, json.dumps(plain(data), indent=1) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file of a run folder.

    Raises:
        KdsearchError: the file is missing or torn, naming it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise KdsearchError(f"cannot read {path}: {error}") from None


def make_folder(path: Path) -> Path:
    """Make a folder and its parents."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KdsearchError(f"cannot make the folder {path}: {error.strerror}") from None
    return path


def plain(value: Any) -> Any:
    """The same values as JSON has them: what is not finite is None, tuples are lists, keys are text."""
    if isinstance(value, float) and not (float("-inf") < value < float("inf")):
        return None
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
