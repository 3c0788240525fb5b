"""Adapters to data sets: map-style ones with (image, label) items, seeded batches, the embedded digits."""

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
from kdsearch.values import Batch

Place = tuple[int, int]  # of an item: its position, and the seed of what is random in it


class MapStyle(Sized, Protocol):
    """What torch calls a map-style data set; items are (image, label)."""

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class ArrayData:
    """A data set in memory: images (N, C, H, W), float in [0, 1] or uint8, and labels (N,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])

    def subset(self, index: Tensor) -> "ArrayData":
        return ArrayData(self.images[index], self.labels[index])


@dataclass(frozen=True)
class _Refused:
    """Why an item is none; it takes the item's place on the way from a worker."""

    reason: str


class _Items:
    """A user's data set as (tensor image, label, position), in worker processes too.

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

    def __getitems__(self, places: Sequence[Place]) -> list[tuple[Tensor, int, int] | _Refused]:
        """What a DataLoader calls for a whole batch."""
        with own_generators():
            return [self._item(index, seed) for index, seed in places]

    def _item(self, index: int, seed: int) -> tuple[Tensor, int, int] | _Refused:
        try:
            seed_generators(seed)
            image, label = self.items[index]
            if not isinstance(image, Tensor):
                pixels = np.array(image)  # of a PIL image or an array, (H, W) or (H, W, C)
                image = torch.from_numpy(pixels if pixels.ndim == 3 else pixels[..., None]).movedim(-1, 0)
            return image, int(label), index
        except KdsearchError as error:
            return _Refused(f"item {index} of {type(self.items).__name__}: {error}")
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where = f"({Path(frame.filename).name}, line {frame.lineno})"
            return _Refused(f"item {index} of {type(self.items).__name__}: {type(error).__name__}: {error} {where}")


def _joined(items: list[tuple[Tensor, int, int] | _Refused]) -> tuple[Tensor, Tensor, Tensor] | _Refused:
    """A batch of items, or why it is none."""
    images: list[Tensor] = []
    labels, ids = [], []
    for item in items:
        if isinstance(item, _Refused):
            return item
        image, label, index = item
        if images and image.shape != images[0].shape:
            found = f"an image of {tuple(image.shape)} after one of {tuple(images[0].shape)}"
            return _Refused(f"item {index}: {found}; images of a data set have one shape")
        images.append(image)
        labels.append(label)
        ids.append(index)
    batch = _batch(torch.stack(images), torch.tensor(labels), torch.tensor(ids))
    return batch.images, batch.target, batch.ids


def _batch(images: Tensor, labels: Tensor, ids: Tensor) -> Batch:
    images = images / 255 if images.dtype == torch.uint8 else images.to(torch.get_default_dtype())
    return Batch(images, labels.long(), ids)


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
    """

    def __init__(self, items: MapStyle, workers: int) -> None:
        if workers < 1:
            raise KdsearchError(f"workers is {workers}; allowed: 0 or more")
        self.items, self.workers = items, workers
        self._idle: list[tuple[_Order, DataLoader[Any]]] = []

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]

    def read(self, batches: list[list[Place]]) -> Iterator[Any]:
        """The batches of these places, or why one is none."""
        order, loader = self._idle.pop() if self._idle else _loader(self.items, self.workers)
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


def spawned(data: MapStyle, workers: int) -> MapStyle:
    """The data set as `workers` processes read it; with none, and where it is in memory, as it is.

    Raises:
        KdsearchError: fewer than 0 workers; when read, a data set that cannot be sent to them.
    """
    return data if workers == 0 or isinstance(data, ArrayData | Spawned) else Spawned(data, workers)


def _loader(items: MapStyle, workers: int) -> tuple[_Order, DataLoader[Any]]:
    order = _Order()
    loader: DataLoader[Any] = DataLoader(
        _Items(StudyFile(), items),  # type: ignore[arg-type]
        batch_sampler=order,
        num_workers=workers,
        collate_fn=_joined,
        pin_memory=torch.cuda.is_available(),
        multiprocessing_context="spawn" if workers else None,
        persistent_workers=workers > 0,
        generator=generator("workers"),
    )
    return order, loader


def load(data: MapStyle, places: list[list[Place]]) -> Iterator[Batch]:
    """The batches of given places; arrays are indexed at once, other data sets through a DataLoader.

    Raises:
        KdsearchError: while reading, an item that is none, named, or workers that do not start.
    """
    if isinstance(data, ArrayData):
        for batch in places:
            ids = torch.tensor([index for index, _ in batch])
            yield _batch(data.images[ids], data.labels[ids], ids)
        return
    if isinstance(data, Spawned):
        batches = data.read(places)
    else:
        own, loader = _loader(data, 0)
        own.batches = places
        batches = iter(loader)
    for found in batches:
        if isinstance(found, _Refused):
            raise KdsearchError(found.reason)
        yield Batch(*found)


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


def first(data: MapStyle, size: int) -> Batch:
    """The first items, at most `size`, as `in_order` gives them.

    Raises:
        KdsearchError: no items, or one that is none, named.
    """
    if len(data) < 1:
        raise KdsearchError("the data set is empty")
    return next(load(data, _seeded([list(range(min(size, len(data))))])))


def in_order(data: MapStyle, size: int) -> Iterator[Batch]:
    """Every item once, in the order of the data set, the same each time also where items are random."""
    positions = list(range(len(data)))
    order = [positions[i : i + size] for i in range(0, len(positions), size)]
    return load(data, _seeded(order))


def shuffled(data: MapStyle, size: int, steps: int, *seed: int | str) -> Iterator[Batch]:
    """`steps` full batches: whole permutations of the data set, one after another, fixed by `seed`.

    Raises:
        KdsearchError: no items; and while reading, an item that is none, named, or workers that do not start.
    """
    return load(data, drawn(data, size, steps, *seed))


def drawn(data: MapStyle, size: int, steps: int, *seed: int | str) -> list[list[Place]]:
    """The places of the batches that `shuffled` gives."""
    if len(data) < 1:
        raise KdsearchError("train: the data set is empty")
    random = generator("batches", *seed)
    stream: list[int] = []
    order = []
    for _ in range(steps):
        while len(stream) < size:
            stream += torch.randperm(len(data), generator=random).tolist()
        order.append(stream[:size])
        stream = stream[size:]
    return _seeded(order, *seed)


def _seeded(order: list[list[int]], *seed: int | str) -> list[list[Place]]:
    """Positions with a seed for each."""
    random = generator("items", *seed)
    seeds = [torch.randint(2**32, (len(index),), generator=random).tolist() for index in order]
    return [list(zip(*pair, strict=True)) for pair in zip(order, seeds, strict=True)]


def digits() -> tuple[ArrayData, ArrayData, ArrayData]:
    """scikit-learn's handwritten digits as 1x16x16 in [0, 1]: 797 for training, 500 for search-validation, 500 test.

    A fixed random split of the 1,797 images. 8x8 images of 17 gray levels, made larger bilinearly.

    Reference:
        Alpaydin and Kaynak, Optical recognition of handwritten digits, UCI, 1998
    """
    from sklearn.datasets import load_digits

    loaded = load_digits()
    images = torch.from_numpy(loaded.images).float()[:, None] / 16
    images = torch.nn.functional.interpolate(images, scale_factor=2, mode="bilinear", align_corners=False)
    data = ArrayData(images, torch.from_numpy(loaded.target).long())
    order = torch.randperm(len(data), generator=generator("digits split"))
    return data.subset(order[1000:]), data.subset(order[500:1000]), data.subset(order[:500])
