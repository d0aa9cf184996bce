"""Look through a watched folder: which files and data sets may be stacks, and which markers lie beside them.

One pass with `os.scandir`; links are not followed, hidden and temporary names are left out, only regular files count. A
folder that is a data set (NDTiff, OME-Zarr, separate image files) is one candidate and is not looked into further. What
a hook leaves to say "this one is finished" is an empty file `NAME.done` beside the file or folder NAME.
"""

from __future__ import annotations

import os
import stat
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ssai3d_rt.imaging.folder import is_temporary, kind_of
from ssai3d_rt.runtime.complete import is_candidate
from ssai3d_rt.runtime.datasets import files_of, folder_identity, is_data_set, owner_of
from ssai3d_rt.runtime.source import Identity, identity, identity_of

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["MARKER", "Found", "candidate", "files_of", "is_data_set", "owner_of", "scan"]

MARKER = ".done"


@dataclass(slots=True)
class Found:
    """What one pass found below a folder.

    `files` holds data sets too, by the path of their folder. `whole` is False where a folder could not be read: what
    was not found may then still be there.
    """

    files: dict[Path, Identity] = field(default_factory=dict)
    markers: dict[Path, str] = field(default_factory=dict)
    """By the path that is finished; the value changes when the marker is left anew."""
    whole: bool = True
    folders: int = 0
    """Folders that were looked through, data sets left out."""


def scan(root: Path) -> Found:
    """Look through `root`, which itself is never a data set; a folder that cannot be read is left out."""
    found = Found()
    beside = root.with_name(root.name + MARKER)
    if beside.is_file():
        found.markers[root] = str(identity(beside).mtime_ns)
    folders = [root]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as scanned:
                entries = list(scanned)
            found.folders += 1
            if folder != root and kind_of(folder.name, (entry.name for entry in entries)) is not None:
                found.files[folder] = folder_identity(folder)
                continue
            for entry in entries:
                _sort(entry, folder, folders, found)
        except OSError:
            found.whole = False
    return found


def candidate(path: Path) -> Identity | None:
    """Identity of a file or data set that may be a stack; None where it cannot be one or is not there."""
    if is_temporary(path.name):
        return None
    try:
        status = os.lstat(path)
        if stat.S_ISDIR(status.st_mode):
            return folder_identity(path) if is_data_set(path) else None
    except OSError:
        return None
    return identity_of(status) if is_candidate(path.name) and stat.S_ISREG(status.st_mode) else None


def _sort(entry: os.DirEntry[str], folder: Path, folders: list[Path], found: Found) -> None:
    if entry.name.startswith("."):
        return
    try:
        if entry.is_dir(follow_symlinks=False):
            if not is_temporary(entry.name):
                folders.append(folder / entry.name)
        elif not entry.is_file(follow_symlinks=False):
            return
        elif entry.name.lower().endswith(MARKER):
            found.markers[folder / entry.name[: -len(MARKER)]] = str(entry.stat(follow_symlinks=False).st_mtime_ns)
        elif is_candidate(entry.name):
            # Windows' directory entries carry no inode, and their size lags behind while a file is open.
            path = folder / entry.name
            found.files[path] = (
                identity(path) if sys.platform == "win32" else identity_of(entry.stat(follow_symlinks=False))
            )
    except FileNotFoundError:
        return  # it went away in between
