"""What is said of a search: a verdict with evidence, an interval that holds, a student that learned something."""

import json
import math
import re
import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import kdsearch as kd
from kdsearch.analysis import plots
from kdsearch.analysis.compare import WORDS, comparison_rows, describe_outcome
from kdsearch.analysis.frames import make_frame
from kdsearch.analysis.scale import Scale
from kdsearch.commands.display import Display
from kdsearch.core.crossed import crossed
from kdsearch.core.errors import KdsearchError
from kdsearch.core.maths import clopper_pearson
from kdsearch.data.batches import varied_batch
from kdsearch.distill.guards import chance_evidence, policy_warnings
from kdsearch.distill.records import EpochRecord
from kdsearch.distill.views import VIEWS
from kdsearch.probe.disagreement import DisagreementReport, Region, _with_intervals, plan_look
from kdsearch.probe.evaluation import measure, measure_teacher
from kdsearch.study.facts import search_identity
from kdsearch.study.preflight import check_inputs, preflight
from kdsearch.study.study import Study
from kdsearch.tasks.metrics import error_of_groups, metric_groups

FINE = EpochRecord(
    **{field.name: 0.0 for field in fields(EpochRecord)}
    | {"epoch": 1, "losses": {}, "policy_steps": 10, "teacher_accuracy": 1.0, "teacher_clean_accuracy": 1.0}  # type: ignore[arg-type]
)


def right(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.argmax(1) == labels).double().mean()


def test_the_jackknife_of_interleaved_classes_is_that_of_shuffled_ones() -> None:
    labels = torch.arange(1000) % 20
    logits = torch.eye(20)[labels].clone()
    logits[labels < 2] = torch.eye(20)[5]  # two classes of 20 are never right
    value, groups = metric_groups(right, logits, labels)
    error = error_of_groups(groups)
    assert value == pytest.approx(0.9)
    assert error == pytest.approx(math.sqrt(0.9 * 0.1 / 1000), rel=0.5)


def test_an_error_that_nobody_knows_is_not_written() -> None:
    assert Scale("kappa").text(0.5, math.nan) == Scale("kappa").text(0.5) == "0.500"


@pytest.mark.parametrize(
    ("low", "high", "written"),
    [
        (-0.01, 0.03, "-1.0 to +3.0"),
        (-0.0004, -0.0002, "-0.04 to -0.02"),
        (0.0, 0.0004, "+0.00 to +0.04"),
        (0.0281, 0.0284, "+2.81 to +2.84"),
        (0.0001, 0.03, "+0.01 to +3.00"),
    ],
)
def test_the_ends_of_an_interval_are_told_apart(low: float, high: float, written: str) -> None:
    assert Scale("accuracy").interval(low, high) == written


def tables(
    values: dict[str, list[float | None]], *, metric: str = "accuracy", wanted: int = 0
) -> dict[str, pd.DataFrame]:
    """Frames of a search whose winner is trial 0, with the given confirmation: None where it diverged."""
    study = {"study": "x", "metric": metric, "best_trial": 0, "best_value": 0.9, "pruned": 0, "failed": 0}
    rows = [
        {"study": "x", "run": run, "seed": seed, "value": value}
        for run, column in values.items()
        for seed, value in enumerate(column)
    ]
    wanted = wanted or max(map(len, values.values()), default=0)
    return {
        "studies": make_frame("studies", [{**study, "budget_confirmation": wanted}]),
        "trials": make_frame("trials", []),
        "evaluations": make_frame("evaluations", rows),
        "comparisons": make_frame("comparisons", comparison_rows(Path("nowhere"), rows, metric)),
    }


GOOD = {"identity": [0.5, 0.51, 0.49], "trivial": [0.6, 0.61, 0.59], "start": [0.6, 0.62, 0.6]}


def test_it_helped_takes_values_of_the_policy_and_of_all_references() -> None:
    learned = {"learned": [0.9, 0.91, 0.9], "frozen": [0.9, 0.9, 0.91]}
    said = describe_outcome(tables({**learned, **GOOD}))
    assert "to 90.3 % on search-validation; it beats" in said and said.count("It helped.") == 1
    for reference in GOOD:
        said = describe_outcome(tables({**learned, **GOOD, reference: [None, None, None]}))
        assert "It helped" not in said and f"; no help is shown over {WORDS[reference]}, corrected" in said
        assert f"is not compared with {WORDS[reference]} ({reference} diverged on all 3 seeds)" in said
        without = {run: column for run, column in {**learned, **GOOD}.items() if run != reference}
        said = describe_outcome(tables(without))
        assert "It helped" not in said and f"({reference} is missing on all 3 seeds)" in said


