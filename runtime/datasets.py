"""Data sets that are folders, as the daemon sees them: one thing with one path, one identity and a list of files.

`ssai3d_rt.imaging.folder` says what marks such a folder; here is what follows from it for a watch. Only names and
`stat` are looked at, in one pass, so that 100,000 chunk files cost less than a second.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ssai3d_rt.imaging.folder import METADATA, is_plane_file, is_temporary, kind_of_folder, marked
from ssai3d_rt.runtime.source import Identity

if TYPE_CHECKING:
    from pathlib import Path

PREALLOCATED_BYTES = 1 << 32
"""A file of this size may be one that its writer has not filled yet; what it takes on the disk tells."""

_MASK = (1 << 62) - 1


def is_data_set(folder: Path) -> bool:
    """Whether a folder is one data set: NDTiff, OME-Zarr, or separate image files."""
    return not is_temporary(folder.name) and kind_of_folder(folder) is not None


def folder_identity(folder: Path) -> Identity:
    """Identity of a data set, which changes whenever anything in it is added, removed, grown or rewritten.

    Inode of the folder; sum of the sizes; newest modification; and, as `ctime_ns`, the sum of all change and
    modification times, so that a clock that was set back hides nothing.

    Raises
    ------
    OSError
        It cannot be read.
    """
    top = os.lstat(folder)
    size, newest, times = 0, top.st_mtime_ns, top.st_ctime_ns + top.st_mtime_ns
    pending = [os.fspath(folder)]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue  # it went away in between, which the folder's own time tells
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                else:
                    size += _taken(status)
                mtime = status.st_mtime_ns
                times += mtime + status.st_ctime_ns
                if mtime > newest:
                    newest = mtime
    return Identity(top.st_dev, top.st_ino, size, newest, times & _MASK)


def files_of(path: Path) -> list[Path]:
    """Return a file itself, or every file of a data set, in an order that stays the same.

    Links and special files in a data set are left out; it is refused for them when it is judged.

    Raises
    ------
    OSError
        A folder cannot be read.
    """
    if not os.path.isdir(path) or os.path.islink(path):
        return [path]
    found: list[str] = []
    pending = [""]
    while pending:
        inside = pending.pop()
        with os.scandir(path / inside) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(f"{inside}{entry.name}/")
                elif entry.is_file(follow_symlinks=False):
                    found.append(inside + entry.name)
    return [path / name for name in sorted(found)]


def owner_of(path: Path, root: Path) -> Path:
    """Return what a path below a watched folder belongs to: the data set folder above it, or itself.

    A path below a folder with a temporary name belongs to that folder, which is no candidate.
    """
    try:
        parts = path.relative_to(root).parts
    except ValueError:
        return path
    folder = root
    for part in parts[:-1]:
        folder = folder / part
        if is_temporary(part) or marked(folder):
            return folder
    parent = path.parent
    alike = len(parts) > 1 and (is_plane_file(path.name) or os.path.lexists(parent / METADATA))
    return parent if alike and is_data_set(parent) else path


def _taken(status: os.stat_result) -> int:
    if status.st_size < PREALLOCATED_BYTES:
        return status.st_size
    return min(status.st_size, getattr(status, "st_blocks", status.st_size) * 512)
