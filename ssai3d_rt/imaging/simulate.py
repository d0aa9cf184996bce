"""Simulated samples with known truth, after the article's "Simulation data generation".

Samples are float32 volumes (Z, Y, X) in [0, 1] with isotropic voxels, the same for the same seed. `gaussian_psf_blur`,
`noise` and `acquire` turn them into what a microscope would record.

>>> truth = beads((24, 32, 32), 5, seed=1)
>>> stack = acquire(truth, 4, std_px=(3.0, 0.5, 0.5), seed=1)
>>> stack.data.shape, stack.data.dtype.name, stack.voxel_um
((6, 32, 32), 'uint16', (0.4, 0.1, 0.1))
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ssai3d_rt.imaging.axial import interpolation_matrix
from ssai3d_rt.imaging.stack import Stack

Float = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Shape = tuple[int, int, int]

STANDARD_SHAPE = (96, 96, 96)
"""Voxels of the standard case."""
STANDARD_STD_PX = (4.0, 0.5, 0.5)
"""Blur of the standard case (z, y, x) in pixels: the article's Gaussian, axial 4.0 and lateral 0.5."""
STANDARD_STRANDS = 60
"""Strands of the standard case, a quarter less when flat: blurred against truth about 20 dB PSNR."""


def standard_strands(seed: int = 0, *, flat: bool = False) -> Float:
    """Truth of the standard case: `STANDARD_SHAPE` voxels of strands; blur it with `STANDARD_STD_PX`."""
    count = 3 * STANDARD_STRANDS // 4 if flat else STANDARD_STRANDS
    return strands(STANDARD_SHAPE, count, flat=flat, seed=seed)


def beads(shape: Shape, count: int, *, std_px: float = 2.0, seed: int = 0) -> Float:
    """Gaussian beads at random sub-pixel places, brightness 0.5 to 1, apart from each other where there is room.

    Article: 50 beads of std 2 px in 300^3 voxels.
    """
    rng = np.random.default_rng(seed)
    volume = np.zeros(shape, np.float32)
    reach = math.ceil(4 * std_px)
    size = np.asarray(shape)
    edge = np.minimum(2 * std_px, (size - 1) / 2)
    placed: list[Doubles] = []
    for _ in range(count):
        for _attempt in range(100):
            centre = rng.uniform(edge, size - 1 - edge)
            if all(float(np.linalg.norm(centre - other)) > 8 * std_px for other in placed):
                break
        placed.append(centre)
        window = _window(centre, reach, shape)
        axes = [np.arange(w.start, w.stop) - c for w, c in zip(window, centre, strict=True)]
        z, y, x = (np.exp(-0.5 * (a / std_px) ** 2) for a in axes)
        volume[window] += rng.uniform(0.5, 1.0) * z[:, None, None] * y[:, None] * x
    return np.clip(volume, 0, 1)


def strands(
    shape: Shape,
    count: int,
    *,
    thickness_px: tuple[float, float] = (1.0, 4.0),
    length_px: float = 150.0,
    flat: bool = False,
    seed: int = 0,
) -> Float:
    """Cubic Bezier strands of brightness 1 with anti-aliased borders.

    Parameters
    ----------
    shape
        ``(Z, Y, X)`` voxels.
    count
        Strands; the article has 5,000 of length 1,200 in 300^3.
    thickness_px
        Range of diameters.
    length_px
        About the length of a strand; parts outside the volume are cut off.
    flat
        Each strand lies in one lateral plane: curved laterally, straight and horizontal axially, which is the article's
        case of low lateral-axial similarity. Otherwise strands run in any direction.
    seed
        Same seed, same volume.
    """
    rng = np.random.default_rng(seed)
    volume = np.zeros(shape, np.float32)
    size = np.asarray(shape, np.float64)
    for _ in range(count):
        middle = rng.uniform(0, size - 1)
        heading = _direction(rng, flat=flat)
        turns = np.stack([_direction(rng, flat=flat) for _ in range(4)])
        along = np.linspace(-0.5, 0.5, 4)[:, None] * heading
        control = middle + length_px * (along + 0.25 * turns)
        if flat:
            control[:, 0] = middle[0]
        _draw(volume, _bezier(control), rng.uniform(*thickness_px) / 2, 1.0)
    return volume


