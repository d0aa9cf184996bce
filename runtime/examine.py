"""Examine a source before anything is made of it: hash its bytes, and decode every plane.

Runs in a process with a memory limit, because what decoding a damaged or hostile file does is anybody's guess. What it
refuses, the reader refuses: a plane that is missing or cut off, types and sizes that no stack has, anything that the
decoding library complains about, samples that are not finite, a file that changed in between.

>>> import numpy as np, tempfile, tifffile
>>> from pathlib import Path
>>> path = Path(tempfile.mkdtemp()) / "cells.tif"
>>> tifffile.imwrite(path, np.full((4, 8, 8), np.nan, "float32"), imagej=True, metadata={"axes": "ZYX"})
>>> examine(Examine(path, (path,), 0.4, 0.1))
Traceback (most recent call last):
ssai3d_rt.errors.InputError: ...cells.tif: 256 NaN or infinite samples; replace them before restoring
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ssai3d_rt.imaging.limits import require_restorable
from ssai3d_rt.imaging.read import open_acquisition
from ssai3d_rt.progress import silent
from ssai3d_rt.runtime.messages import Examine
from ssai3d_rt.runtime.source import content_hash

if TYPE_CHECKING:
    from ssai3d_rt.progress import Progress

__all__ = ["Examine", "examine"]


def examine(order: Examine, progress: Progress = silent) -> str:
    """Return the SHA-256 of the files of a source, after every whole stack in it was read.

    Raises
    ------
    InputError, IncompleteError
        It cannot be restored, or not yet; the message says why.
    MemoryError
        A stack does not fit into what this process may have.
    OSError
        A file cannot be read.
    """
    content = content_hash(order.files, below=order.source)
    with open_acquisition(order.source, order.voxel_z_um, order.voxel_xy_um) as acquisition:
        for number, key in enumerate(acquisition.keys):
            progress("examine", number, len(acquisition.keys))
            if acquisition.is_whole(key):
                require_restorable(acquisition.read(key))
    return content
