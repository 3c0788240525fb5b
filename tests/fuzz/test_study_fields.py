"""Studies with a field of another kind, and study files that do anything: a sentence that names what is allowed."""

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from law import holds
from shares import inputs
from strategies import TEXTS, tabled
from test_run_folders import command

import kdsearch as kd
from kdsearch.study.preflight import check_inputs, preflight


class _Odd:
    """An object that answers nothing."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


class _Raises:
    """A data set, or whatever is called, that fails."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Any:
        raise RuntimeError("x")

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("x")


class _Listed:
    """A data set of items."""

    def __init__(self, *items: Any, length: Any = None) -> None:
        self.items, self.length = items, length

    def __len__(self) -> int:
        return len(self.items) if self.length is None else self.length

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


IMAGE = torch.zeros(1, 8, 8)
ODD: Mapping[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "0": lambda: 0,
    "-1": lambda: -1,
    "1": lambda: 1,
    "3": lambda: 3,
    "1.5": lambda: 1.5,
    "2.0": lambda: 2.0,
    "NaN": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "2**31": lambda: 2**31,
    "10**7": lambda: 10**7,
    "2**64": lambda: 2**64,
    "10**400": lambda: 10**400,
    "numpy 3": lambda: np.int64(3),
    "numpy NaN": lambda: np.float64("nan"),
    "tensor 3": lambda: torch.tensor(3),
    "tensor": lambda: torch.zeros(3),
    "tensors": lambda: torch.zeros(4, 1, 8, 8),
    "array": lambda: np.zeros(3),
    "bytes": lambda: b"x",
    "empty list": list,
    "list": lambda: [1, 2],
    "list of texts": lambda: ["a", "b", "c"],
    "twice the same": lambda: ["a", "a", "b"],
    "a text among numbers": lambda: ["a", 1, None],
    "surrogates": lambda: ["\ud800", "b", "c"],
    "markup": lambda: ["[/b]", "=1+1", "\x1b[31m"],
    "dict": dict,
    "dict of NaN": lambda: {"student_wrong": float("nan")},
    "dict of text": lambda: {"student_wrong": "x"},
    "dict of odd keys": lambda: {3: 1.0, None: 2.0},
    "set": lambda: {1, 2},
    "class": lambda: int,
    "function": lambda: lambda *_: 3,
    "function of no argument": lambda: lambda: None,
    "raises": _Raises,
    "object": _Odd,
    "path": lambda: Path("x"),
    "missing path": lambda: Path("/nowhere/x.toml"),
    "network": lambda: kd.networks.small_convnet(2, classes=3),
    "network class": lambda: torch.nn.Linear,
    "network for other images": lambda: torch.nn.Linear(3, 3),
    "network of other classes": lambda: kd.networks.small_convnet(2, classes=5),
    "identity": torch.nn.Identity,
    "makes a network": lambda: lambda: kd.networks.small_convnet(2, classes=3),
    "makes another": lambda: lambda: torch.nn.Linear(3, 3),
    "data": lambda: kd.data.ArrayData(torch.zeros(8, 1, 8, 8), torch.arange(8) % 3),
    "data of NaN": lambda: kd.data.ArrayData(torch.full((8, 1, 8, 8), torch.nan), torch.arange(8) % 3),
    "data without images": lambda: kd.data.ArrayData(torch.zeros(0, 1, 8, 8), torch.zeros(0).long()),
    "data of other lengths": lambda: kd.data.ArrayData(torch.zeros(8, 1, 8, 8), torch.arange(3)),
    "data of text": lambda: kd.data.ArrayData("x", "y"),
    "data of labels out of range": lambda: kd.data.ArrayData(torch.zeros(8, 1, 8, 8), torch.full((8,), 9)),
    "items of text": lambda: _Listed("a", "b"),
    "items of three": lambda: _Listed((IMAGE, 1, 2), (IMAGE, 1, 2)),
    "items of none": lambda: _Listed(None, None),
    "items of dicts": lambda: _Listed({"image": IMAGE, "label": 1}),
    "items of objects": lambda: _Listed((_Odd(), 1), (_Odd(), 1)),
    "labels as text": lambda: _Listed((IMAGE, "cat"), (IMAGE, "dog")),
    "labels of none": lambda: _Listed((IMAGE, None), (IMAGE, None)),
    "images as text": lambda: _Listed(("x", 1), ("y", 2)),
    "images of two sizes": lambda: _Listed((IMAGE, 1), (torch.zeros(1, 9, 9), 2)),
    "a length that is text": lambda: _Listed((IMAGE, 1), length="x"),
    "a length that is negative": lambda: _Listed((IMAGE, 1), length=-1),
    "a length that lies": lambda: _Listed((IMAGE, 1), length=10**12),
    "phases": lambda: (kd.losses.kd(), kd.losses.kd()),
    "loss without a call": lambda: kd.losses.kd,
    "budget": kd.Budget,
    **{f"text {text[:20]!r}": lambda text=text: text for text in TEXTS},  # type: ignore[misc]
    "text surrogate": lambda: "\ud800",
    "text NUL": lambda: "a\0b",
}
FIELDS = tuple(field.name for field in fields(kd.Study))
NUMBERS = tuple(f"budget.{field.name}" for field in fields(kd.Budget))
changes = st.dictionaries(st.sampled_from([*FIELDS, *NUMBERS]), tabled(ODD), min_size=1, max_size=2)


