"""What was trained is not lost: by interruptions, by failures from outside, by what cannot be kept."""

import errno
import json
import os
import signal
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import kdsearch as kd
from kdsearch.errors import KdsearchError
from kdsearch.hpo import Trial, open_search, run_trials
from kdsearch.interrupts import Interrupts, uninterrupted
from kdsearch.records import EpochRecord

SPACE = """
[policy]
learning_rate = { low = 0.03, high = 0.3, log = true, default = 0.1 }
prior_strength = 0.3
operations_per_image = 1
interval = 2
[operations.rotate]
[operations.invert]
"""


def strike(times: int = 1, number: signal.Signals = signal.SIGINT) -> None:
    for _ in range(times):
        os.kill(os.getpid(), number)


@pytest.mark.parametrize(("times", "passes"), [(1, False), (2, True), (3, False)])
def test_the_second_interruption_lets_the_answer_to_the_first_go_on_and_the_third_cuts_it(times, passes) -> None:
    with Interrupts() as interrupts:
        with pytest.raises(KeyboardInterrupt):
            strike()
        if times > 1:
            strike()
        if times > 2:
            with pytest.raises(KeyboardInterrupt):
                strike()
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interruption_that_is_swallowed_or_made_another_error_is_one_all_the_same() -> None:
    with Interrupts() as interrupts:
        with suppress(KeyboardInterrupt):  # as a `__del__` would
            strike()
        with pytest.raises(KeyboardInterrupt), interrupts.first():
            raise UnboundLocalError("updated_state")
    with Interrupts() as interrupts, pytest.raises(ZeroDivisionError), interrupts.first():
        raise ZeroDivisionError


def test_signals_wait_for_writes_that_belong_together() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        strike(2)
        done.append("written")
    assert done == ["written"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_outside_the_main_thread_nothing_is_listened_to() -> None:
    seen = []

    def elsewhere() -> None:
        with Interrupts() as interrupts, uninterrupted():
            interrupts.check()
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


class Search:
    """Trials that train nothing, each as a function says; one call of it is one search."""

    def __init__(self, folder: Path) -> None:
        (folder / "few.toml").write_text(SPACE)
        self.space, self.url = kd.SearchSpace.load(str(folder / "few.toml")), f"sqlite:///{folder / 'study.db'}"
        self.seen: list[tuple[float, int]] = []  # learning rate and seed of each run

    def __call__(self, act: Any, target: int = 2, pruner: str = "none") -> list[Any]:
        def run(trial: Trial, report: Any) -> float:
            self.seen.append((trial.settings.learning_rate, trial.seed))
            act(len(self.seen), report)
            return trial.settings.learning_rate

        ended: list[Any] = []
        study = open_search(self.url, {}, {}, sampler="random", pruner=pruner, epochs=1)
        self.study = study
        run_trials(study, self.space, run, target=target, seed=5, sampler="random", on_trial=ended.append)
        return ended

    @property
    def states(self) -> list[tuple[str, int]]:
        return [(trial.state.name, trial.user_attrs["index"]) for trial in self.study.get_trials()]


@pytest.fixture
def search(tmp_path: Path) -> Search:
    return Search(tmp_path)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[float, int]]:
    whole = Search(tmp_path_factory.mktemp("whole"))
    whole(lambda n, report: None, target=3)
    return whole.seen


def failing(first: int, error: BaseException, last: int = 0) -> Any:
    def act(n: int, report: Any) -> None:
        if first <= n <= max(first, last):
            raise error

    return act


FROM_OUTSIDE = {
    "full disk": OSError(errno.ENOSPC, "No space left on device"),
    "killed worker": KdsearchError("the workers of Set ended: worker 1 was killed"),
    "memory": MemoryError(),
    "torch's memory": RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
}


@pytest.mark.parametrize("what", FROM_OUTSIDE)
def test_a_failure_from_outside_ends_the_search_and_the_next_one_goes_on_with_the_trial(what, search, expected) -> None:
    with pytest.raises(type(FROM_OUTSIDE[what])):
        search(failing(2, FROM_OUTSIDE[what]), target=3)
    assert search.states == [("COMPLETE", 0), ("FAIL", 1)]
    search(lambda n, report: None, target=3)
    assert search.states == [("COMPLETE", 0), ("FAIL", 1), ("COMPLETE", 1), ("COMPLETE", 2)]
    assert search.seen[:1] + search.seen[2:] == expected


