"""Tile geometry along one axis: where tiles lie, what they read beyond the ends, and how they blend.

Pure numbers: nothing here touches an image. Two `Cover` objects, one per axis, describe the tiles of a slice; the
outer product of their weights sums to one at every pixel, so a network that changes nothing gives the input back.

An axis that fits in one tile gets one tile, padded on both sides. A longer axis gets overlapping tiles spread evenly
over the axis and a margin of half an overlap beyond each end. Whatever lies beyond the ends is a reflection of real
pixels, never zeros, so that the ends of a stack do not glow.

>>> cover = Cover.of(100, tile=64, overlap=16)
>>> cover.starts
(-8, 18, 44)
>>> bool(np.allclose(cover.total(), 1.0))
True
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Index = npt.NDArray[np.intp]
Weights = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Cover:
    """The tiles that cover one axis.

    Parameters
    ----------
    length
        Pixels of the axis.
    tile
        Pixels of a tile.
    starts
        First pixel of each tile, ascending; negative where a tile begins in the reflected margin.
    weights
        ``(tiles, tile)`` float32 in [0, 1]; zero on reflected pixels; over all tiles they sum to 1 at each pixel.
    """

    length: int
    tile: int
    starts: tuple[int, ...]
    weights: Weights

    @classmethod
    def of(cls, length: int, *, tile: int, overlap: int) -> Cover:
        """Cover `length` pixels with tiles of `tile` pixels that share at least `overlap` pixels."""
        starts = tile_starts(length, tile=tile, overlap=overlap)
        ramp = _window(tile, overlap)
        weights = np.zeros((len(starts), tile), np.float64)
        total = np.zeros(length)
        for row, start in zip(weights, starts, strict=True):
            inside = slice(max(0, -start), min(tile, length - start))
            row[inside] = ramp[inside]
            total[start + inside.start : start + inside.stop] += ramp[inside]
        for row, start in zip(weights, starts, strict=True):
            inside = slice(max(0, -start), min(tile, length - start))
            row[inside] /= total[start + inside.start : start + inside.stop]
        return cls(length, tile, starts, weights.astype(np.float32))

    def reads(self, number: int) -> Index:
        """Return ``(tile,)``, the pixel that tile `number` reads at each of its places, reflected at the ends."""
        start = self.starts[number]
        return reflected(np.arange(start, start + self.tile), self.length)

    def inside(self, number: int) -> tuple[slice, slice]:
        """Return the real pixels of tile `number`: (their slice within the tile, their slice of the axis)."""
        start = self.starts[number]
        first, last = max(0, -start), min(self.tile, self.length - start)
        return slice(first, last), slice(start + first, start + last)

    def beyond(self, number: int) -> tuple[Index, Index]:
        """Return the places of tile `number` that lie beyond the ends, and the places in it that they reflect."""
        outside = np.flatnonzero(self.weights[number] == 0)
        return outside, self.reads(number)[outside] - self.starts[number]

    def total(self) -> Weights:
        """Return ``(length,)``, the sum of all weights at each pixel: one, up to float32 rounding."""
        total = np.zeros(self.length, np.float32)
        for number, weights in enumerate(self.weights):
            within, pixels = self.inside(number)
            total[pixels] += weights[within]
        return total


def tile_starts(length: int, *, tile: int, overlap: int) -> tuple[int, ...]:
    """First pixel of each tile: as few tiles as the overlap allows, spread evenly.

    Parameters
    ----------
    length
        Pixels of the axis, at least 1.
    tile
        Pixels of a tile, at least 1.
    overlap
        Pixels that neighbours share at least, 0 <= overlap < tile. Half of it is the reflected margin beyond the ends.
    """
    if length < 1 or tile < 1 or not 0 <= overlap < tile:
        raise ValueError(f"cannot cover {length} px with tiles of {tile} px that overlap by {overlap} px")
    if length <= tile:
        return (-((tile - length) // 2),)
    margin = overlap // 2
    span = length + 2 * margin
    count = max(2, math.ceil((span - overlap) / (tile - overlap)))
    step = (span - tile) / (count - 1)
    return tuple(round(number * step) - margin for number in range(count))


def reflected(index: npt.NDArray[np.integer], length: int) -> Index:
    """Fold indices into ``0 .. length - 1`` by reflection at the end pixels, as often as needed.

    >>> reflected(np.arange(-3, 6), 3).tolist()
    [1, 2, 1, 0, 1, 2, 1, 0, 1]
    """
    if length == 1:
        return np.zeros(index.shape, np.intp)
    period = 2 * (length - 1)
    folded = np.mod(index, period)
    return np.asarray(np.minimum(folded, period - folded), np.intp)


def _window(tile: int, overlap: int) -> npt.NDArray[np.float64]:
    """Raised-cosine ramps of `overlap` pixels at both ends, flat between, positive everywhere."""
    distance = np.minimum(np.arange(tile), np.arange(tile)[::-1]) + 0.5
    share = np.minimum(distance / max(overlap, 1), 1.0)
    return np.asarray(0.5 - 0.5 * np.cos(np.pi * share))
