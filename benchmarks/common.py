"""What the benchmarks that train students share: options, the digits study made ready, rows, intervals."""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from scipy import stats
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR

import kdsearch as kd
from kdsearch.study.preflight import Findings, preflight
from kdsearch.study.ready import Ready
from kdsearch.study.study import Study, load_study


def options(doc: str | None, *, seeds: int) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(doc or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--json", type=Path)
    return parser


def made_ready(study: Study | None = None) -> Ready:
    """A study, the shipped digits unless given, checked and with its teacher trained."""
    return find_costs(study or load_study("digits")[0]).ready


def find_costs(study: Study) -> Findings:
    """What the preflight says of a study: made ready, and the seconds of its runs."""
    with tempfile.TemporaryDirectory() as folder:
        return preflight(study, Path(folder), device=study.device)


def accuracy(ready: Ready, network: torch.nn.Module | None) -> float:
    """On the test images, in percent."""
    assert network is not None and ready.study.test is not None
    return 100 * kd.evaluate(network, ready.study.test, ready.task, 256, ready.device).value


def digits_teacher(
    name: str, seed: int, augment: Callable[[torch.Tensor], torch.Tensor] | None = None
) -> torch.nn.Module:
    """The study's teacher and its 600 steps of 64 of the 797 training images, but augmented as given, or not at all."""
    torch.manual_seed(seed)
    network = kd.networks.small_convnet(24)
    optimizer = AdamW(network.parameters(), weight_decay=1e-2)
    schedule = OneCycleLR(optimizer, 6e-3, total_steps=600)
    for batch in kd.data.shuffled(kd.data.digits()[0], 64, 600, name, seed):
        images = augment(batch.images) if augment else batch.images
        loss = torch.nn.functional.cross_entropy(network(images), batch.target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def interval(values: Sequence[float], digits: int = 2) -> str:
    """The mean with its 95 % t interval, which one value has not."""
    found = torch.tensor(values, dtype=torch.float64)
    if len(found) == 1:
        return f"{found.item():+.{digits}f}"
    half = stats.t.ppf(0.975, len(found) - 1) * found.std() / len(found) ** 0.5
    mean, low, high = (f"{v:+.{digits}f}" for v in (found.mean(), found.mean() - half, found.mean() + half))
    return f"{mean} ({low} to {high})"


def read_rows(file: Path | None) -> list[dict]:
    """The rows of a file, a line of JSON each; none where there is no file yet."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file and file.exists() else []


def options_of_rows(
    doc: str | None, names: Callable[[str], list[str]], *, seeds: tuple[int, int], rows: Sequence[str], minus: str
) -> argparse.ArgumentParser:
    """Of benchmarks whose rows are named, and go on where their file ends.

    Args:
        names: The names after commas, checked.
        minus: The rows that are subtracted, after commas.
    """
    parser = argparse.ArgumentParser(description=(doc or "").split("\n")[0])
    parser.add_argument("--study", default="digits", help="a shipped study, or the path of one")
    parser.add_argument("--steps", type=int, help="of each student; the study's own unless given")
    parser.add_argument("--seeds", type=int, nargs=2, default=seeds, metavar=("FIRST", "COUNT"))
    parser.add_argument("--rows", type=names, default=list(rows), help="names after commas")
    parser.add_argument("--minus", type=lambda text: text.split(","), default=minus.split(","))
    parser.add_argument("--show", action="store_true", help="run nothing, print what the file has")
    parser.add_argument("--json", type=Path, help="a file of rows, which is gone on with")
    return parser


def rows_of(
    arguments: argparse.Namespace,
    study: str,
    steps: int,
    run: Callable[[Sequence[tuple[str, int]]], Iterator[dict]],
) -> list[dict]:
    """What is asked for of a study after so many steps: run, but for what the file has, or with `--show` read alone.

    Args:
        run: Gives the new rows of names and seeds, and adds them to the file.
    """
    first, count = arguments.seeds
    seeds, new = range(first, first + count), []
    if not arguments.show:
        new = list(run([(name, seed) for seed in seeds for name in arguments.rows]))
    rows = read_rows(arguments.json) or new
    return [row for row in rows if (row["study"], row["steps"]) == (study, steps) and row["seed"] in seeds]


def kept(rows: Iterator[dict], file: Path | None) -> list[dict]:
    """All rows, printed and written one by one, as they take long."""
    done = []
    for row in rows:
        done.append(row)
        print(row, flush=True)
        if file:
            file.write_text(json.dumps(done, indent=1) + "\n")
    return done
