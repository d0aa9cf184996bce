r"""Open a source file safely, and walk a TIFF file's page chain: what has to hold before any pixel is trusted.

A rig folder holds anything: named pipes that would block forever, circular links, half-copied files. Everything that
reads a source goes through `open_regular`, and every TIFF through `page_offsets`, which finds a cut-off, unfinished or
circular chain of pages without help from a library that might repair it in silence. It knows nothing of pixels or
metadata.

>>> shown("cells\n1.tif")
'cells\\n1.tif'
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from typing import TYPE_CHECKING, BinaryIO

from ssai3d_rt.errors import IncompleteError, InputError

if TYPE_CHECKING:
    from pathlib import Path

MAX_PAGES = 1_000_000
"""More pages than this in one file are refused: a guard against hostile or damaged files."""

MAX_TAGS = 4096
"""More tags than this in one page mean that the chain points into pixels."""


def shown(path: os.PathLike[str] | str) -> str:
    """Return `path` as it can stand in a one-line message: control and undecodable characters escaped."""
    text = str(path)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; never blocks on a pipe and never reads a device.

    Raises
    ------
    InputError
        The path is missing, not readable, circular, or not a regular file.
    """
    try:
        _require_regular(path, os.stat(path).st_mode)
        nonblocking = getattr(os, "O_NONBLOCK", 0)  # in case the file is swapped for a pipe in between
        file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | nonblocking))  # noqa: SIM115
    except OSError as exc:
        raise InputError(f"{shown(path)}: {_reason(exc)}") from exc
    try:
        _require_regular(path, os.fstat(file.fileno()).st_mode)
    except InputError:
        file.close()
        raise
    return file


def signature(file: BinaryIO) -> tuple[int, int, int]:
    """Return (inode, size in bytes, mtime in ns) of an open file: equal before and after means it was not changed."""
    status = os.fstat(file.fileno())
    return status.st_ino, status.st_size, status.st_mtime_ns


def page_offsets(file: BinaryIO, path: Path) -> list[int]:
    """Return the byte offset of each page of a TIFF or BigTIFF file, in order.

    Raises
    ------
    IncompleteError
        As `page_chain`, or the chain does not end, as while a file is being written, copied or was cut off.
    InputError
        As `page_chain`.
    """
    offsets, missing = page_chain(file, path)
    if missing:
        raise IncompleteError(missing)
    return offsets


def page_chain(file: BinaryIO, path: Path) -> tuple[list[int], str]:
    """Return the byte offsets of the pages that are there, and what is missing after them; empty at the chain's end.

    Raises
    ------
    IncompleteError
        The header is cut off, or announces no page.
    InputError
        Not a TIFF file, or a chain that is circular or damaged.
    """
    size = os.fstat(file.fileno()).st_size
    if size < 8:
        raise IncompleteError(
            f"{shown(path)}: only {size} bytes, not even a TIFF header; wait for it, or copy it again"
        )
    file.seek(0)
    header = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(header[:2])
    version = struct.unpack(f"{order}H", header[2:4])[0] if order else 0
    if version not in (42, 43):
        raise InputError(f"{shown(path)}: not a TIFF file (it starts with {header[:4]!r})")
    if version == 43 and size < 16:
        raise IncompleteError(f"{shown(path)}: only {size} bytes, not even a BigTIFF header")
    count_format, offset_format, tag_bytes = (
        (f"{order}H", f"{order}I", 12) if version == 42 else (f"{order}Q", f"{order}Q", 20)
    )
    first = header[4:8] if version == 42 else header[8:16]
    offset = struct.unpack(offset_format, first)[0]
    offsets: dict[int, None] = {}
    while offset:
        page = len(offsets)
        if offset in offsets:
            raise InputError(f"{shown(path)}: damaged, page {page} leads back to an earlier page")
        if page >= MAX_PAGES:
            raise InputError(f"{shown(path)}: more than {MAX_PAGES} pages")
        file.seek(offset)
        raw = file.read(struct.calcsize(count_format))
        tags = struct.unpack(count_format, raw)[0] if len(raw) == struct.calcsize(count_format) else 0
        if tags > MAX_TAGS:
            raise InputError(f"{shown(path)}: damaged, page {page} claims {tags} tags")
        file.seek(tags * tag_bytes, os.SEEK_CUR)
        raw = file.read(struct.calcsize(offset_format))
        if not tags or len(raw) < struct.calcsize(offset_format):
            return list(offsets), (
                f"{shown(path)}: not finished or cut off, page {page} is announced at byte {offset} "
                f"but is not there (file of {size} bytes)"
            )
        offsets[offset] = None
        offset = struct.unpack(offset_format, raw)[0]
    if not offsets:
        raise IncompleteError(f"{shown(path)}: a TIFF header without an image")
    return list(offsets), ""


def _require_regular(path: Path, mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    kind = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }.get(stat.S_IFMT(mode), "a special file")
    raise InputError(f"{shown(path)}: is {kind}, not a file")


def _reason(exc: OSError) -> str:
    words = {
        errno.ENOENT: "no such file",
        errno.ELOOP: "a symbolic link that leads back to itself",
        errno.EACCES: "no permission to read it",
        errno.ENAMETOOLONG: "the name is too long",
    }
    return words.get(exc.errno or 0, exc.strerror or str(exc))
