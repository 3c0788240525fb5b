"""What was trained is not lost: by interruptions, by failures from outside, by what cannot be kept."""

import errno
import json
import os
import random
import runpy
import signal
import threading
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from torch import nn

import kdsearch as kd
from kdsearch.core.errors import Diverged, KdsearchError
from kdsearch.core.interrupts import Interrupts, hold_signals
from kdsearch.core.locks import lock_folder
from kdsearch.core.sources import hash_source
from kdsearch.distill.estimators import Sample, endpoint
from kdsearch.distill.records import EpochRecord
from kdsearch.study.hpo import Trial, open_search, run_trials
from kdsearch.study.ready import Ready
from kdsearch.study.run import Outcome

SPACE = """
[policy]
learning_rate = { low = 0.03, high = 0.3, log = true, default = 0.1 }
prior_strength = 0.3
operations_per_image = 1
interval = 2
[operations.rotate]
[operations.invert]
"""


@pytest.fixture(autouse=True)
def listening() -> Any:
    """As in a terminal: what runs in the background, as tests may, ignores SIGINT from its start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


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
        with pytest.raises(KeyboardInterrupt), interrupts.prefer_interruption():
            raise UnboundLocalError("updated_state")
    with Interrupts() as interrupts, pytest.raises(ZeroDivisionError), interrupts.prefer_interruption():
        raise ZeroDivisionError


def test_signals_wait_for_writes_that_belong_together() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), hold_signals():
        strike(2)
        done.append("written")
    assert done == ["written"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_outside_the_main_thread_nothing_is_listened_to() -> None:
    seen = []

    def elsewhere() -> None:
        with Interrupts() as interrupts, hold_signals():
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
        run_trials(study, self.space, run, target=target, seed=5, paired=False, sampler="random", on_trial=ended.append)
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
    from kdsearch.study.hpo.trials import _tell as real

    told = []

    def tell(trial: Any, event: Any) -> None:
        told.append(event.state)
        if len(told) == 2:
            strike(2)
        real(trial, event)

    monkeypatch.setattr("kdsearch.study.hpo.trials._tell", tell)
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
        patch.setattr("kdsearch.study.hpo.trials._tell", full)
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
    with pytest.raises(KdsearchError, match=r"holds the search of the folder .*first; go on there with out='.*first"):
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
    from kdsearch.distill.checkpoint import Checkpoint

    real, saved = Checkpoint.save, []

    def save(self: Checkpoint, path: Path) -> None:
        if path.parent.name == "0000":
            saved.append(path)
            if len(saved) == 2:
                (path.parent / ".checkpoint.pt.0123456789abcdef.partial").write_bytes(b"half")
                raise KdsearchError(f"cannot write {path}: No space left on device") from OSError(errno.ENOSPC, "full")
        real(self, path)

    def report(*given: Any) -> Path:
        raise OSError(errno.ENOSPC, "Error writing bytes to file")

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", save)
        patch.setattr("kdsearch.commands.search.write_page", report)
        with pytest.raises(KdsearchError, match=r"cannot write .*checkpoint\.pt: No space left on device$"):
            kd.search(few, out=folder, quiet=True)
    assert (folder / "trials" / "0000" / "checkpoint.pt").exists()
    shown = []
    monkeypatch.setattr("kdsearch.commands.display.Display.say", lambda self, text: shown.append(text))
    result = kd.search(few, out=folder)
    assert any("trial 1 goes on with trial 0" in line for line in shown)
    trials = kd.frames(folder)["trials"].query("origin != 'reference'")
    assert trials["state"].tolist() == ["FAIL", "COMPLETE"] and trials["origin"].tolist() == ["default"] * 2
    assert result.best is not None and not [*folder.rglob("*.partial"), *folder.rglob("*.pt")]
    whole = kd.search(few, out=tmp_path / "whole")
    assert whole.value == result.value


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_trained(few, tmp_path, monkeypatch) -> None:

    def refused(self: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(FileLock, "acquire", refused)
    monkeypatch.setattr("kdsearch.commands.check.preflight", None)
    with pytest.raises(KdsearchError, match=r"cannot write .*search\.lock: OSError: .*Read-only file system"):
        kd.search(few, out=tmp_path / "run", quiet=True)


def test_another_search_in_the_folder_is_refused_before_the_teacher_is_trained(few, tmp_path) -> None:
    untrained = kd.Recipe(lambda: kd.networks.small_convnet(8), lambda network: pytest.fail("a teacher was trained"))
    with (
        lock_folder(tmp_path / "run", "search"),
        pytest.raises(KdsearchError, match="another search or evaluation is running"),
    ):
        kd.search(replace(few, teacher=untrained), out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()  # and nothing is left of a search that left nothing


def test_the_copy_of_a_study_in_its_own_run_folder_goes_on(tmp_path: Path) -> None:
    from kdsearch.commands.search import _keep_source

    (tmp_path / "mine.py").write_text("study = None")
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    for source in ("mine.py", "run/study.py", "link/study.py"):
        _keep_source(tmp_path / source, tmp_path / "run" / "study.py")
        assert (tmp_path / "run" / "study.py").read_text() == "study = None"


def test_a_lack_of_memory_is_one_sentence(few, tmp_path, monkeypatch) -> None:
    def poor(*given: Any, **named: Any) -> None:
        raise RuntimeError("could not create a primitive")

    monkeypatch.setattr("kdsearch.commands.check.preflight", poor)
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
    import kdsearch.commands.search as job

    real = job.run_references

    def struck(*given: Any) -> Any:
        strike(times, number)
        yield from real(*given)

    monkeypatch.setattr(job, "run_references", struck)
    monkeypatch.setattr(job, "load_study", lambda name: (few, None))
    monkeypatch.setattr(job, "write_page", lambda folder, tables: folder / "report.html")
    out = kdsearch("search", "few", "--out", tmp_path / "run", code=code)
    assert "interrupted; the same command goes on" in out and "report" not in out.split("goes on")[0]
    assert json.loads((tmp_path / "run" / "study.json").read_text())["study"] == "tiny"


class Tied(nn.Module):
    """Two layers of one weight, extra state, and a convolution that ends channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.conv = nn.Linear(3, 3, bias=False), nn.Conv2d(2, 2, 3)
        self.b, self.told = self.a, {"epochs": 0}

    def get_extra_state(self) -> Any:
        return self.told

    def set_extra_state(self, state: Any) -> None:
        self.told = state


