"""Does a confirmation hold its level, and what does it see? Simulated from variance components; nothing is trained.

The difference of two runs on a seed and an image is the true one, plus what is common to a seed, plus what is common to
an image (a policy that suits some images better), plus the rest. Components in points, measured on digits over 10
seeds; "hard" has a policy that differs much between images.

    coverage     how often the 95 % interval holds the true difference, and its half width
    over seeds   the same of a t interval over seeds, which takes the images as all there are
    helps, tied  how often "helps" is said where one reference is as good as the policy, the others far below
    helps, +d    where two references are d points below: how often, and after how many seeds on average

Run:  python benchmarks/confirmation.py [--draws 4000] [--images 300] [--json FILE]      (2 minutes on one core)
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import stats

from kdsearch.core.crossed import crossed
from kdsearch.core.looks import decide, plan_looks


class Components(NamedTuple):
    """Standard deviations of a difference, points."""

    of_seeds: float
    of_images: float
    rest: float
    worth: float  # a difference that is worth finding


KINDS = {
    "accuracy": Components(0.43, 3.5, 16.0, 1.0),
    "inherited": Components(1.1, 2.5, 12.0, 2.4),
    "inherited, hard": Components(1.1, 10.0, 12.0, 2.4),
}
SEEDS = (3, 4, 10)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--draws", type=int, default=4000)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    random = np.random.default_rng(0)
    rows = [row(random, kind, seeds, arguments.images, arguments.draws) for kind in KINDS for seeds in SEEDS]
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    heads = (
        "of",
        "seeds",
        "coverage",
        "half width",
        "over seeds",
        "half width",
        "helps, tied",
        "helps, +d",
        "d",
        "seeds",
    )
    table = Table(*heads, box=None)
    for found in rows:
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) and abs(value) < 1 else f"{value:.3g}"
                        if isinstance(value, float) else str(value) for value in found.values()))  # fmt: skip
    console = Console(width=120, highlight=False)
    error = math.sqrt(0.025 * 0.975 / arguments.draws)
    console.print(f"{arguments.images} images, {arguments.draws} draws (error of .025: {error:.4f}); points")
    console.print(table)


def row(random: np.random.Generator, kind: str, seeds: int, images: int, draws: int) -> dict[str, str | int | float]:
    """One kind of difference, and one number of seeds."""
    parts, held, widths = KINDS[kind], np.zeros((draws, 2)), np.zeros((draws, 2))
    for i in range(draws):
        difference = draw(random, parts, seeds, images)
        low, high = crossed(difference).interval()
        means = difference.mean(1)
        half = stats.t.ppf(0.975, seeds - 1) * means.std(ddof=1) / math.sqrt(seeds)
        held[i] = low <= 0 <= high, abs(means.mean()) <= half
        widths[i] = (high - low) / 2, half
    tied, _ = share_of_helps(random, parts, seeds, images, (0.0,), draws)
    power, used = share_of_helps(random, parts, seeds, images, (parts.worth,) * 2, draws // 4)
    (coverage, over_seeds), (half, half_over_seeds) = held.mean(0).tolist(), widths.mean(0).tolist()
    return {
        "of": kind, "seeds": seeds, "coverage": coverage, "half width": half, "over seeds": over_seeds,
        "half width over seeds": half_over_seeds, "helps, tied": tied, "helps, +d": power, "d": parts.worth,
        "seeds used": used,
    }  # fmt: skip


def draw(random: np.random.Generator, parts: Components, seeds: int, images: int, true: float = 0.0) -> np.ndarray:
    """Differences, (seeds, images)."""
    of_seeds = parts.of_seeds * random.standard_normal((seeds, 1))
    of_images = parts.of_images * random.standard_normal((1, images))
    return true + of_seeds + of_images + parts.rest * random.standard_normal((seeds, images))


def share_of_helps(
    random: np.random.Generator, parts: Components, seeds: int, images: int, true: Sequence[float], draws: int
) -> tuple[float, float]:
    """How often a confirmation says "helps" against references that are so far below, and its seeds on average."""
    looks, helps, used = plan_looks(seeds), 0, 0
    for _ in range(draws):
        against = [draw(random, parts, seeds, images, difference) for difference in true]
        for look in looks:
            verdict = decide([crossed(differences[: look.seeds]) for differences in against], look, looks)
            if verdict != "undecided":
                break
        helps, used = helps + (verdict == "helps"), used + look.seeds
    return helps / draws, used / draws


if __name__ == "__main__":
    main()
