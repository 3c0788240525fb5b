"""Pictures of runs and policies: each takes frames, each gives a matplotlib figure that a notebook shows."""

import io
import textwrap
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator, PercentFormatter, ScalarFormatter

from kdsearch.analysis.choice import SEARCHED
from kdsearch.analysis.compare import confirmation_rows, seed_table
from kdsearch.analysis.scale import Scale
from kdsearch.augment.spec import format_range
from kdsearch.core.errors import KdsearchError
from kdsearch.core.files import write_bytes
from kdsearch.core.terminal import escape_unprintable, format_nats
from kdsearch.tasks.metrics import ACCURACY

TEACHER, STUDENT, ALONE, GRAY = "#4477aa", "#ee6677", "#aa3377", "#888888"
REFERENCES = {  # their colours, in the order in which they are drawn
    "bare": "#ddaa77", "identity": "#bbbbbb", "twice": "#66ccee", "trivial": "#ccbb44",
    "rand_augment": "#4477aa", "labels_only": "#ee8866", "start": "#228833",
}  # fmt: skip
KINDS = {"reference": "black", "operation": TEACHER, "given": ALONE}  # of scored policies
LONGEST_NAME = 40  # letters of a policy's name in a legend
Frames = Mapping[str, pd.DataFrame]


class ShownFigure(Figure):
    """A figure that shows itself at the end of a notebook's cell; pyplot, which else does that, knows nothing of it."""

    def _repr_png_(self) -> bytes:
        return picture(self)


def did_it_help(tables: Frames) -> ShownFigure:
    """The confirmation: each fresh seed a dot, lines join the runs of one seed, a bar at the mean.

    On the left the metric on images as they are, on the right inherited competence, where it was measured. Below a run
    stands on how many seeds it has no value.
    """
    rows, scale = confirmation_rows(tables["evaluations"]), _scale(tables)
    measured = bool(rows["inherited"].notna().any())
    figure = ShownFigure(figsize=(11 if measured else 7, 3), layout="constrained")
    grid = figure.subplots(1, 2 if measured else 1, squeeze=False)[0]
    for axes in grid:
        axes.spines[["top", "right"]].set_visible(False)
    where = "images that no trial saw" if rows["split"].eq("confirm").any() else "search-validation"
    label = scale.label.replace(scale.name, f"{scale.name}\non {where}")
    _plot_seeds(grid[0], seed_table(rows), scale, label)
    if measured:
        _plot_seeds(
            grid[1], seed_table(rows, "inherited"), Scale(ACCURACY), "inherited competence\non shifted images, %"
        )
    return figure


def _plot_seeds(axes: Axes, wide: pd.DataFrame, scale: Scale, label: str) -> None:
    """A row of `wide` a seed, a column a run."""
    order = [run for run in (*REFERENCES, "frozen", "learned") if run in wide.columns]
    wide = wide[order]
    axes.plot(range(len(order)), scale.factor * wide.T.to_numpy(), "o-", color=GRAY, alpha=0.5, lw=0.8, ms=4)
    for i, mean in enumerate(wide.mean()):
        if np.isnan(mean):
            continue
        run = order[i]
        y, text = scale.factor * mean, scale.text(mean).removesuffix(" %")
        axes.hlines(y, i - 0.25, i + 0.25, color=ALONE if run == "learned" else "black", lw=2.5)
        axes.annotate(text, (i + 0.28, y), va="center", fontsize=9)
    without = wide.isna().sum()
    named = {run: run.replace("_", "\n") for run in order}
    names = [f"{name}\n({without[run]} of {len(wide)} without value)" if without[run] else name
             for run, name in named.items()]  # fmt: skip
    axes.set_xticks(range(len(order)), names)
    axes.set_xlim(-0.5, len(order) - 0.3)
    axes.set_ylabel(label)


def trials(tables: Frames) -> ShownFigure:
    """Trials in order with standard errors, the references as lines."""
    rows = tables["trials"].query("origin != 'reference'")
    figure, axes = _figure(7, 3)
    complete, pruned = rows.query("state == 'COMPLETE'"), rows.query("state == 'PRUNED'")
    scale = _scale(tables)
    values, errors = scale.factor * complete["value"], scale.factor * complete["value_se"]
    axes.errorbar(complete["trial"], values, errors, fmt="o", color="black", label="complete")
    axes.plot(pruned["trial"], scale.factor * pruned["last_value"], "x", color=GRAY, label="pruned, last value")
    best = rows[rows["is_best"].fillna(False)]
    axes.plot(best["trial"], scale.factor * best["value"], "o", color=ALONE, ms=9, label="best")
    references = tables["trials"].query("origin == 'reference' and state == 'COMPLETE'")
    for row in references[references["run"].isin(REFERENCES)].itertuples():
        axes.axhline(scale.factor * row.value, color=REFERENCES[row.run], lw=1.5, label=row.run, zorder=0)
    axes.set_xlabel("trial")
    axes.set_ylabel(scale.label)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    _whole_numbers(axes, rows["trial"])
    return figure


