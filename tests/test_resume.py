"""Killed at any moment, a run goes on as if it had never ended."""

import contextlib
import io
import json
import math
import multiprocessing
import os
import random
import signal
import time
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from optuna.storages import RDBStorage
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import kdsearch as kd
from kdsearch.core.errors import Diverged
from kdsearch.distill.checkpoint import Checkpoint
from kdsearch.distill.records import EpochRecord
from kdsearch.probe.evaluation import TeacherMeasurement
from kdsearch.study.hpo import Trial, open_search, run_trials
from kdsearch.study.ready import Ready
from kdsearch.study.run import run_name, run_trial
from kdsearch.study.study import Study

TASK = kd.Classification.of(10)
SMALL = kd.Budget(trials=2, epochs=6, steps=4, batch=16, confirmation=1)
FORK = multiprocessing.get_context("forkserver")  # a child that has torch already starts in a moment


def network(width: int) -> nn.Module:
    """With dropout, whose randomness has to be found again."""
    body = kd.networks.small_convnet(width)
    for module in body:
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.5  # a few steps have to teach it something
    return nn.Sequential(*body[:9], nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Dropout(0.2), nn.Linear(64 * width, 10))


def own_teacher() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return kd.networks.small_convnet(8)


@cache
def knowing_teacher() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return taught()


def taught() -> nn.Module:
    net = kd.networks.small_convnet(8)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for batch in kd.data.shuffled(kd.data.digits()[0], 64, 40, 0):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(batch.images), batch.target).backward()
        optimizer.step()
    return net


