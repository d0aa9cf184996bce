"""Follow one stack in a file that is still being written, and take each plane as soon as it is whole.

The file is looked at again and again, never locked and never waited on. A plane is taken once its tags and all of its
pixels lie in the file; of a file that was given its final size beforehand (Micro-Manager), once the next plane was
begun. Formats are those of `read`: where planes lie is read from the same headers, by the same code. ome-writers
(pymmcore-plus), Micro-Manager and ImageJ say at the start how many planes there will be and how large a voxel is; a
plain TIFF says neither, so its voxel size is given by the caller, and it ends when it was not written to for a while.

At the end every plane is read once more: a writer that fills planes in place is found out rather than believed.

>>> import numpy as np, tempfile, tifffile
>>> path = Path(tempfile.mkdtemp()) / "cells.tif"
>>> tifffile.imwrite(path, np.ones((6, 32, 32), "uint16"), imagej=True, resolution=(10, 10),
...                  metadata={"axes": "ZYX", "spacing": 0.5, "unit": "um"})
>>> growing = GrowingStack(path)
>>> growing.header().shape, growing.header().voxel_um
((6, 32, 32), (0.5, 0.1, 0.1))
>>> [z for z, plane in growing]
[0, 1, 2, 3, 4, 5]
"""

from __future__ import annotations

import logging
import time
import zlib
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ssai3d_rt.errors import IncompleteError, InputError
from ssai3d_rt.imaging.hyperstack import declared_planes
from ssai3d_rt.imaging.layout import SourcePool
from ssai3d_rt.imaging.ome import is_ome, planes_declared
from ssai3d_rt.imaging.openfile import shown
from ssai3d_rt.imaging.read import positions_of
from ssai3d_rt.imaging.samples import convert_plane, non_finite, stack_dtype
from ssai3d_rt.imaging.voxel import resolve_voxel

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator

    from ssai3d_rt.imaging.layout import Plane, Position
    from ssai3d_rt.imaging.stack import Array
    from ssai3d_rt.imaging.tiff import TiffSource

_log = logging.getLogger(__name__)

SETTLE_S = 2.0
"""A file that cannot be used for so long will not get better; while it is written it may look damaged for a moment."""


@dataclass(frozen=True, slots=True)
class Following:
    """How a file is followed.

    Parameters
    ----------
    channel, time, position
        Which stack, as for `read_stack`; time point and position are the first where not given.
    voxel_z, voxel_xy
        Micrometres, over the file's.
    planes
        How many there will be, where the file does not say so.
    patience_s
        How long to wait for the file, and for more of it.
    quiet_s
        A file that declares nothing is finished after this long without a new plane.
    poll_s
        Least time between two looks.
    """

    channel: int | str | None = None
    time: int | None = None
    position: int | str | None = None
    voxel_z: float | None = None
    voxel_xy: float | None = None
    planes: int | None = None
    patience_s: float = 300.0
    quiet_s: float = 10.0
    poll_s: float = 0.25


@dataclass(frozen=True, slots=True)
class Header:
    """What is known of the stack before it is there: `shape` is ``(Z, Y, X)``, Z None where nothing declares it."""

    shape: tuple[int | None, int, int]
    dtype: np.dtype[np.generic]
    voxel_um: tuple[float, float, float]
    channel: str
    time: int
    position: str
    path: Path


@dataclass(frozen=True, slots=True)
class _Look:
    """What one look at the file found: the stack's planes by z, and all that tells whether something came."""

    header: Header
    planes: dict[int, Plane]
    seen: tuple[int, int, int]
    """Size in bytes, pages, and planes of any stack."""
    finished: bool
    """Whether the chain of pages has an end."""
    pool: SourcePool
    """The files, still open."""

    def plane(self, z: int) -> Array:
        """Return plane `z`, contiguous."""
        source, page = self.planes[z]
        where = f"{shown(self.header.path)}: plane {z}"
        plane = np.ascontiguousarray(convert_plane(source.read(page), self.header.dtype, where))
        if bad := non_finite(plane):
            raise InputError(f"{where} has {bad} NaN or infinite samples")
        return plane

    def require_same(self, sums: list[int]) -> None:
        """Refuse planes that are no longer what they were when they were taken."""
        for z, known in enumerate(sums):
            if zlib.crc32(self.plane(z).data) != known:
                raise IncompleteError(
                    f"{shown(self.header.path)}: plane {z} changed after it was taken; its writer fills planes in "
                    "place, so use the finished file"
                )


