"""Batches of a data set: arrays in memory and map-style ones with (image, target) items; the embedded digits."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset

from kdsearch.core.errors import KdsearchError
from kdsearch.core.html import html_paragraph, html_pictures
from kdsearch.core.maths import generator
from kdsearch.core.memory import available_bytes
from kdsearch.core.terminal import number_of
from kdsearch.core.values import Batch, to_device
from kdsearch.data.items import MapStyle, Place, Raw, Spawned, array_tensor, length, plain_tensor, read_items

IN_ROW = 8  # pictures of a data set in a notebook


@dataclass(frozen=True)
class ArrayData:
    """A data set in memory: images (N, C, H, W), float in [0, 1] or uint8, and labels (N,) or others (N, ...)."""

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        """NumPy arrays become tensors, of images also (N, H, W) and (N, H, W, C)."""
        images, labels = (
            array_tensor(part, f"ArrayData: {name}") if isinstance(part, np.ndarray) else part
            for part, name in ((self.images, "images"), (self.labels, "labels"))
        )
        for part, name in ((images, "images"), (labels, "labels")):
            if not isinstance(part, Tensor):
                raise KdsearchError(f"ArrayData: {name} is a {type(part).__name__}; allowed: a tensor or a NumPy array")
            sparse = part.is_nested or part.layout is not torch.strided
            if sparse or part.is_complex() or part.ndim == 0:
                kind = f"{part.dtype} nested" if part.is_nested else f"{part.dtype} {tuple(part.shape)} {part.layout}"
                raise KdsearchError(f"ArrayData: {name} is {kind}; allowed: a dense tensor with a row per image")
        if len(images) != len(labels):
            raise KdsearchError(f"ArrayData: {len(labels)} labels for {len(images)} images; needed: one each")
        if isinstance(self.images, np.ndarray) or images.dtype in (torch.uint16, torch.bool):
            images = plain_tensor(images, "ArrayData: images")
        if isinstance(self.images, np.ndarray) and images.ndim == 4 and images.shape[1] not in (1, 3):
            images = images.movedim(-1, 1)
        if isinstance(self.images, np.ndarray) and images.ndim == 3:
            images = images[:, None]
        object.__setattr__(self, "images", images.detach() if images.requires_grad else images)
        object.__setattr__(self, "labels", labels.detach() if labels.requires_grad else labels)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.images.shape[1:]))
        return f"ArrayData({number_of(len(self), 'image')}, {shape} {str(self.images.dtype).removeprefix('torch.')})"

    def _repr_html_(self) -> str:
        return html_paragraph(self) + picture_row(self)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]

    def subset(self, index: Tensor) -> "ArrayData":
        return ArrayData(self.images[index], self.labels[index])

    def to(self, device: torch.device | str) -> "ArrayData":
        return ArrayData(self.images.to(device), self.labels.to(device))


def take_items(data: MapStyle, index: Tensor) -> MapStyle:
    """The items at these places, (N,) int64, as a data set of the same kind or torch's `Subset`."""
    return data.subset(index) if isinstance(data, ArrayData) else Subset(data, index.tolist())  # type: ignore[arg-type]


def place_data(data: MapStyle, *, readers: int = 0, device: str = "cpu") -> MapStyle:
    """A data set where it is read fastest: in the device's memory, read by reader processes, or as it is.

    Arrays go to the device where they take at most a quarter of what it has left, uint8 as uint8; otherwise a batch of
    them is an index into the host's memory, without readers.

    Raises:
        KdsearchError: fewer than 0 readers; when read, a data set that cannot be sent to them.
    """
    if isinstance(data, ArrayData):
        room = available_bytes(device)
        needed = 4 * (data.images.nbytes + data.labels.nbytes)
        here = torch.device(device).type == "cpu" or room is None or needed > room
        return data if here else data.to(device)
    pinned = torch.device(device).type == "cuda"
    return data if readers == 0 or isinstance(data, Spawned) else Spawned(data, readers, pinned=pinned)


def load_batches(data: MapStyle, places: list[list[Place]], device: torch.device | str = "cpu") -> Iterator[Batch]:
    """The batches of given places, on a device; arrays are indexed at once, other data sets through a DataLoader.

    Images travel as they are kept, uint8 as uint8, and become float there.

    Raises:
        KdsearchError: while reading, an item that is none, named, or readers that do not start.
    """
    for raw in _indexed(data, places, device) if isinstance(data, ArrayData) else read_items(data, places):
        images, target = (to_device(part, device) for part in raw[:2])
        if images.dtype == torch.uint8:  # by a tensor: CUDA multiplies by 1 / 255 otherwise, which is another last bit
            images = images / torch.full((), 255.0, device=images.device)
        images = images.to(torch.get_default_dtype())
        target = target if target.is_floating_point() else target.long()
        yield Batch(images, target, raw[2])


def _indexed(data: ArrayData, places: list[list[Place]], device: torch.device | str) -> Iterator[Raw]:
    if data.images.is_meta and torch.device(device).type != "meta":
        raise KdsearchError("its images are on the meta device, which holds no numbers; allowed: cpu, cuda")
    for batch in places:
        ids = torch.tensor([position for position, _ in batch])
        index = to_device(ids, data.images.device)
        yield data.images[index], data.labels[index], ids


def first_batch(data: MapStyle, size: int, device: torch.device | str = "cpu") -> Batch:
    """The first items, at most `size`, as `batches_in_order` gives them.

    Raises:
        KdsearchError: no items, or one that is none, named.
    """
    if length(data) < 1:
        raise KdsearchError("the data set is empty")
    return next(load_batches(data, _seeded(_ordered(min(size, length(data)), size)), device))


