"""The trust map: how far a restored stack is probably off, voxel by voxel, without knowing the truth.

Two signs of a wrong restoration are added up: where the views along X and along Y disagree, and where the network does
not find the restored volume again when it is shown what the microscope would have seen of it (`seen_again`). Their
weights (`WEIGHTS`) are fixed; ``benchmarks/trust.py --fit`` finds them on simulated stacks, so that the map is the
absolute error to expect as a fraction of the stack's intensity range: 0.1 means that a tenth of the range is the likely
error. It is never less than what the restored volume, blurred along Z, leaves unexplained of the raw planes: a blurred
error is smaller than the error. How much blur there was is fitted, as no profile of the microscope is needed for a
restoration. It does not know networks.

What it cannot see: an error that both views share, that is as sharp as the raw planes allow, and that the network makes
again and again.

>>> import numpy as np
>>> from ssai3d_rt.imaging.stack import Stack
>>> truth = np.zeros((9, 8, 8), np.float32)
>>> truth[4, 4, 4] = 1.0
>>> raw = Stack(blurred_planes(truth, 2, 2.0, 1.0), voxel_um=(0.2, 0.1, 0.1))
>>> good = unexplained(raw.data, truth, 2.0)
>>> bad = unexplained(raw.data, np.roll(truth, 3, axis=2), 2.0)
>>> bool(good.max() < 0.2 * bad.max())
True
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ssai3d_rt.calibration.noise import measure_intensity, measure_noise
from ssai3d_rt.imaging.axial import resample_z
from ssai3d_rt.imaging.reblur import blurred_planes, fitted_blur_px

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ssai3d_rt.imaging.normalise import Normalisation
    from ssai3d_rt.imaging.stack import Stack

Float = npt.NDArray[np.float32]

WEIGHTS = {"disagreement": 1.31, "instability": 0.56}
"""What each sign counts; found by ``benchmarks/trust.py --fit``."""

SMOOTH_PX = 0.7
"""Standard deviation of the average along all axes that steadies the map."""

NOISE_PX = 1.5
"""Standard deviation of the lateral average that keeps the raw stack's noise out of the map."""

DOUBTFUL_ERROR = 0.1
"""A voxel is doubtful where the map is above this fraction of the intensity range."""
VISIBLE = 0.1
"""Only voxels above this fraction of the range, raw or restored, count: empty background is never in doubt."""
MUCH_DOUBT = 0.35
"""Share of doubtful voxels among the visible ones that deserves a warning; the base network stays below (0.13 to 0.31
in ``benchmarks/trust.py``)."""


def seen_again(raw: Stack, restored: Float, scale: Normalisation) -> Float:
    """Give what the microscope would have seen if the restored volume were the truth.

    A network that is right about this kind of sample restores it to the same volume again; where it does not, it would
    not have found the truth either (the parametric bootstrap: B. Efron, R. Tibshirani, 1993, chapter 6.5).

    Parameters
    ----------
    raw
        The stack as acquired; gives the planes, the blur and the noise.
    restored
        ``(Zi, Y, X)`` float32 counts, isotropic.
    scale
        The normalisation of the restoration.

    Returns
    -------
    ``(Z, Y, X)`` float32 counts, with noise like the raw stack's; the same at every call.
    """
    volume = scale.apply(restored)
    std_px = fitted_blur_px(scale.apply(raw.data), volume, raw.anisotropy, finely=True)
    planes = blurred_planes(volume, raw.data.shape[0], raw.anisotropy, std_px)
    del volume
    noise = measure_noise(raw.data, measure_intensity(raw.data))
    rng = np.random.default_rng(0)
    for plane in planes:
        plane *= np.float32(scale.scale)
        plane += np.float32(scale.offset)
        std = np.sqrt(noise.gain * np.maximum(plane - noise.background, 0) + noise.read**2).astype(np.float32)
        plane += std * rng.standard_normal(plane.shape, np.float32)
    return planes


def trust_map(
    raw: Stack, restored: Float, disagreement: Float, scale: Normalisation, *, again: Float | None = None
) -> Float:
    """Predict the absolute error of a restored stack.

    Parameters
    ----------
    raw
        The stack as acquired.
    restored
        ``(Zi, Y, X)`` float32 counts, isotropic.
    disagreement
        ``(Zi, Y, X)`` float32 counts, half the difference of the two views.
    scale
        The normalisation of the restoration.
    again
        ``(Zi, Y, X)`` float32, normalised: what the network made of `seen_again`; without it the map is the worse.

    Returns
    -------
    ``(Zi, Y, X)`` float32, not negative, in fractions of the normalised range.
    """
    doubt = np.zeros(restored.shape, np.float32)
    for name, sign in signs(restored, disagreement, scale, again=again):
        sign *= np.float32(WEIGHTS[name])
        doubt += sign
    doubt = smoothed(doubt, (0, 1, 2), SMOOTH_PX)
    return np.maximum(doubt, unexplained(scale.apply(raw.data), scale.apply(restored), raw.anisotropy), out=doubt)


