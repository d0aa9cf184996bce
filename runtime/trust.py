"""The trust map: where not to believe a restored stack.

Two signs of invented detail are added up, both as a fraction of the stack's intensity range: where the views along X
and along Y disagree, and where the restored volume, blurred along Z again, does not explain the raw planes. Zero means
that nothing speaks against the voxel; 0.1 means a tenth of the range. How much blur there was is fitted, as no profile
of the microscope is needed for a restoration. It does not know networks.

>>> import numpy as np
>>> from ssai3d_rt.imaging.stack import Stack
>>> truth = np.zeros((9, 8, 8), np.float32)
>>> truth[4, 4, 4] = 1.0
>>> raw = Stack(blurred_planes(truth, 2, 2.0, 1.0), voxel_um=(0.2, 0.1, 0.1))
>>> good = unexplained(raw.data, truth, 2.0)
>>> bad = unexplained(raw.data, np.roll(truth, 3, axis=2), 2.0)
>>> bool(good.max() < 0.2 * bad.max())
True
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from ssai3d_rt.imaging.normalise import Normalisation
    from ssai3d_rt.imaging.stack import Stack

Float = npt.NDArray[np.float32]

BLURS_PX = (0.3, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.7, 8.0)
"""Gaussian standard deviations in isotropic pixels that are tried."""

NOISE_PX = 1.5
"""Standard deviation of the lateral average that keeps the raw stack's noise out of the map."""

_FITTED_COLUMNS = 20_000


def trust_map(raw: Stack, restored: Float, disagreement: Float, scale: Normalisation) -> Float:
    """Measure where a restored stack should not be believed.

    Parameters
    ----------
    raw
        The stack as acquired.
    restored
        ``(Zi, Y, X)`` float32 counts, isotropic.
    disagreement
        ``(Zi, Y, X)`` float32 counts, half the difference of the two views.
    scale
        The normalisation of the restoration.

    Returns
    -------
    ``(Zi, Y, X)`` float32, not negative, in fractions of the normalised range.
    """
    doubt = unexplained(scale.apply(raw.data), scale.apply(restored), raw.anisotropy)
    doubt += disagreement / np.float32(scale.scale)
    return doubt


def unexplained(raw: Float, restored: Float, anisotropy: float) -> Float:
    """Blur the restored volume along Z so that it fits the raw planes best, and return what differs nevertheless.

    Parameters
    ----------
    raw
        ``(Z, Y, X)`` float32.
    restored
        ``(Zi, Y, X)`` float32 on the same scale.
    anisotropy
        Plane spacing over pixel size.

    Returns
    -------
    ``(Zi, Y, X)`` float32, not negative: absolute difference, averaged laterally, interpolated between the planes.
    """
    planes = raw.shape[0]
    std_px = fitted_blur_px(raw, restored, anisotropy)
    expected = blurred_planes(restored, planes, anisotropy, std_px)
    kernel = _gaussian(NOISE_PX)
    difference = np.stack([np.abs(_smoothed(plane, kernel)) for plane in raw - expected])
    between = _linear_matrix(planes, restored.shape[0], anisotropy)
    result: Float = (between @ difference.reshape(planes, -1)).reshape(restored.shape)
    return result


def fitted_blur_px(raw: Float, restored: Float, anisotropy: float) -> float:
    """Return the standard deviation among `BLURS_PX` that brings the restored volume closest to the raw planes."""
    step = max(1, raw[0].size // _FITTED_COLUMNS)
    few_raw = raw.reshape(raw.shape[0], -1)[:, ::step]
    few_restored = restored.reshape(restored.shape[0], -1)[:, ::step]

    def misfit(std_px: float) -> float:
        matrix = _blur_matrix(len(few_raw), len(few_restored), anisotropy, std_px)
        return float(np.mean((matrix @ few_restored - few_raw) ** 2))

    return min(BLURS_PX, key=misfit)


def blurred_planes(volume: Float, planes: int, anisotropy: float, std_px: float) -> Float:
    """Blur an isotropic volume along Z with a Gaussian and keep `planes` planes, `anisotropy` pixels apart."""
    matrix = _blur_matrix(planes, volume.shape[0], anisotropy, std_px)
    result: Float = (matrix @ volume.reshape(volume.shape[0], -1)).reshape(planes, *volume.shape[1:])
    return result


def _blur_matrix(planes: int, depth: int, anisotropy: float, std_px: float) -> Float:
    """``(planes, depth)`` Gaussian weights around each plane; rows sum to 1, so the ends are not darkened."""
    distance = np.arange(depth)[None] - np.arange(planes)[:, None] * anisotropy
    weights = np.exp(-0.5 * (distance / std_px) ** 2) + 1e-30
    matrix: Float = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    return matrix


def _linear_matrix(planes: int, depth: int, anisotropy: float) -> Float:
    """``(depth, planes)`` weights of linear interpolation between planes; the end planes are repeated."""
    distance = np.abs(np.minimum(np.arange(depth) / anisotropy, planes - 1)[:, None] - np.arange(planes)[None])
    matrix: Float = np.maximum(0, 1 - distance).astype(np.float32)
    return matrix


def _gaussian(std_px: float) -> Float:
    reach = int(np.ceil(3 * std_px))
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / std_px) ** 2)
    kernel: Float = (weights / weights.sum()).astype(np.float32)
    return kernel


def _smoothed(plane: Float, kernel: Float) -> Float:
    """Convolve a ``(Y, X)`` plane with a kernel along both axes, its borders repeated."""
    reach = len(kernel) // 2
    for _ in range(2):
        padded = np.pad(plane, ((reach, reach), (0, 0)), mode="edge")
        plane = sum((w * padded[at : at + len(plane)] for at, w in enumerate(kernel)), np.zeros_like(plane)).T
    return plane
