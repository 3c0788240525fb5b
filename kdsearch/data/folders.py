"""Pictures in folders and arrays in files, as data sets."""

import os
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import center_crop, resize

from kdsearch.core.archives import Claim, load_npz
from kdsearch.core.errors import KdsearchError, problems
from kdsearch.core.files import as_path
from kdsearch.core.html import html_paragraph, html_table
from kdsearch.core.terminal import escape_unprintable, number_of
from kdsearch.data.batches import ArrayData, picture_row
from kdsearch.data.images import SUFFIXES, folders_in, image_file, is_image

IMAGES = ("images", "x", "data")  # names of arrays in an .npz file, the first one that is there
LABELS = ("labels", "y", "targets")
LONG = 16  # times its shorter side that an image is made larger as a whole, in case that is one pixel
IN_TABLE = 20  # classes that a notebook shows
SHOWN = 3  # files that a warning names
TOGETHER = 64  # files that a thread looks at in one go


@dataclass(frozen=True)
class ImageFolder:
    """A map-style data set of (uint8 image (3, size, size), label) items, read from their files when asked for."""

    files: tuple[Path, ...] = field(repr=False)
    labels: tuple[int, ...] = field(repr=False)
    class_names: tuple[str, ...]
    size: int

    def __repr__(self) -> str:
        images, classes = number_of(len(self), "image"), number_of(len(self.class_names), "class", "classes")
        return f"ImageFolder({images} in {classes}, made 3x{self.size}x{self.size})"

    def _repr_html_(self) -> str:
        counts = Counter(self.labels)
        rows = [[name, counts[label]] for label, name in enumerate(self.class_names[:IN_TABLE])]
        rest = [["...", ""]] * (len(self.class_names) > IN_TABLE)
        return (
            html_paragraph(self) + picture_row(self, self.class_names) + html_table(["class", "images"], [*rows, *rest])
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        try:
            image = image_file(self.files[index])
        except KdsearchError as error:
            raise self._all_wrong(error) from None
        most = LONG * min(image.shape[-2:])
        if max(image.shape[-2:]) > most:
            image = center_crop(image, [min(side, most) for side in image.shape[-2:]])
        height, width = image.shape[-2:]
        scale = self.size / min(height, width)
        image = resize(image, [max(self.size, round(scale * side)) for side in (height, width)], antialias=True)
        return center_crop(image, [self.size]).expand(3, -1, -1), self.labels[index]

    def _all_wrong(self, first: KdsearchError) -> KdsearchError:
        """All files that cannot be read, so that they need not be found one by one."""
        found = list(unreadable(self.files).values())
        cure = "image_folder(..., skip_unreadable=True) leaves them out"
        if len(found) < 2:
            return KdsearchError(f"{first}; {cure}")
        return problems(f"files that cannot be read, of {len(self.files)}; {cure}", found)


def unreadable(files: Sequence[Path]) -> dict[Path, str]:
    """What keeps image files from being read, where something does; all are opened and decoded."""

    def look(start: int) -> dict[Path, str]:
        found = {}
        for file in files[start : start + TOGETHER]:
            try:
                image_file(file)
            except KdsearchError as error:
                found[file] = str(error)
        return found

    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        return {file: why for part in pool.map(look, range(0, len(files), TOGETHER)) for file, why in part.items()}
    finally:
        pool.shutdown(cancel_futures=True)  # where it is interrupted


def image_folder(path: Path | str, *, size: int, skip_unreadable: bool = False) -> ImageFolder:
    """The images of a folder of class folders, their shorter side made `size` pixels, cropped around the centre.

    The classes are the folders in the order of their names; images may lie deeper in them. Gray images become RGB,
    what is transparent becomes black.
    The files are only opened when an item is asked for: where one cannot be read, all are looked at and named.

    Args:
        skip_unreadable: Open all files now and leave out those that cannot be read, with a warning.

    Raises:
        KdsearchError: no such folder; no class folders in it; a class without images.
    """
    path = as_path(path)
    if not path.is_dir():
        raise KdsearchError(f"{path}: {'not a folder' if path.exists() else 'no such folder'}")
    if not isinstance(size, int) or size < 1:
        raise KdsearchError(f"{path}: size is {size!r}; allowed: 1 or more pixels, a whole number")
    folders = [folder for folder in folders_in(path) if not folder.name.startswith(".")]
    if not folders:
        raise KdsearchError(f"{path}: no folders in it; needed: one folder of images for each class")
    found = [_images_below(folder) for folder in folders]
    if skip_unreadable:
        found = _readable(path, found)
    if empty := [folder.name for folder, files in zip(folders, found, strict=True) if not files]:
        raise KdsearchError(f"{path}: no images in {', '.join(empty[:8])}; read are {' '.join(SUFFIXES)}")
    files = tuple(file for part in found for file in part)
    labels = tuple(label for label, part in enumerate(found) for _ in part)
    return ImageFolder(files, labels, tuple(folder.name for folder in folders), size)


def _readable(path: Path, found: list[list[Path]]) -> list[list[Path]]:
    """Lists of files without those that cannot be read, which one warning counts."""
    files = [file for part in found for file in part]
    wrong = unreadable(files)
    if wrong:
        rest = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        reasons = "; ".join(list(wrong.values())[:SHOWN])
        said = f"{path}: {len(wrong)} of {len(files)} files cannot be read and are left out: {reasons}{rest}"
        warnings.warn(escape_unprintable(said), stacklevel=3)
    return [[file for file in part if file not in wrong] for part in found]


def _images_below(folder: Path) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise KdsearchError(f"{error.filename}: cannot be listed: {error.strerror}")

    files = [Path(place, name) for place, _, names in os.walk(folder, onerror=refuse) for name in names]
    return sorted(file for file in files if not file.name.startswith(".") and is_image(file))


def load_arrays(path: Path | str, *, split: str | None = None) -> ArrayData:
    """Images and labels of an .npz file as data in memory; uint8 images stay uint8, others become float32.

    The images are called images, x or data: uint8 or float in [0, 1], (N, H, W, C), (N, C, H, W) or (N, H, W), with 1
    or 3 channels. The labels are called labels, y or targets: integers from 0, (N,) or (N, 1). Nothing is unpickled.

    Args:
        split: Of a file that holds several, such as "train" where the arrays are called x_train and y_train.

    Raises:
        KdsearchError: no such file or arrays; arrays of another type, shape or range.
    """
    path = as_path(path)
    found: list[str] = []

    def choose(arrays: Mapping[str, Claim]) -> list[str]:
        found[:] = _name(path, arrays, IMAGES, "images", split), _name(path, arrays, LABELS, "labels", split)
        return found

    arrays = load_npz(path, choose)
    images, labels = (arrays[name] for name in found)
    return ArrayData(_images(path, images), _labels(path, labels, len(images)))


def _name(path: Path, arrays: Mapping[str, Claim], names: tuple[str, ...], what: str, split: str | None) -> str:
    allowed = names if split is None else tuple(f"{name}_{split}" for name in names)
    name = next((name for name in allowed if name in arrays), None)
    if name is None:
        there = ", ".join(list(arrays)[:8]) or "no arrays"
        raise KdsearchError(f"{path}: no {what} in it, but {there}; allowed names: {', '.join(allowed)}")
    return name


def _images(path: Path, array: np.ndarray) -> Tensor:
    """(N, C, H, W) uint8 or float32."""
    found = f"{path}: images are {array.dtype} {array.shape}"
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise KdsearchError(f"{found}; allowed: uint8, or floats in [0, 1]")
    shaped = array[..., None] if array.ndim == 3 else array
    if shaped.ndim != 4 or not shaped.size or not {1, 3} & {shaped.shape[1], shaped.shape[3]}:
        raise KdsearchError(f"{found}; allowed: (N, H, W, C), (N, C, H, W) or (N, H, W), with 1 or 3 channels")
    if array.dtype != np.uint8:
        if not (array.min() >= 0 and array.max() <= 1):
            values = f"values from {array.min():g} to {array.max():g}"
            raise KdsearchError(f"{path}: images have {values}; floats have to be in [0, 1]")
        shaped = shaped.astype(np.float32)
    images = torch.from_numpy(shaped)
    return (images.movedim(-1, 1) if shaped.shape[3] in (1, 3) else images).contiguous()


def _labels(path: Path, array: np.ndarray, count: int) -> Tensor:
    """(N,) int64."""
    found = f"{path}: labels are {array.dtype} {array.shape}"
    if array.shape not in ((count,), (count, 1)):
        raise KdsearchError(f"{found} for {count} images; allowed: ({count},) or ({count}, 1)")
    if array.dtype.kind not in "iu":
        raise KdsearchError(f"{found}; allowed: integers from 0")
    if array.min() < 0:
        raise KdsearchError(f"{path}: labels from {array.min()}; allowed: integers from 0")
    return torch.from_numpy(array.astype(np.int64).reshape(-1))
