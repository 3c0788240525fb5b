"""A map-style data set read item by item, in this process or by readers, the workers of a DataLoader."""

import pickle
import warnings
from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from os import PathLike
from typing import Any, Protocol

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from kdsearch.core.errors import KdsearchError, describe_exception, user_call
from kdsearch.core.maths import generator, own_generators, seed_generators
from kdsearch.data.loading import StudyModule

Place = tuple[int, int]  # of an item: its position, and the seed of what is random in it
Item = tuple[Tensor, Tensor, int]  # image, target, position
Raw = tuple[Tensor, Tensor, Tensor]  # of a batch: images as they came, targets, positions


class MapStyle(Sized, Protocol):
    """What torch calls a map-style data set; items are (image, target)."""

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class _Refused:
    """Why an item is none; it takes the item's place on the way from a reader."""

    reason: str


class _Items:
    """A user's data set as (tensor image, target, position), in reader processes too.

    What is random in an item comes from a seed of its own, so that it depends neither on who reads it nor on what was
    read before.
    """

    def __init__(self, study_file: StudyModule, items: MapStyle) -> None:
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
        where = f"item {index} of {type(self.items).__name__}"
        try:
            seed_generators(seed)
            image, target = _parts(self.items[index])
            return image_tensor(image), _target(target), index
        except (KeyboardInterrupt, MemoryError):
            raise
        except KdsearchError as error:
            return _Refused(f"{where}: {error}")
        except BaseException as error:  # whatever a user's data set raises, `sys.exit()` in a reader too
            return _Refused(f"{where}: {describe_exception(error)}")


MOST_ITEMS = 10**8


def length(data: MapStyle) -> int:
    """How many items a data set has.

    Raises:
        KdsearchError: it is no map-style data set, or its `len()` fails.
    """
    items: Any = data.items if isinstance(data, Spawned) else data
    kind = type(items).__name__
    cure = ""
    if isinstance(items, torch.utils.data.DataLoader):
        cure = "; pass loader.dataset"
    elif isinstance(items, str | bytes | PathLike):
        cure = "; kdsearch.data.image_folder(path) reads a folder of images"
    elif not isinstance(items, IterableDataset | Mapping) and all(
        hasattr(type(items), method) for method in ("__len__", "__getitem__")
    ):
        with user_call(f"len() of {kind}"):
            count = len(items)
        if count > MOST_ITEMS:
            raise KdsearchError(f"len() of {kind} is {count:,}; allowed: up to {MOST_ITEMS:,} items, listed in memory")
        return count
    raise KdsearchError(f"a {kind} is no map-style data set: needed are len(data) and data[i] as (image, label){cure}")


IMAGES = ("image", "img", "pixel_values", "pixels")  # names of what an item may have
LABELS = ("label", "labels", "target", "fine_label")


def _parts(item: Any) -> tuple[Any, Any]:
    """Image and target of an item: a pair, or under their names in a dict or a named tuple.

    Raises:
        KdsearchError: neither.
    """
    pair = "allowed: (image, label)"
    names: Any = item if isinstance(item, Mapping) else getattr(item, "_fields", ())
    image, label = ([name for name in known if name in names] for known in (IMAGES, LABELS))
    if len(image) == len(label) == 1:
        return (
            (item[image[0]], item[label[0]])
            if isinstance(item, Mapping)
            else (getattr(item, image[0]), getattr(item, label[0]))
        )
    if isinstance(item, Mapping):
        there = ", ".join(str(name)[:30] for name in list(item)[:8]) or "nothing"
        named = f"a dict with one of {', '.join(IMAGES)} and one of {', '.join(LABELS)}"
        raise KdsearchError(f"it is a dict with {there}; {pair}, or {named}")
    if isinstance(item, Tensor | np.ndarray):
        raise KdsearchError(f"it is one array of shape {tuple(item.shape)}, without a label; {pair}")
    if not isinstance(item, tuple | list):
        raise KdsearchError(f"it is a {type(item).__name__}; {pair}")
    if len(item) != 2:
        kinds = ", ".join(type(part).__name__ for part in item[:8])
        raise KdsearchError(f"it has {len(item)} parts ({kinds}); {pair}")
    return item[0], item[1]


def image_tensor(image: Any) -> Tensor:
    """An image as (C, H, W), uint8 or floating: a tensor, an array (H, W), (H, W, C) or (C, H, W), or a PIL image.

    16 bits become 8, bits 0 and 255, palettes and other colours RGB.

    Raises:
        KdsearchError: anything else.
    """
    if isinstance(image, PIL.Image.Image):
        return picture_tensor(image)
    if isinstance(image, np.ndarray):
        image = array_tensor(image, "an image")
        if image.ndim == 3 and (image.shape[2] in (1, 3, 4) or image.shape[0] not in (1, 3, 4)):
            image = image.movedim(-1, 0)
    elif not isinstance(image, Tensor):
        allowed = "a tensor (C, H, W), a PIL image or a NumPy array"
        raise KdsearchError(f"its image is {_in_short(image)}; allowed: {allowed}")
    image = plain_tensor(image, "an image")
    return image[None] if image.ndim == 2 else image


