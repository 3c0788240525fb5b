"""A study file as the module `kdsearch_study`, here and in reader processes."""

import importlib.util
import sys
import traceback
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from kdsearch.core.errors import KdsearchError, exception_text

NAME = "kdsearch_study"
LARGEST = 10_000_000  # bytes of a study file


def run_file(path: Path) -> ModuleType:
    """Execute a study file from where it is, its folder on `sys.path`, as the module `kdsearch_study`.

    Raises:
        KdsearchError: the file does not run; with its line.
    """
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(NAME, path)
    if spec is None or spec.loader is None:
        raise KdsearchError(f"{path}: no Python file; allowed: .py")
    if (size := path.stat().st_size) > LARGEST:
        raise KdsearchError(f"{path}: {size:,} bytes; allowed: {LARGEST:,}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    try:
        spec.loader.exec_module(module)
    except (KeyboardInterrupt, KdsearchError):
        raise
    except SyntaxError as error:  # of the file itself, or of one that it imports
        where = f"{error.filename or path}{f', line {error.lineno}' if error.lineno else ''}"
        raise KdsearchError(f"{where}: {type(error).__name__}: {error.msg}") from error
    except BaseException as error:  # `sys.exit()` too
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = f", line {frames[-1].lineno}" if frames else ""
        text = exception_text(error).strip().partition("\n")[0]
        raise KdsearchError(f"{path}{line}: {type(error).__name__}{f': {text}' if text else ''}") from error
    return module


class StudyModule:
    """The study file of this process, as a value that a reader process unpickles first.

    There the file's classes can be found from then on; it is executed when the first of them is, and not at all where
    no class of the file is needed.
    """

    def __reduce__(self) -> tuple[object, ...]:
        path = getattr(sys.modules.get(NAME), "__file__", None)
        return (_register, (path,)) if path else (StudyModule, ())


class _Finder:
    """Finds the module `kdsearch_study` where it lies."""

    def __init__(self, path: str) -> None:
        self.path = path

    def find_spec(self, name: str, _path: Sequence[str] | None, _target: ModuleType | None = None) -> ModuleSpec | None:
        return importlib.util.spec_from_file_location(NAME, self.path) if name == NAME else None


def _register(path: str) -> StudyModule:
    """Make `import kdsearch_study` find the file; a module of that name that is there already stays."""
    folder = str(Path(path).parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    sys.meta_path.append(_Finder(path))
    return StudyModule()
