"""`Position`: where each plane of one stage position lies, whatever the file format.

The format modules (`ome`, `mmstack`, `hyperstack`, `ndtiff`, `omezarr`, `separate`) fill one in; `read` turns it into
stacks. A plane that a file declares but does not hold is simply not in `planes`: it can be named in a message, and
never read as zeros.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from ssai3d_rt.errors import IncompleteError, InputError, NotAStackError
from ssai3d_rt.imaging.openfile import shown
from ssai3d_rt.imaging.tiff import Page, TiffSource

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np

    from ssai3d_rt.imaging.stack import Array
    from ssai3d_rt.imaging.voxel import FoundVoxel

MAX_DECLARED_PLANES = 10_000_000
MAX_DECLARED_STACKS = 1_000_000
"""A file that declares more planes or stacks than these is refused instead of listed."""

OPEN_FILES = 16
"""Files of one data set that stay open at the same time."""


class PlaneSource(Protocol):
    """What planes are read from: a file, or a whole data set, that can be closed and opened again."""

    @property
    def path(self) -> Path:
        """The file or folder."""

    def read(self, page: Page) -> Array:
        """Return the ``(Y, X)`` pixels of a plane."""

    def require_unchanged(self) -> None:
        """Raise `IncompleteError` if what was read from was changed since."""

    def close(self) -> None:
        """Close what is open."""


Plane = tuple[PlaneSource, Page]
Source = TypeVar("Source", bound=PlaneSource)


@dataclass(frozen=True, slots=True)
class Position:
    """One stage position: ``times x channels x planes`` images of one size.

    Parameters
    ----------
    index, name
        Number in the acquisition, and name as the file gives it ("" where it names none).
    path
        The file that a message about it names.
    kind
        Format in words.
    size
        Declared ``(T, C, Z)``.
    channels
        C names, "" where the file gives none.
    voxel
        What the file says about the voxel size.
    planes
        ``(t, c, z)`` to file and page, for planes that are there.
    """

    index: int
    name: str
    path: Path
    kind: str
    size: tuple[int, int, int]
    channels: tuple[str, ...]
    voxel: FoundVoxel
    planes: Mapping[tuple[int, int, int], Plane]

    def __post_init__(self) -> None:
        require_plausible(self.size, self.path)
        times, channels, planes = self.size
        if not self.planes:
            raise IncompleteError(
                f"{shown(self.path)}: declares {times * channels * planes} planes, holds none of them"
            )
        looks = {(page.shape, page.dtype) for _, page in self.planes.values()}
        if len(looks) > 1:
            words = " and ".join(sorted(f"{shape[0]} x {shape[1]} {dtype}" for shape, dtype in looks))
            raise InputError(
                f"{shown(self.path)}: its planes differ in size or type ({words}); save them as separate files"
            )
        if planes == 1:
            what = f"{times} time points" if times > 1 else f"{channels} channels" if channels > 1 else "one image"
            hint = (
                ", not a z-stack"
                if what == "one image"
                else " of one plane each; if these are planes, save them as slices"
            )
            kind = NotAStackError if what == "one image" else InputError
            raise kind(f"{shown(self.path)}: holds {what}{hint}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(Z, Y, X)`` of its stacks."""
        _, page = next(iter(self.planes.values()))
        return (self.size[2], *page.shape)

    @property
    def stored_dtype(self) -> np.dtype[np.generic]:
        """Sample type on disk."""
        _, page = next(iter(self.planes.values()))
        return page.dtype

    def missing(self, time: int, channel: int) -> int | None:
        """Return the first plane that stack lacks, None where it is whole."""
        return next((z for z in range(self.size[2]) if (time, channel, z) not in self.planes), None)

    def require_whole(self, time: int, channel: int) -> None:
        """Raise `IncompleteError` naming the first plane that stack lacks."""
        if (z := self.missing(time, channel)) is not None:
            raise IncompleteError(
                f"{shown(self.path)}: plane (t={time}, c={channel}, z={z}) is declared but not there "
                f"({len(self.planes)} of {self.size[0] * self.size[1] * self.size[2]} planes are); "
                "unfinished, stopped early, or a file of the set is missing"
            )


class SourcePool:
    """The files of one data set, each inspected once, `OPEN_FILES` of them open at a time.

    With `growing`, files may still be written, and hold the pages that are whole by now.
    """

    def __init__(self, *, growing: bool = False) -> None:
        self.growing = growing
        self._sources: OrderedDict[Path, PlaneSource] = OrderedDict()

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every file that was opened, sorted."""
        return tuple(sorted(self._sources))

    def open(self, path: Path) -> TiffSource:
        """Return the source of `path`, inspected on first use."""
        source = self._sources.get(path)
        if not isinstance(source, TiffSource):
            source = self.add(TiffSource(path, growing=self.growing))
        self.touch(source)
        return source

    def add(self, source: Source) -> Source:
        """Take a source of another kind in."""
        self._sources[source.path] = source
        self.touch(source)
        return source

    def touch(self, source: PlaneSource) -> None:
        """Mark `source` as used now, and close the ones that were not for longest."""
        self._sources.move_to_end(source.path)
        for old in list(self._sources.values())[:-OPEN_FILES]:
            old.close()

    def close(self) -> None:
        """Close every file."""
        for source in self._sources.values():
            source.close()


def require_plausible(size: tuple[int, int, int], path: Path) -> None:
    """Refuse a declared ``(T, C, Z)`` that no acquisition has."""
    times, channels, planes = size
    if min(size) < 1 or times * channels * planes > MAX_DECLARED_PLANES or times * channels > MAX_DECLARED_STACKS:
        raise InputError(
            f"{shown(path)}: declares {times} times x {channels} channels x {planes} planes; not plausible"
        )


def require_plain_name(name: str, path: Path) -> str:
    """Return a file name that `path` refers to, refusing one that leads out of its folder."""
    if name in ("", ".", "..") or any(c in name for c in "/\\:\0"):
        raise InputError(f"{shown(path)}: refers to the file {name!r} outside its own folder; refused")
    return name
