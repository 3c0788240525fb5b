"""A study looked at before it is searched: `kd.check`, and what a search does and says first."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from kdsearch.analysis.scale import Scale
from kdsearch.commands.display import Display, format_duration
from kdsearch.core.errors import translate_machine_errors
from kdsearch.core.files import as_path
from kdsearch.core.maths import own_generators, usual_modes
from kdsearch.core.memory import GIB
from kdsearch.core.terminal import escape_unprintable, number_of
from kdsearch.networks.teachers import Recipe
from kdsearch.study.costs import MemoryEstimate
from kdsearch.study.preflight import Findings, preflight
from kdsearch.study.splits import keep_confirm
from kdsearch.study.study import Budget, Study, load_study
from kdsearch.study.wiring import check_kinds
from kdsearch.tasks.metrics import ACCURACY, metric_name


@dataclass(frozen=True)
class Check:
    """What a search of a study would begin with, and what it would cost."""

    study: str
    teacher_accuracy: float  # on search-validation
    teacher_accuracy_se: float
    space: str
    operations: tuple[str, ...]  # of the space, without those dropped
    dropped: Mapping[str, str]  # operations that these images do not feel, and why
    base: str  # the base view of all runs, and what it leaves out
    base_loss_rise: float | None  # of the teacher's cross-entropy on it, nats; None: there is none
    warnings: tuple[str, ...]  # what is allowed and seldom meant
    budget: Budget
    seconds: float  # of the whole search
    seconds_per_trial: float
    seconds_per_reference: float
    memory: MemoryEstimate | None  # of a training step; None: nobody knows what the device has

    def __repr__(self) -> str:
        right = Scale(ACCURACY).text(self.teacher_accuracy, self.teacher_accuracy_se)
        counts = f"{number_of(len(self.operations), 'operation')}, {len(self.dropped)} left out"
        costs = f"about {format_duration(self.seconds)}{f', {_size(self.memory.needed)} a step' if self.memory else ''}"
        said = f"Check({self.study}: teacher {right}; {counts}; {number_of(len(self.warnings), 'warning')}; {costs})"
        return escape_unprintable(said)


@usual_modes()
def check(
    study: Study | str | Path,
    *,
    trials: int | None = None,
    epochs: int | None = None,
    confirmation: int | None = None,
    device: str | None = None,
    out: Path | str | None = None,
    quiet: bool = False,
) -> Check:
    """Look at a study as a search does before it trains anything: whatever is wrong with it, and what it would cost.

    No student is trained and no search is begun. A teacher that is a `Recipe` is trained, unless the run folder has its
    weights: they are kept there, and the search takes them. Nothing else is written.

    Args:
        study: A `Study`, the name of a shipped one, or the path of a study file.
        trials: In place of the study's, as for a search; so are the next three.
        epochs: Of a run.
        confirmation: Fresh seeds.
        device: "cpu", "cuda", "cuda:1", "mps".
        out: The run folder; `./runs/<study name>` by default.

    Raises:
        KdsearchError: bad input, with all that is wrong.
    """
    if not isinstance(study, Study):
        study, _ = load_study(str(study))
    study = adapt_study(study, device=device, trials=trials, epochs=epochs, confirmation=confirmation)
    study, split = keep_confirm(study)
    folder = as_path(out or Path("runs") / study.name)
    with (
        Display(metric_name(study.metric), quiet=quiet) as display,
        own_generators(),
        translate_machine_errors(f"the check of study {study.name}"),
    ):
        trains = needs_training(study, folder)
        findings = run_preflight(study, folder, display, split=split)
        for line in describe_findings(findings):
            display.say(line)
        found = _check_of(findings)
        display.say(describe_costs(found.budget, len(findings.ready.references), found.seconds))
        if found.memory:
            display.say(describe_memory(found.memory))
        left = "the teacher's weights are kept for the search" if trains else "nothing was written"
        display.say(f"no student was trained; {left}")
    return found


def adapt_study(study: Study, *, seed: int | None = None, device: str | None = None, **budget: int | None) -> Study:
    """A study with what a call gives in place of its own.

    Args:
        budget: Fields of its budget; None leaves one as it is.

    Raises:
        KdsearchError: a field of the study that is of no kind that it can be.
    """
    study = replace(study, seed=study.seed if seed is None else seed, device=device or study.device)
    check_kinds(study)
    given = {name: value for name, value in budget.items() if value is not None}
    return replace(study, budget=replace(study.budget, **given))


def needs_training(study: Study, folder: Path) -> bool:
    """Is the teacher a recipe whose weights the run folder does not have yet?"""
    return isinstance(study.teacher, Recipe) and not (folder / "teacher.safetensors").exists()


def announce_training(study: Study, folder: Path, display: Display) -> None:
    """Say that a teacher is trained now, where it is."""
    if needs_training(study, folder):
        display.say(f"training the teacher by the study's recipe, kept as {folder / 'teacher.safetensors'}")


def run_preflight(
    study: Study, folder: Path, display: Display, run: Path | None = None, *, split: str = ""
) -> Findings:
    """The preflight, with a word on what takes its time.

    Args:
        run: The folder that the runs are kept in; `folder`, where the teacher's weights are, if None.
        split: How images were kept for the confirmation, in words.

    Raises:
        KdsearchError: whatever is wrong with the study.
    """
    announce_training(study, folder, display)
    display.say("looking at the study: data, networks, memory, time")
    if split:
        display.say(split)
    return preflight(study, folder, device=study.device, run=run)


def describe_findings(findings: Findings) -> Iterator[str]:
    """What the preflight found, in lines: the teacher, what was left out, warnings, a smaller look for disagreement."""
    ready = findings.ready
    right = Scale(ACCURACY).text(findings.validation.accuracy)
    yield (
        f"study {ready.study.name}: teacher right on {right} of search-validation; "
        f"{number_of(len(ready.space.limits), 'operation')} from the space {ready.space.name}"
    )
    yield from (f"  left out: {name} ({why})" for name, why in findings.dropped.items())
    rise = ready.base_view.loss_rise
    risen = "" if rise is None else f"; all in all the teacher's cross-entropy rises by {rise:.2f} nats"
    yield f"{ready.base_view.said}{risen}"
    yield from filter(None, [findings.asked])
    yield from (f"warning: {warning}" for warning in findings.warnings)
    if less := ready.probe.look.describe_less(len(ready.space.limits)):
        yield less


def describe_costs(budget: Budget, references: int, seconds: float) -> str:
    """What a search does, and how long that takes."""
    trials, epochs = number_of(budget.trials, "trial"), number_of(budget.epochs, "epoch")
    seeds = budget.confirmation
    last = f"confirmation on {number_of(seeds, 'seed')}" if seeds else "no confirmation"
    return f"{trials} of {epochs}, {references} references, {last}: about {format_duration(seconds)}"


def describe_memory(memory: MemoryEstimate) -> str:
    """
    >>> describe_memory(MemoryEstimate(2**28, 2**33))
    'a training step takes about 256 MiB of 8.0 GiB, beside the networks'
    """
    return f"a training step takes about {_size(memory.needed)} of {_size(memory.available)}, beside the networks"


def _size(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{max(1, round(count / 2**20))} MiB"


def _check_of(findings: Findings) -> Check:
    study, budget = findings.ready.study, findings.ready.study.budget
    learned = budget.trials + budget.confirmation
    references = len(findings.ready.references)
    plain = references + (1 + references) * budget.confirmation
    return Check(
        study.name,
        findings.validation.accuracy,
        findings.validation.accuracy_se,
        findings.ready.space.name,
        tuple(findings.ready.space.limits),
        findings.dropped,
        findings.ready.base_view.said.removeprefix("base: "),
        findings.ready.base_view.loss_rise,
        findings.warnings,
        budget,
        learned * findings.seconds_per_run + plain * findings.seconds_per_reference,
        findings.seconds_per_run,
        findings.seconds_per_reference,
        findings.memory,
    )
