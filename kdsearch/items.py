"""A map-style data set read item by item, in this process or by workers."""

import pickle
import traceback
import warnings
from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from kdsearch.errors import KdsearchError
from kdsearch.loading import StudyFile
from kdsearch.maths import generator, own_generators, seed_generators

Place = tuple[int, int]  # of an item: its position, and the seed of what is random in it
Item = tuple[Tensor, Tensor, int]  # image, target, position
Raw = tuple[Tensor, Tensor, Tensor]  # of a batch: images as they came, targets, positions


class MapStyle(Sized, Protocol):
    """What torch calls a map-style data set; items are (image, target)."""

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class _Refused:
    """Why an item is none; it takes the item's place on the way from a worker."""

    reason: str


class _Items:
    """A user's data set as (tensor image, target, position), in worker processes too.

    What is random in an item comes from a seed of its own, so that it depends neither on who reads it nor on what was
    read before.
    """

    def __init__(self, study_file: StudyFile, items: MapStyle) -> None:
        self.study_file = study_file  # before the items: unpickled first, it makes their classes known
        self.items = items

    def __reduce__(self) -> tuple[object, ...]:
        return _Items, (self.study_file, self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitems__(self, places: Sequence[Place]) -> list[Item | _Refused]:
        """What a DataLoader calls for a whole batch."""
        with own_generators():
            return [self._item(index, seed) for index, seed in places]

    def _item(self, index: int, seed: int) -> Item | _Refused:
        try:
            seed_generators(seed)
            image, target = self.items[index]
            if not isinstance(image, Tensor):
                pixels = np.array(image)  # of a PIL image or an array, (H, W) or (H, W, C)
                image = torch.from_numpy(pixels if pixels.ndim == 3 else pixels[..., None]).movedim(-1, 0)
            return image, _target(target), index
        except KdsearchError as error:
            return _Refused(f"item {index} of {type(self.items).__name__}: {error}")
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where = f"({Path(frame.filename).name}, line {frame.lineno})"
            return _Refused(f"item {index} of {type(self.items).__name__}: {type(error).__name__}: {error} {where}")


def _target(target: Any) -> Tensor:
    """A number, also in an array of one, an array or a PIL image of labels as a tensor."""
    found = target if isinstance(target, Tensor) else torch.as_tensor(np.array(target))
    found = found if found.is_floating_point() else found.long()
    return found[0] if found.shape == (1,) else found


def _unlike(what: str, part: Tensor, first: Tensor) -> str | None:
    """What keeps two items of a data set from lying in one tensor, in words."""
    if part.shape == first.shape and part.dtype == first.dtype:
        return None
    found, before = (tuple(t.shape) if part.shape != first.shape else t.dtype for t in (part, first))
    return f"a{'n' * (what == 'image')} {what} of {found} after one of {before}; {what}s of a data set are alike"


def _joined(items: list[Item | _Refused]) -> Raw | _Refused:
    """A batch of items, or why it is none."""
    given: list[Item] = []
    for item in items:
        if isinstance(item, _Refused):
            return item
        for part, first, what in zip(item[:2], (given[0] if given else item)[:2], ("image", "target"), strict=True):
            if found := _unlike(what, part, first):
                return _Refused(f"item {item[2]}: {found}")
        given.append(item)
    images, targets, positions = zip(*given, strict=True)
    return torch.stack(images), torch.stack(targets), torch.tensor(positions)


class _Order:
    """A batch sampler that is told its batches."""

    def __init__(self) -> None:
        self.batches: list[list[Place]] = []

    def __iter__(self) -> Iterator[list[Place]]:
        return iter(self.batches)


class Spawned:
    """A map-style data set that worker processes read: spawned when first needed, kept as long as this lives.

    The batches are those that this process would read: what is random in an item depends on the item and the epoch
    alone. Each stream of batches that is open at one time has workers of its own.

    Args:
        items: Any map-style data set that can be pickled; its class may be defined in a study file.
        workers: Processes, 1 or more.
        pinned: Leave batches in pinned memory, for a GPU.
    """

    def __init__(self, items: MapStyle, workers: int, *, pinned: bool = False) -> None:
        if workers < 1:
            raise KdsearchError(f"workers is {workers}; allowed: 0 or more")
        self.items, self.workers, self.pinned = items, workers, pinned
        self._idle: list[tuple[_Order, DataLoader[Any]]] = []

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]

    def read(self, batches: list[list[Place]]) -> Iterator[Any]:
        """The batches of these places, or why one is none."""
        order, loader = self._idle.pop() if self._idle else _loader(self.items, self.workers, self.pinned)
        order.batches = batches
        alive = True
        try:
            yield from _started(loader, type(self.items).__name__)
        except KdsearchError:
            alive = False
            raise
        finally:  # also of a stream that is left early
            if alive:
                self._idle.append((order, loader))


def _loader(items: MapStyle, workers: int = 0, pinned: bool = False) -> tuple[_Order, DataLoader[Any]]:
    order = _Order()
    loader: DataLoader[Any] = DataLoader(
        _Items(StudyFile(), items),  # type: ignore[arg-type]
        batch_sampler=order,
        num_workers=workers,
        collate_fn=_joined,
        pin_memory=pinned,
        multiprocessing_context="spawn" if workers else None,
        persistent_workers=workers > 0,
        generator=generator("workers"),
    )
    return order, loader


def read(data: MapStyle, places: list[list[Place]]) -> Iterator[Raw]:
    """The batches of given places, as their items came, through a DataLoader: here, or by the workers of a `Spawned`.

    Raises:
        KdsearchError: an item that is none, named, or workers that do not start.
    """
    if isinstance(data, Spawned):
        batches = data.read(places)
    else:
        own, loader = _loader(data)
        own.batches = places
        batches = iter(loader)
    for found in batches:
        if isinstance(found, _Refused):
            raise KdsearchError(found.reason)
        yield found


def _started(loader: DataLoader[Any], kind: str) -> Iterator[Any]:
    """What a loader with workers gives; where they do not start or end too early, one error."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Got pickle error")  # it is said below
            batches = iter(loader)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        cure = "define its class, and the functions it holds, at the top of a module or of the study file"
        raise KdsearchError(f"{kind}: cannot be sent to worker processes: {error}; {cure}, or take workers=0") from None
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            cure = "what a worker said stands above; a script that is run itself needs `if __name__ == '__main__':`"
            raise KdsearchError(f"{kind}: data loading ended: {error}; {cure}, or take workers=0") from None
        yield batch