def test_a_trial_that_fails_by_itself_is_tried_once_more_and_then_the_search_goes_on(search, expected) -> None:
    ended = search(failing(2, ValueError("metric"), last=3), target=3)
    assert search.states == [("COMPLETE", 0), ("FAIL", 1), ("FAIL", 1), ("COMPLETE", 2), ("COMPLETE", 3)]
    assert [(event.again, event.ends) for event in ended[1:3]] == [(True, False), (False, False)]
    assert search.seen[1] == search.seen[2] == expected[1] and search.seen[3] == expected[2]


def test_a_search_in_which_nothing_ends_but_by_errors_ends_and_its_first_trial_is_not_lost(search, expected) -> None:
    for _ in range(3):
        with pytest.raises(ValueError, match="metric"):
            search(failing(0, ValueError("metric"), last=99), target=3)
    search(lambda n, report: None, target=3)
    assert [index for state, index in search.states if state == "COMPLETE"] == [0, 1, 2]
    assert search.seen[-3:] == expected


def test_three_failed_trials_in_a_row_end_the_search(search) -> None:
    with pytest.raises(ValueError, match="metric"):
        search(failing(2, ValueError("metric"), last=99), target=9)
    assert [index for _, index in search.states] == [0, 1, 1, 2, 2, 3, 3]


def test_an_interruption_while_the_trial_is_told_is_no_failure(search, expected, monkeypatch) -> None:
    from kdsearch.hpo.trials import _tell as real

    told = []

    def tell(trial: Any, event: Any) -> None:
        told.append(event.state)
        if len(told) == 2:
            strike(2)
        real(trial, event)

    monkeypatch.setattr("kdsearch.hpo.trials._tell", tell)
    with pytest.raises(KeyboardInterrupt):
        search(lambda n, report: None, target=3)
    assert search.states == [("COMPLETE", 0), ("COMPLETE", 1)]  # the write was ended before
    search(lambda n, report: None, target=3)
    assert search.seen == expected


@pytest.mark.parametrize("times", [1, 2])
def test_an_interrupted_trial_is_the_first_to_go_on(times, search, expected) -> None:
    def act(n: int, report: Any) -> None:
        if n == 2:
            strike(times)

    with pytest.raises(KeyboardInterrupt), Interrupts():
        search(act, target=3)
    search(lambda n, report: None, target=3)
    assert [index for state, index in search.states if state == "COMPLETE"] == [0, 1, 2]
    assert search.seen[:1] + search.seen[2:] == expected


def test_a_storage_that_cannot_be_written_at_the_end_of_a_failed_trial_does_not_hide_why_it_failed(
    search, expected, monkeypatch
) -> None:
    from optuna.exceptions import StorageInternalError

    def full(trial: Any, event: Any) -> None:
        raise StorageInternalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("kdsearch.hpo.trials._tell", full)
        with pytest.raises(OSError, match="No space left"):
            search(failing(1, FROM_OUTSIDE["full disk"]), target=3)
    search(lambda n, report: None, target=3)
    assert search.seen[1:] == expected


def record(epoch: int, progress: float, value: float = 0.0) -> EpochRecord:
    missing = {name: float("nan") for name in EpochRecord.__annotations__}
    return EpochRecord(**{**missing, "epoch": epoch, "progress": progress, "value": value, "losses": {}})


def test_a_trial_is_not_pruned_in_its_last_epoch(search) -> None:
    def act(n: int, report: Any) -> None:
        report(record(1, 0.5, 1.0 / n))
        report(record(2, 1.0, 1.0 / n))

    ended = search(act, target=6, pruner="median")
    assert [event.state for event in ended][:3] == ["COMPLETE"] * 3
    epochs = [trial.last_step for trial in search.study.get_trials()]
    assert [event.state for event in ended] == ["COMPLETE" if epoch == 2 else "PRUNED" for epoch in epochs]


def test_one_storage_for_two_folders_is_refused_while_the_first_is_there(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'both.db'}"
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()

    def opened(folder: Path) -> Any:
        return open_search(url, {}, {}, sampler="random", pruner="none", epochs=1, folder=folder)

    opened(first).ask()
    (first / "study.json").write_text("{}")
    with pytest.raises(KdsearchError, match=r"holds the search of the folder .*first; go on there with --out .*first"):
        opened(second)
    assert opened(first).get_trials()[0].state.name == "FAIL"
    first.rename(tmp_path / "moved")
    opened(tmp_path / "moved")


def small(study: kd.Study, **changes: Any) -> kd.Study:
    budget = replace(study.budget, trials=1, epochs=2, steps=1, batch=8, confirmation=0)
    space = changes.pop("space", study.space)
    return replace(study, space=space, budget=replace(budget, **changes))


