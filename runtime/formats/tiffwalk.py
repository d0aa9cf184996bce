"""Walk the chain of image file directories (IFDs) of a TIFF, with bounded reads and no pixel touched.

The walk reports what the bytes say: each plane's size and where its data ends, how the chain ends, what the first
plane's description holds. It judges nothing (see `complete`), never maps the file, and reads at most `MAX_PAGES`
directories, so a file that is half written, pre-allocated with zeros, cyclic or hostile costs little. Classic TIFF and
BigTIFF, both byte orders (TIFF 6.0 section 2; BigTIFF as in libtiff).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import Enum
from typing import BinaryIO, cast

import numpy as np

MAX_PAGES = 65_536
MAX_ENTRIES = 1024
MAX_SEGMENTS = 1 << 20
MAX_DESCRIPTION_BYTES = 64 << 20

_WIDTH, _LENGTH, _BITS, _COMPRESSION, _DESCRIPTION, _SAMPLES = 256, 257, 258, 259, 270, 277
_SUBFILE = 254
_OFFSETS, _COUNTS = {273, 324}, {279, 325}
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_INTEGERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}


class End(str, Enum):
    """How the chain of directories ends."""

    FINISHED = "finished"
    """The last directory's next pointer is 0."""
    BEYOND = "lies beyond the end of the file"
    """A directory, or an array it points to, lies outside the file."""
    UNWRITTEN = "is not written yet"
    """A next pointer leads into bytes that hold no directory."""
    CYCLIC = "cyclic"
    TOO_MANY = "too many planes"


@dataclass(frozen=True, slots=True)
class Page:
    """One directory: one plane.

    `data_start` and `data_end` bound its strips or tiles in the file; `data_bytes` is their sum; `unwritten` counts
    those with no place yet.
    """

    width: int
    length: int
    bits: int
    samples: int
    compression: int
    reduced: bool
    data_start: int
    data_end: int
    data_bytes: int
    unwritten: int

    @property
    def plane_bytes(self) -> int:
        """Bytes of the plane when not compressed."""
        return (self.width * self.samples * self.bits + 7) // 8 * self.length


@dataclass(frozen=True, slots=True)
class Chain:
    """What the walk found. `descriptions` are those of the first directory, empty ones included."""

    end: End
    pages: list[Page]
    descriptions: list[bytes]
    stopped_at: int
    """Offset of the directory at which the walk ended."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Byte order and field widths of one file."""

    order: str
    big: bool
    first: int

    @property
    def entry_bytes(self) -> int:
        """Length of one directory entry."""
        return 20 if self.big else 12


class NotTiffError(ValueError):
    """The bytes do not begin like a TIFF."""


def layout(header: bytes) -> Layout:
    """Byte order, kind and first directory from the first 16 bytes.

    Raises
    ------
    NotTiffError
        No TIFF begins like this.
    """
    order = {b"II": "<", b"MM": ">"}.get(header[:2])
    if order is None:
        raise NotTiffError
    (magic,) = struct.unpack_from(order + "H", header, 2)
    if magic == 42:
        return Layout(order, False, *struct.unpack_from(order + "I", header, 4))
    if magic == 43 and struct.unpack_from(order + "HH", header, 4) == (8, 0):
        return Layout(order, True, *struct.unpack_from(order + "Q", header, 8))
    raise NotTiffError


def walk(file: BinaryIO, size: int, tiff: Layout) -> Chain:
    """Follow the chain from the first directory.

    Parameters
    ----------
    file
        Opened for binary reading; read with seek and bounded reads.
    size
        Length of the file in bytes, as `fstat` says.
    tiff
        From `layout`.
    """
    walker = _Walker(file, size, tiff)
    end, stopped_at = walker.run()
    return Chain(end, walker.pages, walker.descriptions, stopped_at)


class _OutsideError(Exception):
    """Something lies outside the file."""


