"""Policies as files: what comes back, and what is refused with which words."""

import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdsearch.augment.operations import TABLE as OPERATIONS
from kdsearch.augment.policy import Policy
from kdsearch.augment.spec import MOST_BYTES, PolicySpec
from kdsearch.core.errors import KdsearchError

Json = dict[str, Any]


def spec() -> PolicySpec:
    """All operations, three moments of training, provenance of every kind."""
    policies = [Policy(list(OPERATIONS), 3, probability=p, extent=e) for p, e in ((0.2, 0.3), (0.4, 0.5), (0.8, 0.9))]
    schedule = [policy.snapshot(progress) for policy, progress in zip(policies, (0.25, 0.5, 1.0), strict=True)]
    return policies[-1].freeze(schedule, {"study": "digits", "trial": 3, "accuracy": 0.97, "note": None})


def small() -> Json:
    return json.loads(Policy({"rotate": 30.0, "invert": None}, 1).freeze(provenance={"trial": 1}).to_json())


def test_a_policy_written_and_read_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_text(spec().to_json(), encoding="utf-8")
    assert PolicySpec.load(path) == PolicySpec.from_json(spec().to_json()) == spec()
    assert PolicySpec.load(path).to_json() == spec().to_json()


def test_the_file_holds_plain_numbers_with_units() -> None:
    data = json.loads(spec().to_json())
    assert (data["format"], data["version"]) == ("kdsearch-policy", 2)
    assert data["operations"]["rotate"] == {"unit": "degrees", "limit": 30.0, "range": "pathwise"}
    assert data["operations"]["invert"] == {"unit": "", "limit": None, "range": "none"}
    turn = data["schedule"][-1]["settings"]["rotate"]
    assert turn["probability"] == pytest.approx(0.8) and turn["high"] == pytest.approx(27.0)


def test_the_final_policy_is_the_last_and_the_average_that_of_the_second_half() -> None:
    policy = spec()
    assert policy.final == policy.which("final") == policy.schedule[-1].settings
    turn = policy.which("average")["rotate"]
    assert turn.probability == pytest.approx(0.6) and turn.high == pytest.approx(0.7 * 30)
    assert policy.average["invert"].low is None
    assert policy.rate("rotate") == pytest.approx(0.8 * 3 / len(OPERATIONS))
    assert policy.rate("rotate", "average") == pytest.approx(0.6 * 3 / len(OPERATIONS))
    with pytest.raises(KdsearchError, match="did you mean 'final'"):
        policy.which("finl")


