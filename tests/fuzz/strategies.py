"""Inputs as short values that can be read, shrunk and written down as an `@example`: edits of something valid."""

import copy
import json
import struct
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from io import BytesIO
from typing import Any, NamedTuple
from zlib import Z_FULL_FLUSH, compressobj, crc32

from hypothesis import strategies as st

SHARE = 2**16  # a place in a file or among its values is a share of this
places = st.integers(0, SHARE - 1)


def _at(place: int, length: int) -> int:
    return place * length // SHARE


# ------------------------------------------------------------------------------------------------ bytes


class Flip(NamedTuple):
    """One bit is another."""

    place: int
    bit: int


class Cut(NamedTuple):
    """The file ends here."""

    place: int


class Insert(NamedTuple):
    """More bytes in between."""

    place: int
    content: bytes


class Again(NamedTuple):
    """A stretch is there twice."""

    place: int
    length: int


class Zero(NamedTuple):
    """A stretch is zeros."""

    place: int
    length: int


BytesEdit = Flip | Cut | Insert | Again | Zero
odd_bytes = st.sampled_from([b"\0", b"\xef\xbb\xbf", b"\xff\xfe", b"\xed\xa0\x80", b"\r", b"\x1b[31m", b"\xff" * 8])
bytes_edit: st.SearchStrategy[BytesEdit] = st.one_of(
    st.builds(Flip, places, st.integers(0, 7)),
    st.builds(Cut, places),
    st.builds(Insert, st.just(0) | places, odd_bytes | st.binary(max_size=8)),
    st.builds(Again, places, st.integers(1, 500)),
    st.builds(Zero, places, st.integers(1, 500)),
)
bytes_edits = st.lists(bytes_edit, max_size=4).map(tuple)


def edited_bytes(content: bytes, edits: Sequence[BytesEdit]) -> bytes:
    made = bytearray(content)
    for edit in edits:
        at = _at(edit.place, len(made))
        match edit:
            case Flip(_, bit) if made:
                made[at] ^= 1 << bit
            case Cut():
                del made[at:]
            case Insert(_, more):
                made[at:at] = more
            case Again(_, length):
                made[at:at] = made[at : at + length]
            case Zero(_, length):
                made[at : at + length] = bytes(len(made[at : at + length]))
    return bytes(made)


# ------------------------------------------------------------------------------------------------ JSON and TOML

