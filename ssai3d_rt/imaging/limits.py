"""What to say about a stack that can be restored, but for which the method was not made.

SSAI-3D's article states its own limits: anisotropy beyond about 7x, very noisy data, coherent (complex) PSFs such as
OCT. The first is checked here, with what makes a stack too poor to learn from: few planes, counts clipped at the top or
at zero, no contrast. What has to be measured (noise, blurred lateral planes) is in `ssai3d_rt.calibration.limits`; the
kind of microscope no file says.

>>> import numpy as np
>>> from ssai3d_rt.imaging import Stack
>>> stack = Stack(np.arange(6 * 64, dtype=np.uint16).reshape(6, 8, 8), voxel_um=(3.0, 0.0852, 0.0852))
>>> limits(stack)
["35x anisotropy is outside the method's limits (about 7x): expect invented detail along z, check with --trust"]
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ssai3d_rt.errors import InputError
from ssai3d_rt.imaging.openfile import shown

if TYPE_CHECKING:
    from ssai3d_rt.imaging.stack import Stack

MAX_ANISOTROPY = 7.0
"""Beyond this the restoration is "worse" by the SSAI-3D article's own statement of limits."""

MIN_ANISOTROPY = 0.95
FEW_PLANES = 5
FEWEST_PLANES = 3
MAX_SATURATED = 0.01
MAX_AT_ZERO = 0.25
"""Share of the voxels at zero counts beyond which the background was cut off, not only dark."""
CAMERA_MAXIMA = (255, 1023, 4095, 16383, 65535)
"""Largest counts of 8, 10, 12, 14 and 16 bit cameras: a stack whose maximum is one of them may be clipped there."""


def limits(stack: Stack) -> list[str]:
    """Return a sentence for each limit of the method that `stack` is outside of; empty where it is inside all."""
    warnings = []
    planes = stack.data.shape[0]
    if stack.anisotropy > MAX_ANISOTROPY:
        times = f"{stack.anisotropy:.0f}" if stack.anisotropy >= 10 else f"{stack.anisotropy:.1f}"
        warnings.append(
            f"{times}x anisotropy is outside the method's limits (about {MAX_ANISOTROPY:.0f}x): "
            "expect invented detail along z, check with --trust"
        )
    elif stack.anisotropy < MIN_ANISOTROPY:
        warnings.append(
            f"planes are closer ({stack.voxel_um[0]:.3g} um) than pixels ({stack.lateral_um:.3g} um): "
            "the method is made for coarser planes, and z will be resampled to fewer"
        )
    if planes < FEW_PLANES:
        warnings.append(
            f"{planes} planes are outside the method's limits (at least {FEW_PLANES}): too few to learn from"
        )
    saturated, level = saturation(stack)
    if saturated > MAX_SATURATED:
        warnings.append(
            f"{saturated:.1%} of the voxels are saturated at {level} (more than {MAX_SATURATED:.0%}): "
            "what was clipped cannot be restored"
        )
    if (zeros := share_at_zero(stack)) > MAX_AT_ZERO:
        warnings.append(
            f"{zeros:.0%} of the voxels are zero (more than {MAX_AT_ZERO:.0%}): the background was cut off, and faint "
            "structure with it; raise the detector's offset, unless it counts single photons"
        )
    if stack.data.min() == stack.data.max():
        warnings.append("all voxels are equal: there is nothing to restore")
    return warnings


def saturation(stack: Stack) -> tuple[float, int]:
    """Return the fraction of voxels at the camera's largest count, and that count; (0, 0) where none is reached."""
    top = stack.data.max()
    if stack.data.dtype.kind == "f" or int(top) not in CAMERA_MAXIMA or top == stack.data.min():
        return 0.0, 0
    return float(np.count_nonzero(stack.data == top)) / stack.data.size, int(top)


def share_at_zero(stack: Stack) -> float:
    """Return the fraction of voxels at zero; 0 for float samples, whose zero means nothing, and for constant stacks."""
    if stack.data.dtype.kind == "f" or stack.data.max() == 0:
        return 0.0
    return 1.0 - float(np.count_nonzero(stack.data)) / stack.data.size


def require_restorable(stack: Stack) -> None:
    """Refuse a stack that cannot be restored at all.

    Raises
    ------
    InputError
        It has fewer than `FEWEST_PLANES` planes.
    """
    planes = stack.data.shape[0]
    if planes < FEWEST_PLANES:
        where = f"{shown(stack.source)}: " if stack.source else ""
        raise InputError(
            f"{where}a stack of {planes} plane{'s' if planes > 1 else ''} cannot be restored; "
            f"acquire at least {FEWEST_PLANES}, better {FEW_PLANES} or more"
        )
