"""A student is trained with a frozen policy as it was confirmed, and killed at any moment it goes on."""

import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.transforms import v2

import kdsearch as kd
from kdsearch.augment.bases import base_of_parts
from kdsearch.augment.fixed import FixedTransform
from kdsearch.augment.policy import Policy
from kdsearch.commands import train as job
from kdsearch.commands.console import policy_path
from kdsearch.commands.search import Result
from kdsearch.core.errors import KdsearchError
from kdsearch.core.locks import lock_folder
from kdsearch.distill.distiller import Distiller
from kdsearch.distill.records import EpochRecord
from kdsearch.study import preflight as looks
from kdsearch.study.fingerprint import policy_numbers
from kdsearch.study.run import CHECKPOINT, describe_transform, run_trial
from kdsearch.study.run_folder import read_epochs, read_policy, read_result
from kdsearch.study.study import Study

DOC = (Path(__file__).parents[1] / "docs" / "train_with_a_policy.md").read_text()


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.fixture(scope="module", autouse=True)
def uncounted() -> Iterator[None]:
    """What a run costs is not measured before each one here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(looks, "check_memory", lambda ready, batch: None)
        patch.setattr(looks, "estimate_seconds", lambda ready, batch: (1.0, 1.0))
        yield


@pytest.fixture(scope="module")
def study(tiny_study: Study) -> Study:
    """Without a look for disagreement, which takes longer than all else."""
    return replace(tiny_study, budget=replace(tiny_study.budget, look_operations=0))


@pytest.fixture(scope="module")
def trained(finished: Result, study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a student of 4 epochs with the best policy of a search."""
    folder = tmp_path_factory.mktemp("trained") / "student"
    kd.train(study, finished.folder, epochs=4, out=folder, seed=5, quiet=True)
    return folder


def stop_after(monkeypatch: pytest.MonkeyPatch, epochs: int) -> None:
    """A signal in the next epoch."""
    real = Distiller._run_epoch

    def run_epoch(self: Distiller, epoch: int, *arguments: Any) -> EpochRecord:
        if epoch > epochs:
            raise KeyboardInterrupt
        return real(self, epoch, *arguments)

    monkeypatch.setattr(Distiller, "_run_epoch", run_epoch)


def test_the_student_is_the_one_that_the_confirmation_trains_on_that_seed(
    trained: Path, finished: Result, study: Study, tmp_path: Path
) -> None:
    ready = looks.preflight(replace(study, budget=replace(study.budget, epochs=4)), tmp_path).ready
    assert finished.best
    outcome = run_trial(ready, None, policy=Policy.from_spec(finished.best), seed=5)  # as study.confirmation does
    assert outcome.student
    assert same(load_file(trained / "student.safetensors"), outcome.student.state_dict())
    result = read_result(trained, trained)
    assert result and result.value == outcome.value and len(read_epochs(trained, trained)) == 4
    kept = read_policy(trained, trained)
    assert kept and kept.provenance["epochs"] == 4 and {*kept.final} == {*finished.best.final}
    for name, setting in finished.best.final.items():
        assert kept.final[name].probability == pytest.approx(setting.probability, abs=1e-12)
        assert (kept.final[name].low, kept.final[name].high) == (setting.low, setting.high)


def test_interrupted_in_an_epoch_it_goes_on_and_ends_as_if_it_had_not_been(
    trained: Path, finished: Result, study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 2)
        kd.train(study, finished.folder, epochs=4, out=tmp_path, seed=5)
    assert "interrupted; the same command goes on" in capsys.readouterr().out and (tmp_path / CHECKPOINT).exists()
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    cure = "take another folder with out='...', or go back"
    lighter = replace(study, label_weight=0.5)
    for change, what in (
        ({"epochs": 5, "seed": 6}, r"epochs \(4, now 5\), seed \(5, now 6\)"),
        ({"policy": None, "study": lighter}, r"label weight \(1\.0, now 0\.5\), policy"),
    ):
        given = {"study": study, "policy": finished.folder, "epochs": 4, "seed": 5, **change}
        with pytest.raises(KdsearchError, match=rf"of another training, which differs in {what}; {cure}"):
            kd.train(**given, out=tmp_path, quiet=True)
    assert files == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    result = kd.train(study, finished.best, epochs=4, out=tmp_path, seed=5, quiet=True)
    assert same(load_file(result.student_path), load_file(trained / "student.safetensors"))
    assert result.value == json.loads((trained / "result.json").read_text())["value"]
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in trained.iterdir()}
    assert not (tmp_path / CHECKPOINT).exists()