class GrowingStack:
    """The planes of one stack, in order of z, as they are written; iterate it once.

    Parameters
    ----------
    path
        The file, which need not exist yet, or a folder that will hold one TIFF file.
    how
        See `Following`.
    on_look
        Called before each look at the file; what it raises ends the following.
    """

    def __init__(
        self, path: str | os.PathLike[str], how: Following | None = None, *, on_look: Callable[[], None] = lambda: None
    ) -> None:
        self.path = Path(path)
        self._how = how or Following()
        self.on_look = on_look
        self._header: Header | None = None
        self._sums: list[int] = []
        self._places: list[int] = []
        self._size_before = 0

    def header(self) -> Header:
        """Wait until the file says what it will hold and its first plane is there.

        Raises
        ------
        IncompleteError
            Nothing usable came within the patience.
        InputError
            It cannot be used; as `open_acquisition`, or it holds several channels and none was chosen.
        """
        if self._header is None:
            look = self._wait(lambda look: 0 in look.planes)
            look.pool.close()
            self._header = look.header
        return self._header

    def __iter__(self) -> Iterator[tuple[int, Array]]:
        """Yield ``(z, plane)``, plane ``(Y, X)`` of the header's dtype, until the stack is whole.

        Raises
        ------
        IncompleteError
            No more came within the patience; or a plane changed after it was taken.
        InputError
            As `header`, or the file turned out to hold another stack than it seemed to.
        """
        self.header()
        while True:
            look = self._wait(self._has_more)
            with closing(look.pool):
                for z in range(len(self._sums), len(look.planes)):
                    if z not in look.planes:  # later planes of z came first
                        break
                    plane = look.plane(z)
                    self._sums.append(zlib.crc32(plane.data))
                    self._places.append(_place(look.planes[z]))
                    yield z, plane
                self._header = look.header
                if self._is_end(look):
                    look.require_same(self._sums)
                    return

    def _has_more(self, look: _Look) -> bool:
        """Whether a look shows the next plane, or the end."""
        return len(self._sums) in look.planes or self._is_end(look)

    def _is_end(self, look: _Look) -> bool:
        declared = look.header.shape[0]
        if declared is not None:
            return len(self._sums) >= declared
        return look.finished and len(self._sums) >= len(look.planes) and self._quiet_s() >= self._how.quiet_s

    def _quiet_s(self) -> float:
        return time.monotonic() - self._came

    def _wait(self, enough: Callable[[_Look], bool]) -> _Look:
        """Look until there is enough.

        Raises
        ------
        IncompleteError
            The patience is at an end.
        InputError
            The file cannot be used, and did not change for `SETTLE_S`.
        """
        self._came = time.monotonic()
        seen: object = None
        while True:
            self.on_look()
            looked = time.monotonic()
            now: object
            look, trouble = None, ""
            pool = SourcePool(growing=True)
            try:
                look = self._look(pool)
                now = look.seen
                self._require_same_stack(look)
                if enough(look):
                    return look
                pool.close()
            except InputError as error:
                pool.close()
                trouble = str(error)
                now = (trouble, _size(self.path))
                hopeful = isinstance(error, IncompleteError) or not self.path.exists()
                if not hopeful and now == seen and self._quiet_s() > SETTLE_S:
                    raise
            except BaseException:
                pool.close()
                raise
            if now != seen:
                _log.info("%s: %s", shown(self.path), trouble or f"{len(self._sums)} planes taken")
                seen, self._came = now, time.monotonic()
            if self._quiet_s() > self._how.patience_s:
                raise IncompleteError(self._gave_up(look, trouble))
            time.sleep(max(self._how.poll_s, 4 * (time.monotonic() - looked)))  # a long file is read less often

    def _gave_up(self, look: _Look | None, trouble: str) -> str:
        waited = f"nothing new for {self._how.patience_s:g} s"
        if look is None and not self._sums:
            return f"{trouble}; {waited}"
        declared = look.header.shape[0] if look is not None else self._header and self._header.shape[0]
        of = f" of {declared}" if declared is not None else ""
        why = f" ({trouble})" if trouble else ""
        return (
            f"{shown(self.path)}: {waited}, and {len(self._sums)}{of} planes are there{why}; the file was only read: "
            "use it when it is whole, or wait longer"
        )

    def _require_same_stack(self, look: _Look) -> None:
        """Refuse a file whose planes are no longer where they were taken from."""
        for z, place in enumerate(self._places):
            if z not in look.planes or _place(look.planes[z]) != place:
                raise InputError(
                    f"{shown(self.path)}: its finished header tells of other planes than those that were taken while "
                    "it grew; use the finished file"
                )

    def _look(self, pool: SourcePool) -> _Look:
        path = self._file()
        source = pool.open(path)
        declared = self._lay_out(source, pool)
        found = positions_of(path, pool)
        position = found[0] if self._how.position is None else _position(found, self._how.position, path)
        times, _, depth = position.size
        channel, when = self._channel(position), self._how.time or 0
        if not 0 <= when < times:
            raise InputError(f"{shown(path)}: has no time point {when}; it has {times}")
        dtype = stack_dtype(position.stored_dtype)
        if dtype is None:  # refused by `tiff` before
            raise InputError(f"{shown(path)}: sample type {position.stored_dtype} is not supported")
        header = Header(
            shape=(depth if declared else self._how.planes, *position.shape[1:]),
            dtype=dtype,
            voxel_um=resolve_voxel(path, position.voxel, self._how.voxel_z, self._how.voxel_xy),
            channel=position.channels[channel],
            time=when,
            position=position.name,
            path=path,
        )
        planes = {z: plane for (t, c, z), plane in position.planes.items() if (t, c) == (when, channel)}
        seen = source.size_bytes, len(source.pages), sum(len(p.planes) for p in found)
        return _Look(header, planes, seen, source.chain_ends, pool)

    def _lay_out(self, source: TiffSource, pool: SourcePool) -> bool:
        """List planes behind the tags of a single page; returns whether the file declares how many there will be.

        Raises
        ------
        IncompleteError
            What it declares is not written yet.
        """
        if source.is_micro_manager:
            return True
        late = source.path.name.lower().endswith((".ome.tif", ".ome.tiff")) and not source.description
        if late and (self._how.voxel_z is None or self._how.voxel_xy is None):
            raise IncompleteError(f"{shown(source.path)}: its OME-XML is not written yet")
        declared = planes_declared(source, pool) if is_ome(source.description) else declared_planes(source)
        expected = declared if declared > 1 else self._how.planes or 1
        if len(source.pages) == 1 and source.chain_ends and expected > 1:
            # A writer that closes the file puts tags behind the last plane. What was there at the look before, while
            # the chain was as short as now, is no tag.
            source.pages = source.virtual_pages(expected, up_to_byte=self._size_before)
            self._size_before = source.size_bytes
        if not source.pages or (expected == 1 and len(source.pages) == 1):
            raise IncompleteError(f"{shown(source.path)}: its first plane is there, and nothing more yet")
        return declared > 1

    def _channel(self, position: Position) -> int:
        wanted, names = self._how.channel, position.channels
        found = [i for i, name in enumerate(names) if wanted is None or str(wanted) in (str(i), name)]
        if len(found) == 1:
            return found[0]
        listed = ", ".join(f"{i} ({shown(name)})" if name else str(i) for i, name in enumerate(names))
        if not found:
            raise InputError(f"{shown(self.path)}: has no channel {wanted}; it has {listed}")
        raise InputError(f"{shown(self.path)}: holds {len(names)} channels; choose one with --channel: {listed}")

    def _file(self) -> Path:
        """Return the file itself, or the one TIFF file of a folder."""
        if not self.path.is_dir():
            return self.path
        files = sorted(
            p for p in self.path.iterdir() if p.name.lower().endswith((".tif", ".tiff")) and not p.name.startswith(".")
        )
        if not files:
            raise IncompleteError(f"{shown(self.path)}: no TIFF file in it yet")
        if len(files) > 1:
            raise InputError(f"{shown(self.path)}: a folder with {len(files)} TIFF files; name the one to follow")
        return files[0]


def _place(plane: Plane) -> int:
    """Return the byte where a plane's pixels start, or its tags where its pixels are in pieces."""
    page = plane[1]
    return page.pixels_at if page.pixels_at is not None else page.offset


def _position(found: list[Position], wanted: int | str, path: Path) -> Position:
    chosen = [p for p in found if str(wanted) in (str(p.index), p.name)]
    if not chosen:
        listed = ", ".join(f"{p.index} ({shown(p.name)})" if p.name else str(p.index) for p in found)
        raise InputError(f"{shown(path)}: has no position {wanted}; it has {listed}")
    return chosen[0]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
