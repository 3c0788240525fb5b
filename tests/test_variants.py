"""`benchmarks/variants.py`: every row trains, groups stay tied, and terms are what they are called."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

import kdsearch as kd
from kdsearch.losses.objectives import TABLE
from kdsearch.study.preflight import preflight


@pytest.fixture(scope="module")
def variants(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("variants")


TRAINED = ("rand_augment", "geometry", "start_4", "learned", "former", "gap", "prior_1", "groups", "varied",
           "ranges_held", "frozen", "free", "score", "whole_batch", "identity")  # fmt: skip


def test_a_row_of_each_kind_trains_and_none_twice(variants: ModuleType, tiny_study: kd.Study, tmp_path: Path) -> None:
    test = kd.data.digits()[2].subset(torch.arange(40))
    ready = preflight(replace(tiny_study, test=test, base="auto"), tmp_path / "tiny").ready
    file, asked = tmp_path / "rows.jsonl", [(name, 3) for name in TRAINED]
    rows = list(variants.run_rows(ready, 8, asked, file))
    assert not {*variants.TERMS} & {*TABLE}
    assert [row["row"] for row in rows] == list(TRAINED) and not list(variants.run_rows(ready, 8, asked, file))
    assert {variants.VARIANTS[name].how for name in TRAINED} == {one.how for one in variants.VARIANTS.values()}
    found = {row["row"]: row["rates"] for row in rows}
    told_apart = ("learned", "former", "gap", "prior_1", "groups", "score", "whole_batch")
    assert len({tuple(found[name].values()) for name in told_apart}) == len(told_apart)
    groups = [{round(found["groups"][name], 9) for name in names if name in found["groups"]}
              for names in variants.GROUPS.values()]  # fmt: skip
    assert all(len(group) <= 1 for group in groups) and max(map(len, groups)) == 1
    assert len({*found["learned"].values()}) > len(groups)


def test_every_row_of_the_file_says_what_it_is_and_differs(variants: ModuleType) -> None:
    rows = variants.VARIANTS.values()
    assert all(row.about for row in rows)
    assert len({repr(row.model_copy(update={"about": ""})) for row in rows}) == len(rows)


def test_held_ranges_stay(variants: ModuleType, tiny_study: kd.Study, tmp_path: Path) -> None:
    ready = preflight(replace(tiny_study, base="auto"), tmp_path / "tiny").ready
    policies = {name: variants.train(ready, name, 3)[1] for name in ("learned", "ranges_held")}
    start = ready.policy(variants.VARIANTS["learned"].settings(ready))
    assert torch.equal(policies["ranges_held"].a, start.a) and torch.equal(policies["ranges_held"].b, start.b)
    assert not torch.equal(policies["learned"].a, start.a)
    assert not torch.equal(policies["ranges_held"].logit, start.logit)


def test_the_terms_are_what_they_are_called(variants: ModuleType) -> None:
    student, teacher, target = torch.randn(3, 5, 4).unbind(0)[0] * 9, torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0])
    ce = torch.nn.functional.cross_entropy(student, target, reduction="none")
    cap = torch.tensor(2 * math.log(4))
    torch.testing.assert_close(variants.student_loss(student, teacher, target), -ce.minimum(cap))
    wrong = -torch.log1p(-student.double().softmax(1)[torch.arange(5), target]).float()
    torch.testing.assert_close(
        variants.student_wrong_capped(student, teacher, target), wrong.minimum(cap), atol=1e-3, rtol=1e-3
    )