TEXTS = (
    "", "x", "NaN", "None", "nan", "-1", "1e999", "=1+1", "[/b]", "[red]x", "{x}", "%d", "$x", "../../x", "/etc/passwd",
    "a/b", "a\\b", "x\ny", "x\ty", "\x1b[31m", "\x1b]0;t\x07", "<script>", "\N{RIGHT-TO-LEFT OVERRIDE}x", "\ufeff",
    "e\N{COMBINING ACUTE ACCENT}", "\N{PILE OF POO}", "'", '"', "`rm x`", "__class__", "rotate", "x" * 300,
)  # fmt: skip
ODD: Mapping[str, str] = {  # by a name, which is shorter to read
    "5,000 digits": "9" * 5000,
    "deep list": "[" * 600 + "]" * 600,
    "very deep list": "[" * 100_000 + "]" * 100_000,
    "long text": '"' + "x" * 100_000 + '"',
    "many numbers": "[" + ", ".join(["1"] * 10_000) + "]",
    "many texts": "[" + ", ".join(['"x"'] * 10_000) + "]",
}
NUMBERS = (
    "0", "-0.0", "1", "-1", "2", "3", "7", "100", "0.5", "1.5", "1e-320", "1e30", "1e308", "-1e308", "2147483648",
    "9223372036854775808", "18446744073709551616", "1000000000000",
)  # fmt: skip
JSON_VALUES = (
    "null", "true", "false", "NaN", "Infinity", "-Infinity", "1e999", "[]", "{}", "[null]", "[[]]", "[1, 2]",
    '["x"]', '{"x": 1}', '"\\u0000"', '"\\ud800"', "",
)  # fmt: skip
TOML_VALUES = (
    "true", "false", "nan", "inf", "-inf", "1979-05-27", "07:32:00", "1979-05-27T07:32:00Z", "0xff", "1_000", "'''x'''",
    "[]", "{}", "[[]]", "[0.25, 0.5]", "[1, 'x']", "{low = 1, high = 2, default = 1}",
    "{low = 0.1, high = 0.5, default = 0.2, log = true}", "{low = nan, high = 1, default = 1}", "{limit = 1}", "",
    "{x = 1}", '"\\u0000"', '"\\ud800"',
)  # fmt: skip
DEEP_TOML: Mapping[str, str] = {"deep table": "{x = " * 600 + "1" + "}" * 600, "dotted": ".".join(["x"] * 3000)}
_numbers = (
    st.sampled_from(NUMBERS) | st.floats(allow_nan=False, allow_infinity=False).map(repr) | st.integers().map(str)
)
_texts = st.sampled_from(TEXTS) | st.text(max_size=20)
json_text = st.one_of(
    _numbers, st.sampled_from(JSON_VALUES), st.sampled_from(sorted(ODD)), _texts.map(json.dumps)
)  # in JSON's letters, or the name of an odd one
toml_text = st.one_of(
    _numbers,
    st.sampled_from(TOML_VALUES),
    st.sampled_from(sorted([*ODD, *DEEP_TOML])),
    _texts.map(lambda text: json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")),
)


class Put(NamedTuple):
    """One value is another."""

    place: int
    value: str


class Drop(NamedTuple):
    """A key or an item is not there."""

    place: int


class Twice(NamedTuple):
    """A key or an item is there once more, with a value."""

    place: int
    value: str


class Rename(NamedTuple):
    """A key is another; in a list, the item is this text."""

    place: int
    name: str


class Halve(NamedTuple):
    """A number is multiplied: an edit that often leaves a file valid."""

    place: int
    by: float


ValueEdit = Put | Drop | Twice | Rename | Halve


def value_edits(values: st.SearchStrategy[str], most: int = 4) -> st.SearchStrategy[tuple[ValueEdit, ...]]:
    return st.lists(
        st.one_of(
            st.builds(Put, places, values),
            st.builds(Drop, places),
            st.builds(Twice, places, values),
            st.builds(Rename, places, _texts),
            st.builds(Halve, places, st.sampled_from([0.0, 0.5, 0.9, 1.1, 2.0, -1.0])),
        ),
        max_size=most,
    ).map(tuple)


class _Verbatim(str):
    """Text that stands in a file as it is."""


class _Pairs(list):  # type: ignore[type-arg]
    """A table as its pairs, so that a key can be there twice."""


def _open(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _Pairs([key, _open(item)] for key, item in value.items())
    return [_open(item) for item in value] if isinstance(value, list | tuple) else value


def _slots(value: Any) -> list[tuple[list[Any], int]]:
    """Where each value of a tree lies, in the order of the file: the list or pair that holds it, and the index."""
    found = []
    for i in range(len(value)):
        holder, at = (value[i], 1) if isinstance(value, _Pairs) else (value, i)
        found.append((value, i))
        if isinstance(holder[at], list):
            found += _slots(holder[at])
    return found


def edited_tree(data: Any, edits: Sequence[ValueEdit]) -> Any:
    """Plain values with edits, for `as_json` and `as_toml`."""
    whole = [_open(copy.deepcopy(data))]
    for edit in edits:
        slots = _slots(whole)
        if not slots:
            break
        holder, i = slots[_at(edit.place, len(slots))]
        pairs = isinstance(holder, _Pairs)
        match edit:
            case Put(_, text) if pairs:
                holder[i] = [holder[i][0], _Verbatim(text)]
            case Put(_, text):
                holder[i] = _Verbatim(text)
            case Drop() if holder is not whole:
                del holder[i]
            case Twice(_, text) if holder is not whole:
                holder.append([holder[i][0], _Verbatim(text)] if pairs else _Verbatim(text))
            case Rename(_, name) if pairs:
                holder[i] = [name, holder[i][1]]
            case Rename(_, name) if holder is not whole:
                holder[i] = name
            case Halve(_, by):
                number = holder[i][1] if pairs else holder[i]
                if isinstance(number, int | float) and not isinstance(number, bool):
                    more = type(number)(number * by)
                    holder[i] = [holder[i][0], more] if pairs else more
    return whole[0]


def as_json(tree: Any) -> str:
    if isinstance(tree, _Verbatim):
        return ODD.get(tree, tree)
    if isinstance(tree, _Pairs):
        return "{" + ", ".join(f"{json.dumps(str(key))}: {as_json(item)}" for key, item in tree) + "}"
    return f"[{', '.join(map(as_json, tree))}]" if isinstance(tree, list) else json.dumps(tree)


def as_toml(tree: Any, *, top: bool = True) -> str:
    if isinstance(tree, _Verbatim):
        return {**ODD, **DEEP_TOML}.get(tree, tree)
    if isinstance(tree, _Pairs):
        pairs = [f"{_toml_key(key)} = {as_toml(item, top=False)}" for key, item in tree]
        return "\n".join(pairs) + "\n" if top else "{" + ", ".join(pairs) + "}"
    if isinstance(tree, list):
        return f"[{', '.join(as_toml(item, top=False) for item in tree)}]"
    return json.dumps(tree, ensure_ascii=False)


def _toml_key(key: object) -> str:
    text = str(key)
    return text if text.isidentifier() and text.isascii() else json.dumps(text, ensure_ascii=False)


# ------------------------------------------------------------------------------------------------ archives


class Member(NamedTuple):
    """What is wrong with one member of a zip archive."""

    which: int
    what: str


MEMBER: Mapping[str, tuple[str, int, bytes]] = {  # field of both headers: where in the central one, and its bytes
    "encrypted": ("flags", 8, b"\x01\x00"),
    "patched": ("flags", 8, b"\x20\x00"),
    "method 99": ("method", 10, b"\x63\x00"),
    "method lzma": ("method", 10, b"\x0e\x00"),
    "method bzip2": ("method", 10, b"\x0c\x00"),
    "claims 4 GB": ("size", 24, b"\xfe\xff\xff\xff"),
    "claims nothing": ("size", 24, b"\x00\x00\x00\x00"),
    "claims 4 GB packed": ("packed", 20, b"\xfe\xff\xff\xff"),
    "another checksum": ("crc", 16, b"\x01\x02\x03\x04"),
    "lies elsewhere": ("offset", 42, b"\xf0\x00\x00\x00"),
}
NAMED = ("../x.npy", "/tmp/x.npy", "x/", "", "../../canary", "x\0.npy", "images.npy", "labels.npy", "\\x.npy")
members = st.builds(Member, st.integers(0, 5), st.sampled_from(sorted([*MEMBER, *(f"called {n}" for n in NAMED)])))


def edited_archive(contents: Mapping[str, bytes], edits: Sequence[Member], *, method: int) -> bytes:
    """A zip archive of some members, with edits of their names and headers."""
    names = list(contents)
    for which, what in edits:
        if what.startswith("called ") and names:
            names[which % len(names)] = what.removeprefix("called ")
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w", method) as archive, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Duplicate name")
        for name, content in zip(names, contents.values(), strict=True):
            info = zipfile.ZipInfo(name or "?")
            info.filename, info.compress_type = name, method
            archive.writestr(info, content)
    made = bytearray(packed.getvalue())
    for which, what in edits:
        if what in MEMBER and names:
            _patch(made, which % len(names), *MEMBER[what])
    return bytes(made)


def _patch(archive: bytearray, which: int, field: str, at: int, value: bytes) -> None:
    at_central = -1
    for _ in range(which + 1):
        at_central = archive.find(b"PK\x01\x02", at_central + 1)
    if at_central < 0:
        return
    local = struct.unpack_from("<L", archive, at_central + 42)[0]
    archive[at_central + at : at_central + at + len(value)] = value
    if field in ("flags", "method"):
        archive[local + at - 2 : local + at - 2 + len(value)] = value


@cache
def bomb(name: str, header: bytes, zeros: int) -> bytes:
    """A zip archive of one member: a header and so many zeros, packed a thousand times smaller."""
    block = bytes(2**20)
    packer = compressobj(9, wbits=-15)
    packed = packer.compress(header) + packer.flush(Z_FULL_FLUSH)
    one = compressobj(9, wbits=-15)
    first = one.compress(block) + one.flush(Z_FULL_FLUSH)
    blocks = -(-zeros // len(block))
    checksum = crc32(header)
    for _ in range(blocks):
        checksum = crc32(block, checksum)
    packed += first * blocks + compressobj(9, wbits=-15).flush()
    size = len(header) + blocks * len(block)
    fields = (20, 0, 8, 0, 33, checksum, len(packed), size, len(name))
    local = struct.pack("<4s5H3L2H", b"PK\x03\x04", *fields, 0) + name.encode()
    central = struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 20, *fields, 0, 0, 0, 0, 0, 0) + name.encode()
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, len(central), len(local) + len(packed), 0)
    return local + packed + central + end


