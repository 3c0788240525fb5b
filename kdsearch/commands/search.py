"""One search from preflight over references and trials to confirmation and report: `kd.search`."""

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from kdsearch.analysis.compare import describe_outcome
from kdsearch.analysis.frames import frames, write_frames
from kdsearch.analysis.headroom import describe_headroom
from kdsearch.analysis.report import write_page
from kdsearch.augment.spec import PolicySpec
from kdsearch.commands.check import adapt_study, describe_costs, describe_findings, run_preflight
from kdsearch.commands.display import Display, settings_line
from kdsearch.core.errors import Diverged, KdsearchError, describe_exception, quote, translate_machine_errors
from kdsearch.core.files import absolute_path, as_path, make_folder, write_bytes, write_json
from kdsearch.core.html import escape_html, html_paragraph
from kdsearch.core.interrupts import Interrupts, hold_signals
from kdsearch.core.locks import lock_folder
from kdsearch.core.looks import plan_looks
from kdsearch.core.maths import own_generators, usual_modes
from kdsearch.core.terminal import escape_unprintable, number_of, option
from kdsearch.distill.guards import chance_reasons
from kdsearch.distill.records import EpochRecord
from kdsearch.study.base_view import keep_base
from kdsearch.study.confirmation import (
    confirm,
    missing_shared,
    next_look,
    rows_of_winner,
    run_shared,
    runs_left,
)
from kdsearch.study.facts import search_facts, search_identity
from kdsearch.study.hpo import (
    Best,
    Trial,
    TrialEvent,
    best_trial,
    check_kept,
    check_names,
    check_storage,
    database_file,
    database_url,
    finished_trials,
    open_search,
    run_trials,
    translate_storage_errors,
)
from kdsearch.study.preflight import Findings
from kdsearch.study.references import find_learned, missing_references, run_references
from kdsearch.study.run import CHECKPOINT, Outcome, run_trial
from kdsearch.study.run_folder import TRAINING, WRITERS, ResultFile, read_result, trial_folder
from kdsearch.study.splits import keep_confirm
from kdsearch.study.study import Study, load_study
from kdsearch.tasks.metrics import metric_name

OnRecord = Callable[[str, EpochRecord], object]  # the name of a run, what its last epoch measured


@dataclass(frozen=True)
class Result:
    """What a search came to."""

    folder: Path
    best: PolicySpec | None  # None: no trial finished
    value: float | None  # of the metric on search-validation, of the best of several noisy trials
    student_path: Path | None
    sentence: str  # did it help?

    def __repr__(self) -> str:
        value = "no trial finished" if self.value is None else f"value {self.value:.3f}"
        return f"Result({str(self.folder)!r}, {value}, best {self.best})\n{escape_unprintable(self.sentence)}"

    def _repr_html_(self) -> str:
        page = f"<p><b>{escape_html(self.sentence)}</b></p>"
        if self.best is not None:
            page += self.best.in_html() + html_paragraph(f"student: {self.student_path}")
        return page + html_paragraph(f"report: {self.folder / 'report.html'}")