@pytest.fixture
def few(tiny_study: kd.Study, tmp_path: Path) -> kd.Study:
    (tmp_path / "few.toml").write_text(SPACE)
    return small(tiny_study, space=str(tmp_path / "few.toml"))


def test_a_full_disk_in_a_trial_and_in_the_report_is_said_once_and_the_trial_goes_on_from_its_checkpoint(
    few, tmp_path, monkeypatch
) -> None:
    from kdsearch.checkpoint import Checkpoint

    real, saved = Checkpoint.save, []

    def save(self: Checkpoint, path: Path) -> None:
        if path.parent.name == "0000":
            saved.append(path)
            if len(saved) == 2:
                (path.parent / "checkpoint.pt.partial").write_bytes(b"half")
                raise KdsearchError(f"cannot write {path}: No space left on device") from OSError(errno.ENOSPC, "full")
        real(self, path)

    def report(folder: Path) -> Path:
        raise OSError(errno.ENOSPC, "Error writing bytes to file")

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", save)
        patch.setattr("kdsearch.job.write_report", report)
        with pytest.raises(KdsearchError, match=r"cannot write .*checkpoint\.pt: No space left on device$"):
            kd.search(few, out=folder, quiet=True)
    assert (folder / "trials" / "0000" / "checkpoint.pt").exists()
    shown = []
    monkeypatch.setattr("kdsearch.display.Display.say", lambda self, text: shown.append(text))
    result = kd.search(few, out=folder)
    assert any("trial 1 goes on with trial 0" in line for line in shown)
    trials = kd.frames(folder)["trials"].query("origin != 'reference'")
    assert trials["state"].tolist() == ["FAIL", "COMPLETE"] and trials["origin"].tolist() == ["default"] * 2
    assert result.best is not None and not [*folder.rglob("*.partial"), *folder.rglob("*.pt")]
    whole = kd.search(few, out=tmp_path / "whole")
    assert whole.value == result.value


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_trained(few, tmp_path, monkeypatch) -> None:
    import kdsearch.job as job

    def refused(self: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(job.FileLock, "acquire", refused)
    monkeypatch.setattr(job, "preflight", None)
    with pytest.raises(KdsearchError, match=r"cannot write .*search\.lock: OSError: .*Read-only file system"):
        kd.search(few, out=tmp_path / "run", quiet=True)


def test_another_search_in_the_folder_is_refused_before_the_teacher_is_trained(few, tmp_path) -> None:
    from kdsearch.job import _only_one

    untrained = kd.Recipe(lambda: kd.small_convnet(8), lambda network: pytest.fail("a teacher was trained"))
    with _only_one(tmp_path / "run"), pytest.raises(KdsearchError, match="another search is running"):
        kd.search(replace(few, teacher=untrained), out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()  # and nothing is left of a search that left nothing


def test_the_copy_of_a_study_in_its_own_run_folder_goes_on(tmp_path: Path) -> None:
    from kdsearch.job import _keep_source

    (tmp_path / "mine.py").write_text("study = None")
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    for source in ("mine.py", "run/study.py", "link/study.py"):
        _keep_source(tmp_path / source, tmp_path / "run" / "study.py")
        assert (tmp_path / "run" / "study.py").read_text() == "study = None"


def test_a_lack_of_memory_is_one_sentence(few, tmp_path, monkeypatch) -> None:
    def poor(*given: Any, **named: Any) -> None:
        raise RuntimeError("could not create a primitive")

    monkeypatch.setattr("kdsearch.job.preflight", poor)
    with pytest.raises(KdsearchError, match=r"out of memory: RuntimeError: could not create a primitive .*; the same "):
        kd.search(few, out=tmp_path / "run", quiet=True)


@pytest.fixture
def handlers():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "times", "code"), [(signal.SIGINT, 2, 130), (signal.SIGTERM, 1, 143)])
def test_the_command_line_ends_by_a_signal_with_a_report_and_its_exit_code(
    few, tmp_path, monkeypatch, kdsearch, handlers, number, times, code
) -> None:
    import kdsearch.job as job

    real = job.refer

    def struck(*given: Any) -> Any:
        strike(times, number)
        yield from real(*given)

    monkeypatch.setattr(job, "refer", struck)
    monkeypatch.setattr(job, "load_study", lambda name: (few, None))
    monkeypatch.setattr(job, "write_report", lambda folder: folder / "report.html")
    out = kdsearch("search", "few", "--out", tmp_path / "run", code=code)
    assert "interrupted; the same command goes on" in out and "report" not in out.split("goes on")[0]
    assert json.loads((tmp_path / "run" / "study.json").read_text())["study"] == "tiny"
