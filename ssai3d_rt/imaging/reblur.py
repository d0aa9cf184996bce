"""The blur along Z, applied to a restored volume: does it explain the raw planes, and with which width does it.

A restored volume that is blurred along Z with the right Gaussian gives the raw planes back. The width that does so best
measures the blur of a stack through its restoration, whatever the sample looks like.

>>> import numpy as np
>>> truth = np.zeros((48, 8, 8), np.float32)
>>> truth[16:28] = 1.0
>>> raw = blurred_planes(truth, 24, 2.0, std_px=3.3)
>>> round(fitted_blur_px(raw, truth, 2.0, finely=True), 1)
3.3
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float32]

BLURS_PX = (0.3, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.7, 8.0)
"""Gaussian standard deviations in isotropic pixels that are tried."""

_FITTED_COLUMNS = 20_000


def fitted_blur_px(raw: Float, restored: Float, anisotropy: float, *, finely: bool = False) -> float:
    """Return the standard deviation in isotropic px that brings the restored volume closest to the raw planes.

    Parameters
    ----------
    raw
        ``(Z, Y, X)`` float32.
    restored
        ``(Zi, Y, X)`` float32 on the same scale.
    anisotropy
        Plane spacing over pixel size.
    finely
        Look between the members of `BLURS_PX` too, to about 3 %.
    """
    step = max(1, raw[0].size // _FITTED_COLUMNS)
    few_raw = raw.reshape(raw.shape[0], -1)[:, ::step]
    few_restored = restored.reshape(restored.shape[0], -1)[:, ::step]

    def misfit(std_px: float) -> float:
        matrix = _blur_matrix(len(few_raw), len(few_restored), anisotropy, std_px)
        return float(np.mean((matrix @ few_restored - few_raw) ** 2))

    best = min(BLURS_PX, key=misfit)
    if not finely:
        return best
    return min((best * 2 ** (power / 20) for power in range(-10, 11)), key=misfit)


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
