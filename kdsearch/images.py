"""Images from files, for pictures and previews: folders, image files, .npz files, the embedded photographs."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import center_crop, pil_to_tensor, resize

from kdsearch.errors import KdsearchError


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
        return _one_size(list(array_images(path)[:most]))
    if not path.is_dir():
        files = [path]
    elif not (files := image_files(path)):
        files = [first for folder in sorted(path.glob("*/")) for first in image_files(folder)[:1]]
    if not files:
        raise KdsearchError(f"{path}: no images in this folder; read are {' '.join(SUFFIXES)}")
    return _one_size([image_file(file) for file in files[:most]])


def image_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())


def image_file(path: Path) -> Tensor:
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


def array_images(path: Path) -> Tensor:
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
