"""A user's metric in the place of the accuracy."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor

import kdsearch as kd
from kdsearch.analysis.scale import Scale
from kdsearch.core.errors import KdsearchError
from kdsearch.core.maths import generator
from kdsearch.probe.evaluation import measure
from kdsearch.study.preflight import check_inputs
from kdsearch.study.study import Study
from kdsearch.tasks.metrics import error_of_groups, metric_groups, metric_name


def metric_value(metric: Any, logits: Tensor, labels: Tensor) -> tuple[float, float]:
    value, groups = metric_groups(metric, logits, labels)
    return value, error_of_groups(groups)


def balanced_accuracy(logits: Tensor, labels: Tensor) -> float:
    return balanced_accuracy_score(labels, logits.argmax(1))


def right(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.argmax(1) == labels).double().mean()


def test_the_error_of_a_mean_is_near_its_binomial_one() -> None:
    """Of one set a jackknife of 20 groups is right within a sixth; the mean over many sets is nearer."""
    errors = []
    for seed in range(40):
        labels = (torch.rand(400, generator=generator("labels", seed)) < 0.9).long()
        value, error = metric_value(right, torch.tensor([[0.0, 1.0]]).expand(400, 2), labels)
        assert value == labels.double().mean().item()
        errors.append(error / math.sqrt(value * (1 - value) / 400))
    assert sum(errors) / len(errors) == pytest.approx(1, abs=0.1)


def test_a_metric_is_measured_beside_the_accuracy(tiny_study: Study, teacher) -> None:
    data, task = tiny_study.search_validation, kd.Classification.of(10)
    result = measure(teacher(), data, task, 32, "cpu", balanced_accuracy)
    assert result[:2] == kd.evaluate(teacher(), data, task, 32, "cpu")[:2]
    logits = kd.networks.Teacher(teacher())(data.images).logits
    assert result.value == pytest.approx(balanced_accuracy(logits, data.labels))
    assert result.value != result.accuracy and 0 < result.value_se < 0.1


def words(logits: Tensor, labels: Tensor) -> str:
    return "much"


def of_logits(logits: Tensor) -> float:
    return 0.0


def many(logits: Tensor, labels: Tensor) -> Tensor:
    return logits


@pytest.mark.parametrize("metric", [words, of_logits, many])
def test_a_metric_that_gives_no_number_is_named_before_anything_is_trained(metric, tiny_study, tmp_path) -> None:
    with pytest.raises(
        KdsearchError, match=r"metric (words|of_logits|many): .*called with logits \(100, 10\) and labels \(100,\)"
    ):
        kd.search(replace(tiny_study, metric=metric), out=tmp_path / "runs", quiet=True)


def test_a_metric_has_the_name_of_its_function() -> None:
    assert metric_name(None) == "accuracy"
    assert metric_name(balanced_accuracy) == "balanced_accuracy"
    assert metric_name(partial(balanced_accuracy, adjusted=True)) == "balanced_accuracy(adjusted=True)"


def test_a_metric_without_a_name_of_its_own_is_refused(tiny_study) -> None:
    def accuracy(logits: Tensor, labels: Tensor) -> float:
        return 95.0

    for metric in (accuracy, lambda logits, labels: 0.0):
        with pytest.raises(KdsearchError, match=r"metric is called .*; allowed: a function with a name that tells it"):
            check_inputs(replace(tiny_study, metric=metric))


def test_a_metric_that_fails_without_a_group_has_a_value_and_no_error() -> None:
    def of_all(logits: Tensor, labels: Tensor) -> float:
        if len(labels.unique()) < 3:
            raise ValueError("a class is missing")
        return 0.5

    labels = torch.tensor([0, 1] * 60 + [2])
    value, error = metric_value(of_all, torch.zeros(121, 3), labels)
    assert value == 0.5 and math.isnan(error)
    assert metric_value(of_all, torch.zeros(122, 3), torch.cat([labels, labels[-1:]])) == (0.5, 0.0)
    assert math.isnan(metric_value(right, torch.zeros(1, 3), torch.zeros(1))[1])


def test_only_the_accuracy_is_written_in_percent() -> None:
    assert [Scale(name).by(0.0123) for name in ("accuracy", "kappa")] == ["1.2 points", "0.012"]
    assert [Scale(name).equal(0.0004) for name in ("accuracy", "kappa")] == [True, True]
    assert not any(Scale(name).equal(-0.0006) for name in ("accuracy", "kappa"))


def test_a_metric_that_is_not_a_number_ends_the_trial(tiny_study, tmp_path) -> None:
    calls = []

    def never(logits: Tensor, labels: Tensor) -> float:
        calls.append(len(logits))
        return math.nan

    budget = replace(tiny_study.budget, trials=1, epochs=1, confirmation=0)
    result = kd.search(replace(tiny_study, metric=never, budget=budget), out=tmp_path / "runs", quiet=True)
    trials = kd.frames(result.folder)["trials"]
    assert result.best is None
    assert set(trials["fail_reason"]) == {"nan: epoch 1: the metric is nan"}


def test_trials_are_compared_and_told_by_the_metric(tiny_study, tmp_path, capsys) -> None:
    def misses(logits: Tensor, labels: Tensor) -> float:
        return -float((logits.argmax(1) != labels).sum())

    budget = replace(tiny_study.budget, trials=2, epochs=1, confirmation=1)
    result = kd.search(replace(tiny_study, metric=misses, budget=budget), out=tmp_path / "runs")
    tables = kd.frames(result.folder)
    epochs, trials = tables["epochs"], tables["trials"]
    assert (epochs["value"] == -(100 * (1 - epochs["accuracy"])).round()).all()
    assert trials["last_value"].dropna().tolist() == trials.query("origin != 'reference'")["value"].tolist()
    assert result.value == trials.query("origin != 'reference'")["value"].max() < 0
    assert tables["studies"]["metric"].tolist() == ["misses"] and (tables["evaluations"]["value"] < 0).all()
    assert "brings students to a misses of -" in result.sentence and "%" not in result.sentence.split("95 %")[0]
    assert "  misses -" in capsys.readouterr().out
    assert "Misses on search-validation" in (result.folder / "report.html").read_text()
    with pytest.raises(KdsearchError, match='metric: stored "misses", now "accuracy"'):
        kd.search(replace(tiny_study, budget=budget), out=tmp_path / "runs", quiet=True)
