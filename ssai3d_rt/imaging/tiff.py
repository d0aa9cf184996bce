"""`TiffSource`: the pages of one TIFF file, checked before use and read one at a time.

tifffile decodes; this module decides whether to believe it. A page is listed only if the file's own page chain holds
it, and reading one refuses missing bytes, anything that tifffile complains about in its log, and a file that changed
since it was opened. It does not know which plane of which stack a page is: see `ome`, `mmstack` and `hyperstack`.
"""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
import tifffile

from ssai3d_rt.errors import IncompleteError, InputError
from ssai3d_rt.imaging.openfile import open_regular, page_chain, page_offsets, shown, signature
from ssai3d_rt.imaging.samples import stack_dtype

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ssai3d_rt.imaging.stack import Array

BOMB_BYTES = 256 * 2**20
BOMB_RATIO = 100
"""A compressed plane of more than `BOMB_BYTES` that shrank more than `BOMB_RATIO` times is refused."""

MICRO_MANAGER_MAGIC = 54773648
NDTIFF_MAGIC = 483729

_READABLE_FLAGS = {
    "uniform",
    "shaped",
    "imagej",
    "ome",
    "micromanager",
    "mmstack",
    "virtual",
    "bigtiff",
    "mediacy",
    "metaseries",
}


@dataclass(frozen=True, slots=True)
class Page:
    """One page as the file describes it.

    Parameters
    ----------
    shape
        ``(Y, X)`` pixels.
    dtype
        As stored, native byte order.
    offset
        Byte where the page's tags start.
    pixels_at
        Byte where its pixels start, where they are stored plainly and in one piece; otherwise None (they are decoded).
    index
        Number in the file's page chain.
    """

    shape: tuple[int, int]
    dtype: np.dtype[np.generic]
    offset: int
    pixels_at: int | None
    index: int

    @property
    def nbytes(self) -> int:
        """Bytes of the decoded pixels."""
        return self.shape[0] * self.shape[1] * self.dtype.itemsize


