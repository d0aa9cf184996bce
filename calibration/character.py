"""`Character`: a few figures that tell one kind of stack from another, measured in well under a second.

Fine-tuning notes them in the adapted model, so that a later stack can be compared with what the model was adapted to
(see `ssai3d_rt.runtime.stale`). They describe how the stack was taken (pixel, plane spacing, counts, noise) and what is
in it (how much of it is bright, how coarse its structures are); none needs the axial blur to be known. Numpy only.

>>> from ssai3d_rt.imaging.simulate import acquire, spheres, strands
>>> fine, coarse = (measure_character(acquire(make((48, 64, 64), 12), 2)) for make in (strands, spheres))
>>> fine.lateral_grain_px < 0.7 * coarse.lateral_grain_px
True
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ssai3d_rt.calibration.noise import measure_intensity, measure_noise
from ssai3d_rt.config import Settings
from ssai3d_rt.imaging.fourier import noise_variance, richest_window

if TYPE_CHECKING:
    from ssai3d_rt.imaging.stack import Stack

BLOCK_VOXELS = 2_000_000
"""What is looked at in a large stack: a block of neighbouring planes, so that figures along Z keep their meaning."""
_FEWEST_BLOCK_PLANES = 8


class Character(Settings):
    """Figures of one stack.

    Parameters
    ----------
    pixel_um, anisotropy
        Lateral pixel size in micrometres; plane spacing over it.
    range_counts
        Counts between the percentiles 1 and 99.99.
    contrast
        Standard deviation of all voxels over `range_counts`: how much of the stack is bright.
    snr
        Signal to noise ratio of the brightest parts, see `calibration.noise`; 0 where it cannot be measured.
    lateral_grain_px, axial_grain_px
        How coarse structures are, in lateral pixels: standard deviation of the signal over that of its slope, along the
        rows and columns and along Z, noise taken off. None where noise leaves nothing to measure.
    """

    pixel_um: float
    anisotropy: float
    range_counts: float
    contrast: float
    snr: float = 0.0
    lateral_grain_px: float | None = None
    axial_grain_px: float | None = None


def measure_character(stack: Stack) -> Character:
    """Measure a stack of any size.

    Parameters
    ----------
    stack
        As acquired.
    """
    intensity = measure_intensity(stack.data)
    counts = intensity.high - intensity.low
    block = liveliest_block(stack)
    noise = measure_noise(block, intensity)
    along = [_grain(block, axis) for axis in (1, 2)]
    lateral = [grain for grain in along if grain is not None]
    axial = _grain(block, 0)
    return Character(
        pixel_um=stack.lateral_um,
        anisotropy=stack.anisotropy,
        range_counts=_short(counts),
        contrast=_short(_std(stack.data) / counts),
        snr=_short(noise.snr),
        lateral_grain_px=_short(sum(lateral) / len(lateral)) if lateral else None,
        axial_grain_px=_short(axial * stack.anisotropy) if axial is not None else None,
    )


def liveliest_block(stack: Stack) -> npt.NDArray[Any]:
    """Return the window and the neighbouring planes that hold most contrast: at most about `BLOCK_VOXELS`; a view."""
    window = richest_window(stack.data)
    planes = max(_FEWEST_BLOCK_PLANES, BLOCK_VOXELS // window[0].size)
    if window.shape[0] <= planes:
        return window
    contrast = np.array([float(plane.astype(np.float32).var()) for plane in window])
    total = np.concatenate(([0.0], np.cumsum(contrast)))
    first = int(np.argmax(total[planes:] - total[:-planes]))
    return window[first : first + planes]


def _grain(block: npt.NDArray[Any], axis: int) -> float | None:
    """Return the standard deviation of the signal over that of its central difference along `axis`, in samples."""
    if block.shape[axis] < 3:
        return None
    values = block.astype(np.float32)
    noise = noise_variance(block)
    high, low = (np.take(values, range(start, values.shape[axis] - 2 + start), axis) for start in (2, 0))
    slope = float(np.var(high - low, dtype=np.float64)) / 4 - noise / 2
    signal = float(np.var(values, dtype=np.float64)) - noise
    if signal <= 0 or slope <= 0.1 * noise:
        return None
    return math.sqrt(signal / slope)


def _std(data: npt.NDArray[Any]) -> float:
    """Return the standard deviation of all voxels, without a float copy of the stack."""
    means, squares = np.zeros(len(data)), np.zeros(len(data))
    for number, plane in enumerate(data):
        values = plane.astype(np.float64)
        means[number], squares[number] = values.mean(), values.var()
    return math.sqrt(float(squares.mean() + means.var()))


def _short(value: float) -> float:
    """Keep five digits: people read the record."""
    return float(f"{value:.5g}")
