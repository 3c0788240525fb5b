"""Where the shipped studies and search spaces lie, installed or checked out."""

from pathlib import Path

from kdsearch.core.errors import KdsearchError, unknown_name
from kdsearch.core.files import as_path

_PACKAGE = Path(__file__).parents[1]
SUFFIX = {"studies": ".py", "search_spaces": ".toml"}
SINGULAR = {"studies": "study", "search_spaces": "search space"}


def folder(kind: str) -> Path:
    """The folder of the shipped files of `kind` ("studies" or "search_spaces"): in the wheel or beside a checkout."""
    installed = _PACKAGE / kind
    return installed if installed.is_dir() else _PACKAGE.parent / kind


def shipped_names(kind: str) -> list[str]:
    """The names of what is shipped."""
    return sorted(path.stem for path in folder(kind).glob(f"*{SUFFIX[kind]}"))


def find_shipped(kind: str, name: str) -> Path:
    """A bare name is always the shipped one; anything with a folder or a suffix is a path.

    Raises:
        KdsearchError: unknown name, or no such file; both say what is shipped.
    """
    suffix = SUFFIX[kind]
    if Path(name).name == name and not name.endswith(suffix):
        if name not in shipped_names(kind):
            hint = f" (for a file of your own give a path, such as ./{name}{suffix})"
            raise KdsearchError(unknown_name(SINGULAR[kind], name, shipped_names(kind)) + hint)
        return folder(kind) / f"{name}{suffix}"
    path = as_path(name)
    if not path.is_file():
        raise KdsearchError(f"no {SINGULAR[kind]} file {path}; shipped: {', '.join(shipped_names(kind))}")
    if path.suffix != suffix:
        raise KdsearchError(
            f"{path}: a {SINGULAR[kind]} is a {suffix} file, not {path.suffix or 'a file without suffix'}"
        )
    return path