def curves(tables: Frames) -> ShownFigure:
    """The metric over epochs: references in colour, trials in gray, the best in purple."""
    figure, axes = _figure(7, 3)
    scale = _scale(tables)
    best = set(tables["trials"].loc[tables["trials"]["is_best"].fillna(False), "run"])
    thin = []
    for run, rows in tables["epochs"].groupby("run", sort=False):
        x, y = rows["epoch"].to_numpy(float), scale.factor * rows["value"].to_numpy()
        if run in best or run in REFERENCES:
            color = ALONE if run in best else REFERENCES[str(run)]
            axes.plot(x, y, "o-" if len(rows) == 1 else "-", color=color, ms=4, lw=2, label=run, zorder=2)
        elif len(rows) == 1:
            axes.plot(x, y, "o", color="black", ms=4, alpha=0.3, zorder=1)
        else:
            thin.append(np.stack([x, y], 1))
    if thin:  # a thousand lines as one collection; as lines they take seconds
        axes.add_collection(LineCollection(thin, colors="black", linewidths=0.8, alpha=0.3, zorder=1))
        axes.autoscale_view()
    axes.set_xlabel("epoch")
    axes.set_ylabel(scale.label)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    _whole_numbers(axes, tables["epochs"]["epoch"])
    return figure


def plot_trajectory(policies: pd.DataFrame) -> ShownFigure:
    """Probability and range of each operation over training, one panel an operation; the start as a dotted line.

    Args:
        policies: The rows of one policy in the frame `policies`.
    """
    names = list(dict.fromkeys(policies["operation"]))
    figure, grid = _panels(len(names))
    for axes, name in zip(grid, names, strict=True):
        rows = policies[policies["operation"] == name]
        last = rows.iloc[-1]
        ends = [f"probability {last['probability']:.2f} at the end"]
        axes.plot(rows["progress"], rows["probability"], color=ALONE, lw=2, clip_on=False, zorder=3)
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
            fixed = " (fixed)" if last["range"] == "fixed" else ""
            ends += textwrap.wrap(format_range(name, last["low"], last["high"], last["unit"]) + fixed, 36)
        axes.set_title(name, fontsize=9, pad=34, loc="left")
        axes.annotate("\n".join(ends), (0, 1), (0, 29), "axes fraction", "offset points", fontsize=6.5, va="top")
        axes.set_ylim(0, 1)
        axes.set_xlim(0, 1)
    figure.text(0.5, 0.06 / figure.get_size_inches()[1], "share of the training done", fontsize=8, ha="center")
    _legend(figure, [("probability", ALONE), ("range of the magnitude / limit", TEACHER)])
    return figure


def plot_sweeps(regions: pd.DataFrame) -> ShownFigure:
    """Accuracy of teacher and student along each operation's magnitude, and where the teacher alone is right."""
    rows = regions[regions["kind"] == "operation"]
    names = list(dict.fromkeys(rows["operation"]))
    if not names:
        figure, axes = _figure(7, 1)
        axes.set_axis_off()
        axes.annotate("no operation was swept", (0.5, 0.5), ha="center", va="center")
        return figure
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
        axes.axhline(part["clean_rate"].iloc[0], color=ALONE, lw=0.8, ls=":")
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("" if whole else textwrap.fill(str(part["unit"].iloc[0]), 32), fontsize=7)
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        if whole:
            axes.set_xticks([])
    _legend(
        figure,
        [
            ("teacher right", TEACHER),
            ("student right", STUDENT),
            ("teacher alone right, 95 % interval for all at once", ALONE),
        ],
    )
    return figure


