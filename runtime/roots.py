"""Watched folders and the output folder: which file belongs to which, and where its result goes.

The output folder mirrors the watched one; several watched folders each get a folder of their own in it.

>>> roots = Roots([Path("/data/raw")], Path("/data/iso"))
>>> roots.folder_of(Path("/data/raw/day1/cells.tif")).as_posix()
'/data/iso/day1'
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ssai3d_rt.errors import ConfigError
from ssai3d_rt.imaging.openfile import shown
from ssai3d_rt.runtime.publish import result_folder

if TYPE_CHECKING:
    from collections.abc import Sequence


class Roots:
    """Watched folders (real paths), and the output folder.

    Raises
    ------
    ConfigError
        No folder, a folder that is a file, or one that lies in another or holds, or lies in, the output folder.
    """

    def __init__(self, folders: Sequence[Path], out: Path) -> None:
        self.out = Path(os.path.realpath(out))
        self.folders = tuple(dict.fromkeys(Path(os.path.realpath(folder)) for folder in folders))
        if not self.folders:
            raise ConfigError("no folder to watch; name at least one")
        for folder in (*self.folders, self.out):
            if folder.exists() and not folder.is_dir():
                raise ConfigError(f"{shown(folder)} is a file; a folder is needed")
        for folder in self.folders:
            if folder.is_relative_to(self.out) or self.out.is_relative_to(folder):
                raise ConfigError(
                    f"the output folder {shown(self.out)} and the watched folder {shown(folder)} lie in each other; "
                    "choose an output folder beside it"
                )
            for other in self.folders:
                if other is not folder and other.is_relative_to(folder):
                    raise ConfigError(
                        f"{shown(other)} lies in {shown(folder)}, which is watched as a whole; leave it out"
                    )
        names = [folder.name for folder in self.folders]
        self._prefixes = {
            folder: "" if len(names) == 1 else folder.name if names.count(folder.name) == 1 else _distinct(folder)
            for folder in self.folders
        }

    def root_of(self, path: Path) -> Path | None:
        """Return the watched folder in which a path lies; None for any other path."""
        return next((folder for folder in self.folders if path.is_relative_to(folder)), None)

    def folder_of(self, source: Path) -> Path:
        """Return the folder of a source's result.

        Raises
        ------
        ValueError
            The source lies in no watched folder.
        """
        root = self.root_of(source)
        if root is None:
            raise ValueError(f"{source} lies in no watched folder")
        return self.out / result_folder(Path(self._prefixes[root]) / source.parent.relative_to(root))


def _distinct(folder: Path) -> str:
    return f"{folder.name}-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:6]}"
