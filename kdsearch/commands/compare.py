"""Searched policies and what needs no search, trained on fresh seeds and measured on the test split: `kd.compare`."""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kdsearch.analysis.choice import choose, compared_rows, describe_rows, to_markdown
from kdsearch.analysis.frames import Frame, frames, make_frame, reading_rows
from kdsearch.analysis.plots import plot_compared, save_figure
from kdsearch.augment.bases import Base, as_held
from kdsearch.augment.policy import Policy
from kdsearch.augment.presets import TORCHVISION
from kdsearch.augment.spec import PolicySpec
from kdsearch.commands.check import adapt_study, run_preflight
from kdsearch.commands.display import Display, format_duration
from kdsearch.commands.evaluate import announce_test, check_own_study, digest_test
from kdsearch.core.errors import Diverged, KdsearchError, quote, translate_machine_errors, unknown_name, wrong_integers
from kdsearch.core.files import as_path, make_folder, to_json_values, write_text
from kdsearch.core.interrupts import Interrupts
from kdsearch.core.locks import lock_folder
from kdsearch.core.maths import derive_seed, own_generators, usual_modes
from kdsearch.data.batches import first_batch, place_data
from kdsearch.data.items import MapStyle, length
from kdsearch.distill.phase import PolicySteps
from kdsearch.distill.records import EpochRecord
from kdsearch.probe.evaluation import measure_images
from kdsearch.probe.inheritance import Ruler
from kdsearch.probe.shifts import VERSION
from kdsearch.study.facts import student_identity
from kdsearch.study.fingerprint import describe_transform, policy_numbers
from kdsearch.study.hpo import TrialRow, read_kept_trials
from kdsearch.study.preflight import Findings
from kdsearch.study.ready import Ready
from kdsearch.study.run import CHECKPOINT, run_trial
from kdsearch.study.run_folder import (
    COMPARED,
    SHIFTED,
    WRITERS,
    check_readings,
    describe_readings,
    keep_answers,
    keep_reading,
    read_policy,
    read_readings,
    read_study,
    trial_folder,
)
from kdsearch.study.splits import keep_confirm
from kdsearch.study.study import Study, load_study
from kdsearch.tasks.metrics import metric_name

COMMAND = "kdsearch compare"
KEPT = ("seconds", "student_images", "teacher_images", "at_chance")  # of an outcome
NAME = re.compile(r"[a-z_0-9 .-]{1,40}")  # of a row


@dataclass(frozen=True)
class Comparison:
    """What a comparison on the test split came to."""

    folder: Path
    sentence: str  # which to use
    evaluations: Frame  # its rows, as the frame `evaluations`
    table: Frame  # a line a run: means over seeds, and its difference to the best reference with a 95 % interval

    def __repr__(self) -> str:
        return f"Comparison({str(self.folder)!r})\n{self.table.to_string(index=False)}\n{self.sentence}"


@dataclass(frozen=True)
class Row:
    """One kind of training that is compared."""

    name: str
    second: Callable[[], Base | None] = lambda: None  # makes the second view
    policy_steps: PolicySteps | None = None  # of a policy that learns beside the student
    replayed: PolicySpec | None = None
    run: str = ""  # the reference that it is
    described: Any = field(default=None, repr=False)  # what tells it from others, as plain values