@pytest.fixture(scope="module")
def changed(bars_study: kd.Study) -> Callable[[Mapping[str, str]], kd.Study]:
    """Makes a study with odd values in fields of it or of its budget."""

    def make(odd: Mapping[str, str]) -> kd.Study:
        study = bars_study
        for name, what in odd.items():
            value = ODD[what]()
            if name.startswith("budget."):
                if isinstance(study.budget, kd.Budget):
                    study = replace(study, budget=replace(study.budget, **{name.removeprefix("budget."): value}))
            else:
                study = replace(study, **{name: value})
        return study

    return make


@pytest.fixture(scope="module", autouse=True)
def warm(world, bars_study):
    preflight(bars_study, world.cwd)


@inputs("study fields")
@given(odd=changes)
@example({"budget.batch": "text 'x'"})
@example({"classes": "2**64"})
@example({"classes": "10**7"})
@example({"name": "list"})
@example({"seed": "class"})
@example({"train": "a length that lies"})
@example({"teacher_saw": "array"})
@example({"precision": "array"})
@example({"metric": "array"})
@example({"budget.policy_batch": "10**400"})
@example({"budget.look_images": "10**400"})
def test_any_field_of_a_study_is_looked_at(world, changed, odd):
    with holds(world, "study fields"):
        check_inputs(changed(odd))


@inputs("preflights")
@given(odd=changes)
def test_any_field_of_a_study_in_the_preflight(world, changed, odd):
    with holds(world, "preflights", world.cwd):
        preflight(changed(odd), world.cwd)


PROGRAMS = (
    "", "x = ", "study = 3", "import kdsearch", "raise ValueError", "raise ValueError('\\ud800')",
    "raise BaseException",
    "raise GeneratorExit", "raise KeyboardInterrupt", "raise SystemExit", "raise MemoryError", "raise StopIteration",
    "import sys; sys.exit(0)", "import sys; sys.exit('x')", "import sys; sys.exit(3)", "def f(): f()\nf()",
    "import nowhere", "from kdsearch import nowhere", "1 / 0", "study = study", "raise type('E', (BaseException,), {})",
    "class E(Exception):\n  def __str__(self): raise E\nraise E", "import kdsearch\nkdsearch.Study()", "\0", "\xff",
    "import kdsearch\nstudy = kdsearch.Study(*range(7))", "import kdsearch\nstudy = kdsearch.Study", "(" * 500,
    "print('x')",
    "import os\nos.chdir('/nowhere')", "import warnings\nwarnings.warn('x')", "# coding: nothing\n", "assert False",
    "import kdsearch\nkdsearch.Policy({}, 1)", "yield", "await x", "return",
    "def __getattr__(name): raise RuntimeError",
)  # fmt: skip


@inputs("study files")
@given(program=st.sampled_from(PROGRAMS) | st.text(max_size=40), doer=st.sampled_from(["search", "rank"]))
@example("import sys; sys.exit(0)", "search")
@example("raise GeneratorExit", "search")
@example("raise BaseException", "rank")
@example("class E(Exception):\n  def __str__(self): raise E\nraise E", "rank")
@example("class E(BaseException):\n  def __str__(self): raise E\nraise E", "search")
@example("raise KeyboardInterrupt", "search")
def test_any_study_file(world, program, doer):
    path = world.put("study.py", program.encode("utf-8", "surrogatepass"))
    with holds(world, "study files", world.cwd) as outcome:
        outcome.refused = command(doer, str(path))
    assert outcome.refused is not None
