"""The commands that make a run folder and read it: check, search, train, evaluate, status, regions, frames, report."""

import shutil
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from kdsearch.commands.console import PATH, Folder, Storage, print_frame, print_mark
from kdsearch.core.files import as_path
from kdsearch.core.terminal import number_of, say

NO_BUDGET = 3  # exit code of a search that has used its budget before a trial was complete


class Format(StrEnum):
    """File formats of frames."""

    parquet = "parquet"
    csv = "csv"


Name = Annotated[str, typer.Argument(metavar="STUDY", help="Name of a shipped study, or path of a study file.")]
Trials = Annotated[int | None, typer.Option(help="COMPLETE + PRUNED trials in all.", min=1)]
Epochs = Annotated[int | None, typer.Option(help="Epochs per run.", min=1)]
Seeds = Annotated[int | None, typer.Option(help="Fresh seeds at the end; 0 for none.", min=0)]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; the study's by default.")]
Out = Annotated[Path | None, typer.Option(**PATH, help="Run folder; ./runs/<study> by default.")]


def check(
    study: Name,
    trials: Trials = None,
    epochs: Epochs = None,
    confirmation: Seeds = None,
    device: Device = None,
    out: Out = None,
) -> None:
    """What is wrong with a study, what a search costs. Trains no student; a recipe's teacher is kept for the search."""
    from kdsearch.commands.check import check as look

    look(study, trials=trials, epochs=epochs, confirmation=confirmation, device=device, out=out)


def search(
    study: Name,
    trials: Trials = None,
    epochs: Epochs = None,
    confirmation: Seeds = None,
    storage: Annotated[str | None, typer.Option(help="Database URL; SQLite in the run folder by default.")] = None,
    sampler: Annotated[str, typer.Option(metavar="<tpe|random>", help="What chooses the numbers of trials.")] = "tpe",
    pruner: Annotated[str, typer.Option(metavar="<median|none>", help="What ends trials early.")] = "none",
    seed: Annotated[int | None, typer.Option(help="In place of the study's.")] = None,
    device: Device = None,
    out: Out = None,
) -> None:
    """Search a policy: references, trials, confirmation, report. A second call resumes."""
    from kdsearch.commands.search import search as run

    result = run(
        study,
        trials=trials,
        epochs=epochs,
        confirmation=confirmation,
        storage=storage,
        sampler=sampler,
        pruner=pruner,
        seed=seed,
        device=device,
        out=out,
    )
    if result.student_path is None:
        raise typer.Exit(NO_BUDGET)
    say(f"export it    {_typed()} export {result.folder} --to torchvision -o policy.py")


def train(
    study: Name,
    policy: Annotated[
        str,
        typer.Option(
            help="A policy.json, or a run folder for its best policy, which is held still; or a second view of which "
            "nothing was learned, rand_augment or trivial."
        ),
    ] = "rand_augment",
    epochs: Annotated[int | None, typer.Option(help="The study's by default.", min=1)] = None,
    seed: Annotated[int | None, typer.Option(help="In place of the study's.")] = None,
    device: Device = None,
    out: Annotated[Path | None, typer.Option(**PATH, help="A folder; ./runs/<study>/train by default.")] = None,
) -> None:
    """Train a student with a policy, as the policy was confirmed. A second call resumes."""
    from kdsearch.commands.train import train as run

    run(study, policy, epochs=epochs, seed=seed, device=device, out=out)


def evaluate(
    folder: Folder,
    study: Annotated[str | None, typer.Option(help="Name or path of the study, which is run; needed.")] = None,
    device: Device = None,
    storage: Storage = None,
) -> None:
    """Measure the teacher and all kept students on the study's test split, and keep that in the run folder.

    The study file is Python and is run: the one that --study names, such as the copy that a search keeps, DIR/study.py.
    """
    from kdsearch.commands.evaluate import evaluate_run

    evaluate_run(folder, study=study, device=device, storage=storage)


