"""What is said of a study before anything is trained."""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kdsearch as kd
from kdsearch.core.errors import KdsearchError
from kdsearch.core.memory import Fit, largest_batch
from kdsearch.core.values import Batch
from kdsearch.data.batches import ArrayData
from kdsearch.probe.evaluation import TeacherMeasurement
from kdsearch.study import costs
from kdsearch.study.costs import check_memory, estimate_seconds
from kdsearch.study.preflight import _remembers, check_inputs, preflight
from kdsearch.study.ready import Ready
from kdsearch.study.study import Study


def refused(study: Study, tmp_path: Any) -> str:
    with pytest.raises(KdsearchError) as caught:
        preflight(study, tmp_path)
    return str(caught.value)


def relabelled(data: ArrayData, labels: Tensor) -> ArrayData:
    return replace(data, labels=labels)


def test_a_teacher_with_its_classes_in_another_order_is_refused_with_the_reason(tiny_study, tmp_path) -> None:
    turned = relabelled(tiny_study.search_validation, (tiny_study.search_validation.labels + 3) % 10)
    said = refused(replace(tiny_study, search_validation=turned), tmp_path)
    assert re.search(r"the teacher is right on \d\.\d% of search-validation, chance is 10.0%: 1 problem\n", said)
    assert "in another order the teacher is right on 9" in said
    pairs = re.findall(r"its class (\d) is the study's 'digit (\d)'", said)
    assert len(pairs) == 3 and all((int(own) + 3) % 10 == int(studys) for own, studys in pairs)


def test_a_teacher_without_its_normalisation_is_named_with_the_cure(tiny_study, teacher, tmp_path) -> None:
    spoilt = nn.Sequential(Scaled(1 / 255), teacher())  # it wants values from 0 to 255
    said = refused(replace(tiny_study, teacher=spoilt), tmp_path)
    assert "kdsearch.networks.Normalised(teacher, [0.0], [0.003922])" in said


class Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, images: Tensor) -> Tensor:
        return images * self.factor


def test_a_doubtful_teacher_above_chance_is_warned_of_with_the_reason(tiny_study, tmp_path) -> None:
    labels = tiny_study.search_validation.labels
    mixed = relabelled(tiny_study.search_validation, torch.where(labels < 4, labels, 4 + (labels - 3) % 6))
    warnings = preflight(replace(tiny_study, search_validation=mixed), tmp_path).warnings
    assert len(warnings) == 1 and "of search-validation; with its classes in another order" in warnings[0]
    assert preflight(tiny_study, tmp_path).warnings == ()


@pytest.mark.parametrize("which", ["train", "search_validation"])
def test_a_label_anywhere_that_is_no_class_is_refused(which: str, tiny_study, tmp_path) -> None:
    data = getattr(tiny_study, which)
    labels = data.labels.clone()
    labels[90] = 10  # not among the first ones, which are looked at in full
    said = refused(replace(tiny_study, **{which: relabelled(data, labels)}), tmp_path)
    assert said == f"study tiny: {which}: item 90: labels from 10 to 10; allowed: 0 to 9 (10 classes)"


def test_layers_that_a_network_does_not_have_are_refused_together(tiny_study, tmp_path) -> None:
    losses = [kd.losses.at("2", "layer7"), kd.losses.rkd("tail", "11")]
    said = refused(replace(tiny_study, loss=losses), tmp_path)
    assert said.startswith("study tiny: losses: 2 problems\n  student: unknown layer 'tail'; ")
    assert "\n  teacher: unknown layer 'layer7'; " in said


def test_a_loss_that_is_reduced_or_compares_what_cannot_be_is_refused(tiny_study, tmp_path) -> None:
    mean = kd.Loss("mine", lambda student, teacher, views: student.logits.mean())
    assert (
        refused(replace(tiny_study, loss=mean), tmp_path)
        == "study tiny: loss mine: it gave (); allowed: (22,), not reduced"
    )
    one = kd.Loss("one", lambda student, teacher, views: student.logits.mean(1)[:1])
    assert (
        refused(replace(tiny_study, loss=one), tmp_path)
        == "study tiny: loss one: it gave (1,); allowed: (22,), not reduced"
    )
    at = kd.losses.at("2", "11")
    assert refused(replace(tiny_study, loss=at), tmp_path).startswith(
        "study tiny: at: student '2' (22, 2, 8, 8), teacher '11' ("
    )


