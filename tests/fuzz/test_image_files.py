"""Folders with broken pictures: each file is named, or its image is read."""

import os
import struct
import warnings
from collections.abc import Mapping
from functools import cache
from io import BytesIO
from typing import NamedTuple
from zlib import compress, crc32

import numpy as np
import PIL.Image
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from law import holds
from shares import inputs
from strategies import BytesEdit, Cut, Flip, Insert, Zero, bytes_edits, edited_bytes

import kdsearch as kd

MODES = ("L", "RGB", "RGBA", "P", "1", "LA", "I;16", "I", "F", "CMYK", "YCbCr")
FORMATS: Mapping[str, str] = {
    ".png": "PNG", ".jpg": "JPEG", ".gif": "GIF", ".bmp": "BMP", ".ppm": "PPM", ".tif": "TIFF", ".webp": "WEBP",
}  # fmt: skip


@cache
def picture(suffix: str, mode: str, size: tuple[int, int] = (9, 7)) -> bytes:
    """A valid file; in another mode where the format does not have it."""
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image, made = PIL.Image.fromarray(noise), BytesIO()
    wanted = image.convert("L").convert(mode) if mode in ("I", "F", "I;16") else image.convert(mode)
    for shown in (wanted, image):
        try:
            shown.save(made, FORMATS[suffix])
            return made.getvalue()
        except (OSError, ValueError):
            made = BytesIO()
    raise AssertionError(suffix)


