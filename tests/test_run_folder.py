"""Run folders as strangers hand them over: damaged, moved, with names of all kinds; reading them writes nothing."""

import json
import os
import re
import shutil
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import optuna
import pandas as pd
import pytest

import kdsearch as kd
from kdsearch.analysis import report
from kdsearch.analysis.frames import make_frame, write_frame
from kdsearch.commands.console import print_table
from kdsearch.study.hpo import check_kept, database_file, database_url, open_search, trial_rows
from kdsearch.study.hpo.storage import NAME, open_storage
from kdsearch.study.run_folder import read_study, trial_folder

NASTY = ["r?x=1#%20&a", "a{b", "{}{0}", "a$x^{b$", "[x]~;'\"", "a b é 漢", "%(here)s%", "file:x?mode=memory"]
JSON = ["study.json", "result.json", "regions.json", "epochs.jsonl", "confirmation.json"]


@pytest.fixture
def run(finished, tmp_path: Path) -> Path:
    """A copy of a finished search."""
    return shutil.copytree(finished.folder, tmp_path / "run")


def best(run: Path) -> Path:
    return trial_folder(run, kd.frames(run, only=("studies",))["studies"]["best_trial"].iloc[0])


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def undrawn(monkeypatch) -> None:
    """Pages without the pictures, which take most of their time."""
    monkeypatch.setattr("kdsearch.analysis.report._png", lambda figure: "")


def refused(read: Callable[[], object]) -> str:
    with pytest.raises(kd.KdsearchError) as caught:
        read()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Names


@pytest.mark.parametrize("name", NASTY)
def test_a_folder_may_have_any_name(name: str, run: Path, tmp_path: Path, kdsearch, undrawn) -> None:
    place = run.rename(tmp_path / name)
    before = sorted(tmp_path.iterdir())
    assert kdsearch("status", place).startswith("tiny: 2 complete")
    assert len(kd.frames(place)["trials"]) == 7
    assert json.loads(kdsearch("export", place, "--to", "json"))["format"] == "kdsearch-policy"
    kd.report(place, images=False)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", NASTY)
def test_a_search_keeps_its_trials_in_a_folder_of_any_name(name: str, tmp_path: Path) -> None:
    place = tmp_path / name
    place.mkdir()
    study = open_search(database_url(place), {}, {}, sampler="tpe", pruner="none", epochs=1)
    study.ask()
    assert [*tmp_path.iterdir()] == [place] and (place / "study.db").stat().st_size
    assert [row.state for row in trial_rows(database_url(place))[0]] == ["RUNNING"]


# Nothing is written, nothing outside is followed


def test_reading_leaves_a_folder_as_it_is(run: Path, kdsearch, tmp_path: Path) -> None:
    before = everything(run)
    kdsearch("status", run)
    kdsearch("regions", run)
    kdsearch("frames", run, "-o", tmp_path / "frames")
    kdsearch("export", run, "--to", "torchvision")
    assert everything(run) == before


@pytest.mark.parametrize("there", [True, False])
def test_a_storage_outside_the_folder_is_opened_only_when_it_is_named(
    there: bool, run: Path, tmp_path: Path, kdsearch, undrawn
) -> None:
    outside = tmp_path / "elsewhere.db"
    facts = json.loads((run / "study.json").read_text())
    (run / "study.json").write_text(json.dumps({**facts, "storage": f"sqlite:///{outside}"}))
    (run / "study.db").rename(outside) if there else (run / "study.db").unlink()
    for command in (["status", run], ["export", run, "--to", "json"], ["report", run], ["frames", run]):
        said = kdsearch(*command, code=2)
        assert f"sqlite:///{outside}" in said and "--storage" in said
    assert f"storage='sqlite:///{outside}'" in refused(lambda: kd.regions(run))
    assert outside.exists() == there
    if there:
        assert kdsearch("status", run, "--storage", f"sqlite:///{outside}").startswith("tiny: 2 complete")
        assert len(kd.frames(run, storage=f"sqlite:///{outside}")["params"])
        assert len(kd.regions(run, storage=f"sqlite:///{outside}"))
        assert kd.report(run, images=False, storage=f"sqlite:///{outside}").exists()
    else:
        assert "missing" in kdsearch("status", run, "--storage", f"sqlite:///{outside}", code=2)
        assert not outside.exists()


