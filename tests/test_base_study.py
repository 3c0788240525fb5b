"""A study's base view: found once and kept, in every run and reference, in words, and where it cannot be."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kdsearch as kd
from kdsearch.analysis import plots
from kdsearch.analysis.compare import WORDS, comparison_rows, describe_outcome
from kdsearch.analysis.frames import make_frame
from kdsearch.augment.bases import as_base, base_of_parts
from kdsearch.augment.fixed import FixedTransform
from kdsearch.augment.policy import Policy
from kdsearch.commands import search as job
from kdsearch.commands.search import Result
from kdsearch.commands.train import _take_base
from kdsearch.core.errors import KdsearchError
from kdsearch.core.maths import derive_seed, own_generators, seed_everything
from kdsearch.data.batches import ArrayData
from kdsearch.distill import answers
from kdsearch.distill.answers import AnswerTables
from kdsearch.distill.distiller import Distiller
from kdsearch.distill.phase import Phase, PolicySteps
from kdsearch.networks.teachers import Teacher
from kdsearch.study import base_view, confirmation
from kdsearch.study import preflight as looks
from kdsearch.study import run as runs
from kdsearch.study.base_view import describe_asked, find_base, keep_base
from kdsearch.study.facts import search_identity
from kdsearch.study.preflight import Findings, check_inputs, preflight
from kdsearch.study.ready import REFERENCES, Ready, reference_names
from kdsearch.study.run import run_name, run_trial
from kdsearch.study.run_folder import BASE, read_base
from kdsearch.study.study import Study

THEN = Path(__file__).parent / "data" / "run_3db5187"
OTHERS = {"identity": [0.5, 0.51], "trivial": [0.6, 0.61], "start": [0.6, 0.62]}


def outcome(values: dict[str, list[float]], references: tuple[str, ...] = (), times: int = 2) -> str:
    """What is said of a confirmation on four seeds, these two twice, where the policy has .9."""
    study = {"study": "x", "metric": "accuracy", "best_trial": 0, "best_value": 0.9, "budget_confirmation": 4}
    rows = [
        {"run": run, "seed": seed, "value": value}
        for run, column in {"learned": [0.9, 0.93], **values}.items()
        for seed, value in enumerate(column * times)
    ]
    run = [{"run": name, "state": "COMPLETE", "origin": "reference", "value": 0.5} for name in references]
    tables = {"studies": [study], "trials": run, "evaluations": rows}
    made = {name: make_frame(name, table) for name, table in tables.items()}
    return describe_outcome(
        {**made, "comparisons": make_frame("comparisons", comparison_rows(Path(), rows, "accuracy"))}
    )


def test_a_reference_is_told_where_the_study_runs_it() -> None:
    assert "base view" not in outcome(OTHERS, references=("identity", "trivial", "start"))  # bare, or an older folder
    said = outcome({**OTHERS, "twice": [0.7, 0.71]})
    assert "beats a second draw of the base view by 21.0 points" in said and said.endswith("It helped.")
    said = outcome({**OTHERS, "twice": [0.95, 0.96]})
    assert "misses a second draw" in said and "; no help is shown over a second draw of the base view" in said
    said = outcome(OTHERS, references=("identity", "twice", "trivial", "start"))  # not confirmed yet
    assert "is not compared with a second draw of the base view (twice is missing on all 4 seeds)" in said
    assert "It helped" not in said


def test_bare_is_told_beside_the_verdict() -> None:
    said = outcome({**OTHERS, "bare": [0.95, 0.96]})
    assert "misses bare images without a base view by 4.0 points" in said and said.endswith("It helped.")


def test_every_reference_has_words_and_a_colour() -> None:
    assert {*WORDS} == {*REFERENCES} == {*plots.REFERENCES}
    assert len({*plots.REFERENCES.values()}) == len(REFERENCES)


# Searched


@pytest.fixture(scope="module", autouse=True)
def hurried() -> Iterator[None]:
    """What a run costs is not measured, there are no pages, and a student may have learned nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(looks, "check_memory", lambda ready, batch: None)
        patch.setattr(looks, "estimate_seconds", lambda ready, batch: (1.0, 1.0))
        patch.setattr(job, "write_page", lambda folder, tables: folder)
        patch.setattr(job, "write_frames", lambda tables, folder, to: None)
        patch.setattr(runs, "chance_evidence", lambda *_, **__: None)
        yield