def test_a_policy_that_diverged_everywhere_confirms_nothing() -> None:
    said = describe_outcome(tables({"learned": [None] * 3, "frozen": [None] * 3, **GOOD}))
    assert "learned diverged on all 3 seeds: nothing is confirmed" in said
    assert "It helped" not in said and "frozen diverged on all 3 seeds" in said


def test_a_seed_without_a_value_is_said_wherever_a_mean_leaves_it_out() -> None:
    said = describe_outcome(
        tables({"learned": [0.9, None, 0.92], "frozen": [0.9, 0.9, None], **GOOD, "trivial": [0.6, 0.6, None]})
    )
    assert "to 91.0 % on search-validation (learned diverged on 1 of 3 seeds); it" in said
    assert said.count("2 seeds") >= 2 and "one seed, no interval; trivial diverged on 1 of 3 seeds" in said
    assert "brings them to 90.0 % (frozen diverged on 1 of 3 seeds)" in said
    said = describe_outcome(tables({"learned": [0.9, None, 0.905], **GOOD}))
    assert said.endswith("It helped where it ended.")


def test_a_confirmation_that_is_not_finished_is_said() -> None:
    said = describe_outcome(tables({"learned": [0.9]}, wanted=3))
    assert said.startswith("On 1 of 3 fresh seeds the searched policy (trial 0)")
    assert "identity is missing on the one seed" in said


@pytest.mark.parametrize("metric", ["accuracy", "kappa"])
def test_equal_differences_have_no_interval(metric: str) -> None:
    same, above = [0.7, 0.617], [0.8, 0.717]
    values = {"learned": same, "frozen": same, "identity": same, "trivial": [0.683, 0.617], "start": above}
    said = describe_outcome(tables(values, metric=metric))
    assert "equals an identity second view (the same on both seeds: no interval)" in said
    assert "misses its own unlearned start by " in said and "+0.0 to +0.0" not in said
    differences = tables(values)["comparisons"].query("run == 'learned'").set_index("against")
    assert differences.loc[["frozen", "identity", "start"], ["low", "high"]].isna().all(axis=None)
    assert differences.loc["trivial", ["low", "high"]].notna().all()


VALUES = st.lists(st.none() | st.sampled_from([0.5, 0.5000001, 0.51, 0.6, 1.0]), min_size=1, max_size=4)


@given(st.dictionaries(st.sampled_from(["learned", "frozen", *WORDS]), VALUES))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_no_sentence_has_a_number_that_is_none(values: dict[str, list[float | None]]) -> None:
    said = describe_outcome(tables(values))
    assert not re.search(r"\bnan\b|None|\(\)|\+0\.0 to \+0\.0|; it \.|-0\.0 to \+0\.0", said)
    if "It helped" in said:
        n = min(sum(value is not None for value in values[run]) for run in ("learned", *values) if run != "bare")
        assert n >= 2


def test_the_interval_over_seeds_alone_covers_a_mean_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    for n in (2, 3, 5):
        ends = [crossed(random.normal(0.3, 2.0, (n, 1))).interval() for _ in range(4000)]
        assert np.mean([low <= 0.3 <= high for low, high in ends]) == pytest.approx(0.95, abs=0.012)


def test_values_of_an_earlier_winner_are_not_the_best_policys(finished, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    kept = json.loads((folder / "confirmation.json").read_text())
    assert len(kd.frames(folder)["evaluations"])
    (folder / "confirmation.json").write_text(json.dumps({**kept, "winner": kept["winner"] + 1}))
    assert kd.frames(folder)["evaluations"].empty


def test_the_picture_of_the_confirmation_says_where_values_are_missing() -> None:
    values = {"learned": [0.9, None, 0.9], "identity": [None] * 3, "trivial": [0.5, 0.5, 0.6]}
    figure = plots.did_it_help(tables(values))
    ticks = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert ticks == ["identity\n(3 of 3 without value)", "trivial", "learned\n(1 of 3 without value)"]
    assert not [text.get_text() for text in figure.axes[0].texts if "nan" in text.get_text()]


def test_one_trial_of_one_epoch_is_drawn_on_an_axis_that_counts(finished) -> None:
    read = kd.frames(finished.folder)
    one = {**read, "trials": read["trials"].query("trial == 0"), "epochs": read["epochs"].query("epoch == 1")}
    (low, high), ticks = plots.trials(one).axes[0].get_xlim(), plots.trials(one).axes[0].get_xticks()
    assert (low, high) == (-0.75, 0.75) and [tick for tick in ticks if low <= tick <= high] == [0]
    axes = plots.curves(one).axes[0]
    assert {line.get_marker() for line in axes.lines} == {"o"}
    assert [tick for tick in axes.get_xticks() if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]] == [1]


