"""A case: a simulated sample, the optics that show it and the camera that records it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ssai3d_rt.imaging import simulate
from ssai3d_rt.imaging.optics import Gaussian, Objective, diffraction_psf, varying_psf_blur

if TYPE_CHECKING:
    from collections.abc import Callable

    from ssai3d_rt.imaging.stack import Stack

Float = npt.NDArray[np.float32]

VOXEL_UM = 0.1
"""Side of a voxel, as in the article."""
FWHM_PER_STD = 2.3548

SHAPES: dict[str, Callable[[int, int], Float]] = {
    "strands": lambda side, seed: simulate.strands((side,) * 3, _over_area(60, side), seed=seed),
    "flat strands": lambda side, seed: simulate.strands((side,) * 3, _over_area(45, side), flat=True, seed=seed),
    "tubes": lambda side, seed: simulate.tubes((side,) * 3, _over_area(40, side), seed=seed),
    "spheres": lambda side, seed: simulate.spheres((side,) * 3, _over_volume(60, side), seed=seed),
    "cylinders": lambda side, seed: simulate.cylinders((side,) * 3, _over_volume(60, side), seed=seed),
    "beads": lambda side, seed: _beads(side, seed),
}
"""Samples by name: side in voxels and seed to a ``(side, side, side)`` volume, as crowded for any side; 50 beads."""


def gaussian(axial_px: float, lateral_px: float = 0.5, rotation_deg: float = 0.0) -> Gaussian:
    """Make a Gaussian PSF from its standard deviations along Z and laterally."""
    return Gaussian((axial_px, lateral_px, lateral_px), rotation_deg)


STANDARD = gaussian(4.0)
"""The article's blur."""
RESOLUTION_200_700_NM = gaussian(0.7 / VOXEL_UM / FWHM_PER_STD, 0.2 / VOXEL_UM / FWHM_PER_STD)
"""The article's beads: resolution of 200 nm laterally and 700 nm axially, as full widths at half maximum."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is imaged, and how.

    Parameters
    ----------
    sample
        One of `SHAPES`.
    side
        Voxels along each axis.
    psfs
        One Gaussian PSF, or several that follow one another over the field, along X.
    objective
        Optics of which the theoretical PSF blurs the sample; then `psfs` plays no part.
    photons
        At intensity 1; None for a camera without noise.
    """

    sample: str
    side: int
    psfs: tuple[Gaussian, ...] = (STANDARD,)
    objective: Objective | None = None
    photons: float | None = None

    @property
    def camera(self) -> simulate.Camera:
        """The camera that records."""
        return simulate.Camera(photons=self.photons)

    @property
    def told(self) -> Gaussian | None:
        """What methods are told that must know a PSF: the field's middle one, untilted; None if it is no Gaussian."""
        if self.objective is not None:
            return None
        return Gaussian(self.psfs[len(self.psfs) // 2].std_px)

    def truth(self, seed: int) -> Float:
        """Return the sample: ``(Z, Y, X)`` in [0, 1]."""
        return SHAPES[self.sample](self.side, seed)

    def stack(self, truth: Float, seed: int) -> Stack:
        """Record the sample, every plane."""
        if self.objective is not None:
            shown = simulate.psf_blur(truth, diffraction_psf(self.objective, pixel_um=VOXEL_UM))
        elif len(self.psfs) > 1:
            shown = varying_psf_blur(truth, self.psfs, axis=2)
        else:
            shown = simulate.gaussian_psf_blur(truth, self.psfs[0].std_px, self.psfs[0].rotation_deg)
        return simulate.record(shown, camera=self.camera, pixel_um=VOXEL_UM, seed=seed)


def _beads(side: int, seed: int) -> Float:
    """Return 50 beads, none within an eighth of the volume from the first or last plane, where light is cut off."""
    margin = side // 8
    inside = simulate.beads((side - 2 * margin, side, side), 50, seed=seed)
    return np.pad(inside, ((margin, margin), (0, 0), (0, 0)))


def _over_area(count: int, side: int) -> int:
    """Scale the number of long things, which cross the volume."""
    return max(1, round(count * (side / 96) ** 2))


def _over_volume(count: int, side: int) -> int:
    """Scale the number of small things."""
    return max(1, round(count * (side / 96) ** 3))