def test_wrong_fields_of_a_study_are_refused_together(tiny_study) -> None:
    wrong = replace(
        tiny_study,
        loss=[kd.losses.kd(), kd.losses.kd()],
        readers=-1,
        teacher_saw="trian",  # type: ignore[arg-type]
        metric="accuracy",  # type: ignore[arg-type]
    )
    with pytest.raises(KdsearchError) as caught:
        check_inputs(wrong)
    assert str(caught.value).split("\n")[1:] == [
        "  loss: kd, temperature 4 is there twice; allowed: once, with a weight",
        "  readers is -1; allowed: 0 or more",
        "  unknown teacher_saw 'trian'; did you mean 'train'?",
        "  metric is str; allowed: a function of logits and labels",
    ]


# What the teacher has seen


KNOWN = TeacherMeasurement(1.0, 0.0, 0.010, 0.002)


@pytest.mark.parametrize(
    ("saw", "validation", "remembers", "said"),
    [
        ("both", KNOWN, True, None),
        ("train", KNOWN, False, None),
        ("none", KNOWN, False, None),
        ("unknown", KNOWN, True, "right on 100.0% of search-validation and no worse there than on train"),
        ("unknown", TeacherMeasurement(0.99, 0.01, 0.011, 0.002), None, "it is not known"),
        ("unknown", TeacherMeasurement(0.99, 0.01, 0.016, 0.002), False, None),
    ],
)
def test_what_a_teacher_has_seen_is_told_by_the_study_or_by_its_loss(saw, validation, remembers, said) -> None:
    found, warnings = _remembers(saw, KNOWN, validation)
    assert found is remembers
    assert (not warnings) == (said is None) and all(
        said in warning and "teacher_saw=" in warning for warning in warnings
    )


def test_tables_page_and_commands_are_marked_where_the_teacher_has_learned_the_images(
    tiny_study, tmp_path, capsys, kdsearch
) -> None:
    budget = replace(tiny_study.budget, trials=1, epochs=1, confirmation=0)
    seen = replace(tiny_study, teacher_saw="both", budget=budget)
    kd.search(seen, out=tmp_path / "seen", quiet=True)
    row = kd.frames(tmp_path / "seen")["studies"].iloc[0]
    assert row["teacher_saw"] == "both" and row["teacher_remembers"]
    mark = "The teacher was trained on search-validation: what it gets right there is memory"
    assert mark in (tmp_path / "seen" / "report.html").read_text()
    for command in ("status", "regions"):
        assert mark in kdsearch(command, tmp_path / "seen")


def test_nothing_is_marked_where_the_teacher_has_not(finished, kdsearch) -> None:
    assert not kd.frames(finished.folder)["studies"]["teacher_remembers"].iloc[0]
    assert "memory" not in (finished.folder / "report.html").read_text()
    assert "memory" not in kdsearch("regions", finished.folder)


# Costs


def memory_problem(ready: Ready, batch: Batch, images: int, **budget: int) -> str | None:
    try:
        check_memory(replace(ready, study=replace(ready.study, budget=kd.Budget(batch=images, **budget))), batch)
    except KdsearchError as error:
        return str(error)
    return None