@usual_modes()
def compare(
    study: Study | str | Path,
    *,
    seeds: int = 5,
    top: int = 1,
    references: Sequence[str] | None = None,
    policies: Mapping[str, Any] | None = None,
    out: Path | str | None = None,
    storage: str | None = None,
    device: str | None = None,
    quiet: bool = False,
) -> Comparison:
    """Which second view to use: searched policies and references on fresh seeds, measured on the test split.

    Rows are `online` (the policy learns beside the student, as in its trial), `schedule` (its moments, replayed epoch
    by epoch) and `final` (its last numbers, held), the references, and whatever is given. All of a seed share the
    student's start and the order of images. Where `online` is among them, the others train for as many more steps as
    make up for its policy steps: their students answer on as many images, or up to a step an epoch more.

    Nothing is chosen on the test split: which reference the searched policy is held against, and which of its rows, is
    what the confirmation says. Each row is kept as soon as it is measured, in the folder's `test_readings.jsonl` and
    `compare/`; a second call trains only what is missing, and says that the split was read.

    Args:
        study: The study that was searched: a `Study`, the name of a shipped one, or the path of a study file.
        seeds: Fresh ones, of all rows.
        top: So many of the best trials.
        references: Their names, those of the study and `trivial_augment_wide`, `torchvision_rand_augment`; the study's
            where None.
        policies: More rows by name: policy files, `PolicySpec`, `Policy`, `FixedTransform`, any callable on one image.
        out: The run folder; `./runs/<study name>` by default.
        storage: Database URL of a search that kept its trials outside its folder.

    Raises:
        KdsearchError: no search of this study there, no finished trial, no test split, bad input.
        KeyboardInterrupt: the same call goes on.
    """
    if found := wrong_integers({"seeds": seeds, "top": top}, {"seeds": 1, "top": 0}):
        raise KdsearchError(f"compare: {found[0]}")
    if not isinstance(study, Study):
        study = load_study(str(study))[0]
    folder = as_path(out or Path("runs") / study.name)
    told = read_study(folder)
    study = adapt_study(
        study,
        seed=told.seed,
        device=device,
        epochs=told.budget_epochs,
        confirmation=told.budget_confirmation,
    )
    check_own_study(folder, study)
    trials, facts = read_kept_trials(folder, told, storage)
    best = sorted((t for t in trials if t.value is not None), key=lambda t: (-(t.value or 0.0), t.number))[:top]
    if top and not best:
        raise KdsearchError(f"{folder}: no trial has finished; allowed: top=0, for the references alone")
    study, split = keep_confirm(study)
    with (
        Display(metric_name(study.metric), quiet=quiet) as display,
        Interrupts() as interrupts,
        own_generators(),
        translate_machine_errors(f"the comparison in {folder}"),
        interrupts.prefer_interruption(),
        lock_folder(folder, "search", WRITERS),
    ):
        checked = run_preflight(study, folder, display, split=split)
        _check_alike(folder, facts.get("fixed"), student_identity(checked))
        rows = _rows(checked.ready, folder, best, references, policies or {})
        try:
            return _Compared(checked, folder, storage, rows, seeds, display, interrupts).run()
        except KeyboardInterrupt:
            display.say("interrupted; the same command goes on")
            raise


def _check_alike(folder: Path, stored: Any, identity: Mapping[str, Any]) -> None:
    """Raises KdsearchError where the study is not the one whose search the folder holds."""
    now = json.loads(json.dumps(to_json_values(identity)))
    known = stored if isinstance(stored, dict) else {}
    if differ := [name for name in now if name in known and known[name] != now[name]]:
        raise KdsearchError(
            f"{folder} holds a search of another study, which differs in {', '.join(differ)}; allowed: the study as it "
            "was searched"
        )


def _rows(
    ready: Ready, folder: Path, best: Sequence[TrialRow], references: Sequence[str] | None, given: Mapping[str, Any]
) -> list[Row]:
    """All rows, the searched ones first."""
    rows = []
    for place, trial in enumerate(best):
        settings, spec = ready.space.settings(trial.params), read_policy(folder, trial_folder(folder, trial.number))
        if spec is None:
            raise KdsearchError(f"{folder}: trial {trial.number} has no policy.json")
        of = f" of {trial.number}" if place else ""
        steps, final = ready.policy_steps(settings), as_held(spec, "policies")
        rows += [
            Row(f"online{of}", partial(ready.policy, settings), steps, described=settings.numbers()),
            Row(f"schedule{of}", replayed=spec, described=[m.model_dump() for m in spec.schedule]),
            Row(f"final{of}", partial(_itself, final), described=_described(final)),
        ]
    known = (*ready.references, *TORCHVISION)
    for name in ready.references if references is None else references:
        if name not in known:
            raise KdsearchError(unknown_name("reference", name, known))
        if name in TORCHVISION:
            rows.append(Row(name, TORCHVISION[name], described=name))
            continue
        start = ready.space.settings(best[0].params) if name == "start" and best else ready.space.settings()
        rows.append(Row(name, partial(ready.reference, name, start), run=name, described=[name, start.numbers()]))
    for name, policy in given.items():
        if not NAME.fullmatch(name):
            raise KdsearchError(f"policies: the name {quote(name)}; allowed: letters a to z, digits, _ . - and spaces")
        made = as_held(policy, "policies")
        rows.append(Row(name, partial(_itself, made), described=_described(made)))
    names = [row.name for row in rows]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise KdsearchError(f"compare: two rows are called {twice}; allowed: names of their own")
    if not rows:
        raise KdsearchError("compare: there is nothing to compare")
    return rows


