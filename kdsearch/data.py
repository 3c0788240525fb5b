"""Adapters to data sets: map-style ones with (image, label) items, seeded batches, image files, embedded images."""

import zipfile
from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms.v2.functional import center_crop, pil_to_tensor, resize

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


def photographs() -> Tensor:
    """scikit-learn's two sample photographs, a temple and a flower, made smaller: (2, 3, 149, 224) in [0, 1]."""
    from sklearn.datasets import load_sample_images

    return _one_size([torch.from_numpy(picture.copy()).movedim(-1, 0) for picture in load_sample_images().images])


SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
LONGEST = 224  # pixels, the longest side of a loaded image


def load_images(path: Path | str, most: int = 4) -> Tensor:
    """The first few images of a folder, an image file or an .npz file: (N, C, H, W), float in [0, 1].

    Of a folder the image files in the order of their names or, where it has none itself, the first one of each of its
    folders. Of an .npz file the first array that has the shape of images. Sides over 224 pixels are made smaller;
    images of several sizes are cropped around the centre to one.

    Raises:
        KdsearchError: no such path; no images in it; a broken image; arrays of another shape, type or range.
    """
    path = Path(path)
    if path.suffix.lower() == ".npz" and path.is_file():
        return _one_size(list(_array_images(path)[:most]))
    if not path.is_dir():
        files = [path]
    elif not (files := _image_files(path)):
        files = [first for folder in sorted(path.glob("*/")) for first in _image_files(folder)[:1]]
    if not files:
        raise KdsearchError(f"{path}: no images in this folder; read are {' '.join(SUFFIXES)}")
    return _one_size([_image_file(file) for file in files[:most]])


def _image_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())


def _image_file(path: Path) -> Tensor:
    """(C, H, W) uint8 of an image file, the right way up; C is 1 for gray images, otherwise 3."""
    if not path.is_file():
        raise KdsearchError(f"{path}: no such file or folder")
    if path.suffix.lower() not in SUFFIXES:
        allowed = f"a folder of images, an .npz file or an image: {' '.join(SUFFIXES)}"
        raise KdsearchError(f"{path}: its name ends in {path.suffix or 'no suffix'!r}; allowed: {allowed}")
    try:
        with PIL.Image.open(path) as opened:
            image = PIL.ImageOps.exif_transpose(opened)
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:  # SyntaxError: a torn PNG
        raise KdsearchError(f"{path}: cannot be read as an image: {error}") from None
    if image.mode in ("I", "F"):
        raise KdsearchError(f"{path}: 32 bits a pixel; allowed: 8 or 16 bits a channel")
    if image.mode.startswith("I;16"):  # PIL would cut its values off at 255
        return torch.from_numpy((np.asarray(image) // 257).astype(np.uint8))[None]
    return pil_to_tensor(image.convert("L" if image.mode in ("1", "L") else "RGB"))


def _array_images(path: Path) -> Tensor:
    """The images of an .npz file, (N, C, H, W)."""
    seen = []
    try:
        with np.load(path, allow_pickle=False) as archive:
            for name in archive.files:
                try:
                    array = archive[name]
                except ValueError:
                    seen.append(f"{name} of Python objects, which are not read")
                    continue
                kind = array.dtype == np.uint8 or array.dtype.kind == "f"
                if kind and array.ndim == 3:
                    array = array[None] if array.shape[2] in (1, 3) else array[..., None]
                if not (kind and array.ndim == 4 and array.size and {1, 3} & {array.shape[1], array.shape[3]}):
                    seen.append(f"{name} {array.dtype} {array.shape}")
                    continue
                if array.dtype != np.uint8 and not (array.min() >= 0 and array.max() <= 1):
                    found = f"values from {array.min():g} to {array.max():g}"
                    raise KdsearchError(f"{path}: {name}: {found}; floats have to be in [0, 1]")
                images = torch.from_numpy(array if array.dtype == np.uint8 else array.astype(np.float32))
                return images.movedim(-1, 1) if array.shape[3] in (1, 3) else images
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise KdsearchError(f"{path}: cannot be read as an .npz file: {error}") from None
    allowed = "uint8 or float in [0, 1], (N, H, W), (H, W, C), (N, H, W, C) or (N, C, H, W) with 1 or 3 channels"
    raise KdsearchError(f"{path}: no images in it: {'; '.join(seen) or 'no arrays'}; allowed: {allowed}")


def _one_size(images: Sequence[Tensor]) -> Tensor:
    """Images (C, H, W), uint8 or float in [0, 1], as one float tensor of at most 224 pixels a side."""
    fit = [min(1.0, LONGEST / max(image.shape[-2:])) for image in images]
    sizes = [[max(1, round(share * side)) for side in x.shape[-2:]] for share, x in zip(fit, images, strict=True)]
    size = [min(side) for side in zip(*sizes, strict=True)]
    channels = max(len(image) for image in images)
    made = []
    for image in images:
        x = image / 255 if image.dtype == torch.uint8 else image
        cover = max(wanted / side for wanted, side in zip(size, x.shape[-2:], strict=True))
        covering = [max(wanted, round(cover * side)) for wanted, side in zip(size, x.shape[-2:], strict=True)]
        if covering != list(x.shape[-2:]):
            x = resize(x, covering, antialias=True).clamp(0, 1)
        made.append(center_crop(x, size).expand(channels, -1, -1))
    return torch.stack(made)
