"""Resolution from the Fourier spectrum, by one estimator for every axis.

A microscope passes low frequencies and stops high ones; where the spectrum of an image ends is its resolution. The
estimator must stand real stacks: few planes, photon noise, scanner noise, samples of any shape. It does not know about
point-spread functions, only about Gaussian decline.

>>> import numpy as np
>>> z, y, x = np.ogrid[-32:32, -32:32, -32:32]
>>> spot = np.exp(-(z**2) / (2 * 3.0**2) - (y**2 + x**2) / (2 * 1.5**2))
>>> axial, lateral = (fourier_resolution_um(spot, (0.1, 0.1, 0.1), axis) for axis in (0, 2))
>>> round(axial / lateral, 1)
2.0
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ssai3d_rt.errors import InputError

Volume = npt.NDArray[Any]
Float = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Spectrum:
    """Power spectrum along one axis.

    Parameters
    ----------
    frequency
        ``(n,)`` cycles per micrometre, from 0 to the Nyquist frequency.
    power
        ``(n,)`` float64 mean power over all lines, in squared counts.
    floor
        Power of the noise, see `spectrum`.
    error
        Relative standard error of the noise's power: the mean over n independent lines is uncertain by 1 / sqrt(n).
    """

    frequency: Doubles
    power: Doubles
    floor: float
    error: float


@dataclass(frozen=True, slots=True)
class Cutoff:
    """Where a spectrum ends.

    Parameters
    ----------
    frequency
        Cycles per micrometre at which the gradient power is `share` of its peak.
    share
        `CUTOFF`, or more where noise or sampling ended the spectrum before.
    std_um
        Standard deviation of the Gaussian spot whose spectrum ends in the same place.
    limit
        What ended the spectrum: ``"signal"``, ``"noise"`` or ``"sampling"``.
    """

    frequency: float
    share: float
    std_um: float
    limit: Literal["signal", "noise", "sampling"]


CUTOFF = 0.02
"""Share of the gradient power's peak at which a spectrum is said to end (-17 dB)."""
ABOVE_NOISE = 0.1
"""Excess over the noise floor, relative to it, that counts as signal; never less than `SIGNIFICANT` errors."""
SIGNIFICANT = 5.0
"""Standard errors that make an excess over the noise floor credible."""


def fourier_resolution_um(volume: Volume, voxel_um: tuple[float, float, float], axis: int) -> float:
    """Resolution along one axis: the half-period, in micrometres, at which the spectrum along it ends.

    With P(f) the power spectrum along the axis and N its noise floor (see `spectrum`), the gradient power
    ``G(f) = f^2 (P(f) - N)`` is flat for a sharp edge, so its decline is that of the optics more than of the
    sample. The spectrum ends at the cut-off frequency fc where G has fallen to `CUTOFF` of its peak; the resolution is
    ``1 / (2 fc)``.

    A Gaussian spot of standard deviation s has ``G = f^2 exp(-x)``, ``x = (2 pi s f)^2``, with its peak at x = 1, so a
    share q of the peak is reached where ``x exp(1 - x) = q``, x > 1. Where noise ends the spectrum at a greater share,
    this decline is continued from there to `CUTOFF`: the figure stays comparable between noisy and clean volumes. It
    is proportional to s (1.20 s), never finer than one voxel, and the same for all axes.

    Parameters
    ----------
    volume
        ``(Z, Y, X)`` any real dtype; any scale and offset.
    voxel_um
        ``(z, y, x)`` voxel size in micrometres.
    axis
        0, 1 or 2.

    Raises
    ------
    InputError
        Fewer than 4 samples along the axis, or no structure above the noise.
    """
    if volume.min() == volume.max():
        raise InputError("the volume is constant; it has no resolution to measure")
    cutoff = cutoff_of(spectrum(volume, axis, voxel_um[axis]))
    return max(half_period_um(cutoff.std_um), voxel_um[axis])


def half_period_um(std_um: float) -> float:
    """Resolution, as in `fourier_resolution_um`, of a Gaussian spot of standard deviation `std_um`."""
    return math.pi * std_um / math.sqrt(_decline(CUTOFF))


