"""Isolated bright spots, such as beads: find them, fit them, and tell how wide they are along each axis.

Sub-resolution spots show the point-spread function itself. Nothing is assumed about their size: a first look at the
brightest maxima gives the scale at which spots are then searched, kept if nothing else is near, and fitted with a
three-dimensional Gaussian on a constant background (Levenberg-Marquardt), which is sub-pixel and stands noise.

>>> import numpy as np
>>> z, y, x = np.ogrid[-12:12, -16:16, -16:16]
>>> bead = 100 + 900 * np.exp(-(z**2) / (2 * 3.0**2) - (y**2 + x**2) / (2 * 1.5**2))
>>> found = spot_fwhm_um(bead, (0.1, 0.1, 0.1))
>>> round(found.axial_um, 3), round(found.lateral_um, 3), found.count
(0.706, 0.353, 1)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ssai3d_rt.imaging.fourier import richest_window

Volume = npt.NDArray[Any]
Float = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Index = npt.NDArray[np.intp]

GAUSSIAN_FWHM = 2.0 * math.sqrt(2.0 * math.log(2.0))
"""Full width at half maximum of a Gaussian over its standard deviation, 2.355."""
MOST_SPOTS = 100
"""Spots that are fitted at most, the brightest first."""


@dataclass(frozen=True, slots=True)
class Spot:
    """One fitted spot.

    Parameters
    ----------
    centre_px
        ``(z, y, x)`` sub-pixel place in voxels.
    std_px
        ``(z, y, x)`` standard deviations in voxels.
    height, background
        Counts.
    quality
        Share of the variance in the spot's window that the fit explains, 0 to 1.
    """

    centre_px: tuple[float, float, float]
    std_px: tuple[float, float, float]
    height: float
    background: float
    quality: float


@dataclass(frozen=True, slots=True)
class SpotFwhm:
    """Median widths of the isolated spots of a volume.

    Parameters
    ----------
    axial_um, lateral_um
        Full width at half maximum along Z, and the geometric mean of those along Y and X; NaN when `count` is 0.
    count
        Spots that were measured; each counts for both axes.
    """

    axial_um: float
    lateral_um: float
    count: int


def spot_fwhm_um(volume: Volume, voxel_um: tuple[float, float, float]) -> SpotFwhm:
    """Full width at half maximum of isolated spots along Z and laterally: the median over all that can be fitted.

    Parameters
    ----------
    volume
        ``(Z, Y, X)`` counts, any real dtype, bright spots on a darker background.
    voxel_um
        ``(z, y, x)`` voxel size in micrometres.
    """
    spots = find_spots(richest_window(volume))
    if not spots:
        return SpotFwhm(math.nan, math.nan, 0)
    std = np.array([spot.std_px for spot in spots]) * np.asarray(voxel_um) * GAUSSIAN_FWHM
    return SpotFwhm(float(np.median(std[:, 0])), float(np.median(np.sqrt(std[:, 1] * std[:, 2]))), len(spots))


def find_spots(volume: Volume) -> list[Spot]:
    """Find and fit the isolated spots of a volume, the brightest first; an empty list if there are none.

    Parameters
    ----------
    volume
        ``(Z, Y, X)`` counts, any real dtype.
    """
    if min(volume.shape) < 5:
        return []
    values = volume.astype(np.float32)
    background = float(np.median(values))
    width = _typical_fwhm_px(values, background)
    if width is None:
        return []
    smooth = _box(_box(values, width / 2), width / 2)
    floor = float(np.median(smooth))
    spread = 1.4826 * float(np.median(np.abs(smooth - floor)))
    peaks = _maxima(smooth, np.maximum(1, np.rint(width / 2)).astype(int))
    heights = smooth[tuple(peaks.T)] - floor
    strong = heights > max(5 * spread, 0.1 * float(heights.max(initial=0)))
    peaks, heights = peaks[strong], heights[strong]
    order = np.argsort(-heights, kind="stable")[: 4 * MOST_SPOTS]
    peaks, heights = peaks[order], heights[order]
    spots = [
        fitted
        for number in np.flatnonzero(_isolated(peaks, heights, width))[:MOST_SPOTS]
        if (fitted := _fit(values, peaks[number], width)) is not None
    ]
    return spots


def fwhm_um(profile: npt.ArrayLike, spacing_um: float) -> float:
    """Full width at half maximum of the highest peak of a profile, sub-pixel, its baseline removed.

    The baseline is the lower of the two minima beside the peak; half height is crossed by linear interpolation.

    Parameters
    ----------
    profile
        ``(n,)`` samples.
    spacing_um
        Distance of the samples.

    Returns
    -------
    The width in micrometres; NaN where the profile does not fall to half its height on both sides.
    """
    values = np.asarray(profile, np.float64)
    peak = int(np.argmax(values))
    half = (values[peak] + min(values[: peak + 1].min(), values[peak:].min())) / 2
    left, right = np.flatnonzero(values[:peak] < half), np.flatnonzero(values[peak:] < half)
    if not left.size or not right.size:
        return math.nan
    i, j = int(left[-1]), peak + int(right[0])
    begin = i + (half - values[i]) / (values[i + 1] - values[i])
    end = j - (half - values[j]) / (values[j - 1] - values[j])
    return float(end - begin) * spacing_um


def _typical_fwhm_px(values: Float, background: float) -> Doubles | None:
    """``(3,)`` median width in voxels of the brightest maxima, or None where nothing has one."""
    smooth = _box(values, np.array([1.0, 3.0, 3.0]))
    peaks = _maxima(smooth, np.array([1, 2, 2]))
    heights = smooth[tuple(peaks.T)] - background
    order = np.argsort(-heights, kind="stable")[:50]
    order = order[heights[order] > 0.25 * heights.max(initial=0)]
    widths = []
    for z, y, x in peaks[order]:
        lines = (smooth[:, y, x], smooth[z, :, x], smooth[z, y, :])
        at = (z, y, x)
        widths.append([_width_around(line, int(place), background) for line, place in zip(lines, at, strict=True)])
    if not widths:
        return None
    typical = np.array([np.median(w[np.isfinite(w)]) if np.isfinite(w).any() else np.nan for w in np.array(widths).T])
    return np.clip(typical, 1.5, np.array(values.shape) / 2) if np.isfinite(typical).all() else None


def _width_around(line: Float, place: int, background: float) -> float:
    """Width at half height above the background around one sample, in samples; NaN at an open end."""
    half = (float(line[place]) + background) / 2
    left, right = np.flatnonzero(line[:place] < half), np.flatnonzero(line[place:] < half)
    if not left.size or not right.size:
        return math.nan
    i, j = int(left[-1]), place + int(right[0])
    begin = i + (half - line[i]) / (line[i + 1] - line[i])
    end = j - (half - line[j]) / (line[j - 1] - line[j])
    return float(end - begin)


def _box(values: Float, width: Doubles) -> Float:
    """Mean in a box of odd sides, about `width` voxels, the ends repeated."""
    for axis, side in enumerate(width):
        reach = int(max(0, side - 1) // 2 + (max(0, side - 1) % 2 >= 1))
        if reach == 0:
            continue
        pad = [(reach + 1, reach) if a == axis else (0, 0) for a in range(3)]
        total = np.cumsum(np.pad(values, pad, mode="edge"), axis=axis, dtype=np.float64)
        n, span = values.shape[axis], 2 * reach + 1
        high = total[(slice(None),) * axis + (slice(span, span + n),)]
        low = total[(slice(None),) * axis + (slice(0, n),)]
        values = ((high - low) / span).astype(np.float32)
    return values


def _maxima(values: Float, reach: npt.NDArray[np.int_]) -> Index:
    """``(n, 3)`` places of voxels that no other voxel within `reach` exceeds."""
    highest = values
    for axis, r in enumerate(reach):
        pad = [(int(r), int(r)) if a == axis else (0, 0) for a in range(3)]
        padded = np.pad(highest, pad, mode="constant", constant_values=-np.inf)
        n = values.shape[axis]
        highest = np.maximum.reduce([padded[(slice(None),) * axis + (slice(s, s + n),)] for s in range(2 * r + 1)])
    lowest = values.min()
    return np.argwhere((values == highest) & (values > lowest))


def _isolated(peaks: Index, heights: Doubles, width: Doubles) -> npt.NDArray[np.bool_]:
    """Tell which peaks have no other of a quarter of their height within two widths."""
    apart = np.linalg.norm((peaks[:, None] - peaks[None]) / width, axis=-1)
    near = (apart < 2) & (heights[None] > 0.25 * heights[:, None])
    np.fill_diagonal(near, val=False)
    return np.asarray(~near.any(axis=1))


def _fit(values: Float, peak: Index, width: Doubles) -> Spot | None:
    """Fit one spot in a window of three widths; None where the fit does not describe it."""
    reach = np.maximum(2, np.ceil(1.5 * width)).astype(int)
    low = np.maximum(peak - reach, 0)
    high = np.minimum(peak + reach + 1, values.shape)
    window = values[tuple(slice(a, b) for a, b in zip(low, high, strict=True))].astype(np.float64)
    axes = [np.arange(a, b) - p for a, b, p in zip(low, high, peak, strict=True)]
    grid = np.stack([g.ravel() for g in np.meshgrid(*axes, indexing="ij")])  # (3, n)
    counts = window.ravel()
    background = float(np.percentile(counts, 20))
    start = np.concatenate(([float(counts.max()) - background, background], np.zeros(3), np.log(width / GAUSSIAN_FWHM)))
    answer = _levenberg_marquardt(grid, counts, start)
    height, background = float(answer[0]), float(answer[1])
    centre, std = answer[2:5], np.exp(answer[5:8])
    left = counts - _model(grid, answer)[0]
    quality = 1 - float(np.var(left) / np.var(counts)) if np.var(counts) > 0 else 0.0
    place = peak + centre
    inside = np.all((place >= std) & (place <= np.array(values.shape) - 1 - std))
    # A width below one voxel is a hot pixel or a noise spike, not optics.
    plausible = np.all((std * GAUSSIAN_FWHM > 1) & (std < reach)) and np.all(np.abs(centre) <= width)
    if height <= 0 or quality < 0.3 or height < 3 * float(np.std(left)) or not inside or not plausible:
        return None
    z, y, x = (float(p) for p in place)
    a, b, c = (float(s) for s in std)
    return Spot((z, y, x), (a, b, c), height, background, quality)


def _model(grid: Doubles, at: Doubles) -> tuple[Doubles, Doubles]:
    """Gaussian on a background and its ``(n, 8)`` derivatives; parameters: height, background, centre, log std."""
    std = np.exp(at[5:8])[:, None]
    scaled = (grid - at[2:5, None]) / std
    shape = np.exp(-0.5 * np.sum(scaled**2, axis=0))
    slope = at[0] * shape * np.vstack([scaled / std, scaled**2])
    return at[0] * shape + at[1], np.column_stack([shape, np.ones_like(shape), slope.T])


def _levenberg_marquardt(grid: Doubles, counts: Doubles, start: Doubles) -> Doubles:
    """Least squares with Marquardt's damping, at most 60 steps."""
    at, damping = start, 1e-2
    model, slopes = _model(grid, at)
    cost = float(np.sum((counts - model) ** 2))
    for _ in range(60):
        normal = slopes.T @ slopes
        normal += damping * np.diag(np.diag(normal) + 1e-12)
        step = np.linalg.lstsq(normal, slopes.T @ (counts - model), rcond=None)[0]
        step[5:8] = np.clip(step[5:8], -0.7, 0.7)
        trial = at + step
        trial[5:8] = np.clip(trial[5:8], -3, 6)
        trial_model, trial_slopes = _model(grid, trial)
        trial_cost = float(np.sum((counts - trial_model) ** 2))
        if trial_cost < cost:
            small = cost - trial_cost < 1e-7 * cost
            at, model, slopes, cost, damping = trial, trial_model, trial_slopes, trial_cost, damping / 5
            if small:
                break
        else:
            damping *= 5
            if damping > 1e8:
                break
    return at
