"""Methods without a network: the raw stack resampled, and Richardson-Lucy deconvolution with a theoretical PSF.

>>> Raw().name, RichardsonLucy(iterations=10).name
('raw', 'richardson-lucy')
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ssai3d_rt.adapt.psf import ARTICLE_STD_PX
from ssai3d_rt.compare.method import Budget, Fit
from ssai3d_rt.errors import MissingPackageError
from ssai3d_rt.imaging.axial import resample_z
from ssai3d_rt.imaging.normalise import Normalisation
from ssai3d_rt.progress import Progress, silent

if TYPE_CHECKING:
    from ssai3d_rt.calibration.profile import RigProfile
    from ssai3d_rt.imaging.stack import Stack

Float = npt.NDArray[np.float32]

CUT_STD = 4.0
"""A Gaussian PSF is cut at this many standard deviations."""


@dataclass(frozen=True, slots=True)
class Raw:
    """The raw stack, its planes interpolated; what every method starts from."""

    name: str = "raw"
    summary: str = "the raw stack, its planes interpolated"

    def fit(self, stack: Stack, rig: RigProfile | None, budget: Budget, *, progress: Progress = silent) -> Fit:
        """Do nothing; see `Method`."""
        return Fit(lambda raw: resample_z(raw.data.astype(np.float32), raw.anisotropy), 0.0, 0, {})


@dataclass(frozen=True, slots=True, eq=False)
class RichardsonLucy:
    """Richardson-Lucy deconvolution in 3D (scikit-image), of the interpolated stack, its background taken off.

    The PSF is a Gaussian along Z, as wide as the middle of the rig profile's blur range (without a profile of the
    article's, 5 px), unless it is given. Fewer iterations leave blur, more bring up noise.

    Parameters
    ----------
    iterations
        Of the algorithm; a budget plays no part. See docs/compare.md for how 10 was chosen.
    std_px
        Standard deviation of the PSF along (z, y, x) in isotropic pixels.
    psf
        ``(z, y, x)`` the PSF itself, odd sides, any positive sum; then `std_px` plays no part.
    """

    name: str = "richardson-lucy"
    summary: str = "Richardson-Lucy deconvolution, Gaussian PSF along Z"
    iterations: int = 10
    std_px: tuple[float, float, float] | None = None
    psf: Float | None = None

    def fit(self, stack: Stack, rig: RigProfile | None, budget: Budget, *, progress: Progress = silent) -> Fit:
        """Choose the PSF; see `Method`."""
        if self.psf is not None:
            psf, width = self.psf, None
        else:
            width = self.std_px or (middle_blur_px(rig), 0.0, 0.0)
            psf = gaussian_psf(width)
        background = rig.noise.background if rig is not None else None
        notes = {"iterations": self.iterations, "psf_std_px": width}
        return Fit(lambda raw: deconvolve(raw, psf, self.iterations, background), 0.0, 0, notes)


def middle_blur_px(rig: RigProfile | None) -> float:
    """Middle of the rig profile's blur range, or of the article's, as a std in isotropic pixels."""
    low, high = (rig.blur_px_min, rig.blur_px_max) if rig is not None else ARTICLE_STD_PX
    return (low + high) / 2


def gaussian_psf(std_px: tuple[float, float, float]) -> Float:
    """Sample a Gaussian PSF: ``(z, y, x)`` float32 of odd sides and sum 1; an axis of std 0 has one sample.

    >>> gaussian_psf((1.0, 0.0, 0.0)).shape
    (9, 1, 1)
    """
    sides = []
    for std in std_px:
        at = np.arange(-math.ceil(CUT_STD * std), math.ceil(CUT_STD * std) + 1)
        sides.append(np.exp(-0.5 * (at / std) ** 2) if std > 0 else np.ones(1))
    z, y, x = sides
    psf = z[:, None, None] * y[:, None] * x
    return np.asarray(psf / psf.sum(), np.float32)


def deconvolve(stack: Stack, psf: Float, iterations: int, background: float | None = None) -> Float:
    """Deconvolve the interpolated stack, mirrored at its borders.

    Parameters
    ----------
    stack
        A raw stack.
    psf
        ``(z, y, x)`` in isotropic pixels, odd sides.
    iterations
        Of Richardson and Lucy's algorithm (W. H. Richardson, J. Opt. Soc. Am. 62, 55, 1972), which starts from a
        constant.
    background
        Counts where there is no light, taken off before and added after; the stack's first percentile where None.

    Returns
    -------
    ``(Zi, Y, X)`` float32 counts.

    Raises
    ------
    MissingPackageError
        scikit-image is not installed.
    """
    restoration = _restoration()
    scale = Normalisation.of(stack.data)
    offset = scale.offset if background is None else background
    light = np.maximum(resample_z(stack.data.astype(np.float32), stack.anisotropy) - np.float32(offset), 0)
    # Mirrored: most of what the zeros beyond do to the borders stays in the margin, which is cut off.
    margin = [3 * side // 4 if side > 1 else 0 for side in psf.shape]
    padded = np.pad(light / np.float32(scale.scale), [(m, m) for m in margin], mode="symmetric")
    found = restoration.richardson_lucy(padded, psf / psf.sum(), num_iter=iterations, clip=False, filter_epsilon=1e-6)
    inside = tuple(slice(m, m + n) for m, n in zip(margin, light.shape, strict=True))
    return np.asarray(found[inside] * np.float32(scale.scale) + np.float32(offset), np.float32)


def _restoration() -> Any:
    try:
        from skimage import restoration
    except ImportError:
        raise MissingPackageError("scikit-image", extra="train") from None
    return restoration