def plot_diff(diff: pd.DataFrame, names: tuple[str, str] = ("a", "b")) -> ShownFigure:
    """Two policies: the probability of each operation, and its range as a share of the limit; largest change first."""
    height = 0.3 * len(diff) + 1.0
    figure = ShownFigure(figsize=(9, height))
    chance, reach = figure.subplots(1, 2, sharey=True)
    figure.subplots_adjust(0.15, 0.35 / height, 0.98, 1 - 0.6 / height, wspace=0.1)
    sides = (("a", TEACHER, "o", -0.14), ("b", STUDENT, "s", 0.14))
    for y, row in enumerate(diff.to_dict("records")):
        probabilities = {side: row[f"probability_{side}"] for side in ("a", "b")}  # NaN without the operation
        chance.plot([0.0 if p != p else p for p in probabilities.values()], [y, y], color="#bbbbbb", lw=2, zorder=1)
        for side, color, marker, shift in sides:
            has = not np.isnan(probabilities[side])
            how = {"marker": marker, "zorder": 2} if has else {"marker": "x", "zorder": 3}
            chance.plot(probabilities[side] if has else 0, y, color=color, ms=6, alpha=0.9, **how)
            ends = [row[f"{end}_{side}"] / row["limit"] for end in ("low", "high")]
            strength = 1.0 if probabilities[side] else 0.3
            reach.plot(ends, [y + shift] * 2, marker=marker, color=color, lw=2.5, ms=3.5, alpha=strength)
        if np.isnan(row["limit"]):
            reach.annotate("no magnitude", (0.5, y), fontsize=7, color=GRAY, va="center", ha="center")
    chance.set_yticks(range(len(diff)), diff["operation"])
    chance.set_ylim(len(diff) - 0.5, -0.5)
    for axes, title in ((chance, "probability once drawn"), (reach, "range of the magnitude / limit")):
        axes.set_xlim(-0.01, 1.01)
        axes.set_title(title, fontsize=9)
        axes.tick_params(labelsize=8, length=0, pad=6)
        axes.grid(color="#eeeeee")
        axes.set_axisbelow(True)
        axes.spines[:].set_visible(False)
    marks = [(_short(name), color, marker) for (_, color, marker, _), name in zip(sides, names, strict=True)]
    if diff["only_in"].notna().any():
        marks.append(("does not have the operation", GRAY, "x"))
    handles = [Line2D([], [], color=color, marker=marker, ls="", label=label) for label, color, marker in marks]
    figure.legend(handles=handles, loc="upper center", ncols=3, fontsize=8, frameon=False)
    return figure


def plot_scores(table: pd.DataFrame) -> ShownFigure:
    """The frame `scores` in its order: ratio of T. stddev and rise of the teacher's loss, with standard errors."""
    height = 0.25 * len(table) + 1.1
    figure = ShownFigure(figsize=(9, height))
    grid = figure.subplots(1, 2, sharey=True)
    figure.subplots_adjust(0.2, 0.55 / height, 0.98, 1 - 0.4 / height, wspace=0.08)
    columns = {"stddev_ratio": "T. stddev / that of an identical view",
               "teacher_loss_rise": "rise of the teacher's cross-entropy, nats"}  # fmt: skip
    for axes, (column, title) in zip(grid, columns.items(), strict=True):
        for y, row in enumerate(table.to_dict("records")):
            color = KINDS[row["kind"]]
            inside = color if row["keeps_floor"] else "white"
            axes.errorbar(row[column], y, xerr=row[f"{column}_se"], fmt="o", color=color, mfc=inside, ms=5, lw=1.5)
        axes.set_xlabel(title, fontsize=9)
        axes.tick_params(labelsize=8, length=0, pad=6)
        axes.grid(color="#eeeeee")
        axes.set_axisbelow(True)
        axes.spines[:].set_visible(False)
    grid[0].set_yticks(range(len(table)), [_short(name, 24) for name in table["policy"]])
    grid[0].set_ylim(len(table) - 0.5, -0.5)
    grid[1].set_xscale("symlog", linthresh=0.1)
    grid[1].xaxis.set_major_formatter(ScalarFormatter())
    grid[1].set_xlim(left=min(-0.03, 1.2 * table["teacher_loss_rise"].min()))
    floor = table["floor"].iloc[0]
    if floor == floor:
        grid[1].axvline(floor, color="black", lw=1, ls=":")
    marks = [(kind, color, color) for kind, color in KINDS.items() if (table["kind"] == kind).any()]
    over = f"over the floor of {format_nats(floor)}"
    marks += [(over, GRAY, "white")] * (not table["keeps_floor"].all())
    handles = [Line2D([], [], color=c, mfc=inside, marker="o", ls="", label=label) for label, c, inside in marks]
    figure.legend(handles=handles, loc="upper center", ncols=4, fontsize=8, frameon=False)
    return figure


