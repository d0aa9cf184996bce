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
ssai3d_rt.errors.DeviceError: the restored stack has nothing in common with the raw one ...
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ssai3d_rt.errors import DeviceError

Float = npt.NDArray[np.float64]

LEAST_CORRELATION = 0.5
"""Of the block means; real restorations reach far more, see docs/reliability.md."""

_BLOCKS = (6, 12, 12)
_NOISE_FACTOR = 4.0


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
    found = likeness(raw, restored)
    if found is not None and found < LEAST_CORRELATION:
        raise DeviceError(
            f"the restored stack has nothing in common with the raw one (correlation {found:.2f}); the device or its "
            "driver computes nonsense, nothing is published"
        )


def likeness(raw: npt.NDArray[Any], restored: npt.NDArray[Any]) -> float | None:
    """Return the correlation of the block means, None where the raw stack has too little structure to tell."""
    before = _block_means(raw)
    samples_per_block = raw.size / before.size
    noise_at_most = float(raw.std(dtype=np.float64)) / np.sqrt(samples_per_block)
    if before.std() <= _NOISE_FACTOR * noise_at_most:
        return None
    after = _block_means(restored)
    if not np.isfinite(after).all() or after.std() == 0:
        return 0.0
    return float(np.corrcoef(before.ravel(), after.ravel())[0, 1])


def _block_means(volume: npt.NDArray[Any]) -> Float:
    means: Float = volume
    for axis, blocks in enumerate(_BLOCKS):
        length = volume.shape[axis]
        edges = np.unique(np.arange(min(blocks, length)) * length // min(blocks, length))
        counts = np.diff(np.append(edges, length))
        shape = [1, 1, 1]
        shape[axis] = -1
        means = np.add.reduceat(means, edges, axis=axis, dtype=np.float64) / counts.reshape(shape)
    return means
