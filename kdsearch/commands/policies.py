"""The commands that take a policy: exported, drawn, compared, over training, and by what it does to a teacher."""

import os
import sys
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from kdsearch.commands.console import PATH, Storage, policy_path, print_table
from kdsearch.core.errors import KdsearchError
from kdsearch.core.files import as_path
from kdsearch.core.terminal import format_number, say


class Target(StrEnum):
    """What a policy can be exported to."""

    json = "json"
    torchvision = "torchvision"
    kornia = "kornia"
    albumentations = "albumentations"


class Which(StrEnum):
    """The last moment of a policy's schedule, or the mean of its second half."""

    final = "final"
    average = "average"


Policy = Annotated[
    Path, typer.Argument(parser=as_path, metavar="POLICY", help="A policy.json, or a run folder for its best policy.")
]
Part = Annotated[Which, typer.Option(help="Last moment of training, or mean of its second half.")]


def export(
    policy: Policy,
    to: Annotated[Target, typer.Option(help="What trains with it.")],
    which: Part = Which.final,
    output: Annotated[Path | None, typer.Option("--output", "-o", **PATH, help="A file; printed otherwise.")] = None,
    storage: Storage = None,
) -> None:
    """Write a policy for the library you train with: one readable file."""
    from kdsearch.augment.export import differing_operations, omitted_operations
    from kdsearch.augment.export import export as export_policy
    from kdsearch.augment.spec import PolicySpec
    from kdsearch.core.files import write_text

    spec = PolicySpec.load(policy_path(policy, storage))
    text = export_policy(spec, to.value, which.value)
    for what, found in (("left out", omitted_operations), ("differs", differing_operations)):
        for name, reason in found(spec, to.value, which.value).items():
            rate = _rate(spec, name, which.value)
            say(f"{what}: {name} (rate {100 * rate:.1f} %): {reason}", file=sys.stderr)
    if output is None:
        print(text, end="")  # as it is: it may be a file
    else:
        write_text(output, text)
        if not _is_output(output):
            say(output)


def sheet(
    policy: Policy,
    images: Annotated[
        Path | None,
        typer.Option(
            **PATH, help="A folder of images, an image or an .npz; by default the run's own, or two photographs."
        ),
    ] = None,
    which: Part = Which.final,
    most: Annotated[int | None, typer.Option(help="Operations to draw; all by default.", min=1)] = None,
    output: Annotated[Path, typer.Option("--output", "-o", **PATH, help="A picture.")] = Path("sheet.png"),
    storage: Storage = None,
) -> None:
    """Draw what a policy does to images: each operation over its range, and draws of the whole policy."""
    from kdsearch.analysis.plots import save_figure
    from kdsearch.analysis.sheet import policy_sheet
    from kdsearch.augment.spec import PolicySpec
    from kdsearch.data.images import load_images

    path = policy_path(policy, storage)
    spec, own = PolicySpec.load(path), path.with_name("samples.npz")
    if images is None and own.is_file():
        images = own
    shown = None if images is None else load_images(images)
    save_figure(policy_sheet(spec, shown, which=which.value, most=most), output)
    say(output)


def diff(
    policy: Policy,
    other: Annotated[Path, typer.Argument(parser=as_path, metavar="OTHER", help="What it is compared with, likewise.")],
    which: Part = Which.final,
    output: Annotated[Path | None, typer.Option("--output", "-o", **PATH, help="Also draw it, as a picture.")] = None,
    storage: Storage = None,
) -> None:
    """Compare two policies operation by operation, the largest change first."""
    from kdsearch.analysis.diff import other_differences, policy_diff
    from kdsearch.analysis.plots import check_picture, plot_diff, save_figure
    from kdsearch.augment.spec import PolicySpec

    a, b = (PolicySpec.load(policy_path(path, storage)) for path in (policy, other))
    if output:
        check_picture(output)
    frame = policy_diff(a, b, which=which.value)
    say(f"{policy} → {other} (difference)")
    for line in other_differences(a, b):
        say(line)

    columns = ["probability", "rate", "low", "high"]
    rows = [[row["operation"], *(_change(row[f"{of}_a"], row[f"{of}_b"]) for of in columns), row["unit"]]
            for row in frame.to_dict("records")]  # fmt: skip
    if frame["change"].max() > 0:
        print_table(["operation", *columns, "unit"], rows)
    else:
        say("no operation that the policy itself applies differs")
    if output:
        save_figure(plot_diff(frame, (str(policy), str(other))), output)
        say(output)


