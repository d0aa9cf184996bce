"""`Normalisation`: counts to about [0, 1] and back, once per stack.

Networks work on numbers about [0, 1]; users own counts. The two percentiles that define the scale are recorded, so the
way back is exact up to rounding: intensities come back as they went in. It does not know about planes or voxels.

>>> import numpy as np
>>> counts = np.arange(100, 200, dtype=np.uint16).reshape(4, 5, 5)
>>> scale = Normalisation.of(counts)
>>> bool(np.array_equal(scale.undo(scale.apply(counts), counts.dtype), counts))
True
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ssai3d_rt.errors import InputError

Float = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Normalisation:
    """``normalised = (counts - offset) / scale``.

    Parameters
    ----------
    offset
        Counts that become 0.
    scale
        Counts between 0 and 1, positive.
    """

    offset: float
    scale: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.offset) and math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"offset {self.offset} must be finite and scale {self.scale} positive")

    @classmethod
    def of(cls, data: npt.NDArray[Any], low: float = 1.0, high: float = 99.99) -> Normalisation:
        """Measure the scale of one stack: the percentile `low` becomes 0, `high` becomes 1.

        Where both fall together (less than one voxel in ten thousand differs from the background) minimum and maximum
        are taken instead; a constant stack has scale 1.0.

        Parameters
        ----------
        data
            Any shape, uint8, uint16 or float32 counts.
        low, high
            Percentiles, 0 <= low < high <= 100.

        Raises
        ------
        InputError
            No samples, or samples that are not finite.
        """
        if not 0 <= low < high <= 100:
            raise ValueError(f"percentiles must be 0 <= low < high <= 100, got {low} and {high}")
        if data.size == 0:
            raise InputError("the stack holds no samples")
        offset, top = _percentiles(data, (low, high))
        if not math.isfinite(offset + top):
            raise InputError("the stack holds samples that are not finite (NaN or infinity); repair or replace them")
        if top <= offset:
            offset, top = float(data.min()), float(data.max())
        scale = top - offset
        return cls(offset, scale if scale > 0 else 1.0)

    def apply(self, data: npt.NDArray[Any]) -> Float:
        """Return float32 about [0, 1]; counts outside the percentiles stay outside."""
        out = data.astype(np.float32)
        out -= np.float32(self.offset)
        out *= np.float32(1 / self.scale)
        return out

    def undo(self, data: Float, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return counts of `dtype`; integers are rounded half to even and clipped to their range."""
        out = data.astype(np.float32)
        out *= np.float32(self.scale)
        out += np.float32(self.offset)
        target = np.dtype(dtype)
        if target.kind in "ui":
            info = np.iinfo(target)
            np.rint(out, out=out)
            np.clip(out, info.min, info.max, out=out)
        return out.astype(target)


def _percentiles(data: npt.NDArray[Any], levels: tuple[float, float]) -> tuple[float, float]:
    if data.dtype not in (np.uint8, np.uint16):
        # NaN spreads through np.percentile; an infinity shows only at the ends.
        if not np.isfinite(data.min()) or not np.isfinite(data.max()):
            return math.nan, math.nan
        low, high = np.percentile(data, levels)
        return float(low), float(high)
    # A histogram, plane by plane: exact, and without a sorted copy of the stack.
    histogram = np.zeros(np.iinfo(data.dtype).max + 1, np.int64)
    for plane in data.reshape(data.shape[0], -1):
        histogram += np.bincount(plane, minlength=histogram.size)
    total = np.cumsum(histogram)
    values = []
    for level in levels:
        rank = level / 100 * (data.size - 1)
        below, above = np.searchsorted(total, (math.floor(rank), math.ceil(rank)), side="right")
        values.append(float(below) + (rank - math.floor(rank)) * float(above - below))
    return values[0], values[1]
