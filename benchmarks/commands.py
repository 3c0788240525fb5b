"""What the commands take on a run folder of many trials: processor time, wall time, memory.

A tiny study on digits is searched for four trials; their folders and rows are copied until there are as many as asked
for, in a temporary folder. Each command runs in a forked process of its own, with everything imported beforehand, so
that imports are not counted.

Run:  python benchmarks/commands.py [--trials 1000] [--json FILE]      (2 minutes on one core)
"""

import argparse
import contextlib
import copy
import io
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import torch
from common import digits_teacher, kept
from rich.console import Console
from rich.table import Table

import kdsearch as kd
import kdsearch.analysis.report
import kdsearch.commands.search
from kdsearch.commands import cli
from kdsearch.study.hpo.storage import NAME, database_url, open_storage

REAL = 4  # trials that are trained
TARGETS = {"status": 1.0, "frames": 2.0, "report": 4.0, "search": 4.0}  # CPU seconds at 1,000 trials
SPACE = """
[policy]
learning_rate = { low = 0.03, high = 0.3, log = true, default = 0.1 }
prior_strength = { low = 0.1, high = 1.0, log = true, default = 0.3 }
operations_per_image = 2
interval = { low = 2, high = 4, default = 3 }
[operations.rotate]
[operations.translate_x]
[operations.brightness]
[operations.noise]
[operations.invert]
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # a forked process has no other threads
    with tempfile.TemporaryDirectory() as folder:
        rows = kept(measured(Path(folder), arguments.trials), arguments.json)
    table = Table("command", "CPU, s", "wall, s", "most memory, MB", "target, CPU s", box=None)
    for row in rows:
        numbers = [f"{row[name]:.1f}" for name in ("cpu_seconds", "wall_seconds")]
        table.add_row(row["command"], *numbers, f"{row['max_rss_mb']:.0f}", f"{row['target_cpu_seconds']:g}")
    console = Console(width=120, highlight=False)
    console.print(f"{arguments.trials} trials; the targets are for 1,000")
    console.print(table)


def measured(place: Path, trials: int) -> Iterator[dict[str, Any]]:
    """One row a command, on a run folder made in `place`."""
    run = place / "run"
    teacher = digits_teacher("plain", 0)
    in_child(lambda: search(teacher, place, run, REAL))
    multiply(run, trials)
    commands: dict[str, Callable[[], None]] = {
        "status": lambda: command("status", run),
        "frames": lambda: command("frames", run, "-o", place / "frames"),
        "report": lambda: command("report", run),
        "search": lambda: search(teacher, place, run, trials + 1),
    }
    for name, run_it in commands.items():
        row = {"command": name, "trials": trials, **in_child(run_it)}
        yield row | {"target_cpu_seconds": TARGETS[name]}


def search(teacher: torch.nn.Module, place: Path, run: Path, trials: int) -> None:
    """The tiny study; a second call goes on."""
    space = place / "few.toml"
    space.write_text(SPACE, encoding="utf-8")
    train, validation, _ = kd.data.digits()
    study = kd.Study(
        name="commands",
        train=train.subset(torch.arange(100)),
        search_validation=validation.subset(torch.arange(120)),
        teacher=teacher,
        student=lambda: kd.networks.small_convnet(2),
        classes=[f"digit {i}" for i in range(10)],
        teacher_saw="train",
        space=str(space),
        budget=kd.Budget(trials=trials, epochs=3, steps=8, batch=32, confirmation=1),
    )
    kd.search(study, out=run, quiet=True)


def multiply(run: Path, trials: int) -> None:
    """Copies of the trials of a run folder, with values of their own, until there are `trials`."""
    study = optuna.load_study(study_name=NAME, storage=open_storage(database_url(run)))
    known = study.get_trials()
    for number in range(len(known), trials):
        trial = copy.deepcopy(known[number % len(known)])
        trial.user_attrs |= {"index": number}
        if trial.value is not None:
            trial.value -= 1e-4 * number
        study.add_trial(trial)
        shutil.copytree(run / "trials" / f"{number % len(known):04d}", run / "trials" / f"{number:04d}")


def command(*arguments: object) -> None:
    """A command as it is typed, its output thrown away."""
    sys.argv = ["kdsearch", *map(str, arguments)]
    with contextlib.redirect_stdout(io.StringIO()):
        cli.main()


def in_child(action: Callable[[], None]) -> dict[str, float]:
    """What an action takes in a process of its own; what goes wrong there ends this one too."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with contextlib.suppress(SystemExit):
                start, before = time.perf_counter(), time.process_time()
                try:
                    action()
                finally:
                    cpu, wall = time.process_time() - before, time.perf_counter() - start
            rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            os.write(write, json.dumps({"cpu_seconds": cpu, "wall_seconds": wall, "max_rss_mb": rss}).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read) as answer:
        text = answer.read()
    if os.waitpid(child, 0)[1] or not text:
        raise SystemExit("a command failed; see above")
    return json.loads(text)


if __name__ == "__main__":
    main()