LIMITS = {"rotate": 30.0, "translate_x": 0.3, "brightness": 0.5, "solarize": 0.8, "invert": None, "equalize": None}


@pytest.mark.parametrize("most", [0, 1, 7, 30, 100, 300, 700, 1000, 3000, 10_000, 10**7])
@pytest.mark.parametrize("count", [1, 20, 100, 5000])
def test_a_look_takes_no_more_images_than_it_may(most: int, count: int) -> None:
    look = plan_look(LIMITS, count, most)
    assert look.total <= most and look.whole <= count and look.images <= count
    assert bool(look.images) == bool(look.cells) == bool(look.operations)
    assert not look.images or look.images >= min(30, count)
    assert look == plan_look(LIMITS, count, most)
    assert most < 10**6 or (look.whole, look.images, look.bins, look.cells) == (count, count, 5, 22)
    assert most < 1000 or look.images


def test_fewer_images_take_fewer_bins_and_then_fewer_operations() -> None:
    looks = [plan_look(LIMITS, 500, most) for most in (2000, 540, 300, 260, 100, 36)]
    assert [(look.bins, len(look.operations)) for look in looks] == [(5, 6), (2, 6), (1, 6), (1, 6), (1, 2), (0, 0)]
    assert plan_look(LIMITS, 500, 100, seed=1).operations != plan_look(LIMITS, 500, 100, seed=2).operations


def test_numbers_of_a_look_that_are_given_stay() -> None:
    look = plan_look(LIMITS, 500, 300, images=200, bins=4, operations=3)
    assert (look.images, look.bins, len(look.operations)) == (200, 4, 3) and look.total > 300
    assert plan_look(LIMITS, 500, 300, images=200).images == 200
    assert plan_look(LIMITS, 500, 10_000, bins=2).bins == 2
    assert plan_look(LIMITS, 500, 10_000, operations=0).operations == ()
    assert plan_look({}, 500, 10_000).images == 0


@pytest.mark.parametrize("rule", ["default", "one"])
def test_the_student_sees_at_most_a_quarter_of_its_training_images_in_a_look(
    rule: str, tiny_study: Study, tmp_path: Path
) -> None:
    budget = kd.Budget(trials=1, epochs=2, steps=5, batch=32)
    study = replace(tiny_study, budget=budget, views=VIEWS[rule])
    ready, student, seen, told = preflight(study, tmp_path).ready, study.student(), list[int](), list[tuple[int, int]]()
    student.register_forward_hook(lambda module, given, result: seen.append(len(result)))
    report = ready.probe.report(student, ready.policy(ready.space.settings()), lambda *now: told.append(now))
    assert 0 < sum(seen) == ready.probe.look.total <= study.student_images // 4
    assert told[0] == (0, sum(seen)) and told[-1] == (sum(seen), sum(seen)) and told == sorted(told)
    assert [region.kind for region in report.regions if region.class_name is None][:2] == ["clean", "policy"]
    asked: list[int] = []
    ready.teacher.network.register_forward_hook(lambda module, given, result: asked.append(len(result)))
    again = ready.probe.report(student, None)
    assert not asked  # its answers are remembered
    assert [r for r in again.regions if r.kind == "clean"] != []


def test_the_look_is_part_of_what_fixes_a_search_and_its_numbers_are_checked(tiny_study: Study, tmp_path: Path) -> None:
    checked = preflight(tiny_study, tmp_path)
    other = replace(tiny_study, budget=replace(tiny_study.budget, look_images=50))
    assert search_identity(checked) != search_identity(preflight(other, tmp_path))
    json.dumps(search_identity(checked))
    wrong = replace(tiny_study, budget=kd.Budget(look_images=0, look_bins=1.5, look_operations=-1))  # type: ignore[arg-type]
    with pytest.raises(KdsearchError, match=r"look_images is 0.*\n.*look_bins is 1.5.*\n.*look_operations is -1"):
        check_inputs(wrong)