def signs(
    restored: Float, disagreement: Float, scale: Normalisation, *, again: Float | None = None
) -> Iterator[tuple[str, Float]]:
    """Yield each sign of an error, one after the other, so that they need not all be in memory.

    Parameters
    ----------
    restored, disagreement, scale, again
        See `trust_map`.

    Yields
    ------
    Name, as in `WEIGHTS` (no ``instability`` without `again`); ``(Zi, Y, X)`` float32, not negative, in fractions of
    the normalised range, a new array.
    """
    yield "disagreement", disagreement * np.float32(1 / scale.scale)
    if again is not None:
        instability = again - scale.apply(restored)
        yield "instability", np.abs(instability, out=instability)


def doubtful_share(trust: Float, raw: Stack, restored: npt.NDArray[Any], scale: Normalisation) -> float:
    """Return the share of doubtful voxels among the visible ones, 0 to 1; 0 where nothing is visible.

    Parameters
    ----------
    trust
        ``(Zi, Y, X)`` from `trust_map`.
    raw, restored, scale
        See `trust_map`.
    """
    shown = resample_z(scale.apply(raw.data), raw.anisotropy)
    np.maximum(shown, scale.apply(restored), out=shown)
    visible = shown > VISIBLE
    count = int(np.count_nonzero(visible))
    return float(np.count_nonzero(visible & (trust > DOUBTFUL_ERROR))) / count if count else 0.0


def doubt_warning(share: float) -> str | None:
    """Return the sentence for a stack of which a large share is doubtful, else None."""
    if share <= MUCH_DOUBT:
        return None
    return (
        f"{share:.0%} of what is visible is doubtful (likely error above {DOUBTFUL_ERROR:.0%} of the intensity range): "
        "look at the trust map, and compare with the raw stack before you draw conclusions"
    )


def unexplained(raw: Float, restored: Float, anisotropy: float) -> Float:
    """Blur the restored volume along Z so that it fits the raw planes best, and return what differs nevertheless.

    Parameters
    ----------
    raw
        ``(Z, Y, X)`` float32.
    restored
        ``(Zi, Y, X)`` float32 on the same scale.
    anisotropy
        Plane spacing over pixel size.

    Returns
    -------
    ``(Zi, Y, X)`` float32, not negative: absolute difference, averaged laterally, interpolated between the planes.
    """
    planes = raw.shape[0]
    std_px = fitted_blur_px(raw, restored, anisotropy, finely=True)
    difference = blurred_planes(restored, planes, anisotropy, std_px)
    np.subtract(raw, difference, out=difference)
    difference = smoothed(difference, (1, 2), NOISE_PX)
    np.abs(difference, out=difference)
    between = _linear_matrix(planes, restored.shape[0], anisotropy)
    result: Float = (between @ difference.reshape(planes, -1)).reshape(restored.shape)
    return result


def smoothed(volume: Float, axes: tuple[int, ...], std_px: float) -> Float:
    """Average with a Gaussian along some axes, the ends repeated; one copy more than the input at a time."""
    kernel = _gaussian(std_px)
    reach = len(kernel) // 2
    for axis in axes:
        padding = [(reach, reach) if a == axis else (0, 0) for a in range(volume.ndim)]
        padded = np.pad(volume, padding, mode="edge")
        volume = np.zeros_like(volume)
        for shift, weight in enumerate(kernel):
            volume += weight * padded[(slice(None),) * axis + (slice(shift, shift + volume.shape[axis]),)]
    return volume


def _linear_matrix(planes: int, depth: int, anisotropy: float) -> Float:
    """``(depth, planes)`` weights of linear interpolation between planes; the end planes are repeated."""
    distance = np.abs(np.minimum(np.arange(depth) / anisotropy, planes - 1)[:, None] - np.arange(planes)[None])
    matrix: Float = np.maximum(0, 1 - distance).astype(np.float32)
    return matrix


def _gaussian(std_px: float) -> Float:
    reach = math.ceil(3 * std_px)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / std_px) ** 2)
    kernel: Float = (weights / weights.sum()).astype(np.float32)
    return kernel
