"""Denoise a stack: self-supervised, nothing needed but the stack and its noise model; and when to do so.

One method, ``dct``: overlapping blocks of 8 x 8 x 8 voxels are turned into cosine spectra, in which a sample stands in
a few large coefficients and noise in all. A first pass drops those that noise alone explains, a second one weighs each
by what the first found (an empirical Wiener filter; L. Yaroslavsky et al., Proc. SPIE 4304, 155, 2001, without the
matching of like blocks of BM3D). Blocks reach across planes, where the axial blur leaves little but noise at high
frequencies. The variance in a block follows from its mean: no variance-stabilising transform, and so no bias of its
inverse. The filter is cautious on purpose, see `CAUTION`.

It does not know how noise is measured: see `ssai3d_rt.calibration.denoising`.

>>> import numpy as np
>>> rng = np.random.default_rng(0)
>>> clean = 1000 + 500 * np.sin(np.arange(32) / 5) * np.ones((16, 32, 1))
>>> noisy = clean + rng.normal(0, 200, clean.shape)
>>> done = denoise(noisy, NoiseModel(gain=0.0, read=200.0, snr=2.5), "dct")
>>> bool((done - clean).std() < 0.5 * (noisy - clean).std())
True
>>> choose_denoiser("auto", NoiseModel(gain=0.0, read=200.0, snr=2.5))[0]
'dct'
"""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from ssai3d_rt.errors import ConfigError
from ssai3d_rt.progress import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Callable

Float = npt.NDArray[np.float32]
DenoiseMode = Literal["auto", "off", "dct"]

OFF = "off"
NOISY_SNR = 30.0
"""``auto`` denoises below this signal to noise ratio of the brightest parts, voxel by voxel. Restorations of simulated
stacks of 500 photons at full intensity (12 to 24) gain, those of 2000 photons hardly; see docs/restore.md."""

THRESHOLD = 2.7
"""Coefficients below so many standard deviations of the noise are dropped in the first pass."""

CAUTION = 0.25
"""Share of the noise's variance that the second pass reckons with. At 1 the error of the denoised stack is least; but
the networks are trained with noise, and what is left of it harms a restoration less than what a filter blurs."""

BLOCK = 8
_BAND = 256
_HALO = 2 * BLOCK
_THREADS = 8
"""At most; each holds the interpreter's lock for part of its time."""


@dataclass(frozen=True, slots=True)
class NoiseModel:
    """Noise of one stack: ``variance = gain * (counts - background) + read^2``.

    Parameters
    ----------
    gain
        Variance per count above the background, counts.
    read
        Standard deviation at the background, counts.
    background
        Mean counts of the darkest parts.
    snr
        Signal to noise ratio of the brightest parts above the background; 0 where it could not be measured.
    """

    gain: float
    read: float
    background: float = 0.0
    snr: float = 0.0

    def variance(self, counts: Float) -> Float:
        """Return the variance at mean `counts`, in counts squared."""
        above = np.maximum(counts - np.float32(self.background), 0)
        return np.asarray(np.float32(self.gain) * above + np.float32(self.read**2), np.float32)


def choose_denoiser(mode: str, noise: NoiseModel | None) -> tuple[str, str]:
    """Choose how to denoise one stack.

    Parameters
    ----------
    mode
        ``auto``, ``off`` or a name of `DENOISERS`.
    noise
        Of the stack; None where it was not measured, which ``auto`` and names need.

    Returns
    -------
    The name, or ``off``, and a sentence that says why.

    Raises
    ------
    ConfigError
        No such mode.
    """
    if mode == OFF:
        return OFF, "not denoised, as asked for"
    if mode != "auto" and mode not in DENOISERS:
        raise ConfigError(f'no denoiser is called "{mode}"; take auto, off or {", ".join(DENOISERS)}')
    if noise is None or noise.snr <= 0:
        return OFF, "not denoised: its noise could not be measured"
    if mode != "auto":
        return mode, f"denoised ({mode}), as asked for; its signal to noise ratio is {noise.snr:.3g}"
    if noise.snr < NOISY_SNR:
        return "dct", f"denoised (dct): its signal to noise ratio, {noise.snr:.3g}, is below {NOISY_SNR:g}"
    return OFF, f"not denoised: its signal to noise ratio, {noise.snr:.3g}, is not below {NOISY_SNR:g}"


def denoise(volume: npt.NDArray[Any], noise: NoiseModel, name: str, *, progress: Progress = silent) -> Float:
    """Denoise one stack.

    The same input gives the same output. Memory beyond input and output: about four times the float32 size of a band of
    288 rows of all planes.

    Parameters
    ----------
    volume
        ``(Z, Y, X)`` counts of any real dtype, finite.
    noise
        Its noise.
    name
        A name of `DENOISERS`, or ``off``.
    progress
        Told the bands done.

    Returns
    -------
    ``(Z, Y, X)`` float32 counts of the same mean; not rounded, so that 8 bits suffice for what comes after.

    Raises
    ------
    ConfigError
        No such denoiser.
    """
    if name != OFF and name not in DENOISERS:
        raise ConfigError(f'no denoiser is called "{name}"; take off or {", ".join(DENOISERS)}')
    if name == OFF or (noise.gain <= 0 and noise.read <= 0):
        return volume.astype(np.float32)
    planes, rows, columns = volume.shape
    out = np.empty((planes, rows, columns), np.float32)
    starts = range(0, rows, _BAND)
    for number, start in enumerate(starts):
        progress("denoise", number, len(starts))
        # Bands begin at whole blocks, so that where they end changes nothing: a voxel depends on 16 rows either way.
        first, last = max(start - _HALO, 0), min(start + _BAND + _HALO, rows)
        done = DENOISERS[name](volume[:, first:last].astype(np.float32), noise)
        out[:, start : start + _BAND] = done[:, start - first : start - first + _BAND]
    progress("denoise", len(starts), len(starts))
    out += np.float32(volume.mean(dtype=np.float64) - out.mean(dtype=np.float64))
    return out