def picture_tensor(image: PIL.Image.Image) -> Tensor:
    """A PIL image as (C, H, W) uint8; C is 1 for gray images, otherwise 3. What is transparent lies on black.

    Raises:
        KdsearchError: 32 bits a pixel, or colours that are not turned into RGB.
    """
    if image.mode in ("I", "F"):
        raise KdsearchError("an image of 32 bits a pixel; allowed: 8 or 16 bits a channel")
    if image.mode.startswith("I;16"):  # PIL would cut its values off at 255
        return torch.from_numpy((np.asarray(image) // 257).astype(np.uint8))[None]
    try:
        image = fill_transparency(image)
        pixels = np.array(image.convert("L" if image.mode in ("1", "L") else "RGB"))
    except ValueError as error:
        raise KdsearchError(f"a PIL image of mode {image.mode}: {error}; allowed: what turns into RGB") from None
    return torch.from_numpy(pixels if pixels.ndim == 3 else pixels[..., None]).movedim(-1, 0)


def fill_transparency(image: PIL.Image.Image) -> PIL.Image.Image:
    """The image on black where it is transparent: whatever colour a file keeps below is seen by nobody."""
    if image.mode[:1] in "IF" or not image.has_transparency_data:
        return image
    black = PIL.Image.new("RGBA", image.size, "black")
    filled = PIL.Image.alpha_composite(black, image.convert("RGBA"))
    return filled.convert("L" if image.mode in ("1", "L") else "RGB")


def array_tensor(array: "np.ndarray[Any, Any]", what: str) -> Tensor:
    """A NumPy array as a tensor, in any byte order and layout.

    Raises:
        KdsearchError: no numbers.
    """
    if array.dtype.kind not in "biuf":
        raise KdsearchError(f"{what} of {array.dtype}; allowed: numbers")
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    return torch.from_numpy(np.ascontiguousarray(array, array.dtype.newbyteorder("=")).reshape(array.shape))


def plain_tensor(images: Tensor, what: str) -> Tensor:
    """Images as uint8 or floating, without a gradient.

    Raises:
        KdsearchError: other integers, complex numbers, a sparse tensor, one on the meta device.
    """
    if images.layout is not torch.strided or images.is_meta or images.is_quantized:
        kind = "on the meta device" if images.is_meta else "quantized" if images.is_quantized else "sparse"
        raise KdsearchError(f"{what} that is {kind}; allowed: a dense tensor with its numbers")
    if images.dtype == torch.uint16:
        return images.to(torch.int32).floor_divide(257).to(torch.uint8)
    if images.dtype == torch.bool:
        return images.to(torch.uint8) * 255
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise KdsearchError(f"{what} of {images.dtype}; allowed: uint8, or floating in [0, 1]")
    return images.detach()


def _target(target: Any) -> Tensor:
    """A number, also in an array of one, an array or a PIL image of labels as a tensor.

    Raises:
        KdsearchError: no numbers.
    """
    allowed = "allowed: integers from 0 on, the positions in `classes`"
    if isinstance(target, Tensor):
        if target.layout is not torch.strided or target.is_meta or target.is_complex():
            raise KdsearchError(f"its label is a tensor {target.layout} {target.device} {target.dtype}; {allowed}")
        found = target.detach()
    else:
        if target is None or isinstance(target, str | bytes | Mapping):
            raise KdsearchError(f"its label is {_in_short(target)}; {allowed}")
        array = np.array(target)
        if array.dtype.kind not in "biuf":
            raise KdsearchError(f"its label is {_in_short(target)}; {allowed}")
        found = array_tensor(array, "a label")
    found = found if found.is_floating_point() else found.long()
    return found[0] if found.shape == (1,) else found


def _in_short(value: Any) -> str:
    """What a part of an item is, in words."""
    if isinstance(value, str | bytes):
        return f"text {value[:30]!a}"
    return "None" if value is None else f"a {type(value).__name__}"


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
    """A map-style data set that reader processes read: spawned when first needed, kept as long as this lives.

    The batches are those that this process would read: what is random in an item depends on the item and the epoch
    alone. Each stream of batches that is open at one time has readers of its own.

    Args:
        items: Any map-style data set that can be pickled; its class may be defined in a study file.
        readers: Processes, 1 or more.
        pinned: Leave batches in pinned memory, for a GPU.
    """

    def __init__(self, items: MapStyle, readers: int, *, pinned: bool = False) -> None:
        if readers < 1:
            raise KdsearchError(f"readers is {readers}; allowed: 0 or more")
        self.items, self.readers, self.pinned = items, readers, pinned
        self._idle: list[tuple[_Order, DataLoader[Any]]] = []

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]

    def read(self, batches: list[list[Place]]) -> Iterator[Any]:
        """The batches of these places, or why one is none."""
        order, loader = self._idle.pop() if self._idle else _loader(self.items, self.readers, self.pinned)
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


def _loader(items: MapStyle, readers: int = 0, pinned: bool = False) -> tuple[_Order, DataLoader[Any]]:
    order = _Order()
    loader: DataLoader[Any] = DataLoader(
        _Items(StudyModule(), items),  # type: ignore[arg-type]
        batch_sampler=order,
        num_workers=readers,
        collate_fn=_joined,
        pin_memory=pinned,
        multiprocessing_context="spawn" if readers else None,
        persistent_workers=readers > 0,
        generator=generator("workers"),
    )
    return order, loader


def read_items(data: MapStyle, places: list[list[Place]]) -> Iterator[Raw]:
    """The batches of given places, as their items came, through a DataLoader: here, or by the readers of a `Spawned`.

    Raises:
        KdsearchError: an item that is none, named, or readers that do not start.
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
    """What a loader with readers gives; where they do not start or end too early, one error."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Got pickle error")  # it is said below
            batches = iter(loader)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        cure = "define its class, and the functions it holds, at the top of a module or of the study file"
        raise KdsearchError(f"{kind}: cannot be sent to reader processes: {error}; {cure}, or take readers=0") from None
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            cure = "what a reader said stands above; a script that is run itself needs `if __name__ == '__main__':`"
            raise KdsearchError(f"{kind}: data loading ended: {error}; {cure}, or take readers=0") from None
        yield batch
