"""Images from files, for pictures and previews: folders, image files, .npz files, the embedded photographs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import center_crop, resize

from kdsearch.core.archives import Claim, load_npz
from kdsearch.core.errors import KdsearchError
from kdsearch.core.files import as_path, check_file
from kdsearch.data.items import fill_transparency, picture_tensor


def photographs() -> Tensor:
    """scikit-learn's two sample photographs, a temple and a flower, made smaller: (2, 3, 149, 224) in [0, 1]."""
    from sklearn.datasets import load_sample_images

    return _one_size([torch.from_numpy(picture.copy()).movedim(-1, 0) for picture in load_sample_images().images])


SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")  # Pillow runs another program to read some others
MOST_PIXELS = 50_000_000  # of an image file, which take up to 700 MB while they are read
LONGEST = 224  # pixels, the longest side of a loaded image


def load_images(path: Path | str, most: int = 4) -> Tensor:
    """The first few images of a folder, an image file or an .npz file: (N, C, H, W), float in [0, 1].

    Of a folder the image files in the order of their names or, where it has none itself, the first one of each of its
    folders. Of an .npz file the first array that has the shape of images. Sides over 224 pixels are made smaller;
    images of several sizes are cropped around the centre to one.

    Raises:
        KdsearchError: no such path; no images in it; a broken image; arrays of another shape, type or range.
    """
    path = as_path(path)
    if not path.exists():
        raise KdsearchError(f"{path}: no such file or folder")
    if path.suffix.lower() == ".npz" and not path.is_dir():
        return _one_size(list(array_images(path)[:most]))
    if not path.is_dir():
        files = [path]
    elif not (files := image_files(path)):
        files = [first for folder in folders_in(path) for first in image_files(folder)[:1]]
    if not files:
        raise KdsearchError(f"{path}: no images in this folder; read are {' '.join(SUFFIXES)}")
    return _one_size([image_file(file, LONGEST) for file in files[:most]])


def image_files(folder: Path) -> list[Path]:
    """The image files in a folder, in the order of their names."""
    return [path for path in _listed(folder) if is_image(path)]


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder, in the order of their names."""
    try:
        return [path for path in _listed(folder) if path.is_dir()]
    except OSError as error:
        raise KdsearchError(f"{error.filename}: {error.strerror}") from None


def is_image(path: Path) -> bool:
    """Is this an image file by its name? One that may not be looked at counts, so that reading it says so."""
    try:
        return path.suffix.lower() in SUFFIXES and path.is_file()
    except OSError:
        return True


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise KdsearchError(f"{folder}: cannot be listed: {error.strerror}") from None


def image_file(path: Path, longest: int | None = None) -> Tensor:
    """(C, H, W) uint8 of an image file, the right way up; C is 1 for gray images, otherwise 3.

    Args:
        longest: Sides of at least eight times as much are made smaller, to four times as much or a little more.
    """
    check_file(path)
    if path.suffix.lower() not in SUFFIXES:
        allowed = f"a folder of images, an .npz file or an image: {' '.join(SUFFIXES)}"
        raise KdsearchError(f"{path}: its name ends in {path.suffix or 'no suffix'!r}; allowed: {allowed}")
    try:
        return _decoded(path, longest)
    except KdsearchError:
        raise
    except Exception as error:  # whatever Pillow makes of a torn file
        raise KdsearchError(f"{path}: cannot be read as an image: {error or type(error).__name__}") from None


def _decoded(path: Path, longest: int | None) -> Tensor:
    with PIL.Image.open(path, formats=FORMATS) as image:
        if image.width * image.height > MOST_PIXELS:
            size = f"{image.width} x {image.height} pixels"
            raise KdsearchError(f"{path}: {size}; allowed: {MOST_PIXELS:,} in all; make it smaller first")
        PIL.ImageOps.exif_transpose(image, in_place=True)  # a copy would take as much memory again
        factor = max(image.size) // (4 * longest) if longest else 1
        shown = fill_transparency(image)
        whole = factor <= 1 or shown.mode[:1] in "IF"
        try:
            return picture_tensor(
                shown if whole else shown.convert("L" if shown.mode in ("1", "L") else "RGB").reduce(factor)
            )
        except KdsearchError as error:
            raise KdsearchError(f"{path}: {error}") from None


def array_images(path: Path) -> Tensor:
    """The images of an .npz file, (N, C, H, W)."""

    def choose(arrays: Mapping[str, Claim]) -> list[str]:
        """The first one that looks like images; no other one is read."""
        found = [name for name, claim in arrays.items() if not claim.wrong and _are_images(claim.dtype, claim.shape)]
        if found:
            return found[:1]
        seen = "; ".join(f"{name} {claim.wrong or f'{claim.dtype} {claim.shape}'}" for name, claim in arrays.items())
        allowed = "uint8 or float in [0, 1], (N, H, W), (H, W, C), (N, H, W, C) or (N, C, H, W) with 1 or 3 channels"
        raise KdsearchError(f"{path}: no images in it: {seen or 'no arrays'}; allowed: {allowed}")

    [(name, array)] = load_npz(path, choose).items()
    if array.dtype != np.uint8 and not (array.min() >= 0 and array.max() <= 1):
        found = f"values from {array.min():g} to {array.max():g}"
        raise KdsearchError(f"{path}: {name}: {found}; floats have to be in [0, 1]")
    if array.ndim == 3:
        array = array[None] if array.shape[2] in (1, 3) else array[..., None]
    images = torch.from_numpy(array if array.dtype == np.uint8 else array.astype(np.float32))
    return images.movedim(-1, 1) if array.shape[3] in (1, 3) else images


def _are_images(dtype: np.dtype, shape: tuple[int, ...]) -> bool:
    channels = len(shape) == 3 or (len(shape) == 4 and bool({1, 3} & {shape[1], shape[3]}))
    return (dtype == np.uint8 or dtype.kind == "f") and channels and 0 not in shape


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
