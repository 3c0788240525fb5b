"""Exported files of a policy that has a base view: both views, with our pixels and draws, in files that stand alone.

What each operation gives alone, and the draw of all of them, is in test_export.py and test_export_albumentations.py.
"""

import ast
import copy
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import albumentations as A
import pytest
import torch
from scipy.stats import binomtest, kstest
from test_export import PYTHON, decided, replay

from kdsearch.augment.bases import base_of_parts
from kdsearch.augment.export import differing_operations, export, omitted_operations
from kdsearch.augment.export.albumentations import DIFFERENT, LEFT_OUT
from kdsearch.augment.operations import TABLE as OPERATIONS
from kdsearch.augment.operations import apply
from kdsearch.augment.policy import Policy
from kdsearch.augment.spec import PolicySpec, Setting, Snapshot
from kdsearch.commands.cli import main
from kdsearch.core.errors import KdsearchError
from kdsearch.core.maths import generator

MILD = ["horizontal_flip", "scale", "rotate", "translate_x", "translate_y", "brightness", "erase"]


def base_of(*names: str, fill: str = "reflect", probability: float = 0.8) -> Policy:
    return Policy(names, len(names), probability=probability, fill=fill)


def over(base: Policy, *names: str, n: int = 1, fill: str = "zero") -> PolicySpec:
    return Policy(names, n, probability=0.8, fill=fill).freeze(base=base)


def bare(spec: PolicySpec) -> PolicySpec:
    return spec.model_copy(update={"base": None})


@pytest.mark.parametrize("to", PYTHON)
@pytest.mark.parametrize("fills", [("reflect", "zero"), ("mean", "reflect"), ("zero", "zero"), ("mean", "mean")])
def test_both_views_have_our_pixels(fills: tuple[str, str], to: str, load, photos) -> None:
    """Each with what stands where geometry finds no pixel in its own view."""
    base = base_of(*MILD, fill=fills[0])
    spec = over(base, *OPERATIONS, n=6, fill=fills[1])
    module, x = load(spec, to), photos[:60]
    first, second = base.draw(60, generator("base")), Policy.from_spec(spec).draw(60, generator("second"))
    view = apply(first, x).images
    off = (replay(to, SimpleNamespace(policy=module.base), first, x) - view).abs()
    assert off.max() <= 5e-5 and off.mean() <= 5e-7
    off = (replay(to, module, second, view) - apply(second, view).images).abs()
    assert (off > 1 / 255).double().mean() <= 1e-3 and off.mean() <= 4e-6


@pytest.mark.parametrize("to", PYTHON)
def test_each_view_is_drawn_with_the_rates_signs_and_ranges_of_its_own(to: str, load) -> None:
    base = Policy({"rotate": 10.0, "translate_x": 0.125, "erase": 0.4}, 2, probability=0.7)
    spec = Policy({"rotate": 60.0, "invert": None, "erase": 0.9}, 1, probability=0.4).freeze(base=base)
    module, size, p_values = load(spec, to), 4000, []
    torch.manual_seed(5)
    for part, drawn in ((spec.base, module.base), (spec, module.policy)):
        draws = decided(to, SimpleNamespace(policy=drawn), size)
        assert max(len(row) for row in draws) == part.operations_per_image
        assert {name for row in draws for name, *_ in row} == set(part.operations)
        for name, setting in part.final.items():
            found = [m for row in draws for got, m, _ in row if got == name]
            p_values.append(binomtest(len(found), size, part.rate(name)).pvalue)
            if setting.high:
                sizes, width = [abs(m) for m in found], setting.high - setting.low
                p_values.append(kstest(sizes, "uniform", args=(setting.low, width)).pvalue)
            if OPERATIONS[name].signed:
                p_values.append(binomtest(sum(m < 0 for m in found), len(found), 0.5).pvalue)
    assert min(p_values) > 1e-3 / len(p_values) / len(PYTHON)


@pytest.mark.parametrize("to", PYTHON)
def test_a_file_without_a_base_view_has_no_word_of_one(to: str) -> None:
    spec = bare(over(base_of(*MILD), *OPERATIONS))
    text, first = export(spec, to), export(spec.model_copy(update={"version": 1}), to)
    assert text == first.replace("kdsearch-policy, version 1.", "kdsearch-policy, version 2.") != first
    words = ("BASE", "base", "self.operations", "self.fill", "__init__", "padding =")
    assert not [word for word in words if word in text]


@pytest.mark.parametrize("to", PYTHON)
def test_a_file_warps_with_one_fill_unless_the_views_differ_in_it(to: str) -> None:
    def words(spec: PolicySpec) -> set[str]:
        return {word for word in ("self.fill", "padding =", "mean =", "def warp") if word in export(spec, to)}

    assert words(over(base_of("rotate"), "rotate", fill="reflect")) == {"def warp"}
    assert words(over(base_of("rotate"), "invert", fill="mean")) == {"def warp"}  # nothing of the policy moves
    assert words(over(base_of("invert"), "rotate", fill="mean")) == {"def warp", "mean ="}
    assert words(over(base_of("rotate"), "rotate")) == {"def warp", "self.fill", "padding ="}
    assert words(over(base_of("rotate"), "rotate", fill="mean")) == {"def warp", "self.fill", "padding =", "mean ="}
    assert words(over(base_of("invert"), "invert")) == set()


