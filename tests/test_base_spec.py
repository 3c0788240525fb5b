"""The base view of a policy, kept in its file: written, read, drawn again, and refused by the place that is wrong."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonschema import Draft202012Validator
from pydantic import ValidationError
from test_spec import put

from kdsearch.augment.bases import as_base, base_of_parts
from kdsearch.augment.policy import Policy
from kdsearch.augment.spec import PolicySpec, schema
from kdsearch.core.errors import KdsearchError
from kdsearch.core.maths import generator

Json = dict[str, Any]
BASE = base_of_parts(["flip", "turn"])


def spec() -> PolicySpec:
    return Policy({"rotate": 30.0, "invert": None}, 1).freeze(provenance={"trial": 1}, base=BASE)


def whole() -> Json:
    return json.loads(spec().to_json())


def complaints(data: Json) -> list[str]:
    return [error.json_path for error in Draft202012Validator(schema()).iter_errors(data)]


def test_a_policy_is_written_with_its_base_view_and_read_with_it(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_text(spec().to_json(), encoding="utf-8")
    read = PolicySpec.load(path)
    assert read == spec() and read.to_json() == spec().to_json()
    data = whole()
    assert data["version"] == 2 and data["base"] == json.loads(BASE.freeze().to_json())
    assert complaints(data) == []


def test_without_a_base_view_a_file_has_no_word_of_it_and_keeps_its_version() -> None:
    data = whole()
    del data["base"]
    for version in (1, 2):
        data["version"] = version
        read = PolicySpec.from_json(json.dumps(data))
        assert read.base is None and json.loads(read.to_json()) == data
        assert PolicySpec.from_json(json.dumps({**data, "base": None})) == read
        assert complaints(data) == complaints({**data, "base": None}) == []


def test_the_base_view_of_a_file_draws_what_the_base_view_drew() -> None:
    read = PolicySpec.from_json(spec().to_json())
    again = Policy.from_spec(read.base)
    mine, theirs = (policy.draw(50, generator("base spec")) for policy in (BASE, again))
    assert torch.equal(mine.gates, theirs.gates) and torch.equal(mine.magnitudes, theirs.magnitudes)
    assert (again.operations, again.fill) == (BASE.operations, "reflect")
    assert Policy.from_spec(read).freeze() == Policy.from_spec(read.model_copy(update={"base": None})).freeze()


def test_a_policy_that_has_a_base_view_is_none_but_its_own_base_is(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_text(spec().to_json(), encoding="utf-8")
    for given in (spec(), path, str(path)):
        with pytest.raises(KdsearchError, match="a base view of its own; allowed: one without, such as its own base"):
            as_base(given)
    assert as_base(spec().base).operations == BASE.operations
    with pytest.raises(ValidationError, match="a base view has none of its own"):
        PolicySpec(**{**dict(spec()), "base": spec()})


TURN = ("base", "schedule", 0, "settings", "rotate")
REFUSED: dict[str, tuple[Callable[[Json], object], str]] = {
    "in version 1": (put("version", value=1), r"\[base\] version 1 has no base view; allowed: null, or version 2"),
    "a newer base": (
        put("base", "version", value=3),
        r"\[base\]: policy version 3; this kdsearch reads versions 1 and",
    ),
    "a base of no version": (lambda data: data["base"].pop("version"), r"\[base\]: policy version None"),
    "a base of another format": (put("base", "format", value="x"), r"\[base\]: not a policy file"),
    "a name": (put("base", value="shift"), r"\[base\]: not a policy file"),
    "a base of a base": (lambda data: data["base"].update(base=copy.deepcopy(data["base"])), r"\[base\.base\] must be"),
    "another unit": (put("base", "operations", "rotate", "unit", value="rad"), r"\[base\.operations\.rotate\] unit is"),
    "an unknown field": (put("base", "operations", "rotate", "x", value=1), r"\[base\.operations\.rotate\.x\] unknown"),
    "too many per image": (
        put("base", "operations_per_image", value=3),
        r"\[base\] operations_per_image is 3; allowed",
    ),
    "high above the limit": (put(*TURN, "high", value=31.0), r"\[base\.schedule\.0\.rotate\] needs 0 <= low <= high"),
    "a probability above one": (put(*TURN, "probability", value=1.1), r"\[base\..*rotate\.probability\] .* got '1\.1'"),
}
NUMBERS = {"too many per image", "high above the limit"}  # a schema cannot compare them


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_base_view_is_refused_in_words_that_name_the_place(case: str) -> None:
    change, message = REFUSED[case]
    data = whole()
    change(data)
    with pytest.raises(KdsearchError, match=message) as caught:
        PolicySpec.from_json(json.dumps(data), place="my.json")
    assert str(caught.value).startswith("my.json: ")
    assert bool(complaints(data)) == (case not in NUMBERS)


def test_all_problems_of_a_base_view_come_in_one_message() -> None:
    data = whole()
    for case in ("another unit", "too many per image"):
        REFUSED[case][0](data)
    with pytest.raises(KdsearchError, match="2 problems"):
        PolicySpec.from_json(json.dumps(data))


def test_bases_within_each_other_are_refused_however_deep() -> None:
    one = json.dumps(whole()["base"])[:-1]
    text = json.dumps({**whole(), "base": "here"}).replace('"here"', ', "base": '.join([one] * 200) + "}" * 200)
    with pytest.raises(
        KdsearchError, match=r"^my\.json: \[base\.base\] must be null: a base view has none of its own$"
    ):
        PolicySpec.from_json(text, place="my.json")


def test_a_spec_says_in_a_few_words_what_its_base_view_is() -> None:
    words = "base view: 2 of 2 operations an image: horizontal_flip on 50 %, rotate on 50 %"
    assert repr(spec()).endswith(f"; {words})") and words in spec()._repr_html_()
    assert "base view" not in repr(BASE.freeze()) + BASE.freeze()._repr_html_()
