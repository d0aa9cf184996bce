r"""The index of an NDTiff data set (version 3): which image lies where, readable while it is written.

An entry is an image: the length of its axes as JSON, the axes, the length of a file name, the name, and eight unsigned
32-bit numbers (byte of the pixels, width, height, pixel type, two compressions, byte and length of the metadata), all
little-endian. Micro-Manager writes pixels first and the entry after, into an index that has 25 MiB of zeros from the
start; the Python writer's index grows in steps that may end anywhere. So whatever entry is there is an image that is
there, and `IndexEnd` says how the rest looks. `parse` can be called again from where it ended.

Format: ``NDTiffIndexEntry`` of NDStorage (Java and Python).

>>> import json, struct
>>> axes, name = json.dumps({"z": 3, "channel": "DAPI"}).encode(), b"a_NDTiffStack.tif"
>>> head = struct.pack("<I", len(axes)) + axes + struct.pack("<I", len(name)) + name
>>> raw = head + struct.pack("<8I", 206, 64, 48, 1, 0, 6350, 2, 0)
>>> found = parse(raw + bytes(64))
>>> found.entries[0].axes, found.end, found.parsed_bytes == len(raw)
({'z': 3, 'channel': 'DAPI'}, <IndexEnd.ZEROS: 'zeros'>, True)
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, BinaryIO

from ssai3d_rt.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

PREALLOCATED_BYTES = 26_214_400
"""What Micro-Manager gives an index at the start, and takes back at the end."""

BYTES_PER_SAMPLE = {0: 1, 1: 2, 3: 2, 4: 2, 5: 2, 6: 2}
"""Grey pixel types: 8 bit; 16, 10, 12, 14 and 11 bit in two bytes. 2 is colour."""

MAX_TEXT_BYTES = 65_536
MAX_NAME_BYTES = 1024
MAX_INDEX_BYTES = 1 << 30
MAX_IMAGES = 5_000_000

_BLOCK_BYTES = 1 << 20
_NUMBERS = struct.Struct("<8I")


class IndexEnd(str, Enum):
    """How an index ends."""

    ENTRY = "entry"
    """With an entry: nothing says that more will come."""
    ZEROS = "zeros"
    """With the zeros that were put there beforehand: it is being written, or its writer died."""
    INSIDE = "inside"
    """Inside an entry: half of it is there."""


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One image: its axes (numbers or names), the file, and where in it pixels and metadata lie (bytes)."""

    axes: Mapping[str, int | str]
    file: str
    pixels_at: int
    width: int
    height: int
    pixel_type: int
    metadata_at: int
    metadata_bytes: int

    @property
    def pixels_end(self) -> int:
        """Byte after its last pixel."""
        return self.pixels_at + self.width * self.height * BYTES_PER_SAMPLE.get(self.pixel_type, 3)

    @property
    def end(self) -> int:
        """Byte after all that belongs to it."""
        return max(self.pixels_end, self.metadata_at + self.metadata_bytes)


@dataclass(frozen=True, slots=True)
class Index:
    """What an index holds by now; `parsed_bytes` is where the next entry will begin."""

    entries: list[IndexEntry]
    end: IndexEnd
    parsed_bytes: int


def read_index(file: BinaryIO, size: int, start: int = 0) -> Index:
    """Read the entries from byte `start` of an opened index of `size` bytes, no further than its zeros.

    Raises
    ------
    InputError
        It is damaged, leads out of its folder, or is larger than any acquisition makes it.
    """
    if size > MAX_INDEX_BYTES:
        raise InputError(f"its index has {size} bytes; not plausible")
    entries: list[IndexEntry] = []
    data, at = b"", start
    while True:
        file.seek(at + len(data))
        more = file.read(max(0, min(_BLOCK_BYTES, size - at - len(data))))
        data += more
        found = parse(data, whole=not more or at + len(data) >= size)
        entries += found.entries
        if len(entries) > MAX_IMAGES:
            raise InputError(f"its index lists more than {MAX_IMAGES} images; refused")
        at += found.parsed_bytes
        data = data[found.parsed_bytes :]
        if found.end is IndexEnd.ZEROS or not more:
            return Index(entries, found.end, at)