def test_a_batch_that_does_not_fit_is_refused_with_the_one_that_does(tiny_study, tmp_path, monkeypatch) -> None:
    ready, batch = preflight(tiny_study, tmp_path).ready, check_inputs(tiny_study)["train"]
    monkeypatch.setattr(costs, "available_bytes", lambda device: 2**30)
    said = memory_problem(ready, batch, 300_000)
    assert said.startswith("a student step of 300000 images needs about ")
    assert "GiB beside the networks, and cpu has 1.0 GiB; allowed: budget.parts from " in said
    parts, fits = map(int, re.search(r"from (\d+) on, or budget.batch up to (\d+)", said).groups())
    assert memory_problem(ready, batch, 300_000, parts=parts) is None
    assert "a student step of 100000 images" in memory_problem(ready, batch, 300_000, parts=3)
    assert "or budget.policy_batch up to" in memory_problem(ready, batch, 32, policy_batch=300_000)
    assert memory_problem(ready, batch, fits, policy_batch=32) is None
    assert 100 < fits < 300_000
    assert memory_problem(ready, batch, fits) is None and memory_problem(ready, batch, fits + 1)
    steps = zip(costs._steps(ready, batch, 1)[1:], (fits, fits // 2), strict=True)  # of student and policy
    needed = max(largest_batch(step, images, 2**40).needed for step, images in steps)
    assert needed < 2**30 / 1.2  # some room is left
    monkeypatch.setattr(costs, "available_bytes", lambda device: 2**10)
    assert memory_problem(ready, batch, 300_000).endswith("allowed: smaller images or networks")
    monkeypatch.setattr(costs, "available_bytes", lambda device: None)
    assert memory_problem(ready, batch, 300_000) is None
    monkeypatch.setattr(costs, "available_bytes", lambda device: 2**16)
    assert "study tiny: a student step of 32 images needs about" in refused(tiny_study, tmp_path)


@pytest.mark.parametrize(("budget", "sizes"), [({}, [32, 16]), ({"policy_batch": 6}, [32, 6]), ({"parts": 2}, [16, 8])])
def test_memory_is_looked_at_for_steps_of_both_kinds(budget, sizes, tiny_study, tmp_path, monkeypatch) -> None:
    ready, asked = preflight(tiny_study, tmp_path).ready, []

    def noted(step, images: int, limit: int):
        asked.append(images)
        return largest_batch(step, images, limit)

    monkeypatch.setattr(costs, "largest_batch", noted)
    assert memory_problem(ready, check_inputs(tiny_study)["train"], 32, **budget) is None
    assert asked == sizes


def test_time_is_told_from_steps_of_the_sizes_they_have(tiny_study, tmp_path, monkeypatch) -> None:
    checked, batch = preflight(tiny_study, tmp_path), check_inputs(tiny_study)["train"]
    distiller, *_ = costs._steps(checked.ready, batch, 1)
    of_student, of_policy = list[int](), list[int]()

    def student_step(images: int) -> torch.Tensor:
        of_student.append(images)
        return torch.zeros(7)

    monkeypatch.setattr(costs, "_steps", lambda ready, batch, parts: (distiller, student_step, of_policy.append))
    budget = replace(tiny_study.budget, batch=30)
    costs.estimate_seconds(replace(checked.ready, study=replace(tiny_study, budget=budget)), batch)
    assert {*of_student} == {30} and {*of_policy} == {15}


def test_what_fits_is_named_for_steps_of_both_kinds(tiny_study, tmp_path, monkeypatch) -> None:
    ready = preflight(tiny_study, tmp_path).ready
    sizes = [(2**20, 40), (2**30, 13), (1, 64), (2**30, 0)]
    fits = (Fit(needed=needed, largest=largest) for needed, largest in sizes)
    monkeypatch.setattr(costs, "largest_batch", lambda step, images, limit: next(fits))
    said = memory_problem(ready, check_inputs(tiny_study)["train"], 64)
    assert said.startswith("a policy step of 32 images needs about 1.2 GiB")
    assert said.endswith("budget.parts from 3 on, or budget.batch up to 40 and budget.policy_batch up to 13")
    assert memory_problem(ready, check_inputs(tiny_study)["train"], 64).endswith("allowed: smaller images or networks")


def test_few_images_do_not_make_a_teacher_look_like_chance(tiny_study, tmp_path) -> None:
    data = tiny_study.search_validation
    right = kd.networks.Teacher(tiny_study.teacher)(data.images).logits.argmax(1) == data.labels
    few = data.subset(right.nonzero()[:8, 0])
    half = relabelled(few, torch.cat([few.labels[:4], (few.labels[4:] + 1) % 10]))
    assert preflight(replace(tiny_study, search_validation=half), tmp_path).validation.accuracy == 0.5


def test_a_factory_that_gives_one_network_again_is_refused_and_it_stays_as_it_was(tiny_study, tmp_path) -> None:
    shared = kd.networks.small_convnet(2)
    before = {name: value.clone() for name, value in shared.state_dict().items()}
    said = refused(replace(tiny_study, student=lambda: shared), tmp_path)
    assert said.startswith("study tiny: student gives the same network twice")
    assert all(torch.equal(value, before[name]) for name, value in shared.state_dict().items())


def test_costs_change_nothing_that_is_kept(tiny_study, tmp_path) -> None:
    ready, batch = preflight(tiny_study, tmp_path).ready, check_inputs(tiny_study)["train"]
    before = {name: value.clone() for name, value in ready.teacher.network.state_dict().items()}
    run, reference = estimate_seconds(ready, batch)
    check_memory(ready, batch)
    assert run > reference > 0
    assert all(torch.equal(value, before[name]) for name, value in ready.teacher.network.state_dict().items())


def test_a_teacher_that_sees_other_pixels_than_the_student_is_warned_of_where_positions_are_compared(
    tiny_study, tmp_path
) -> None:
    clean = replace(tiny_study, views=kd.Views(teacher="clean"), loss=[kd.losses.at("2"), kd.losses.sp("5")])
    (warning,) = preflight(clean, tmp_path).warnings
    assert "at, 2 to 2 compares features position by position" in warning
    assert preflight(replace(clean, loss=kd.losses.sp("5")), tmp_path).warnings == ()
