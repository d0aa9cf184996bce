"""Axial geometry: resample Z to the lateral pixel, restore XZ and YZ slices, merge the two views.

A restoration network is any callable on square tiles; this module brings every axial slice of a stack to it, in full
batches, and puts the answers together again. It does not know what the network is or where it runs.

>>> import numpy as np
>>> stack = np.random.default_rng(0).random((5, 20, 20), np.float32)
>>> isotropic = resample_z(stack, 3.0)
>>> isotropic.shape, bool(np.allclose(isotropic[::3], stack, atol=1e-6))
((13, 20, 20), True)
>>> result = deblur_axial(isotropic, lambda tiles: tiles, tile=16, overlap=4)
>>> bool(np.allclose(result.volume, isotropic, atol=1e-6))
True
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ssai3d_rt.errors import BackendError
from ssai3d_rt.imaging.normalise import Normalisation
from ssai3d_rt.imaging.stack import Stack
from ssai3d_rt.imaging.tiling import Cover
from ssai3d_rt.progress import Progress, silent

logger = logging.getLogger(__name__)

Float = npt.NDArray[np.float32]

MEAN_KEPT = 0.008
"""A restored stack's mean stays within this share of the raw planes' mean; the promise to users is 1 %."""

Network = Callable[[Float], Float]
"""``(N, 1, T, T)`` float32 about [0, 1] to the same; rows of a tile are Z, the blurred axis."""


@dataclass(frozen=True, slots=True, eq=False)
class AxialResult:
    """What `deblur_axial` returns.

    Parameters
    ----------
    volume
        ``(Z, Y, X)`` float32: mean of the two restored views.
    disagreement
        ``(Z, Y, X)`` float32, not negative: half the absolute difference of the views; None unless it was asked for.
    """

    volume: Float
    disagreement: Float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class RestoredArray:
    """What `restore_array` returns.

    Parameters
    ----------
    data
        ``(Z, Y, X)`` counts of the input's dtype, isotropic voxels.
    voxel_um
        ``(z, y, x)`` voxel size in micrometres, z equal to x.
    normalisation
        The scale that was applied and undone.
    mean_ratio
        Mean of the restored volume over that of the resampled raw one, both above the normalisation's offset, before
        the mean was put right; far from 1 means that the network does not suit the data.
    disagreement
        ``(Z, Y, X)`` float32 counts, half the absolute difference of the two views, or None.
    """

    data: npt.NDArray[Any]
    voxel_um: tuple[float, float, float]
    normalisation: Normalisation
    mean_ratio: float
    disagreement: Float | None = None


def interpolation_matrix(n_in: int, spacing: float) -> Float:
    """Weights that resample `n_in` planes, `spacing` output pixels apart, to every output pixel.

    Cubic convolution with a = -0.5 (R. Keys, IEEE Trans. ASSP 29, 1153, 1981); beyond the ends the end plane is
    repeated. Output 0 lies on plane 0, so input planes at whole output pixels come back exactly.

    Parameters
    ----------
    n_in
        Planes, at least 1.
    spacing
        Distance of two planes in output pixels: the stack's anisotropy.

    Returns
    -------
    ``(n_out, n_in)`` float32; ``n_out = floor((n_in - 1) * spacing) + 1``; each row sums to 1.
    """
    if n_in < 1 or not (math.isfinite(spacing) and spacing > 0):
        raise ValueError(f"cannot resample {n_in} planes spaced {spacing} px")
    n_out = math.floor((n_in - 1) * spacing + 1e-6) + 1
    position = np.minimum(np.arange(n_out) / spacing, n_in - 1)
    first = np.floor(position).astype(np.intp)
    matrix = np.zeros((n_out, n_in))
    rows = np.arange(n_out)
    for tap in (-1, 0, 1, 2):
        distance = np.abs(position - (first + tap))
        np.add.at(matrix, (rows, np.clip(first + tap, 0, n_in - 1)), _keys(distance))
    return matrix.astype(np.float32)


def resample_z(volume: Float, anisotropy: float) -> Float:
    """Resample Z to the lateral pixel size; the first plane stays at 0.

    Parameters
    ----------
    volume
        ``(Z, Y, X)`` float32.
    anisotropy
        Plane spacing over lateral pixel size, see `Stack.anisotropy`.

    Returns
    -------
    ``(floor((Z - 1) * anisotropy) + 1, Y, X)`` float32; may overshoot the input's range a little (cubic).
    """
    planes, rows, columns = volume.shape
    matrix = interpolation_matrix(planes, anisotropy)
    return (matrix @ volume.reshape(planes, -1)).reshape(-1, rows, columns)


def deblur_axial(
    volume: Float,
    network: Network,
    *,
    tile: int,
    batch: int = 8,
    overlap: int = 32,
    want_disagreement: bool = False,
    progress: Progress = silent,
) -> AxialResult:
    """Restore all XZ and all YZ slices of an isotropic volume and average the two views.

    Article, Methods: "axial images in both XZ and YZ directions were ... deblurred ... and finally averaged". Memory
    beyond the input: the returned volumes (one more while the disagreement is measured) and one batch of tiles.

    Parameters
    ----------
    volume
        ``(Z, Y, X)`` float32 about [0, 1], isotropic voxels.
    network
        Restores tiles; see `Network`. Called with `batch` tiles, fewer only in the last call, from one thread, which is
        not the caller's: the next tiles are cut and the last ones put together meanwhile.
    tile
        Tile size T in pixels.
    batch
        Tiles per call.
    overlap
        Pixels that neighbouring tiles share at least, where a slice needs several; must be smaller than `tile`.
    want_disagreement
        Keep the views apart and measure where they differ.
    progress
        Told the number of tiles done, often.

    Raises
    ------
    BackendError
        The network returned another shape than it was given.
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    overlap = min(overlap, tile // 2)
    planes, rows, columns = volume.shape
    depth = Cover.of(planes, tile=tile, overlap=overlap)
    across = (Cover.of(columns, tile=tile, overlap=overlap), Cover.of(rows, tile=tile, overlap=overlap))
    total = len(depth.starts) * (len(across[0].starts) * rows + len(across[1].starts) * columns)

    xz = np.zeros_like(volume)
    yz = np.zeros_like(volume) if want_disagreement else xz
    # The YZ view is the XZ view of the volume with Y and X exchanged; both are views without a copy.
    views = ((volume, xz), (volume.transpose(0, 2, 1), yz.transpose(0, 2, 1)))
    jobs = (
        _Job(source, target, depth, cover, i, j, number)
        for (source, target), cover in zip(views, across, strict=True)
        for i in range(len(depth.starts))
        for j in range(len(cover.starts))
        for number in range(source.shape[1])
    )
    progress("restore", 0, total)
    done = 0
    slots = np.empty((2, batch, 1, tile, tile), np.float32)
    with ThreadPoolExecutor(1, "network") as thread:
        for runs, answers in _answers(
            _batches(jobs, batch), lambda tiles: thread.submit(_answer, network, tiles), slots
        ):
            for run in runs:
                run.add(answers[:, 0])
            done += len(answers)
            progress("restore", done, total)

    if not want_disagreement:
        xz *= np.float32(0.5)
        return AxialResult(xz)
    disagreement = xz - yz
    np.abs(disagreement, out=disagreement)
    disagreement *= np.float32(0.5)
    xz += yz
    xz *= np.float32(0.5)
    return AxialResult(xz, disagreement)


def restore_array(
    data: npt.NDArray[Any],
    voxel_um: tuple[float, float, float],
    network: Network,
    *,
    tile: int,
    batch: int = 8,
    overlap: int = 32,
    want_disagreement: bool = False,
    denoised: Float | None = None,
    progress: Progress = silent,
) -> RestoredArray:
    """Restore one stack in memory: isotropic voxels, same dtype, same intensity scale, same mean.

    The mean of the result equals that of the resampled raw stack: it is rescaled about the normalisation's offset, or,
    where the network changed the mean by more than a factor of two, shifted (and a warning is logged). Between planes
    that are far apart the first and last plane count half as much as they did in the raw stack; where that alone would
    move the mean by more than `MEAN_KEPT` of the raw planes' mean, it moves by that much. A constant stack is not shown
    to the network and stays constant.

    Parameters
    ----------
    data
        ``(Z, Y, X)`` uint8, uint16 or float32 counts, finite.
    voxel_um
        ``(z, y, x)`` voxel size in micrometres.
    network, tile, batch, overlap, want_disagreement, progress
        See `deblur_axial`.
    denoised
        What the network is shown in place of `data`: ``(Z, Y, X)`` counts, on the same scale and of the same mean.

    Raises
    ------
    BackendError
        The network returned values that are not finite, or another shape.
    InputError, VoxelSizeError
        See `Stack`; also samples that are not finite.
    """
    stack = Stack(data, voxel_um)
    scale = Normalisation.of(data)
    if denoised is not None and denoised.shape != data.shape:
        raise ValueError(f"shapes differ: {data.shape} and denoised {denoised.shape}")
    isotropic = resample_z(scale.apply(data if denoised is None else denoised), stack.anisotropy)
    voxel_out = (stack.lateral_um, stack.voxel_um[1], stack.lateral_um)
    if data.min() == data.max():
        constant = np.full(isotropic.shape, data.flat[0], data.dtype)
        flat = np.zeros(isotropic.shape, np.float32) if want_disagreement else None
        return RestoredArray(constant, voxel_out, scale, 1.0, flat)

    raw_mean = float(isotropic.mean(dtype=np.float64))
    wanted = (_kept_mean(data, scale.offset + scale.scale * raw_mean) - scale.offset) / scale.scale
    result = deblur_axial(
        isotropic,
        network,
        tile=tile,
        batch=batch,
        overlap=overlap,
        want_disagreement=want_disagreement,
        progress=progress,
    )
    volume = result.volume
    if data.dtype.kind == "u":
        # Counts below zero will be clipped; clip first, so that this does not lift the mean afterwards.
        np.maximum(volume, np.float32(-scale.offset / scale.scale), out=volume)
    mean = float(volume.mean(dtype=np.float64))
    if not math.isfinite(mean):
        raise BackendError("the network returned values that are not finite (NaN or infinity); nothing was restored")
    ratio = mean / raw_mean if raw_mean else math.inf
    if 0.5 <= ratio <= 2.0:
        volume *= np.float32(wanted / mean)
    else:
        logger.warning("the network changed the mean by a factor of %.3g; shifted back, look at the result", ratio)
        volume += np.float32(wanted - mean)
    disagreement = result.disagreement
    if disagreement is not None:
        disagreement *= np.float32(scale.scale)
    return RestoredArray(scale.undo(volume, data.dtype), voxel_out, scale, ratio, disagreement)


def _kept_mean(data: npt.NDArray[Any], resampled: float) -> float:
    """Mean in counts that the result gets: that of the resampled stack, but near that of the raw planes."""
    mean = float(data.mean(dtype=np.float64))
    reach = MEAN_KEPT * abs(mean)
    return min(max(resampled, mean - reach), mean + reach)


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """One tile of one slice: slice `number`, tile `i` along Z and `j` across."""

    source: Float
    target: Float
    depth: Cover
    across: Cover
    i: int
    j: int
    number: int

    def follows(self, other: _Job) -> bool:
        """Whether this is the same tile of the next slice."""
        return (
            self.target is other.target and (self.i, self.j) == (other.i, other.j) and self.number == other.number + 1
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """The same tile of successive slices: `count` jobs from `job` on, at place `slot` of the batch."""

    job: _Job
    slot: int
    count: int

    def gather(self, tiles: Float) -> None:
        """Copy the pixels into ``tiles`` (N, T, T)."""
        job = self.job
        rows, z = job.depth.inside(job.i)
        columns, x = job.across.inside(job.j)
        place = tiles[self.slot : self.slot + self.count]
        # One strided copy of the real pixels; what lies beyond the ends is then reflected within the tile.
        place[:, rows, columns] = job.source[z, job.number : job.number + self.count, x].transpose(1, 0, 2)
        outside, mirrored = job.across.beyond(job.j)
        if outside.size:
            place[:, :, outside] = place[:, :, mirrored]
        outside, mirrored = job.depth.beyond(job.i)
        if outside.size:
            place[:, outside] = place[:, mirrored]

    def add(self, answers: Float) -> None:
        """Add the weighted answers ``(N, T, T)`` to the target."""
        job = self.job
        rows, z = job.depth.inside(job.i)
        columns, x = job.across.inside(job.j)
        weights = job.depth.weights[job.i, rows, None] * job.across.weights[job.j, None, columns]
        answer = answers[self.slot : self.slot + self.count, rows, columns] * weights  # (n, t, t)
        job.target[z, job.number : job.number + self.count, x] += answer.transpose(1, 0, 2)


def _answers(
    batches: Iterator[tuple[list[_Run], int]], ask: Callable[[Float], Future[Float]], slots: Float
) -> Iterator[tuple[list[_Run], Float]]:
    """Cut one batch of tiles, and hand out the answers to the last one, while the network has another."""
    waiting: tuple[list[_Run], Future[Float]] | None = None
    for number, (runs, count) in enumerate(batches):
        tiles = slots[number % 2, :count]
        for run in runs:
            run.gather(tiles[:, 0])
        asked = ask(tiles)
        if waiting is not None:
            yield waiting[0], waiting[1].result()
        waiting = runs, asked
    if waiting is not None:
        yield waiting[0], waiting[1].result()


def _answer(network: Network, tiles: Float) -> Float:
    answers = network(tiles)
    if answers.shape != tiles.shape:
        raise BackendError(f"the network returned shape {answers.shape} for tiles {tiles.shape}")
    return answers


def _batches(jobs: Iterator[_Job], batch: int) -> Iterator[tuple[list[_Run], int]]:
    """Fill batches from one queue, joining successive slices of the same tile into runs."""
    runs: list[_Run] = []
    count = 0
    last: _Job | None = None
    for job in jobs:
        if runs and last is not None and job.follows(last):
            runs[-1] = _Run(runs[-1].job, runs[-1].slot, runs[-1].count + 1)
        else:
            runs.append(_Run(job, count, 1))
        count += 1
        last = job
        if count == batch:
            yield runs, count
            runs, count, last = [], 0, None
    if runs:
        yield runs, count


def _keys(distance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