def plot_compared(table: pd.DataFrame, metric: str) -> ShownFigure:
    """Rows of a comparison on the test split, each by its difference to the best reference, with its 95 % interval.

    Args:
        table: What `kdsearch.compare` gives as `table`.
    """
    panels = [("inherited", Scale(ACCURACY), "inherited competence on shifted images, points"),
              ("value", Scale(metric), f"{metric}{', points' if metric == ACCURACY else ''}")]  # fmt: skip
    panels = [panel for panel in panels if table[f"{panel[0]}_difference"].notna().any()]
    figure = ShownFigure(figsize=(4 + 3.5 * max(1, len(panels)), 1 + 0.32 * len(table)), layout="constrained")
    grid = figure.subplots(1, max(1, len(panels)), squeeze=False, sharey=True)[0]
    names = [_short(name) for name in table["run"]]
    for axes, (of, scale, label) in zip(grid, panels, strict=False):
        axes.spines[["top", "right"]].set_visible(False)
        axes.axvline(0, color=GRAY, lw=1)
        mean, low, high = (scale.factor * table[f"{of}_{part}"].to_numpy() for part in ("difference", "low", "high"))
        for place in range(len(table)):
            searched = table["run"].iloc[place].split(" of ")[0] in SEARCHED
            colour = ALONE if searched else "black"
            if np.isnan(mean[place]):
                if not np.isnan(table[of].iloc[place]):
                    axes.plot(0, place, "D", color=GRAY, ms=6)  # the reference itself
                continue
            axes.plot(mean[place], place, "o", color=colour, ms=5)
            axes.hlines(place, low[place], high[place], color=colour, lw=1.5)
        axes.set_xlabel(f"{label}\nless the best reference's")
    grid[0].set_yticks(range(len(names)), names)
    grid[0].set_ylim(len(names) - 0.5, -0.5)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as what the name of the file ends in, such as .png or .pdf.

    Raises:
        KdsearchError: another suffix, or a file that cannot be written.
    """
    check_picture(path)
    write_bytes(path, picture(figure, path.suffix[1:].lower()))


def picture(figure: Figure, kind: str = "png") -> bytes:
    """A figure as a file of this kind; `$` in names is a letter, not a formula."""
    content = io.BytesIO()
    with rc_context({"text.parse_math": False}), warnings.catch_warnings():  # of what is only made while it is drawn
        warnings.filterwarnings("ignore", "Glyph ")  # letters that the font has not are drawn as boxes
        for text in figure.findobj(Text):
            text.set_parse_math(False)
        figure.savefig(content, format=kind, dpi=130)
    return content.getvalue()


def check_picture(path: Path) -> None:
    """Is this the name of a picture that can be written?

    Raises:
        KdsearchError: another suffix.
    """
    kinds = sorted(Figure().canvas.get_supported_filetypes())
    if path.suffix[1:].lower() not in kinds:
        raise KdsearchError(f"{path}: a picture's name ends in .{', .'.join(kinds)}; got {path.suffix!r}")


def _scale(tables: Frames) -> Scale:
    return Scale(tables["studies"]["metric"].iloc[0])


def _short(name: str, most: int = LONGEST_NAME) -> str:
    """The end of a long name, as it can be drawn."""
    name = escape_unprintable(name)
    return name if len(name) <= most else f"…{name[1 - most :]}"


def _whole_numbers(axes: Axes, numbers: pd.Series) -> None:
    """An x axis that counts; a single number stands in the middle of it."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    low, high = numbers.min(), numbers.max()
    if not numbers.empty and low == high:
        axes.set_xticks([low])
        axes.set_xlim(low - 0.75, low + 0.75)


def _figure(width: float, height: float) -> tuple[ShownFigure, Axes]:
    figure = ShownFigure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _panels(count: int, columns: int = 5) -> tuple[ShownFigure, list[Axes]]:
    columns = min(columns, max(2, count))
    rows = max(1, -(-count // columns))
    width, height = 2.2 * columns, 2.1 * rows + 0.5
    figure = ShownFigure(figsize=(width, height))
    grid = [figure.add_subplot(rows, columns, i + 1) for i in range(count)]
    figure.subplots_adjust(0.44 / width, 0.58 / height, 1 - 0.11 / width, 1 - 0.9 / height, wspace=0.3, hspace=0.8)
    for axes in grid:
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, grid


def _legend(figure: Figure, entries: list[tuple[str, str]]) -> None:
    handles = [figure.axes[0].plot([], [], color=color, lw=3, label=label)[0] for label, color in entries]
    figure.legend(handles=handles, loc="upper center", ncols=len(entries), fontsize=8, frameon=False)
