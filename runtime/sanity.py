"""Does a restored stack show what the raw stack shows? A last look before anything is published.

A device that went wrong answers with zeros, with a constant, or with what it computed before, and calls that a success.
Restoring changes fine detail; where the sample is bright and where it is dark it does not change. So the means of large
blocks are compared. A stack in which such blocks differ by no more than its noise makes them says nothing, and passes.

>>> import numpy as np
>>> raw = np.random.default_rng(0).normal(100, 5, (12, 64, 64)).astype("float32")
>>> raw[3:8, 20:40, 10:50] += 400
>>> require_likeness(raw, np.repeat(raw, 4, axis=0))
>>> require_likeness(raw, np.zeros((45, 64, 64), "float32"))
Traceback (most recent call last):
ssai3d_rt.errors.DeviceError: the restored stack is constant, the raw one is not; the device computes nonsense
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ssai3d_rt.errors import DeviceError

Float = npt.NDArray[np.float64]

LEAST_CORRELATION = 0.8
"""Of the block means; real restorations reach far more, see docs/reliability.md."""

_MOST_BLOCKS = (6, 12, 12)
_LEAST_SIDE = 4
_NOISE_FACTOR = 4.0
_PLANES = 16
_ROUNDING = 1.0
"""Counts: what differs by no more than this may be constant once it is denoised and rounded."""


def require_likeness(raw: npt.NDArray[Any], restored: npt.NDArray[Any]) -> None:
    """Compare a restored stack with its raw one.

    Parameters
    ----------
    raw
        ``(Z, Y, X)`` counts.
    restored
        ``(Zi, Y, X)`` counts of the same volume; both end with the same first and last plane.

    Raises
    ------
    DeviceError
        It is something else.
    """
    if raw.min() < raw.max() and restored.min() == restored.max() and float(raw.std(dtype=np.float64)) > _ROUNDING:
        raise DeviceError("the restored stack is constant, the raw one is not; the device computes nonsense")
    found = likeness(raw, restored)
    if found is not None and found < LEAST_CORRELATION:
        raise DeviceError(
            f"the restored stack has nothing in common with the raw one (correlation {found:.2f}); the device or its "
            "driver computes nonsense, nothing is published"
        )


def likeness(raw: npt.NDArray[Any], restored: npt.NDArray[Any]) -> float | None:
    """Return the correlation of the block means, None where the raw stack has too little structure to tell."""
    sides = zip(raw.shape, _MOST_BLOCKS, strict=True)
    blocks = tuple(max(1, min(most, length // _LEAST_SIDE)) for length, most in sides)
    before = _block_means(raw, blocks)
    # Neighbours differ by their noise, and by structures: more than the noise of a block's mean it cannot be.
    some = raw[:: -(-len(raw) // _PLANES)]
    between_neighbours = float(np.subtract(some[..., 1:], some[..., :-1], dtype=np.float32).std(dtype=np.float64))
    noise_at_most = between_neighbours / np.sqrt(2 * raw.size / before.size)
    if before.std() <= _NOISE_FACTOR * noise_at_most:
        return None
    after = _block_means(restored, blocks)
    if not np.isfinite(after).all() or after.std() == 0:
        return 0.0
    return float(np.corrcoef(before.ravel(), after.ravel())[0, 1])


def _block_means(volume: npt.NDArray[Any], blocks: tuple[int, ...]) -> Float:
    means: Float = volume
    for axis, (length, count) in enumerate(zip(volume.shape, blocks, strict=True)):
        edges = np.arange(count) * length // count
        counts = np.diff(np.append(edges, length))
        shape = [1, 1, 1]
        shape[axis] = -1
        means = np.add.reduceat(means, edges, axis=axis, dtype=np.float64) / counts.reshape(shape)
    return means
