"""Precision by calibration: from the ranges that were measured inside a network to the tensors that stay FP32.

FP16 ends at 65504 and loses digits below 6e-5. Every tensor that the typed network stores has a name here
(`tensor_names`); its range is measured by the export, on real tiles and on extremes; `decide` says which of them FP16
cannot hold. A tensor stays FP32 where its largest value times `HEADROOM` leaves FP16's range, or where its values on
real tiles are so small that FP16 has lost their digits. This module knows numbers, not networks that run: see
`ssai3d_rt.export.measure`.

>>> ranges = [TensorRange("intro", 40.0, "hot_pixel", 2.0, 0.5), TensorRange("middle_blks.0.gate1", 3e4, "real", 9, 2)]
>>> plan = decide(ranges)
>>> sorted(plan.wide), plan.highest.name
(['middle_blks.0.gate1'], 'middle_blks.0.gate1')
>>> print(plan.sentence())
1 of 2 tensors stays FP32; the highest value is 3e+04 (middle_blks.0.gate1, on real tiles), FP16 ends at 65504
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ssai3d_rt.network.nafnet import NAFNetShape

FP16_MAX = 65504.0
"""Largest finite FP16 number."""
FP16_TINY = 2.0**-14
"""Smallest FP16 number with all its digits; below it steps are 2^-24, whatever the value."""

HEADROOM = 4.0
"""How many times the largest value seen must still fit.

The gates multiply two values, so a stack that drives each of them twice as far as the tiles did drives their product
four times as far. It also covers kernels that add up products in FP16 and pass beyond the sum on the way.
"""

LEAST_RMS = 2 * FP16_TINY
"""Below this root mean square, rounding in steps of 2^-24 outweighs FP16's usual relative rounding (about 2^-13)."""

BLOCK = (
    *("norm1", "conv1", "conv2", "gate1", "pooled", "attention", "attended", "conv3", "residual1"),
    *("norm2", "conv4", "gate2", "conv5", "residual2"),
)
"""What a block stores, in order; see `ssai3d_rt.network.nafnet.NAFBlock`."""

_ADDENDS = ("conv3", "conv5", "ending")
"""Only ever added to something larger, so nothing is lost where they are small."""


def tensor_names(shape: NAFNetShape) -> tuple[str, ...]:
    """Name every tensor that the typed network stores, in the order in which they are computed.

    >>> from ssai3d_rt.network.nafnet import NAFNetShape
    >>> names = tensor_names(NAFNetShape(width=8, enc=(1,), middle=1, dec=(1,)))
    >>> names[:3], len(names), names[-2:]
    (('tiles', 'intro', 'encoders.0.0.norm1'), 48, ('decoders.0.0.residual2', 'ending'))
    """

    def blocks(prefix: str, count: int) -> list[str]:
        return [f"{prefix}.{number}.{part}" for number in range(count) for part in BLOCK]

    names = ["tiles", "intro"]
    for level, count in enumerate(shape.enc):
        names += [*blocks(f"encoders.{level}", count), f"downs.{level}"]
    names += blocks("middle_blks", shape.middle)
    for number, count in enumerate(shape.dec):
        names += [f"ups.{number}", f"skips.{number}", *blocks(f"decoders.{number}", count)]
    return (*names, "ending")


@dataclass(frozen=True, slots=True)
class TensorRange:
    """What was measured of one tensor.

    Parameters
    ----------
    name
        One of `tensor_names`.
    peak, peak_on
        Largest absolute value over all tiles, and the kind of tile that it came from.
    high
        99.9th percentile of the absolute values on real tiles.
    rms
        Root mean square on real tiles.
    """

    name: str
    peak: float
    peak_on: str
    high: float
    rms: float

    def why_wide(self, headroom: float = HEADROOM) -> str:
        """Return ``range``, ``small``, or nothing where FP16 holds it."""
        if not self.peak * headroom <= FP16_MAX:
            return "range"
        addend = self.name.rpartition(".")[2] in _ADDENDS or self.name.startswith("ups.")
        return "small" if 0 < self.rms < LEAST_RMS and not addend else ""