@usual_modes()
def search(
    study: Study | str | Path,
    *,
    trials: int | None = None,
    epochs: int | None = None,
    confirmation: int | None = None,
    out: Path | str | None = None,
    storage: str | None = None,
    sampler: str = "tpe",
    pruner: str = "none",
    seed: int | None = None,
    device: str | None = None,
    quiet: bool = False,
    on_record: OnRecord | None = None,
) -> Result:
    """Search augmentation policies for the teacher and student of a study; a second call goes on where one ended.

    A logger is told of each epoch of each run:

        writer = torch.utils.tensorboard.SummaryWriter()
        kd.search(study, on_record=lambda run, record: writer.add_scalar(run, record.value, record.epoch))

    Args:
        study: A `Study`, the name of a shipped one, or the path of a study file.
        trials: COMPLETE + PRUNED in all, interrupted ones not counted; by default the study's.
        epochs: Per run, in place of the study's.
        confirmation: Fresh seeds for the winner and the references, in place of the study's.
        device: In place of the study's.
        out: The run folder; `./runs/<study name>` by default.
        storage: Database URL; SQLite in the run folder by default.
        on_record: Called with the name of a run ("identity", "trial 0", "confirm learned", ...) and an `EpochRecord`,
            whose fields are numbers, after each epoch of references, trials and confirmation, in the process that
            trains, once the record is kept. A run that goes on from a checkpoint tells the epochs before it again. What
            fails in it is a warning, said once, and it is called on.

    Raises:
        KdsearchError: bad input, before anything is trained.
        KeyboardInterrupt: after the report of what there is has been written.
    """
    if on_record is not None and not callable(on_record):
        called = "a function of the name of a run and an EpochRecord"
        raise KdsearchError(f"search: on_record is {quote(on_record)}; allowed: {called}")
    source = None
    if not isinstance(study, Study):
        study, source = load_study(str(study))
    study = adapt_study(study, seed=seed, device=device, trials=trials, epochs=epochs, confirmation=confirmation)
    study, split = keep_confirm(study)
    folder = as_path(out or Path("runs") / study.name)
    url = storage or database_url(folder)
    check_storage(url)
    check_names(sampler, pruner)
    check_kept(folder, url)
    if (folder / TRAINING).exists():
        place = absolute_path(folder)
        other = place.parent / f"{place.name}-search"
        raise KdsearchError(
            f"out: {folder} holds a student of `kdsearch train`; allowed: another folder, such as {other}"
        )
    with (
        Display(metric_name(study.metric), quiet=quiet) as display,
        Interrupts() as interrupts,
        own_generators(),
        translate_machine_errors(f"the search in {folder}"),
        translate_storage_errors(url),
        interrupts.prefer_interruption(),
        lock_folder(folder, "search", WRITERS),
    ):
        search_: _Search | None = None
        try:
            checked = run_preflight(study, folder, display, split=split)
            search_ = _Search(checked, folder, url, sampler, pruner, display, interrupts, on_record)
            search_.begin(source)
            search_.references()
            search_.headroom()
            search_.trials()
            search_.confirm()
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                display.say("interrupted; the same command goes on")
            if search_ and search_.begun:
                search_.finish_after_error()
            raise
        return search_.finish()


def _keep_source(source: Path, kept: Path) -> None:
    """A copy of the study file, which may be that copy itself."""
    if not (kept.exists() and kept.samefile(source)):
        write_bytes(kept, source.read_bytes())