@pytest.mark.parametrize("shared", [0.0, 0.5, 1.0])
def test_the_interval_of_the_region_picked_as_the_worst_holds_the_truth(shared: float) -> None:
    """All rates are .1; bins depend on each other by a part of their images that answer alike."""
    random, searches, bins, n, truth = np.random.default_rng(1), 2000, 70, 120, 0.1
    alike = random.random((searches, 1, n)) < truth
    own = random.random((searches, bins, n), dtype=np.float32) < truth
    common = random.random((searches, 1, n)) < shared
    counts = np.where(common, alike, own).sum(-1)
    low, high = clopper_pearson(counts, np.array(n), 1 - 0.05 / bins)
    worst = low.argmax(1)
    ends = [np.floor(100 * low), np.ceil(100 * high)]
    lower, upper = (np.take_along_axis(end, worst[:, None], 1) / 100 for end in ends)
    assert ((lower <= truth) & (truth <= upper)).mean() >= 0.94


def region(kind: str, teacher_only: int, n: int, **more: Any) -> Region:
    rest = n - teacher_only
    place = {"operation": None, "low": None, "high": None, "class_name": None, **more}
    return Region(kind=kind, n=n, both=rest, teacher_only=teacher_only, student_only=0, neither=0, kl=0.1,
                  teacher_only_low=0.0, teacher_only_high=1.0, **place)  # type: ignore[arg-type]  # fmt: skip


def test_the_worst_region_is_told_with_its_interval_and_clean_images() -> None:
    rows = [region("clean", 45, 100), *(region("operation", k, 100, operation="invert") for k in (40, 47, 30))]
    report = DisagreementReport(_with_intervals(rows))
    low, high = clopper_pearson(np.array(47), np.array(100), 1 - 0.05 / 4)
    assert (report.worst.teacher_only_low, report.worst.teacher_only_high) == (low, high)
    assert report.describe_worst() == (
        "invert: teacher alone right on 47% (34% to 60%, all 4 regions considered), on 45% of clean images"
    )
    assert DisagreementReport(_with_intervals(rows[:1])).describe_worst() is None
    assert DisagreementReport(_with_intervals([])).worst is None


def test_regions_are_ranked_by_how_far_they_exceed_clean_images_of_their_class(finished: Any) -> None:
    table = kd.regions(finished.folder)
    above = table["teacher_only_rate"] > table["clean_rate"]
    order = [*zip(above, table["teacher_only_low"] - table["clean_rate"], strict=True)]
    assert order == sorted(order, reverse=True) and {*above} == {True, False}
    clean = table.query("kind == 'clean'")
    assert clean["clean_rate"].tolist() == clean["teacher_only_rate"].tolist()
    page = (finished.folder / "report.html").read_text()
    assert "clean rate" in page and "at least" not in page


