"""Pictures of a run folder: each takes frames or arrays, each gives a matplotlib figure."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

TEACHER, STUDENT, ALONE, GRAY = "#4477aa", "#ee6677", "#aa3377", "#888888"
Frames = Mapping[str, pd.DataFrame]


def did_it_help(tables: Frames) -> Figure:
    """The confirmation: each fresh seed a dot, lines join the runs of one seed, a bar at the mean."""
    wide = tables["evaluations"].pivot_table(index="seed", columns="run", values="accuracy", sort=False)
    order = [run for run in ("identity", "trivial", "start", "frozen", "learned") if run in wide.columns]
    wide = 100 * wide[order]
    figure, axes = _figure(7, 3)
    axes.plot(range(len(order)), wide.T.to_numpy(), "o-", color=GRAY, alpha=0.5, lw=0.8, ms=4)
    for i, run in enumerate(order):
        axes.hlines(wide[run].mean(), i - 0.25, i + 0.25, color=ALONE if run == "learned" else "black", lw=2.5)
        axes.annotate(f"{wide[run].mean():.1f}", (i + 0.28, wide[run].mean()), va="center", fontsize=9)
    axes.set_xticks(range(len(order)), order)
    axes.set_xlim(-0.5, len(order) - 0.3)
    axes.set_ylabel("accuracy on search-validation, %")
    return figure


def trials(tables: Frames) -> Figure:
    """Trials in order with standard errors, the references as lines."""
    rows = tables["trials"].query("origin != 'reference'")
    figure, axes = _figure(7, 3)
    complete, pruned = rows.query("state == 'COMPLETE'"), rows.query("state == 'PRUNED'")
    axes.errorbar(
        complete["trial"], 100 * complete["value"], 100 * complete["value_se"], fmt="o", color="black", label="complete"
    )
    axes.plot(pruned["trial"], 100 * pruned["last_value"], "x", color=GRAY, label="pruned, last value")
    best = rows[rows["is_best"].fillna(False)]
    axes.plot(best["trial"], 100 * best["value"], "o", color=ALONE, ms=9, label="best")
    references = tables["trials"].query("origin == 'reference' and state == 'COMPLETE'")
    for row, color in zip(references.itertuples(), ("#bbbbbb", "#ccbb44", "#228833"), strict=False):
        axes.axhline(100 * row.value, color=color, lw=1.5, label=row.run, zorder=0)
    axes.set_xlabel("trial")
    axes.set_ylabel("accuracy, %")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def curves(tables: Frames) -> Figure:
    """Accuracy over epochs: references in colour, trials in gray, the best in purple."""
    figure, axes = _figure(7, 3)
    best = set(tables["trials"].loc[tables["trials"]["is_best"].fillna(False), "run"])
    colors = dict(zip(("identity", "trivial", "start"), ("#bbbbbb", "#ccbb44", "#228833"), strict=True))
    for run, rows in tables["epochs"].groupby("run", sort=False):
        color = ALONE if run in best else colors.get(str(run), "black")
        strong = run in best or run in colors
        axes.plot(
            rows["epoch"], 100 * rows["accuracy"], color=color, lw=2 if strong else 0.8, alpha=1 if strong else 0.3,
            label=run if strong else None, zorder=2 if strong else 1,
        )  # fmt: skip
    axes.set_xlabel("epoch")
    axes.set_ylabel("accuracy, %")
    axes.legend(fontsize=8, frameon=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def trajectory(policies: pd.DataFrame) -> Figure:
    """Probability and range of each operation over training, one panel an operation; the start as a dotted line."""
    names = list(dict.fromkeys(policies["operation"]))
    figure, grid = _panels(len(names))
    for axes, name in zip(grid, names, strict=True):
        rows = policies[policies["operation"] == name]
        axes.plot(rows["progress"], rows["probability"], color=ALONE, lw=2)
        axes.axhline(rows["probability"].iloc[0], color=GRAY, lw=0.8, ls=":")
        if rows["limit"].notna().any():
            axes.fill_between(
                rows["progress"],
                rows["low"] / rows["limit"],
                rows["high"] / rows["limit"],
                alpha=0.25,
                color=TEACHER,
                lw=0,
            )
        axes.set_title(name + (" (range fixed)" if (rows["range"] == "fixed").any() else ""), fontsize=9)
        axes.set_ylim(0, 1)
        axes.set_xlim(0, 1)
    _legend(figure, [("probability", ALONE), ("range of the magnitude / limit", TEACHER)])
    return figure


def sweeps(regions: pd.DataFrame) -> Figure:
    """Accuracy of teacher and student along each operation's magnitude, and where the teacher alone is right."""
    rows = regions[regions["kind"] == "operation"]
    names = list(dict.fromkeys(rows["operation"]))
    figure, grid = _panels(len(names))
    for axes, name in zip(grid, names, strict=True):
        part = rows[rows["operation"] == name].sort_values("low")
        whole = part["low"].isna().any()
        x = np.array([0.5]) if whole else ((part["low"] + part["high"]) / 2).to_numpy()
        axes.plot(x, part["teacher_accuracy"], "o-", color=TEACHER, ms=3)
        axes.plot(x, part["student_accuracy"], "o-", color=STUDENT, ms=3)
        rate = part["teacher_only_rate"]
        bounds = [rate - part["teacher_only_low"], part["teacher_only_high"] - rate]
        axes.errorbar(x, rate, np.clip(bounds, 0, None), fmt="s-", color=ALONE, ms=3, lw=1)
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("" if whole else str(part["unit"].iloc[0]), fontsize=7)
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        if whole:
            axes.set_xticks([])
    _legend(
        figure, [("teacher right", TEACHER), ("student right", STUDENT), ("teacher alone right, 95 % interval", ALONE)]
    )
    return figure


