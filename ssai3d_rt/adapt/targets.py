"""What a network learns to give back: sharp planes of the stack, and the direction along which they may be blurred.

Lateral planes may be blurred along any direction, but look like axial slices only where the sample looks alike from all
sides. Axial slices of the restored volume show what axial slices show. They are sharp along X (or Y) whatever the
restoration made of Z: turned by 90 degrees, so that X takes the place of Z, and blurred along it, they are pairs from
the very planes that will be restored. That holds where structures are as long along Z as they are laterally, which
`balance` tells from the raw stack: what lies flat in the lateral planes would be learnt as standing upright.

>>> import numpy as np
>>> volume = np.random.default_rng(0).random((32, 40, 48), np.float32)
>>> turned_slices(volume).shape
(88, 40, 32)
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ssai3d_rt.imaging.reblur import blurred_planes

Float = npt.NDArray[np.float32]

BALANCED = 1.25
"""Axial slices are turned where `balance` is below this, and above its inverse."""

LEAST_DEPTH = 8.0
"""Depth of a volume, in standard deviations of the blur, below which its balance cannot be told."""


def turned_slices(volume: Float) -> Float:
    """Take the axial slices of a volume with the lateral axis as rows.

    Parameters
    ----------
    volume
        ``(Z, Y, X)`` float32, isotropic, restored.

    Returns
    -------
    ``(Y + X, min(X, Y), Z)`` float32: XZ slices with X as rows, then YZ slices with Y as rows; the longer of the two
    lateral axes is cropped.
    """
    rows = min(volume.shape[1:])
    xz = volume[:, :, :rows].transpose(1, 2, 0)  # (Y, X, Z)
    yz = volume[:, :rows].transpose(2, 1, 0)  # (X, Y, Z)
    return np.ascontiguousarray(np.concatenate([xz, yz]))


def like_z(volume: Float, blur_px: float) -> bool:
    """Tell whether a sample's structures are as long along Z as they are laterally; see `balance`."""
    if min(volume.shape) < LEAST_DEPTH * blur_px:
        return False
    return 1 / BALANCED < balance(volume, blur_px) < BALANCED


def balance(volume: Float, blur_px: float) -> float:
    """Measure how much steeper a sample is along Z than laterally, seen with the same blur along all axes.

    Parameters
    ----------
    volume
        ``(Z, Y, X)`` float32: the raw stack, resampled to isotropic pixels.
    blur_px
        Standard deviation of its blur along Z in px; the volume is blurred further until it is equally blurred along
        all axes and free of noise.

    Returns
    -------
    Ratio of root mean square slopes, along Z over lateral: 1 for structures of any direction, above 1 for what lies
    flat in the lateral planes, below 1 for what stands upright.
    """
    lateral_px = math.sqrt(2) * blur_px
    alike = volume
    for axis, std_px in enumerate((blur_px, lateral_px, lateral_px)):
        first = np.ascontiguousarray(np.moveaxis(alike, axis, 0))
        alike = np.moveaxis(blurred_planes(first, len(first), 1.0, std_px), 0, axis)
    edge = min(round(2 * blur_px), len(alike) // 4)
    inner = alike[edge : len(alike) - edge]
    along_z, along_y, along_x = (float(np.square(np.diff(inner, axis=axis)).mean()) for axis in range(3))
    lateral = math.sqrt(along_y * along_x)
    return math.sqrt(along_z / lateral) if lateral > 0 else math.inf