def varied_batch(data: MapStyle, size: int, among: int = 32) -> Batch:
    """A few items, always the same ones: of as many classes as there are, by class, then others.

    Classes are told apart over the whole data set where it knows its labels (as `labels` or `targets`), otherwise over
    a random part of it.

    Args:
        among: How many are read where labels are not known.
    """
    order = torch.randperm(len(data), generator=generator("varied")).tolist()
    known = known_labels(data)
    if known is None:
        order = order[:among]
        target = next(load_batches(data, _seeded([order]))).target
        labels = dict(zip(order, target.tolist() if target.ndim == 1 else order, strict=True))
    else:
        labels = {position: known[position] for position in order}
    firsts: dict[object, int] = {}
    for position in order:
        if len(firsts) == size:
            break
        firsts.setdefault(labels[position], position)
    others = (position for position in order if position not in firsts.values())
    chosen = [*firsts.values(), *islice(others, size - len(firsts))]
    return next(load_batches(data, _seeded([sorted(chosen, key=lambda position: (labels[position], position))])))


def known_labels(data: Any) -> Sequence[int] | None:
    """The labels that a data set knows without reading its items; None where it knows none, or no plain ones."""
    if isinstance(data, Spawned):
        return known_labels(data.items)
    if isinstance(data, Subset):
        whole = known_labels(data.dataset)
        if whole is None or any(not -len(whole) <= i < len(whole) for i in data.indices):  # reading it tells of those
            return None
        return [whole[i] for i in data.indices]
    for attribute in ("labels", "targets"):  # as of ArrayData and ImageFolder, and as of torchvision's
        try:
            found = getattr(data, attribute, None)
        except Exception:  # a user's property
            continue
        if isinstance(found, Tensor | np.ndarray):
            found = found.tolist()
        if isinstance(found, list | tuple) and len(found) == len(data) and all(type(label) is int for label in found):
            return found
    return None


def picture_row(data: MapStyle, names: Sequence[str] = ()) -> str:
    """A few items as pictures in HTML, with their labels; nothing where they are no pictures or cannot be read.

    Args:
        names: Of the classes.
    """
    if not len(data):
        return ""
    try:
        batch = varied_batch(data, IN_ROW)
    except KdsearchError:
        return ""
    images, labels = batch.images, batch.target.tolist()
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.numel():
        return ""
    plain = batch.target.ndim == 1
    return html_pictures(images, [(names[label] if names else label) if plain else "" for label in labels])


def batches_in_order(data: MapStyle, size: int, device: torch.device | str = "cpu") -> Iterator[Batch]:
    """Every item once, in the order of the data set, the same each time also where items are random."""
    return load_batches(data, _seeded(_ordered(length(data), size)), device)


def batches_at(data: MapStyle, index: list[int], size: int, device: torch.device | str = "cpu") -> Iterator[Batch]:
    """The items of these positions, in batches, the same each time also where items are random."""
    return load_batches(data, _seeded([index[i : i + size] for i in range(0, len(index), size)]), device)


def augments_itself(data: MapStyle, index: list[int], size: int = 64) -> bool:
    """Do the items of these positions differ under two different seeds, as those that are augmented when read do?"""
    if isinstance(data, ArrayData):
        return False
    order = [index[i : i + size] for i in range(0, len(index), size)]
    twice = zip(_seeded(order), _seeded(order, "again"), strict=True)
    batches = load_batches(data, [places for pair in twice for places in pair])
    pairs = zip(batches, batches, strict=True)
    return not all(_alike(a.images, b.images) and _alike(a.target, b.target) for a, b in pairs)


def _alike(one: Tensor, other: Tensor) -> bool:
    """NaN, as in targets that are filled up to one size, is like NaN."""
    same = one.shape == other.shape and one.dtype == other.dtype
    return same and torch.allclose(one, other, rtol=0.0, atol=0.0, equal_nan=True)


def _ordered(count: int, size: int) -> list[list[int]]:
    return [list(range(i, min(i + size, count))) for i in range(0, count, size)]


def shuffled(
    data: MapStyle, size: int, steps: int, *seed: int | str, device: torch.device | str = "cpu"
) -> Iterator[Batch]:
    """`steps` full batches: whole permutations of the data set, one after another, fixed by `seed`.

    Raises:
        KdsearchError: no items; and while reading, an item that is none, named, or readers that do not start.
    """
    return load_batches(data, shuffle_places(data, size, steps, *seed), device)


def shuffle_places(data: MapStyle, size: int, steps: int, *seed: int | str) -> list[list[Place]]:
    """The places of the batches that `shuffled` gives."""
    if length(data) < 1:
        raise KdsearchError("train: the data set is empty")
    random = generator("batches", *seed)
    stream: list[int] = []
    order = []
    for _ in range(steps):
        while len(stream) < size:
            stream += torch.randperm(length(data), generator=random).tolist()
        order.append(stream[:size])
        stream = stream[size:]
    return _seeded(order, *seed)


def _seeded(order: list[list[int]], *seed: int | str) -> list[list[Place]]:
    """Positions with a seed for each."""
    random = generator("items", *seed)
    seeds = [torch.randint(2**32, (len(index),), generator=random).tolist() for index in order]
    return [list(zip(*pair, strict=True)) for pair in zip(order, seeds, strict=True)]


def in_memory(data: MapStyle) -> ArrayData:
    """A map-style data set read once, as arrays; images that are uint8 or PIL stay uint8.

    For data sets that fit: 50,000 images of 32x32 take 150 MB. What is random in an item is drawn this once.

    Raises:
        KdsearchError: no items, or one that is none, named.
    """
    if isinstance(data, ArrayData):
        return data
    if length(data) < 1:
        raise KdsearchError("the data set is empty")
    images, labels, _ = next(read_items(data, _seeded(_ordered(length(data), length(data)))))
    return ArrayData(images, labels)


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
