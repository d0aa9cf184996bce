"""Is an NDTiff data set finished: its index closed, its files cut to length, no image of the grid missing.

Files of 4 GiB are what its writers begin with, so sizes say nothing while it grows; the index, read with bounded reads,
and where the last image of each file ends say all. No pixel is read.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from ssai3d_rt.errors import IncompleteError
from ssai3d_rt.imaging.folder import NDTIFF_INDEX
from ssai3d_rt.imaging.layout import require_plausible
from ssai3d_rt.imaging.ndindex import Index, read_index
from ssai3d_rt.imaging.ndtiff import grid_of, read_header, stack_files, unfinished
from ssai3d_rt.runtime.formats.verdict import Completeness, Judgement, growing, not_ours
from ssai3d_rt.runtime.source import open_source

if TYPE_CHECKING:
    from pathlib import Path

KIND = "ndtiff"

_SMALLER = re.compile(r"Downsampled_x\d+", re.IGNORECASE)


def judge_ndtiff(folder: Path) -> Completeness:
    """Judge an NDTiff data set by its structure.

    Raises
    ------
    InputError
        It is damaged, or can never be a stack.
    OSError
        It cannot be read.
    """
    if _SMALLER.fullmatch(folder.name):
        return not_ours("it is a smaller copy of an NDTiff data set")
    sizes = stack_files(folder)
    index = _index(folder)
    found = len(index.entries) if index is not None else 0
    why = unfinished(index, sizes)
    if index is None or not index.entries or not sizes:
        return growing(why or "it has no file of pixels yet", None, found, KIND)
    name = min(entry.file for entry in index.entries)
    if name not in sizes:
        return growing(why, None, found, KIND)
    try:
        with open_source(folder / name) as file:
            _, summary = read_header(file, folder / name)
    except IncompleteError as error:
        return growing(str(error), None, found, KIND)
    grid = grid_of(index.entries, summary)
    require_plausible(grid.size, folder)
    whole = sum(entry.pixels_end <= sizes.get(entry.file, 0) for entry in grid.images.values())
    if why:
        return growing(why, None, whole, KIND)
    if gap := grid.gap():
        reason = f"{gap} is missing ({whole} of {grid.planes} planes are there)"
        return growing(reason, grid.planes, whole, KIND)
    return Completeness(Judgement.COMPLETE, "", grid.planes, whole, KIND)


def _index(folder: Path) -> Index | None:
    try:
        with open_source(folder / NDTIFF_INDEX) as file:
            return read_index(file, os.fstat(file.fileno()).st_size)
    except FileNotFoundError:
        return None
