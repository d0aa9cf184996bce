"""Figures of merit: against a known truth, and of one volume on its own.

`mse`, `psnr`, `ssim` and `ncc` compare with a truth. `fwhm_um` and `spot_fwhm_um` (see `spots`) and
`fourier_resolution_um` (see `fourier`) need none; they use the same estimator along every axis, so that their ratio
says how isotropic a volume is.

>>> import numpy as np
>>> truth = np.zeros((8, 8, 8))
>>> round(psnr(truth + 0.1, truth, data_range=1.0), 6)
20.0
>>> isotropy_ratio(lateral_um=0.25, axial_um=0.5)
0.5
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ssai3d_rt.imaging.fourier import Spectrum, fourier_resolution_um, spectrum
from ssai3d_rt.imaging.spots import SpotFwhm, fwhm_um, spot_fwhm_um

__all__ = [
    "Spectrum",
    "SpotFwhm",
    "fourier_resolution_um",
    "fwhm_um",
    "isotropy_ratio",
    "mse",
    "ncc",
    "psnr",
    "spectrum",
    "spot_fwhm_um",
    "ssim",
]

Volume = npt.NDArray[Any]
Doubles = npt.NDArray[np.float64]


def mse(image: Volume, truth: Volume) -> float:
    """Mean square error (article eq. 8)."""
    _same_shape(image, truth)
    return float(np.mean((image.astype(np.float64) - truth) ** 2))


def psnr(image: Volume, truth: Volume, data_range: float) -> float:
    """Peak signal-to-noise ratio in dB, ``10 log10(data_range^2 / mse)``; infinite for equal images."""
    error = mse(image, truth)
    return math.inf if error == 0 else 10 * math.log10(data_range**2 / error)


def ssim(image: Volume, truth: Volume, data_range: float, *, std_px: float | None = 1.5) -> float:
    """Structural similarity (article eq. 9: k1 = 0.01, k2 = 0.03, L = `data_range`).

    Parameters
    ----------
    image, truth
        Same shape, any number of axes.
    data_range
        L; the article takes 65535 for 16-bit images.
    std_px
        Means, variances and the covariance are taken in Gaussian windows of this standard deviation along all axes
        (Z. Wang et al., IEEE Trans. Image Process. 13, 600, 2004) and the result is averaged over the image. None takes
        them once over the whole image, which is how the article prints its equation.
    """
    _same_shape(image, truth)
    a, b = image.astype(np.float64), truth.astype(np.float64)

    def local(values: Doubles) -> Doubles:
        return np.asarray(values.mean()) if std_px is None else _smooth(values, std_px)

    mean_a, mean_b = local(a), local(b)
    variance_a, variance_b = local(a * a) - mean_a**2, local(b * b) - mean_b**2
    covariance = local(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    likeness = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return float(np.mean(likeness / ((mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2))))


def ncc(image: Volume, truth: Volume) -> float:
    """Normalised cross-correlation (article eq. 10), -1 to 1; 0 where one of the two is constant."""
    _same_shape(image, truth)
    a = image.astype(np.float64) - image.mean(dtype=np.float64)
    b = truth.astype(np.float64) - truth.mean(dtype=np.float64)
    norm = math.sqrt(float(np.sum(a * a)) * float(np.sum(b * b)))
    return float(np.sum(a * b)) / norm if norm > 0 else 0.0


def isotropy_ratio(lateral_um: float, axial_um: float) -> float:
    """Lateral over axial resolution, both from the same estimator: 1.0 is isotropic, below is blurred along Z."""
    return lateral_um / axial_um


def _same_shape(a: Volume, b: Volume) -> None:
    if a.shape != b.shape:
        raise ValueError(f"shapes differ: {a.shape} and {b.shape}")


def _smooth(values: Doubles, std_px: float) -> Doubles:
    """Gaussian window along all axes, cut at 3.5 standard deviations, the ends reflected."""
    reach = round(3.5 * std_px)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / std_px) ** 2)
    kernel /= kernel.sum()
    for axis in range(values.ndim):
        n = values.shape[axis]
        pad = [(reach, reach) if a == axis else (0, 0) for a in range(values.ndim)]
        padded = np.pad(values, pad, mode="symmetric")
        values = np.zeros_like(values)
        for shift, weight in enumerate(kernel):
            values += weight * padded[(slice(None),) * axis + (slice(shift, shift + n),)]
    return values
