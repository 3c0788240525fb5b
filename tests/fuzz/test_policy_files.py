"""Policies as JSON: whatever the file, a `KdsearchError` or a policy that can be exported, drawn and carried out."""

import json

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from law import holds
from shares import inputs
from strategies import (
    Cut,
    Flip,
    Insert,
    Put,
    Rename,
    Twice,
    as_json,
    bytes_edits,
    edited_bytes,
    edited_tree,
    json_text,
    value_edits,
)

import kdsearch as kd
from kdsearch.augment.export import EXPORTERS, differing_operations, omitted_operations
from kdsearch.augment.operations import TABLE as OPERATIONS
from kdsearch.augment.spec import Limits, Setting, Snapshot
from kdsearch.core.maths import generator


def _one(progress: float, *names: str) -> Snapshot:
    settings = {name: Setting(probability=0.5, low=None if OPERATIONS[name].hard is None else 0.0,
                              high=OPERATIONS[name].limit) for name in names}  # fmt: skip
    return Snapshot(progress=progress, settings=settings)


def _spec(*names: str, moments: int = 1) -> kd.PolicySpec:
    made = kd.Policy(names, 1).freeze(
        [_one(i / moments, *names) for i in range(1, moments + 1)], {"study": "x", "n": 1}
    )
    return kd.PolicySpec.from_json(made.to_json())


BASES = {"two": _spec("rotate", "invert", moments=3), "all": _spec(*OPERATIONS), "one": _spec("brightness")}
BASES["one over a base view"] = kd.Policy(["brightness"], 1).freeze(base=kd.Policy(["rotate", "perspective"], 1))


NO_BASE: st.SearchStrategy[kd.PolicySpec | None] = st.none()


def use(spec: kd.PolicySpec) -> None:
    """All that is done with a policy that was read."""
    assert kd.PolicySpec.from_json(spec.to_json()) == spec
    for which in ("final", "average"):
        policy = kd.Policy.from_spec(spec, which)
        draw = policy.draw(4, generator("fuzz"))
        images = torch.rand(4, 3, 8, 8, generator=generator("images"))
        shown = kd.operations.apply(draw, images).images
        assert shown.shape == images.shape
        assert torch.isfinite(shown).all()
        for to in EXPORTERS:
            try:
                text = kd.export(spec, to, which)
            except kd.KdsearchError:
                assert to == "albumentations"  # which cannot express them all
                continue
            json.loads(text) if to == "json" else compile(text, to, "exec")
            omitted_operations(spec, to, which), differing_operations(spec, to, which)
    if spec.base:
        use(spec.base)


@pytest.fixture(scope="module", autouse=True)
def warm():
    for spec in BASES.values():
        use(spec)


@inputs("policy files")
@given(base=st.sampled_from(sorted(BASES)), values=value_edits(json_text), edits=st.just(()) | bytes_edits)
@example("two", (), ())
@example("two", (Put(9000, "very deep list"),), ())
@example("two", (Put(9000, "5,000 digits"),), ())
@example("two", (Twice(100, "1"),), ())
@example("two", (), (Insert(0, b"\xef\xbb\xbf"), Flip(5, 3)))
@example("two", (), (Cut(0),))
@example("two", (Rename(7711, "\U00010000\x07"),), (Flip(8778, 0),))
def test_any_policy_file(world, base, values, edits):
    tree = edited_tree(json.loads(BASES[base].to_json()), values)
    path = world.put("policy.json", edited_bytes(as_json(tree).encode(), edits))
    with holds(world, "policy files") as outcome:
        spec = kd.PolicySpec.load(path)
        use(spec)
    if not values and not edits:
        assert outcome.refused is None


@st.composite
def allowed(draw: st.DrawFn, bases: st.SearchStrategy[kd.PolicySpec | None] = NO_BASE) -> kd.PolicySpec:
    """A policy that is right, with any numbers that are allowed, and with or without a base view."""
    share = st.floats(0, 1)
    names = draw(st.lists(st.sampled_from(list(OPERATIONS)), min_size=1, max_size=5, unique=True))
    limits = {}
    for name in names:
        hard = OPERATIONS[name].hard
        limit = None if hard is None else draw(st.floats(0, hard, exclude_min=True))
        ranges = ["none"] if hard is None else ["pathwise", "endpoint", "fixed"]
        limits[name] = Limits(unit=OPERATIONS[name].unit, limit=limit, range=draw(st.sampled_from(ranges)))
    schedule = []
    for progress in sorted(draw(st.lists(share, min_size=1, max_size=3))):
        settings = {}
        for name, given_ in limits.items():
            ends = (
                None
                if given_.limit is None
                else sorted(draw(st.lists(st.floats(0, given_.limit), min_size=2, max_size=2)))
            )
            low, high = ends or (None, None)
            settings[name] = Setting(probability=draw(share), low=low, high=high)
        schedule.append(Snapshot(progress=progress, settings=settings))
    return kd.PolicySpec(
        operations_per_image=draw(st.integers(1, len(names))),
        fill=draw(st.sampled_from(["zero", "mean", "reflect"])),
        operations=limits,
        schedule=tuple(schedule),
        base=draw(bases),
        provenance=draw(
            st.dictionaries(st.text(max_size=9), st.text(max_size=9) | st.integers() | st.none(), max_size=2)
        ),
    )


@inputs("policies")
@given(allowed(NO_BASE | allowed()))
def test_any_policy_that_is_allowed_is_read_and_used(world, spec):
    path = world.put("policy.json", spec.to_json().encode())
    with holds(world, "policies") as outcome:
        assert kd.PolicySpec.load(path) == spec
        use(spec)
    assert outcome.refused is None