def _png(
    width: int, height: int, *, chunks: bytes = b"", bits: int = 8, colour: int = 2, rows: int | None = None
) -> bytes:
    """A PNG of zeros that claims a size; with so many rows in it."""
    there = height if rows is None else rows
    packed = compress(bytes(there * (1 + width * (3 if colour == 2 else 1) * bits // 8)), 9)
    head = struct.pack(">2L5B", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + chunks + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">L", len(content)) + kind + content + struct.pack(">L", crc32(kind + content))


@cache
def special(name: str) -> bytes:
    """Files of a kind that is made to harm."""
    match name:
        case "claims 60,000 x 60,000":
            return _png(60_000, 60_000, rows=10)
        case "claims 15,000 x 15,000":
            return _png(15_000, 15_000, rows=10)
        case "claims 9,000 x 9,000":
            return _png(9_000, 9_000, rows=10)
        case "7,000 x 7,000 zeros":
            return _png(7_000, 7_000)
        case "7,000 x 7,000 of 16 bits":
            return _png(7_000, 7_000, bits=16)
        case "30,000 x 1":
            return _png(30_000, 1)
        case "1 x 30,000":
            return _png(1, 30_000)
        case "no pixels":
            return _png(0, 0)
        case "text of 50 MB":
            return _png(9, 7, chunks=_chunk(b"zTXt", b"Comment\0\0" + compress(bytes(50_000_000), 9)))
        case "profile of 50 MB":
            return _png(9, 7, chunks=_chunk(b"iCCP", b"x\0\0" + compress(bytes(50_000_000), 9)))
        case "torn exif":
            return _png(9, 7, chunks=_chunk(b"eXIf", b"MM\0*\0\0\0\x08\xff\xff\x01\x12"))
        case "animation":
            return _png(9, 7, chunks=_chunk(b"acTL", struct.pack(">2L", 2**31 - 1, 0)))
        case "ppm that claims much":
            return b"P6 13000 13000 255 " + bytes(100)
        case "ppm of digits":
            return b"P6 " + b"9" * 5000 + b" 7 255 " + bytes(100)
        case "pgm of 16 bits":
            return b"P5 9 7 65535 " + bytes(126)
        case "text":
            return b"<svg xmlns='http://www.w3.org/2000/svg'/>"
        case "eps":
            return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 7\n%%EndComments\n(canary) (w) file closefile\n"
        case "fli":
            return struct.pack("<LHHHHHH", 400, 0xAF11, 9, 9, 9, 8, 3) + bytes(400)
        case "nothing":
            return b""
    raise AssertionError(name)


SPECIAL = (
    "claims 60,000 x 60,000", "claims 15,000 x 15,000", "claims 9,000 x 9,000", "7,000 x 7,000 zeros",
    "7,000 x 7,000 of 16 bits", "30,000 x 1",
    "1 x 30,000", "no pixels", "text of 50 MB", "profile of 50 MB", "torn exif", "animation", "ppm that claims much",
    "ppm of digits", "pgm of 16 bits", "text", "eps", "fli", "nothing",
)  # fmt: skip
PLACED = (
    "fifo",
    "link to nothing",
    "link to itself",
    "link to /dev/zero",
    "link to its folder",
    "folder",
    "socket name",
)


class Picture(NamedTuple):
    """One file of a folder: its suffix, a mode or something special in it, edits of its bytes."""

    suffix: str = ".png"
    what: str = "RGB"
    edits: tuple[BytesEdit, ...] = ()
    name: str = "b"


NAMES = ("b", "\u00e9", "a b", "x\ny", "{x}", "[red]x", "-o", "\udcff", "x" * 200, "%s", "~")
pictures = st.builds(
    Picture,
    st.sampled_from(sorted(FORMATS)),
    st.sampled_from(MODES) | st.sampled_from(SPECIAL) | st.sampled_from(PLACED),
    st.just(()) | bytes_edits,
    st.sampled_from(NAMES),
)


def put(world, pictures: tuple[Picture, ...]) -> None:
    """A folder of two classes, a good picture and odd ones in each."""
    world.clear()
    for i in range(2):
        folder = world.given / f"class {i}"
        folder.mkdir()
        (folder / "a.png").write_bytes(picture(".png", "RGB"))
    for i, (suffix, what, edits, name) in enumerate(pictures):
        path = world.given / f"class {i % 2}" / f"{name}{i}{suffix}"
        if what in MODES:
            path.write_bytes(edited_bytes(picture(suffix, what), edits))
        elif what in SPECIAL:
            path.write_bytes(edited_bytes(special(what), edits))
        elif what == "fifo":
            os.mkfifo(path)
        elif what == "folder":
            path.mkdir()
        elif what.startswith("link"):
            to = {"nothing": "nowhere", "itself": path.name, "/dev/zero": "/dev/zero", "its folder": "."}
            path.symlink_to(to[what.removeprefix("link to ")])


def read(world, reader: str) -> None:
    """A folder's images by one of the readers."""
    if reader == "images":
        assert kd.data.load_images(world.given, most=8).ndim == 4
    elif reader == "each":
        for file in sorted((world.given / "class 0").iterdir()):
            assert kd.data.load_images(file).ndim == 4
    else:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*are left out")
            data = kd.data.image_folder(world.given, size=8, skip_unreadable=reader == "skip")
        assert kd.data.in_memory(data).images.shape == (len(data), 3, 8, 8)


@pytest.fixture(scope="module", autouse=True)
def warm(world):
    for reader in ("images", "data", "skip", "each"):
        put(world, ())
        read(world, reader)


@inputs("image folders")
@given(
    files=st.lists(pictures, min_size=1, max_size=3).map(tuple),
    reader=st.sampled_from(["images", "data", "skip", "each"]),
)
@example((Picture(".png", "claims 9,000 x 9,000"), Picture(".png", "claims 60,000 x 60,000")), "skip")
@example((Picture(".png", "7,000 x 7,000 zeros"),), "data")
@example((Picture(".png", "7,000 x 7,000 zeros"),) * 7, "images")
@example((Picture(".png", "text of 50 MB"),), "data")
@example((Picture(".ppm", "ppm of digits"),), "each")
@example((Picture(".png", "link to /dev/zero"), Picture(".png", "link to its folder")), "data")
@example((Picture(".jpg", "RGB", (Flip(30000, 3), Cut(60000), Insert(0, b"\0"), Zero(500, 8))),), "images")
def test_any_folder_of_images(world, files, reader):
    put(world, files)
    with holds(world, "image folders"):
        read(world, reader)
