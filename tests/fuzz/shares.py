"""How many inputs each target gets: in `make test`, derandomised, and in `make fuzz`, at random."""

import os
from collections.abc import Callable, Mapping
from typing import Any

from hypothesis import HealthCheck, Phase, settings

FULL = os.environ.get("KDSEARCH_FUZZ") == "1"
SHARES: Mapping[str, tuple[int, int]] = {  # in `make test`, in `make fuzz`
    "policy files": (80, 2400),
    "policies": (20, 600),
    "space files": (90, 2200),
    "weights": (60, 1400),
    "checkpoints": (15, 300),
    "arrays": (65, 1400),
    "image folders": (30, 500),
    "run folders": (40, 400),
    "study fields": (30, 200),
    "preflights": (20, 100),
    "study files": (10, 100),
    "arguments": (30, 300),
    "places": (10, 100),
}


def inputs(target: str) -> Callable[[Any], Any]:
    """The settings of a target's test."""
    return settings(
        max_examples=SHARES[target][FULL],
        derandomize=not FULL,
        database=None,
        deadline=None,  # the law counts CPU
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )
