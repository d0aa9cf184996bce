"""A picture of the ranges inside a network, over its depth: which tensors FP16 holds, and how far the others are out.

It knows how to draw, not how to measure or decide; see `precision`.

>>> from ssai3d_rt.calibration.precision import BLOCK, TensorRange, decide
>>> ranges = [TensorRange(f"encoders.0.0.{part}", 10.0 * n + 1, "real", 1.0, 0.5) for n, part in enumerate(BLOCK)]
>>> draw_precision(decide(ranges))[1:4]
b'PNG'
"""

from __future__ import annotations

import io
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from ssai3d_rt.calibration.precision import FP16_MAX, FP16_TINY
from ssai3d_rt.figure import new_figure

if TYPE_CHECKING:
    from ssai3d_rt.calibration.precision import PrecisionPlan

STREAM, BRANCH, WIDE = "#0072b2", "#999999", "#d55e00"
_BRANCH_ENDS = ("residual1", "residual2")


def draw_precision(plan: PrecisionPlan) -> bytes:
    """Return a PNG: largest value, 99.9th percentile and root mean square of every tensor, in order of computation.

    Raises
    ------
    MissingPackageError
        matplotlib is not installed.
    """
    figure = new_figure(figsize=(12, 5), layout="constrained")
    axes = figure.subplots()
    _draw_parts(axes, plan)
    _draw_limits(axes, plan)
    _draw_ranges(axes, plan)
    axes.set(
        xlabel="depth: tensors in order of computation",
        ylabel="absolute value",
        yscale="log",
        xlim=(-1, len(plan.ranges)),
    )
    axes.legend(loc="lower right", fontsize=8, ncols=3)
    figure.suptitle(plan.sentence(), fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    return buffer.getvalue()


def _draw_ranges(axes: Any, plan: PrecisionPlan) -> None:
    place = np.arange(len(plan.ranges))
    peak = np.array([item.peak for item in plan.ranges])
    wide = np.array([item.name in plan.wide for item in plan.ranges])
    stream = np.array([item.name.count(".") < 2 or item.name.endswith(_BRANCH_ENDS) for item in plan.ranges])
    for values, style, label in (
        ([item.high for item in plan.ranges], "-", "99.9 % on real tiles"),
        ([item.rms for item in plan.ranges], ":", "root mean square on real tiles"),
    ):
        axes.plot(
            place, np.where(np.array(values) > 0, values, np.nan), style, color="black", linewidth=0.8, label=label
        )
    for chosen, colour, marker, label in (
        (~wide & ~stream, BRANCH, ".", "largest, inside a block (FP16)"),
        (~wide & stream, STREAM, "o", "largest, residual stream (FP16)"),
        (wide, WIDE, "^", "largest, stays FP32"),
    ):
        if chosen.any():
            axes.plot(place[chosen], peak[chosen], marker, color=colour, markersize=4, label=label)


def _draw_limits(axes: Any, plan: PrecisionPlan) -> None:
    axes.axhline(FP16_MAX, color=WIDE, linewidth=1)
    axes.axhline(FP16_MAX / plan.headroom, color=WIDE, linewidth=1, linestyle="--")
    axes.axhline(FP16_TINY, color=WIDE, linewidth=1, linestyle=":")
    for height, text in (
        (FP16_MAX, f"FP16 ends\nat {FP16_MAX:.0f}"),
        (FP16_MAX / plan.headroom, f"{plan.headroom:g} times less"),
        (FP16_TINY, "digits are\nlost below"),
    ):
        axes.annotate(
            text,
            (1, height),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="bottom" if height == FP16_MAX else "center",
            fontsize=8,
            color=WIDE,
        )


def _draw_parts(axes: Any, plan: PrecisionPlan) -> None:
    """Shade every other level, and name it."""
    parts = [_part(item.name) for item in plan.ranges]
    starts = [0] + [n for n in range(1, len(parts)) if parts[n] != parts[n - 1]] + [len(parts)]
    spans = [(a, b) for a, b in pairwise(starts) if parts[a]]
    for number, (start, stop) in enumerate(spans):
        if number % 2:
            axes.axvspan(start - 0.5, stop - 0.5, color="#eeeeee", linewidth=0)
        axes.annotate(
            parts[start],
            ((start + stop - 1) / 2, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=7,
        )


def _part(name: str) -> str:
    """Return the level that a tensor belongs to; nothing for those between levels."""
    first, _, rest = name.partition(".")
    if first == "middle_blks":
        return "middle"
    return f"{first[:3]} {rest.split('.')[0]}" if first in ("encoders", "decoders") else ""
