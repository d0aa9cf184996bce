"""Noise and intensity range of a stack, measured on the stack itself.

Camera and photon noise differ from pixel to pixel and from plane to plane, images do not, least of all along Z, where
the microscope blurs most: differencing a stack twice along all three axes leaves noise and nothing else. Its variance
against the local mean is a line (Poisson-Gaussian noise).

>>> import numpy as np
>>> counts = np.random.default_rng(0).poisson(np.linspace(50, 400, 64), (8, 64, 64)).astype(np.uint16)
>>> noise = measure_noise(counts, measure_intensity(counts))
>>> 0.85 < noise.gain < 1.15
True
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ssai3d_rt.calibration.profile import Intensity, Noise
from ssai3d_rt.imaging.fourier import richest_window
from ssai3d_rt.imaging.normalise import Normalisation

Volume = npt.NDArray[Any]
Doubles = npt.NDArray[np.float64]

_BINS = 24
_FEWEST = 60
_KEPT = 0.97
_KEPT_VARIANCE = 0.8306
"""Variance of the smallest 97 % of a standard normal's absolute values."""


def measure_intensity(data: Volume) -> Intensity:
    """Percentiles 1 and 99.99 in counts; for integers the share of voxels at the type's highest count."""
    scale = Normalisation.of(data)
    saturated = 0.0
    if data.dtype.kind == "u":
        saturated = float(np.count_nonzero(data == np.iinfo(data.dtype).max)) / data.size
    return Intensity(low=scale.offset, high=scale.offset + scale.scale, saturated=saturated)


def measure_noise(data: Volume, intensity: Intensity) -> Noise:
    """Fit ``variance = gain * (counts - background) + read^2`` to the noise of a stack.

    Parameters
    ----------
    data
        ``(Z, Y, X)`` counts.
    intensity
        Of the same stack. The signal to noise ratio is ``S / sqrt(gain * S + read^2)``, S from the background to the
        brightest parts that are more than a few pixels.
    """
    means, variances, counts = _variance_by_mean(richest_window(data), intensity)
    if means.size == 0:
        return Noise(gain=0.0, read=0.0, background=intensity.low, snr=0.0)
    background = float(means[0])
    gain, base = _line(means - background, variances, counts)
    signal = float(means[-1]) - background
    spread = gain * signal + base
    snr = signal / math.sqrt(spread) if spread > 0 else 0.0
    return Noise(gain=gain, read=math.sqrt(base), background=background, snr=snr)


def _variance_by_mean(data: Volume, intensity: Intensity) -> tuple[Doubles, Doubles, Doubles]:
    """Mean, robust noise variance and number of pixels in bins of the local mean."""
    if min(data.shape[1:]) < 5:
        return np.zeros(0), np.zeros(0), np.zeros(0)
    # Some planes suffice: a few hundred thousand pixels pin a line down.
    every = max(1, data[:, :, 0].size * data.shape[2] // 2_000_000)
    if len(data) < 3:
        planes = rough = data.astype(np.float64)
    else:
        below, middle, above = (data[z : len(data) - 2 + z : every].astype(np.float64) for z in range(3))
        planes = (below + 4 * middle + above) / 6  # as the noise of these planes weighs in their difference
        rough = (below - 2 * middle + above) / math.sqrt(6)
    residual = np.diff(np.diff(rough, 2, 1), 2, 2)[:, 1:-1, 1:-1] / 6
    # Five by five pixels: noise alone must not sort pixels into bright and dark. The line survives the averaging.
    local = np.lib.stride_tricks.sliding_window_view(planes, 5, axis=1).mean(axis=-1)
    local = np.lib.stride_tricks.sliding_window_view(local, 5, axis=2).mean(axis=-1)
    edges = np.linspace(intensity.low, intensity.high, _BINS + 1)
    edges[0] = -np.inf
    place = np.digitize(local.ravel(), edges[1:-1])
    means, variances, counts = [], [], []
    for number in range(_BINS):
        inside = place == number
        size = int(np.count_nonzero(inside))
        if size < _FEWEST:
            continue
        smallest = np.sort(np.abs(residual.ravel()[inside]))[: int(_KEPT * size)]
        means.append(float(local.ravel()[inside].mean()))
        variances.append(float(np.mean(smallest**2)) / _KEPT_VARIANCE)
        counts.append(size)
    return np.array(means), np.array(variances), np.array(counts, np.float64)


def _line(signal: Doubles, variance: Doubles, count: Doubles) -> tuple[float, float]:
    """Slope and variance at zero signal, neither negative; weighted by how well each variance is known."""
    # The relative error of a variance is sqrt(2 / n): weights n / variance^2. Texture adds variance in some bins, so
    # bins above the line lose weight.
    gain, base = 0.0, float(np.average(variance, weights=count))
    for _ in range(5):
        expected = np.maximum(gain * np.maximum(signal, 0) + base, 1e-6 * float(variance.max()) + 1e-12)
        excess = np.maximum(variance / expected, 1)
        weight = count / (expected * excess) ** 2
        if signal.size > 1:
            design = np.column_stack([signal, np.ones_like(signal)]) * np.sqrt(weight)[:, None]
            gain, base = (float(v) for v in np.linalg.lstsq(design, variance * np.sqrt(weight), rcond=None)[0])
        if gain < 0:
            gain, base = 0.0, float(np.average(variance, weights=weight))
        if base < 0:
            through_zero = np.maximum(signal, 0)
            gain = float(np.sum(weight * through_zero * variance) / np.sum(weight * through_zero**2))
            base = 0.0
    return gain, base