class TiffSource:
    """One TIFF file, opened read-only; a context manager.

    Parameters
    ----------
    path
        The file.
    growing
        List the pages that are whole by now instead of refusing a file that is still being written.

    Raises
    ------
    IncompleteError
        It is empty, cut off, or still being written.
    InputError
        It is not a regular file, not a TIFF, damaged, or of a kind that cannot hold a stack (RGB, complex).
    """

    def __init__(self, path: Path, *, growing: bool = False) -> None:
        self.path = path
        self.growing = growing
        self.chain_ends = True
        self._tiff: tifffile.TiffFile | None = None
        self._file: BinaryIO | None = open_regular(path)
        try:
            self._signature = signature(self._file)
            self._inspect(self._file)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> TiffSource:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; a later `read` opens it again and refuses if it changed."""
        if self._tiff is not None:
            self._tiff.close()
            self._tiff = None
        if self._file is not None:
            self._file.close()
            self._file = None

    @property
    def size_bytes(self) -> int:
        """Size of the file when it was opened."""
        return self._signature[1]

    @property
    def is_micro_manager(self) -> bool:
        """Whether it is an image stack file written by Micro-Manager (1.4 or 2.0)."""
        return self.magic == MICRO_MANAGER_MAGIC

    def read(self, page: Page) -> Array:
        """Return the ``(Y, X)`` pixels of `page`, native byte order.

        Raises
        ------
        IncompleteError
            Bytes are missing, or the file changed since it was opened.
        InputError
            The pixels cannot be decoded.
        """
        file = self._opened()
        if page.pixels_at is not None:
            file.seek(page.pixels_at)
            raw = file.read(page.nbytes)
            if len(raw) < page.nbytes:
                raise IncompleteError(f"{self._page(page)} is cut off: {len(raw)} of {page.nbytes} bytes are there")
            plain = np.frombuffer(raw, page.dtype.newbyteorder(self.byteorder)).reshape(page.shape)
            return plain.astype(page.dtype, copy=False)
        with tifffile_complaints() as complaints:
            try:
                pixels = self._decoder(file).pages[page.index].asarray(maxworkers=1)
            except Exception as exc:  # tifffile and its codecs raise nearly anything on damaged data
                raise InputError(f"{self._page(page)} cannot be decoded: {type(exc).__name__}: {exc}") from exc
        if complaints:
            raise InputError(f"{self._page(page)} cannot be trusted: {complaints[0]}")
        return np.asarray(pixels).reshape(page.shape).astype(page.dtype, copy=False)

    def require_unchanged(self) -> None:
        """Raise `IncompleteError` if the file was changed since it was opened."""
        if self._file is not None and signature(self._file) != self._signature:
            raise IncompleteError(f"{shown(self.path)}: changed while it was being read; wait until it is finished")

    def header(self, start: int, count: int) -> bytes:
        """Return up to `count` bytes from byte `start`, never more than the file holds."""
        file = self._opened()
        file.seek(start)
        return file.read(max(0, min(count, self.size_bytes - start)))

    def virtual_pages(self, planes: int, *, up_to_byte: int | None = None) -> list[Page]:
        """Return `planes` pages stored one after the other behind the first one's tags, as far as the file holds them.

        ImageJ writes large hyperstacks that way: one page of tags, all pixels behind it. So do ome-writers and tifffile
        until they close a file. What ends beyond `up_to_byte` is left out.
        """
        first = self.pages[0]
        if first.pixels_at is None:
            return self.pages[:1]
        end = self.size_bytes if up_to_byte is None else min(up_to_byte, self.size_bytes)
        whole = max(0, min(planes, (end - first.pixels_at) // first.nbytes))
        return [
            Page(first.shape, first.dtype, first.offset, first.pixels_at + i * first.nbytes, 0) for i in range(whole)
        ]

    def _inspect(self, file: BinaryIO) -> None:
        offsets = self._whole_pages(file) if self.growing else page_offsets(file, self.path)
        with tifffile_complaints() as complaints:
            try:
                tiff = self._decoder(file)
                self.byteorder: Literal["<", ">"] = tiff.byteorder
                self._refuse_other_kinds(tiff)
                self.description = tiff.pages.first.description if not self.is_micro_manager else ""
                self.imagej: dict[str, Any] | None = None if self.is_micro_manager else tiff.imagej_metadata
                self.resolution = _resolution(tiff.pages.first)
                self.page_metadata: dict[str, Any] = _page_metadata(tiff.pages.first)
                self.pages = []
                for i, offset in enumerate(offsets):
                    self.pages.append(self._checked(tiff.pages[i], offset, i))
            except IncompleteError:
                if not self.growing or not self.pages:
                    raise
            except InputError:
                raise
            except Exception as exc:  # tifffile raises nearly anything on damaged files
                raise InputError(f"{shown(self.path)}: not a readable TIFF: {type(exc).__name__}: {exc}") from exc
        if complaints:
            raise InputError(f"{shown(self.path)}: cannot be trusted: {complaints[0]}")

    def _whole_pages(self, file: BinaryIO) -> list[int]:
        """Return where the pages are whose tags and pixels can be there.

        While the chain goes on, its last page is held back: writers put tags before pixels, into a file that may have
        its final size from the start.
        """
        offsets, missing = page_chain(file, self.path)
        if missing:
            self.chain_ends = False
            offsets = offsets[:-1]
        if not offsets:
            raise IncompleteError(f"{shown(self.path)}: its first page is not whole yet")
        return offsets

    def _refuse_other_kinds(self, tiff: tifffile.TiffFile) -> None:
        head = self.header(0, 16)
        self.magic = int(np.frombuffer(head[8:12], f"{self.byteorder}u4")[0]) if len(head) >= 12 else 0
        if self.magic == NDTIFF_MAGIC:
            raise InputError(
                f"{shown(self.path)}: part of an NDTiff data set, which cannot be read; "
                "save as image stack files or as OME-TIFF"
            )
        if self.is_micro_manager:  # asking for more would parse display settings that are often damaged
            return
        if self.growing:  # asking for more would look at pages that are not there yet
            return
        if others := sorted(tiff.flags - _READABLE_FLAGS):
            raise InputError(f"{shown(self.path)}: a TIFF of kind {', '.join(others)}; export it as OME-TIFF")

    def _checked(self, page: Any, offset: int, index: int) -> Page:
        """Return `page` after comparing what it claims with the bytes that are there."""
        where = f"{shown(self.path)}: page {index}"
        if not isinstance(page, tifffile.TiffPage) or page.offset != offset:
            raise InputError(f"{where} is not where the file's page chain says")
        if page.samplesperpixel != 1 or page.photometric == tifffile.PHOTOMETRIC.RGB:
            raise InputError(f"{where} is a colour (RGB) image; save each channel as grey values")
        if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
            raise InputError(f"{where} is inverted (white is zero); save it with black as zero")
        dtype = page.dtype
        if dtype is None or stack_dtype(dtype) is None:
            raise InputError(f"{where} has sample type {dtype}; save it as uint8, uint16 or float32")
        if page.ndim != 2 or 0 in page.shape:
            raise InputError(f"{where} has shape {page.shape}, not a 2D image")
        self._require_bytes(page, where)
        plain = page.is_final and page.is_contiguous and page.bitspersample == dtype.itemsize * 8
        pixels_at = page.dataoffsets[0] if plain else None
        height, width = page.shape
        return Page((height, width), dtype, offset, pixels_at, index)

    def _require_bytes(self, page: tifffile.TiffPage, where: str) -> None:
        segments = list(zip(page.dataoffsets, page.databytecounts, strict=False))
        if not segments or any(start <= 0 or count <= 0 for start, count in segments):
            raise IncompleteError(f"{where} has no pixels: part of it was never written")
        end = max(start + count for start, count in segments)
        if end > self.size_bytes:
            raise IncompleteError(f"{where} is cut off: its pixels end at byte {end}, the file at {self.size_bytes}")
        stored = sum(count for _, count in segments)
        height, width = page.shape[-2:]
        claimed = height * ((width * page.bitspersample + 7) // 8)
        if page.compression == tifffile.COMPRESSION.NONE:
            if stored < claimed:
                raise IncompleteError(f"{where} claims {claimed} bytes of pixels, the file holds {stored}")
        elif claimed > BOMB_BYTES and claimed > BOMB_RATIO * stored:
            raise InputError(f"{where} claims {claimed} bytes from {stored} compressed ones; refused as implausible")

    def _opened(self) -> BinaryIO:
        if self._file is None:
            self._file = open_regular(self.path)
            self.require_unchanged()
        return self._file

    def _decoder(self, file: BinaryIO) -> tifffile.TiffFile:
        if self._tiff is None:
            file.seek(0)
            self._tiff = tifffile.TiffFile(file, is_ome=False, is_mmstack=False)
        return self._tiff

    def _page(self, page: Page) -> str:
        return f"{shown(self.path)}: page {page.index}"


@contextmanager
def tifffile_complaints() -> Iterator[list[str]]:
    """Collect what tifffile logs at WARNING or above in this thread while the block runs.

    tifffile repairs and zero-fills damaged files and says so only in its log; here a complaint is a refusal.
    """
    handler = _Collector()
    logger = logging.getLogger("tifffile")
    logger.addHandler(handler)
    try:
        yield handler.messages
    finally:
        logger.removeHandler(handler)


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if threading.get_ident() == self._thread:
            self.messages.append(" ".join(record.getMessage().split()))


def _resolution(page: Any) -> tuple[tuple[int, int] | None, tuple[int, int] | None, int]:
    """Return the X and Y resolution as (pixels, units) and the TIFF unit (1 none, 2 inch, 3 centimetre)."""
    values: list[tuple[int, int] | None] = []
    for name in ("XResolution", "YResolution"):
        tag = page.tags.get(name)
        value = tag.value if tag is not None else None
        values.append((int(value[0]), int(value[1])) if isinstance(value, tuple) and len(value) == 2 else None)
    unit = page.tags.get("ResolutionUnit")
    return values[0], values[1], int(unit.value) if unit is not None else 2  # TIFF 6.0: inch is the default


def _page_metadata(page: Any) -> dict[str, Any]:
    tag = page.tags.get("MicroManagerMetadata")
    value = tag.value if tag is not None else None
    return value if isinstance(value, dict) else {}