def parse(data: bytes, *, whole: bool = True) -> Index:
    """Take the entries out of `data`, which begins with one.

    Parameters
    ----------
    data
        The index, or the next part of it.
    whole
        Whether `data` goes to the end of the index; else what cannot be understood may still be half read.

    Raises
    ------
    InputError
        It is damaged, or leads out of its folder.
    """
    entries: list[IndexEntry] = []
    at = 0
    while at < len(data):
        if len(data) - at >= 4 and data[at : at + 4] == bytes(4):
            return Index(entries, IndexEnd.ZEROS, at)
        try:
            entry, following = _entry(data, at)
        except _HalfError:
            return Index(entries, IndexEnd.INSIDE, at)
        except _UnwrittenError as error:
            if whole and len(data[at:].rstrip(b"\0")) <= error.length:
                return Index(entries, IndexEnd.INSIDE, at)  # written into zeros, and not to its end yet
            raise InputError(f"its index is damaged at byte {at}: {error.words}") from error
        entries.append(entry)
        at = following
    return Index(entries, IndexEnd.ENTRY, at)


class _HalfError(Exception):
    """An entry goes on beyond the bytes that are there."""


class _UnwrittenError(Exception):
    """An entry of `length` bytes holds zeros where there are none."""

    def __init__(self, length: int, words: str) -> None:
        super().__init__(words)
        self.length, self.words = length, words


def _entry(data: bytes, at: int) -> tuple[IndexEntry, int]:
    number = at
    text, at = _text(data, at, MAX_TEXT_BYTES, number)
    name, at = _text(data, at, MAX_NAME_BYTES, number)
    if at + _NUMBERS.size > len(data):
        raise _HalfError
    pixels_at, width, height, kind, packed, metadata_at, metadata_bytes, _ = _NUMBERS.unpack_from(data, at)
    following = at + _NUMBERS.size
    if b"\0" in text + name or not (width and height and pixels_at):
        words = f"{width} x {height} pixels at byte {pixels_at}, with the axes {text[:60]!r}"
        raise _UnwrittenError(following - number, words)
    try:
        axes = json.loads(text.decode("utf-8"))
        file = name.decode("utf-8")
    except (ValueError, RecursionError) as exc:
        raise InputError(f"its index is damaged at byte {number}: {type(exc).__name__}") from exc
    if not isinstance(axes, dict) or not all(type(value) in (int, str) for value in axes.values()):
        raise InputError(f"its index is damaged at byte {number}: the axes are {text[:60]!r}")
    if file in (".", "..") or any(c in file for c in "/\\:"):
        raise InputError(f"its index refers to the file {file!r} outside its own folder; refused")
    if max(width, height) > 65_536 or pixels_at < 8:
        raise InputError(f"its index is damaged at byte {number}: {width} x {height} pixels at byte {pixels_at}")
    if kind not in BYTES_PER_SAMPLE:
        what = "colour (RGB) images; save grey values" if kind == 2 else f"images of the unknown pixel type {kind}"
        raise InputError(f"its index lists {what}")
    if packed:
        raise InputError(f"its index lists images compressed in a way that is not known ({packed})")
    return IndexEntry(axes, file, pixels_at, width, height, kind, metadata_at, metadata_bytes), following


def _text(data: bytes, at: int, limit: int, number: int) -> tuple[bytes, int]:
    if at + 4 > len(data):
        raise _HalfError
    (length,) = struct.unpack_from("<I", data, at)
    if not length:
        raise _UnwrittenError(at + 4 - number, "a name without letters")
    if length > limit:
        raise InputError(f"its index is damaged at byte {number}: a text of {length} bytes")
    if at + 4 + length > len(data):
        raise _HalfError
    return data[at + 4 : at + 4 + length], at + 4 + length
