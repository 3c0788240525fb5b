"""The public surface: few names, each written once, and every older one with its cure."""

import re
import subprocess
import sys
import warnings
from importlib import import_module
from pathlib import Path

import pytest

import kdsearch as kd
from kdsearch.core.errors import KdsearchError
from kdsearch.core.lazy import read_stub
from kdsearch.core.old_names import _OLD

ROOMS = ("analysis", "data", "losses", "networks")
MOST = 39  # of the top level; what an hour with a study file or a notebook needs


def test_the_top_level_is_small_and_sorted_into_words_verbs_and_rooms() -> None:
    assert len(kd.__all__) <= MOST and sorted(kd.__all__) == kd.__all__ == dir(kd)
    for name in kd.__all__:
        thing = getattr(kd, name)
        room = type(thing).__name__ == "module"
        assert room or name[0].isupper() == isinstance(thing, type), f"{name}: classes are words, functions are verbs"


@pytest.mark.parametrize("package", ["kdsearch", *(f"kdsearch.{room}" for room in ROOMS)])
def test_each_public_name_is_what_its_stub_says(package: str) -> None:
    module = import_module(package)
    where = read_stub(str(module.__file__))
    assert where and module.__all__ == sorted(where)
    for name, home in where.items():
        found = getattr(module, name)
        if type(found).__name__ != "module":
            assert found is getattr(import_module(home), name)
        assert found.__doc__ or not (isinstance(found, type) or callable(found)), f"{name} has no docstring"
    with pytest.raises(AttributeError, match="has no attribute 'nowhere'"):
        _ = module.nowhere


@pytest.mark.parametrize("name", sorted(_OLD))
def test_an_old_name_still_leads_to_its_thing_and_says_the_new_one(name: str) -> None:
    assert name not in kd.__all__
    with pytest.warns(
        FutureWarning, match=rf"kdsearch\.{name} goes with the next version; it is kdsearch\..+ now"
    ) as told:
        assert getattr(kd, name) is not None
    assert told[0].filename == __file__  # the line that has to change
    cure = str(told[0].message).split(" it is ")[1].removesuffix(" now")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert eval(cure, {"kdsearch": kd}) is not None


def test_an_old_argument_or_attribute_says_the_new_one() -> None:
    with pytest.raises(KdsearchError, match="Study has no 'workers'; it is called 'readers' now"):
        kd.Study(workers=2)  # type: ignore[call-arg]
    with pytest.raises(KdsearchError, match="PolicySteps has no 'phases'; it is called 'pauses' now"):
        kd.PolicySteps(phases=(0.5,))  # type: ignore[call-arg]
    with pytest.raises(AttributeError, match="Loss has no 'at'; it is called 'weight_at' now"):
        _ = kd.losses.kd().at  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="'Loss' object has no attribute 'nowhere'"):
        _ = kd.losses.kd().nowhere  # type: ignore[attr-defined]


def test_importing_the_package_loads_neither_torch_nor_pandas_nor_optuna() -> None:
    program = "import sys, kdsearch; kdsearch.__all__; print(*{'torch', 'pandas', 'optuna', 'numpy'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "\n"


def test_no_message_page_or_docstring_names_an_old_name() -> None:
    old = re.compile(rf"\b(?:kdsearch|kd)\.({'|'.join(_OLD)})\b")
    root = Path(kd.__file__).parents[1]
    read = [*root.glob("kdsearch/**/*.py"), *root.glob("docs/*.md"), *root.glob("*.md"), *root.glob("notebooks/*.py")]
    read += [*root.glob("studies/*.py"), *root.glob("results/*.md")]
    found = {path.name: names for path in read if (names := old.findall(path.read_text()))}
    found.pop("CHANGELOG.md", None)  # what was, too
    assert not found
