"""Adapters to data sets: map-style ones with (image, label) items, seeded batches, the embedded digits."""

import pickle
import traceback
import warnings
from collections.abc import Iterator, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms.v2.functional import pil_to_tensor

from kdsearch.errors import KdsearchError
from kdsearch.loading import StudyFile
from kdsearch.maths import generator
from kdsearch.values import Batch


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
    """A user's data set as (tensor image, label, position), in worker processes too."""

    def __init__(self, study_file: StudyFile, items: MapStyle) -> None:
        self.study_file = study_file  # before the items: unpickled first, it makes their classes known
        self.items = items

    def __reduce__(self) -> tuple[object, ...]:
        return _Items, (self.study_file, self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int] | _Refused:
        try:
            image, label = self.items[index]
            if not isinstance(image, Tensor):
                is_array = isinstance(image, np.ndarray)
                image = torch.from_numpy(image.copy()).movedim(-1, 0) if is_array else pil_to_tensor(image)
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


def _load(data: MapStyle, order: list[list[int]], workers: int, random: torch.Generator) -> Iterator[Batch]:
    """The batches of given positions; arrays are indexed at once, other data sets through a DataLoader."""
    if isinstance(data, ArrayData):
        for index in order:
            ids = torch.tensor(index)
            yield _batch(data.images[ids], data.labels[ids], ids)
        return
    loader: DataLoader[Any] = DataLoader(
        _Items(StudyFile(), data),  # type: ignore[arg-type]
        batch_sampler=order,
        num_workers=workers,
        collate_fn=_joined,
        pin_memory=torch.cuda.is_available(),
        multiprocessing_context="spawn" if workers else None,
        generator=random,
    )
    for found in _started(loader, type(data).__name__):
        if isinstance(found, _Refused):
            raise KdsearchError(found.reason)
        yield Batch(*found)


def _started(loader: DataLoader[Any], kind: str) -> Iterator[Any]:
    """What a loader gives; where its workers do not start or end too early, one error."""
    if not loader.num_workers:
        yield from loader
        return
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


def in_order(data: MapStyle, size: int, *, workers: int = 0) -> Iterator[Batch]:
    """Every item once, in the order of the data set; `workers` as for `shuffled`."""
    _check_workers(workers)
    positions = list(range(len(data)))
    order = [positions[i : i + size] for i in range(0, len(positions), size)]
    return _load(data, order, workers, generator("workers"))


def shuffled(data: MapStyle, size: int, steps: int, *seed: int | str, workers: int = 0) -> Iterator[Batch]:
    """`steps` full batches: whole permutations of the data set, one after another, fixed by `seed`.

    Args:
        workers: Processes that read items, spawned for this call and seeded by `seed`; with 0 they are read in this
            process. Arrays in memory need none.

    Raises:
        KdsearchError: no items; and while reading, an item that is none, named, or workers that do not start.
    """
    _check_workers(workers)
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
    return _load(data, order, workers, generator("workers", *seed))


def _check_workers(workers: int) -> None:
    if workers < 0:
        raise KdsearchError(f"workers is {workers}; allowed: 0 or more")


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
