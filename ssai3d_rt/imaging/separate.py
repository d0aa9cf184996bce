"""Separate image files: a folder per position with one TIFF per plane and ``metadata.txt``, Micro-Manager 2.0 or 1.4.

The names of the files say which plane each holds; the summary in ``metadata.txt``, which is whole JSON only when
Micro-Manager has finished, says how many there will be, what the channels are called and how large a voxel is. A plane
without its file is missing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ssai3d_rt.errors import IncompleteError, InputError
from ssai3d_rt.imaging import mmsummary
from ssai3d_rt.imaging.folder import METADATA, Unchanged, plane_axes, read_member
from ssai3d_rt.imaging.layout import Plane, Position, SourcePool, require_plausible
from ssai3d_rt.imaging.openfile import shown
from ssai3d_rt.imaging.tiff import Page, TiffSource
from ssai3d_rt.imaging.voxel import FoundVoxel

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ssai3d_rt.imaging.stack import Array

MAX_METADATA_BYTES = 512 << 20

_AXES = ("position", "time", "channel", "z")


@dataclass(frozen=True, slots=True)
class Series:
    """What a folder of separate images holds: names of the files by (position, t, c, z), and ``(T, C, Z)``."""

    files: Mapping[tuple[int, int, int, int], str]
    size: tuple[int, int, int]
    channels: tuple[str, ...]
    summary: dict[str, Any]
    notes: Mapping[str, dict[str, Any]]
    """Metadata of the planes by the names of their files."""

    @property
    def positions(self) -> list[int]:
        """Numbers of the positions that have files here."""
        return sorted({key[0] for key in self.files})

    @property
    def planes(self) -> int:
        """Planes that there will be."""
        times, channels, depth = self.size
        return len(self.positions) * times * channels * depth

    def gap(self) -> str:
        """Name the first plane that has no file; empty where all have."""
        times, channels, depth = self.size
        for position in self.positions:
            for t in range(times):
                for c in range(channels):
                    for z in range(depth):
                        if (position, t, c, z) not in self.files:
                            return f"plane (t={t}, c={c}, z={z})"
        return ""


def series_of(folder: Path) -> Series:
    """Read what a folder of separate images holds; no image is opened.

    Raises
    ------
    IncompleteError
        Its ``metadata.txt`` is not there or not finished.
    InputError
        The names do not say which plane is which, or claim more than any acquisition has.
    OSError
        The folder cannot be read.
    """
    names = os.listdir(folder)
    axes = {name: found for name in names if (found := plane_axes(name)) is not None}
    if METADATA not in names:
        raise IncompleteError(f"its {METADATA} is not there yet")
    whole = mmsummary.parsed(read_member(folder / METADATA, MAX_METADATA_BYTES))
    if whole is None:
        raise IncompleteError(f"its {METADATA} is not finished")
    summary = whole.get("Summary")
    summary = summary if isinstance(summary, dict) else {}
    return _series(folder, axes, summary, _notes(whole))


def _series(
    folder: Path, axes: Mapping[str, dict[str, int | str]], summary: dict[str, Any], notes: Mapping[str, dict[str, Any]]
) -> Series:
    if not axes:
        raise IncompleteError("it holds no image yet")
    strange = {axis for found in axes.values() for axis in found} - set(_AXES)
    for axis in strange:
        if len({found.get(axis, 0) for found in axes.values()}) > 1:
            raise InputError(f"its images differ along the axis {shown(axis)!r}, which is none of a stack")
    declared = mmsummary.channel_names(summary)
    named = {str(found["channel"]): name for name, found in axes.items() if isinstance(found.get("channel"), str)}
    unnamed = sorted(set(named) - set(declared))
    unnamed.sort(key=lambda name: _channel_number(notes.get(named[name], {}), len(named)))
    channels = [*declared, *unnamed]
    files: dict[tuple[int, int, int, int], str] = {}
    for name, found in sorted(axes.items()):
        position, t, c, z = (found.get(axis, 0) for axis in _AXES)
        key = (int(position), int(t), channels.index(c) if isinstance(c, str) else c, int(z))
        if files.setdefault(key, name) != name:
            raise InputError(f"{shown(name)} and {shown(files[key])} are the same plane")
    found_size = [max(key[i] for key in files) + 1 for i in (1, 2, 3)]
    size = (
        max(found_size[0], mmsummary.declared(summary, "Frames", "time")),
        max(found_size[1], mmsummary.declared(summary, "Channels", "channel"), len(channels) if named else 0),
        max(found_size[2], mmsummary.declared(summary, "Slices", "z")),
    )
    require_plausible(size, folder)
    names = (*channels, *("",) * size[1])[: size[1]]
    return Series(files, size, names, summary, notes)


def separate_positions(folder: Path, pool: SourcePool) -> list[Position]:
    """Return the positions of a folder of separate images; commonly it is one.

    Raises
    ------
    IncompleteError
        Micro-Manager has not finished it.
    InputError
        It cannot be read; the message says why.
    """
    try:
        series = series_of(folder)
        files = [series.files[key] for key in sorted(series.files)]
        source = pool.add(SeparateSource(folder, files))
        first = source.look(0)
    except OSError as error:
        raise InputError(f"{shown(folder)}: cannot be read: {error.strerror or error}") from error
    except InputError as error:
        text = str(error)
        raise type(error)(text if text.startswith(shown(folder)) else f"{shown(folder)}: {text}") from error
    voxel = _voxel(series)
    planes: dict[int, dict[tuple[int, int, int], Plane]] = {}
    for number, (position, t, c, z) in enumerate(sorted(series.files)):
        page = Page(first.shape, first.dtype, number, None, number)
        planes.setdefault(position, {})[t, c, z] = (source, page)
    several = mmsummary.declared(series.summary, "Positions", "position") > 1
    return [
        Position(
            index=number,
            name=mmsummary.position_label(series.summary, number) or (folder.name if several else ""),
            path=folder,
            kind="separate image files",
            size=series.size,
            channels=series.channels,
            voxel=voxel,
            planes=own,
        )
        for number, own in sorted(planes.items())
    ]


@dataclass(slots=True, eq=False)
class SeparateSource:
    """The planes of a folder, each in a file of its own that is opened to read it and closed again.

    Parameters
    ----------
    path
        The folder.
    files
        Names of its images, in the order of the planes' numbers.
    """

    path: Path
    files: list[str]
    _unchanged: Unchanged = field(init=False, default_factory=Unchanged)

    def look(self, number: int) -> Page:
        """Return the one page of an image."""
        with TiffSource(self._noted(number)) as tiff:
            return _only(tiff)

    def read(self, page: Page) -> Array:
        """Return the ``(Y, X)`` pixels of a plane.

        Raises
        ------
        IncompleteError
            The file is cut off, or was changed.
        InputError
            It cannot be decoded, or is of another size or type than the first.
        """
        path = self._noted(page.index)
        with TiffSource(path) as tiff:
            found = _only(tiff)
            if (found.shape, found.dtype) != (page.shape, page.dtype):
                raise InputError(
                    f"{shown(path)}: is {found.shape[0]} x {found.shape[1]} {found.dtype}, "
                    f"other planes are {page.shape[0]} x {page.shape[1]} {page.dtype}"
                )
            pixels = tiff.read(found)
            tiff.require_unchanged()
        return pixels

    def require_unchanged(self) -> None:
        """Raise `IncompleteError` if a file that was read was changed since."""
        self._unchanged.require()

    def close(self) -> None:
        """Nothing stays open."""

    def _noted(self, number: int) -> Path:
        path = self.path / self.files[number]
        self._unchanged.note(path)
        return path


def _only(tiff: TiffSource) -> Page:
    if len(tiff.pages) != 1:
        raise InputError(f"{shown(tiff.path)}: holds {len(tiff.pages)} images, not one plane")
    return tiff.pages[0]


def _notes(whole: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the planes' metadata by file name: ``Metadata-Pos/NAME`` of 2.0, ``FrameKey-`` with a name of 1.4."""
    notes = {}
    for key, value in whole.items():
        if not isinstance(value, dict):
            continue
        if key.startswith("Metadata-"):
            notes[key.rpartition("/")[2].removeprefix("Metadata-")] = value
        elif key.startswith("FrameKey") and isinstance(name := value.get("FileName"), str):
            notes[name.rpartition("/")[2]] = value
    return notes


def _channel_number(note: dict[str, Any], default: int) -> int:
    number = note.get("ChannelIndex")
    return number if isinstance(number, int) else default


def _voxel(series: Series) -> FoundVoxel:
    def note(key: tuple[int, int, int, int]) -> dict[str, Any]:
        return series.notes.get(series.files.get(key, ""), {})

    first = min(series.files)
    found = mmsummary.voxel(series.summary, note(first))
    if found.z_um is not None:
        return found
    low, high = mmsummary.z_um(note(first)), mmsummary.z_um(note((*first[:3], first[3] + 1)))
    if low is None or high is None or low == high:
        return found
    return FoundVoxel(round(abs(high - low), 6), found.y_um, found.x_um)