def tubes(shape: Shape, count: int, *, thickness_px: float = 4.0, bend_px: float = 6.0, seed: int = 0) -> Float:
    """Rods in random directions, thickness about 4 px, brightness 15,000 to 65,535 of 65,535, elastically deformed.

    The deformation moves the rods' centre lines through a smooth random displacement field of about `bend_px` (the
    article deforms the volume), so that the thickness stays as given.
    """
    rng = np.random.default_rng(seed)
    volume = np.zeros(shape, np.float32)
    size = np.asarray(shape, np.float64)
    waves = rng.normal(0, 1.5 * math.pi / size.max(), (6, 3))
    phases = rng.uniform(0, 2 * math.pi, 6)
    pushes = rng.normal(0, bend_px / math.sqrt(3), (6, 3))
    half = float(np.linalg.norm(size))
    for _ in range(count):
        middle = rng.uniform(0, size - 1)
        line = middle + np.arange(-half, half, 0.5)[:, None] * _direction(rng, flat=False)
        line += np.sin(line @ waves.T + phases) @ pushes
        _draw(volume, line, rng.uniform(0.75, 1.25) * thickness_px / 2, rng.uniform(15000 / 65535, 1.0))
    return volume


def spheres(shape: Shape, count: int, *, radius_px: tuple[float, float] = (4.0, 8.0), seed: int = 0) -> Float:
    """Solid spheres, brightness 0.5 to 1: circles in lateral and in axial planes (high similarity)."""
    return _solids(shape, count, radius_px, seed, cylinder=False)


def cylinders(shape: Shape, count: int, *, radius_px: tuple[float, float] = (4.0, 8.0), seed: int = 0) -> Float:
    """Solid upright cylinders, as high as wide: circles laterally, rectangles axially (low similarity)."""
    return _solids(shape, count, radius_px, seed, cylinder=True)


def gaussian_psf_blur(volume: Float, std_px: tuple[float, float, float], rotation_deg: float = 0.0) -> Float:
    """Convolve with a sampled Gaussian PSF of unit sum; the volume is reflected at its ends.

    Parameters
    ----------
    volume
        ``(Z, Y, X)`` float32.
    std_px
        Standard deviation along (z, y, x) in pixels, 0 or more; 0 leaves that axis as it is.
    rotation_deg
        Tilt of the PSF in the XZ plane, from Z towards X.
    """
    return psf_blur(volume, _gaussian_kernel(std_px, math.radians(rotation_deg)))


