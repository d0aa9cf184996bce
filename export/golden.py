"""Golden tiles: the inputs on which every export, engine and backend must give the reference's numbers.

Some are cut from axial slices of a stack as a restoration would cut them; the others are extremes that break networks
in half precision: nothing at all, everything saturated, one hot pixel far above the rest, photon noise in the dark,
full-range noise. It does not know what the reference is.

>>> tiles, kinds = golden_tiles(64)
>>> tiles.shape, kinds[:2], kinds[4:]
((9, 1, 64, 64), ('simulated', 'simulated'), ('zeros', 'ones', 'hot_pixel', 'dim_noise', 'full_range'))
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ssai3d_rt.export.parity import REAL, SIMULATED
from ssai3d_rt.imaging.axial import resample_z
from ssai3d_rt.imaging.normalise import Normalisation
from ssai3d_rt.imaging.tiling import Cover

Float = npt.NDArray[np.float32]

HOT = 50.0
"""A hot pixel in a dark stack, in units of the normalised range: a 16-bit camera's top over a range of 1,300 counts."""


def golden_tiles(tile: int, slices: Float | None = None, *, real: int = 4) -> tuple[Float, tuple[str, ...]]:
    """Make the golden tiles.

    Parameters
    ----------
    tile
        Side in pixels.
    slices
        ``(N, Z, X)`` float32 about [0, 1]: axial slices, isotropic pixels, of a stack like those that will be restored;
        simulated strands are taken where there are none.
    real
        Tiles to cut from them.

    Returns
    -------
    ``(N, 1, tile, tile)`` float32 and the N names of their kinds.
    """
    given = slices is not None and len(slices) > 0
    cut = tiles_of(slices if slices is not None and given else _simulated(), tile, real)
    extremes = _extremes(tile)
    tiles = np.concatenate([cut, np.stack(list(extremes.values()))[:, None]])
    return tiles, (*[REAL if given else SIMULATED] * len(cut), *extremes)


def tiles_of(slices: Float, tile: int, count: int) -> Float:
    """Cut tiles from the slices with the most contrast, reflected at their ends as `deblur_axial` does.

    Returns
    -------
    ``(n, 1, tile, tile)`` float32; `n` is `count`, or fewer where there are fewer slices.
    """
    _, rows, columns = slices.shape
    best = np.argsort(slices.std(axis=(1, 2)))[::-1][:count]
    depth = Cover.of(rows, tile=tile, overlap=min(32, tile // 2))
    across = Cover.of(columns, tile=tile, overlap=min(32, tile // 2))
    cut = [
        slices[chosen][np.ix_(depth.reads(place % len(depth.starts)), across.reads(place % len(across.starts)))]
        for place, chosen in enumerate(best)
    ]
    return np.stack(cut)[:, None].astype(np.float32)


def _extremes(tile: int) -> dict[str, Float]:
    rng = np.random.default_rng(0)
    zeros = np.zeros((tile, tile), np.float32)
    hot = zeros.copy()
    hot[tile // 2, tile // 3] = HOT
    return {
        "zeros": zeros,
        "ones": np.ones_like(zeros),
        "hot_pixel": hot,
        "dim_noise": (rng.poisson(0.2, zeros.shape) / 20).astype(np.float32),
        "full_range": rng.random(zeros.shape, dtype=np.float32),
    }


def _simulated() -> Float:
    from ssai3d_rt.imaging.simulate import acquire, strands

    stack = acquire(strands((64, 64, 96), 24, seed=3), 4)
    volume = resample_z(Normalisation.of(stack.data).apply(stack.data), stack.anisotropy)
    return np.ascontiguousarray(volume.transpose(1, 0, 2)[::8])
