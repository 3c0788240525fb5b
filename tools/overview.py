"""The README's picture: what a search says, from its run folder.

Run:  python tools/overview.py runs/digits docs/overview.png
"""

import sys
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import kdsearch as kd

GRAY, ACCENT = "#9a9a9a", "#a03070"
SECOND_VIEWS = {
    "identity": "base view\nalone",
    "trivial": "Trivial-\nAugment",
    "rand_augment": "Rand-\nAugment",
    "start": "policy\nunlearned",
    "frozen": "policy\nlearned",
}
OPERATIONS, REGIONS = 9, 6  # rows that are shown


def main() -> None:
    folder, target = map(Path, sys.argv[1:])
    tables = kd.frames(folder)
    figure = Figure(figsize=(13, 3.8), layout="constrained", dpi=110)
    first, second, third = figure.subplots(1, 3, width_ratios=(1.25, 1.1, 1.2))
    show_students(first, tables["evaluations"])
    best = int(tables["studies"].iloc[0]["best_trial"])
    policies = tables["policies"]
    show_policy(second, policies[(policies["trial"] == best) & policies["is_final"]])
    regions = kd.regions(folder)
    show_regions(third, regions[regions["kind"] == "operation"])
    for axes in (first, second, third):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(left=False, bottom=False, labelsize=9)
        axes.title.set_fontsize(10.5)
    first.tick_params(axis="x", labelsize=8)
    figure.savefig(target)


def show_students(axes: Axes, evaluations: pd.DataFrame) -> None:
    """Each fresh student of the confirmation, by its second view."""
    rows = evaluations[evaluations["split"] != "test"]
    for place, run in enumerate(SECOND_VIEWS):
        values = 100 * rows.loc[rows["run"] == run, "inherited"]
        axes.plot([place] * len(values), values, "o", color=GRAY, alpha=0.7)
        axes.plot([place - 0.3, place + 0.3], [values.mean()] * 2, color=ACCENT if run == "frozen" else "black", lw=3)
        axes.text(place + 0.33, values.mean(), f"{values.mean():.1f}", va="center", fontsize=9)
    axes.set_xticks(range(len(SECOND_VIEWS)), [*SECOND_VIEWS.values()])
    axes.set_xlim(-0.5, len(SECOND_VIEWS) - 0.3)
    axes.set_title("Does it help? Competence inherited, %", loc="left")


def show_policy(axes: Axes, policy: pd.DataFrame) -> None:
    """How likely each operation is once drawn, and its range."""
    rows = policy.sort_values("probability", ascending=False).head(OPERATIONS)[::-1]
    axes.barh(rows["operation"], rows["probability"], color=ACCENT, alpha=0.35, height=0.8)
    for place, row in enumerate(rows.itertuples()):
        text = "" if pd.isna(row.high) else f"{row.low:.2g} to {row.high:.2g} {row.unit}"
        axes.text(0.02, place, text, fontsize=8, va="center")
    axes.set_xlim(0, 1)
    axes.set_xlabel("probability", fontsize=9)
    axes.set_title("Which policy did it learn?", loc="left")


def show_regions(axes: Axes, regions: pd.DataFrame) -> None:
    """Where the teacher alone is right, with the interval for all regions at once, beside clean images."""
    rows = regions.sort_values("teacher_only_low", ascending=False).head(REGIONS)[::-1]
    low, rate, high = (100 * rows[f"teacher_only_{end}"] for end in ("low", "rate", "high"))
    places = range(len(rows))
    axes.errorbar(rate, places, xerr=[rate - low, high - rate], fmt="o", color=ACCENT, capsize=3)
    axes.plot(100 * rows["clean_rate"], places, "|", color="black", markersize=12, markeredgewidth=2)
    axes.set_yticks(places, [f"{row.operation} {row.low:.2g} to {row.high:.2g}" for row in rows.itertuples()])
    axes.set_xlim(0, None)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel("images in %; black: the same on clean images", fontsize=9)
    axes.set_title("Where is the teacher alone right?", loc="left")


if __name__ == "__main__":
    main()