def test_a_finished_student_is_not_trained_again_and_the_last_lines_read_it(
    trained: Path, finished: Result, study: Study, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(Distiller, "_run_epoch", None)
    (trained / CHECKPOINT).touch()  # of a process that was killed between its last two lines
    result = kd.train(study, finished.folder, epochs=4, out=trained, seed=5)
    assert not (trained / CHECKPOINT).exists()
    said = capsys.readouterr().out
    assert f"{trained} is finished" in said
    value = f"{100 * result.value:.1f} ± {100 * result.value_se:.1f} %"
    assert f"accuracy {value} on search-validation: 100 images, ± standard error" in said
    assert "`kd.evaluate(student, study.test)` reads it" in said
    (line,) = re.findall(r"kdsearch\.networks\.load_weights\(study.*\)", said)
    student = eval(line, {"study": study, "kdsearch": kd})
    assert same(student.state_dict(), load_file(trained / "student.safetensors"))


def test_a_student_that_was_deleted_is_trained_again(study: Study, tmp_path: Path, capsys: Any) -> None:
    first = kd.train(study, None, epochs=1, out=tmp_path, quiet=True)
    weights = load_file(first.student_path)
    first.student_path.unlink()
    again = kd.train(study, None, epochs=1, out=tmp_path)
    assert "is finished, but its student.safetensors is gone: it is trained again" in capsys.readouterr().out
    assert again == first and same(load_file(again.student_path), weights)


def half(image: Tensor) -> Tensor:
    return image // 2


def test_a_callable_stands_in_the_place_of_a_policy_and_none_for_images_as_they_are(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, policy in (("function", lambda image: image // 2), ("transform", FixedTransform(half)), ("none", None)):
        kd.train(study, policy, epochs=1, out=tmp_path / name, quiet=True)
        assert not (tmp_path / name / "policy.json").exists()
    one, other, clean = (load_file(tmp_path / n / "student.safetensors") for n in ("function", "transform", "none"))
    assert same(one, other) and not same(one, clean)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 1)
        kd.train(study, lambda image: image // 3, epochs=2, out=tmp_path / "again", quiet=True)
    with pytest.raises(KdsearchError, match="differs in policy; take another folder"):
        kd.train(study, lambda image: image // 4, epochs=2, out=tmp_path / "again", quiet=True)


def test_without_a_policy_it_is_a_fixed_one_over_the_operations_that_suit_the_images(
    study: Study, tmp_path: Path, capsys: Any, kdsearch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = {name: kd.train(study, *given, epochs=1, out=tmp_path / name)
             for name, given in {"rand_augment": [], "trivial": ["trivial"]}.items()}  # fmt: skip
    said = capsys.readouterr().out
    assert "steps with rand_augment: about" in said and "steps with trivial: about" in said
    specs = {name: kd.PolicySpec.load(tmp_path / name / "policy.json") for name in named}
    limits = {name: one.limit for name, one in specs["rand_augment"].operations.items()}
    assert "saturation" not in limits and len(limits) == 16  # of gray images
    for name, function in kd.presets.FIXED.items():
        policy = Policy.from_spec(specs[name])
        assert policy_numbers(policy) == policy_numbers(function(limits))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(job, "load_study", lambda name: (study, Path(name)))
    assert "with rand_augment" in kdsearch("train", "tiny", "--epochs", 1)
    weights = load_file("runs/tiny/train/student.safetensors")
    assert same(load_file(named["rand_augment"].student_path), weights)


class Darker(nn.Module):
    def __init__(self, factor: Any) -> None:
        super().__init__()
        self.factor, self.layer, self.last = factor, nn.Linear(2, 2), None

    def forward(self, image: Tensor) -> Tensor:
        self.last = torch.rand(3)
        return (image * self.factor).to(image.dtype)


def test_what_a_module_in_the_place_of_a_policy_holds_tells_it_from_others(study: Study, tmp_path: Path) -> None:
    made: list[Callable[[Any], Any]] = [
        lambda held: Darker(held),
        lambda held: Darker([held, "a"]),
        lambda held: Darker({"by": partial(max, held)}),
        lambda held: Darker(kd.Budget(trials=int(10 * held))),
        lambda held: Darker(held).forward,
        lambda held: nn.Sequential(Darker(held)),
        lambda held: v2.Compose([v2.Identity(), Darker(held)]),
        lambda held: v2.Compose([v2.Lambda(lambda image: image * held)]),
        lambda held: v2.RandomAffine(0, interpolation=[*v2.InterpolationMode][held > 0.5]),
    ]
    for make in made:
        one, again, other = (describe_transform(FixedTransform(make(held))) for held in (0.1, 0.1, 0.9))
        assert one == again != other
    reseeded = [FixedTransform(half, reseed=reseed) for reseed in (None, lambda seed: seed, lambda seed: -seed)]
    assert len({*map(describe_transform, reseeded)}) == 3
    used = Darker(0.5)
    before = describe_transform(FixedTransform(used))
    used(torch.ones(1))
    assert before == describe_transform(FixedTransform(used.eval()))
    kd.train(study, Darker(0.1), epochs=1, out=tmp_path, quiet=True)
    with pytest.raises(KdsearchError, match="differs in policy; take another folder"):
        kd.train(study, Darker(0.9), epochs=1, out=tmp_path, quiet=True)


def test_what_the_study_no_longer_has_is_said(
    finished: Result, study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finished.best
    coloured = Policy({"rotate": 10.0, "saturation": 0.5, "hue": 0.1}, 2).freeze()
    run = tmp_path / "run"
    policy = run / "trials" / "0000" / "policy.json"
    policy.parent.mkdir(parents=True)
    policy.write_text(coloured.to_json())
    shutil.copy(finished.folder / "study.json", run)
    renamed = replace(study, classes=[f"figure {i}" for i in range(10)])
    kd.train(renamed, policy, epochs=1, out=tmp_path / "student")
    said = capsys.readouterr().out
    assert "warning: saturation, hue of the policy need other images than these of 1 channel, and leave them as" in said
    assert (
        "warning: the policy was searched for other classes: 10 (digit 0, digit 1, digit 2, ...), now 10 (figure 0"
    ) in said


def test_wrong_input_is_one_sentence_before_anything_is_trained(
    finished: Result, study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Distiller, "_run_epoch", None)
    known: dict[str, Any] = {"study": study, "policy": finished.best, "out": tmp_path / "student", "quiet": True}
    for change, message in (
        ({"policy": 3}, "policy: '3' is none; allowed: None for images as they are"),
        ({"policy": FixedTransform}, "policy: .* is none; allowed"),
        ({"policy": tmp_path / "none.json"}, r"cannot read the policy .*none\.json: no such file"),
        (
            {"policy": "rand_augmnet"},
            r"'rand_augmnet'; did you mean 'rand_augment'\? Allowed too: the path of a policy",
        ),
        ({"epochs": 0}, "study tiny: 1 problem\n  budget.epochs is 0; allowed: whole numbers, 1 or more"),
        (
            {"out": finished.folder},
            r"holds the study\.json of something else; allowed: a folder of its own, out='.*/train'",
        ),
        ({"out": finished.folder / "trials" / "0000"}, r"holds the result\.json of something else"),
    ):
        with pytest.raises(KdsearchError, match=message):
            kd.train(**{**known, **change})
    with lock_folder(tmp_path / "student", "training"), pytest.raises(KdsearchError, match="another training is"):
        kd.train(**known)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("place", "holding"),
    [("run/trials/0005", None), ("run/trials/0000", CHECKPOINT), ("run/references/foo", None), ("run/train/deep", None),
     ("link", None), ("own", "epochs.jsonl"), ("own", "regions.json"), ("own", "samples.npz"), ("own", CHECKPOINT)],
)  # fmt: skip
def test_what_a_search_or_somebody_else_has_left_in_a_folder_is_not_written_over(
    place: str, holding: str | None, study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Distiller, "_run_epoch", None)
    (tmp_path / "run" / "trials").mkdir(parents=True)
    (tmp_path / "run" / "study.json").touch()
    (tmp_path / "link").symlink_to(tmp_path / "run" / "trials" / "0006")
    if holding:
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / holding).write_text("mine")
    before = {path: path.is_file() and path.read_text() for path in tmp_path.rglob("*")}
    what = f"holds the {holding} of something else" if holding else f"lies in the run folder {tmp_path / 'run'}"
    own = tmp_path / ("own" if place == "own" else "run") / "train"
    with pytest.raises(KdsearchError) as refused:
        kd.train(study, None, out=tmp_path / place, quiet=True)
    assert str(refused.value) == f"{tmp_path / place} {what}; allowed: a folder of its own, out={str(own)!r}"
    assert before == {path: path.is_file() and path.read_text() for path in tmp_path.rglob("*")}


def test_a_run_folder_has_a_place_for_one_student_and_that_is_no_place_for_a_search(
    finished: Result, study: Study, tmp_path: Path, capsys: Any
) -> None:
    run = tmp_path / "run"
    (run / "train").mkdir(parents=True)
    shutil.copy(finished.folder / "study.json", run)
    (run / "train" / "result.json").touch()
    with pytest.raises(KdsearchError, match=f"holds the result.json of .*, out='{tmp_path / 'run-train'}'$"):
        kd.train(study, None, epochs=1, out=run / "train", quiet=True)
    (run / "train" / "result.json").unlink()
    kd.train(study, None, epochs=1, out=run / "train")
    assert f"`kdsearch evaluate {run} --study STUDY` reads it" in capsys.readouterr().out  # it runs no study unnamed
    with pytest.raises(KdsearchError, match=r"train holds a student of `kdsearch train`; allowed: .*/train-search$"):
        kd.search(study, out=run / "train", quiet=True)
    assert not (run / "train" / "study.json").exists()


def test_the_command_trains_in_the_folder_of_the_study_and_ends_with_130_where_interrupted(
    finished: Result, study: Study, kdsearch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(job, "load_study", lambda name: (study, Path(name)))
    command = ["train", "tiny", "--policy", finished.folder, "--epochs", 2]
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        assert "interrupted; the same command goes on" in kdsearch(*command, code=130)
    said = kdsearch(*command)
    assert "train  epoch 1/2  accuracy" in said and "train  epoch 2/2  accuracy" in said
    assert "runs/tiny/train/student.safetensors" in said and Path("runs/tiny/train/result.json").exists()


def test_the_teacher_of_a_recipe_is_the_one_that_the_policy_was_searched_with(
    finished: Result, study: Study, teacher: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = kd.Recipe(teacher, lambda network: None)
    recipe.load(tmp_path / "run" / "teacher.safetensors")
    policy = Path("run/trials/0000/policy.json")
    policy.parent.mkdir(parents=True)
    assert finished.best
    policy.write_text(finished.best.to_json())
    shutil.copy(finished.folder / "study.json", "run")
    monkeypatch.setattr(kd.Recipe, "_trained", lambda self, path: pytest.fail("a teacher was trained"))
    kd.train(replace(study, teacher=recipe), policy, epochs=1, out="student", quiet=True)
    assert not Path("student/teacher.safetensors").exists()


def test_the_loop_of_the_docs_runs_and_minimises_what_a_student_step_does(
    finished: Result, kdsearch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    shutil.copytree(finished.folder, "runs/digits")
    save_file(kd.networks.small_convnet(24).state_dict(), "runs/digits/teacher.safetensors")
    best = policy_path(Path("runs/digits"))
    over = kd.PolicySpec.load(best).model_copy(update={"version": 2, "base": base_of_parts(["shift"]).freeze()})
    best.write_text(over.to_json())
    (command,) = re.findall(r"`kdsearch (export [^`]*)`", DOC)
    kdsearch(*shlex.split(command))
    few = "train = train.subset(torch.arange(128))\nepochs, rate = 1, 2e-2"
    code = "\n".join(re.findall(r"```python\n(.*?)```", DOC, re.DOTALL)).replace("epochs, rate = 25, 2e-2", few)
    assert few in code
    names: dict[str, Any] = {"__name__": "docs"}
    try:
        exec(compile(code, "train_with_a_policy.md", "exec"), names)
    finally:
        sys.modules.pop("policy", None)
    assert "% of 500 images" in capsys.readouterr().out

    images, labels = names["train"].images[:16], names["train"].labels[:16]
    expected = names["loss_of"](images, 1 - images, labels).item()
    inverted = FixedTransform(lambda image: 1 - image, takes="float")
    distiller = Distiller(kd.networks.Teacher(names["teacher"]), names["student"], inverted, kd.Classification.of(10))
    batch = kd.Batch(images, labels, torch.arange(16))
    supervised, distillation, *_ = distiller.student_step(batch, kd.Phase((kd.losses.kd(),)), torch.Generator())
    assert expected == pytest.approx((supervised + 2 * distillation).item(), rel=1e-4)
