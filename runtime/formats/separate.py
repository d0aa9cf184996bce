"""Is a folder of separate image files finished: ``metadata.txt`` closed, and each plane of its summary a whole TIFF."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

from ssai3d_rt.errors import IncompleteError
from ssai3d_rt.imaging.openfile import shown
from ssai3d_rt.imaging.separate import series_of
from ssai3d_rt.runtime.formats.tiff import structure
from ssai3d_rt.runtime.formats.tiffwalk import NotTiffError, layout, walk
from ssai3d_rt.runtime.formats.verdict import Completeness, Judgement, broken, growing
from ssai3d_rt.runtime.source import open_source

if TYPE_CHECKING:
    from pathlib import Path

KIND = "separate"


def judge_separate(folder: Path) -> Completeness:
    """Judge a folder of separate image files by its structure.

    Raises
    ------
    InputError
        It is damaged, or can never be a stack.
    OSError
        It cannot be read.
    """
    try:
        series = series_of(folder)
    except IncompleteError as error:
        return growing(str(error), kind=KIND)
    found = len(series.files)
    if gap := series.gap():
        reason = f"{gap} has no file ({found} of {series.planes} planes are there)"
        return growing(reason, series.planes, found, KIND)
    for key in sorted(series.files):
        name = series.files[key]
        fault = _plane(folder / name)
        if fault is not None and fault.state is Judgement.BROKEN:
            return broken(f"{shown(name)}: {fault.reason}", found, KIND)
        if fault is not None:
            return growing(f"{shown(name)}: {fault.reason}", series.planes, found - 1, KIND)
    return Completeness(Judgement.COMPLETE, "", series.planes, found, KIND)


def _plane(path: Path) -> Completeness | None:
    """Say what is wrong with the TIFF file of one plane; None where nothing is."""
    with open_source(path) as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(64)
        if not head.strip(b"\0"):
            return growing("it is empty" if not size else "its header is not written yet")
        try:
            chain = walk(file, size, layout(head))
        except NotTiffError:
            return broken("it is not a TIFF file")
        except struct.error:
            return growing(f"it holds only {size} bytes of its header")
    if len(chain.pages) > 1:
        return broken(f"it holds {len(chain.pages)} images, not one plane")
    return structure(chain, size, KIND)
