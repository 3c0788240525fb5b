"""What is the base view worth, and what a second view over it? Paired seeds, clean and shifted test images.

A row is one student, BASE/SECOND. The base is what every image goes through first:

    bare          images as they are
    auto          what the teacher tolerates, drawn afresh at each visit; the second view is made of the base view
    image         the same base, the second view made of the image
    r8, r16, ...  auto, but of so many base views of each image, drawn once for each seed
    floor         auto, but the floor of policy steps counts from the teacher's loss on base views
    reflect       auto, but filled by reflection, whatever costs the teacher less

The second view is `identity` (the base view itself), `twice` (another draw of the base on the image), `trivial`
(TrivialAugment's rule), `rand` (RandAugment's kind: two operations at .6 of their limits, always), `start_4` or
`start_all` (the policy at its start: 4 operations an image, or all at a probability of .2), `learned_4` or
`learned_all` (the same, learned beside the student). Students of one seed start alike and see the same batches. Each
is measured once, after its last step, on the test images and on those of `shifted.py`; "kept" is the share that it has
right of those shifted images that the teacher has right.

Rows are written to the file one by one, a line of JSON each. Those that are there are not run again: the same command
goes on where it ended, and several may write to one file, each with seeds of its own. `--show` runs none. The table is
of the named rows of the study, the steps and the seeds; `--minus auto` subtracts the row of that base with the same
second view.

Run:  python benchmarks/base.py [--study digits] [--steps 300] [--seeds 500 15] [--rows bare/identity,auto/identity]
          [--minus bare/identity,auto/trivial] [--show] [--json FILE]
"""

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from common import accuracy, interval, made_ready, options_of_rows, read_rows, rows_of
from rich.console import Console
from rich.table import Table
from shifted import shifted_accuracy

import kdsearch as kd
from kdsearch.augment.bases import Base, as_base
from kdsearch.augment.presets import rand_augment
from kdsearch.distill.answers import AnswerTables
from kdsearch.study.ready import Ready
from kdsearch.study.run import run_trial
from kdsearch.study.study import load_study


class Variant(NamedTuple):
    """What the base of a row is."""

    base: str | None = "auto"
    second_from: Literal["base", "image"] = "base"
    base_versions: int | None = None
    floor_from: str = "image"
    fill: Literal["zero", "reflect"] | None = None  # None: as was found


BASES: Mapping[str, Variant] = {
    "bare": Variant(base=None),
    "auto": Variant(),
    "image": Variant(second_from="image"),
    **{f"r{count}": Variant(base_versions=count) for count in (8, 16, 32, 64)},
    "floor": Variant(floor_from="base"),
    "reflect": Variant(fill="reflect"),
}
SECONDS = ("identity", "twice", "trivial", "rand", "start_4", "start_all", "learned_4", "learned_all")
NAMES = [f"{base}/{second}" for base in BASES for second in SECONDS if (base, second) != ("bare", "twice")]
ROWS = [name for name in NAMES if name.startswith(("bare/", "auto/"))]
FLOOR = 0.3  # nats, of those that learn: the default when these rows were measured
SHARE = 0.2  # of images that each operation is applied to at first, where all are drawn


def main() -> None:
    minus = "bare/identity,auto/trivial"
    arguments = options_of_rows(__doc__, names_of_rows, seeds=(500, 15), rows=ROWS, minus=minus).parse_args()
    torch.set_num_threads(1)
    study = load_study(arguments.study)[0]
    steps = arguments.steps or study.budget.epochs * study.budget.steps

    def run(asked: Sequence[tuple[str, int]]) -> Iterator[dict]:
        return run_rows(made_ready(replace(study, base="auto")), steps, asked, arguments.json)

    show(rows_of(arguments, study.name, steps, run), arguments.rows, arguments.minus)


def names_of_rows(text: str) -> list[str]:
    """The names after commas, each that of a row."""
    names = text.split(",")
    if unknown := [name for name in names if name not in NAMES]:
        bases, seconds = ", ".join(BASES), ", ".join(SECONDS)
        raise argparse.ArgumentTypeError(f"row {unknown[0]!r}; allowed: one of {bases}, a slash, one of {seconds}")
    return names


def run_rows(ready: Ready, steps: int, asked: Sequence[tuple[str, int]], file: Path | None) -> Iterator[dict]:
    """The rows that a file does not have yet, by name and seed; each is printed and added to it."""
    print(ready.base_view.said, flush=True)
    for name, seed in asked:
        fixed = {"study": ready.study.name, "steps": steps, "seed": seed, "row": name}
        if any(fixed.items() <= row.items() for row in read_rows(file)):
            continue
        row = fixed | train(ready, name, steps, seed)
        print(row, flush=True)
        if file:
            with file.open("a") as lines:
                lines.write(json.dumps(row) + "\n")
        yield row


