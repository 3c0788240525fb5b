"""Pictures in folders and arrays in files, as data sets."""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import center_crop, resize

from kdsearch.data import ArrayData
from kdsearch.errors import KdsearchError
from kdsearch.images import SUFFIXES, image_file

IMAGES = ("images", "x", "data")  # names of arrays in an .npz file, the first one that is there
LABELS = ("labels", "y", "targets")


@dataclass(frozen=True)
class ImageFolder:
    """A map-style data set of (uint8 image (3, size, size), label) items, read from their files when asked for."""

    files: tuple[Path, ...] = field(repr=False)
    labels: tuple[int, ...] = field(repr=False)
    class_names: tuple[str, ...]
    size: int

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = image_file(self.files[index])
        height, width = image.shape[-2:]
        scale = self.size / min(height, width)
        image = resize(image, [max(self.size, round(scale * side)) for side in (height, width)], antialias=True)
        return center_crop(image, [self.size]).expand(3, -1, -1), self.labels[index]


def image_folder(path: Path | str, *, size: int) -> ImageFolder:
    """The images of a folder of class folders, their shorter side made `size` pixels, cropped around the centre.

    The classes are the folders in the order of their names; images may lie deeper in them. Gray images become RGB.
    The files are only opened when an item is asked for: a broken one is named then.

    Raises:
        KdsearchError: no such folder; no class folders in it; a class without images.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        raise KdsearchError(f"{path}: {'not a folder' if path.exists() else 'no such folder'}")
    if size < 1:
        raise KdsearchError(f"{path}: size is {size}; allowed: 1 or more pixels")
    folders = [folder for folder in sorted(path.iterdir()) if folder.is_dir() and not folder.name.startswith(".")]
    if not folders:
        raise KdsearchError(f"{path}: no folders in it; needed: one folder of images for each class")
    found = [sorted(file for file in folder.rglob("*") if _is_image(file)) for folder in folders]
    if empty := [folder.name for folder, files in zip(folders, found, strict=True) if not files]:
        raise KdsearchError(f"{path}: no images in {', '.join(empty[:8])}; read are {' '.join(SUFFIXES)}")
    files = tuple(file for part in found for file in part)
    labels = tuple(label for label, part in enumerate(found) for _ in part)
    return ImageFolder(files, labels, tuple(folder.name for folder in folders), size)


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()


def load_arrays(path: Path | str, *, split: str | None = None) -> ArrayData:
    """Images and labels of an .npz file as data in memory; uint8 images stay uint8, others become float32.

    The images are called images, x or data: uint8 or float in [0, 1], (N, H, W, C), (N, C, H, W) or (N, H, W), with 1
    or 3 channels. The labels are called labels, y or targets: integers from 0, (N,) or (N, 1). Nothing is unpickled.

    Args:
        split: Of a file that holds several, such as "train" where the arrays are called x_train and y_train.

    Raises:
        KdsearchError: no such file or arrays; arrays of another type, shape or range.
    """
    path = Path(path).expanduser()
    try:
        with np.load(path, allow_pickle=False) as archive:
            images = archive[_name(path, archive, IMAGES, "images", split)]
            labels = archive[_name(path, archive, LABELS, "labels", split)]
    except FileNotFoundError:
        raise KdsearchError(f"{path}: no such file") from None
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise KdsearchError(f"{path}: cannot be read as an .npz file of arrays: {error}") from None
    return ArrayData(_images(path, images), _labels(path, labels, len(images)))


def _name(path: Path, archive: Mapping[str, np.ndarray], names: tuple[str, ...], what: str, split: str | None) -> str:
    allowed = names if split is None else tuple(f"{name}_{split}" for name in names)
    name = next((name for name in allowed if name in archive), None)
    if name is None:
        there = ", ".join(list(archive)[:8]) or "no arrays"
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
