"""One self-contained HTML page, from the run folder alone: frames and pictures, no script, nothing fetched."""

import base64
import io
from pathlib import Path

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from kdsearch.analysis import plots
from kdsearch.analysis.compare import paired_differences, remembered, sentence
from kdsearch.analysis.frames import frames
from kdsearch.analysis.sheet import policy_sheet
from kdsearch.files import write_text
from kdsearch.images import load_images
from kdsearch.metrics import ACCURACY, Scale
from kdsearch.spec import PolicySpec


def write_report(folder: Path | str, *, images: bool = True) -> Path:
    """Write `report.html` into a run folder.

    Args:
        images: False leaves out every picture that shows an image of the data.

    Raises:
        KdsearchError: not a run folder, or a torn file in it.
    """
    folder = Path(folder)
    tables = frames(folder)
    pictures: dict[str, str] = {}
    best = tables["studies"]["best_trial"].iloc[0]
    if not tables["evaluations"].empty:
        pictures["help"] = _png(plots.did_it_help(tables))
    if not tables["trials"].empty:
        pictures["trials"] = _png(plots.trials(tables))
    if not tables["epochs"].empty:
        pictures["curves"] = _png(plots.curves(tables))
    final = regions = pd.DataFrame()
    if not pd.isna(best):
        policies = tables["policies"].query("trial == @best")
        final = policies[policies["is_final"]].sort_values("probability", ascending=False)
        regions = tables["regions"].query("trial == @best")
        pictures["trajectory"] = _png(plots.trajectory(policies))
        pictures["sweeps"] = _png(plots.sweeps(regions))
        if images:
            trial = folder / "trials" / f"{best:04d}"
            spec = PolicySpec.load(trial / "policy.json")
            pictures["sheet"] = _png(policy_sheet(spec, load_images(trial / "samples.npz")))
    page = _PAGE.get_template("report.html").render(
        study=tables["studies"].iloc[0].to_dict(),
        sentence=sentence(tables),
        remembered=remembered(tables),
        pictures=pictures,
        best=None if pd.isna(best) else int(best),
        tables=_html(tables, final, regions),
    )
    path = folder / "report.html"
    write_text(path, page)
    return path


_PAGE = Environment(loader=PackageLoader("kdsearch"), autoescape=True, undefined=StrictUndefined, trim_blocks=True)


def _html(tables: dict[str, pd.DataFrame], final: pd.DataFrame, regions: pd.DataFrame) -> dict[str, str]:
    """The tables of the page; pandas escapes what is in the cells."""
    shown: dict[str, pd.DataFrame] = {}
    if not tables["evaluations"].empty:
        rows = paired_differences(tables["evaluations"], "learned")
        scale = Scale(tables["studies"]["metric"].iloc[0])
        points = scale.factor * rows[["difference", "low", "high"]]
        unit = "points" if scale.name == ACCURACY else scale.name
        shown["differences"] = rows[["against", "n"]].join(points.add_suffix(f", {unit}"))
        if rows["note"].notna().any():
            shown["differences"]["note"] = rows["note"]
    params = tables["params"].pivot_table(index="run", columns="name", values="value", sort=False)
    columns, long = ["run", "state", "value", "value_se", "seconds", "origin"], ["fail_reason", "warnings"]
    trials = tables["trials"][[*columns, *long]].join(params, on="run")
    shown["trials"] = trials[[*columns, *params, *long]].dropna(axis=1, how="all")  # the last column wraps
    if not final.empty:
        columns = ["operation", "probability", "rate", "low", "high", "limit", "unit", "range"]
        shown["policy"] = final[columns]
        counts = ["n", "both", "teacher_only", "student_only", "neither", "kl"]
        whole = regions[regions["kind"] != "operation"]
        shown["quadrants"] = whole[["kind", "class_name", "teacher_accuracy", "student_accuracy", *counts]]
        worst = regions[regions["kind"] == "operation"].nlargest(12, "teacher_only_low")
        columns = ["operation", "low", "high", "unit", "n", "teacher_accuracy", "student_accuracy", "teacher_only_rate"]
        shown["worst"] = worst[[*columns, "teacher_only_low", "teacher_only_high", "kl"]]
    found = {}
    for name, table in shown.items():
        words = table.rename(columns=lambda column: str(column).replace("_", " "))  # so that long heads wrap
        found[name] = words.to_html(index=False, border=0, na_rep="", float_format=_number)
    return found


def _number(value: float) -> str:
    return f"{value:.3g}"


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return base64.b64encode(buffer.getvalue()).decode()
