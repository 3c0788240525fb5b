"""How many images a second are augmented, by kdsearch and by its peers, in one run.

    python benchmarks/augment.py [--json FILE] [--device cuda] [--threads 2] [--repeats 30]

Every row begins with a uint8 batch (B, C, H, W), that of albumentations (B, H, W, C), and ends with one float batch in
[0, 1]: 2 operations per image, always applied, magnitudes uniform from 0 to the default limits, bilinear. Rows are
interleaved; 5 rounds to warm up. Peers live in `benchmarks/peers.py`.
"""

import argparse
import ctypes
import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import peers
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import kdsearch as kd

AUTOAUGMENT = (  # the operations that all peers have: those of AutoAugment
    "shear_x", "shear_y", "rotate", "translate_x", "translate_y", "brightness", "contrast", "saturation",
    "autocontrast", "equalize", "solarize", "posterize", "invert", "sharpness",
)  # fmt: skip
SIZES = ((256, 32), (32, 224))
PER_IMAGE = 2
WARM_UP = 5


def photographs(count: int, side: int) -> Tensor:
    """Crops of scikit-learn's two sample photographs: (count, 3, side, side) uint8."""
    from sklearn.datasets import load_sample_images

    whole = torch.stack([torch.from_numpy(picture.copy()) for picture in load_sample_images().images]).movedim(-1, 1)
    places = torch.Generator().manual_seed(0)
    y = torch.randint(whole.shape[2] - side + 1, (count,), generator=places).tolist()
    x = torch.randint(whole.shape[3] - side + 1, (count,), generator=places).tolist()
    return torch.stack([whole[i % 2, :, y[i] : y[i] + side, x[i] : x[i] + side] for i in range(count)])


def always(operations: tuple[str, ...]) -> kd.Policy:
    """Each drawn operation applied, magnitudes uniform from 0 to the limit; the parameters can be learned."""
    policy = kd.Policy(operations, PER_IMAGE, extent=1 - 1e-9)
    with torch.no_grad():
        policy.logit.fill_(50.0)
        policy.b.fill_(-50.0)
    return policy


def ours(operations: tuple[str, ...]) -> dict[str, tuple[Callable[[Tensor], Tensor], str]]:
    """Name -> (function of a uint8 batch, what is random)."""
    policy = always(operations)

    def fast(images: Tensor) -> Tensor:
        with torch.no_grad():
            return kd.operations.apply(policy.draw(len(images)), images).images

    def forward(images: Tensor) -> Tensor:
        draw = policy.draw(len(images))
        return kd.operations.apply(draw, images, policy.magnitudes(draw)).images

    def backward(images: Tensor) -> Tensor:
        out = forward(images)
        out.square().mean().backward()
        return out.detach()

    every = "all, per image"
    return {
        "kdsearch": (fast, every),
        "kdsearch, forward with gradient": (forward, every),
        "kdsearch, forward and backward": (backward, every),
    }


def measure(
    rows: dict[str, tuple[Callable, str]], inputs: dict[str, object], device: str, repeats: int
) -> dict[str, tuple[list[float], float]]:
    """Seconds of each repeat, and the largest peak of memory in MB, by row; the rows take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    peak = {}
    for turn in range(WARM_UP + repeats):
        for name, (function, _) in rows.items():
            images = inputs["albumentations" if name == "albumentations" else "batch"]
            if turn == WARM_UP - 1:  # once, apart from the clock
                before = memory(device, reset=True)
                function(images)
                peak[name] = memory(device, reset=False) - before
                continue
            start = time.perf_counter()
            function(images)
            if device != "cpu":
                torch.cuda.synchronize()
            if turn >= WARM_UP:
                seconds[name].append(time.perf_counter() - start)
    return {name: (seconds[name], peak[name]) for name in rows}


def memory(device: str, *, reset: bool) -> float:
    """MB in use now (with `reset`, which also forgets the peak), or at the peak since; NaN where it is not known."""
    if device != "cpu":
        if reset:
            torch.cuda.reset_peak_memory_stats()
            return torch.cuda.memory_allocated() / 1e6
        return torch.cuda.max_memory_allocated() / 1e6
    try:
        if reset:
            ctypes.CDLL("libc.so.6").malloc_trim(0)  # what is free goes back, so that using it again counts
            Path("/proc/self/clear_refs").write_text("5")
        field = "VmRSS" if reset else "VmHWM"
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(float(line.split()[1]) / 1e3 for line in lines if line.startswith(field))
    except OSError:
        return float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=30)
    arguments = parser.parse_args()
    device = arguments.device
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    random.seed(0)
    rows = []
    for count, side in SIZES:
        images = photographs(count, side)
        inputs = {"batch": images.to(device), "albumentations": list(images.movedim(1, -1).contiguous().numpy())}
        for operations in (AUTOAUGMENT, tuple(kd.operations.TABLE)):
            functions = {**ours(operations), **peers.rows(operations, PER_IMAGE, device)}
            found = measure(functions, inputs, device, arguments.repeats)
            reference = statistics.median(found["kdsearch"][0])
            for name, (seconds, peak) in found.items():
                low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
                rows.append(
                    {
                        "name": name,
                        "size": f"{count}x3x{side}x{side}",
                        "operations": len(operations),
                        "images_per_second": count / middle,
                        "low": count / high,
                        "high": count / low,
                        "ours_over_it": middle / reference,
                        "peak_mb": peak,
                        "random": functions[name][1],
                        "device": device,
                    }
                )
    show(rows, device, arguments.threads)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


def show(rows: list[dict], device: str, threads: int) -> None:
    where = torch.cuda.get_device_name() if device != "cpu" else f"{platform.machine()}, {threads} threads"
    table = Table(box=None, title=f"{where}; torch {torch.__version__}; median (quartiles)", title_justify="left")
    for column in ("size", "operations", "row", "images/s", "kdsearch / it", "peak MB", "what is random"):
        table.add_column(column, justify="left" if column in ("row", "what is random", "size") else "right")
    for row in rows:
        table.add_row(
            row["size"],
            str(row["operations"]),
            row["name"],
            f"{row['images_per_second']:,.0f} ({row['low']:,.0f} to {row['high']:,.0f})",
            f"{row['ours_over_it']:.2f}",
            f"{row['peak_mb']:.0f}",
            row["random"],
        )
    Console(width=175, highlight=False).print(table)


if __name__ == "__main__":
    main()
