"""Sharp synthetic images to pre-train on: dead leaves, fibres, cells and spots, drawn from nothing but a seed.

Dead-leaves images (opaque shapes with power-law sizes, one over the other) share the edge statistics of natural
images and suffice to train restoration networks (Achddou et al., "Synthetic images as a regularity prior for image
restoration neural networks", 2021). Here they are mixed with pictures that look like sections through fluorescent
samples: dark ground, fibres cut at any angle, membranes, filled bodies and spots. It does not know about blur or
noise: see `pretrain`.

>>> image = sharp_image(seed=7, side=64)
>>> image.shape, image.dtype.name, bool(image.min() >= 0), bool(image.max() <= 1)
((64, 64), 'float32', True, True)
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Rng = np.random.Generator


def power_law(rng: Rng, low: float, high: float, exponent: float = 3.0) -> float:
    """Draw a size in [low, high] px with density proportional to size ** -exponent."""
    k = 1.0 - exponent
    u = rng.random()
    return float((low**k + u * (high**k - low**k)) ** (1.0 / k))


def smooth_noise(rng: Rng, side: int, scale_px: float) -> F32:
    """Gaussian noise low-passed to details of about `scale_px`, scaled to [0, 1]; ``(side, side)`` float32."""
    f = np.fft.rfft2(rng.standard_normal((side, side)))
    fy, fx = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]
    stretch = rng.uniform(0.3, 1.0)
    angle = rng.uniform(0, np.pi)
    u = fy * np.cos(angle) + fx * np.sin(angle)
    v = (fx * np.cos(angle) - fy * np.sin(angle)) * stretch
    field = np.fft.irfft2(f * np.exp(-2 * (np.pi * scale_px / 2.355) ** 2 * (u * u + v * v)), s=(side, side))
    field -= field.min()
    return np.asarray(field / max(field.max(), 1e-9), np.float32)


def texture(rng: Rng, side: int) -> F32:
    """Fill a texture around 1: a grating, two scales of noise, or a ramp; ``(side, side)`` float32."""
    kind = rng.integers(4)
    if kind == 0:
        angle, period = rng.uniform(0, np.pi), rng.uniform(3, 24)
        y, x = np.mgrid[:side, :side]
        wave = np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period + rng.uniform(0, 6.3))
        if rng.random() < 0.5:
            wave = np.clip(wave * 3, -1, 1)
        return np.asarray(1 + rng.uniform(0.05, 0.5) * wave, np.float32)
    if kind == 1:
        return 0.5 + smooth_noise(rng, side, rng.uniform(1.5, 5))
    if kind == 2:
        return (
            0.4 + 0.6 * smooth_noise(rng, side, rng.uniform(2, 6)) + 0.6 * smooth_noise(rng, side, rng.uniform(8, 40))
        )
    return 0.6 + 0.8 * smooth_noise(rng, side, rng.uniform(30, 90))


def window_of(x: float, y: float, reach: float, side: int) -> tuple[slice, slice] | None:
    """Rows and columns within `reach` px of a point, or None when outside the image."""
    y0, y1 = max(int(y - reach - 2), 0), min(int(y + reach + 3), side)
    x0, x1 = max(int(x - reach - 2), 0), min(int(x + reach + 3), side)
    return (slice(y0, y1), slice(x0, x1)) if y0 < y1 and x0 < x1 else None


def leaf_distance(rng: Rng, radius: float, dy: F64, dx: F64) -> F64:
    """Signed distance in px (negative inside) to a disk, an ellipse, a convex polygon or a bar about the origin."""
    kind = rng.integers(4)
    angle = rng.uniform(0, np.pi)
    u, v = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
    if kind == 0:
        return np.asarray(np.hypot(dx, dy) - radius)
    if kind == 1:
        short = radius * rng.uniform(0.2, 0.9)
        k = np.hypot(u / radius, v / short)
        slope = np.hypot(u / radius**2, v / short**2)
        return np.where(k < 1e-6, -short, k * (k - 1) / np.maximum(slope, 1e-9))
    if kind == 2:
        corners = int(rng.integers(3, 8))
        turns = (
            np.sort(rng.uniform(0, 2 * np.pi, corners))
            if rng.random() < 0.5
            else np.arange(corners) * 2 * np.pi / corners
        )
        d = np.full(dx.shape, -1e9)
        for t in turns:
            d = np.maximum(d, u * np.cos(t) + v * np.sin(t) - radius * 0.8)
        return np.asarray(np.maximum(d, np.hypot(dx, dy) - radius * 1.2))
    thin = max(radius * rng.uniform(0.03, 0.3), 0.5)
    return np.asarray(np.maximum(np.abs(u) - radius, np.abs(v) - thin))


def cover(distance: F64) -> F32:
    """Fraction of each pixel that a shape covers, from the signed distance to its edge."""
    return np.asarray(np.clip(0.5 - distance, 0, 1), np.float32)


def dead_leaves(rng: Rng, side: int) -> F32:
    """Opaque shapes over one another until the image is full; natural contrast; ``(side, side)`` float32 in [0, 1]."""
    image = smooth_noise(rng, side, 40) * rng.uniform(0.1, 0.6)
    exponent, largest = rng.uniform(2.0, 3.2), rng.uniform(0.1, 0.45) * side
    fills = [texture(rng, side) for _ in range(3)]
    gamma = rng.uniform(0.6, 2.5)
    for _ in range(int(rng.integers(150, 700))):
        radius = power_law(rng, rng.uniform(1.0, 3.0), largest, exponent)
        x, y = rng.uniform(-0.1 * side, 1.1 * side, 2)
        if (box := window_of(x, y, 1.3 * radius, side)) is None:
            continue
        yy, xx = np.mgrid[box]
        alpha = cover(leaf_distance(rng, radius, yy - y, xx - x))
        value = np.float32(rng.random() ** gamma)
        fill = value * fills[rng.integers(3)][box] if rng.random() < 0.4 else value
        image[box] += alpha * (fill - image[box])
    return np.asarray(np.clip(image, 0, 1), np.float32)


def stamp(image: F32, x: F64, y: F64, radius: F64, value: F64) -> None:
    """Draw filled dots, the brighter winning; `x`, `y`, `radius` in px, `value` in [0, 1], all ``(N,)``."""
    side = image.shape[0]
    reach = int(np.ceil(radius.max())) + 1 if len(radius) else 0
    oy, ox = (o.ravel() for o in np.mgrid[-reach : reach + 1, -reach : reach + 1])
    px, py = np.floor(x).astype(int)[:, None] + ox, np.floor(y).astype(int)[:, None] + oy
    alpha = np.clip(0.5 + radius[:, None] - np.hypot(px - x[:, None], py - y[:, None]), 0, 1) * value[:, None]
    inside = (px >= 0) & (px < side) & (py >= 0) & (py < side) & (alpha > 0)
    np.maximum.at(image, (py[inside], px[inside]), alpha[inside].astype(np.float32))


def fibre_points(rng: Rng, side: int, length: float, bend: float) -> tuple[F64, F64, F64]:
    """Sample a random smooth curve in 3D every half pixel: x, y in the image and depth out of it, each ``(N,)`` px."""
    knots = int(rng.integers(2, 6))
    direction = rng.standard_normal(3)
    direction /= np.linalg.norm(direction)
    start = rng.uniform(-0.2 * side, 1.2 * side, 3)
    start[2] = rng.uniform(-0.5, 0.5) * length
    steps = direction * length / knots + bend * length / knots * rng.standard_normal((knots, 3))
    nodes = np.vstack([start, start + np.cumsum(steps, 0)])
    t = np.linspace(0, 1, max(int(2 * length), 8))[:, None]
    points = np.zeros((len(t), 3))
    degree = len(nodes) - 1
    binomial = 1.0
    for i, node in enumerate(nodes):  # Bezier curve in Bernstein form
        points += binomial * t**i * (1 - t) ** (degree - i) * node
        binomial = binomial * (degree - i) / (i + 1)
    return points[:, 0], points[:, 1], points[:, 2]


def fibres(rng: Rng, side: int) -> F32:
    """Section through fibres that run in any direction: dots, ovals and lines; ``(side, side)`` float32 in [0, 1]."""
    image = np.zeros((side, side), np.float32)
    flat = rng.random() < 0.35  # fibres lying in the plane of the image: long lines
    binary = rng.random() < 0.5
    thickness = rng.uniform(0.6, 3.5)
    length = rng.uniform(0.2, 1.5) * side
    count = int(rng.uniform(5, 60) if flat else rng.uniform(50, 900) * (128.0 / length) ** 0.5)
    for _ in range(count):
        x, y, depth = fibre_points(rng, side, length, rng.uniform(0, 0.8))
        depth = depth * 0 if flat else depth
        r = thickness * (1 if binary else rng.uniform(0.6, 1.4))
        keep = np.abs(depth) < r + 0.5
        if not keep.any():
            continue
        near = np.clip(r + 0.5 - np.abs(depth[keep]), 0, 1)
        radius = np.sqrt(np.maximum(r * r - depth[keep] ** 2, 0.01))
        value = near * (1.0 if binary else rng.uniform(0.15, 1))
        stamp(image, x[keep], y[keep], radius, value)
    return image


def bodies(rng: Rng, side: int) -> F32:
    """Cells on dark ground: filled bodies, rings and granules; ``(side, side)`` float32 in [0, 1]."""
    image = np.zeros((side, side), np.float32)
    largest = rng.uniform(0.04, 0.3) * side
    fills = [texture(rng, side) for _ in range(2)]
    hollow, textured = rng.random(), rng.random()
    overlap_adds = rng.random() < 0.3
    for _ in range(int(rng.integers(4, 160))):
        radius = power_law(rng, 2.0, largest, rng.uniform(1.2, 2.5))
        x, y = rng.uniform(0, side, 2)
        if (box := window_of(x, y, 1.3 * radius, side)) is None:
            continue
        yy, xx = np.mgrid[box]
        d = leaf_distance(rng, radius, yy - y, xx - x)
        shape = cover(np.abs(d) - rng.uniform(0.5, 2.5)) if rng.random() < hollow else cover(d)
        value = shape * np.float32(rng.uniform(0.1, 1))
        if rng.random() < textured:
            value = value * fills[rng.integers(2)][box]
        image[box] = image[box] + value if overlap_adds else np.maximum(image[box], value)
    return np.asarray(np.clip(image / max(1.0, float(image.max())), 0, 1), np.float32)


def spots(rng: Rng, side: int) -> F32:
    """Bright spots of one or of mixed sizes on dark ground; ``(side, side)`` float32 in [0, 1]."""
    image = np.zeros((side, side), np.float32)
    count = int(10 ** rng.uniform(0.7, 3.0))
    size, spread = rng.uniform(0.6, 3.0), rng.choice([0.0, 0.5])
    gaussian = rng.random() < 0.6
    for _ in range(count):
        x, y = rng.uniform(0, side, 2)
        s = size * np.exp(spread * rng.standard_normal())
        if (box := window_of(x, y, 4 * s, side)) is None:
            continue
        yy, xx = np.mgrid[box]
        r = np.hypot(yy - y, xx - x)
        shape = np.exp(-0.5 * (r / s) ** 2) if gaussian else cover(r - s)
        image[box] += (shape * rng.uniform(0.2, 1)).astype(np.float32)
    return np.asarray(np.clip(image / max(1.0, float(image.max())), 0, 1), np.float32)


KINDS = (dead_leaves, fibres, bodies, spots)
SHARES = (0.3, 0.4, 0.2, 0.1)
"""How often each of `KINDS` is drawn."""


def sharp_image(seed: int, side: int = 256) -> F32:
    """Draw one sharp image.

    Parameters
    ----------
    seed
        The same seed gives the same image.
    side
        Rows and columns in px.

    Returns
    -------
    ``(side, side)`` float32 in [0, 1].
    """
    rng = np.random.default_rng([20251, seed])
    image = KINDS[rng.choice(len(KINDS), p=SHARES)](rng, side)
    if rng.random() < 0.35:  # two samples in one picture, as in a mixed or crowded field
        other = KINDS[rng.choice(len(KINDS), p=SHARES)](rng, side)
        image = np.maximum(image, other * np.float32(rng.uniform(0.2, 1)))
    if rng.random() < 0.3:  # uneven label or illumination
        image = image * (0.3 + 0.7 * smooth_noise(rng, side, rng.uniform(20, 120)))
    if rng.random() < 0.3:  # out-of-focus ground
        image = image + np.float32(rng.uniform(0.02, 0.4)) * smooth_noise(rng, side, rng.uniform(25, 90))
    return np.asarray(np.clip(image / max(1.0, float(image.max())), 0, 1), np.float32)


def pool_image(job: tuple[int, int]) -> F32:
    """Draw the image of a (seed, side), rounded to half precision; one argument, as pools of processes want."""
    return np.asarray(sharp_image(*job).astype(np.float16), np.float32)
