"""Blurs that are not one Gaussian for the whole volume: PSFs that change over the field, and PSFs from diffraction.

Real microscopes have them (article, Fig. 4 and Supplementary Fig. S6); a method that was told one Gaussian meets them
unprepared. Both give blurred volumes that `ssai3d_rt.imaging.simulate.record` turns into stacks.

>>> import numpy as np
>>> points = np.zeros((31, 8, 40), np.float32)
>>> points[15, 4, [4, 35]] = 1
>>> shown = varying_psf_blur(points, (Gaussian((1.5, 0, 0)), Gaussian((4.0, 0, 0))), axis=2)
>>> bool(shown[15, 4, 4] > 1.5 * shown[15, 4, 35])
True
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ssai3d_rt.errors import MissingPackageError
from ssai3d_rt.imaging.simulate import gaussian_psf_blur

if TYPE_CHECKING:
    from collections.abc import Sequence

Float = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Gaussian:
    """A Gaussian PSF.

    Parameters
    ----------
    std_px
        Standard deviation along (z, y, x) in pixels.
    rotation_deg
        Tilt in the XZ plane, from Z towards X.
    """

    std_px: tuple[float, float, float]
    rotation_deg: float = 0.0


@dataclass(frozen=True, slots=True)
class Objective:
    """What `diffraction_psf` needs to know about a microscope.

    Parameters
    ----------
    numerical_aperture
        Of the objective.
    wavelength_um
        Of the light that is recorded.
    index
        Refractive index of sample and immersion alike: no spherical aberration.
    confocal
        Light excites and is detected through the same lens and a small pinhole, so that the PSF is squared. Otherwise
        the microscope is a wide-field one.
    """

    numerical_aperture: float
    wavelength_um: float = 0.52
    index: float = 1.33
    confocal: bool = False


def varying_psf_blur(volume: Float, psfs: Sequence[Gaussian], *, axis: int) -> Float:
    """Blur with a PSF that changes steadily along one axis.

    The PSFs stand at equal distances from the first to the last sample of the axis; between two of them a point is
    shown with their weighted mean, so that brightness is kept.

    Parameters
    ----------
    volume
        ``(Z, Y, X)`` float32.
    psfs
        Two or more.
    axis
        0 for a PSF that changes over depth, 1 or 2 for one that changes over the field.

    Raises
    ------
    ValueError
        Fewer than two PSFs.
    """
    if len(psfs) < 2:
        raise ValueError(f"a PSF that varies needs at least 2 PSFs, got {len(psfs)}")
    length = volume.shape[axis]
    place = np.linspace(0, len(psfs) - 1, length)
    shown = np.zeros_like(volume)
    for number, psf in enumerate(psfs):
        weight = np.maximum(0, 1 - np.abs(place - number)).astype(np.float32)
        shape = [length if a == axis else 1 for a in range(3)]
        # The light of each point is spread by the PSF of its own place: weights belong to the object, not the image.
        shown += gaussian_psf_blur(volume * weight.reshape(shape), psf.std_px, psf.rotation_deg)
    return np.clip(shown, volume.min(), volume.max())


@cache
def _psf(objective: Objective, pixel_um: float, side_px: int) -> Doubles:
    try:
        from microscPSF import microscPSF
    except ImportError as error:
        raise MissingPackageError("microscPSF", extra="benchmark") from error
    index = objective.index
    lens: dict[str, Any] = microscPSF.m_params | {
        "NA": objective.numerical_aperture,
        "ni": index,
        "ni0": index,
        "ns": index,
    }
    heights_um = (np.arange(side_px) - side_px // 2) * pixel_um
    psf = microscPSF.gLXYZFocalScan(lens, pixel_um, side_px, heights_um, pz=0.0, wvl=objective.wavelength_um)
    if objective.confocal:
        psf = psf**2
    psf = np.asarray(psf / psf.sum(), np.float64)
    psf.flags.writeable = False
    return psf


def diffraction_psf(objective: Objective, *, pixel_um: float = 0.1, side_px: int = 63) -> Doubles:
    """Theoretical PSF by scalar diffraction; not a Gaussian: it has rings, and side lobes along Z.

    The model is that of S. F. Gibson and F. Lanni (J. Opt. Soc. Am. A 9, 154, 1992) in the fast form of J. Li et al.
    (J. Opt. Soc. Am. A 34, 1029, 2017), computed by the package MicroscPSF-Py.

    Parameters
    ----------
    objective
        The microscope.
    pixel_um
        Voxel side.
    side_px
        Side of the kernel in voxels, odd.

    Returns
    -------
    ``(side_px, side_px, side_px)`` float64 of unit sum, not writeable.

    Raises
    ------
    MissingPackageError
        MicroscPSF-Py is not installed.
    ValueError
        An even side.
    """
    if side_px % 2 == 0:
        raise ValueError(f"a PSF needs an odd side to have a middle, got {side_px}")
    return _psf(objective, pixel_um, side_px)