# ------------------------------------------------------------------------------------------------ arrays

DTYPES = ("|u1", "<f4", "<f8", ">f4", "<f2", "<i8", ">i8", "<i4", "|b1", "<c8", "<U4", "<M8[s]", "|S3", "|V5", "<f16")
SHAPES = ("(4, 3, 8, 8)", "(4, 8, 8, 3)", "(4, 8, 8)", "(4,)", "(4, 1)", "()", "(0,)", "(0, 3, 8, 8)", "(4, 2, 8, 8)",
          "(1, 1, 1, 1)", "(4, 1, 1, 3)", "(3, 4, 8, 8)")  # fmt: skip
ODD_HEADERS: Mapping[str, str] = {
    "a million million": "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000,)}",
    "3 GB": "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000, 3, 32, 32)}",
    "700 MB": "{'descr': '|u1', 'fortran_order': False, 'shape': (230000, 3, 32, 32)}",
    "negative": "{'descr': '|u1', 'fortran_order': False, 'shape': (-4, 3, 8, 8)}",
    "overflows": "{'descr': '<f8', 'fortran_order': False, 'shape': (4294967296, 4294967296, 3)}",
    "many axes": "{'descr': '|u1', 'fortran_order': False, 'shape': (" + "1, " * 70 + ")}",
    "digits": "{'descr': '|u1', 'fortran_order': False, 'shape': (" + "9" * 5000 + ",)}",
    "objects": "{'descr': '|O', 'fortran_order': False, 'shape': (4,)}",
    "structured": "{'descr': [('a', '<i4'), ('b', '|O')], 'fortran_order': False, 'shape': (4,)}",
    "fields": "{'descr': [('a', '<i4'), ('b', '<f4')], 'fortran_order': False, 'shape': (4,)}",
    "torn": "{'shape': 1",
    "no shape": "{'descr': '|u1', 'fortran_order': False}",
    "no dict": "[1]",
    "code": "__import__('os').system('touch canary')",
    "deep": "(" * 900 + ")" * 900,
    "empty": "",
    "no type": "{'descr': 'x', 'fortran_order': False, 'shape': (4,)}",
    "none": "{'descr': None, 'fortran_order': None, 'shape': None}",
    "text": "{'descr': '|u1', 'fortran_order': 'no', 'shape': '4'}",
    "fortran": "{'descr': '<f4', 'fortran_order': True, 'shape': (4, 3, 8, 8)}",
    "bool shape": "{'descr': '|u1', 'fortran_order': False, 'shape': (True, True)}",
}


