"""Archives of arrays, opened within bounds: what their headers claim is looked at before anything is unpacked."""

import math
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kdsearch.core.errors import KdsearchError
from kdsearch.core.files import check_file
from kdsearch.core.memory import available_bytes

ALWAYS = 2**28  # bytes that an archive may unpack to, however small it is
RATIO = 100  # times its size on disk that a larger one may unpack to; deflate reaches 1,030 where all bytes are alike
SHARE = 0.5  # of the memory that is left; what is made of the arrays takes about as much again
MOST_ARRAYS = 10_000  # in one archive
ARRAYS = "an .npz file of arrays"


class Claim(NamedTuple):
    """What the header of an array in an archive says of it, or why it cannot be read."""

    dtype: np.dtype
    shape: tuple[int, ...]
    wrong: str = ""


def load_npz(
    path: Path, choose: Callable[[Mapping[str, Claim]], Sequence[str]], what: str = ARRAYS
) -> dict[str, np.ndarray]:
    """Arrays of an .npz file by name; nothing is unpickled.

    Args:
        choose: Names the arrays that are wanted, given what all of them claim to be.
        what: The file should be, in messages.

    Raises:
        KdsearchError: no such file; a torn one; an array that cannot be read; more in memory than the file's size on
            disk and this machine allow.
    """
    check_file(path)
    with _reading(path, what), zipfile.ZipFile(path) as archive:
        members = {i.filename.removesuffix(".npy"): i for i in archive.infolist() if i.filename.endswith(".npy")}
        if len(members) > MOST_ARRAYS:
            raise ValueError(f"{len(members):,} arrays; allowed: {MOST_ARRAYS:,}")
        claims = {name: _claim(archive, info) for name, info in members.items()}
    names = choose(claims)
    if wrong := [_said(name, claims[name]) for name in names if claims[name].wrong]:
        raise KdsearchError(f"{path}: cannot be read as {what}: {'; '.join(wrong[:8])}")
    _check_sizes(path, [members[name].file_size for name in names])
    with _reading(path, what), zipfile.ZipFile(path) as archive:
        return {name: _array(archive, members[name]) for name in names}


def check_zip(path: Path, what: str) -> None:
    """Does a file, where it is a ZIP archive as those of `torch.save` are, unpack to what its size on disk allows?

    Raises:
        KdsearchError: it does not, or is torn.
    """
    with _reading(path, what):
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            sizes = [info.file_size for info in archive.infolist()]
    _check_sizes(path, sizes)


def _check_sizes(path: Path, sizes: Sequence[int]) -> None:
    claimed, there = sum(sizes), path.stat().st_size
    if claimed > max(ALWAYS, RATIO * there):
        allowed = f"at most {RATIO} times as much"
        raise KdsearchError(f"{path}: {there:,} bytes, which claim to unpack to {claimed:,}; allowed: {allowed}")
    left = available_bytes("cpu")
    if left is not None and claimed > max(ALWAYS, SHARE * left):
        raise KdsearchError(f"{path}: unpacks to {claimed / 1e9:.1f} GB; {left / 1e9:.1f} GB of memory are left")


@contextmanager
def _reading(path: Path, what: str) -> Iterator[None]:
    """Around nothing but calls that read an archive: whatever zipfile, zlib and NumPy make of a torn one."""
    try:
        yield
    except Exception as error:
        raise KdsearchError(f"{path}: cannot be read as {what}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _said(name: str, claim: Claim) -> str:
    return f"{'Object arrays, ' if claim.dtype.hasobject else ''}{name} {claim.wrong}"


def _claim(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Claim:
    try:
        return _header(archive, info)
    except Exception as error:  # likewise
        return Claim(np.dtype("V"), (), f"cannot be read ({_reason(error)})")


def _header(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Claim:
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("packed in a way that NumPy does not use")  # and that unpacks without a bound
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in readers:
            raise ValueError(f"version {version} of NumPy's format; allowed: 1.0 and 2.0")
        shape, _, dtype = readers[version](member)
        wanted = math.prod(shape) * dtype.itemsize + member.tell()
    if dtype.hasobject:
        return Claim(dtype, shape, "of Python objects, which are not read")
    if min(shape, default=0) < 0 or wanted != info.file_size:
        raise ValueError(f"said to be {dtype} {shape}, which {info.file_size:,} bytes are not")
    return Claim(dtype, shape)


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(info) as member:
        array = np.lib.format.read_array(member, allow_pickle=False)
        member.read(1)  # the end, where the checksum is compared
    return array