class _Search:
    """The steps of one search over one run folder."""

    def __init__(
        self,
        checked: Findings,
        folder: Path,
        url: str,
        sampler: str,
        pruner: str,
        display: Display,
        interrupts: Interrupts,
        on_record: OnRecord | None,
    ) -> None:
        self.checked, self.ready, self.folder, self.url = checked, checked.ready, folder, url
        self.sampler, self.pruner, self.display, self.interrupts = sampler, pruner, display, interrupts
        self.on_record, self.warned = on_record, False
        self.begun = False  # is there anything to report of?
        self.study = checked.ready.study
        self.budget = self.study.budget
        self.outcomes: dict[int, Outcome] = {}
        self.provenance = {"study": self.study.name, "kdsearch": importlib.metadata.version("kdsearch")}
        self.measured: dict[bool, list[float]] = {True: [], False: []}  # seconds of runs with and without policy steps

    def begin(self, source: Path | None) -> None:
        """Open the storage, keep a copy of the study file, say what is about to happen."""
        known, fixed = search_facts(self.checked), search_identity(self.checked)
        place = database_file(self.url)
        own = place == database_file(database_url(self.folder))
        with hold_signals():
            self.optuna = open_search(
                self.url,
                known,
                fixed,
                sampler=self.sampler,
                pruner=self.pruner,
                epochs=self.budget.epochs,
                folder=None if own else self.folder,
            )
            keep_base(
                self.folder,
                self.ready.base_view,
                fused=self.ready.teacher.is_fused,
                answers_looked_up=self.ready.tables.allowed,
            )
            write_json(self.folder / "study.json", {**known, "storage": None if own else f"sqlite:///{place}"})
            self.begun = True
        for number in finished_trials(self.optuna):  # left by a search that ended just after a trial had
            (self._trial_folder(number) / CHECKPOINT).unlink(missing_ok=True)
        if source:
            _keep_source(source, self.folder / "study.py")
        say = self.display.say
        for line in describe_findings(self.checked):
            say(line)
        done, left = self._done(), self._seconds_left()
        if done:
            say(f"resuming: {done} of {number_of(self.budget.trials, 'trial')} {'is' if done == 1 else 'are'} done")
        say(
            describe_costs(self.budget, len(self.ready.references), left)
            if left
            else "all of it is done; nothing is left to train"
        )

    def references(self) -> None:
        """Runs without a learned policy."""
        self.display.expect(self._seconds_left())
        told = False
        for name, found in run_references(self.ready, self.folder, self.provenance, self._show, self._look):
            if isinstance(found, Diverged):
                self.display.say(f"{name}: failed (nan: {found})")
            else:
                self.measured[False].append(found.seconds)
                self.display.end_run(name, found)
                if found.at_chance and found.student and not told:
                    steps = self.budget.epochs * self.budget.steps
                    self.display.say(f"  {chance_reasons(found.student, steps, self.budget.batch)}")
                    told = True
            self.display.expect(self._seconds_left())

    def headroom(self) -> None:
        """Second views that no search changes on the seeds of the confirmation: what there is to find."""
        seeds, learned = self.budget.confirmation, find_learned(self.ready, self.folder)
        if not seeds or not learned:  # where no student is better than chance there is nothing to compare
            return
        missing = missing_shared(self.ready, self.folder)
        if missing:
            self.display.say(f"{number_of(missing, 'run')} of fixed second views on {number_of(seeds, 'fresh seed')}")
        for _ in run_shared(self.ready, self.folder, self._show):
            self.display.expect(self._seconds_left())
        if said := describe_headroom(rows_of_winner(self.folder, None), metric_name(self.study.metric)):
            self.display.say(said)

    def trials(self) -> None:
        """Optuna trials up to the budget."""
        run_trials(
            self.optuna,
            self.ready.space,
            self._trial,
            target=self.budget.trials,
            seed=self.study.seed,
            paired=self.study.paired,
            sampler=self.sampler,
            on_trial=self._ended,
        )

    def confirm(self) -> None:
        """Winner and references on fresh seeds, paired; rows already in the folder are kept."""
        best = self._best()
        if best is None or not self.budget.confirmation:
            return
        result = read_result(self.folder, self._trial_folder(best.number))
        if result and result.at_chance:
            self.display.say(f"trial {best.number} {result.at_chance}: nothing is confirmed")
            return
        settings, seeds = self.ready.space.settings(best.params), self.budget.confirmation
        spec = PolicySpec.load(self._trial_folder(best.number) / "policy.json")
        if next_look(self.ready, self.folder, best.number):
            looks = ", ".join(str(look.seeds) for look in plan_looks(seeds)[:-1])
            after = f", looking after {looks} too" if looks else ""
            on = number_of(seeds, "fresh seed")
            self.display.say(f"confirming trial {best.number} ({settings_line(best.params)}) on {on}{after}")
        for look in confirm(self.ready, self.folder, best.number, settings, spec, self._show):
            if look:
                self.display.say(f"not decided yet; on to {look.seeds} seeds")
            self.display.expect(self._seconds_left())

    def finish_after_error(self) -> None:
        """As `finish`, of what there is when an error ends the search, which stays the error that is told."""
        try:
            self.finish()
        except Exception as another:
            self.display.say(f"no report: {describe_exception(another)}")

    def finish(self) -> Result:
        """Frames, report and the last words, from the folder alone."""
        tables = frames(self.folder, storage=self.url)
        write_frames(tables, self.folder / "frames", "parquet")
        report = write_page(self.folder, tables)
        best, said = self._best(), describe_outcome(tables)
        say = self.display.say
        say("")
        say(said)
        if best is None:
            return Result(self.folder, None, None, None, said)
        folder = self._trial_folder(best.number)
        say(f"best policy  {folder / 'policy.json'}   kdsearch.PolicySpec.load({str(folder / 'policy.json')!r})")
        student = folder / "student.safetensors"
        say(f"best student {student}   kdsearch.networks.load_weights(study.student(), {str(student)!r})")
        say(f"report       {report}")
        if self._done() >= self.budget.trials:
            say(f"finished; {option('trials', self._done() * 2)} goes on")
        return Result(self.folder, PolicySpec.load(folder / "policy.json"), best.value, student, said)

    def _trial(self, trial: Trial, report: Any) -> float:
        name, settings, folder = f"trial {trial.number}", trial.settings, self._trial_folder(trial.number)

        def on_record(record: EpochRecord) -> None:
            self._show(name, record)
            report(record)

        self.display.expect(self._seconds_left())
        self._take_over(trial, folder)
        with self.interrupts.prefer_interruption():
            outcome = run_trial(
                self.ready,
                folder,
                policy=self.ready.policy(settings),
                policy_steps=self.ready.policy_steps(settings),
                seed=trial.seed,
                provenance={**self.provenance, "run": name, "seed": trial.seed, **settings.numbers()},
                checkpoint=folder / CHECKPOINT,
                on_record=on_record,
                on_look=partial(self._look, name),
            )
        self.measured[True].append(outcome.seconds)
        self.outcomes[trial.number] = replace(outcome, student=None)
        return outcome.value

    def _take_over(self, trial: Trial, folder: Path) -> None:
        """Fetch the checkpoint of the interrupted trial that this one goes on with."""
        if not trial.retries:
            return
        self.display.say(f"trial {trial.number} goes on with trial {trial.retries[0]}, which did not end")
        left = (self._trial_folder(number) / CHECKPOINT for number in trial.retries)
        if found := next((path for path in left if path.exists()), None):
            found.replace(make_folder(folder) / CHECKPOINT)

    def _ended(self, event: TrialEvent) -> None:
        if not event.again:
            (self._trial_folder(event.number) / CHECKPOINT).unlink(missing_ok=True)
        outcome = self.outcomes.get(event.number)
        if outcome is None or event.state != "COMPLETE":
            self.display.say(
                f"trial {event.number}: {event.state.lower()}{f' ({event.reason})' if event.reason else ''}"
            )
            return
        best = self._best()
        assert best is not None
        result = read_result(self.folder, self._trial_folder(best.number)) or ResultFile()
        named = f"{self.display.scale.text(best.value, result.value_se)} (trial {best.number})"
        self.display.end_run(f"trial {event.number}", outcome, best=named)

    def _show(self, run: str, record: EpochRecord) -> None:
        self.interrupts.check()
        self.display.epoch(run, record, self.budget.epochs)
        if not self.on_record:
            return
        try:
            self.on_record(run, record)
        except (Exception, SystemExit) as error:  # a logger that is down is no reason to lose a search
            if not self.warned:
                self.display.say(
                    f"warning: on_record: {describe_exception(error)}; the search goes on, and says this once"
                )
            self.warned = True
        self.interrupts.check()  # it may have swallowed one

    def _look(self, run: str, done: int, total: int) -> None:
        self.interrupts.check()
        self.display.look(run, done, total)

    def _trial_folder(self, number: int) -> Path:
        return trial_folder(self.folder, number)

    def _done(self) -> int:
        return len(finished_trials(self.optuna))

    def _best(self) -> Best | None:
        return best_trial(self.optuna)

    def _seconds_left(self) -> float:
        """From the preflight's estimate, then from the runs so far."""
        best = self._best()
        left = runs_left(self.ready, self.folder, best.number if best else None)
        again = left.count("learned")
        learned = max(0, self.budget.trials - self._done()) + again
        plain = len(missing_references(self.ready, self.folder)) + len(left) - again
        with_steps, without = (self.measured[kind] for kind in (True, False))
        a = sum(with_steps) / len(with_steps) if with_steps else self.checked.seconds_per_run
        b = sum(without) / len(without) if without else self.checked.seconds_per_reference
        return learned * a + plain * b