@dataclass(slots=True)
class _Walker:
    file: BinaryIO
    size: int
    tiff: Layout
    pages: list[Page] = field(default_factory=list)
    descriptions: list[bytes] = field(default_factory=list)

    def run(self) -> tuple[End, int]:
        seen: set[int] = set()
        offset = self.tiff.first
        while offset:
            if offset in seen:
                return End.CYCLIC, offset
            if len(self.pages) >= MAX_PAGES:
                return End.TOO_MANY, offset
            seen.add(offset)
            try:
                entries, following = self._directory(offset)
                if not entries:
                    return End.UNWRITTEN, offset
                self.pages.append(self._page(entries))
            except _OutsideError:
                return End.BEYOND, offset
            offset = following
        return (End.FINISHED if self.pages else End.UNWRITTEN), 0

    def _read(self, offset: int, count: int) -> bytes:
        if offset < 8 or offset + count > self.size:
            raise _OutsideError
        self.file.seek(offset)
        data = self.file.read(count)
        if len(data) != count:
            raise _OutsideError
        return data

    def _directory(self, offset: int) -> tuple[list[tuple[int, int, int, bytes]], int]:
        """Entries as (tag, type, count, value field) and the next pointer; no entries where none is written."""
        order, big = self.tiff.order, self.tiff.big
        head = 8 if big else 2
        (count,) = struct.unpack(order + ("Q" if big else "H"), self._read(offset, head))
        if count == 0 or count > MAX_ENTRIES:
            return [], 0
        step, pointer = self.tiff.entry_bytes, 8 if big else 4
        block = self._read(offset + head, count * step + pointer)
        form = struct.Struct(order + ("HHQ8s" if big else "HHI4s"))
        entries = [form.unpack_from(block, index * step) for index in range(count)]
        if any(kind not in _TYPE_BYTES for _, kind, _, _ in entries):
            return [], 0
        (following,) = struct.unpack_from(order + ("Q" if big else "I"), block, count * step)
        return entries, following

    def _bytes(self, kind: int, count: int, value: bytes) -> bytes:
        length = _TYPE_BYTES[kind] * count
        if length <= len(value):
            return value[:length]
        (offset,) = struct.unpack(self.tiff.order + ("Q" if self.tiff.big else "I"), value)
        return self._read(offset, length)

    def _integers(self, kind: int, count: int, value: bytes) -> list[int]:
        if kind not in _INTEGERS or count > MAX_SEGMENTS:
            raise _OutsideError
        raw = self._bytes(kind, count, value)
        if count == 1:
            return [struct.unpack(self.tiff.order + _INTEGERS[kind], raw)[0]]
        width = _TYPE_BYTES[kind]
        return cast("list[int]", np.frombuffer(raw, f"{self.tiff.order}u{width}").tolist())

    def _page(self, entries: list[tuple[int, int, int, bytes]]) -> Page:
        values = {_WIDTH: 0, _LENGTH: 0, _BITS: 1, _COMPRESSION: 1, _SAMPLES: 1, _SUBFILE: 0}
        offsets: list[int] = []
        counts: list[int] = []
        first = not self.pages
        for tag, kind, count, value in entries:
            if tag in values and count:
                values[tag] = self._integers(kind, count, value)[0]
            elif tag in _OFFSETS:
                offsets = self._integers(kind, count, value)
            elif tag in _COUNTS:
                counts = self._integers(kind, count, value)
            elif tag == _DESCRIPTION and first:
                text = self._bytes(kind, min(count, MAX_DESCRIPTION_BYTES), value) if count else b""
                self.descriptions.append(text.rstrip(b"\0"))
        placed = [(start, length) for start, length in zip(offsets, counts, strict=False) if start and length]
        return Page(
            width=values[_WIDTH],
            length=values[_LENGTH],
            bits=values[_BITS],
            samples=values[_SAMPLES],
            compression=values[_COMPRESSION],
            reduced=bool(values[_SUBFILE] & 1),
            data_start=min((start for start, _ in placed), default=0),
            data_end=max((start + length for start, length in placed), default=0),
            data_bytes=sum(length for _, length in placed),
            unwritten=max(len(offsets), len(counts), 1) - len(placed),
        )