def psf_blur(volume: Float, kernel: Doubles) -> Float:
    """Convolve with a PSF; the volume is reflected at its ends.

    Parameters
    ----------
    volume
        ``(Z, Y, X)`` float32.
    kernel
        ``(z, y, x)`` with odd sides, not negative, of unit sum, its centre in the middle.

    Returns
    -------
    float32 of the volume's shape and within its range.
    """
    reach = [side // 2 for side in kernel.shape]
    padded = np.pad(volume, [(r, r) for r in reach], mode="symmetric")
    size = [_fast_length(side) for side in padded.shape]
    axes = (0, 1, 2)
    spectrum = np.fft.rfftn(padded, size, axes) * np.fft.rfftn(kernel, size, axes)
    blurred = np.fft.irfftn(spectrum, size, axes)
    # Full convolution: the pixel that was at `r` in the padded volume is now at `2 r`.
    inside = tuple(slice(2 * r, 2 * r + n) for r, n in zip(reach, volume.shape, strict=True))
    # A mean lies within the range of what is averaged; the transform's rounding does not always.
    return np.clip(np.ascontiguousarray(blurred[inside], np.float32), volume.min(), volume.max())


def noise(volume: Float, photons: float, read_noise: float, seed: int = 0) -> Float:
    """Poisson noise of the photons and Gaussian noise of the camera, in the units of `volume`.

    Parameters
    ----------
    volume
        float32 intensities; below 0 counts as 0.
    photons
        Photons at intensity 1.
    read_noise
        Standard deviation of the camera's noise in photons.
    seed
        Same seed, same noise.
    """
    rng = np.random.default_rng(seed)
    counts = rng.poisson(np.maximum(volume, 0) * photons) + rng.normal(0, read_noise, volume.shape)
    return np.asarray(counts / photons, np.float32)


@dataclass(frozen=True, slots=True)
class Camera:
    """How `acquire` turns intensities into uint16 counts.

    Parameters
    ----------
    photons
        Photons at intensity 1; None for a camera without noise.
    read_noise
        Standard deviation in photons.
    full_scale
        Counts between intensity 0 and 1.
    offset
        Counts at intensity 0.
    """

    photons: float | None = 500.0
    read_noise: float = 2.0
    full_scale: float = 4000.0
    offset: float = 100.0


def acquire(
    volume: Float,
    step: float = 1,
    *,
    std_px: tuple[float, float, float] = STANDARD_STD_PX,
    camera: Camera | None = None,
    pixel_um: float = 0.1,
    seed: int = 0,
    rotation_deg: float = 0.0,
) -> Stack:
    """Record a z-stack of a sample: blur, every `step`-th plane, noise, uint16.

    Parameters
    ----------
    volume
        ``(Z, Y, X)`` float32 in [0, 1], isotropic voxels.
    step
        Plane spacing in pixels; planes between pixels are interpolated.
    std_px, rotation_deg
        See `gaussian_psf_blur`.
    camera
        Noise and scale; `Camera()` when None.
    pixel_um
        Lateral pixel size; the voxel's z is ``step * pixel_um``.
    seed
        Seed of the noise.
    """
    return record(gaussian_psf_blur(volume, std_px, rotation_deg), step, camera=camera, pixel_um=pixel_um, seed=seed)


def record(
    blurred: Float, step: float = 1, *, camera: Camera | None = None, pixel_um: float = 0.1, seed: int = 0
) -> Stack:
    """Record a z-stack of what the optics show: every `step`-th plane, noise, uint16; see `acquire`.

    Parameters
    ----------
    blurred
        ``(Z, Y, X)`` float32 in [0, 1], isotropic voxels, blurred already.
    step, camera, pixel_um, seed
        See `acquire`.
    """
    camera = camera or Camera()
    rows = interpolation_matrix(blurred.shape[0], 1 / step)
    planes = (rows @ blurred.reshape(blurred.shape[0], -1)).reshape(-1, *blurred.shape[1:])
    if camera.photons is not None:
        planes = noise(planes, camera.photons, camera.read_noise, seed)
    counts = np.clip(np.rint(planes * camera.full_scale + camera.offset), 0, 65535).astype(np.uint16)
    return Stack(counts, (round(step * pixel_um, 9), pixel_um, pixel_um))


def _direction(rng: np.random.Generator, *, flat: bool) -> Doubles:
    """Return a random unit vector (z, y, x), in the lateral plane if `flat`."""
    vector = rng.normal(size=3)
    if flat:
        vector[0] = 0
    return np.asarray(vector / np.linalg.norm(vector))


def _bezier(control: Doubles) -> Doubles:
    """``(n, 3)`` points of the cubic Bezier curve with ``(4, 3)`` control points, about half a pixel apart."""
    bound = float(np.linalg.norm(np.diff(control, axis=0), axis=1).sum())
    t = np.linspace(0, 1, max(2, math.ceil(2 * bound)))[:, None]
    basis = np.hstack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])
    return np.asarray(basis @ control)