@dataclass(frozen=True)
class PrecisionPlan:
    """The decision, and what it rests on; make one with `decide`.

    Parameters
    ----------
    ranges
        All tensors, in order of computation.
    headroom
        See `HEADROOM`.
    wide_weights
        Convolutions whose weights FP16 cannot hold, see `fits_half`.
    """

    ranges: tuple[TensorRange, ...]
    headroom: float = HEADROOM
    wide_weights: tuple[str, ...] = ()

    @cached_property
    def reasons(self) -> dict[str, str]:
        """Why each tensor that stays FP32 does so."""
        return {item.name: why for item in self.ranges if (why := item.why_wide(self.headroom))}

    @property
    def wide(self) -> frozenset[str]:
        """Names of the tensors that stay FP32."""
        return frozenset(self.reasons)

    @property
    def highest(self) -> TensorRange:
        """The tensor with the largest value."""
        return max(self.ranges, key=lambda item: item.peak)

    def sentence(self) -> str:
        """Say in one line what was decided."""
        top = self.highest
        return sentence_of(
            len(self.reasons), len(self.ranges), len(self.wide_weights), top.peak, f"{top.name}, on {top.peak_on} tiles"
        )

    def table(self) -> str:
        """Return one line per tensor, for people."""
        width = max(len(item.name) for item in self.ranges)
        lines = [f"{'tensor':{width}}  stored  {'peak':>9} {'on tiles':10} {'99.9 %':>9} {'rms':>9}"]
        for item in self.ranges:
            stored = f"fp32 ({self.reasons[item.name]})" if item.name in self.reasons else "fp16"
            lines.append(
                f"{item.name:{width}}  {stored[:4]:6}  {item.peak:9.3g} {item.peak_on:10} {item.high:9.3g} "
                f"{item.rms:9.3g}{stored[4:]}"
            )
        return "\n".join(lines)

    def to_json(self) -> str:
        """Return the plan as JSON, one tensor per line."""
        rows = ",\n".join(f"  {json.dumps(self._row(item))}" for item in self.ranges)
        weights = json.dumps(list(self.wide_weights))
        return (
            f'{{\n "headroom": {self.headroom:g},\n "fp16_max": {FP16_MAX:g},\n "wide_weights": {weights},\n'
            f' "tensors": [\n{rows}\n ]\n}}\n'
        )

    def _row(self, item: TensorRange) -> dict[str, Any]:
        values = {"peak": _short(item.peak), "on": item.peak_on, "high": _short(item.high), "rms": _short(item.rms)}
        why = self.reasons.get(item.name)
        return {"name": item.name, "stored": "fp32" if why else "fp16", **values} | ({"why": why} if why else {})

    @classmethod
    def from_json(cls, text: str | bytes) -> PrecisionPlan:
        """Read what `to_json` wrote.

        Raises
        ------
        ValueError
            It is something else.
        """
        try:
            values = json.loads(text)
            rows = [
                TensorRange(str(r["name"]), float(r["peak"]), str(r["on"]), float(r["high"]), float(r["rms"]))
                for r in values["tensors"]
            ]
            return cls(tuple(rows), float(values["headroom"]), tuple(str(name) for name in values["wide_weights"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a precision report: {error!r}") from None


def decide(
    ranges: Iterable[TensorRange], *, headroom: float = HEADROOM, wide_weights: Iterable[str] = ()
) -> PrecisionPlan:
    """Decide which tensors stay FP32.

    Parameters
    ----------
    ranges
        Of every tensor, in order of computation.
    headroom
        How many times the largest value must fit FP16.
    wide_weights
        Convolutions whose weights stay FP32, in order.
    """
    if headroom < 1:
        raise ValueError(f"a headroom of {headroom} would let values through that FP16 cannot hold")
    return PrecisionPlan(tuple(ranges), headroom, tuple(wide_weights))


def sentence_of(wide: int, tensors: int, wide_weights: int, highest: float, where: str) -> str:
    """Say in one line how many tensors and weights stay FP32, and how high values go."""
    layers = f"{wide_weights} convolution{'s' if wide_weights > 1 else ''}"
    weights = f", and the weights of {layers}," if wide_weights else ""
    return (
        f"{wide} of {tensors} tensors{weights} {'stays' if wide == 1 and not weights else 'stay'} FP32; "
        f"the highest value is {highest:.3g} ({where}), FP16 ends at {FP16_MAX:.0f}"
    )


def fits_half(weights: npt.NDArray[np.float32]) -> bool:
    """Whether FP16 holds weights: none beyond its range, and as a whole with FP16's usual relative rounding.

    The rounding error's root mean square is about 2^-13 of the weights'; four times that is taken for lost digits.
    """
    if not weights.size or not np.any(weights):
        return True
    if not float(np.abs(weights).max()) <= FP16_MAX:
        return False
    wanted = weights.astype(np.float64)
    lost = wanted - weights.astype(np.float16)
    return float(np.mean(lost**2)) <= 2.0**-22 * float(np.mean(wanted**2))


def _short(value: float) -> float:
    """Keep five digits: the file is read by people."""
    return float(f"{value:.5g}")
