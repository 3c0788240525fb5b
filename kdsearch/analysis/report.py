"""One self-contained HTML page, from the run folder alone: frames and pictures, no script, nothing fetched."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from kdsearch.analysis import plots
from kdsearch.analysis.compare import (
    collect_notes,
    confirmation_rows,
    describe_outcome,
    memory_note,
)
from kdsearch.analysis.frames import frames, policy_frame, regions_frame
from kdsearch.analysis.headroom import describe_headroom
from kdsearch.analysis.regions import sort_regions
from kdsearch.analysis.scale import Scale, scale_columns
from kdsearch.analysis.sheet import policy_sheet
from kdsearch.core.files import as_path, write_text
from kdsearch.core.terminal import escape_unprintable
from kdsearch.study.run_folder import read_policy, read_samples, trial_folder
from kdsearch.tasks.metrics import ACCURACY

ROUNDING = 1e-12  # what is left of differences of equal numbers
INHERITED = (
    "Left: on images as they are. Right: inherited competence, of the shifted images on which the teacher is right the "
    "share on which the student is, by a list of shifts that no policy changes. "
)
TRIALS_SHOWN = 100  # rows of trials on the page; the frame has all


def report(folder: Path | str, *, images: bool = True, storage: str | None = None) -> Path:
    """Write `report.html` into a run folder, or beside it `report_without_images.html`, which may be passed on.

    Args:
        images: False leaves out every picture that shows an image of the data.
        storage: Database URL of a search that kept its trials outside its folder.

    Raises:
        KdsearchError: not a run folder, or a torn file in it.
    """
    folder = as_path(folder)
    read = ("studies", "trials", "params", "epochs", "evaluations", "comparisons")
    return write_page(folder, frames(folder, storage=storage, only=read), images=images)


def write_page(folder: Path, tables: Mapping[str, pd.DataFrame], *, images: bool = True) -> Path:
    """The same from frames that have been read; what the best trial has left is read from its folder."""
    pictures: dict[str, str] = {}
    study = tables["studies"].iloc[0]
    best = None if pd.isna(study["best_trial"]) else int(study["best_trial"])
    if not confirmation_rows(tables["evaluations"]).empty:
        pictures["help"] = _png(plots.did_it_help(tables))
    if not tables["trials"].empty:
        pictures["trials"] = _png(plots.trials(tables))
    if not tables["epochs"].empty:
        pictures["curves"] = _png(plots.curves(tables))
    final = regions = pd.DataFrame()
    lost: list[str] = []
    if best is not None:
        trial = trial_folder(folder, best)
        spec = read_policy(folder, trial)
        regions = regions_frame(folder, study["study"], best)
        if spec:
            policies = policy_frame(spec)
            final = policies[policies["is_final"]].sort_values("probability", ascending=False)
            pictures["trajectory"] = _png(plots.plot_trajectory(policies))
        if not regions.empty and (regions["kind"] == "operation").any():
            pictures["sweeps"] = _png(plots.plot_sweeps(regions))
        kept = {"policy.json": spec is not None, "regions.json": (trial / "regions.json").is_file()}
        if images:
            kept["samples.npz"] = (trial / "samples.npz").is_file()
            if spec and kept["samples.npz"]:
                pictures["sheet"] = _png(policy_sheet(spec, read_samples(folder, trial)))
        lost = [str(trial / name) for name, there in kept.items() if not there]
    page = _PAGE.get_template("report.html").render(
        study={**study.to_dict(), "dropped": ", ".join(json.loads(study["dropped"]))},
        sentence=describe_outcome(tables),
        headroom=describe_headroom(tables["evaluations"], study["metric"]) or "",
        memory_note=memory_note(tables),
        notes=collect_notes(tables),
        pictures=pictures,
        inherited=INHERITED if confirmation_rows(tables["evaluations"])["inherited"].notna().any() else "",
        best=best,
        lost=lost,
        shown=TRIALS_SHOWN,
        trials=len(tables["trials"]),
        tables=_html(tables, final, regions),
    )
    path = folder / ("report.html" if images else "report_without_images.html")
    write_text(path, escape_unprintable(page))
    return path


_PAGE = Environment(
    loader=PackageLoader("kdsearch.analysis"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
)


def _html(tables: Mapping[str, pd.DataFrame], final: pd.DataFrame, regions: pd.DataFrame) -> dict[str, str]:
    """The tables of the page; pandas escapes what is in the cells."""
    shown: dict[str, pd.DataFrame] = {}
    if not confirmation_rows(tables["evaluations"]).empty:
        shown["differences"] = _differences(tables)
    rows = tables["trials"]
    if len(rows) > TRIALS_SHOWN:  # the references, then the best
        rows = rows.sort_values("value", ascending=False, kind="stable")
        rows = pd.concat([rows[rows["trial"].isna()], rows[rows["trial"].notna()]])[:TRIALS_SHOWN].sort_index()
    params = tables["params"]
    params = params[params["run"].isin(rows["run"])].pivot_table(
        index="run", columns="name", values="value", sort=False
    )
    columns, long = ["run", "state", "value", "value_se", "seconds", "origin"], ["fail_reason", "warnings"]
    scaled = scale_columns(rows[[*columns, *long]], tables["studies"]["metric"].iloc[0])
    columns, trials = list(scaled.columns[: len(columns)]), scaled.join(params, on="run")
    shown["trials"] = trials[[*columns, *params, *long]].dropna(axis=1, how="all")  # the last column wraps
    if not final.empty:
        columns = ["operation", "probability", "rate", "low", "high", "limit", "unit", "range"]
        shown["policy"] = final[columns]
    if not regions.empty:
        counts = ["n", "both", "teacher_only", "student_only", "neither", "kl"]
        whole = regions[regions["kind"] != "operation"]
        shown["quadrants"] = whole[["kind", "class_name", "teacher_accuracy", "student_accuracy", *counts]]
        worst = sort_regions(regions[regions["kind"] == "operation"]).head(12)
        columns = ["operation", "low", "high", "unit", "n", "teacher_accuracy", "student_accuracy", "teacher_only_rate"]
        if not worst.empty:
            shown["worst"] = worst[[*columns, "teacher_only_low", "teacher_only_high", "clean_rate", "kl"]]
    found = {}
    for name, table in shown.items():
        words = table.rename(columns=lambda column: str(column).replace("_", " "))  # so that long heads wrap
        found[name] = words.to_html(index=False, border=0, na_rep="", float_format=_number)
    return found


def _differences(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The learned policy less each other run, by the metric and, where it was measured, by inherited competence."""
    rows, metric = tables["comparisons"].query("run == 'learned'"), tables["studies"]["metric"].iloc[0]
    columns, found = ["difference", "low", "high"], rows[["against", "seeds"]].drop_duplicates("against")
    for of in dict.fromkeys(rows["of"].sort_values(key=lambda names: names != "inherited")):
        scale = Scale(ACCURACY if of == "inherited" else metric)
        unit = "points" if scale.name == ACCURACY else scale.name
        mine = scale.factor * rows[rows["of"] == of].set_index("against")[columns]
        mine.columns = [f"{of}: {column}, {unit}" for column in columns]
        found = found.join(mine, on="against")
    return found


def _number(value: float) -> str:
    return f"{value if abs(value) > ROUNDING else 0:.3g}"


def _png(figure: Figure) -> str:
    return base64.b64encode(plots.picture(figure)).decode()
