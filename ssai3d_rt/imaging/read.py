"""Read acquisitions, one `Stack` at a time: TIFF, ImageJ, OME-TIFF, Micro-Manager image stacks, NDTiff, OME-Zarr.

`open_acquisition` looks at the structure only (pages, sizes, names, voxel size) and refuses what cannot be trusted;
pixels are read stack by stack, plane by plane. It never guesses a voxel size and never returns zeros for a plane that
is not there.

A file gives the positions that lie in it; a folder is a data set itself (NDTiff, OME-Zarr, separate image files), or
gives all positions of the one acquisition in it (Micro-Manager's ``*_MMStack_*.ome.tif``, or ``NAME_p000.ome.tif`` and
so on). It does not watch folders or wait for unfinished files.

>>> import numpy as np, tempfile, tifffile
>>> path = Path(tempfile.mkdtemp()) / "cells.tif"
>>> tifffile.imwrite(path, np.ones((6, 2, 32, 32), "uint16"), imagej=True, resolution=(10, 10),
...                  metadata={"axes": "ZCYX", "spacing": 0.5, "unit": "um"})
>>> with open_acquisition(path) as acquisition:
...     for key in acquisition.keys:
...         stack = acquisition.read(key)
...         print(key.channel, stack.data.shape, stack.voxel_um)
0 (6, 32, 32) (0.5, 0.1, 0.1)
1 (6, 32, 32) (0.5, 0.1, 0.1)
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from ssai3d_rt.errors import InputError
from ssai3d_rt.imaging.folder import FolderKind, kind_of_folder
from ssai3d_rt.imaging.hyperstack import hyperstack_position
from ssai3d_rt.imaging.layout import Position, SourcePool
from ssai3d_rt.imaging.mmstack import mmstack_positions
from ssai3d_rt.imaging.ndtiff import ndtiff_positions
from ssai3d_rt.imaging.ome import is_ome, ome_positions
from ssai3d_rt.imaging.omezarr import omezarr_positions
from ssai3d_rt.imaging.openfile import shown
from ssai3d_rt.imaging.samples import convert_plane, non_finite, stack_dtype
from ssai3d_rt.imaging.separate import separate_positions
from ssai3d_rt.imaging.stack import Stack
from ssai3d_rt.imaging.voxel import resolve_voxel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ssai3d_rt.imaging.stack import Array

_OF_ONE_SET = re.compile(r"(?P<set>.+?)(_MMStack_.*|_p\d+)\.ome\.tiff?", re.IGNORECASE)


@dataclass(frozen=True, slots=True, order=True)
class StackKey:
    """Which stack of an acquisition: numbers from 0 as the file counts them, and names where it gives them."""

    position: int
    time: int
    channel: int
    channel_name: str = ""
    position_name: str = ""

    def __str__(self) -> str:
        channel = f"{self.channel} ({shown(self.channel_name)})" if self.channel_name else f"{self.channel}"
        position = f"{self.position} ({shown(self.position_name)})" if self.position_name else f"{self.position}"
        return f"position {position}, time {self.time}, channel {channel}"


class Acquisition:
    """An opened data set; a context manager. Made by `open_acquisition`.

    Parameters
    ----------
    path
        The file or folder that was opened.
    positions
        What lies where.
    pool
        The files, closed with the acquisition.
    voxel_z, voxel_xy
        The caller's voxel size in micrometres, over the file's.
    """

    def __init__(
        self,
        path: Path,
        positions: list[Position],
        pool: SourcePool,
        voxel_z: float | None = None,
        voxel_xy: float | None = None,
    ) -> None:
        self.path = path
        self._pool = pool
        self._positions = {position.index: position for position in positions}
        self._voxels = {p.index: resolve_voxel(p.path, p.voxel, voxel_z, voxel_xy) for p in positions}
        self.keys: list[StackKey] = [
            StackKey(p.index, time, channel, p.channels[channel], p.name)
            for p in sorted(positions, key=lambda p: p.index)
            for time in range(p.size[0])
            for channel in range(p.size[1])
        ]
        if not any(self.is_whole(key) for key in self.keys):
            first = self.keys[0]
            self._positions[first.position].require_whole(first.time, first.channel)

    def __enter__(self) -> Acquisition:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every file."""
        self._pool.close()

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(Z, Y, X)`` of each of its stacks."""
        return self._first.shape

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Sample type of its stacks (uint8, uint16 or float32), see `samples`."""
        return self._dtype(self._first)

    @property
    def voxel_um(self) -> tuple[float, float, float]:
        """``(z, y, x)`` of its first position, in micrometres."""
        return self._voxels[self._first.index]

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that it reads from, sorted; of a data set in many files, its folder."""
        return self._pool.paths

    def is_whole(self, key: StackKey) -> bool:
        """Whether every plane of that stack is there (an acquisition that was stopped early lacks some)."""
        return self._positions[key.position].missing(key.time, key.channel) is None

    def read(self, key: StackKey) -> Stack:
        """Return one stack.

        Raises
        ------
        IncompleteError
            A plane is missing or cut off, or a file changed while it was being read.
        InputError
            A plane cannot be decoded, or holds values that a stack cannot: NaN, infinite, out of range.
        """
        position = self._positions[key.position]
        position.require_whole(key.time, key.channel)
        dtype = self._dtype(position)
        try:
            data: Array = np.empty(position.shape, dtype)
        except MemoryError as exc:
            raise InputError(
                f"{shown(position.path)}: a stack of shape {position.shape} does not fit into memory"
            ) from exc
        bad_samples = 0
        for z in range(position.size[2]):
            source, page = position.planes[key.time, key.channel, z]
            self._pool.touch(source)
            where = f"{shown(source.path)}: plane (t={key.time}, c={key.channel}, z={z})"
            data[z] = convert_plane(source.read(page), dtype, where)
            bad_samples += non_finite(cast("Array", data[z]))
        for source in {position.planes[key.time, key.channel, z][0] for z in range(position.size[2])}:
            source.require_unchanged()
        if bad_samples:
            raise InputError(
                f"{shown(position.path)}: {bad_samples} NaN or infinite samples; replace them before restoring"
            )
        return Stack(
            data,
            self._voxels[key.position],
            channel=key.channel_name,
            time=key.time,
            position=key.position_name,
            source=position.path,
        )

    def describe(self) -> str:
        """Return one line that says what it holds."""
        first = self._first
        times, channels, planes = first.size
        z_um, y_um, _ = self.voxel_um
        named = ", ".join(shown(name) for name in first.channels if name)
        return (
            f"{shown(self.path.name)}: {first.kind}, {_count(len(self._positions), 'position')}, "
            f"{_count(times, 'time point')}, {_count(channels, 'channel')}{f' ({named})' if named else ''}, "
            f"{planes} planes of {first.shape[1]} x {first.shape[2]} {first.stored_dtype}, "
            f"voxel {z_um:.4g} x {y_um:.4g} x {y_um:.4g} um"
        )

    @property
    def _first(self) -> Position:
        return self._positions[self.keys[0].position]

    @staticmethod
    def _dtype(position: Position) -> np.dtype[np.generic]:
        dtype = stack_dtype(position.stored_dtype)
        if dtype is None:  # refused by `tiff` before
            raise InputError(f"{shown(position.path)}: sample type {position.stored_dtype} is not supported")
        return dtype


def open_acquisition(
    path: str | os.PathLike[str], voxel_z: float | None = None, voxel_xy: float | None = None
) -> Acquisition:
    """Open a file, or the folder of one acquisition, for reading stack by stack.

    Parameters
    ----------
    path
        A TIFF file of any supported kind, a data set that is a folder (NDTiff, OME-Zarr, separate image files), or
        the folder of one acquisition.
    voxel_z, voxel_xy
        Plane spacing and pixel size in micrometres; they override what the file says.

    Raises
    ------
    VoxelSizeError
        The voxel size is neither in the file nor given.
    IncompleteError
        No stack in it is whole: cut off, or still being written.
    InputError
        It cannot be used; the message says why.
    """
    path = Path(path)
    pool = SourcePool()
    try:
        positions = _numbered(_positions(path, pool))
        if len({(p.shape, p.stored_dtype) for p in positions}) > 1:
            words = ", ".join(f"{p.name or p.index}: {p.shape} {p.stored_dtype}" for p in positions)
            raise InputError(
                f"{shown(path)}: its positions differ in size or type ({shown(words)}); open them one by one"
            )
        return Acquisition(path, positions, pool, voxel_z, voxel_xy)
    except BaseException:
        pool.close()
        raise


def read_stacks(
    path: str | os.PathLike[str], voxel_z: float | None = None, voxel_xy: float | None = None
) -> Iterator[Stack]:
    """Yield every stack of an acquisition, one in memory at a time: by position, then time, then channel.

    Raises
    ------
    InputError
        As `open_acquisition` and `Acquisition.read`; `IncompleteError` at the first stack that is not whole.
    """
    with open_acquisition(path, voxel_z, voxel_xy) as acquisition:
        for key in acquisition.keys:
            yield acquisition.read(key)


def read_stack(
    path: str | os.PathLike[str],
    voxel_z: float | None = None,
    voxel_xy: float | None = None,
    *,
    channel: int | str | None = None,
    time: int | None = None,
    position: int | str | None = None,
) -> Stack:
    """Return one stack; where the data set holds several, `channel`, `time` and `position` choose.

    Parameters
    ----------
    path, voxel_z, voxel_xy
        As for `open_acquisition`.
    channel, position
        Number from 0, or name.
    time
        Number from 0.

    Raises
    ------
    InputError
        None or several stacks are meant; the message lists the choices.
    """
    with open_acquisition(path, voxel_z, voxel_xy) as acquisition:
        chosen = [
            key
            for key in acquisition.keys
            if (channel is None or channel in (key.channel, key.channel_name))
            and (time is None or time == key.time)
            and (position is None or position in (key.position, key.position_name))
        ]
        if len(chosen) == 1:
            return acquisition.read(chosen[0])
        pool = chosen or acquisition.keys
        listed = "; ".join(str(key) for key in pool[:6]) + (f"; and {len(pool) - 6} more" if len(pool) > 6 else "")
        if not chosen:
            raise InputError(f"{shown(path)}: has no such stack; it holds {listed}")
        raise InputError(f"{shown(path)}: holds {len(chosen)} stacks; choose a channel, time or position: {listed}")


def _positions(path: Path, pool: SourcePool) -> list[Position]:
    kind = kind_of_folder(path, follow=True)
    if kind is not None:
        return _FOLDERS[kind](path, pool)
    return [p for file in _files_of(path) for p in positions_of(file, pool)]


_FOLDERS: dict[FolderKind, Callable[[Path, SourcePool], list[Position]]] = {
    FolderKind.NDTIFF: ndtiff_positions,
    FolderKind.OME_ZARR: omezarr_positions,
    FolderKind.SEPARATE: separate_positions,
}


def positions_of(path: Path, pool: SourcePool) -> list[Position]:
    """Return the positions that lie in a file, by its format."""
    source = pool.open(path)
    if source.is_micro_manager:
        return mmstack_positions(source, pool)
    if is_ome(source.description):
        return ome_positions(source, pool)
    return [hyperstack_position(source)]


def _numbered(positions: list[Position]) -> list[Position]:
    """Return each position once (a continued file leads to its first one), renumbered where numbers repeat."""
    unique = list({(p.path, p.index): p for p in positions}.values())
    if len({p.index for p in unique}) == len(unique):
        return unique
    return [replace(p, index=i) for i, p in enumerate(unique)]


def _files_of(path: Path) -> list[Path]:
    """Return the file itself, or the TIFF files of the one acquisition in a folder."""
    if not os.path.isdir(path):  # False, not an error, for names that cannot be
        return [path]
    files = sorted(
        p for p in path.iterdir() if p.name.lower().endswith((".tif", ".tiff")) and not p.name.startswith(".")
    )
    if len(files) == 1:
        return files
    sets = {match["set"] if (match := _OF_ONE_SET.fullmatch(file.name)) else file.name for file in files}
    if len(sets) == 1:
        return files
    if not files:
        raise InputError(f"{shown(path)}: a folder without a TIFF file, and no NDTiff or OME-Zarr data set")
    raise InputError(
        f"{shown(path)}: a folder with {len(sets)} data sets; name one of its files, e.g. {shown(files[0].name)}"
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
