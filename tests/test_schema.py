"""The published JSON Schema of policy files, and what reading makes of files that it refuses.

Damage of other kinds is in test_spec.py.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from kdsearch.augment.operations import FILLS
from kdsearch.augment.operations import TABLE as OPERATIONS
from kdsearch.augment.policy import Policy
from kdsearch.augment.spec import PolicySpec, schema
from kdsearch.core.errors import KdsearchError

FILE = Path(__file__).parents[1] / "docs" / "policy.schema.json"
REWRITE = (
    """python -c 'import json; from kdsearch.augment.spec import schema; print(json.dumps(schema(), indent=1))' > {}"""
)
VALIDATOR = Draft202012Validator(schema())
ONCE = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


def complaints(data: Any) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in VALIDATOR.iter_errors(data)]


def test_the_file_is_what_the_code_gives() -> None:
    expected = json.dumps(schema(), indent=1) + "\n"
    assert FILE.read_text(encoding="utf-8") == expected, f"run  {REWRITE.format('docs/policy.schema.json')}"


def test_it_is_a_schema_that_describes_every_field() -> None:
    Draft202012Validator.check_schema(schema())
    assert schema()["$id"] == "urn:kdsearch:policy:2"
    for part in (schema(), *schema()["$defs"].values()):
        for name, field in part["properties"].items():
            assert field["description"].endswith("."), name
    for name, described in schema()["properties"]["operations"]["properties"].items():
        assert OPERATIONS[name].unit in described["description"]


# Policies that are read


@st.composite
def policies(draw: st.DrawFn) -> dict[str, Any]:
    """Any policy, as plain data."""
    names = draw(st.lists(st.sampled_from(list(OPERATIONS)), min_size=1, max_size=6, unique=True))
    limits, schedule = {}, []
    for name in names:
        op = OPERATIONS[name]
        limit = None if op.hard is None else draw(st.floats(0, op.hard, exclude_min=True) | st.just(op.hard))
        kind = draw(st.sampled_from(["none"] if op.hard is None else [op.range, "fixed"]))
        limits[name] = {"unit": op.unit, "limit": limit, "range": kind}
    for progress in sorted(draw(st.lists(st.floats(0, 1) | st.integers(0, 1), min_size=1, max_size=4))):
        moment: dict[str, Any] = {}
        for name in names:
            moment[name] = {"probability": draw(st.floats(0, 1) | st.integers(0, 1))}
            if limits[name]["limit"] is not None:
                ends = draw(st.tuples(*[st.floats(0, limits[name]["limit"])] * 2))
                moment[name] |= {"low": min(ends), "high": max(ends)}
            elif draw(st.booleans()):
                moment[name] |= {"low": None, "high": None}
        schedule.append({"progress": progress, "settings": moment})
    data = {
        "format": "kdsearch-policy",
        "version": draw(st.sampled_from([1, 2])),
        "operations_per_image": draw(st.integers(1, len(names))),
        "operations": limits,
        "schedule": schedule,
    }
    if draw(st.booleans()):
        data["fill"] = draw(st.sampled_from(FILLS))
    if draw(st.booleans()):
        plain = st.text() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.none()
        data["provenance"] = draw(st.dictionaries(st.text(), plain, max_size=3))
    return data


@ONCE
@given(policies())
def test_every_policy_that_is_read_satisfies_the_schema(data: dict[str, Any]) -> None:
    spec = PolicySpec.from_json(json.dumps(data))
    assert complaints(data) == []
    assert complaints(json.loads(spec.to_json())) == []
    assert PolicySpec.from_json(spec.to_json()) == spec


# Files that are damaged

HUGE = [10**400, -(10**400), 10**5000, 2**63, 1e308, -1e308, 5e-324]
junk: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.sampled_from(HUGE[:2] + HUGE[3:]) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


def places(data: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Every place in nested lists and dicts."""
    parts = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [place for key, part in parts for place in [(*path, key), *places(part, (*path, key))]]


def whole() -> dict[str, Any]:
    return json.loads(Policy({"rotate": 30.0, "invert": None, "hue": 0.1}, 2).freeze(provenance={"n": 1}).to_json())