def compare(
    study: Name,
    seeds: Annotated[int, typer.Option(help="Fresh seeds of each row.", min=1)] = 5,
    top: Annotated[int, typer.Option(help="So many of the best trials.", min=0)] = 1,
    policy: Annotated[
        list[Path] | None, typer.Option(**PATH, help="A policy file more, named after itself; may be given again.")
    ] = None,
    references: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...",
            help="The search's by default; also torchvision's, trivial_augment_wide and torchvision_rand_augment.",
        ),
    ] = None,
    device: Device = None,
    storage: Storage = None,
    out: Out = None,
) -> None:
    """Which second view to use: the searched policy and references on fresh seeds and the test split. Resumes."""
    from kdsearch.commands.compare import compare as run
    from kdsearch.commands.compare import name_policies

    run(
        study,
        seeds=seeds,
        top=top,
        references=None if references is None else [name.strip() for name in references.split(",") if name.strip()],
        policies=name_policies(policy or []),
        out=out,
        storage=storage,
        device=device,
    )


def status(folder: Folder, storage: Storage = None) -> None:
    """What a run folder holds: trials, references, the best so far."""
    from kdsearch.analysis.compare import collect_notes, describe_outcome
    from kdsearch.analysis.frames import frames
    from kdsearch.analysis.scale import scale_columns

    tables = frames(folder, storage=storage, only=("studies", "trials", "evaluations", "comparisons"))
    row = tables["studies"].iloc[0]
    say(f"{row['study']}: {row['complete']} complete, {row['pruned']} pruned, {row['failed']} failed "
          f"of {number_of(row['budget_trials'], 'trial')}")  # fmt: skip
    columns = ["run", "state", "value", "value_se", "last_epoch", "seconds", "origin", "fail_reason"]
    shown = scale_columns(tables["trials"][columns], row["metric"])
    print_frame(shown, list(shown.columns))
    say(describe_outcome(tables))
    for note in collect_notes(tables):
        say(f"warning: {note}")
    print_mark(tables)


def regions(
    folder: Folder,
    trial: Annotated[int | None, typer.Option(help="The best one by default.")] = None,
    most: Annotated[int, typer.Option(help="Rows to print.", min=1)] = 15,
    picture: Annotated[Path | None, typer.Option(**PATH, help="Also draw them, as a PNG file.")] = None,
    storage: Storage = None,
) -> None:
    """Where teacher and student disagree, strongest first."""
    from kdsearch.analysis.frames import frames
    from kdsearch.analysis.plots import plot_sweeps, save_figure
    from kdsearch.analysis.regions import trial_regions

    tables = frames(folder, storage=storage, only=("studies", "trials"))
    table = trial_regions(tables, folder, trial)
    columns = ["kind", "operation", "low", "high", "unit", "class_name", "n", "teacher_accuracy", "student_accuracy"]
    ends = ["teacher_only_low", "teacher_only_high"]
    print_frame(table.head(most), [*columns, "teacher_only_rate", *ends, "clean_rate", "kl"])
    print_mark(tables)
    if picture:
        save_figure(plot_sweeps(table), picture)
        say(picture)


def frames(
    folders: Annotated[list[Path], typer.Argument(parser=as_path, metavar="DIR...", help="Run folders.")],
    to: Annotated[Format, typer.Option(help="File format.")] = Format.parquet,
    output: Annotated[Path, typer.Option("--output", "-o", **PATH, help="A folder.")] = Path("frames"),
    storage: Storage = None,
) -> None:
    """Write run folders as tidy tables for pandas."""
    from kdsearch.analysis.frames import frames as read
    from kdsearch.analysis.frames import write_frames

    for path in write_frames(read(folders, storage=storage), output, to.value):
        say(path)


def report(
    folder: Folder,
    images: Annotated[bool, typer.Option(help="Images of the data; without them report_without_images.html.")] = True,
    storage: Storage = None,
) -> None:
    """Write report.html anew, from the run folder alone."""
    from kdsearch.analysis.report import report

    say(report(folder, images=images, storage=storage))


def _typed() -> str:
    """This program as it can be typed from here."""
    me = Path(sys.argv[0])
    if me.name != "kdsearch" or shutil.which("kdsearch") == str(me):
        return "kdsearch"
    return str(me.relative_to(Path.cwd())) if me.is_relative_to(Path.cwd()) else str(me)
