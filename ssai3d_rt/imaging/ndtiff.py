"""NDTiff data sets, version 3: a folder with ``NDTiff.index`` and ``*_NDTiffStack*.tif``.

The index is the truth (see `ndindex`): pixels are read from where it says, the chain of TIFF pages is not followed. Its
axes z, time and channel become those of a stack, each combination of position, row and column is a position. Sizes are
those that the summary declares, or the full grid of what the index lists; an image that the grid has and the index
has not is missing, and can be named. While a data set is written its files are 4 GiB long: `unfinished` tells that, and
only a pool for growing files may open it.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from ssai3d_rt.errors import IncompleteError, InputError
from ssai3d_rt.imaging import mmsummary
from ssai3d_rt.imaging.folder import NDTIFF_INDEX, changed, is_ndtiff_file, open_member
from ssai3d_rt.imaging.layout import Plane, Position, SourcePool, require_plausible
from ssai3d_rt.imaging.ndindex import BYTES_PER_SAMPLE, Index, IndexEnd, IndexEntry, read_index
from ssai3d_rt.imaging.openfile import shown, signature
from ssai3d_rt.imaging.tiff import NDTIFF_MAGIC, Page
from ssai3d_rt.imaging.voxel import FoundVoxel

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from ssai3d_rt.imaging.stack import Array

SUMMARY_MAGIC = 2355492
MAX_TEXT_BYTES = 64 << 20
MAX_CHANNELS = 1_000_000
TAIL_BYTES = 128
"""What a finished file may hold behind its last image; less than another image's tags need."""

_STACK_AXES = ("time", "channel", "z")
_PLACE_AXES = ("position", "row", "column")

Place = tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Grid:
    """What an index lists, as stacks: places, ``(T, C, Z)`` of each, and where each image is.

    `names` are those of the channels, "" where there are none; `images` is by (place number, t, c, z).
    """

    places: tuple[Place, ...]
    size: tuple[int, int, int]
    names: tuple[str, ...]
    images: Mapping[tuple[int, int, int, int], IndexEntry]
    declared_places: int

    @property
    def planes(self) -> int:
        """Planes that there will be."""
        times, channels, depth = self.size
        return max(len(self.places), self.declared_places) * times * channels * depth

    def gap(self) -> str:
        """Name the first image that the grid has and the index has not; empty where there is none."""
        times, channels, depth = self.size
        for place in range(len(self.places)):
            for t in range(times):
                for c in range(channels):
                    for z in range(depth):
                        if (place, t, c, z) not in self.images:
                            at = f" of position {place}" if len(self.places) > 1 else ""
                            return f"plane (t={t}, c={c}, z={z}){at}"
        if self.declared_places > len(self.places):
            return f"position {len(self.places)}"
        return ""


def grid_of(entries: Iterable[IndexEntry], summary: dict[str, Any]) -> Grid:
    """Put images into a grid; a later entry replaces an earlier one.

    Raises
    ------
    InputError
        There is an axis along which a stack has no name for it, or more planes than any acquisition has.
    """
    images = {tuple(sorted(entry.axes.items())): entry for entry in entries}
    if len(kinds := {tuple(axis for axis, _ in image) for image in images}) > 1:
        words = " and ".join(sorted(shown("-".join(axes) or "no axis") for axes in kinds))
        raise InputError(f"its images have different axes ({words}); damaged, or two data sets in one")
    values: dict[str, dict[int | str, None]] = {}
    for entry in images.values():
        for axis, value in entry.axes.items():
            values.setdefault(axis, {})[value] = None
    for axis, found in values.items():
        if axis not in _STACK_AXES + _PLACE_AXES and len(found) > 1:
            raise InputError(f"its images differ along the axis {shown(axis)!r}, which is none of a stack")
    places = list(dict.fromkeys(_place(entry) for entry in images.values()))
    if not any(isinstance(part, str) for place in places for part in place):
        places.sort()
    steps = {axis: _steps(axis, values.get(axis, {0: None})) for axis in _STACK_AXES}
    names = _channel_names(steps["channel"], summary)
    size = (
        max(len(steps["time"]), mmsummary.declared(summary, "Frames", "time")),
        max(len(steps["channel"]), len(names)),
        max(len(steps["z"]), mmsummary.declared(summary, "Slices", "z")),
    )
    number = {axis: {value: i for i, value in enumerate(found)} for axis, found in steps.items()}
    if isinstance(next(iter(steps["channel"])), str):
        number["channel"] = {name: names.index(str(name)) for name in steps["channel"]}
    numbers = {place: i for i, place in enumerate(places)}
    placed = {}
    for entry in images.values():
        t, c, z = (number[axis][entry.axes.get(axis, next(iter(steps[axis])))] for axis in _STACK_AXES)
        placed[numbers[_place(entry)], t, c, z] = entry
    return Grid(tuple(places), size, names, placed, mmsummary.declared(summary, "Positions", "position"))