def name_policies(paths: Sequence[Path]) -> dict[str, Path]:
    """Policy files by names of their own: that of the file, or of the folder over it where several are alike."""
    plain = [path.stem for path in paths]
    names = [stem if plain.count(stem) == 1 else f"{path.absolute().parent.name} {stem}"
             for path, stem in zip(paths, plain, strict=True)]  # fmt: skip
    named = [re.sub(r"[^a-z0-9_ .-]", "_", name.lower())[:40] for name in names]
    if twice := next((name for name in named if named.count(name) > 1), None):
        raise KdsearchError(f"policy: two files are called {twice}; allowed: names of their own")
    return dict(zip(named, paths, strict=True))


def _itself(second: Base) -> Base:
    return second


def _described(second: Base | None) -> Any:
    return policy_numbers(second) if isinstance(second, Policy) else second and describe_transform(second)


class _Compared:
    """The steps of one comparison."""

    def __init__(
        self,
        checked: Findings,
        folder: Path,
        storage: str | None,
        rows: Sequence[Row],
        seeds: int,
        display: Display,
        interrupts: Interrupts,
    ) -> None:
        ready = checked.ready
        self.ready, self.folder, self.storage, self.rows = ready, folder, storage, rows
        self.display, self.interrupts = display, interrupts
        self.seeds = [derive_seed(ready.study.seed, "compare", i) % 2**31 for i in range(seeds)]
        self.identity = json.dumps(to_json_values(student_identity(checked)), sort_keys=True)
        self.steps = ready.study.budget.steps  # of an epoch, of rows without policy steps, on the seed at hand
        self.each, self.taken = checked.seconds_per_run, list[float]()  # seconds of a row, foreseen and of those so far

    def run(self) -> Comparison:
        study, say = self.ready.study, self.display.say
        task, test = self.ready.task, study.test
        assert test is not None
        shape = first_batch(study.search_validation, 1).images.shape[1:]
        check_readings(self.folder)
        before = read_readings(self.folder)
        data = place_data(test, readers=study.readers, device=study.device)
        digest = digest_test(study, data, shape, task)
        known: Mapping[tuple[Any, Any], Mapping[str, Any]] = {
            (row.get("key"), row.get("seed")): row for row in before if row.get("digest") == digest
        }
        planned = [(row, seed) for seed in self.seeds for row in self.rows]
        announce_test(study, test, len(planned), self.display)
        ruler = None  # as in the search: not of every kind of images
        if self.ready.ruler:
            ruler = Ruler(self.ready.teacher, data, task, known=self.ready.space.limits, device=study.device)
        read_at, found, said = datetime.now(UTC), list[dict[str, Any]](), False
        for row, seed in planned:
            kept = known.get((self._key(row), seed))
            if kept is None:
                if not said:
                    for line in describe_readings(before, digest):
                        say(line)
                said, done = True, len(found) + 1
                self.display.expect(self._left(len(planned) - done + 1))
                kept = self._train(row, seed, data, ruler, digest, read_at)
                left = self._left(len(planned) - done)
                say(f"{row.name}, seed {self.seeds.index(seed) + 1} of {len(self.seeds)}: {self._in_words(kept)}"
                    + (f"  about {format_duration(left)} left" if done < len(planned) else ""))  # fmt: skip
            if row is self.rows[0]:
                self._match_images(row, kept)
            found.append({**kept, "run": row.name})
        return self._finish(found)

    def _left(self, rows: int) -> float:
        """Seconds of so many rows."""
        return rows * (sum(self.taken) / len(self.taken) if self.taken else self.each)

    def _match_images(self, row: Row, kept: Mapping[str, Any]) -> None:
        """Give the other rows of its seed as many steps as let their students answer on no fewer images."""
        study, images = self.ready.study, kept.get("student_images")
        if row.policy_steps and images:
            budget = study.budget
            each = study.student_images / (budget.epochs * budget.steps)
            self.steps = max(budget.steps, math.ceil(images / each / budget.epochs))

    def _key(self, row: Row) -> str:
        """What fixes a row, beside its seed and the test split."""
        steps = None if row.policy_steps else self.steps
        fixed = (self.identity, VERSION, row.name.split(" of ")[0], row.described, steps)
        text = json.dumps(to_json_values(fixed), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def _train(
        self, row: Row, seed: int, data: MapStyle, ruler: Ruler | None, digest: str, read_at: datetime
    ) -> dict[str, Any]:
        """Train one student, measure it on the test split, keep both."""
        study, key = self.ready.study, self._key(row)
        steps = study.budget.steps if row.policy_steps else self.steps
        ready = replace(self.ready, study=replace(study, budget=replace(study.budget, steps=steps)), ruler=None)
        checkpoint = make_folder(self.folder / COMPARED) / CHECKPOINT

        def on_record(record: EpochRecord) -> None:
            self.interrupts.check()
            self.display.epoch(row.name, record, study.budget.epochs)

        kept: dict[str, Any] = {
            "run": row.name, "seed": seed, "value": None, "images": length(data), "key": key, "steps": steps,
            "metric": metric_name(study.metric), "digest": digest, "read_at": read_at.isoformat(), "command": COMMAND,
        }  # fmt: skip
        answers: dict[str, Tensor] = {}
        try:
            outcome = run_trial(
                ready,
                None,
                policy=row.second(),
                policy_steps=row.policy_steps,
                replayed=row.replayed,
                run=row.run,
                seed=seed,
                base_seed=seed,
                checkpoint=checkpoint,
                on_record=on_record,
            )
            kept |= {name: getattr(outcome, name) for name in KEPT}
            assert outcome.student is not None
            measured, answers = self._measure(outcome.student, data, ruler)
            kept |= measured
        except Diverged as error:
            kept["fail_reason"] = f"nan: {error}"
        self.taken.append(kept.get("seconds", self.each))
        if answers:
            keep_answers(self.folder, key, seed, answers, place=COMPARED)
        keep_reading(self.folder, kept)
        checkpoint.unlink(missing_ok=True)
        return kept

    def _measure(
        self, student: nn.Module, data: MapStyle, ruler: Ruler | None
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """A student on the test split, and what each image contributes."""
        study, task = self.ready.study, self.ready.task
        found, by_image = measure_images(student, data, task, study.budget.batch, study.device, study.metric)
        row: dict[str, Any] = {"value": found.value, "value_se": found.value_se}
        answers = {"value": by_image.float()}
        if ruler:
            shifted, inherited = ruler.measure_images(student)
            row |= {name: getattr(shifted, name) for name in SHIFTED} | {"shifts_version": shifted.version}
            answers["inherited"] = inherited.float()
        return row, {name: values for name, values in answers.items() if len(values) and not values.isnan().any()}

    def _in_words(self, row: Mapping[str, Any]) -> str:
        if row.get("value") is None:
            return f"failed ({row.get('fail_reason')})"
        value = self.display.scale.text(row["value"], row.get("value_se"))
        share = row.get("inherited")
        return value if share is None or math.isnan(share) else f"{value}  inherited {100 * share:.1f} %"

    def _finish(self, found: list[dict[str, Any]]) -> Comparison:
        """Table, picture and sentence."""
        told, say = read_study(self.folder), self.display.say
        tables = frames(self.folder, storage=self.storage, only=("studies", "trials", "evaluations", "comparisons"))
        choice = choose(tables, [row.name for row in self.rows])
        table = compared_rows(self.folder, found, choice, told.metric)
        sentence = choice.describe(table, told.metric)
        say("")
        for line in describe_rows(table, told.metric):
            say(line)
        say("")
        say(sentence)
        place = make_folder(self.folder / COMPARED)
        write_text(place / "compare.md", to_markdown(table, told.metric, sentence))
        save_figure(plot_compared(table, told.metric), place / "compare.png")
        say(f"table        {place / 'compare.md'}, picture {place / 'compare.png'}")
        keys = {(row["key"], row["seed"]) for row in found}
        readings = [row for row in read_readings(self.folder) if (row.get("key"), row.get("seed")) in keys]
        rows = make_frame("evaluations", reading_rows(told.study, readings))
        return Comparison(self.folder, sentence, rows, table)