def test_files_of_both_views_are_formatted_and_have_no_unused_imports(tmp_path: Path) -> None:
    cases = [over(base_of(*MILD), *OPERATIONS, fill=fill) for fill in ("zero", "mean", "reflect")]
    cases += [over(base_of(*base), *own) for base in (["invert"], ["rotate"]) for own in (["hue"], ["rotate", "erase"])]
    for to in PYTHON:
        for i, spec in enumerate(cases):
            (tmp_path / f"{to}_{i}.py").write_text(export(spec, to), encoding="utf-8")
    for command in (["format", "--check"], ["check", "--select", "E,F,I,B,UP,W"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--isolated", "--no-cache", "--line-length", "120"]
        done = subprocess.run([*ruff, str(tmp_path)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("to", PYTHON)
def test_a_base_view_from_a_stranger_brings_no_code(to: str) -> None:
    clean = over(base_of(*MILD), "rotate")
    evil = clean.base.model_copy(update={"provenance": {"a\nimport os": '"""\nraise SystemExit'}})
    text = export(clean.model_copy(update={"base": evil}), to)
    assert ast.dump(ast.parse(text)) == ast.dump(ast.parse(export(clean, to)))


@pytest.mark.parametrize("to", PYTHON)
def test_both_views_are_called_and_switched_off_by_themselves_and_need_no_kdsearch(to: str, load) -> None:
    shift = {"translate_x": Setting(probability=1.0, low=0.1, high=0.2)}
    invert_some = {"solarize": Setting(probability=1.0, low=0.4, high=0.5)}
    base, policy = (
        Policy(list(settings), 1).freeze([Snapshot(progress=1.0, settings=settings)])
        for settings in (shift, invert_some)
    )
    module = load(policy.model_copy(update={"base": base}), to)
    for node in ast.walk(ast.parse(Path(module.__file__).read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        assert {name.split(".")[0] for name in names} <= {"torch", "torchvision", "kornia"}
    x = torch.rand({"torchvision": (3, 16, 12), "kornia": (4, 3, 16, 12)}[to], generator=generator("both"))
    torch.manual_seed(0)
    view = module.base(x)
    second = module.policy(view)
    assert not torch.equal(view, x) and not torch.equal(second, view)
    assert ((second == view) | (second == 1 - view)).all()  # the policy's alone
    copies = copy.deepcopy((module.base, module.policy))
    torch.manual_seed(0)
    assert torch.equal(copies[1](copies[0](x)), second)
    assert "translate_x: probability 1.00, +-0.1" in repr(module.base) and "solarize" in repr(module.policy)
    assert module.base.eval()(x) is x and not torch.equal(module.policy(x), x)


def test_the_dict_for_albumentations_holds_both_views() -> None:
    base = base_of_parts(["flip", "turn"], fill="zero")
    spec = over(base, "invert", "rotate", n=2)
    data = json.loads(export(spec, "albumentations"))
    assert data.pop("base") == json.loads(export(base.freeze(), "albumentations"))
    assert data == json.loads(export(bare(spec), "albumentations"))
    both = json.loads(export(spec, "albumentations"))
    for part, given in ((both["base"], [A.HorizontalFlip, A.OneOf]), (both, [A.OneOf, A.InvertImg])):
        assert [type(transform) for transform in A.from_dict(part)[0].transforms] == given


def test_what_a_target_leaves_out_of_a_base_view_is_said(tmp_path: Path, monkeypatch, capsys) -> None:
    spec = over(base_of("rotate", "perspective", probability=0.5, fill="mean"), "hue", "rotate")
    assert omitted_operations(spec, "albumentations") == {"base.perspective": LEFT_OUT["perspective"]}
    found = differing_operations(spec, "albumentations")
    assert list(found) == ["rotate", "hue", "base.rotate"]
    assert found["base.rotate"].startswith(found["rotate"] + "; ") and "not its mean" in found["base.rotate"]
    (tmp_path / "policy.json").write_text(spec.to_json(), encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["kdsearch", "export", str(tmp_path / "policy.json"), "--to", "albumentations"])
    with pytest.raises(SystemExit):
        main()
    out, err = capsys.readouterr()
    assert out == export(spec, "albumentations")
    assert err.splitlines() == [
        f"left out: base.perspective (rate 50.0 %): {LEFT_OUT['perspective']}",
        f"differs: rotate (rate 40.0 %): {DIFFERENT['rotate']}",
        f"differs: hue (rate 40.0 %): {DIFFERENT['hue']}",
        f"differs: base.rotate (rate 50.0 %): {found['base.rotate']}",
    ]


def test_a_base_view_of_which_nothing_is_left_is_refused() -> None:
    with pytest.raises(KdsearchError, match="can do nothing of what the base view of this policy does: erase"):
        export(over(base_of("erase"), "invert"), "albumentations")


@pytest.mark.parametrize("which", ["final", "average"])
def test_json_carries_the_base_view(which: str) -> None:
    spec = over(base_of(*MILD), "rotate")
    assert PolicySpec.from_json(export(spec, "json", which)).base == spec.base