def unfinished(index: Index | None, sizes: Mapping[str, int]) -> str:
    """Say what shows that a data set is not finished; empty where nothing does.

    Parameters
    ----------
    index
        As `read_index` gives it, None where there is none.
    sizes
        Bytes of each of its files of pixels, by name.
    """
    if index is None:
        return "its index is not there yet"
    if index.end is IndexEnd.ZEROS:
        return f"its index is not closed ({len(index.entries)} images are listed)"
    if index.end is IndexEnd.INSIDE:
        return f"its index ends inside an entry ({len(index.entries)} images are listed before)"
    if not index.entries:
        return "its index is empty"
    ends: dict[str, int] = {}
    for entry in index.entries:
        if entry.file not in sizes:
            return f"{shown(entry.file)}, which its index names, is not there"
        ends[entry.file] = max(ends.get(entry.file, 0), entry.end)
    for name, size in sizes.items():
        if ends.get(name, size) > size:
            return f"{shown(name)} ends at byte {size}, its images at {ends[name]}"
        if size > ends.get(name, 0) + TAIL_BYTES:
            return f"{shown(name)} is not closed, or holds images that the index does not list"
    return ""


def stack_files(folder: Path) -> dict[str, int]:
    """Return the bytes of each file of pixels in a data set, by name, sorted.

    Raises
    ------
    InputError
        One of them is a link.
    OSError
        The folder cannot be read.
    """
    sizes: dict[str, int] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_ndtiff_file(entry.name):
                if entry.is_symlink():
                    raise InputError(f"{shown(entry.name)} is a symbolic link; inside a data set they are refused")
                sizes[entry.name] = entry.stat(follow_symlinks=False).st_size
    return dict(sorted(sizes.items()))


def ndtiff_positions(folder: Path, pool: SourcePool) -> list[Position]:
    """Return the positions of a data set.

    Raises
    ------
    IncompleteError
        It is not finished, and `pool` is not for files that grow.
    InputError
        It is damaged, or of a kind that cannot be read.
    """
    try:
        with open_member(folder / NDTIFF_INDEX) as file:
            before = signature(file)
            index = read_index(file, before[1])
        sizes = stack_files(folder)
    except InputError as error:
        if not (folder / NDTIFF_INDEX).exists():
            raise IncompleteError(f"{shown(folder)}: its {NDTIFF_INDEX} is not there") from error
        raise type(error)(f"{shown(folder)}: {error}") from error
    except OSError as error:
        raise InputError(f"{shown(folder)}: cannot be read: {error.strerror or error}") from error
    if not pool.growing and (why := unfinished(index, sizes)):
        raise IncompleteError(f"{shown(folder)}: {why}; not finished, or its writer ended early")
    if not index.entries:
        raise IncompleteError(f"{shown(folder)}: holds no image yet")
    sources = {name: pool.add(NdTiffSource(folder / name)) for name in {e.file for e in index.entries} if name in sizes}
    if not sources:
        raise IncompleteError(f"{shown(folder)}: none of the files that its index names is there")
    summary = sources[min(sources)].summary
    try:
        grid = grid_of(index.entries, summary)
        require_plausible(grid.size, folder)
    except InputError as error:
        raise InputError(f"{shown(folder)}: {str(error).removeprefix(f'{shown(folder)}: ')}") from error
    voxel = _voxel(grid, summary, sources)
    planes: list[dict[tuple[int, int, int], Plane]] = [{} for _ in grid.places]
    for (number, t, c, z), entry in grid.images.items():
        source = sources.get(entry.file)
        if source is not None and entry.pixels_end <= source.size_bytes:
            planes[number][t, c, z] = (source, _page(entry))
    positions = []
    for number, place in enumerate(grid.places):
        if not planes[number] and pool.growing:
            continue
        positions.append(
            Position(
                index=number,
                name=_name(summary, number, place, len(grid.places)),
                path=folder,
                kind="NDTiff",
                size=grid.size,
                channels=grid.names,
                voxel=voxel,
                planes=planes[number],
            )
        )
    return positions


@dataclass(slots=True, eq=False)
class NdTiffSource:
    """One file of pixels of a data set, opened read-only and read by its index."""

    path: Path
    summary: dict[str, Any] = field(init=False, default_factory=dict)
    order: str = field(init=False, default="<")
    _file: BinaryIO | None = field(init=False, default=None)
    _signature: tuple[int, int, int] = field(init=False, default=(0, 0, 0))

    def __post_init__(self) -> None:
        self._file = open_member(self.path)
        try:
            self._signature = signature(self._file)
            self.order, self.summary = read_header(self._file, self.path)
        except BaseException:
            self.close()
            raise

    @property
    def size_bytes(self) -> int:
        """Size of the file when it was opened."""
        return self._signature[1]

    def read(self, page: Page) -> Array:
        """Return the ``(Y, X)`` pixels of an image.

        Raises
        ------
        IncompleteError
            Bytes are missing, or the file changed since it was opened.
        """
        raw = self.bytes_at(page.offset, page.nbytes)
        if len(raw) < page.nbytes:
            raise IncompleteError(f"{shown(self.path)}: image {page.index} is cut off")
        return (
            np.frombuffer(raw, page.dtype.newbyteorder(">" if self.order == ">" else "<"))
            .reshape(page.shape)
            .astype(page.dtype, copy=False)
        )

    def bytes_at(self, start: int, count: int) -> bytes:
        """Return up to `count` bytes from byte `start`."""
        if self._file is None:
            self._file = open_member(self.path)
            self.require_unchanged()
        self._file.seek(start)
        return self._file.read(min(count, max(0, self.size_bytes - start)))

    def require_unchanged(self) -> None:
        """Raise `IncompleteError` if the file was changed since it was opened."""
        if self._file is not None and signature(self._file) != self._signature:
            raise IncompleteError(changed(self.path))

    def close(self) -> None:
        """Close the file; a later `read` opens it again and refuses if it changed."""
        if self._file is not None:
            self._file.close()
            self._file = None


