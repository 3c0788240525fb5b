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


def test_every_row_trains_and_none_twice(variants: ModuleType, tiny_study: kd.Study, tmp_path: Path) -> None:
    test = kd.data.digits()[2].subset(torch.arange(40))
    ready = preflight(replace(tiny_study, test=test, base="auto"), tmp_path / "tiny").ready
    file, asked = tmp_path / "rows.jsonl", [(name, 3) for name in variants.NAMES]
    rows = list(variants.run_rows(ready, 8, asked, file))
    assert not {*variants.TERMS} & {*TABLE}
    assert [row["row"] for row in rows] == list(variants.NAMES) and not list(variants.run_rows(ready, 8, asked, file))
    found = {row["row"]: row["rates"] for row in rows}
    assert len({tuple(found[name].values()) for name in ("default", "few", "gap", "kl", "prior_1", "groups")}) == 6
    groups = [{round(found["groups"][name], 9) for name in names if name in found["groups"]}
              for names in variants.GROUPS.values()]  # fmt: skip
    assert all(len(group) <= 1 for group in groups) and max(map(len, groups)) == 1
    assert len({*found["few"].values()}) > len(groups)


def test_the_terms_are_what_they_are_called(variants: ModuleType) -> None:
    student, teacher, target = torch.randn(3, 5, 4).unbind(0)[0] * 9, torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0])
    ce = torch.nn.functional.cross_entropy(student, target, reduction="none")
    cap = torch.tensor(2 * math.log(4))
    torch.testing.assert_close(variants.student_loss(student, teacher, target), -ce.minimum(cap))
    wrong = -torch.log1p(-student.double().softmax(1)[torch.arange(5), target]).float()
    torch.testing.assert_close(
        variants.student_wrong_capped(student, teacher, target), wrong.minimum(cap), atol=1e-3, rtol=1e-3
    )