def _draw(volume: Float, points: Doubles, radius: float, brightness: float) -> None:
    """Sweep an anti-aliased ball along `points`; the brighter of new and old stays."""
    size = np.asarray(volume.shape)
    reach = math.ceil(radius + 0.5)
    points = points[np.all((points > -reach) & (points < size - 1 + reach), axis=1)]
    if not len(points):
        return
    side = np.arange(-reach, reach + 1)
    box = np.stack(np.meshgrid(side, side, side, indexing="ij"), axis=-1).reshape(-1, 3)
    nearest = np.rint(points).astype(np.intp)
    places = nearest[:, None] + box  # (points, box, 3)
    distance = np.linalg.norm(places - points[:, None], axis=-1)
    cover = np.clip(radius + 0.5 - distance, 0, 1) * min(1.0, 2 * radius)
    keep = (cover > 0) & np.all((places >= 0) & (places < size), axis=-1)
    index = np.ravel_multi_index(tuple(places[keep].T), volume.shape)
    np.maximum.at(volume.reshape(-1), index, (brightness * cover[keep]).astype(np.float32))


def _solids(shape: Shape, count: int, radius_px: tuple[float, float], seed: int, *, cylinder: bool) -> Float:
    rng = np.random.default_rng(seed)
    volume = np.zeros(shape, np.float32)
    size = np.asarray(shape, np.float64)
    for _ in range(count):
        radius = rng.uniform(*radius_px)
        centre = rng.uniform(0, size - 1)
        brightness = rng.uniform(0.5, 1.0)
        window = _window(centre, math.ceil(radius + 1), shape)
        z, y, x = np.ix_(*(np.arange(w.start, w.stop) - c for w, c in zip(window, centre, strict=True)))
        if cylinder:
            cover = np.clip(radius + 0.5 - np.hypot(y, x), 0, 1) * np.clip(radius + 0.5 - np.abs(z), 0, 1)
        else:
            cover = np.clip(radius + 0.5 - np.sqrt(z**2 + y**2 + x**2), 0, 1)
        volume[window] = np.maximum(volume[window], brightness * cover)
    return volume


def _window(centre: Doubles, reach: int, shape: Shape) -> tuple[slice, slice, slice]:
    low = [max(0, round(float(c)) - reach) for c in centre]
    high = [min(n, round(float(c)) + reach + 1) for c, n in zip(centre, shape, strict=True)]
    z, y, x = (slice(a, max(a, b)) for a, b in zip(low, high, strict=True))
    return z, y, x


def _gaussian_kernel(std_px: tuple[float, float, float], tilt: float) -> Doubles:
    """Odd-sized (Z, Y, X) kernel of unit sum, cut at four standard deviations."""
    std = np.asarray(std_px, np.float64)
    if not (np.isfinite(std).all() and (std >= 0).all()):
        raise ValueError(f"standard deviations must be 0 or more, got {std_px}")
    cos, sin = math.cos(tilt), math.sin(tilt)
    rotation = np.array([[cos, 0.0, -sin], [0.0, 1.0, 0.0], [sin, 0.0, cos]])
    covariance = rotation @ np.diag(std**2) @ rotation.T
    reach = [math.ceil(4 * math.sqrt(covariance[i, i])) for i in range(3)]
    grid = np.stack(np.meshgrid(*(np.arange(-r, r + 1) for r in reach), indexing="ij"), axis=-1)
    # An axis without blur has variance 0: there the kernel is one pixel wide and the tiny number changes nothing.
    precision = np.linalg.inv(covariance + 1e-6 * np.eye(3))
    kernel = np.exp(-0.5 * np.einsum("...i,ij,...j", grid, precision, grid))
    return np.asarray(kernel / kernel.sum())


def _fast_length(length: int) -> int:
    """Return the next length that has no prime factor above 5."""
    while True:
        rest = length
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return length
        length += 1