def train(ready: Ready, name: str, steps: int, seed: int) -> dict:
    """One student, and what it is worth on the test images, in percent."""
    base, _, second = name.partition("/")
    variant = BASES[base]
    here = over_base(ready, variant, steps)
    policy, policy_steps = second_view(here, second)
    run = "bare" if variant.base is None else second  # a reference's name decides on its views
    start = time.process_time()
    student = run_trial(
        here, None, policy=policy, policy_steps=policy_steps, run=run, seed=seed, base_seed=seed
    ).student
    seconds = time.process_time() - start
    assert student is not None and isinstance(ready.study.test, kd.data.ArrayData)
    shifted = shifted_accuracy(student, ready.teacher.network, ready.study.test, ready.task)
    return {
        **variant._asdict(),
        "second": second,
        "clean": accuracy(ready, student),
        "shifted": 100 * shifted.accuracy,
        "kept": 100 * shifted.inherited,  # of the shifted images that the teacher has right, the share it has
        "seconds": seconds,  # of the CPU
    }


def over_base(ready: Ready, variant: Variant, steps: int) -> Ready:
    """A study's runs over the base of a row, measured once, after so many steps; the teacher is asked anew by each."""
    study, rise, spec = ready.study, ready.base_view.loss_rise, ready.base_view.spec
    assert rise is not None and spec is not None
    study = replace(
        study,
        budget=replace(study.budget, epochs=1, steps=steps),
        views=replace(study.views, second_from=variant.second_from),
        base_versions=variant.base_versions,
    )
    clean = ready.clean._replace(loss=ready.clean.loss + (rise if variant.floor_from == "base" else 0.0))
    view = replace(ready.base_view, base=as_base(spec.model_copy(update={"fill": variant.fill or spec.fill})))
    return replace(ready, study=study, clean=clean, base_view=view, tables=AnswerTables(kept=0))


def second_view(ready: Ready, second: str) -> tuple[Base | None, kd.PolicySteps | None]:
    """The policy of a second view, and how it learns."""
    limits = ready.space.limits
    settings = replace(ready.space.settings(), floor=FLOOR, flips=None, operations_per_image=4, probability=0.5)
    if second in ("identity", "twice", "trivial"):
        return ready.reference(second, settings), None
    if second == "rand":
        return rand_augment(limits, fill=ready.space.fill), None
    if second.endswith("_all"):
        settings = replace(settings, operations_per_image=len(limits), probability=SHARE)
    return ready.policy(settings), ready.policy_steps(settings) if second.startswith("learned") else None


def show(rows: list[dict], names: Sequence[str], minus: Sequence[str]) -> None:
    """Means of the named rows with standard errors over seeds, and paired differences with 95 % t intervals."""
    by_row: dict[str, dict[int, dict]] = {}
    for row in rows:
        by_row.setdefault(row["row"], {})[row["seed"]] = row
    if not by_row:
        print("no rows")
        return
    heads = [f"{what}\n- {other}" for other in minus for what in ("clean", "kept")]
    table = Table("base/second", "seeds", "clean", "shifted", "kept", "sec", *heads, box=None, padding=(0, 1, 0, 0))
    for column in table.columns:
        column.no_wrap = True
    for name in sorted({*names} & {*by_row}, key=NAMES.index):
        mine, second = by_row[name], name.partition("/")[2]
        values = [mean_and_error([row[key] for row in mine.values()]) for key in ("clean", "shifted", "kept")]
        seconds = sum(row["seconds"] for row in mine.values()) / len(mine)
        cells = []
        for other in minus:
            theirs = by_row.get(other if "/" in other else f"{other}/{second}", {})
            both = sorted({*mine} & {*theirs}) if theirs is not mine else []
            for key in ("clean", "kept"):
                cells.append(interval([mine[seed][key] - theirs[seed][key] for seed in both], 1) if both else "")
        table.add_row(name, f"{len(mine)}", *values, f"{seconds:.0f}", *cells)
    console = Console(width=170, highlight=False)
    console.print(
        f"\n{rows[0]['study']}, {rows[0]['steps']} steps; test images, %, mean ± standard error over seeds; "
        "differences paired by seed, 95 % t intervals; sec: of the CPU"
    )
    console.print(table)


def mean_and_error(values: Sequence[float]) -> str:
    found = torch.tensor(values, dtype=torch.float64)
    error = f" ± {found.std() / len(found) ** 0.5:.1f}" if len(found) > 1 else ""
    return f"{found.mean():.1f}{error}"


if __name__ == "__main__":
    main()