def policy_sheet(samples: Mapping[str, np.ndarray], final: pd.DataFrame) -> Figure:
    """Original and augmented images side by side: each operation at the low end, middle and high end of its range."""
    final = final.set_index("operation")
    names = [str(name) for name in samples["operations"]]
    order = sorted(range(len(names)), key=lambda i: -final.loc[names[i], "probability"])
    shown = range(min(2, len(samples["original"])))
    rows = [[tile for k in shown for tile in (samples["original"][k], *samples["sheet"][i, k])] for i in order]
    labels = []
    for i in order:
        numbers = final.loc[names[i]]
        span = (
            f"{numbers['low']:.2g} to {numbers['high']:.2g} {_short(numbers['unit'])}" if numbers["limit"] > 0 else ""
        )
        labels.append(f"{names[i]}  p {numbers['probability']:.2f}, rate {numbers['rate']:.2f}\n{span}".strip())
    return _tiles(rows, labels, ["original", "low", "middle", "high"] * len(shown))


def drawn_sheet(samples: Mapping[str, np.ndarray]) -> Figure:
    """Original images, each beside six draws of the whole policy."""
    rows = [[image, *draws] for image, draws in zip(samples["original"], samples["drawn"], strict=True)]
    return _tiles(rows, [""] * len(rows), ["original", *(["drawn"] * samples["drawn"].shape[1])])


def _tiles(rows: list[list[np.ndarray]], labels: list[str], titles: list[str], gap: float = 0.08) -> Figure:
    """A table of images (H, W, C) uint8 as one picture, its rows labelled on the left and its columns above."""
    height, width, channels = rows[0][0].shape
    dy, dx = height + max(1, round(gap * height)), width + max(1, round(gap * width))
    sheet = np.full((dy * len(rows), dx * len(titles), 3), 255, dtype=np.uint8)
    for y, row in enumerate(rows):
        for x, tile in enumerate(row):
            sheet[dy * y : dy * y + height, dx * x : dx * x + width] = tile if channels == 3 else tile.repeat(3, -1)
    left = 2.4 if any(labels) else 0.1
    inches = (left + 0.7 * len(titles), 0.3 + 0.7 * dy / dx * len(rows))
    figure = Figure(figsize=inches)
    axes = figure.add_axes((left / inches[0], 0, 1 - left / inches[0], 1 - 0.3 / inches[1]))
    axes.imshow(sheet, interpolation="nearest", aspect="auto")
    axes.set_yticks([dy * y + height / 2 for y in range(len(rows))], labels, fontsize=7)
    axes.set_xticks([dx * x + width / 2 for x in range(len(titles))], titles, fontsize=7)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _panels(count: int, columns: int = 5) -> tuple[Figure, list[Axes]]:
    rows = max(1, -(-count // columns))
    height = 1.9 * rows + 0.4
    figure = Figure(figsize=(11, height))
    grid = [figure.add_subplot(rows, columns, i + 1) for i in range(count)]
    figure.subplots_adjust(0.04, 0.35 / height, 0.99, 1 - 0.7 / height, wspace=0.3, hspace=0.65)
    for axes in grid:
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, grid


def _legend(figure: Figure, entries: list[tuple[str, str]]) -> None:
    handles = [figure.axes[0].plot([], [], color=color, lw=3, label=label)[0] for label, color in entries]
    figure.legend(handles=handles, loc="upper center", ncols=len(entries), fontsize=8, frameon=False)


def _short(unit: str) -> str:
    return unit if len(unit) < 24 else unit.split(" of ")[0]