@pytest.fixture(scope="module")
def study(tiny_study: Study) -> Study:
    """The shortest one, over what its teacher tolerates."""
    budget = kd.Budget(trials=1, epochs=1, steps=2, batch=8, confirmation=1, look_operations=0, look_images=10)
    return replace(tiny_study, base="auto", budget=budget)


@pytest.fixture(scope="module")
def searched(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A search with all references."""
    out = tmp_path_factory.mktemp("runs") / "base"
    return kd.search(replace(study, bare_reference=True), out=out, quiet=True)


def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("find_tolerance", "cheaper_fill", "_rise"):
        monkeypatch.setattr(base_view, name, lambda *_, **__: pytest.fail("a base view was measured"))


def test_every_run_has_the_base_that_the_folder_keeps(searched: Result) -> None:
    kept, folder = read_base(searched.folder), searched.folder
    assert kept and kept.asked == "auto" and kept.policy and kept.fused and kept.loss_rise
    policies = {path.parent.name: kd.PolicySpec.load(path) for path in folder.rglob("policy.json")}
    assert {*policies} == {"0000", "twice", "trivial", "rand_augment", "labels_only", "start"}
    for name, spec in policies.items():
        own = spec if name == "twice" else spec.base  # which is the base, over images as they are
        assert own and own.final == kept.policy.final and own.fill == kept.policy.fill
    assert policies["twice"].base is None
    assert {path.name for path in (folder / "references").iterdir()} == {*REFERENCES}
    tables = kd.frames(folder)
    assert tables["evaluations"]["run"].tolist() == ["learned", "frozen", *REFERENCES]
    (row,) = tables["studies"].to_dict("records")
    assert f"base: {row['base']}" == kept.said and row["base_loss_rise"] == kept.loss_rise and row["teacher_fused"]
    for told in ("identity second view", "second draw of the base view", "bare images"):
        assert told in searched.sentence


def test_a_kept_base_is_never_measured_again(
    searched: Result, study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not where the search died before its study.json either, and whether `bare` is run or not."""
    unmeasured(monkeypatch)
    monkeypatch.setattr(Distiller, "_run_epoch", lambda *_: pytest.fail("a student was trained"))
    run = Path(shutil.copytree(searched.folder, tmp_path / "run"))
    before = (run / BASE).read_bytes()
    (run / "study.json").unlink()
    kd.search(study, out=run, quiet=True)
    assert (run / BASE).read_bytes() == before and (run / "study.json").exists()


def test_another_base_than_the_folders_is_refused_with_the_difference(searched: Result, study: Study) -> None:
    before = (searched.folder / BASE).read_bytes()
    for base, now in (("shift", r'"policy \w+ of translate_x, translate_y"'), (None, '"none"')):
        with pytest.raises(KdsearchError, match=rf'base view: stored "policy \w+ of [\w, ]+", now {now}'):
            kd.search(replace(study, base=base), out=searched.folder, quiet=True)
    assert (searched.folder / BASE).read_bytes() == before


def test_a_base_comes_back_to_the_last_digit(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a probability that is another one each time it becomes a logit and comes back."""
    given = torch.linspace(0.1, 0.9, 9999, dtype=torch.float64)
    held = torch.logit(torch.logit(given).sigmoid())  # as the logit is when a base is held still
    base = Policy({"rotate": 10.0}, 1, probability=given[torch.logit(held.sigmoid()) != held][0].item())
    first = keep(replace(study, base=base), tmp_path)
    unmeasured(monkeypatch)
    again = preflight(replace(study, base=base), tmp_path)
    one, other = (found.ready.base_view.base for found in (first, again))
    assert isinstance(one, Policy) and isinstance(other, Policy) and torch.equal(one.logit, other.logit)
    assert search_identity(first) == search_identity(again)


def keep(study: Study, folder: Path) -> Findings:
    """A folder that is begun with a study."""
    found = preflight(study, folder)
    keep_base(folder, found.ready.base_view, fused=found.ready.teacher.is_fused, answers_looked_up=None)
    return found


def test_a_base_that_was_measured_on_something_else_is_measured_anew(study: Study, tmp_path: Path) -> None:
    found = keep(replace(study, base="shift"), tmp_path)
    kept = json.loads((tmp_path / BASE).read_text())
    (tmp_path / BASE).write_text(json.dumps({**kept, "policy": None, "loss_rise": 9.0, "found_on": "another teacher"}))
    again = preflight(replace(study, base="shift"), tmp_path).ready.base_view
    assert (again.spec, again.loss_rise) == (found.ready.base_view.spec, found.ready.base_view.loss_rise)


def test_what_does_not_change_a_trial_does_not_fix_it(study: Study, tmp_path: Path) -> None:
    found = preflight(replace(study, base="shift"), tmp_path)

    def fixed(name: str | None, **changes: Any) -> dict[str, Any]:
        view = replace(found.ready.base_view, base=as_base(name))
        changed = replace(found.ready.study, **changes)
        return search_identity(replace(found, ready=replace(found.ready, study=changed, base_view=view)))

    bare, shift = fixed(None), fixed("shift")
    assert bare == fixed(None, views=kd.Views(second_from="image")) == fixed(None, bare_reference=True)
    assert shift == search_identity(found) == fixed("shift", bare_reference=True)
    image = kd.Views(second_from="image")
    for other in (bare, fixed("turn_shift"), fixed("shift", base_versions=2), fixed("shift", views=image)):
        assert other != shift


# Runs


def test_references_draw_the_base_once_twice_or_not_at_all(study: Study, tmp_path: Path) -> None:
    ready = preflight(replace(study, base="shift", base_versions=2, bare_reference=True), tmp_path).ready
    base, settings = ready.base_view.base, ready.space.settings()
    assert ready.references == REFERENCES and "twice" not in reference_names(study, None)
    assert [ready.reference(name, settings) for name in ("identity", "twice", "bare")] == [None, base, None]
    phases = {name: ready.phase(None, run=name) for name in ("", *REFERENCES)}
    assert {name for name, phase in phases.items() if phase.base is None} == {"bare"}
    assert {name for name, phase in phases.items() if phase.base_versions is None} == {"bare"}
    assert {name for name, phase in phases.items() if phase.views.second_from == "image"} == {"twice"}


def test_each_seed_of_the_confirmation_has_versions_of_its_own(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    several = replace(study, base="shift", base_versions=2, budget=replace(study.budget, confirmation=2))
    ready, seeds = preflight(several, tmp_path).ready, set[tuple[int, int]]()

    def run(ready: Ready, folder: None, *, seed: int, base_seed: int, **_: Any) -> runs.Outcome:
        seeds.add((seed, base_seed))
        return runs.Outcome(0.5, 0.1, 1.0)

    monkeypatch.setattr(confirmation, "run_trial", run)
    monkeypatch.setattr(confirmation, "_measure", lambda *_: ({"value": 0.5}, {"value": torch.ones(4)}))
    spec = ready.policy(ready.space.settings()).freeze()
    assert len([*confirmation.confirm(ready, tmp_path, 0, ready.space.settings(), spec, lambda *_: None)]) == 2 * 8
    assert len(seeds) == 2 and all(seed == base_seed for seed, base_seed in seeds)
    banks = {ready.phase(None, base_seed=seed).base_seed for seed, _ in seeds} | {ready.phase(None).base_seed}
    assert len(banks) == 3


def half(image: Tensor) -> Tensor:
    return image // 2


def test_a_transform_is_a_base_that_files_of_policies_do_not_keep(study: Study, tmp_path: Path) -> None:
    found = keep(replace(study, base=half), tmp_path)
    ready = found.ready
    assert ready.base_view.said == "base: a transform, which the files of policies do not keep"
    run_trial(ready, tmp_path / "run", policy=ready.policy(ready.space.settings()))
    assert kd.PolicySpec.load(tmp_path / "run" / "policy.json").base is None
    again, other = (preflight(replace(study, base=base), tmp_path) for base in (half, FixedTransform(torch.clone)))
    assert search_identity(again) == search_identity(found) != search_identity(other)


def test_twice_is_not_run_where_a_transform_would_have_to_show_its_geometry(study: Study, tmp_path: Path) -> None:
    weak = replace(study, base=half, views=kd.Views(teacher="weak"))
    found = preflight(weak, tmp_path)
    assert found.ready.references == ("identity", "trivial", "rand_augment", "labels_only", "start")
    assert any("`twice` is not run" in warning for warning in found.warnings)
    assert "twice" in reference_names(weak, base_of_parts(["shift"]))


# Labels alone


@pytest.mark.parametrize(
    ("views", "loss", "weight"),
    [
        (kd.Views(), kd.losses.kd(), 1.5),  # 1 for the base view's labels and 1 for each view's distillation
        (kd.Views.named("tst"), kd.losses.kd(), 2.0),  # means of both views
        (kd.Views.named("one"), kd.losses.kd(), 2.0),
        (kd.Views(), [kd.losses.kd().times(2), kd.losses.dist().times(kd.losses.Ramp(0.0, 2.0))], 3.5),
    ],
)
def test_labels_alone_weigh_as_much_as_all_losses_of_other_rows(
    study: Study, tmp_path: Path, views: kd.Views, loss: Any, weight: float
) -> None:
    ready = preflight(replace(study, base=None, views=views, loss=loss), tmp_path).ready
    phase = ready.phase(None, run="labels_only")
    assert phase.losses == () and phase.label_weight == pytest.approx(weight)
    assert phase.views.labels == phase.views.distillation == phase.views.used == views.used


def test_labels_alone_know_nothing_of_the_teacher(study: Study, tmp_path: Path) -> None:
    ready = preflight(replace(study, base=None), tmp_path).ready
    torch.manual_seed(1)
    other = kd.networks.Teacher(kd.networks.small_convnet(3))
    policy = ready.reference("labels_only", ready.space.settings())
    trained = {}
    for name in ("labels_only", "rand_augment"):
        for i, one in enumerate((ready, replace(ready, teacher=other, ruler=None))):
            student = run_trial(one, None, policy=policy, run=name, seed=2).student
            trained[name, i] = torch.cat([value.flatten().float() for value in student.state_dict().values()])
    assert torch.equal(trained["labels_only", 0], trained["labels_only", 1])
    assert not torch.equal(trained["rand_augment", 0], trained["rand_augment", 1])


def test_that_distillation_does_not_help_is_said() -> None:
    """Of the same views, and only where it is shown: better than the searched policy alone is not enough."""
    words, taught = "Distillation does not help here: on the same views labels alone are better", [0.8, 0.81]
    assert words in outcome({**OTHERS, "rand_augment": taught, "labels_only": [0.9, 0.915]})
    for labels, with_teacher in (([0.95, 0.975], [0.96, 0.98]), ([0.7, 0.72], taught), ([0.8, 0.84], taught)):
        assert words not in outcome({**OTHERS, "rand_augment": with_teacher, "labels_only": labels})
    assert words not in outcome({**OTHERS, "labels_only": [0.95, 0.975]})
    few = {**OTHERS, "rand_augment": taught, "labels_only": [0.9, 0.915]}
    assert words not in outcome(few, times=1)  # of two seeds nothing is shown


# Folders that were begun before


def test_a_folder_of_before_goes_on_bare_and_bit_for_bit(study: Study, tmp_path: Path) -> None:
    run = Path(shutil.copytree(THEN, tmp_path / "run"))
    longer = replace(study, budget=replace(study.budget, epochs=2, steps=4))
    found = preflight(longer, run)
    ready, settings = found.ready, found.ready.space.settings()
    assert ready.base_view.base is None and "base: none" in ready.base_view.said
    assert not ready.teacher.is_fused and ready.tables.allowed is False
    assert not {"base view", "teacher fused", "answers looked up"} & {*search_identity(found)}
    keep_base(run, ready.base_view, fused=False, answers_looked_up=False)
    assert not (run / BASE).exists()
    student = Distiller(ready.teacher, ready.student(), None, ready.task)
    steps = ready.policy_steps(replace(settings, interval=2, warm_up=0.0))
    new = preflight(study, tmp_path / "new").ready
    names = [run_name(one, one.phase(steps), student) for one in (ready, new)]
    assert not any("second_from" in name for name in names)  # by which no checkpoint was known
    whole = run_name(new, new.phase(replace(steps, flips=None)), student)
    assert "flips" not in whole
    image = replace(new.phase(steps), views=kd.Views(second_from="image"))
    few = new.phase(replace(steps, flips=2))
    assert len({*names, whole, *(run_name(new, phase, student) for phase in (image, few))}) == 5

    def trained(ready: Ready) -> dict[str, Tensor]:
        outcome = run_trial(ready, None, policy=ready.policy(settings), policy_steps=steps, seed=3)
        assert outcome.student is not None
        return dict(outcome.student.state_dict())

    as_then, now = trained(ready), trained(preflight(replace(longer, base=None), tmp_path / "new").ready)
    plain = plain_loop(longer, ready.policy(settings), steps, ready.clean.loss)
    assert all(torch.equal(value, plain[name]) for name, value in as_then.items())
    assert not all(torch.equal(value, now[name]) for name, value in as_then.items())  # fused and looked up
    with pytest.raises(KdsearchError, match=r"was begun without a base view, before there were any.*base=None") as told:
        preflight(replace(study, base="shift"), run)
    assert "\n" not in str(told.value)


def plain_loop(study: Study, policy: Policy, steps: PolicySteps, clean: float) -> dict[str, Tensor]:
    """The loop over images as they are, with a teacher as it is given that is asked at each step."""
    with own_generators():
        seed_everything(derive_seed(3, "student"))
        student = study.student()
    assert isinstance(study.teacher, nn.Module)
    distiller = Distiller(
        Teacher(study.teacher), student, policy, kd.tasks.Classification.of(10), optimizer=study.optimizer, seed=3,
        clean_loss=clean, tables=AnswerTables(False),
    )  # fmt: skip
    phase = Phase(study.losses, study.budget.epochs, study.budget.steps, study.budget.batch, steps)
    assert len([*distiller.run(phase, study.train, study.search_validation)]) == 2
    return dict(student.state_dict())


# Asked for


class Noisy(torch.utils.data.Dataset[Any]):
    """Items that are others each time."""

    def __init__(self, data: ArrayData) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.data[index]
        return (image + 0.01 * torch.rand(image.shape)).clamp(0, 1), label


def test_auto_is_bare_where_the_teacher_cannot_tell_or_the_data_augment(study: Study, tmp_path: Path) -> None:
    data = study.search_validation
    assert isinstance(data, ArrayData) and isinstance(study.train, ArrayData)
    mixed = torch.cat([data.labels[:25], (data.labels[25:] + 1) % 10])
    for changes, said in (
        ({"search_validation": ArrayData(data.images, mixed)}, r"\(cannot tell: the teacher is right on 2\d"),
        ({"train": Noisy(study.train)}, r"\(train augments its items by itself\)"),
    ):
        found = preflight(replace(study, **changes, base_versions=2, bare_reference=True), tmp_path)
        assert found.ready.references == ("identity", "trivial", "rand_augment", "labels_only", "start")
        assert found.ready.base_view.base is None
        assert re.search(f"^base: none {said}", found.ready.base_view.said)
        for name in ("base_versions", "bare_reference"):
            assert f"{name} has no part: there is no base view" in found.warnings


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base": "shfit"}, "unknown base 'shfit'; did you mean 'shift'"),
        ({"base": "Auto"}, "unknown base 'Auto'; did you mean 'auto'"),
        ({"base": 3}, "base: '3' is none; allowed: None, auto, shift, flip_shift, turn_shift, a Policy"),
        ({"base": "none.json"}, r"cannot read the policy none\.json: no such file"),
        ({"base": Policy(["rotate"], 1).freeze(base=Policy(["scale"], 1))}, "base: the policy has a base view of its"),
        ({"base": "shift", "base_versions": 0}, "base_versions is 0; allowed: whole numbers, 1 or more"),
        ({"base": "shift", "base_versions": 2.0}, "base_versions is 2.0; allowed: a whole number, or None"),
        ({"base": None, "base_versions": 4}, "base_versions is 4; allowed: None, as the base is None"),
        ({"bare_reference": 1}, "bare_reference is 1; allowed: True or False"),
    ],
)
def test_what_no_base_can_be_is_refused_before_any_network_is_asked(study: Study, changes: Any, said: str) -> None:
    with pytest.raises(KdsearchError, match=f"study tiny: 1 problem\n  {said}"):
        check_inputs(replace(study, **changes))


def test_a_base_that_needs_other_images_or_fails_or_takes_too_much_is_one_sentence(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(image: Tensor) -> Tensor:
        raise ValueError("out of ink")

    ready = preflight(replace(study, base=None), tmp_path).ready
    monkeypatch.setattr(answers, "available_bytes", lambda device: 10**6)
    for changes, said in (
        ({"base": Policy({"saturation": 0.5, "rotate": 9.0}, 1)}, "^base: saturation needs images of 3 channels, and"),
        ({"base": fails}, r"^base: transform <function .*: ValueError: out of ink \(test_base_study\.py, line"),
        ({"base": lambda image: image[:, :8]}, r"^base: transform <function .* came back as torch\.uint8 \(1, 8, 16\)"),
        ({"base": "shift", "base_versions": 9999}, r"base_versions.* 9,999 .*images take .*GiB; allowed: up to \d+$"),
    ):
        asked: Study = replace(study, **changes)
        with pytest.raises(KdsearchError, match=said) as told:
            find_base(asked, tmp_path, ready.teacher, ready.task, 1, device="cpu", found_on="")
        assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "junk", [b"", b"[]", b'{"asked": 3}', b"{" * 10**5, b"\xff", b'{"asked": "auto", "policy": 1}']
)
def test_a_torn_base_file_is_one_sentence_that_names_it(study: Study, tmp_path: Path, junk: bytes) -> None:
    (tmp_path / BASE).write_bytes(junk)
    with pytest.raises(KdsearchError, match=rf"cannot read {tmp_path / BASE}: ") as told:
        read_base(tmp_path)
    assert "\n" not in str(told.value)


def test_a_base_file_holds_one_policy_and_no_deeper_ones(tmp_path: Path) -> None:
    nested = json.loads(Policy(["rotate"], 1).freeze(base=Policy(["scale"], 1)).to_json())
    for depth in (1, 500):
        tree: Any = nested
        for _ in range(depth - 1):
            tree = {**nested, "base": tree}
        (tmp_path / BASE).write_text(json.dumps({"asked": "auto", "policy": tree}))
        with pytest.raises(KdsearchError, match=rf"cannot read {tmp_path / BASE}: "):
            read_base(tmp_path)


def test_check_says_the_base_and_what_it_costs_and_writes_nothing(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = kd.check(study, out=tmp_path / "run")
    said = capsys.readouterr().out
    risen = f"all in all the teacher's cross-entropy rises by {found.base_loss_rise:.2f} nats"
    assert f"base: {found.base}; {risen}" in said
    assert "6 references" in said and not (tmp_path / "run").exists()


# Trained with


def test_a_policy_is_trained_over_its_own_base_unless_the_study_names_one(study: Study) -> None:
    learned, own = base_of_parts(["shift"], fill="zero"), base_of_parts(["turn"])
    spec, bare = (Policy({"rotate": 9.0}, 1).freeze(base=base) for base in (learned, None))
    image = replace(study, views=kd.Views(second_from="image"))  # whose policies keep none
    for given, policy, base, said in (
        (study, spec, learned, ""),
        (study, bare, None, ""),
        (image, bare, "auto", ""),
        (replace(study, base="shift"), spec, "shift", ""),
        (replace(study, base=learned), spec, learned, ""),
        (replace(study, base=half), bare, half, ""),  # perhaps the one that it was learned over
        (
            replace(study, base=own),
            spec,
            own,
            r"the study's is taken \(1 of 1 .*rotate.*another \(2 of 2 .*translate_x",
        ),
        (replace(study, base=None), spec, None, r"the study's is taken \(none\), and the policy has another \(2 of 2"),
        (replace(study, base="shift"), bare, "shift", r"translate_x .*and the policy has another \(none\)$"),
        (replace(study, base=half), spec, half, r"is taken \(a transform\), and"),
    ):
        taken, told = _take_base(given, policy)
        assert taken.base == "auto" if base == "auto" else describe_asked(taken.base) == describe_asked(base)
        assert len(told) == bool(said) and all(re.search(said, line) for line in told)


def test_a_student_is_trained_over_the_base_of_the_file(
    searched: Result, study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kd.train(study, searched.folder, out=tmp_path / "own")
    assert searched.best and searched.best.base
    kept, trained = read_base(tmp_path / "own"), kd.PolicySpec.load(tmp_path / "own" / "policy.json")
    assert kept and kept.policy and trained.base
    assert kept.policy.final == trained.base.final == searched.best.base.final
    assert "warning: base" not in capsys.readouterr().out
    kd.train(replace(study, base="shift"), searched.folder, out=tmp_path / "other")
    assert "warning: base: the study's is taken (2 of 2 operations an image: translate_x" in capsys.readouterr().out
    kept = read_base(tmp_path / "other")
    assert kept and kept.asked == "shift"
    live = Policy({"rotate": 9.0}, 1)  # which does not say what it was learned over
    kd.train(study, live, out=tmp_path / "live", quiet=True)
    assert json.loads((tmp_path / "live" / BASE).read_text())["asked"] == "auto"