def spectrum(volume: Volume, axis: int, spacing_um: float) -> Spectrum:
    """Power spectrum along `axis`, averaged over all lines, each with its mean removed and a Hann window.

    Against noise, Y and X are first smoothed (binomial 1 4 6 4 1) where they lie across the axis, which leaves the
    optics' decline along it untouched. Very wide stacks are measured in their richest window, see `richest_window`.

    The floor is that of white noise, `noise_variance`; where the last half of the spectrum is flat and low, which white
    noise of a lesser power does not explain (line noise of scanners, interpolating cameras), the floor lies there.

    Parameters
    ----------
    volume
        ``(Z, Y, X)`` counts, at least 4 samples along `axis`.
    axis
        0, 1 or 2.
    spacing_um
        Voxel size along `axis`.

    Raises
    ------
    InputError
        Fewer than 4 samples along the axis.
    """
    length = volume.shape[axis]
    if length < 4:
        raise InputError(f"a spectrum needs at least 4 samples along the axis, got {length}; acquire more planes")
    values = richest_window(volume).astype(np.float32)
    floor = noise_variance(values)
    dependent = 1.0
    for across in {1, 2} - {axis}:
        if values.shape[across] >= 2 * _BINOMIAL.size:
            values = _slide(values, across)
            correlation = np.correlate(_BINOMIAL, _BINOMIAL, "full") / np.sum(_BINOMIAL**2)
            floor *= float(np.sum(_BINOMIAL**2))
            dependent *= float(np.sum(correlation**2))
    length = values.shape[axis]
    # The outermost samples would have weight zero in a plain Hann window; few planes are too precious for that.
    window = np.hanning(length + 2)[1:-1].astype(np.float32)
    window /= np.float32(math.sqrt(float(np.sum(window**2))))
    padded = 1 << math.ceil(math.log2(4 * length))
    power = np.zeros(padded // 2 + 1)
    lines = np.moveaxis(values, axis, -1)
    for slab in lines:
        centred = (slab - ((slab @ window) / window.sum())[:, None]) * window
        power += np.mean(np.abs(np.fft.rfft(centred, padded, axis=-1)) ** 2, axis=0)
    power /= lines.shape[0]
    frequency = np.asarray(np.fft.rfftfreq(padded, spacing_um), np.float64)
    error = math.sqrt(dependent * length / values.size)
    return Spectrum(frequency, power, _floor(power, floor), error)


def cutoff_of(of: Spectrum) -> Cutoff:
    """Find where a spectrum ends; see `fourier_resolution_um`.

    Raises
    ------
    InputError
        No structure above the noise.
    """
    excess = max(ABOVE_NOISE, SIGNIFICANT * of.error)
    begin, end = _strongest_run(of.power > (1 + excess) * of.floor, of.power - of.floor)
    gradient = of.frequency[begin:end] ** 2 * (of.power[begin:end] - of.floor)
    if gradient.size < 3:
        raise InputError("no structure stands out of the noise along this axis; its resolution cannot be measured")
    peak = int(np.argmax(gradient))
    falling = gradient[peak:]
    below = np.flatnonzero(falling < CUTOFF * falling[0])
    limit: Literal["signal", "noise", "sampling"]
    if below.size:
        j = int(below[0])
        limit, share = "signal", CUTOFF
        part = math.log(falling[j - 1] / (CUTOFF * falling[0])) / math.log(falling[j - 1] / falling[j])
        frequency = float(of.frequency[begin + peak + j - 1] + part * of.frequency[1])
    else:
        limit = "sampling" if end == of.power.size else "noise"
        # Aliases fold back onto the last fifth below the Nyquist frequency: do not read the share there.
        j = max(0, min(end - 1, round(0.8 * of.power.size)) - begin - peak)
        share = float(falling[j] / falling[0])
        frequency = float(of.frequency[begin + peak + j])
    std_um = math.sqrt(_decline(share)) / (2 * math.pi * frequency)
    return Cutoff(frequency, share, std_um, limit)


def noise_variance(volume: Volume) -> float:
    """Mean variance of white noise in counts squared: the power at the highest frequencies of all three axes at once.

    The volume is differenced twice along each axis (kernel 1, -2, 1 over the square root of 6), which keeps white
    noise and removes what a microscope can show. Axes with fewer than 3 samples are left alone.
    """
    total, count = 0.0, 0
    for z in range(max(1, volume.shape[0] - 2)):
        slab = volume[z : z + 3].astype(np.float64)
        for axis in (0, 1, 2):
            if slab.shape[axis] >= 3:
                slab = np.diff(slab, 2, axis) / math.sqrt(6)
        total += float(np.sum(slab**2))
        count += slab.size
    return total / count


def richest_window(volume: Volume, limit_px: int = 512) -> Volume:
    """Return the lateral window of at most `limit_px` squared, all planes, that holds most contrast; a view."""
    starts = [range(0, max(1, n - limit_px + 1), limit_px // 2) if n > limit_px else range(1) for n in volume.shape[1:]]
    windows = [(slice(y, y + limit_px), slice(x, x + limit_px)) for y in starts[0] for x in starts[1]]
    if len(windows) == 1:
        return volume
    every = max(1, volume.shape[0] // 8)
    contrast = [float(volume[::every, y, x].astype(np.float32).var()) for y, x in windows]
    y, x = windows[int(np.argmax(contrast))]
    return volume[:, y, x]


_BINOMIAL = np.array([1, 4, 6, 4, 1], np.float32) / 16


def _slide(values: Float, axis: int) -> Float:
    """Binomial smoothing along one axis; 4 samples shorter."""
    n = values.shape[axis] - _BINOMIAL.size + 1
    out = np.zeros((*values.shape[:axis], n, *values.shape[axis + 1 :]), np.float32)
    for shift, weight in enumerate(_BINOMIAL):
        out += weight * values[(slice(None),) * axis + (slice(shift, shift + n),)]
    return out


def _floor(power: Doubles, white: float) -> float:
    """Noise floor: that of white noise, or the end of the spectrum where that is flat and low."""
    n = power.size
    before, last = float(power[n // 2 : 3 * n // 4].mean()), float(power[3 * n // 4 :].mean())
    if last <= white:
        return white
    flat = np.clip((1.6 - before / last) / 0.4, 0, 1)
    low = np.clip((0.25 - last / power.max()) / 0.15, 0, 1)
    return float(white + flat * low * (last - white))


def _strongest_run(mask: npt.NDArray[np.bool_], weight: Doubles) -> tuple[int, int]:
    """Return (begin, end) of the run of True, frequency 0 left out, that holds most weight; (0, 0) if there is none."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], mask[1:], [False])).astype(np.int8))) + 1
    runs = list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
    return max(runs, key=lambda run: float(weight[run[0] : run[1]].sum()), default=(0, 0))


def _decline(share: float) -> float:
    """Solve ``x exp(1 - x) = share`` for x > 1."""
    x = 1 - math.log(share) + 1e-3
    for _ in range(200):
        x = 1 - math.log(share) + math.log(x)
    return x