def put(data: Any, path: tuple[str | int, ...], value: Any) -> None:
    for key in path[:-1]:
        data = data[key]
    data[path[-1]] = value


def read(text: str) -> PolicySpec | None:
    """The policy, or None where it is refused, which is one message that begins with the place."""
    try:
        spec = PolicySpec.from_json(text, place="my.json")
    except KdsearchError as error:
        assert str(error).startswith("my.json: ")
        return None
    assert PolicySpec.from_json(spec.to_json()) == spec
    return spec


@ONCE
@given(st.sampled_from(places(whole())), junk)
def test_junk_in_one_place_is_refused_by_that_place_or_is_a_policy(path: tuple[str | int, ...], value: Any) -> None:
    data = whole()
    put(data, path, value)
    text = json.dumps(data)
    if read(text) is not None:
        assert complaints(json.loads(text)) == []
        return
    with pytest.raises(KdsearchError) as caught:
        PolicySpec.from_json(text, place="my.json")
    message = str(caught.value)
    constants = "NaN is not allowed" in message or "Infinity is not allowed" in message
    assert constants or any(str(key) in message for key in path if isinstance(key, str)), message


@pytest.mark.parametrize("path", places(whole()), ids=lambda path: ".".join(map(str, path)))
def test_huge_numbers_are_refused_in_words_everywhere(path: tuple[str | int, ...]) -> None:
    for value in HUGE:
        data = whole()
        put(data, path, "a number")
        text = json.dumps(data).replace('"a number"', str(value) if value != 10**5000 else "1" + "0" * 5000)
        if (spec := read(text)) is not None:
            assert complaints(json.loads(spec.to_json())) == []


@ONCE
@given(policies(), st.data())
def test_a_file_cut_short_is_refused(data: dict[str, Any], more: st.DataObject) -> None:
    text = json.dumps(data)
    assert read(text[: more.draw(st.integers(0, len(text) - 1))]) is None


@ONCE
@given(st.binary(max_size=200), st.integers(0, 500))
def test_bytes_of_any_kind_are_refused_by_the_file_s_name(tmp_path: Path, noise: bytes, at: int) -> None:
    path = tmp_path / "my.json"
    start = json.dumps(whole()).encode()[:at]
    path.write_bytes(start + noise)
    with pytest.raises(KdsearchError) as caught:
        PolicySpec.load(path)
    assert str(path) in str(caught.value)


@ONCE
@given(st.sampled_from(list(OPERATIONS)) | st.text(max_size=8), st.sampled_from(["operations", "settings"]))
def test_the_schema_refuses_other_names_and_other_operations_numbers(name: str, where: str) -> None:
    data = whole()
    table = data["operations"] if where == "operations" else data["schedule"][0]["settings"]
    table[name] = table["rotate"]
    assert bool(complaints(data)) == (name != "rotate")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("format",), "albumentations"),
        (("version",), 3),
        (("fill",), "black"),
        (("operations", "rotate", "unit"), "radians"),
        (("operations", "rotate", "limit"), 181.0),
        (("operations", "rotate", "limit"), 0.0),
        (("operations", "rotate", "limit"), None),
        (("operations", "invert", "limit"), 1.0),
        (("schedule",), []),
        (("schedule", 0, "progress"), 1.1),
        (("schedule", 0, "settings", "rotate", "probability"), -0.1),
        (("schedule", 0, "settings", "rotate", "low"), None),
        (("schedule", 0, "settings", "rotate", "high"), 181.0),
        (("schedule", 0, "settings", "invert", "high"), 1.0),
        (("provenance", "n"), [1]),
        (("colour",), 1),
    ],
)
def test_the_schema_names_the_place_as_reading_does(path: tuple[str | int, ...], value: Any) -> None:
    data = whole()
    assert complaints(data) == []
    put(data, path, value)
    assert complaints(data)
    assert read(json.dumps(data)) is None


@pytest.mark.parametrize("end", ["low", "high"])
def test_the_schema_asks_for_both_ends_of_a_range(end: str) -> None:
    data = whole()
    del data["schedule"][0]["settings"]["rotate"][end]
    assert complaints(data)
    assert read(json.dumps(data)) is None
