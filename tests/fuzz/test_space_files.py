"""Search spaces as TOML: whatever the file, a `KdsearchError` or a space that a policy starts from."""

import tomllib

import pytest
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
    as_toml,
    bytes_edits,
    edited_bytes,
    edited_tree,
    toml_text,
    value_edits,
)

import kdsearch as kd
from kdsearch.core.maths import generator
from kdsearch.study import catalogue

SHIPPED = {
    name: catalogue.find_shipped("search_spaces", name).read_text() for name in catalogue.shipped_names("search_spaces")
}
SMALL = """\
summary = "x"
fill = "mean"
policy = {learning_rate = {low = 0.03, high = 0.3, log = true, default = 0.1}, prior_strength = false, \
operations_per_image = {low = 1, high = 2, default = 1}, pauses = [0.25, 0.5], passes = 2, floor = false}
objective = {student_wrong = {low = 0.0, high = 1.0, default = 0.5}}
operations = {rotate = {limit = 20.0}, invert = {}, erase = {limit = 0.5}}
"""
BASES = {"small": SMALL, **SHIPPED}


def use(space: kd.SearchSpace) -> None:
    """All that is done with a space before a trial."""
    whole = space.with_defaults(dict(kd.objectives.TST), 0.3)
    space.fingerprint(), whole.fingerprint()
    settings = whole.settings({name: value.high for name, value in space.ranges.items()})
    settings.numbers()
    for s in (space, space.drop(list(space.limits)[1:])):
        start = s.settings()
        policy = kd.Policy(s.limits, start.operations_per_image, probability=start.probability, extent=start.extent,
                           fill=s.fill)  # fmt: skip
        policy.draw(4, generator("fuzz"))
        policy.freeze()


@pytest.fixture(scope="module", autouse=True)
def warm(world):
    for text in BASES.values():
        use(kd.SearchSpace.load(str(world.put("space.toml", text.encode()))))


@inputs("space files")
@given(
    base=st.sampled_from(sorted(BASES)),
    values=st.none() | value_edits(toml_text),
    edits=st.just(()) | bytes_edits,
)
@example("small", (), ())
@example("small", (Put(9000, "deep list"),), ())
@example("small", (Put(9000, "5,000 digits"),), ())
@example("small", (Put(9000, "deep table"),), ())
@example("small", (Put(9000, "dotted"),), ())
@example("small", (Twice(9000, "1"), Rename(0, "\ud7ff")), ())
@example("default", None, (Flip(5, 7), Insert(0, b"\xef\xbb\xbf")))
@example("default", None, (Cut(3000),))
def test_any_space_file(world, base, values, edits):
    text = BASES[base] if values is None else as_toml(edited_tree(tomllib.loads(BASES[base]), values))
    path = world.put("space.toml", edited_bytes(text.encode("utf-8", "surrogatepass"), edits))
    with holds(world, "space files") as outcome:
        use(kd.SearchSpace.load(str(path)))
    if not values and not edits:
        assert outcome.refused is None