def _dct(volume: Float, noise: NoiseModel) -> Float:
    pilot = _pass(volume, noise, None)
    return _pass(volume, noise, pilot)


DENOISERS: dict[str, Callable[[Float, NoiseModel], Float]] = {"dct": _dct}
"""Denoisers by name: ``(Z, Y, X)`` float32 counts and their noise to the same, float32."""


def _pass(volume: Float, noise: NoiseModel, pilot: Float | None) -> Float:
    """One pass over all blocks; with a `pilot`, what the pass before made, each coefficient is weighed by it."""
    sizes = [min(BLOCK, n) for n in volume.shape]
    cosines = [_cosines(size) for size in sizes]
    backwards = [matrix.T for matrix in cosines]
    depths, rows, columns = (_starts(n, size) for n, size in zip(volume.shape, sizes, strict=True))
    # Blocks count less at their borders, where they know less.
    window = np.einsum("i,j,k->ijk", *(np.kaiser(size + 2, 2.0)[1:-1] for size in sizes)).astype(np.float32)
    total, weight = np.zeros_like(volume), np.zeros_like(volume)

    def add_from(z: int) -> None:
        for y in rows:
            place = slice(z, z + sizes[0]), slice(y, y + sizes[1])
            blocks = _blocks(volume[place], sizes[2], columns)
            spectra = _transform(blocks, cosines)
            guide = blocks if pilot is None else _blocks(pilot[place], sizes[2], columns)
            variance = noise.variance(guide.mean((1, 2, 3)))[:, None, None, None]
            if pilot is None:
                gain = (spectra**2 > THRESHOLD**2 * variance).astype(np.float32)
            else:
                power = _transform(guide, cosines) ** 2
                gain = np.asarray(power / (power + np.float32(CAUTION) * variance + np.float32(1e-20)), np.float32)
            gain[:, 0, 0, 0] = 1  # the mean of a block stays
            answers = _transform(spectra * gain, backwards)
            # Blocks that keep little noise count more.
            trust = 1 / (np.maximum(variance, 1e-12) * (gain**2).sum((1, 2, 3), keepdims=True))
            _add(total[place], answers * (window * trust), columns)
            _add(weight[place], np.broadcast_to(window * trust, answers.shape), columns)

    with ThreadPoolExecutor(min(os.cpu_count() or 1, _THREADS)) as threads:
        # Depths of one group share no voxel, so that threads do not meet and their order changes nothing.
        for group in (depths[:-1:2], depths[1:-1:2], depths[-1:]):
            for _ in threads.map(add_from, group):
                pass
    total /= weight
    return total


def _starts(length: int, size: int) -> list[int]:
    """Where blocks begin: half a block apart, the last one at the end."""
    regular = list(range(0, length - size + 1, BLOCK // 2))
    return regular if regular[-1] == length - size else [*regular, length - size]


def _cosines(size: int) -> Float:
    """Orthonormal DCT-II as a matrix."""
    k, i = np.arange(size)[:, None], np.arange(size)[None]
    matrix = math.sqrt(2 / size) * np.cos(math.pi * (2 * i + 1) * k / (2 * size))
    matrix[0] /= math.sqrt(2)
    return matrix.astype(np.float32)


def _blocks(row: Float, size: int, starts: list[int]) -> Float:
    """``(Z, Y, X)`` of one row of blocks to ``(N, Z, Y, size)``."""
    windows = np.lib.stride_tricks.sliding_window_view(row, size, axis=2)  # (Z, Y, X - size + 1, size)
    return np.ascontiguousarray(windows[:, :, starts].transpose(2, 0, 1, 3))


def _transform(blocks: Float, matrices: list[Float]) -> Float:
    count, depth, rows, columns = blocks.shape
    out = (blocks.reshape(-1, columns) @ matrices[2].T).reshape(blocks.shape)
    out = matrices[1] @ out
    return (matrices[0] @ out.reshape(count, depth, -1)).reshape(count, depth, rows, columns)


def _add(row: Float, blocks: Float, starts: list[int]) -> None:
    """Add blocks ``(N, Z, Y, size)`` to their places in ``row`` ``(Z, Y, X)``."""
    size = blocks.shape[3]
    regular = len(starts) if starts[-1] == (len(starts) - 1) * BLOCK // 2 else len(starts) - 1
    for first in (0, 1):
        # Every second block of a row: those do not overlap.
        some = blocks[first:regular:2].transpose(1, 2, 0, 3)  # (Z, Y, n, size)
        begin = first * BLOCK // 2
        row[:, :, begin : begin + some.shape[2] * size] += some.reshape(*some.shape[:2], -1)
    if regular < len(starts):
        row[:, :, starts[-1] : starts[-1] + size] += blocks[-1]
