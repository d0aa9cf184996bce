r"""Data sets that are folders: which folder is one, what lies in it, and opening a file of it without being led out.

An NDTiff data set, an OME-Zarr and a series of separate image files are each one folder that is one thing. What tells
them is names alone, so a folder is recognised without opening a file. Nothing here knows what is in the files.

>>> kind_of("run_1", ["NDTiff.index", "run_NDTiffStack.tif"]), kind_of("today", ["a.tif", "b.tif"])
(<FolderKind.NDTIFF: 'ndtiff'>, None)
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, BinaryIO

from ssai3d_rt.errors import IncompleteError, InputError
from ssai3d_rt.imaging.openfile import open_regular, shown, signature

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

NDTIFF_INDEX = "NDTiff.index"
METADATA = "metadata.txt"
TEMPORARY = (".tmp", ".temp", ".part", ".partial", ".filepart", ".crdownload", ".swp", "~")
"""Endings of names under which programs keep what they have not finished."""

MAX_FOLDERS = 5_000_000

_NDTIFF_FILE = re.compile(r"(.*_)?NDTiffStack(_\d+)?\.tif", re.IGNORECASE)
_ZARR_FILES = frozenset(("zarr.json", ".zgroup", ".zattrs", ".zarray"))
_PLANE_NEW = re.compile(r"img((?:_[A-Za-z]+\d{3,9})+)\.tiff?", re.IGNORECASE)
_PLANE_OLD = re.compile(r"img_(\d{9})_(.*)_(\d{3})\.tiff?", re.IGNORECASE)
_AXIS = re.compile(r"_([A-Za-z]+)(\d{3,9})")


class FolderKind(str, Enum):
    """A format whose data sets are folders."""

    NDTIFF = "ndtiff"
    OME_ZARR = "ome-zarr"
    SEPARATE = "separate"


def kind_of(name: str, names: Iterable[str]) -> FolderKind | None:
    """Say which kind of data set a folder is, by its own name and those in it; None where it is just a folder."""
    if name.lower().endswith(".zarr"):
        return FolderKind.OME_ZARR
    single = other = notes = False
    for entry in names:
        if entry == NDTIFF_INDEX or is_ndtiff_file(entry):
            return FolderKind.NDTIFF
        if entry in _ZARR_FILES:
            return FolderKind.OME_ZARR
        if entry == METADATA:
            notes = True
        elif entry[-4:].lower() in (".tif", "tiff") and entry[0] not in ".~":
            if is_plane_file(entry):
                single = True
            else:
                other = True
    return FolderKind.SEPARATE if single and (notes or not other) else None


def is_temporary(name: str) -> bool:
    """Whether a name is hidden, or one that programs use for what is not finished."""
    lower = name.lower()
    return lower.startswith((".", "~")) or lower.endswith(TEMPORARY)


def is_ndtiff_file(name: str) -> bool:
    """Whether a name is that of an NDTiff data set's pixels."""
    return "ndtiffstack" in name.lower() and _NDTIFF_FILE.fullmatch(name) is not None


def is_plane_file(name: str) -> bool:
    """Whether a name is that of one plane of a series, as Micro-Manager 2.0 or 1.4 writes it."""
    return plane_axes(name) is not None


def plane_axes(name: str) -> dict[str, int | str] | None:
    """Return the axes that a plane's file name holds; None where it is no such name.

    >>> plane_axes("img_channel001_position000_time000000002_z003.tif")
    {'channel': 1, 'position': 0, 'time': 2, 'z': 3}
    >>> plane_axes("img_000000002_DAPI_003.tif")
    {'time': 2, 'channel': 'DAPI', 'z': 3}
    """
    if not name.lower().startswith("img_"):
        return None
    if old := _PLANE_OLD.fullmatch(name):
        return {"time": int(old[1]), "channel": old[2], "z": int(old[3])}
    if new := _PLANE_NEW.fullmatch(name):
        return {axis.lower(): int(number) for axis, number in _AXIS.findall(new[1])}
    return None