def alike() -> nn.Module:
    """A student that starts from the same weights whatever the seed, as one with weights from a file."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        return network(2)


def data(first: int, last: int) -> kd.data.ArrayData:
    return kd.data.digits()[0].subset(torch.arange(first, last))


def study(**changes: Any) -> Study:
    made = Study(
        name="killed",
        train=data(0, 60),
        search_validation=data(60, 120),
        teacher=own_teacher(),
        student=alike,
        optimizer=partial(torch.optim.AdamW, lr=2e-2),
        classes=10,
        budget=SMALL,
    )
    return replace(made, **changes)


def ready() -> Ready:
    """Without a look at anything."""
    made = study()
    return Ready(
        made,
        TASK,
        kd.networks.Teacher(made.teacher),
        kd.SearchSpace.load("default"),
        TeacherMeasurement(0.9, 0.01, 2.0, 0.1),
        None,
        1,
    )  # type: ignore[arg-type]


SPACE = """
[policy]
learning_rate = { low = 0.03, high = 0.3, log = true, default = 0.1 }
prior_strength = 0.3
operations_per_image = 2
interval = { low = 2, high = 4, default = 3 }
[operations.rotate]
[operations.translate_x]
[operations.invert]
"""
KINDS = {
    "policy steps": kd.PolicySteps(interval=2, floor=0.0),
    "phases": kd.PolicySteps(pauses=(0.2, 0.6), floor=0.0),
    "a policy that stays": None,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("after", [1, 2, 5, 6])
def test_a_state_goes_through_a_file_and_the_run_goes_on_bit_for_bit(kind: str, after: int) -> None:
    losses = (kd.losses.dkd(), kd.losses.hint("0"))  # a ramp, and a projection
    phase = kd.Phase(losses, epochs=6, steps=4, batch=16, policy_steps=KINDS[kind])

    def begun() -> kd.Distiller:
        torch.manual_seed(7)
        policy = kd.Policy(["rotate", "brightness", "solarize", "noise"], 2)
        return kd.Distiller(kd.networks.Teacher(knowing_teacher()), network(2), policy, TASK, seed=5)

    whole = begun()
    expected = list(whole.run(phase, data(0, 60), data(60, 120)))
    first = begun()
    run, kept = first.run(phase, data(0, 60), data(60, 120)), io.BytesIO()
    records = [next(run) for _ in range(after)]
    torch.save(first.state(), kept)
    kept.seek(0)
    torch.manual_seed(99)
    second = begun()
    records += second.run(phase, data(0, 60), data(60, 120), state=torch.load(kept, weights_only=True))
    for part in ("student", "policy", "projections"):
        for name, value in getattr(whole, part).state_dict().items():
            assert torch.equal(value, getattr(second, part).state_dict()[name]), name
    assert second.dual == whole.dual and (whole.dual > 0) == (phase.policy_steps is not None)
    for mine, wanted in zip(records, expected, strict=True):
        a, b = ({k: v for k, v in asdict(record).items() if k != "seconds"} for record in (mine, wanted))
        assert repr(a) == repr(b)  # NaN is not itself


def trained(folder: str) -> None:
    """In a child process: one run with its checkpoint; the student is kept at the end."""
    torch.set_num_threads(1)
    made, told = ready(), Path(folder) / "told"

    def on_record(record: EpochRecord) -> None:
        with told.open("a") as lines:
            lines.write(f"{record.epoch}\n")

    settings = made.space.settings()
    (Path(folder) / "begun").touch()
    outcome = run_trial(
        made,
        None,
        policy=made.policy(settings),
        policy_steps=made.policy_steps(settings),
        seed=11,
        checkpoint=Path(folder) / "checkpoint.pt",
        on_record=on_record,
    )
    save_file(outcome.student.state_dict(), Path(folder) / "student.safetensors")


def child(target: Any, folder: Path) -> Any:
    folder.mkdir(exist_ok=True)
    FORK.set_forkserver_preload(["kdsearch.study.run", "kdsearch.commands.search"])
    process = FORK.Process(target=target, args=(str(folder),))
    process.start()
    return process


def until(seen: Any) -> None:
    end = time.monotonic() + 120
    while not seen():
        assert time.monotonic() < end, "nothing came"
        time.sleep(0.002)


def kill(process: Any) -> bool:
    """SIGKILL; was it still at work?"""
    alive = process.is_alive()
    os.kill(process.pid, signal.SIGKILL) if alive else None
    process.join()
    return alive and process.exitcode == -signal.SIGKILL


def same(a: Path, b: Path) -> bool:
    one, other = load_file(a), load_file(b)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_killed_at_ten_random_moments_of_a_run_the_student_comes_out_bit_for_bit(tmp_path: Path) -> None:
    whole = child(trained, tmp_path / "whole")
    until((tmp_path / "whole" / "begun").exists)
    start = time.monotonic()
    whole.join()
    length = time.monotonic() - start
    assert whole.exitcode == 0
    moments, killed, resumed = random.Random(0), 0, []
    for i in range(10):
        folder = tmp_path / str(i)
        first = child(trained, folder)
        until((folder / "begun").exists)
        time.sleep(moments.random() * length)
        killed += kill(first)
        second = child(trained, folder)
        second.join()
        assert second.exitcode == 0
        assert same(folder / "student.safetensors", tmp_path / "whole" / "student.safetensors")
        resumed.append((folder / "told").read_text().split())
    assert killed >= 3
    assert sum(len(epochs) > SMALL.epochs for epochs in resumed) >= 2  # told again from a checkpoint


def searched(folder: str) -> None:
    torch.set_num_threads(1)
    space = Path(folder) / "few.toml"
    space.write_text(SPACE)
    easy = study(teacher=knowing_teacher(), space=str(space))
    kd.search(easy, out=Path(folder) / "run", pruner="none", quiet=True)


def test_a_search_killed_in_reference_trial_and_confirmation_ends_as_one_that_was_not(tmp_path: Path) -> None:
    whole = child(searched, tmp_path / "whole")
    whole.join()
    assert whole.exitcode == 0
    run = tmp_path / "killed" / "run"

    def epochs(path: str) -> int:
        file = run / path / "epochs.jsonl"
        return len(file.read_text().splitlines()) if file.is_file() else 0

    def confirmed() -> int:
        file = run / "confirmation.json"
        return len(json.loads(file.read_text())["rows"]) if file.is_file() else 0

    stages = [
        lambda: epochs("references/trivial") >= 2,
        lambda: epochs("trials/0000") >= 2,
        lambda: epochs("trials/0001") >= 4,  # the retry
        lambda: confirmed() >= 2 and (run / "checkpoint.pt").exists(),
    ]
    for reached in stages:
        process = child(searched, tmp_path / "killed")
        until(reached)
        assert kill(process)
    last = child(searched, tmp_path / "killed")
    last.join()
    assert last.exitcode == 0
    mine, wanted = (kd.frames(folder) for folder in (run, tmp_path / "whole" / "run"))
    trials = mine["trials"].query("origin != 'reference'")
    assert trials["state"].tolist() == ["FAIL", "FAIL", "COMPLETE", "COMPLETE"]
    assert trials["fail_reason"].fillna("").tolist() == ["interrupted", "interrupted", "", ""]
    assert trials["retry_of"].fillna(-1).tolist() == [-1, 0, 1, -1]
    assert trials["origin"].tolist() == ["default"] * 3 + ["sampled"]
    plain = wanted["trials"].query("origin != 'reference'")
    assert trials["value"].tolist()[2:] == plain["value"].tolist() and trials["seed"].tolist()[2:] == [*plain["seed"]]
    for old, new in ((0, 2), (1, 3)):
        files = (folder / "trials" / f"{n:04d}" for folder, n in ((tmp_path / "whole" / "run", old), (run, new)))
        assert same(*(file / "student.safetensors" for file in files))
        values = (t["params"].query(f"trial == {n}")["value"].tolist() for t, n in ((wanted, old), (mine, new)))
        assert next(values) == next(values)
        curves = (t["epochs"].query(f"trial == {n}")["accuracy"].tolist() for t, n in ((wanted, old), (mine, new)))
        assert next(curves) == next(curves)
    assert mine["evaluations"]["value"].tolist() == wanted["evaluations"]["value"].tolist()
    assert not list(run.rglob("*.pt")) and not list(run.rglob("*.partial"))


def outcome_of(folder: Path, **changes: Any) -> tuple[dict[str, Tensor], list[int]]:
    told: list[int] = []
    made = replace(ready(), study=study(**changes))
    outcome = run_trial(
        made, None, policy=None, seed=1, checkpoint=folder / "c.pt", on_record=lambda r: told.append(r.epoch)
    )
    return outcome.student.state_dict(), told


def test_a_checkpoint_of_another_run_or_half_of_one_is_not_gone_on_from(tmp_path: Path) -> None:
    fresh, told = outcome_of(tmp_path)
    assert told == [1, 2, 3, 4, 5, 6]

    def stop(record: EpochRecord) -> None:
        if record.epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_trial(ready(), None, policy=None, seed=2, checkpoint=tmp_path / "c.pt", on_record=stop)
    assert (tmp_path / "c.pt").exists()
    (tmp_path / "c.pt.partial").write_bytes(b"half")
    again, told = outcome_of(tmp_path)  # seed 1, and the file is of seed 2, though each student starts alike
    assert all(torch.equal(value, again[name]) for name, value in fresh.items()) and told == [1, 2, 3, 4, 5, 6]
    (tmp_path / "c.pt").write_bytes(b"torn")
    with pytest.warns(UserWarning, match=r"c\.pt cannot be read as a checkpoint .* kept as c\.pt\.unreadable; the run"):
        again, told = outcome_of(tmp_path)
    assert all(torch.equal(value, again[name]) for name, value in fresh.items()) and told == [1, 2, 3, 4, 5, 6]
    assert (tmp_path / "c.pt.unreadable").read_bytes() == b"torn"
    torch.save({"run": math.inf, "state": Path("x")}, tmp_path / "c.pt")
    with pytest.warns(UserWarning, match=r"c\.pt cannot be read as a checkpoint"):
        assert Checkpoint.load(tmp_path / "c.pt", "x") is None


def test_a_finished_run_whose_outcome_was_lost_trains_nothing_again(tmp_path: Path, monkeypatch) -> None:
    fresh, _ = outcome_of(tmp_path)
    monkeypatch.setattr(kd.Distiller, "student_step", None)
    again, told = outcome_of(tmp_path)
    assert all(torch.equal(value, again[name]) for name, value in fresh.items()) and told == [1, 2, 3, 4, 5, 6]


class Remembers(nn.Module):
    """A student with a buffer that is no part of its state, and a rate as NumPy gives it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network(2)
        self.register_buffer("seen", torch.zeros(()), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.seen += 0.01
        return self.inner(images) * (1 + self.seen)


def test_buffers_beside_the_state_and_numbers_of_numpy_are_kept(tmp_path: Path) -> None:
    def stop(record: EpochRecord) -> None:
        if record.epoch == 3:
            raise KeyboardInterrupt

    changes = {"student": Remembers, "optimizer": partial(torch.optim.SGD, lr=np.float64(0.05))}
    made = replace(ready(), study=study(**changes))
    expected, _ = outcome_of(tmp_path, **changes)
    (tmp_path / "c.pt").unlink()
    with pytest.raises(KeyboardInterrupt):
        run_trial(made, None, policy=None, seed=1, checkpoint=tmp_path / "c.pt", on_record=stop)
    again, told = outcome_of(tmp_path, **changes)
    assert all(torch.equal(value, again[name]) for name, value in expected.items()) and told == [1, 2, 3, 4, 5, 6]


def test_runs_that_differ_in_policy_or_optimiser_have_checkpoints_of_their_own() -> None:
    made = ready()
    policies = [kd.Policy(["rotate", "invert"], n) for n in (1, 2)]
    rates = [partial(torch.optim.SGD, lr=rate) for rate in (0.1, 0.2)]
    transforms = [kd.FixedTransform(change) for change in (lambda image: image, lambda image: image // 2)]
    runs = {
        run_name(made, made.phase(None), kd.Distiller(made.teacher, alike(), policy, TASK, optimizer=optimizer))
        for policy, optimizer in [*((p, rates[0]) for p in (*policies, *transforms)), (policies[0], rates[1])]
    }
    assert len(runs) == 5


def test_a_run_that_ends_by_an_error_leaves_no_checkpoint(tmp_path: Path) -> None:
    def explode(record: EpochRecord) -> None:
        raise Diverged("there")

    with pytest.raises(Diverged):
        run_trial(ready(), None, policy=None, checkpoint=tmp_path / "c.pt", on_record=explode)
    assert list(tmp_path.iterdir()) == []


class Killed(BaseException):
    """Stands for a SIGKILL: nothing is tidied up after it."""


@pytest.fixture
def order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs three trials that train nothing, dying before the given write to the database: what each trial was."""
    space = tmp_path / "few.toml"
    space.write_text(SPACE)
    loaded = kd.SearchSpace.load(str(space))

    def searched(name: str, dies_before: int | None) -> list[tuple[Any, ...]]:
        writes = iter(range(10**6))
        seen: list[tuple[Any, ...]] = []

        def run(trial: Trial, report: Any) -> float:
            seen.append((trial.settings.learning_rate, trial.settings.interval, trial.seed))
            return trial.settings.learning_rate

        def search() -> list[tuple[Any, ...]]:
            url = f"sqlite:///{tmp_path / name}.db"
            opened = open_search(url, {}, {}, sampler="random", pruner="none", epochs=1)
            run_trials(
                opened, loaded, run, target=3, seed=5, paired=False, sampler="random", on_trial=lambda event: None
            )
            rows = [t for t in opened.get_trials() if t.state.name == "COMPLETE"]
            return sorted(
                (t.user_attrs["index"], t.user_attrs["origin"], t.user_attrs["seed"], *t.params.values()) for t in rows
            )

        real = {name: getattr(RDBStorage, name) for name in WRITES}

        def dying(name: str) -> Any:
            def write(*arguments: Any, **settings: Any) -> Any:
                nonlocal alive
                alive = alive and next(writes) != dies_before
                if not alive:
                    raise Killed
                return real[name](*arguments, **settings)

            return write

        alive = True
        with monkeypatch.context() as patch:
            for write in WRITES:
                patch.setattr(RDBStorage, write, dying(write))
            with contextlib.suppress(Killed, UnboundLocalError):  # the second comes out of Optuna's tidying up
                result = search()
        if not alive:
            result = search()
        searched.writes = next(writes)
        return result

    return searched


WRITES = ("_create_new_trial", "set_trial_param", "set_trial_user_attr", "set_trial_system_attr",
          "set_trial_state_values", "set_trial_intermediate_value")  # fmt: skip


def test_whatever_write_a_search_dies_before_its_trials_are_those_of_one_that_lived(order: Any) -> None:
    expected = order("whole", None)
    assert [row[:2] for row in expected] == [(0, "default"), (1, "sampled"), (2, "sampled")]
    assert order.writes >= 15
    for moment in range(order.writes):
        assert order(f"died {moment}", moment) == expected, moment
