"""Figures of one restored volume: what can be said without the truth, and what with it.

Without: resolution along Z and across, their ratio, and how far the volume, blurred and sampled again, is from the raw
planes. With: PSNR, SSIM and NCC. It knows no methods.

>>> import numpy as np
>>> planes = blurred_again(np.ones((9, 4, 4), np.float32), planes=3, step=4.0, std_px=2.0)
>>> planes.shape, bool(np.allclose(planes, 1.0))
((3, 4, 4), True)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ssai3d_rt.errors import InputError
from ssai3d_rt.imaging.metrics import fourier_resolution_um, isotropy_ratio, ncc, psnr, ssim
from ssai3d_rt.imaging.normalise import Normalisation

if TYPE_CHECKING:
    from ssai3d_rt.imaging.stack import Stack

Float = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures of one volume; None where they cannot be measured.

    Parameters
    ----------
    axial_um, lateral_um
        Resolution from the Fourier spectrum along Z, and across: the mean of Y and X.
    isotropy
        Lateral over axial resolution; 1.0 is isotropic.
    residual
        Root mean square difference between the raw planes and the volume blurred and sampled again, relative to the
        raw planes' standard deviation: what the volume does not explain. Noise and a wrong blur count too. Planes near
        the ends, which the blur mixes with what lies outside, are left out where three others remain.
    psnr_db, ssim, ncc
        Against the truth, where there is one. For PSNR and SSIM the truth is normalised (`Normalisation`), and the
        volume's brightness and offset are fitted to it by least squares, as the two may be on different scales.
    """

    axial_um: float | None
    lateral_um: float | None
    isotropy: float | None
    residual: float
    psnr_db: float | None = None
    ssim: float | None = None
    ncc: float | None = None


def measure(volume: Float, stack: Stack, std_px: float, truth: Float | None = None) -> Figures:
    """Measure one restored volume.

    Parameters
    ----------
    volume
        ``(Zi, Y, X)`` float32 counts.
    stack
        The raw stack that it was restored from.
    std_px
        Blur along Z that made the raw stack, as a std in isotropic pixels.
    truth
        ``(Zi, Y, X)`` on any scale.
    """
    voxel_um = (stack.lateral_um,) * 3
    axial_um = _resolution_um(volume, voxel_um, 0)
    across = [found for axis in (1, 2) if (found := _resolution_um(volume, voxel_um, axis)) is not None]
    lateral_um = sum(across) / len(across) if across else None
    isotropy = isotropy_ratio(lateral_um, axial_um) if lateral_um is not None and axial_um is not None else None
    inner = _away_from_the_ends(stack, std_px)
    raw = stack.data[inner].astype(np.float32)
    again = blurred_again(volume, stack.data.shape[0], stack.anisotropy, std_px)[inner]
    spread = float(raw.std(dtype=np.float64))
    residual = float(np.sqrt(np.mean((again - raw) ** 2, dtype=np.float64))) / spread if spread > 0 else 0.0
    if truth is None:
        return Figures(axial_um, lateral_um, isotropy, residual)
    true = Normalisation.of(truth).apply(truth)
    fitted = fitted_to(volume, true)
    likeness = (psnr(fitted, true, 1.0), ssim(fitted, true, 1.0), ncc(volume, true))
    return Figures(axial_um, lateral_um, isotropy, residual, *likeness)


def blurred_again(volume: Float, planes: int, step: float, std_px: float) -> Float:
    """Blur along Z and sample at the acquired planes; the volume is mirrored at its ends.

    Parameters
    ----------
    volume
        ``(Zi, Y, X)`` float32.
    planes, step
        How many planes were acquired, and their distance in voxels of the volume; the first lies on its first.
    std_px
        Standard deviation of the Gaussian blur in voxels, positive.
    """
    depth = volume.shape[0]
    reach = math.ceil(4 * std_px)
    places = np.arange(-reach, depth + reach)
    weights = np.exp(-0.5 * ((places - step * np.arange(planes)[:, None]) / std_px) ** 2)
    weights /= weights.sum(1, keepdims=True)
    mirror = np.eye(depth)[np.pad(np.arange(depth), reach, mode="symmetric")]
    return np.tensordot((weights @ mirror).astype(np.float32), volume, axes=1)


def fitted_to(volume: Float, truth: Float) -> Float:
    """Return the volume with the brightness and offset that bring it nearest to the truth."""
    centred = volume - volume.mean(dtype=np.float64)
    power = float(np.mean(centred**2, dtype=np.float64))
    shared = float(np.mean(centred * (truth - truth.mean(dtype=np.float64)), dtype=np.float64))
    gain = shared / power if power > 0 else 0.0
    return np.asarray(gain * centred + truth.mean(dtype=np.float64), np.float32)


def truth_for(stack: Stack, truth: Stack) -> Float:
    """Return the part of a truth that a restored stack covers: ``(Zi, Y, X)`` float32.

    Raises
    ------
    InputError
        The truth's voxels are not isotropic, or not as large as the stack's lateral pixels, or it is of another size.
    """
    where = truth.source or "the truth"
    if any(abs(side / stack.lateral_um - 1) > 0.01 for side in truth.voxel_um):
        raise InputError(
            f"{where} has voxels of {truth.voxel_um} um (z, y, x); a truth has isotropic voxels as large as the "
            f"stack's lateral pixels, {stack.lateral_um} um"
        )
    wanted = (stack.isotropic_planes, *stack.data.shape[1:])
    if truth.data.shape[0] < wanted[0] or truth.data.shape[1:] != wanted[1:]:
        raise InputError(f"{where} has shape {truth.data.shape}; the restored stack has {wanted}")
    return truth.data[: wanted[0]].astype(np.float32)


def _away_from_the_ends(stack: Stack, std_px: float) -> slice:
    """Return the planes at least two standard deviations from the ends; all where fewer than three are."""
    planes = stack.data.shape[0]
    margin = math.ceil(2 * std_px / stack.anisotropy)
    return slice(margin, planes - margin) if planes - 2 * margin >= 3 else slice(0, planes)


def _resolution_um(volume: Float, voxel_um: tuple[float, float, float], axis: int) -> float | None:
    try:
        return fourier_resolution_um(volume, voxel_um, axis)
    except InputError:  # nothing above the noise: the figure is absent
        return None