def trajectory(
    policy: Policy,
    output: Annotated[Path, typer.Option("--output", "-o", **PATH, help="A picture.")] = Path("trajectory.png"),
    storage: Storage = None,
) -> None:
    """Draw how probabilities and ranges moved while the student trained."""
    from kdsearch.analysis.frames import policy_frame
    from kdsearch.analysis.plots import plot_trajectory, save_figure
    from kdsearch.augment.spec import PolicySpec

    path = policy_path(policy, storage)
    spec = PolicySpec.load(path)
    if len(spec.schedule) == 1:
        raise KdsearchError(f"{path}: the policy has one moment only, so nothing moves; see `kdsearch sheet`")
    save_figure(plot_trajectory(policy_frame(spec)), output)
    say(output)


class Split(StrEnum):
    """What the student will be shown, or what trials are compared on."""

    train = "train"
    search_validation = "search-validation"


def rank(
    study: Annotated[str, typer.Argument(help="Name of a shipped study, or path of a study file.")],
    policies: Annotated[
        list[Path] | None,
        typer.Argument(
            parser=as_path,
            metavar="[POLICY]...",
            help="Also these: a policy.json, or a run folder for its finished trials.",
        ),
    ] = None,
    on: Annotated[Split, typer.Option(help="The study's images to score them on.")] = Split.train,
    views: Annotated[int, typer.Option(help="Draws of each policy for each image.", min=1)] = 2,
    most: Annotated[int, typer.Option(help="Images; a random subset where there are more.", min=2)] = 5000,
    which: Part = Which.final,
    table: Annotated[
        Path | None, typer.Option(**PATH, help="Also write the frame, as a .csv or .parquet file.")
    ] = None,
    picture: Annotated[Path | None, typer.Option(**PATH, help="Also draw it, as a PNG file.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; the study's by default.")] = None,
    out: Annotated[
        Path | None, typer.Option(**PATH, help="Run folder, for the teacher; ./runs/<study> by default.")
    ] = None,
    storage: Storage = None,
) -> None:
    """Score policies by what they do to the teacher; no student is trained."""
    from kdsearch.analysis.frames import check_table, write_frame
    from kdsearch.analysis.plots import check_picture, plot_scores, save_figure
    from kdsearch.commands.rank import explain_ranking
    from kdsearch.commands.rank import rank as run

    if table:
        check_table(table)
    if picture:
        check_picture(picture)
    ranked = run(
        study,
        policies or (),
        split=on.value,
        views=views,
        most=most,
        which=which.value,
        out=out,
        device=device,
        storage=storage,
    )
    print_table(*_ranking(ranked.to_dict("records")))
    say(explain_ranking(ranked))
    if table:
        write_frame(ranked, table)
        say(table)
    if picture:
        save_figure(plot_scores(ranked), picture)
        say(picture)


def _ranking(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """The columns of a ranking and its rows, each number with its standard error."""
    columns = {  # digits, and what the number is multiplied with
        "stddev_ratio": ("T. stddev ratio", 3, 1),
        "teacher_loss_rise": ("CE rise, nats", 2, 1),
        "teacher_accuracy": ("right, %", 1, 100),
        "teacher_confidence": ("confidence, %", 1, 100),
        "teacher_entropy": ("entropy, nats", 2, 1),
        "agreement": ("same answer, %", 1, 100),
    }
    lines = []
    for row in rows:
        numbers = [f"{by * row[name]:.{digits}f} ± {by * row[f'{name}_se']:.{digits}f}"
                   for name, (_, digits, by) in columns.items()]  # fmt: skip
        floor = "" if row["floor"] != row["floor"] else "kept" if row["keeps_floor"] else "broken"
        lines.append([row["policy"], floor, *numbers])
    return ["policy", "floor", *(title for title, _, _ in columns.values())], lines


def _change(one: float, two: float) -> str:
    """Two numbers and their difference; NaN is one that a policy does not have."""
    if one != one and two != two:
        return ""
    if one == two:
        return format_number(one)
    both = " → ".join("none" if value != value else format_number(value) for value in (one, two))
    return both if "none" in both else f"{both} ({two - one:+.2g})"


def _rate(spec: Any, name: str, which: str) -> float:
    """Of an operation of a `PolicySpec`, `base.NAME` for one of its base view."""
    operation = name.removeprefix("base.")
    return spec.rate(name, which) if operation == name else spec.base.rate(operation)


def _is_output(path: Path) -> bool:
    """Does a path such as /dev/stdout lead to what this program prints to?"""
    with suppress(OSError, ValueError):
        return os.path.samestat(path.stat(), os.fstat(sys.stdout.fileno()))
    return False
