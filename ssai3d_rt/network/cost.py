"""What one image costs a NAFNet: multiplications counted from its shape, and values that have to be moved.

Pure arithmetic; nothing is run. Only convolutions are counted: everything else a good runtime does on the way. A
runtime that keeps values in its caches between two convolutions moves fewer than are counted here.

>>> from ssai3d_rt.network.nafnet import NAFNetShape
>>> reds = NAFNetShape(width=64, enc=(1, 1, 1, 28), middle=1, dec=(1, 1, 1, 1), channels=3)
>>> round(cost_of(reds, 256).macs / 1e9, 1)
63.1
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ssai3d_rt.network.nafnet import NAFNetShape


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one image.

    Parameters
    ----------
    macs
        Multiplications, each with an addition.
    values
        Values that the convolutions read and write, without the weights.
    weights
        Weights of the convolutions; read once per batch.
    """

    macs: int
    values: int
    weights: int

    @property
    def flops(self) -> int:
        """Floating-point operations: two per multiplication."""
        return 2 * self.macs

    def moved_bytes(self, bytes_per_value: int, batch: int = 1) -> int:
        """Bytes to and from memory for a batch, where nothing stays in a cache."""
        return bytes_per_value * (batch * self.values + self.weights)


def cost_of(shape: NAFNetShape, height: int, width: int | None = None) -> Cost:
    """Count what one image costs.

    Parameters
    ----------
    shape
        The network's hyperparameters.
    height, width
        Pixels of the image, multiples of the shape's `multiple`; square where one is given.
    """
    width = height if width is None else width
    m = shape.multiple
    if height % m or width % m:
        raise ValueError(f"{height} x {width} px is not a multiple of {m}")
    total = Cost(0, 0, 0)

    def conv(level: int, inputs: int, outputs: int, *, taps: int = 1, groups: int = 1, ratio: int = 1) -> None:
        """Count a convolution with its output at a level; it reads `ratio` times as many pixels as it writes."""
        nonlocal total
        pixels = (height >> level) * (width >> level)
        weights = taps * inputs * outputs // groups
        moved = pixels * (ratio * inputs + outputs)
        total = Cost(total.macs + pixels * weights, total.values + moved, total.weights + weights)

    def pooled(channels: int) -> None:
        """Count the convolution of the channel attention, which sees one pixel."""
        nonlocal total
        size = channels * channels
        total = Cost(total.macs + size, total.values + 2 * channels, total.weights + size)

    def blocks(level: int, count: int) -> None:
        c = shape.width << level
        for _ in range(count):
            conv(level, c, 2 * c)  # conv1
            conv(level, 2 * c, 2 * c, taps=9, groups=2 * c)  # conv2
            pooled(c)
            conv(level, c, c)  # conv3
            conv(level, c, 2 * c)  # conv4
            conv(level, c, c)  # conv5

    conv(0, shape.channels, shape.width, taps=9)
    conv(0, shape.width, shape.channels, taps=9)
    deepest = len(shape.enc)
    for level, count in enumerate(shape.enc):
        blocks(level, count)
        conv(level + 1, shape.width << level, shape.width << (level + 1), taps=4, ratio=4)
    blocks(deepest, shape.middle)
    for level, count in zip(range(deepest - 1, -1, -1), shape.dec, strict=True):
        conv(level + 1, shape.width << (level + 1), shape.width << (level + 2))
        blocks(level, count)
    return total