class Array(NamedTuple):
    """An .npy file: a type and a shape, or one of the odd headers; and its values."""

    header: str
    shape: str
    values: str


VALUES = ("labels", "halves", "ones", "zeros", "noise", "NaN", "inf", "negative", "256", "none", "half of them")
arrays = st.builds(
    Array,
    st.sampled_from(sorted([*DTYPES, *ODD_HEADERS])),
    st.sampled_from(SHAPES),
    st.sampled_from(VALUES),
)


def npy(array: Array) -> bytes:
    """The bytes of an .npy file."""
    import numpy as np

    text = ODD_HEADERS.get(array.header) or (
        ""
        if array.header == "empty"
        else f"{{'descr': '{array.header}', 'fortran_order': False, 'shape': {array.shape}}}"
    )
    padded = text + " " * (-(len(text) + 11) % 64) + "\n"
    size = struct.pack("<H", len(padded)) if len(padded) < 2**16 else struct.pack("<L", len(padded))
    version = b"\x01\x00" if len(size) == 2 else b"\x02\x00"
    values: dict[str, float] = {"halves": 0.5, "ones": 1, "NaN": np.nan, "inf": np.inf, "negative": -1, "256": 256}
    if array.header in ODD_HEADERS:
        content = bytes(range(256)) * 12
    else:
        dtype, shape = np.dtype(array.header), eval(array.shape)  # our own table
        count = int(np.prod(shape))
        numbers = np.arange(count) % 3 if array.values == "labels" else np.full(count, values.get(array.values, 0.0))
        if array.values == "noise":
            numbers = np.random.default_rng(0).random(count)
        with np.errstate(all="ignore"):
            fits = dtype.kind in "biufc" and (dtype.kind in "fc" or np.isfinite(numbers).all())
            content = (numbers % 256 if dtype.kind == "u" else numbers).astype(dtype).tobytes() if fits else (
                bytes(count * dtype.itemsize))  # fmt: skip
        if array.values in ("none", "half of them"):
            content = content[: 0 if array.values == "none" else len(content) // 2]
    return b"\x93NUMPY" + version + size + padded.encode("latin-1") + content


ARRAY_NAMES = ("images", "labels", "x", "y", "data", "targets", "x_train", "y_train", "other", "a.b", "images/x")


class Npz(NamedTuple):
    """An .npz file: named arrays, edits of its members' headers, edits of its bytes."""

    arrays: tuple[tuple[str, Array], ...]
    members: tuple[Member, ...] = ()
    packed: bool = True
    edits: tuple[BytesEdit, ...] = ()


GOOD_ARRAYS = (
    ("images", Array("|u1", "(4, 3, 8, 8)", "zeros")),
    ("labels", Array("<i8", "(4,)", "labels")),
)
npz_files = st.builds(
    Npz,
    st.one_of(
        st.just(GOOD_ARRAYS),
        st.tuples(st.just("images"), arrays).map(lambda pair: (pair, GOOD_ARRAYS[1])),
        st.tuples(st.just("labels"), arrays).map(lambda pair: (GOOD_ARRAYS[0], pair)),
        st.lists(st.tuples(st.sampled_from(ARRAY_NAMES), arrays), max_size=3, unique_by=lambda pair: pair[0]).map(
            tuple
        ),
    ),
    st.lists(members, max_size=1).map(tuple),
    st.booleans(),
    st.just(()) | bytes_edits,
)


def npz(file: Npz) -> bytes:
    """The bytes of an .npz file."""
    contents = {f"{name}.npy": npy(array) for name, array in file.arrays}
    method = zipfile.ZIP_DEFLATED if file.packed else zipfile.ZIP_STORED
    return edited_bytes(edited_archive(contents, file.members, method=method), file.edits)


def header(name: str) -> bytes:
    """The first bytes of an .npy file with an odd header, for a `bomb`."""
    return npy(Array(name, "()", "none"))[: -256 * 12]


def tabled(makers: Mapping[str, Callable[[], Any]]) -> st.SearchStrategy[str]:
    """The names of a table of odd objects, which are made when they are needed."""
    return st.sampled_from(sorted(makers))
