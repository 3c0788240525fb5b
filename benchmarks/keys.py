"""What it costs to know a data set by its pixels: `image_keys`, beside blake2b of each image's bytes.

Run:  python benchmarks/keys.py [--images 50000] [--side 32] [--json FILE]      (10 seconds on one core)
"""

import argparse
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from kdsearch.study.fingerprint import image_keys

BATCH, ROUNDS = 256, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    images = torch.rand(arguments.images, 3, arguments.side, arguments.side)
    ways: dict[str, Callable[[Tensor], object]] = {"image_keys": image_keys, "blake2b of each image": hashes}
    seconds = {name: min(spent(way, images) for _ in range(ROUNDS)) for name, way in ways.items()}
    rows = [
        {"way": name, "cpu_seconds": value, "ratio": value / seconds["image_keys"]} for name, value in seconds.items()
    ]
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    table = Table("way", "CPU seconds", "ratio", box=None)
    for name, value in seconds.items():
        table.add_row(name, f"{value:.2f}", f"{value / seconds['image_keys']:.2f}")
    console = Console(width=100, highlight=False)
    console.print(f"{len(images)} float32 images of 3x{arguments.side}x{arguments.side}, one thread, best of {ROUNDS}")
    console.print(table)


def hashes(images: Tensor) -> list[bytes]:
    return [hashlib.blake2b(image.numpy().tobytes(), digest_size=8).digest() for image in images]


def spent(way: Callable[[Tensor], object], images: Tensor) -> float:
    start = time.process_time()
    for batch in images.split(BATCH):
        way(batch)
    return time.process_time() - start


if __name__ == "__main__":
    main()
