"""Thirty-two kinds of bad input, each made for real: damaged, hostile, special or strangely named files and data sets.

`CASES` holds one or more of each kind, by the number that it has in the reliability reference. A maker puts its file
into a folder under a name that begins with its number, so that a daemon's log can be read.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile

from tests.imaging.folders import let_go, ndtiff, ome_zarr
from tests.runtime.daemon import stack_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DATA = np.random.default_rng(0).integers(1, 4000, (8, 64, 64), dtype=np.uint16)
_OME = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
_PIXELS = '<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="64" SizeY="64" SizeZ="{z}" SizeC="1" '
_PIXELS += 'SizeT="1" PhysicalSizeX="0.1" PhysicalSizeY="0.1" PhysicalSizeZ="0.4">{data}</Pixels>'


@dataclass(frozen=True, slots=True)
class Bad:
    """One bad input.

    Parameters
    ----------
    number
        Of its kind.
    what
        In words.
    make
        Makes it in a folder, and returns its path.
    wanted
        States in which it may end; ``none`` is no row in the ledger at all.
    needs_root
        Whether only root can make it.
    """

    number: int
    what: str
    make: Callable[[Path], Path]
    wanted: tuple[str, ...] = ("failed",)
    needs_root: bool = False


def good(path: Path, **options: Any) -> bytes:
    """Write a good stack, return its bytes."""
    given: dict[str, Any] = {"imagej": True, "resolution": (10, 10), "metadata": SPACING} | options
    tifffile.imwrite(path, DATA, **given)
    return path.read_bytes()


SPACING = {"axes": "ZYX", "spacing": 0.4, "unit": "um"}
OME: dict[str, Any] = {
    "ome": True,
    "imagej": False,
    "metadata": {"axes": "ZYX", "PhysicalSizeX": 0.1, "PhysicalSizeZ": 0.4},
}


def page_by_page(path: Path) -> bytes:
    """Write a plain TIFF page by page, which declares nothing."""
    with tifffile.TiffWriter(path) as writer:
        for plane in DATA:
            writer.write(plane, contiguous=False, metadata=None, photometric="minisblack", resolution=(10, 10))
    return path.read_bytes()


def ifd(width: int, height: int, *, following: int = 0, **tags: int) -> bytes:
    """One classic page: `tags` may give `bits`, `at`, `length`, `compression`."""
    values = [
        (256, 4, width),
        (257, 4, height),
        (258, 3, tags.get("bits", 16)),
        (259, 3, tags.get("compression", 1)),
        (262, 3, 1),
        (273, 4, tags.get("at", 2000)),
        (277, 3, 1),
        (278, 4, height),
        (279, 4, tags.get("length", width * height * 2 & 0xFFFFFFFF)),
    ]
    packed = b"".join(
        struct.pack("<HHI", tag, kind, 1) + (struct.pack("<HH", value, 0) if kind == 3 else struct.pack("<I", value))
        for tag, kind, value in values
    )
    return struct.pack("<H", len(values)) + packed + struct.pack("<I", following)


def chained(count: int, width: int, height: int, *, back_to: int = 0, data: bytes = b"\1" * 128, **tags: int) -> bytes:
    """A file of pages that share their pixels; the last page leads to byte `back_to`."""
    size = len(ifd(1, 1))
    head = b"II*\0" + struct.pack("<I", 8)
    following = [8 + (at + 1) * size for at in range(count - 1)] + [back_to]
    at = 8 + count * size
    return head + b"".join(ifd(width, height, following=f, at=at, **tags) for f in following) + data


def _bytes(name: str, data: Callable[[Path], bytes]) -> Callable[[Path], Path]:
    """Maker of a file with these bytes; they are made in a hidden file first."""

    def make(folder: Path) -> Path:
        hidden, path = folder / ".being-made.tif", folder / name
        content = data(hidden)
        hidden.write_bytes(content)
        os.rename(hidden, path)
        return path

    return make


def _written(name: str, data: Any, **options: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        hidden, path = folder / ".being-made.tif", folder / name
        tifffile.imwrite(hidden, data, **options)
        os.rename(hidden, path)
        return path

    return make


def _ome(name: str, blocks: str, *, planes: int, before: str = "", write: int = 1) -> Callable[[Path], Path]:
    pixels = _PIXELS.format(z=planes, data=blocks)
    text = f'{before}<OME xmlns="{_OME}"><Image ID="Image:0">{pixels}</Image></OME>'
    return _written(name, DATA[:write], description=text, metadata=None, photometric="minisblack")


def _named(name: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        hidden, path = stack_file(folder / ".being-made.ome.tif", len(name)), folder / os.fsdecode(name)
        os.rename(hidden, path)
        return path

    return make


def _special(name: str, make_it: Callable[[Path], object]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        make_it(folder / name)
        return folder / name

    return make


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # such names are short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def _traversal(folder: Path) -> Path:
    secret = folder.parent / "secret"
    secret.mkdir(exist_ok=True)
    tifffile.imwrite(secret / "other.tif", np.full((8, 64, 64), 777, np.uint16))
    block = '<TiffData IFD="{0}" FirstZ="{0}" PlaneCount="1"><UUID FileName="{1}">urn:uuid:{0}</UUID></TiffData>'
    blocks = "".join(block.format(z, "11-led-out.ome.tif" if z < 4 else "../secret/other.tif") for z in range(8))
    return _ome("11-led-out.ome.tif", blocks, planes=8, write=8)(folder)


def _ndtiff(folder: Path) -> Path:
    path = folder / "28-unfinished"
    let_go(ndtiff(path, np.ascontiguousarray(DATA[None, None, :5, :32, :32])))
    return path


def _zarr(name: str, damage: Callable[[Path], object], **array: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        hidden = folder / f".{name}.tmp"
        ome_zarr(hidden, DATA, "zyx", **array)
        damage(hidden)
        os.rename(hidden, folder / f"{name}.zarr")
        return folder / f"{name}.zarr"

    return make


def chunk(folder: Path) -> Path:
    """A chunk in the middle of a zarr."""
    return folder / "0" / "c" / "3" / "0" / "0"


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _linked(path: Path) -> None:
    outside = path.parents[4] / "secret-chunk"
    os.rename(path, outside)
    os.symlink(outside, path)


def _deflated(length: int) -> bytes:
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(length >> 20)) + packer.flush()


def _bomb(side: int, length: int) -> bytes:
    data = _deflated(length)
    return chained(4, side, side, bits=8, compression=8, length=len(data), data=data)


_ENTITIES = "".join(f'<!ENTITY {chr(98 + at)} "{("&" + chr(97 + at) + ";") * 10}">' for at in range(8))
_BOMB_XML = f'<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "aaaaaaaaaa">{_ENTITIES}]>'
_FLOATS = DATA.astype(np.float32)
_FLOATS[0, 0, 0], _FLOATS[1, 1, 1] = np.nan, np.inf
_REPEATED = "e" * 247


def _nfd(folder: Path) -> Path:
    _named("20-caf\u00e9.ome.tif".encode())(folder)
    return _named("20-cafe\u0301.ome.tif".encode())(folder)


CASES: tuple[Bad, ...] = (
    Bad(1, "no bytes at all", _bytes("01-empty.tif", lambda _: b"")),
    Bad(2, "the first 4 bytes of a header", _bytes("02-four.tif", lambda p: good(p)[:4])),
    Bad(3, "a header alone", _bytes("03-header.tif", lambda p: good(p)[:8])),
    Bad(4, "cut off, contiguous", _bytes("04-cut.tif", lambda p: good(p)[:40_000])),
    Bad(5, "cut off OME-TIFF", _bytes("05-cut.ome.tif", lambda p: good(p, **OME)[:40_000])),
    Bad(6, "cut off page by page", _bytes("06-pages.tif", lambda p: page_by_page(p)[:41_000])),
    Bad(6, "page by page, zeros at the end", _bytes("06-zeros.tif", lambda p: page_by_page(p)[:41_000] + bytes(9999))),
    Bad(7, "a page leads to itself", _bytes("07-self.tif", lambda _: chained(1, 8, 8, back_to=8))),
    Bad(7, "pages lead in a circle", _bytes("07-circle.tif", lambda _: chained(2, 8, 8, back_to=8))),
    Bad(8, "298 GiB claimed", _bytes("08-huge.tif", lambda _: chained(4, 400_000, 400_000, length=128))),
    Bad(8, "2^32 - 1 pixels a side", _bytes("08-max.tif", lambda _: chained(4, 2**32 - 1, 2**32 - 1, length=128))),
    Bad(9, "a thousandfold compression bomb", _bytes("09-bomb.tif", lambda _: _bomb(20_000, 400 << 20))),
    Bad(9, "a strip longer than it says", _bytes("09-long.tif", lambda _: _bomb(64, 1 << 30))),
    Bad(
        10,
        "OME-XML claims a million planes",
        _ome("10-million.ome.tif", '<TiffData IFD="0" PlaneCount="1"/>', planes=1_000_000),
    ),
    Bad(11, "OME-XML names a file outside", _traversal),
    Bad(12, "an XML entity bomb", _ome("12-bomb.ome.tif", "<TiffData/>&i;", planes=8, before=_BOMB_XML, write=8)),
    Bad(13, "complex samples", _written("13-complex.tif", DATA.astype(np.complex64), photometric="minisblack")),
    Bad(13, "colour", _written("13-rgb.tif", DATA[:4, :, :, None].repeat(3, 3).astype(np.uint8), photometric="rgb")),
    Bad(13, "NaN and infinity", _written("13-nan.tif", _FLOATS, imagej=True, resolution=(10, 10), metadata=SPACING)),
    Bad(14, "one plane", _written("14-plane.tif", DATA[0]), ("failed", "skipped")),
    Bad(
        15,
        "pages of different sizes",
        _bytes("15-mixed.tif", lambda _: _two_sizes()),
    ),
    Bad(16, "no pixels at all", _bytes("16-zero.tif", lambda _: chained(4, 0, 0, length=0))),
    Bad(17, "a name that is not UTF-8", _named(b"17-\xff\xfe\x80.ome.tif"), ("done",)),
    Bad(18, "a name of 255 bytes", _named(b"18-" + b"n" * 244 + b".ome.tif"), ("done",)),
    Bad(19, "a name with a line break", _named(b"19-line\nbreak.ome.tif"), ("done",)),
    Bad(19, "a name with control characters", _named(b"19-\x1b[31m\ttab.ome.tif"), ("done",)),
    Bad(19, "a name that is markup", _named(b"19-<script>alert(1)<\\script>.ome.tif"), ("done",)),
    Bad(19, "a name that begins with a dash", _named(b"-rf.ome.tif"), ("done",)),
    Bad(19, "a name that begins with a blank", _named(b" blank.ome.tif"), ("done",)),
    Bad(19, "a name that Windows keeps", _named(b"con.tif"), ("done",)),
    Bad(20, "one name in two Unicode forms", _nfd, ("done",)),
    Bad(21, "a link to itself", _special("21-loop.tif", lambda p: os.symlink(p, p)), ("none", "skipped")),
    Bad(22, "a link to /dev/zero", _special("22-zero.tif", lambda p: os.symlink("/dev/zero", p)), ("none", "skipped")),
    Bad(
        22,
        "a device",
        _special("22-device.tif", lambda p: os.mknod(p, 0o20600, os.makedev(1, 5))),
        ("none", "skipped"),
        needs_root=True,
    ),
    Bad(22, "a folder", _special("22-folder.tif", lambda p: p.mkdir()), ("none", "skipped")),
    Bad(22, "a socket", _special("22-socket.tif", _socket), ("none", "skipped")),
    Bad(23, "a named pipe", _special("23-pipe.tif", os.mkfifo), ("none", "skipped")),
    Bad(27, "100,000 pages", _bytes("27-pages.tif", lambda _: chained(100_000, 1, 1, bits=8, length=1))),
    Bad(28, "an unfinished NDTiff", _ndtiff),
    Bad(29, "a chunk is missing", _zarr("29-missing", lambda p: chunk(p).unlink())),
    Bad(29, "a chunk is empty", _zarr("29-empty", lambda p: chunk(p).write_bytes(b""))),
    Bad(29, "half a chunk", _zarr("29-half", lambda p: _cut(chunk(p)))),
    Bad(29, "half a chunk, not compressed", _zarr("29-half-raw", lambda p: _cut(chunk(p)), compressors=None)),
    Bad(29, "a bit of a chunk (zstd)", _zarr("29-bit", lambda p: _flip(chunk(p))), ("done", "failed")),
    Bad(29, "a bit, not compressed", _zarr("29-bit-raw", lambda p: _flip(chunk(p)), compressors=None), ("done",)),
    Bad(30, "half a zarr.json", _zarr("30-half", lambda p: _cut(p / "0" / "zarr.json"))),
    Bad(30, "more behind a zarr.json", _zarr("30-tail", lambda p: (p / "0" / "zarr.json").open("a").write("}more}"))),
    Bad(
        31,
        "10^19 voxels claimed",
        _zarr("31-huge", lambda p: _edit(p / "0" / "zarr.json", lambda j: j.update(shape=[10**9, 10**5, 10**5]))),
    ),
    Bad(32, "a chunk is a link", _zarr("32-link", lambda p: _linked(chunk(p)))),
)


def _two_sizes() -> bytes:
    pages = ifd(8, 8, following=122, at=600, length=128) + ifd(16, 16, at=600, length=512)
    return (b"II*\0" + struct.pack("<I", 8) + pages).ljust(600, b"\0") + bytes(range(256)) * 4
