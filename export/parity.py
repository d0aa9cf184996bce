"""Parity: whether an export, an engine or a backend gives the numbers of the FP32 reference.

Pure comparison of two arrays of tiles, and the limits that decide. Real tiles are held to a PSNR; extreme ones (all
zero, saturated, one hot pixel, ...) to a largest error and to being finite. It does not run networks.

>>> import numpy as np
>>> reference = np.linspace(0, 1, 32, dtype=np.float32).reshape(2, 1, 4, 4)
>>> report = check_parity(reference, reference, kinds=["real", "zeros"], limits=Limits(), what="a copy")
>>> report.real.psnr_db, report.extremes.max_error
(200.0, 0.0)
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from ssai3d_rt.errors import ParityError

if TYPE_CHECKING:
    from collections.abc import Sequence

Float = npt.NDArray[np.float32]

REAL, SIMULATED = "real", "simulated"
"""Kinds of golden tiles that look like what the network will see: cut from a given stack, or from a simulated one."""

BEST_DB = 200.0
"""Written as PSNR where both agree exactly (JSON knows no infinity)."""


class Parity(BaseModel):
    """How far a result is from the reference, over some tiles.

    Parameters
    ----------
    tiles
        How many were compared.
    max_error
        Largest absolute difference; NaN and infinities are left out and counted in `non_finite`.
    psnr_db
        10 log10(range^2 / mean squared error), at most `BEST_DB`.
    non_finite
        Values of the result that are NaN or infinite.
    value_range
        Largest minus smallest value of the reference; 1.0 where it is constant.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tiles: int
    max_error: float
    psnr_db: float
    non_finite: int
    value_range: float


class Limits(BaseModel):
    """What is still accepted.

    Parameters
    ----------
    real_psnr_db
        Least PSNR over the real tiles.
    extreme_error
        Largest error over the extreme tiles, as a fraction of the reference's largest value (at least 1).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    real_psnr_db: float = 55.0
    extreme_error: float = 0.02


class ParityReport(BaseModel):
    """Parity over the real tiles and over the extreme ones."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    real: Parity
    extremes: Parity


def compare(reference: Float, result: Float) -> Parity:
    """Compare two arrays of the same shape, tiles along the first axis."""
    if reference.shape != result.shape:
        raise ValueError(f"cannot compare shapes {reference.shape} and {result.shape}")
    difference = result.astype(np.float64) - reference
    finite = np.isfinite(difference)
    good = difference[finite]
    spread = float(reference.max() - reference.min()) if reference.size else 0.0
    value_range = spread if math.isfinite(spread) and spread > 0 else 1.0
    mse = float(np.mean(good**2)) if good.size else math.inf
    psnr_db = 10 * math.log10(value_range**2 / mse) if 0 < mse < math.inf else (BEST_DB if mse == 0 else 0.0)
    return Parity(
        tiles=len(reference),
        max_error=float(np.abs(good).max()) if good.size else 0.0,
        psnr_db=min(psnr_db, BEST_DB),
        non_finite=int(finite.size - np.count_nonzero(finite)),
        value_range=value_range,
    )


def check_parity(reference: Float, result: Float, *, kinds: Sequence[str], limits: Limits, what: str) -> ParityReport:
    """Compare, and refuse a result outside the limits.

    Parameters
    ----------
    reference, result
        ``(N, 1, T, T)`` float32 outputs for the same tiles.
    kinds
        N names of kinds; `REAL` and `SIMULATED` tiles are held to the PSNR, the others to the largest error.
    limits
        What is accepted.
    what
        Names the result in the message.

    Raises
    ------
    ParityError
        A shape, a value that is not finite, a PSNR or an error outside the limits.
    """
    if result.shape != reference.shape:
        raise ParityError(f"{what} returned shape {result.shape}, expected {reference.shape}")
    real = np.array([kind in (REAL, SIMULATED) for kind in kinds], bool)
    report = ParityReport(
        real=compare(reference[real], result[real]), extremes=compare(reference[~real], result[~real])
    )
    broken = sorted({kind for kind, tile in zip(kinds, result, strict=True) if not np.isfinite(tile).all()})
    if broken:
        count = report.real.non_finite + report.extremes.non_finite
        raise ParityError(f"{what} gives {count} values that are not finite (tiles: {', '.join(broken)})")
    if report.real.tiles and report.real.psnr_db < limits.real_psnr_db:
        raise ParityError(
            f"{what} is off the FP32 reference: PSNR {report.real.psnr_db:.1f} dB on real tiles, "
            f"at least {limits.real_psnr_db:g} dB is needed"
        )
    for kind, ours, theirs in zip(kinds, result, reference, strict=True):
        error = float(np.abs(ours - theirs).max())
        allowed = limits.extreme_error * max(1.0, float(np.abs(theirs).max()))
        if kind not in (REAL, SIMULATED) and error > allowed:
            raise ParityError(
                f"{what} is off the FP32 reference: error {error:.3g} on the tile {kind!r}, allowed {allowed:.3g}"
            )
    return report