def read_header(file: BinaryIO, path: Path) -> tuple[str, dict[str, Any]]:
    """Return the byte order and the summary of an opened file of pixels.

    Raises
    ------
    IncompleteError
        They are not there yet.
    InputError
        It is none, or of another version.
    """
    file.seek(0)
    head = file.read(28)
    if len(head) < 28 or not head.strip(b"\0"):
        raise IncompleteError(f"{shown(path)}: its header is not written yet")
    order = {b"II": "<", b"MM": ">"}.get(head[:2], "")
    if not order or struct.unpack_from(f"{order}I", head, 8) != (NDTIFF_MAGIC,):
        raise InputError(f"{shown(path)}: not a file of an NDTiff data set (it starts with {head[:4]!r})")
    major, minor, magic, length = struct.unpack_from(f"{order}4I", head, 12)
    if major != 3:
        raise InputError(f"{shown(path)}: NDTiff version {major}.{minor} cannot be read, only 3; convert the data set")
    if magic != SUMMARY_MAGIC or length > MAX_TEXT_BYTES:
        raise InputError(f"{shown(path)}: its summary is damaged")
    raw = file.read(length)
    summary = mmsummary.parsed(raw)
    if summary is None:
        if not raw.strip(b"\0") or len(raw) < length:
            raise IncompleteError(f"{shown(path)}: its summary is not written yet")
        raise InputError(f"{shown(path)}: its summary is damaged")
    return order, summary


def _place(entry: IndexEntry) -> Place:
    return tuple(entry.axes.get(axis, 0) for axis in _PLACE_AXES)


def _steps(axis: str, found: Mapping[int | str, None]) -> list[int | str]:
    """Return the values of an axis in order; of z and time also those between that no image has."""
    numbers = [value for value in found if isinstance(value, int)]
    if not numbers:
        return list(found)
    if len(numbers) < len(found):
        raise InputError(f"its index lists {axis} by number and by name")
    if axis == "channel":
        return [*sorted(numbers)]
    first, last = min(0, *numbers), max(numbers)
    if last - first > 10_000_000:
        raise InputError(f"its index lists {axis} from {first} to {last}; not plausible")
    return [*range(first, last + 1)]


def _channel_names(steps: list[int | str], summary: dict[str, Any]) -> tuple[str, ...]:
    declared = mmsummary.channel_names(summary)
    count = mmsummary.declared(summary, "Channels", "channel")
    if count > MAX_CHANNELS:
        raise InputError(f"its summary declares {count} channels; not plausible")
    if isinstance(steps[0], str):
        named = [str(step) for step in steps]
        if set(named) <= set(declared):
            return declared
        return tuple(named) + ("",) * max(0, count - len(named))
    return declared + ("",) * max(0, count - len(declared), len(steps) - len(declared))


def _page(entry: IndexEntry) -> Page:
    dtype = np.dtype("uint8") if BYTES_PER_SAMPLE[entry.pixel_type] == 1 else np.dtype("uint16")
    return Page((entry.height, entry.width), dtype, entry.pixels_at, entry.pixels_at, 0)


def _name(summary: dict[str, Any], number: int, place: Place, count: int) -> str:
    if label := mmsummary.position_label(summary, number):
        return label
    if isinstance(place[0], str):
        return place[0]
    return f"{place[1]}-{place[2]}" if count > 1 and place[0] == 0 and any(place[1:]) else ""


def _voxel(grid: Grid, summary: dict[str, Any], sources: Mapping[str, NdTiffSource]) -> FoundVoxel:
    def notes(entry: IndexEntry | None) -> dict[str, Any]:
        if entry is None or entry.file not in sources or entry.metadata_bytes > MAX_TEXT_BYTES:
            return {}
        return mmsummary.parsed(sources[entry.file].bytes_at(entry.metadata_at, entry.metadata_bytes)) or {}

    first = notes(next(iter(grid.images.values())))
    found = mmsummary.voxel(summary, first)
    if found.z_um is not None:
        return found
    for (place, t, c, z), entry in grid.images.items():
        if (above := grid.images.get((place, t, c, z + 1))) is not None:
            low, high = mmsummary.z_um(notes(entry)), mmsummary.z_um(notes(above))
            if low is None or high is None or low == high:
                break
            return found.or_else(FoundVoxel(round(abs(high - low), 6), found.y_um, found.x_um))
    return found
