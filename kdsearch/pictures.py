"""The commands that show a policy: a sheet of images, the difference to another one, how it was learned."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from kdsearch.console import policy_path, print_table
from kdsearch.errors import KdsearchError


class Which(StrEnum):
    """The last moment of a policy's schedule, or the mean of its second half."""

    final = "final"
    average = "average"


Policy = Annotated[Path, typer.Argument(metavar="POLICY", help="A policy.json, or a run folder for its best policy.")]
Part = Annotated[Which, typer.Option(help="Last moment of training, or mean of its second half.")]


def sheet(
    policy: Policy,
    images: Annotated[
        Path | None,
        typer.Option(help="A folder of images, an image or an .npz; by default the run's own, or two photographs."),
    ] = None,
    which: Part = Which.final,
    most: Annotated[int | None, typer.Option(help="Operations to draw; all by default.", min=1)] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="A picture.")] = Path("sheet.png"),
) -> None:
    """Draw what a policy does to images: each operation over its range, and draws of the whole policy."""
    from kdsearch.analysis.plots import save
    from kdsearch.analysis.sheet import policy_sheet
    from kdsearch.data import load_images, photographs
    from kdsearch.spec import PolicySpec

    path = policy_path(policy)
    spec, own = PolicySpec.load(path), path.with_name("samples.npz")
    if images is None and own.is_file():
        images = own
    shown = photographs() if images is None else load_images(images)
    save(policy_sheet(spec, shown, which=which.value, most=most), output)
    print(output)


def diff(
    policy: Policy,
    other: Annotated[Path, typer.Argument(metavar="OTHER", help="What it is compared with, likewise.")],
    which: Part = Which.final,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also draw it, as a picture.")] = None,
) -> None:
    """Compare two policies operation by operation, the largest change first."""
    from kdsearch.analysis.diff import other_differences, policy_diff
    from kdsearch.analysis.plots import check_picture, save
    from kdsearch.analysis.plots import policy_diff as draw
    from kdsearch.spec import PolicySpec

    a, b = (PolicySpec.load(policy_path(path)) for path in (policy, other))
    if output:
        check_picture(output)
    frame = policy_diff(a, b, which=which.value)
    print(f"{policy} → {other} (difference)")
    for line in other_differences(a, b):
        print(line)

    columns = ["probability", "rate", "low", "high"]
    rows = [[row["operation"], *(_change(row[f"{of}_a"], row[f"{of}_b"]) for of in columns), row["unit"]]
            for row in frame.to_dict("records")]  # fmt: skip
    if frame["change"].max() > 0:
        print_table(["operation", *columns, "unit"], rows)
    else:
        print("no operation that is applied differs")
    if output:
        save(draw(frame, (str(policy), str(other))), output)
        print(output)


def trajectory(
    policy: Policy,
    output: Annotated[Path, typer.Option("--output", "-o", help="A picture.")] = Path("trajectory.png"),
) -> None:
    """Draw how probabilities and ranges moved while the student trained."""
    from kdsearch.analysis.frames import policy_frame
    from kdsearch.analysis.plots import save
    from kdsearch.analysis.plots import trajectory as draw
    from kdsearch.spec import PolicySpec

    path = policy_path(policy)
    spec = PolicySpec.load(path)
    if len(spec.schedule) == 1:
        raise KdsearchError(f"{path}: the policy has one moment only, so nothing moves; see `kdsearch sheet`")
    save(draw(policy_frame(spec)), output)
    print(output)


def _change(one: float, two: float) -> str:
    """Two numbers and their difference; NaN is one that a policy does not have."""
    from kdsearch.analysis.plots import number

    if one != one and two != two:
        return ""
    if one == two:
        return number(one)
    both = " → ".join("none" if value != value else number(value) for value in (one, two))
    return both if "none" in both else f"{both} ({two - one:+.2g})"
