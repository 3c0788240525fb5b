"""The command line: one short function per command, each a thin call of a public function."""

import os
import shutil
import signal
import sys
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Annotated

try:
    import typer

    import kdsearch
    from kdsearch.commands import pictures
    from kdsearch.commands.console import PATH, policy_path, print_frame, print_mark, print_table
    from kdsearch.commands.pictures import Which
    from kdsearch.core.errors import KdsearchError
    from kdsearch.core.files import as_path
    from kdsearch.core.terminal import guard_output, number_of, say
    from kdsearch.study import catalogue
except KeyboardInterrupt:  # while the program starts
    raise SystemExit(130) from None

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
BAD_INPUT, NO_BUDGET, INTERRUPTED, TERMINATED = 2, 3, 130, 143


class Target(StrEnum):
    """What a policy can be exported to."""

    json = "json"
    torchvision = "torchvision"
    kornia = "kornia"
    albumentations = "albumentations"


class Format(StrEnum):
    """File formats of frames."""

    parquet = "parquet"
    csv = "csv"


Folder = Annotated[Path, typer.Argument(parser=as_path, metavar="DIR", help="A run folder, such as runs/digits.")]
Storage = pictures.Storage


def _print_version(asked: bool) -> None:
    if asked:
        say(f"kdsearch {kdsearch.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Which augmentation policy makes this student learn most from this teacher?"""


@app.command()
def search(
    study: Annotated[str, typer.Argument(help="Name of a shipped study, or path of a study file.")],
    trials: Annotated[int | None, typer.Option(help="COMPLETE + PRUNED trials in all.", min=1)] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs per run.", min=1)] = None,
    confirmation: Annotated[int | None, typer.Option(help="Fresh seeds at the end; 0 for none.", min=0)] = None,
    storage: Annotated[str | None, typer.Option(help="Database URL; SQLite in the run folder by default.")] = None,
    sampler: Annotated[str, typer.Option(metavar="<tpe|random>", help="What chooses the numbers of trials.")] = "tpe",
    pruner: Annotated[str, typer.Option(metavar="<median|none>", help="What ends trials early.")] = "median",
    seed: Annotated[int | None, typer.Option(help="In place of the study's.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; the study's by default.")] = None,
    out: Annotated[Path | None, typer.Option(**PATH, help="Run folder; ./runs/<study> by default.")] = None,
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


@app.command()
def status(folder: Folder, storage: Storage = None) -> None:
    """What a run folder holds: trials, references, the best so far."""
    from kdsearch.analysis.compare import collect_notes, describe_outcome
    from kdsearch.analysis.frames import frames

    tables = frames(folder, storage=storage, only=("studies", "trials", "evaluations"))
    row = tables["studies"].iloc[0]
    say(f"{row['study']}: {row['complete']} complete, {row['pruned']} pruned, {row['failed']} failed "
          f"of {number_of(row['budget_trials'], 'trial')}")  # fmt: skip
    print_frame(
        tables["trials"], ["run", "state", "value", "value_se", "last_epoch", "seconds", "origin", "fail_reason"]
    )
    say(describe_outcome(tables))
    for note in collect_notes(tables):
        say(f"warning: {note}")
    print_mark(tables)


@app.command()
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


@app.command()
def export(
    policy: Annotated[
        Path,
        typer.Argument(parser=as_path, metavar="POLICY", help="A policy.json, or a run folder for its best policy."),
    ],
    to: Annotated[Target, typer.Option(help="What trains with it.")],
    which: Annotated[Which, typer.Option(help="Last moment of training, or mean of its second half.")] = Which.final,
    output: Annotated[Path | None, typer.Option("--output", "-o", **PATH, help="A file; printed otherwise.")] = None,
    storage: Storage = None,
) -> None:
    """Write a policy for the library you train with: one readable file."""
    from kdsearch.augment.export import differing_operations, export_policy, omitted_operations
    from kdsearch.augment.spec import PolicySpec
    from kdsearch.core.files import write_text

    spec = PolicySpec.load(policy_path(policy, storage))
    text = export_policy(spec, to.value, which.value)
    for what, found in (("left out", omitted_operations), ("differs", differing_operations)):
        for name, reason in found(spec, to.value, which.value).items():
            say(f"{what}: {name} (rate {100 * spec.rate(name, which.value):.1f} %): {reason}", file=sys.stderr)
    if output is None:
        print(text, end="")  # as it is: it may be a file
    else:
        write_text(output, text)
        if not _is_output(output):
            say(output)


app.command()(pictures.rank)
app.command()(pictures.sheet)
app.command()(pictures.diff)
app.command()(pictures.trajectory)


@app.command()
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


@app.command()
def report(
    folder: Folder,
    images: Annotated[bool, typer.Option(help="Pictures that show images of the data.")] = True,
    storage: Storage = None,
) -> None:
    """Write report.html anew, from the run folder alone."""
    from kdsearch.analysis.report import write_report

    say(write_report(folder, images=images, storage=storage))


@app.command()
def spaces() -> None:
    """The shipped search spaces."""
    from kdsearch.study.space import SearchSpace

    loaded = [SearchSpace.load(name) for name in catalogue.shipped_names("search_spaces")]
    print_table(["space", "operations", "searched", "summary"],
                [[s.name, str(len(s.limits)), ", ".join(s.ranges), s.summary] for s in loaded])  # fmt: skip


@app.command()
def studies() -> None:
    """The shipped studies, with the first line of each."""
    import ast

    rows = []
    for name in catalogue.shipped_names("studies"):
        text = catalogue.find_shipped("studies", name).read_text(encoding="utf-8")
        rows.append([name, (ast.get_docstring(ast.parse(text)) or "").split("\n")[0]])
    print_table(["study", "what it is"], rows)


@app.command()
def operations() -> None:
    """The operations, in the order in which they are applied."""
    from kdsearch.augment.operations import OPERATIONS

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:g}"

    rows = [
        [
            op.name,
            op.unit or "-",
            number(op.limit),
            number(op.hard),
            "±" if op.signed else "",
            str(op.channels),
            op.gradient,
            op.range,
            op.reference,
        ]
        for op in OPERATIONS.values()
    ]
    print_table(
        [
            "operation",
            "unit of the magnitude",
            "limit",
            "hard",
            "sign",
            "channels",
            "gradient",
            "range",
            "meaning after",
        ],
        rows,
    )


@app.command()
def objectives() -> None:
    """The terms that a policy step may minimise, and what each seeks."""
    from kdsearch.losses.objectives import OBJECTIVES, TST

    rows = [
        [t.name, t.seeks, t.bound, f"{TST[t.name]:g}" if t.name in TST else "-", t.reference]
        for t in OBJECTIVES.values()
    ]
    print_table(["term", "seeks images where", "nats", "default weight", "after"], rows)


@app.command()
def losses() -> None:
    """The distillation losses, on logits and on features."""
    from kdsearch.losses import LOSSES

    rows = [
        [k.name, k.compares, k.says, "relational" if k.relational else "image", k.status, k.reference]
        for k in LOSSES.values()
    ]
    print_table(["loss", "compares", "formula", "per", "status", "after"], rows)


@app.command()
def copy(
    name: Annotated[str, typer.Argument(help="A shipped study or search space.")],
    folder: Annotated[Path, typer.Argument(parser=as_path, metavar="[DIR]", help="Where to.")] = Path("."),
) -> None:
    """Copy a shipped study or search space, to edit it."""
    from kdsearch.core.errors import unknown
    from kdsearch.core.files import make_folder, write_text

    kinds = [kind for kind in catalogue.SUFFIX if name in catalogue.shipped_names(kind)]
    if not kinds:
        known = [shipped for kind in catalogue.SUFFIX for shipped in catalogue.shipped_names(kind)]
        raise KdsearchError(unknown("study or search space", name, known))
    for kind in kinds:
        source = catalogue.find_shipped(kind, name)
        target = make_folder(folder) / source.name
        if target.exists():
            raise KdsearchError(f"{target} exists; nothing was copied")
        write_text(target, source.read_text(encoding="utf-8"))
        path = target if target.is_absolute() else f"./{target}"
        say(
            f"{path}: run it with  kdsearch search {path}"
            if kind == "studies"
            else f"{path}: name it as a study's space"
        )


def _is_output(path: Path) -> bool:
    """Does a path such as /dev/stdout lead to what this program prints to?"""
    with suppress(OSError, ValueError):
        return os.path.samestat(path.stat(), os.fstat(sys.stdout.fileno()))
    return False


def _typed() -> str:
    """This program as it can be typed from here."""
    me = Path(sys.argv[0])
    if me.name != "kdsearch" or shutil.which("kdsearch") == str(me):
        return "kdsearch"
    return str(me.relative_to(Path.cwd())) if me.is_relative_to(Path.cwd()) else str(me)


def _exit_code() -> int | str | None:
    """Run a command to the end of its output."""
    try:
        app()
        code = None
    except SystemExit as ended:
        code = ended.code
    sys.stdout.flush()
    return code


def main() -> None:
    """Run the command line; a user's mistake is one message and exit code 2, Ctrl-C is 130, SIGTERM is 143."""
    terminated = list[int]()

    def terminate(number: int, frame: FrameType | None) -> None:
        terminated.append(number)
        raise KeyboardInterrupt

    guard_output()
    before = signal.signal(signal.SIGTERM, terminate)
    code: int | str | None = INTERRUPTED
    with suppress(KeyboardInterrupt):  # also of a second signal, while the first is on its way here
        try:
            code = _exit_code()
        except KdsearchError as error:
            with suppress(OSError):
                say(f"kdsearch: {error}", file=sys.stderr)
            code = BAD_INPUT
    if code == INTERRUPTED:
        with suppress(KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # nothing is left to interrupt
        code = TERMINATED if terminated else INTERRUPTED
    signal.signal(signal.SIGTERM, before)
    raise SystemExit(code)
