"""How much memory a step needs, before it is taken with a batch that does not fit."""

import weakref
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GIB = 2**30
LARGE = 13  # images of the larger measured batch; with LARGE - 2 it has no factor in common
POWERS = (0, 1, 2, 3)  # of the batch, that the size of a tensor may grow with
CUBED = 2**24  # numbers of a tensor that grows with the cube: a loss with more of them takes parts of a batch
CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Fit:
    """What a batch needs, and which one fits."""

    needed: int  # bytes
    largest: int  # images, at most as many as asked for; 0 where not even 2 fit


class _Storages(TorchDispatchMode):
    """Follows what operations allocate, until nothing holds it any longer: forward, backward, optimiser, any device."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}  # bytes
        self.changes: list[int] = []  # bytes, negative where freed

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        there = {id(storage) for storage in _storages((args, kwargs))}
        result = func(*args, **kwargs)
        for storage in _storages(result):
            if id(storage) not in there and id(storage) not in self.alive:
                self.alive[id(storage)] = size = storage.nbytes()
                self.changes.append(size)
                weakref.finalize(storage, self._freed, id(storage)).atexit = False
        return result

    def _freed(self, key: int) -> None:
        self.changes.append(-self.alive.pop(key))

    def measure(self, step: Callable[[], object]) -> list[int]:
        """The bytes alive from earlier runs, and the changes while `step` runs."""
        self.changes = [sum(self.alive.values())]
        with self, torch.jit.optimized_execution(False):  # optimised, TorchScript calls operations with numbers here
            step()
        return list(self.changes)


def _storages(tree: Any) -> Iterator[torch.UntypedStorage]:
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Tensor) and leaf.layout is torch.strided and not leaf.is_meta:
            yield leaf.untyped_storage()


def peak_bytes(step: Callable[[], object]) -> int:
    """The most bytes of new tensors that are alive at once while `step` runs, on all devices together.

    What was there before does not count. What an operation needs inside itself (workspaces of convolutions, padding of
    allocators) is not seen, and comes on top.

    >>> peak_bytes(lambda: torch.zeros(1000).exp().sum())  # float32: the zeros and their exponentials
    8000
    """
    return max(accumulate(_Storages().measure(step)))


def largest_batch(step: Callable[[int], object], batch: int, available: int) -> Fit:
    """Bytes that `step(batch)` needs, and the largest batch that fits, from runs with 11 and 13 images.

    The size of a tensor says what it is: the same in both runs, or growing with the batch, its square or cube. So every
    moment of the second run, which finds what stays from the first (gradients, the state of an optimiser), is
    extrapolated on its own, and the peak may move from the optimiser to the activations. A batch of up to 13 is run
    itself.

    Args:
        step: Runs with that many images, 2 or more; it is up to the caller that networks trained by it are copies.
        batch: Images, 2 or more.
        available: Bytes, before the first run.
    """
    large = min(batch, LARGE)
    small = max(2, large - 2)
    storages = _Storages()
    known = set(storages.measure(lambda: step(small))[1:])
    before, *changes = storages.measure(lambda: step(large))
    powers = [0, *(_power(abs(size), known, small, large) for size in changes)]
    moments = np.zeros((len(powers), len(POWERS)))
    moments[range(len(powers)), powers] = before, *changes
    moments = moments.cumsum(0)  # bytes alive by power of the batch

    def needed(images: int) -> int:
        growth = (images / large) ** np.array(POWERS)
        growth[3] = min(growth[3], CUBED / large**3)
        return round((moments @ growth).max())

    fitting = bisect_right(range(2, batch + 1), available, key=needed)
    return Fit(needed(batch), fitting + 1 if fitting else 0)


def _power(size: int, known: set[int], small: int, large: int) -> int:
    """Of the batch, that a tensor of `size` bytes at the larger batch grows with, if a smaller one is known."""
    return next((p for p in POWERS if not size * small**p % large**p and size * small**p // large**p in known), 1)


def available_bytes(device: str) -> int | None:
    """Memory that new tensors on a device can have, in bytes; None where it is not known.

    On CUDA what the driver has and what torch's allocator holds unused; on the CPU the machine's, or what the control
    group (version 2) of this process leaves.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if kind == "cpu":
        return min([psutil.virtual_memory().available, *_left_by_groups(CGROUPS, Path("/proc/self/cgroup"))])
    return None


def _left_by_groups(root: Path, own: Path) -> list[int]:
    """Bytes left in each limited control group around a process; file cache counts as left, it would be given up."""
    lines = own.read_text().splitlines() if own.is_file() else []
    path = next((line.removeprefix("0::/") for line in lines if line.startswith("0::")), "")
    left = []
    for group in (root / path, *(root / path).parents):
        if not (group / "memory.max").is_file() or (most := (group / "memory.max").read_text().strip()) == "max":
            continue
        used = int((group / "memory.current").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        left.append(max(0, int(most) - used + int(stat.get("inactive_file", 0))))
    return left