@pytest.mark.parametrize("what", ["study.db", "trials", "trials/0000", "study.json", "trials/0000/policy.json"])
def test_links_do_not_lead_out_of_a_folder(what: str, run: Path, tmp_path: Path) -> None:
    (run / what).rename(tmp_path / "outside")
    (run / what).symlink_to(tmp_path / "outside")
    assert "outside the folder" in (said := refused(lambda: kd.frames(run))) or "leads out of the run folder" in said


def test_links_inside_a_folder_are_followed(run: Path) -> None:
    (run / "study.db").rename(run / "trials.db")
    (run / "study.db").symlink_to("trials.db")
    assert kd.frames(run)["studies"]["complete"].iloc[0] == 2


def test_a_journal_of_a_search_that_died_is_rolled_back_in_a_copy(run: Path) -> None:
    expected = kd.frames(run)["trials"]
    writer = sqlite3.connect(run / "study.db", isolation_level=None)
    writer.execute("PRAGMA cache_size = 1")  # spilled into the file before the end
    writer.execute("BEGIN")
    writer.execute("UPDATE trial_user_attributes SET value_json = '7777777777'")
    writer.execute("CREATE TABLE filler AS WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9000) "
                   "SELECT hex(randomblob(50)) AS x FROM n")  # fmt: skip
    died = shutil.copytree(run, run.with_name("died"))
    writer.execute("ROLLBACK")
    assert (died / "study.db").read_bytes() != (run / "study.db").read_bytes() and (died / "study.db-journal").exists()
    before = everything(died)
    pd.testing.assert_frame_equal(kd.frames(died)["trials"], expected)
    assert everything(died) == before


@pytest.mark.parametrize("open_too", [True, False])
def test_a_write_ahead_log_is_read(open_too: bool, run: Path) -> None:
    writer = sqlite3.connect(run / "study.db", isolation_level=None)
    writer.execute("PRAGMA journal_mode = WAL")
    writer.execute("UPDATE trial_user_attributes SET value_json = '\"logged\"' WHERE key = 'origin'")
    place = run
    if not open_too:
        place = shutil.copytree(run, run.with_name("copy"), ignore=shutil.ignore_patterns("*-shm"))
    before = sorted(path.name for path in place.iterdir())
    assert "study.db-wal" in before
    assert set(kd.frames(place)["trials"]["origin"]) == {"logged", "reference"}
    assert sorted(path.name for path in place.iterdir()) == before
    writer.close()


def test_a_locked_database_is_waited_for(run: Path) -> None:
    writer = sqlite3.connect(run / "study.db", isolation_level=None, check_same_thread=False)
    writer.execute("BEGIN EXCLUSIVE")
    threading.Timer(0.3, lambda: writer.execute("ROLLBACK")).start()
    assert len(kd.frames(run)["trials"]) == 7


# Databases that are lost or damaged


def zero(path: Path, start: int, size: int) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:start] + bytes(len(content[start : start + size])) + content[start + size :])