def kind_of_folder(folder: Path, *, follow: bool = False) -> FolderKind | None:
    """Say which kind of data set a folder is; None where it is just a folder, a link, a file, or not there.

    With `follow`, a link to a data set counts as one, as where a user named it.
    """
    try:
        if not stat.S_ISDIR(os.stat(folder, follow_symlinks=follow).st_mode):
            return None
        if folder.name.lower().endswith(".zarr"):
            return FolderKind.OME_ZARR
        with os.scandir(folder) as entries:
            return kind_of(folder.name, (entry.name for entry in entries))
    except (OSError, ValueError):
        return None


def marked(folder: Path) -> bool:
    """Whether a folder bears the mark of an NDTiff data set or an OME-Zarr; quick, whatever lies in it."""
    if folder.name.lower().endswith(".zarr"):
        return True
    return any(os.path.lexists(folder / name) for name in (NDTIFF_INDEX, *_ZARR_FILES))


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of a data set: `name` is its path inside, with ``/``; a link or special file is not `regular`."""

    name: str
    size: int
    regular: bool


def members(folder: Path, *, below: str = "") -> Iterator[Member]:
    """Yield all that lies in a data set and is no folder, in no order; links are not followed.

    Parameters
    ----------
    folder
        The data set.
    below
        Only what lies below this folder of it.

    Raises
    ------
    OSError
        A folder cannot be read.
    InputError
        It has more folders than any acquisition.
    """
    pending = [below]
    seen = 0
    root = os.fspath(folder)
    while pending:
        inside = pending.pop()
        seen += 1
        if seen > MAX_FOLDERS:
            raise InputError(f"{shown(folder)}: holds more than {MAX_FOLDERS} folders; refused")
        prefix = f"{inside}/" if inside else ""
        with os.scandir(os.path.join(root, inside) if inside else root) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(prefix + entry.name)
                    continue
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue  # it went away in between
                yield Member(prefix + entry.name, status.st_size, stat.S_ISREG(status.st_mode))


def open_member(path: Path) -> BinaryIO:
    """Open a file of a data set for reading; a link is refused, wherever it leads.

    Raises
    ------
    InputError
        As `open_regular`, or it is a symbolic link.
    """
    if os.path.islink(path):
        raise InputError(f"{shown(path)}: is a symbolic link; inside a data set they are not followed")
    return open_regular(path)


def read_member(path: Path, max_bytes: int) -> bytes:
    """Return a small file of a data set.

    Raises
    ------
    InputError
        As `open_member`, or it has more bytes than that.
    """
    with open_member(path) as file:
        raw = file.read(max_bytes + 1)
    if len(raw) > max_bytes:
        raise InputError(f"{shown(path)}: has more than {max_bytes} bytes; refused")
    return raw


class Unchanged:
    """Remembers what files looked like when they were first read, and notices when one no longer does."""

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[int, int, int]] = {}
        self._unchecked: dict[Path, None] = {}

    def note(self, path: Path) -> None:
        """Remember a file that is about to be read; a link is refused.

        Raises
        ------
        IncompleteError
            It is not what it was when it was read before.
        InputError
            As `open_member`.
        """
        with open_member(path) as file:
            now = signature(file)
        if self._seen.setdefault(path, now) != now:
            raise IncompleteError(changed(path))
        self._unchecked[path] = None

    def again(self, paths: Iterable[Path]) -> None:
        """Have files looked at again that were noted before, because what was read of them is used once more."""
        self._unchecked.update(dict.fromkeys(paths))

    def require(self, paths: Iterable[Path] | None = None) -> None:
        """Raise `IncompleteError` if a file was changed, replaced or removed.

        Parameters
        ----------
        paths
            Look at these again; at all that were read since the last time when not given.
        """
        if paths is None:
            paths, self._unchecked = self._unchecked, {}
        for path in paths:
            try:
                status = os.lstat(path)
            except OSError as exc:
                raise IncompleteError(changed(path)) from exc
            if (status.st_ino, status.st_size, status.st_mtime_ns) != self._seen[path]:
                raise IncompleteError(changed(path))


def changed(path: Path) -> str:
    """Say that a file changed while it was read."""
    return f"{shown(path)}: changed while it was being read; wait until it is finished"