def put(*path: str | int, value: object) -> Callable[[Json], None]:
    """Set one place of the data."""

    def change(data: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = value

    return change


def rename(data: Json) -> None:
    data["operations"]["rotat"] = data["operations"].pop("rotate")
    data["schedule"][0]["settings"]["rotat"] = data["schedule"][0]["settings"].pop("rotate")


TURN = ("schedule", 0, "settings", "rotate")
REFUSED: dict[str, tuple[Callable[[Json], object], str]] = {
    "unknown operation": (rename, r"unknown operation 'rotat'; did you mean 'rotate'\?"),
    "unknown field": (put("operations", "rotate", "limits", value=1.0), r"operations\.rotate\.limits\] unknown field"),
    "unknown field at the top": (put("colour", value=1), r"\[colour\] unknown field"),
    "missing field": (lambda data: data.pop("operations_per_image"), r"operations_per_image\] field required"),
    "another version": (put("version", value=3), "policy version 3; this kdsearch reads versions 1 and 2"),
    "version as text": (put("version", value="1"), "policy version '1'"),
    "another format": (put("format", value="albumentations"), "not a policy file"),
    "another unit": (put("operations", "rotate", "unit", value="radians"), "unit is 'radians'.* 'degrees'"),
    "limit above the hard range": (put("operations", "rotate", "limit", value=181.0), "at most 180 degrees"),
    "limit of zero": (put("operations", "rotate", "limit", value=0.0), r"operations\.rotate\.limit"),
    "no limit where there is one": (put("operations", "rotate", "limit", value=None), "limit is None"),
    "limit where there is none": (put("operations", "invert", "limit", value=1.0), "allowed: null"),
    "low above high": (put(*TURN, "low", value=20.0), r"0 <= low <= high <= 30; got 20.0 and 15.0"),
    "high above the limit": (put(*TURN, "high", value=31.0), "got .* and 31.0"),
    "range missing": (put(*TURN, "low", value=None), "got None and 15.0"),
    "negative low": (put(*TURN, "low", value=-1.0), r"rotate\.low"),
    "range without magnitude": (put("schedule", 0, "settings", "invert", "high", value=1.0), "has no magnitude"),
    "probability above one": (put(*TURN, "probability", value=1.01), r"rotate\.probability"),
    "probability as text": (put(*TURN, "probability", value="0.5"), r"rotate\.probability\].*got '0.5'"),
    "probability as truth": (put(*TURN, "probability", value=True), r"rotate\.probability"),
    "not a number": (put(*TURN, "probability", value=float("nan")), "NaN is not allowed"),
    "infinity": (put(*TURN, "high", value=float("inf")), "Infinity is not allowed"),
    "too many per image": (put("operations_per_image", value=3), "allowed: 1 to 2"),
    "none per image": (put("operations_per_image", value=0), "operations_per_image"),
    "no schedule": (put("schedule", value=[]), r"\[schedule\]"),
    "operations that differ": (lambda data: data["schedule"][0]["settings"].pop("invert"), r"schedule\.0\].*: invert"),
    "progress going back": (
        lambda data: data["schedule"].append({**data["schedule"][0], "progress": 0.5}),
        "must not go back",
    ),
    "seventeen moments": (lambda data: data["schedule"].extend(data["schedule"] * 16), r"\[schedule\].*16"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_policy_is_refused_in_words_that_name_the_place(case: str) -> None:
    change, message = REFUSED[case]
    data = small()
    PolicySpec.from_json(json.dumps(data))
    change(data)
    with pytest.raises(KdsearchError, match=message) as caught:
        PolicySpec.from_json(json.dumps(data), place="my.json")
    assert str(caught.value).startswith("my.json: ")


def test_all_problems_come_in_one_message() -> None:
    data = small()
    for change in ("unknown operation", "another unit", "too many per image"):
        REFUSED[change][0](data) if change != "another unit" else put("operations", "invert", "unit", value="x")(data)
    with pytest.raises(KdsearchError, match="3 problems") as caught:
        PolicySpec.from_json(json.dumps(data))
    assert all(word in str(caught.value) for word in ("rotat", "unit is 'x'", "operations_per_image is 3"))
    data = small()
    for change in ("probability above one", "unknown field", "no schedule"):
        REFUSED[change][0](data)
    with pytest.raises(KdsearchError, match="2 problems"):  # the settings are gone with the schedule
        PolicySpec.from_json(json.dumps(data))


def test_one_problem_is_not_told_as_two() -> None:
    """A moment with a mistake in it is still a moment: the schedule is not too short."""
    data = small()
    REFUSED["probability above one"][0](data)
    with pytest.raises(KdsearchError, match="1 problem"):
        PolicySpec.from_json(json.dumps(data))


UNREADABLE = {
    "nothing": "",
    "a number": "3",
    "a list": "[]",
    "cut short": spec().to_json()[:200],
    "a repeated key": '{"format": "kdsearch-policy", "version": 1, "version": 1}',
    "a number beyond floats": json.dumps(small()).replace("30.0", "1e999"),
    "a number of too many digits": '{"format": "kdsearch-policy", "version": ' + "1" * 5000 + "}",
    "brackets without end": "[" * 100_000,
    "half a character": '{"format": "kdsearch-policy", "version": 1, "\\ud800": 1}',
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_a_text_that_is_no_policy_is_refused(case: str) -> None:
    with pytest.raises(KdsearchError, match="policy"):
        PolicySpec.from_json(UNREADABLE[case])


def test_a_text_that_is_too_long_is_refused_before_it_is_read() -> None:
    with pytest.raises(KdsearchError, match="1,000,100 characters; a policy has at most 1,000,000"):
        PolicySpec.from_json(spec().to_json().ljust(MOST_BYTES + 100))


def test_a_repeated_key_is_named() -> None:
    with pytest.raises(KdsearchError, match="repeated key version"):
        PolicySpec.from_json(UNREADABLE["a repeated key"])


def test_files_that_cannot_be_a_policy_are_refused_by_name(tmp_path: Path) -> None:
    huge, binary = tmp_path / "huge.json", tmp_path / "binary.json"
    huge.write_text(" " * (MOST_BYTES + 1))
    binary.write_bytes(b"\xff\xfe\x00")
    for path, message in ((huge, "larger than"), (binary, "cannot read"), (tmp_path / "none.json", "cannot read")):
        with pytest.raises(KdsearchError, match=message) as caught:
            PolicySpec.load(path)
        assert str(path) in str(caught.value)


def test_a_stranger_cannot_keep_the_reader_busy() -> None:
    """Reading takes time in proportion to the text: 20,000 keys, a fifth of the greatest size."""
    text = "{" + ", ".join(f'"{i:x}": 0' for i in range(20_000)) + "}"
    start = time.process_time()
    with pytest.raises(KdsearchError, match="not a policy file"):
        PolicySpec.from_json(text)
    assert time.process_time() - start < 2


def test_a_frozen_policy_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        spec().operations_per_image = 2


# Any damage is refused in words or gives a policy that is whole

numbers = st.floats(allow_nan=True) | st.integers(-5, 200) | st.integers()
values = st.none() | st.booleans() | numbers | st.text(max_size=8) | st.just([]) | st.just({})
names = st.sampled_from([*OPERATIONS, "rotat", "limit", "probability", "version"]) | st.text(max_size=8)


def places(data: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Every place in nested lists and dicts."""
    parts = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [place for key, part in parts for place in [(*path, key), *places(part, (*path, key))]]


@st.composite
def damaged(draw: st.DrawFn) -> str:
    data = copy.deepcopy(small())
    for _ in range(draw(st.integers(1, 3))):
        found = places(data)
        if not found:
            break
        *path, last = draw(st.sampled_from(found))
        target: Any = data
        for key in path:
            target = target[key]
        match draw(st.sampled_from(["value", "scale", "delete", "add", "rename"])):
            case "value":
                target[last] = draw(values)
            case "scale" if isinstance(target[last], float):
                target[last] *= draw(st.floats(0, 2))
            case "delete":
                del target[last]
            case "add" if isinstance(target, dict):
                target[draw(names)] = draw(values | st.just(target[last]))
            case "rename" if isinstance(target, dict):
                target[draw(names)] = target.pop(last)
    text = json.dumps(data)
    if draw(st.integers(0, 4)) == 0:
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(st.text(max_size=3)) + text[at + draw(st.integers(0, 3)) :]
    return text


@settings(
    max_examples=300, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
@given(damaged())
def test_a_damaged_policy_is_refused_or_is_a_policy(text: str) -> None:
    try:
        policy = PolicySpec.from_json(text)
    except KdsearchError as error:
        assert str(error).startswith("policy")
        return
    assert PolicySpec.from_json(policy.to_json()) == policy
    for which in ("final", "average"):
        draw = Policy.from_spec(policy, which).draw(4)
        assert ((draw.magnitudes >= -180) & (draw.magnitudes <= 180)).all()


def test_how_a_range_came_about_is_read_whatever_this_version_would_do() -> None:
    """Brightness learns from its ends now; files say `pathwise` from before."""
    data = json.loads(Policy(["brightness", "solarize", "invert"], 1).freeze().to_json())
    for name in ("brightness", "solarize"):
        for kind in ("pathwise", "endpoint", "fixed"):
            data["operations"][name]["range"] = kind
            assert PolicySpec.from_json(json.dumps(data)).operations[name].range == kind
    data["operations"]["invert"]["range"] = "fixed"
    with pytest.raises(KdsearchError, match="range is 'fixed'; allowed: none"):
        PolicySpec.from_json(json.dumps(data))