def another_program(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE mine (x)")
    connection.close()


def change(path: Path, statement: str) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute(statement)
    connection.close()


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: path.unlink(), "put it back"),
    "empty": (lambda path: path.write_bytes(b""), "put it back"),
    "zeroed": (lambda path: zero(path, 0, 10**9), "not a database"),
    "a page zeroed": (lambda path: zero(path, 4096, 40960), "malformed"),
    "text": (lambda path: path.write_text("no database " * 1000), "not a database"),
    "another program's": (another_program, "mine"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "not a file"),
    "a pipe": (lambda path: (path.unlink(), os.mkfifo(path)), "not a file"),
    "another version": (lambda path: change(path, "UPDATE alembic_version SET version_num = 'v9.0.0'"), "v9.0.0"),
    "no search": (lambda path: change(path, "UPDATE studies SET study_name = 'other'"), "no search"),
    "no trials": (lambda path: change(path, "DELETE FROM trials"), "knows nothing of 2 trials"),
    "state": (lambda path: change(path, "UPDATE trials SET state = 'DONE'"), "DONE"),
    "text as a number": (lambda path: change(path, "UPDATE trial_params SET param_value = 'xyz'"), "xyz"),
    "no JSON": (lambda path: change(path, "UPDATE trial_user_attributes SET value_json = '{'"), "JSONDecodeError"),
    "deep": (lambda path: change(path, f"UPDATE trial_user_attributes SET value_json = '{'[' * 10**5}'"), "Recursion"),
    "a table gone": (lambda path: change(path, "ALTER TABLE trial_values RENAME TO others"), "no search"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_lost_or_damaged_database_is_one_error_and_is_left_as_it_is(kind: str, run: Path, tiny_study) -> None:
    damage, part = DAMAGE[kind]
    damage(run / "study.db")
    before = everything(run) if kind != "a pipe" else {}
    said = refused(lambda: kd.frames(run))
    assert "study.db" in said and part in said
    asked = refused(lambda: kd.search(tiny_study, out=run, quiet=True))  # before it trains anything anew
    assert "study.db" in asked
    assert not before or {**before, **everything(run)} == before


def test_a_search_beside_trials_of_another_database_is_refused(run: Path, tmp_path: Path) -> None:
    assert "files of 2 trials (0, 1)" in refused(lambda: check_kept(run, f"sqlite:///{tmp_path / 'new.db'}"))
    check_kept(run, database_url(run))
    shutil.copytree(run / "trials" / "0001", run / "trials" / "0002")
    assert "knows nothing of trial 2" in refused(lambda: check_kept(run, database_url(run)))


def test_a_search_opens_no_database_of_another_program(tmp_path: Path) -> None:
    (tmp_path / "x.db").touch()
    another_program(tmp_path / "x.db")
    before = (tmp_path / "x.db").read_bytes()
    assert "another program's" in refused(lambda: open_storage(f"sqlite:///{tmp_path / 'x.db'}"))
    assert (tmp_path / "x.db").read_bytes() == before


def test_rows_are_those_that_optuna_reads(tmp_path: Path) -> None:
    study = optuna.create_study(storage=open_storage(database_url(tmp_path)), study_name=NAME, direction="maximize")

    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 1e-3, 1.0, log=True) * trial.suggest_int("n", 1, 5)
        for step in (1, 2, 3):
            trial.report(float("inf") if trial.number == 2 else x / step, step)
        trial.set_user_attr("seed", trial.number)
        if trial.number == 1:
            raise optuna.TrialPruned
        return float("-inf") if trial.number == 3 else x

    study.optimize(objective, n_trials=5)
    study.enqueue_trial({"x": 0.5}, user_attrs={"origin": "default"})
    rows, _ = trial_rows(database_url(tmp_path))
    for row, trial in zip(rows, study.trials, strict=True):
        told = [row.number, row.state, row.params, row.started_at, row.ended_at, row.seed, row.origin, row.last_epoch]
        attributes = [trial.user_attrs.get("seed"), trial.user_attrs.get("origin", "sampled"), trial.last_step]
        times = [trial.datetime_start, trial.datetime_complete]
        assert told == [trial.number, trial.state.name, trial.params, *times, *attributes]
        assert row.value == (trial.value if row.state == "COMPLETE" else None)
        assert row.last_value == (None if trial.last_step is None else trial.intermediate_values[trial.last_step])
        assert {k: list(v.values()) for k, v in row.space.items()} == {
            k: [d.low, d.high, d.log] for k, d in trial.distributions.items()
        }


# Files of any content


@pytest.mark.parametrize("name", JSON)
def test_whatever_is_in_a_file_is_one_error_that_names_it(name: str, run: Path) -> None:
    path = run / name if (run / name).exists() else best(run) / name
    whole = path.read_text()
    data = [json.loads(line) for line in whole.splitlines()] if name == "epochs.jsonl" else json.loads(whole)
    row = data["rows"][0] if name == "confirmation.json" else data[0] if isinstance(data, list) else data
    wrong = [b"\xff", b"[" * 10**5, b"{", b"[1]", b'"x"', b"null", whole.encode()[:-20] + b"\\ud800"]
    for field in row:
        for junk in (10**400, "\ud800x", [[]], {"a": []}, True, "x", -1, 1e300):
            changed = {**row, field: junk}
            if name == "confirmation.json":
                changed = {**data, "rows": [changed]}
            wrong.append(json.dumps([changed] if name == "regions.json" else changed).encode())
    for content in wrong:
        path.write_bytes(content)
        try:
            kd.frames(run)
        except kd.KdsearchError as error:
            assert path.name in str(error) and len(str(error).splitlines()) == 1
    path.write_bytes(b"[{}]" if name in ("regions.json", "epochs.jsonl") else b"7")
    assert str(path) in refused(lambda: kd.frames(run))


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("study.json", "study", None), ("study.json", "classes", "abc"), ("study.json", "operations", [1]),
        ("study.json", "budget_epochs", 2**63), ("study.json", "teacher_accuracy", "high"),
        ("study.json", "opened_at", "noon"), ("study.json", "storage", 5), ("result.json", "value", [1]),
        ("result.json", "warnings", "none"),
    ],
)  # fmt: skip
def test_the_field_is_named(name: str, field: str, value: object, run: Path) -> None:
    path = run / name if name == "study.json" else best(run) / name
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    said = refused(lambda: kd.frames(run))
    assert str(path) in said and field in said


