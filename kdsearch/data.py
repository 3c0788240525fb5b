"""Adapters to data sets: anything map-style with (image, label) items, seeded batches, and the embedded digits."""

from collections.abc import Iterator, Sized
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms.v2.functional import pil_to_tensor

from kdsearch.errors import KdsearchError
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
class _Items:
    """A user's data set as (tensor image, label, position)."""

    items: MapStyle

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        image, label = self.items[index]
        if not isinstance(image, Tensor):
            is_array = isinstance(image, np.ndarray)
            image = torch.from_numpy(image.copy()).movedim(-1, 0) if is_array else pil_to_tensor(image)
        return image, int(label), index


def _batch(images: Tensor, labels: Tensor, ids: Tensor) -> Batch:
    images = images / 255 if images.dtype == torch.uint8 else images.to(torch.get_default_dtype())
    return Batch(images, labels.long(), ids)


def _load(data: MapStyle, order: list[list[int]]) -> Iterator[Batch]:
    """The batches of given positions; arrays are indexed at once, other data sets through a DataLoader."""
    if isinstance(data, ArrayData):
        for index in order:
            ids = torch.tensor(index)
            yield _batch(data.images[ids], data.labels[ids], ids)
        return
    for images, labels, ids in DataLoader(_Items(data), batch_sampler=order):  # type: ignore[arg-type]
        yield _batch(images, labels, ids)


def in_order(data: MapStyle, size: int) -> Iterator[Batch]:
    """Every item once, in the order of the data set."""
    positions = list(range(len(data)))
    return _load(data, [positions[i : i + size] for i in range(0, len(positions), size)])


def shuffled(data: MapStyle, size: int, steps: int, *seed: int | str) -> Iterator[Batch]:
    """`steps` full batches: whole permutations of the data set, one after another, fixed by `seed`."""
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
    return _load(data, order)


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
