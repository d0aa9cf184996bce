"""Is an OME-Zarr finished: its metadata whole, and every chunk that the shape of its first level demands a real file.

A chunk that is not there is never taken for zeros, although zarr's own readers do. What no structure can tell is
whether the writer will make the array larger, or fill a chunk of several planes once more; so it is never `declared`
finished, and must also be quiet for a while.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ssai3d_rt.errors import IncompleteError
from ssai3d_rt.imaging.layout import require_plausible
from ssai3d_rt.imaging.zarrchunks import list_files, present
from ssai3d_rt.imaging.zarrmeta import zarr_images
from ssai3d_rt.runtime.formats.verdict import Completeness, Judgement, growing

if TYPE_CHECKING:
    from pathlib import Path

KIND = "ome-zarr"


def judge_omezarr(folder: Path) -> Completeness:
    """Judge an OME-Zarr by its structure.

    Raises
    ------
    InputError
        It is damaged, leads out of its folder, or can never be a stack.
    OSError
        It cannot be read.
    """
    files = list_files(folder)
    try:
        images = zarr_images(folder)
    except IncompleteError as error:
        return growing(str(error), kind=KIND)
    for image in images:
        require_plausible(image.size, folder)
    expected = sum(math.prod(image.size) for image in images)
    found, first_gap = 0, ""
    for image in images:
        there = present(folder, image, files)
        found += int(there.planes.sum())
        if there.first_gap and not first_gap:
            plane = image.where(tuple(int(axis[0]) for axis in (~there.planes).nonzero()))
            first_gap = f"{there.first_gap}, plane (t={plane[0]}, c={plane[1]}, z={plane[2]})"
            first_gap += f" of {image.path}" if image.path else ""
    if first_gap:
        reason = f"{first_gap} ({found} of {expected} planes are there)"
        return Completeness(Judgement.GROWING, reason, expected, found, KIND, open_ended=True)
    return Completeness(Judgement.COMPLETE, "", expected, found, KIND, open_ended=True)
