"""Methods without a network: the raw stack resampled.

>>> Raw().name
'raw'
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ssai3d_rt.compare.method import Budget, Fit
from ssai3d_rt.imaging.axial import resample_z
from ssai3d_rt.progress import Progress, silent

if TYPE_CHECKING:
    from ssai3d_rt.calibration.profile import RigProfile
    from ssai3d_rt.imaging.stack import Stack

Float = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Raw:
    """The raw stack, its planes interpolated; what every method starts from."""

    name: str = "raw"
    summary: str = "the raw stack, its planes interpolated"

    def fit(self, stack: Stack, rig: RigProfile | None, budget: Budget, *, progress: Progress = silent) -> Fit:
        """Do nothing; see `Method`."""
        return Fit(lambda raw: resample_z(raw.data.astype(np.float32), raw.anisotropy), 0.0, 0, {})