def finish(network: nn.Module, steps: int = 1) -> None:
    network.to(memory_format=torch.channels_last)
    with torch.no_grad():
        next(network.parameters()).add_(torch.rand(()) * steps)
    if isinstance(network, Tied):
        network.told = {"epochs": steps}


class Finish:
    """A callable object that counts its calls."""

    def __init__(self, steps: int) -> None:
        self.steps, self.calls = steps, [0]

    def __call__(self, network: nn.Module) -> None:
        self.calls[0] += 1
        finish(network, self.steps)

    def method(self, network: nn.Module) -> None:
        self(network)


RECIPES = {
    "functions": lambda: kd.Recipe(Tied, finish),
    "partials": lambda: kd.Recipe(partial(nn.Linear, 2, 3), partial(finish, steps=3)),
    "an object": lambda: kd.Recipe(Tied, Finish(2)),
    "a method": lambda: kd.Recipe(lambda: nn.DataParallel(Tied()), Finish(2).method),
    "a builtin": lambda: kd.Recipe(partial(deepcopy, nn.Sequential(nn.Conv2d(1, 2, 3))), finish),
}


@pytest.mark.parametrize("kind", RECIPES)
def test_whatever_a_recipe_is_made_of_its_teacher_is_trained_once_and_comes_back(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "teacher.safetensors"
    first = RECIPES[kind]()
    trained = first.load(path).state_dict()
    for recipe in (first, kd.Recipe(RECIPES[kind]().build, RECIPES[kind]().train)):
        again = recipe.load(path).state_dict()
        assert all(
            torch.equal(v, again[k]) if isinstance(v, torch.Tensor) else v == again[k] for k, v in trained.items()
        )
    train = first.train if isinstance(first.train, Finish) else getattr(first.train, "__self__", None)
    assert train is None or train.calls == [1]


def test_the_fingerprint_of_a_recipe_follows_what_it_calls_in_its_own_file(tmp_path: Path) -> None:
    file = """
from functools import partial
RATE = 0.1
class Net:
    def deep(self): return helper()
def helper(): return inner()
def inner(): return RATE
def unused(): return 1
def build(): return Net()
train = partial(helper, 3)
"""
    changes = {"": "", "RATE = 0.1": "RATE = 0.2", "return inner()": "return inner() + 1", "(helper, 3)": "(helper, 4)"}
    changes |= {"unused(): return 1": "unused(): return 2"}
    found = []
    for i, (old, new) in enumerate(changes.items()):
        path = tmp_path / f"f{i}.py"
        path.write_text(file.replace(old, new) if old else file)
        names = runpy.run_path(str(path), run_name="mine")
        found.append(hash_source(names["build"], names["train"]))
    assert len({*found[:4]}) == 4 and found[4] == found[0]
    typed: list[dict[str, Any]] = [{}, {}, {}]
    for names, number in zip(typed, (1, 1, 2), strict=True):
        exec(f"def build(): return {{{number}, 'a', 'b'}}", names)  # as in a session, without a source
    a, b, c = (hash_source(names["build"]) for names in typed)
    assert a == b != c


def untrained(network: nn.Module) -> None:
    pytest.fail("a teacher was trained")


class Odd(Tied):
    def get_extra_state(self) -> Any:
        return lambda: None


class Deaf(Tied):
    def set_extra_state(self, state: Any) -> None:
        raise ValueError("of another format")


def test_what_cannot_be_kept_is_said_before_the_training(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "teacher.safetensors"
    said = {
        r"teacher: _extra_state of what Odd\(\) makes cannot be kept; allowed: extra state of tensors": Odd,
        r"teacher: what Deaf\(\) makes does not take back its own weights: ValueError: of another format": Deaf,
        r"teacher: <lambda>\(\) gave int; allowed: a network": lambda: 3,
        r"teacher: dict\(\): TypeError": partial(dict, 3),
        r"teacher: int\(\): TypeError: 'int' object is not callable": 3,
    }
    for words, build in said.items():
        with pytest.raises(KdsearchError, match=words):
            kd.Recipe(build, untrained).load(path)
    with pytest.raises(
        KdsearchError, match=r"teacher: strike_out\(\): ZeroDivisionError: .* \(test_work_lost.py, line"
    ):
        kd.Recipe(Tied, strike_out).load(path)
    (tmp_path / "file").touch()
    with pytest.raises(KdsearchError, match="cannot make the folder"):
        kd.Recipe(Tied, untrained).load(tmp_path / "file" / "teacher.safetensors")
    monkeypatch.setattr("kdsearch.networks.teachers.TemporaryFile", strike_out_files)
    with pytest.raises(KdsearchError, match=r"cannot keep the teacher as .*: OSError: .*Read-only"):
        kd.Recipe(Tied, untrained).load(path)


def strike_out(network: nn.Module) -> None:
    raise ZeroDivisionError("steps")


def strike_out_files(**named: Any) -> None:
    raise OSError(errno.EROFS, "Read-only file system")


def test_a_trained_teacher_that_cannot_be_kept_goes_on_and_lies_in_a_second_place(tmp_path, monkeypatch) -> None:
    import kdsearch.networks.teachers as teachers

    real, path = teachers.write_bytes, tmp_path / "run" / "teacher.safetensors"
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    room = [tmp_path]

    def full(place: Path, content: bytes) -> None:
        if place.parent.parent not in room or place.parent == path.parent:
            raise KdsearchError(f"cannot write {place}: No space left on device")
        real(place, content)

    monkeypatch.setattr(teachers, "write_bytes", full)
    with pytest.warns(UserWarning, match=r"is kept as .*kdsearch-.*, not as .*: cannot write .*No space left"):
        network = kd.Recipe(Tied, finish).load(path)
    assert network.told == {"epochs": 1}
    (found,) = tmp_path.glob("kdsearch-*/teacher.safetensors")
    found.rename(path)
    assert torch.equal(kd.Recipe(Tied, finish).load(path).a.weight, network.a.weight)
    path.unlink()
    room.clear()
    with pytest.warns(UserWarning, match="is not kept, and the next search trains it again"):
        assert kd.Recipe(Tied, finish).load(path).told == {"epochs": 1}


def test_of_two_that_want_the_same_teacher_one_trains_it(tmp_path: Path) -> None:
    trained, both = [], threading.Barrier(2)

    def train(network: nn.Module) -> None:
        trained.append(network)
        with suppress(threading.BrokenBarrierError):
            both.wait(timeout=0.3)

    recipe, got = kd.Recipe(Tied, train), []
    threads = [threading.Thread(target=lambda: got.append(recipe.load(tmp_path / "t.safetensors"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(trained) == 1 and torch.equal(got[0].a.weight, got[1].a.weight)


PHASE = kd.Phase((kd.losses.kd(),), epochs=2, steps=2, batch=8, policy_steps=kd.PolicySteps(interval=1, warm_up=0))
TASK = kd.Classification.of(10)


class Draws(nn.Module):
    """A student that draws from all three global generators while it learns."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.drawn = kd.networks.small_convnet(2), []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.drawn.append((torch.rand(()).item(), np.random.rand(), random.random()))  # noqa: NPY002
        return self.inner(images)


def distiller(student: nn.Module | None = None) -> kd.Distiller:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        teacher, mine = kd.networks.Teacher(kd.networks.small_convnet(4)), student or Draws()
    return kd.Distiller(teacher, mine, kd.Policy(["rotate", "invert"], 1), TASK, seed=3, clean_loss=2.3)


def digits(first: int, last: int) -> kd.data.ArrayData:
    return kd.data.digits()[0].subset(torch.arange(first, last))


def drawn(made: kd.Distiller) -> list[Any]:
    found = list(made.student.drawn)
    made.student.drawn.clear()
    return found


def test_a_second_run_goes_on_with_the_randomness_of_the_first_and_its_state_too(monkeypatch) -> None:
    import kdsearch.distill.distiller as distill

    places, real = [], distill.shuffle_places

    def spied(*given: Any) -> Any:
        places.append(real(*given))
        return places[-1]

    monkeypatch.setattr(distill, "shuffle_places", spied)
    made, train, validation = distiller(), digits(0, 30), digits(30, 60)
    runs = []
    for _ in range(2):
        records = list(made.run(PHASE, train, validation))
        runs.append((drawn(made), list(places), [record.epoch for record in records]))
        places.clear()
    (first, batches, epochs), (second, others, again) = runs
    assert not {*first} & {*second} and not any(places in others for places in batches)
    assert epochs == again == [1, 2]
    one = replace(PHASE, epochs=4)
    whole = distiller()
    list(whole.run(one, train, validation))
    assert drawn(whole) == first + second  # epochs are counted over a Distiller's life
    halfway = distiller()
    list(halfway.run(PHASE, train, validation))
    going = halfway.run(PHASE, train, validation)
    next(going)
    drawn(halfway)
    state, rest = halfway.state(), list(going)
    resumed = distiller()
    assert [record.value for record in resumed.run(PHASE, train, validation, state=state)] == [r.value for r in rest]
    assert drawn(resumed) == drawn(halfway)
    list(halfway.run(PHASE, train, validation))
    list(resumed.run(PHASE, train, validation))
    assert drawn(resumed) == drawn(halfway)  # a third run as well


def test_a_state_of_an_older_version_is_refused_in_words() -> None:
    made = distiller()
    next(made.run(PHASE, digits(0, 30), digits(30, 60)))
    state = {name: value for name, value in made.state().items() if name != "before"}
    with pytest.raises(KdsearchError, match="state: has no before; allowed"):
        next(distiller().run(PHASE, digits(0, 30), digits(30, 60), state=state))


def streams() -> tuple[float, float, float]:
    return torch.rand(()).item(), np.random.rand(), random.random()  # noqa: NPY002


def seeded() -> None:
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)


def test_the_callers_global_generators_are_its_own_between_the_epochs_and_after_a_run(few, tmp_path) -> None:
    seeded()
    expected = [streams() for _ in range(4)]
    seeded()
    found = [streams()]
    found += [streams() for _ in distiller().run(PHASE, digits(0, 30), digits(30, 60))]
    assert found == expected[:3]
    seeded()
    with suppress(KdsearchError):  # the teacher knows nothing, which is said after it has been trained
        kd.search(
            replace(few, teacher=kd.Recipe(lambda: kd.networks.small_convnet(2), finish)),
            out=tmp_path / "run",
            quiet=True,
        )
    assert streams() == expected[0]


def test_a_range_of_no_width_has_no_derivative_and_a_policy_that_is_not_finite_diverges() -> None:
    policy = kd.Policy(["solarize"], 1)
    draw = policy.draw(4, torch.Generator().manual_seed(0))
    sample = Sample(draw, torch.ones(4), lambda other, rows: torch.full((len(rows),), 2.0))
    low = torch.full((4, 1), 0.25, dtype=torch.float64)
    for high, wanted in ((low, 0.0), (low + 0.5, 2.0)):
        derivatives = endpoint(sample, low, high, draw.gates)
        assert torch.equal(derivatives[1], torch.where(draw.gates, wanted, 0.0).double())
    made = distiller()
    with torch.no_grad():
        next(made.policy.parameters()).fill_(float("nan"))
    with pytest.raises(Diverged, match="epoch 1: "):
        next(made.run(PHASE, digits(0, 30), digits(30, 60)))


def test_a_new_winner_is_confirmed_beside_the_references_that_do_not_depend_on_it(tiny_study, tmp_path, monkeypatch):
    import kdsearch.study.confirmation as confirmation

    ran: list[str] = []

    def run(ready: Any, folder: None, *, on_record: Any, seed: int, **rest: Any) -> Any:
        ran.append(on_record.args[0].removeprefix("confirm "))
        return Outcome(0.5 + seed % 7 / 100, 0.01, 1.0)

    monkeypatch.setattr(confirmation, "run_trial", run)
    monkeypatch.setattr(confirmation, "_measure", lambda *_: ({"value": 0.5}, {"value": torch.ones(4)}))
    monkeypatch.setattr(confirmation.Policy, "from_spec", lambda spec: None)
    space = kd.SearchSpace.load("default")
    ready: Any = Ready(tiny_study, TASK, None, space, None, None, 1)  # type: ignore[arg-type]
    runs = list(confirmation.confirmed_runs(ready))
    for winner, again in ((0, runs), (1, ["learned", "frozen", "start"]), (1, [])):
        ran.clear()
        list(confirmation.confirm(ready, tmp_path, winner, space.settings(), None, lambda run, record: None))
        assert ran == again * 2
        told = json.loads((tmp_path / "confirmation.json").read_text())
        assert told["winner"] == winner and [row["run"] for row in told["rows"]] == runs * 2


def test_the_checkpoint_of_a_trial_that_ended_is_not_left_by_an_interruption(few, tmp_path, monkeypatch) -> None:
    def ended(self: object, event: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("kdsearch.commands.search._Search._ended", ended)
        with pytest.raises(KeyboardInterrupt):
            kd.search(few, out=tmp_path, quiet=True)
    assert [*tmp_path.rglob("*.pt")]
    kd.search(few, out=tmp_path, quiet=True)
    assert not [*tmp_path.rglob("*.pt")]
