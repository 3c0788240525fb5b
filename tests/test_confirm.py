"""The images that a winner is confirmed on: kept from the trials, compared by image, looked at a few times."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import kdsearch as kd
from kdsearch.core.crossed import crossed
from kdsearch.core.errors import KdsearchError
from kdsearch.core.looks import plan_looks
from kdsearch.distill.records import EpochRecord
from kdsearch.study import confirmation
from kdsearch.study.confirmation import confirm, confirmation_seeds, confirmed_runs, rows_of_winner
from kdsearch.study.preflight import preflight
from kdsearch.study.ready import Ready
from kdsearch.study.run import Outcome
from kdsearch.study.run_folder import keep_answers, read_answers
from kdsearch.study.splits import keep_confirm
from kdsearch.study.study import Study

HERE = kd.data.digits()[1]


def test_a_third_of_search_validation_is_kept_where_a_study_has_no_images_to_confirm_on(tiny_study: Study) -> None:
    study = replace(tiny_study, confirm=None)
    found, said = keep_confirm(study)
    assert isinstance(found.search_validation, kd.data.ArrayData) and isinstance(found.confirm, kd.data.ArrayData)
    parts = [found.search_validation.images, found.confirm.images]
    assert [len(part) for part in parts] == [67, 33]
    whole = {image.numpy().tobytes() for image in study.search_validation.images}
    assert {image.numpy().tobytes() for part in parts for image in part} == whole
    assert "33 images of search-validation" in said and "67 others, with errors 1.22 times as large" in said
    again = keep_confirm(study)[0].confirm
    other = keep_confirm(replace(study, seed=1))[0].confirm
    assert torch.equal(again.images, found.confirm.images) and not torch.equal(other.images, found.confirm.images)


def test_images_of_ones_own_are_taken_and_two_are_too_few_to_share(tiny_study: Study) -> None:
    assert keep_confirm(tiny_study) == (tiny_study, "")
    few = replace(tiny_study, confirm=None, search_validation=HERE.subset(torch.arange(2)))
    assert keep_confirm(few) == (few, "")


class Pairs(torch.utils.data.Dataset):
    """A data set of items, whose classes have names."""

    class_names = tuple(f"digit {i}" for i in range(10))

    def __len__(self) -> int:
        return 30

    def __getitem__(self, index: int) -> Any:
        return HERE[index]


def test_a_part_of_a_users_data_set_is_a_data_set(tiny_study: Study, tmp_path: Path) -> None:
    study, _ = keep_confirm(replace(tiny_study, confirm=None, search_validation=Pairs()))
    found = preflight(study, tmp_path)
    assert (len(study.search_validation), len(study.confirm)) == (20, 10)  # type: ignore[arg-type]
    assert found.ready.confirm_ruler is not None and found.ready.confirm_ruler.data is found.ready.study.confirm
    assert {*found.content} == {"train", "search-validation", "confirm"}


@pytest.mark.parametrize("split", ["train", "search_validation"])
def test_images_that_others_saw_confirm_nothing(tiny_study: Study, tmp_path: Path, split: str) -> None:
    copied = kd.data.ArrayData(getattr(tiny_study, split).images.clone(), getattr(tiny_study, split).labels)
    with pytest.raises(KdsearchError, match=f"of confirm's images are in {split} .*the winner would be confirmed on"):
        preflight(replace(tiny_study, confirm=copied), tmp_path)


def test_wrong_images_to_confirm_on_are_named(tiny_study: Study, tmp_path: Path) -> None:
    with pytest.raises(KdsearchError, match="confirm: "):
        preflight(
            replace(tiny_study, confirm=kd.data.ArrayData(torch.rand(9, 1, 16, 16) * 3, torch.arange(9))), tmp_path
        )
    with pytest.raises(KdsearchError, match="train and search_validation and confirm have images of different shapes"):
        preflight(replace(tiny_study, confirm=kd.data.ArrayData(torch.rand(9, 1, 8, 8), torch.arange(9))), tmp_path)


def test_rows_are_of_the_kept_images_and_compared_by_image(finished: Any) -> None:
    tables = kd.frames(finished.folder)
    rows = tables["evaluations"]
    assert {*rows["split"]} == {"confirm"} and {*rows["images"]} == {40}
    kept = {(row.run, row.seed): read_answers(finished.folder, row.run, row.seed) for row in rows.itertuples()}
    for row in rows.itertuples():
        answers = kept[row.run, row.seed]
        assert answers["value"].mean() == pytest.approx(row.value, abs=1e-6) and len(answers["value"]) == 40
        assert answers["inherited"].mean() == pytest.approx(row.inherited, abs=1e-5)
        assert answers["inherited"].std(ddof=1) / 40**0.5 == pytest.approx(row.inherited_se, abs=1e-3)
    seeds = sorted({seed for _, seed in kept}, key=[*rows["seed"]].index)
    for against, of in (("trivial", "accuracy"), ("start", "inherited")):
        name = "value" if of == "accuracy" else of
        matrix = np.stack([kept["learned", seed][name] - kept[against, seed][name] for seed in seeds])
        found, low = crossed(matrix), crossed(matrix).interval()[0]
        row = tables["comparisons"].query("run == 'learned' and against == @against and of == @of").iloc[0]
        assert row["difference"] == pytest.approx(found.mean) and row["low"] == pytest.approx(low, nan_ok=True)
        assert row["images"] == 40 and row["seeds"] == len(seeds) == 2 and row["decides"] == (of == "inherited")
    assert "fresh seeds and 40 images that no trial saw" in finished.sentence


class Answers:
    """Stands in for training: a run is worth what it is told, on every image but for noise."""

    def __init__(self, worth: dict[str, float]) -> None:
        self.worth, self.runs = worth, list[tuple[str, int]]()

    def run(self, ready: Ready, folder: None, *, run: str, seed: int, **_: Any) -> Outcome:
        self.runs.append((run, seed))
        return Outcome(0.5, 0.1, 1.0, student=nn.Identity())

    def measure(self, ready: Ready, student: nn.Module) -> Any:
        run, seed = self.runs[-1]
        random = np.random.default_rng([seed, *run.encode()])
        values = torch.tensor(self.worth.get(run, 0.0) + 0.1 * random.standard_normal(50))
        return {"value": float(values.mean()), "inherited": float(values.mean())}, {
            "value": values,
            "inherited": values.clone(),
        }


@pytest.mark.parametrize(("better", "seeds"), [(0.5, 4), (0.0, 4), (0.02, 10)])
def test_it_ends_at_the_look_that_decides(
    tiny_study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, better: float, seeds: int
) -> None:
    budget = replace(tiny_study.budget, confirmation=10)
    ready = preflight(replace(tiny_study, budget=budget, base="auto"), tmp_path).ready
    answers = Answers({"learned": better})
    monkeypatch.setattr(confirmation, "run_trial", answers.run)
    monkeypatch.setattr(confirmation, "_measure", answers.measure)
    settings, told = ready.space.settings(), list[EpochRecord]()
    spec = ready.policy(settings).freeze()
    steps = [*confirm(ready, tmp_path, 0, settings, spec, lambda _, record: told.append(record))]
    rows = rows_of_winner(tmp_path, 0)
    assert len({row["seed"] for row in rows}) == seeds and steps.count(None) == seeds * len(
        confirmed_runs(ready)
    ) == len(rows)
    assert [look.seeds for look in steps if look] == [look.seeds for look in plan_looks(10)[1:] if look.seeds <= seeds]
    assert {row["seed"] for row in rows} == {*confirmation_seeds(ready)[:seeds]}
    again = [*confirm(ready, tmp_path, 0, settings, spec, lambda _, record: told.append(record))]
    assert not again
    if better == 0:  # references of before are kept when the winner changes
        count = len(answers.runs)
        assert [*confirm(ready, tmp_path, 1, settings, spec, lambda _, record: told.append(record))]
        assert {run for run, _ in answers.runs[count:]} == {"learned", "frozen", "start"}


@pytest.mark.parametrize("content", [b"", b"no safetensors", None])
def test_answers_that_are_none_are_refused_and_nothing_else_is_read(tmp_path: Path, content: bytes | None) -> None:
    keep_answers(tmp_path, "learned", 3, {"value": torch.rand(5)})
    assert len(read_answers(tmp_path, "learned", 3)["value"]) == 5 and read_answers(tmp_path, "learned", 4) == {}
    assert read_answers(tmp_path, "../confirmation/learned", 3) == {}
    path = tmp_path / "confirmation" / "learned_3.safetensors"
    for values in (torch.tensor([1.0, torch.nan]), torch.rand(2, 2), torch.rand(0)):
        keep_answers(tmp_path, "learned", 3, {"value": values})
        with pytest.raises(KdsearchError, match="one number for each image is needed"):
            read_answers(tmp_path, "learned", 3)
    path.write_bytes(path.read_bytes()[:-3] if content is None else content)
    with pytest.raises(KdsearchError, match="cannot read"):
        read_answers(tmp_path, "learned", 3)