class AlwaysTheSame(nn.Module):
    """Answers one class, whatever it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.bias = nn.BatchNorm2d(1, momentum=0.01), nn.Parameter(torch.eye(10)[3])

    def forward(self, images: Tensor) -> Tensor:
        return self.bias + 0 * self.norm(images).mean((1, 2, 3))[:, None]


def test_a_search_that_taught_nothing_says_so_and_confirms_nothing(
    tiny_study: Study, tmp_path: Path, capsys: Any, kdsearch: Any
) -> None:
    """Too short for a policy step and for a sweep, and its student answers one class: each is said."""
    budget, run = kd.Budget(trials=1, epochs=1, steps=2, batch=16, confirmation=2), tmp_path / "run"
    result = kd.search(replace(tiny_study, budget=budget, student=AlwaysTheSame), out=run)
    said = capsys.readouterr().out
    assert said.count("no operation is swept") == 1
    assert said.count("warning: the student is not better than always answering 'digit 5' (18.0 %)") == 6
    assert said.count("likely reasons: the budget is short (2 student steps of 16 images), BatchNorm's running") == 1
    assert "98% where they started" in said and "confirm" not in said.split("trial 0: ")[1].replace("confirmed", "")
    nothing = "trial 0 is not better than always answering 'digit 5' (18.0 %): nothing is confirmed"
    assert result.sentence == f"{nothing}." and nothing + "\n" in said
    assert "warning: no policy step was taken: the policy is its unlearned start" in said
    assert not (run / "confirmation.json").exists()
    status, page = kdsearch("status", run), (run / "report.html").read_text()
    for text in (status, page):
        assert "nothing is confirmed." in text and "no policy step was taken" in text
    assert "No operation was swept" in page
    table = kd.regions(run)
    assert {*table["kind"]} == {"clean", "policy"}
    plots.plot_sweeps(table)


LABELS = [20, 30, 10]  # of 60 images
NAMES = ["cat", "dog", "ship"]


@pytest.mark.parametrize(
    ("accuracy", "largest", "by_accuracy", "said"),
    [
        (0.50, 1.00, True, "is not better than always answering 'dog' (50.0 %)"),
        (0.62, 0.50, True, "is not better than always answering 'dog' (50.0 %)"),
        (0.64, 0.50, True, None),
        (0.10, 0.40, True, "is not better than always answering 'dog' (50.0 %)"),
        (0.64, 0.995, True, "answers one class for 99.5 % of search-validation"),
        (0.64, math.nan, True, None),  # of a task whose answers are no classes
        (0.40, 0.50, False, "is right on 40.0 % of search-validation, and chance is 33.3 %"),
        (0.50, 0.50, False, None),
        (0.50, 1.00, False, "answers one class for 100.0 % of search-validation"),
    ],
)
def test_a_student_at_chance_is_known(accuracy: float, largest: float, by_accuracy: bool, said: str | None) -> None:
    record = replace(FINE, accuracy=accuracy, largest_answer=largest)
    assert chance_evidence(record, LABELS, NAMES, by_accuracy=by_accuracy) == said
    assert chance_evidence(record, (), NAMES, by_accuracy=by_accuracy) is None


def test_labels_that_are_nearly_all_one_class_may_be_answered_by_it() -> None:
    record = replace(FINE, accuracy=0.994, largest_answer=0.99)
    assert chance_evidence(record, [1, 99], NAMES[:2], by_accuracy=False) is None


def test_confirmation_rows_at_chance_confirm_nothing() -> None:
    read = tables({"learned": [0.9, 0.91, 0.9], **GOOD})
    read["evaluations"].loc[0, "at_chance"] = "answers one class for 100.0 % of search-validation"
    said = describe_outcome(read)
    assert (
        "learned is at chance on 1 of 3 seeds" in said and "It helped" not in said and "Nothing is confirmed." in said
    )
    read = tables({"learned": [0.9, 0.91, 0.9], **GOOD})
    read["evaluations"].loc[3:5, "at_chance"] = "answers one class for 100.0 % of search-validation"
    said = describe_outcome(read)
    assert "identity is at chance on all 3 seeds" in said and said.endswith("It helped.")


def test_a_measurement_counts_the_most_frequent_answer_and_the_labels(tiny_study: Study) -> None:
    data, task = tiny_study.search_validation, kd.Classification.of(10)
    assert measure(AlwaysTheSame(), data, task, 32, "cpu").largest_answer == 1
    answers = kd.networks.Teacher(tiny_study.teacher)(data.images).logits.argmax(1)
    most = answers.bincount().max().item() / 100
    assert measure(tiny_study.teacher, data, task, 32, "cpu").largest_answer == pytest.approx(most)
    labels = measure_teacher(kd.networks.Teacher(tiny_study.teacher), data, task, 32, "cpu").labels
    assert labels == (9, 13, 9, 8, 13, 18, 9, 6, 9, 6)


@pytest.mark.parametrize("label", [lambda i: i // 250, lambda i: i % 4, lambda i: int(i == 7)])
def test_images_for_pictures_are_of_different_classes(label: Any) -> None:
    data = kd.data.ArrayData(torch.rand(1000, 1, 4, 4), torch.tensor([label(i) for i in range(1000)]))
    batch = varied_batch(data, 4)
    assert len(batch) == 4 and torch.equal(batch.ids, varied_batch(data, 4).ids)
    assert torch.equal(batch.images, data.images[batch.ids]) and torch.equal(batch.target, data.labels[batch.ids])
    if len({*data.labels.tolist()}) == 4:
        assert {*batch.target.tolist()} == {0, 1, 2, 3}
    assert len(varied_batch(data.subset(torch.arange(2)), 4)) == 2


def test_a_policy_that_took_no_step_is_warned_of() -> None:
    policy = kd.Policy(["rotate"], 1)
    none = replace(FINE, policy_steps=0)
    assert policy_warnings([none, none], policy, 0.9)[0].startswith("no policy step was taken")
    assert policy_warnings([FINE, none], policy, 0.9) == ()


def test_off_a_terminal_the_look_is_told_once_and_then_every_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    now = 100.0
    monkeypatch.setattr("kdsearch.commands.display.time.monotonic", lambda: now)
    with Display() as display:
        for done in range(0, 5001, 100):
            display.look("trial 0", done, 5000)
            now += 0.5
        display.look("trial 0", 0, 0)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["trial 0  looking for disagreement", "trial 0  looking for disagreement  42% of 5000 images"]
    assert len(lines) == 3
