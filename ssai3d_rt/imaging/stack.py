"""`Stack`: one (Z, Y, X) volume, the unit that everything here reads, restores and writes.

It knows its voxel size and where it came from (channel, time point, position, file). It does not know how to read,
resample or restore itself: see `read`, `axial` and `ssai3d_rt.runtime.restore`.

>>> import numpy as np
>>> stack = Stack(np.zeros((17, 88, 89), np.uint16), voxel_um=(0.4, 0.0941, 0.0941))
>>> round(stack.anisotropy, 2), stack.isotropic_planes
(4.25, 69)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ssai3d_rt.errors import InputError, VoxelSizeError

if TYPE_CHECKING:
    from pathlib import Path

DTYPES = ("uint8", "uint16", "float32")
"""Names of the sample types that a stack may hold."""

Array = npt.NDArray[np.generic]


@dataclass(frozen=True, slots=True, eq=False)
class Stack:
    """One volume: one channel, one time point, one position.

    Parameters
    ----------
    data
        ``(Z, Y, X)`` uint8, uint16 or float32 counts, finite.
    voxel_um
        ``(z, y, x)`` voxel size in micrometres, each positive; y and x differ by less than 1 %.
    channel, position
        Names as the file gives them; empty where it names none.
    time
        Index of the time point, from 0.
    source
        The file or folder it was read from.

    Raises
    ------
    InputError
        Not three-dimensional, empty, or a dtype outside `DTYPES`.
    VoxelSizeError
        A voxel size that is not finite and positive, or lateral pixels that are not square.
    """

    data: Array
    voxel_um: tuple[float, float, float]
    channel: str = ""
    time: int = 0
    position: str = ""
    source: Path | None = None

    def __post_init__(self) -> None:
        where = f" ({self.source})" if self.source else ""
        if self.data.ndim != 3 or 0 in self.data.shape:
            raise InputError(f"a stack has axes (Z, Y, X), got shape {self.data.shape}{where}")
        if self.data.dtype.name not in DTYPES:
            raise InputError(f"sample type {self.data.dtype} is not supported{where}; convert to {', '.join(DTYPES)}")
        if len(self.voxel_um) != 3 or not all(math.isfinite(v) and v > 0 for v in self.voxel_um):
            raise VoxelSizeError(f"voxel size {self.voxel_um} um is not three positive numbers (z, y, x){where}")
        _, y_um, x_um = self.voxel_um
        if abs(y_um - x_um) > 0.01 * max(y_um, x_um):
            raise VoxelSizeError(f"lateral pixels must be square, got y {y_um} um and x {x_um} um{where}")

    @property
    def lateral_um(self) -> float:
        """Lateral pixel size in micrometres."""
        return self.voxel_um[2]

    @property
    def anisotropy(self) -> float:
        """Plane spacing over lateral pixel size; 1.0 is isotropic."""
        return self.voxel_um[0] / self.voxel_um[2]

    @property
    def isotropic_planes(self) -> int:
        """Planes after resampling Z to the lateral pixel, first and last plane kept inside."""
        return math.floor((int(self.data.shape[0]) - 1) * self.anisotropy + 1e-6) + 1