def test_a_region_of_no_images_or_of_another_operation_is_refused(run: Path) -> None:
    path = best(run) / "regions.json"
    rows = json.loads(path.read_text())
    for field, value in (("n", 0), ("operation", "rotat"), ("both", -1), ("teacher_only_low", 2)):
        path.write_text(json.dumps([{**rows[0], field: value}]))
        assert f"0.{field}" in refused(lambda: kd.frames(run))


def test_fields_of_a_newer_version_are_passed_over(run: Path) -> None:
    for path in (run / "study.json", best(run) / "result.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "newer": {"a": 1}}))
    assert len(kd.frames(run)["trials"]) == 7


def test_files_are_regular_and_of_a_size(run: Path) -> None:
    path = best(run) / "regions.json"
    path.unlink()
    os.mkfifo(path)
    assert "not a file" in refused(lambda: kd.frames(run))
    path.unlink()
    with path.open("wb") as file:
        file.truncate(2**40)
    assert "at most" in refused(lambda: kd.frames(run))


@pytest.mark.parametrize("seed", [2**63, 2**64, -(10**30)])
def test_a_seed_that_no_table_holds_loses_no_search(seed: int, run: Path, tmp_path: Path) -> None:
    path = run / "study.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "seed": seed}))
    tables = kd.frames(run)
    assert pd.isna(tables["studies"]["seed"].iloc[0]) and read_study(run).seed is None
    write_frame(tables["studies"], tmp_path / "studies.parquet")


def test_a_reason_that_is_no_unicode_is_kept_as_text(run: Path, tmp_path: Path) -> None:
    change(run / "study.db", "INSERT INTO trial_user_attributes (trial_id, key, value_json) "
                             "VALUES (1, 'fail_reason', '\"caf\\udce9\"')")  # fmt: skip
    trials = kd.frames(run)["trials"]
    assert trials["fail_reason"].iloc[0] == "caf\\udce9"
    for end in ("csv", "parquet"):
        write_frame(trials, tmp_path / f"trials.{end}")


# The winner's files gone


@pytest.mark.parametrize("gone", ["policy.json", "regions.json", "samples.npz", "."])
def test_without_a_file_of_the_winner_the_page_names_it_and_goes_on(gone: str, run: Path, kdsearch, undrawn) -> None:
    trial = best(run)
    (trial / gone).unlink() if gone != "." else shutil.rmtree(trial)
    assert kdsearch("status", run).startswith("tiny: 2 complete")
    page = kd.report(run).read_text()
    lost = ["policy.json", "regions.json", "samples.npz"] if gone == "." else [gone]
    assert all(str(trial / name) in page for name in lost) and "Did it help?" in page
    if gone in (".", "policy.json"):
        assert str(trial / "policy.json") in kdsearch("export", run, "--to", "json", code=2)
    if gone in (".", "regions.json"):
        assert str(trial / "regions.json") in kdsearch("regions", run, code=2)


# Text in tables

FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1", "'quoted"]
LIKE_NOTHING = ["NA", "None", "null", "nan", "", "N/A", "NULL", "NaN", "n/a", "<NA>", "#N/A", "1.#IND"]


def test_text_in_csv_is_neither_run_nor_taken_for_nothing_and_comes_back(tmp_path: Path) -> None:
    names = [*FORMULAS, *LIKE_NOTHING, "cat", 'tench, "Tinca"; tinca', None]
    path = tmp_path / "regions.csv"
    table = make_frame("regions", [{"class_name": name, "kl": -0.5, "n": i} for i, name in enumerate(names)])
    write_frame(table, path)
    back = pd.read_csv(path)
    assert back["class_name"].isna().sum() == 1
    text = [None if pd.isna(name) else name.removeprefix("'") for name in back["class_name"]]
    assert text == names
    assert not any(str(name).startswith(tuple("=+-@\t\r\n＝")) for name in back["class_name"])
    assert back["kl"].tolist() == [-0.5] * len(names) and back["n"].tolist() == [*range(len(names))]
    write_frame(table, tmp_path / "regions.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "regions.parquet"), table)


def test_lists_in_cells_are_json_and_split_at_their_commas(run: Path, undrawn) -> None:
    names = ["NA", "tench, Tinca tinca", "None", 'a "b"\\', "漢"]
    path = run / "study.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "classes": names, "dropped": ["hue"]}))
    study = kd.frames(run)["studies"].iloc[0]
    assert json.loads(study["classes"]) == names and len(study["classes"].split(", ")) == len(names)
    assert "without hue (no effect" in kd.report(run, images=False).read_text()


# Many trials


def test_a_page_of_many_trials_shows_the_references_and_the_best(run: Path, monkeypatch, undrawn) -> None:
    monkeypatch.setattr("kdsearch.analysis.report.TRIALS_SHOWN", 6)
    page = kd.report(run, images=False).read_text()
    shown = page[page.index("<h2>Trials") :]
    assert "6 of 7 rows" in shown
    runs = ("identity", "trivial", "rand_augment", "labels_only", "start", f"trial {int(best(run).name)}")
    assert all(f"<td>{name}</td>" in shown for name in runs)


def test_long_tables_are_aligned_as_short_ones_are(monkeypatch, capsys) -> None:
    rows = [["a", "漢字"], ["longer", "1"]]
    print_table(["run", "x"], rows)
    short = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    monkeypatch.setattr("kdsearch.commands.console.MANY", 1)
    print_table(["run", "x"], rows)
    assert capsys.readouterr().out.splitlines() == short


def test_frames_that_are_not_asked_for_are_not_read(run: Path) -> None:
    (best(run) / "regions.json").write_text("torn")
    assert set(kd.frames(run, only=("studies", "trials"))) == {"studies", "trials"}
    assert "did you mean 'trials'?" in refused(lambda: kd.frames(run, only=("trial",)))


def test_a_search_reads_its_own_storage_elsewhere(tiny_study, tmp_path: Path) -> None:
    study = replace(tiny_study, budget=replace(tiny_study.budget, trials=1, epochs=1, steps=2, confirmation=0))
    url = f"sqlite:///{tmp_path / '{x}?.db'}"
    result = kd.search(study, out=tmp_path / "a{b", storage=url, quiet=True)
    assert result.best is not None and not (tmp_path / "a{b" / "study.db").exists()
    assert url in refused(lambda: kd.frames(result.folder))


@pytest.mark.parametrize("name", ["./:memory:", "file:x?mode=memory&cache=shared"])
def test_a_storage_is_the_file_that_its_url_names_whatever_sqlite_makes_of_the_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    open_storage(f"sqlite:///{name}")
    assert database_file(f"sqlite:///{name}") == tmp_path / name and (tmp_path / name).stat().st_size


@pytest.mark.parametrize("name", ["y" * 300, "\ud800", "loop/x"])
def test_a_storage_that_no_file_can_be_is_one_sentence(name, finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    url = f"sqlite:///{name}"
    for call in (lambda: kd.frames(finished.folder, storage=url), partial(open_storage, url)):
        with pytest.raises(kd.KdsearchError, match=r"^cannot read the database ") as told:
            call()
        assert "\n" not in str(told.value)


def test_a_working_directory_that_is_gone_is_said(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here").rmdir()
    with pytest.raises(kd.KdsearchError, match=r"^run: the working directory is no longer there$"):
        database_url(Path("run"))


def test_names_steer_no_page_and_no_terminal_that_reads_about_their_picture(run, kdsearch, recwarn):
    text = (run / "study.json").read_text().replace('"tiny"', json.dumps("\x1b[31m\u202e\x00tiny 漢"))
    (run / "study.json").write_text(text.replace('"accuracy"', json.dumps("$m^{x$ \x1b漢"), 1))
    kdsearch("report", run)
    page = (run / "report.html").read_text()
    assert not recwarn.list and not {"\x1b", "\u202e", "\x00"} & set(page)
    assert r"<h1>\x1b[31m\u202e\x00tiny 漢</h1>" in page


@pytest.mark.parametrize("name", ["study.json", "confirmation.json", *(f"trials/0000/{name}" for name in JSON[1:4])])
def test_a_folder_in_place_of_a_file_is_one_sentence_and_is_closed(name, run):
    (run / name).unlink()
    (run / name).mkdir()
    before = os.listdir("/proc/self/fd")
    with pytest.raises(kd.KdsearchError, match=rf"^cannot read {re.escape(str(run / name))}: it is not a file$"):
        kd.frames(run)
    assert len(os.listdir("/proc/self/fd")) <= len(before)


def test_a_difference_of_nothing_is_printed_as_none():
    assert [report._number(value) for value in (100 * (0.1 + 0.2 - 0.3), -5e-15, -0.25)] == ["0", "0", "-0.25"]
