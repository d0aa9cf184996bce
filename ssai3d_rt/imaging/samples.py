"""Sample types: which numbers on disk become which numbers in a `Stack`, and which are refused.

A stack holds uint8, uint16 or float32. The type follows from the file alone, so that every stack of an acquisition gets
the same one: signed and 32- or 64-bit integers become uint16 where every value fits (0 to 65535), float16 and float64
become float32, everything else (complex, boolean, 8-bit signed) is refused, as are NaN and infinite values. Nothing is
ever rescaled or clipped here.

>>> import numpy as np
>>> stack_dtype(np.dtype("int32"))
dtype('uint16')
>>> stack_dtype(np.dtype("complex64")) is None
True
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ssai3d_rt.errors import InputError

if TYPE_CHECKING:
    from ssai3d_rt.imaging.stack import Array

UINT16_MAX = 65535

_STACK_DTYPES = {
    "uint8": "uint8",
    "uint16": "uint16",
    "float32": "float32",
    "int16": "uint16",
    "uint32": "uint16",
    "int32": "uint16",
    "uint64": "uint16",
    "int64": "uint16",
    "float16": "float32",
    "float64": "float32",
}


def stack_dtype(dtype: np.dtype[np.generic]) -> np.dtype[np.generic] | None:
    """Return the type that samples of `dtype` have in a stack, None where they are refused."""
    name = _STACK_DTYPES.get(dtype.name)
    return np.dtype(name) if name else None


def convert_plane(plane: Array, dtype: np.dtype[np.generic], where: str) -> Array:
    """Return `plane` as `dtype`, refusing values that it cannot hold.

    Parameters
    ----------
    plane
        ``(Y, X)`` samples as stored.
    dtype
        What `stack_dtype` says for them.
    where
        File and plane, for the message.

    Raises
    ------
    InputError
        Integers outside 0 to 65535, or a float64 beyond float32.
    """
    if plane.dtype == dtype:
        return plane
    if dtype.kind == "u" and plane.size:
        low, high = int(plane.min()), int(plane.max())
        if low < 0 or high > UINT16_MAX:
            raise InputError(
                f"{where}: {plane.dtype} values from {low} to {high} do not fit into uint16; "
                "save as float32, or shift and scale them into 0 to 65535"
            )
    with np.errstate(over="ignore"):  # an overflow becomes infinite, and is refused as such
        return plane.astype(dtype)


def non_finite(plane: Array) -> int:
    """Return how many samples are NaN or infinite."""
    return int(plane.size - np.count_nonzero(np.isfinite(plane))) if plane.dtype.kind == "f" else 0
