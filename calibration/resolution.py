"""Lateral and axial resolution of one stack, and the blur along Z that makes the difference.

Both come as the standard deviation of a Gaussian spot: from isolated point-like spots where the stack has them, else
from where the spectra end. Gaussians add in squares, so a plane as sharp as a lateral one becomes an axial one by a
blur of ``sqrt(axial^2 - lateral^2)``: what the sample itself contributes to both cancels.

>>> from ssai3d_rt.imaging.simulate import acquire, standard_strands
>>> found = measure_resolution(acquire(standard_strands(), 3))
>>> found.blur_px[0] < 4.0 < found.blur_px[1]
True
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ssai3d_rt.calibration.beads import PointSpots, point_spots
from ssai3d_rt.errors import InputError
from ssai3d_rt.imaging.fourier import Cutoff, cutoff_of, richest_window, spectrum
from ssai3d_rt.imaging.spots import GAUSSIAN_FWHM

if TYPE_CHECKING:
    from ssai3d_rt.imaging.stack import Stack

ARTICLE_BLUR_PX = (3.0, 7.0)
"""Blur where it cannot be measured: the article's bank of PSFs, standard deviations in pixels."""
BLUR_LIMITS_PX = (0.5, 8.0)
"""Blur that base networks were trained on."""
MARGIN = 0.25
"""The range reaches this share below and above the measured blur."""
HIDDEN_SHARE = 0.3
"""A spectrum that still holds this share of its peak where sampling or noise ends it does not show its decline."""
HIDDEN_BLUR_STEPS = (0.32, 0.7)
"""Blur, in plane spacings, that ends a spectrum between shares of 1.0 and `HIDDEN_SHARE` at 0.8 of the Nyquist
frequency (see `Cutoff`): what a plane spacing can hide."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """What was measured on one stack.

    Parameters
    ----------
    lateral_std_um, axial_std_um
        Standard deviation of a point's image in micrometres.
    blur_px
        Least and greatest standard deviation of the blur along Z in lateral pixels.
    source
        ``"spots"`` or ``"spectrum"``.
    spots
        Point-like spots that were found.
    warnings
        Sentences.
    """

    lateral_std_um: float
    axial_std_um: float
    blur_px: tuple[float, float]
    source: Literal["spots", "spectrum"]
    spots: int
    warnings: tuple[str, ...] = ()

    @property
    def lateral_um(self) -> float:
        """Lateral full width at half maximum in micrometres."""
        return GAUSSIAN_FWHM * self.lateral_std_um

    @property
    def axial_um(self) -> float:
        """Axial full width at half maximum in micrometres."""
        return GAUSSIAN_FWHM * self.axial_std_um


def measure_resolution(stack: Stack) -> Resolution:
    """Measure both resolutions and the blur range of one stack.

    Raises
    ------
    InputError
        Fewer than 4 planes or pixels, or lateral planes without structure.
    """
    lateral = lateral_cutoffs(stack)
    lateral_std_um = sum(cutoff.std_um for cutoff in lateral) / len(lateral)
    spots = point_spots(richest_window(stack.data), stack.voxel_um, lateral_std_um=lateral_std_um)
    if spots is not None:
        return _from_spots(stack, spots)
    warnings: list[str] = []
    axial = _cutoff(stack, 0)
    if isinstance(axial, InputError):
        blur = ARTICLE_BLUR_PX
        warnings.append(f"the axial blur could not be measured ({axial}): taken from the SSAI-3D article, {_px(blur)}")
        typical_um = math.hypot(lateral_std_um, sum(blur) / 2 * stack.lateral_um)
        return Resolution(lateral_std_um, typical_um, blur, "spectrum", 0, tuple(warnings))
    axial_std_um = axial.std_um
    if axial.share > HIDDEN_SHARE:
        blur = _hidden_blur(stack, axial, warnings)
        # What is not seen is not claimed: no finer than the planes are apart.
        axial_std_um = max(axial_std_um, stack.voxel_um[0] / GAUSSIAN_FWHM)
    else:
        blur = _blur_range(stack, axial_std_um, lateral_std_um, warnings)
    return Resolution(lateral_std_um, axial_std_um, blur, "spectrum", 0, tuple(warnings))


def lateral_cutoffs(stack: Stack) -> list[Cutoff]:
    """Return the cut-offs along Y and X; only those that can be measured, at least one.

    Raises
    ------
    InputError
        Neither can be measured.
    """
    tried = [_cutoff(stack, axis) for axis in (1, 2)]
    found = [cutoff for cutoff in tried if isinstance(cutoff, Cutoff)]
    if not found:
        where = f" ({stack.source})" if stack.source else ""
        raise InputError(f"the lateral resolution cannot be measured{where}: {tried[-1]}")
    return found


def _cutoff(stack: Stack, axis: int) -> Cutoff | InputError:
    try:
        return cutoff_of(spectrum(stack.data, axis, stack.voxel_um[axis]))
    except InputError as error:
        return error


def _from_spots(stack: Stack, spots: PointSpots) -> Resolution:
    warnings: list[str] = []
    blur = _blur_range(stack, spots.axial_std_um, spots.lateral_std_um, warnings)
    return Resolution(spots.lateral_std_um, spots.axial_std_um, blur, "spots", spots.count, tuple(warnings))


def _blur_range(stack: Stack, axial_um: float, lateral_um: float, warnings: list[str]) -> tuple[float, float]:
    low, high = BLUR_LIMITS_PX
    squared = axial_um**2 - lateral_um**2
    blur_px = math.sqrt(squared) / stack.lateral_um if squared > 0 else 0.0
    if blur_px < low:
        warnings.append("axial planes are as sharp as lateral ones: there is no axial blur to undo")
        return low, 2 * low
    least, most = (1 - MARGIN) * blur_px, (1 + MARGIN) * blur_px
    if blur_px > high:
        warnings.append(
            f"the axial blur of {blur_px:.1f} px is beyond the {high:g} px that base networks were trained on: "
            "expect a partial restoration; larger lateral pixels (binning) would bring it into range"
        )
        least = min(least, (1 - MARGIN) * high)
    return max(low, least), min(high, most)


def _hidden_blur(stack: Stack, axial: Cutoff, warnings: list[str]) -> tuple[float, float]:
    if axial.limit == "noise":
        warnings.append(
            f"noise hides the axial blur: taken from the SSAI-3D article, {_px(ARTICLE_BLUR_PX)}; average more light"
        )
        return ARTICLE_BLUR_PX
    least, most = (share * stack.anisotropy for share in HIDDEN_BLUR_STEPS)
    low, high = BLUR_LIMITS_PX
    if least > high or most < low:
        warnings.append(
            f"planes {stack.voxel_um[0]:.3g} um apart are too coarse to show the axial blur: "
            f"taken from the SSAI-3D article, {_px(ARTICLE_BLUR_PX)}"
        )
        return ARTICLE_BLUR_PX
    blur = max(low, least), min(high, most)
    warnings.append(
        f"planes {stack.voxel_um[0]:.3g} um apart are too coarse to show the axial blur: "
        f"it lies somewhere in {_px(blur)}"
    )
    return blur


def _px(blur: tuple[float, float]) -> str:
    return f"{blur[0]:.2g} to {blur[1]:.2g} px"
