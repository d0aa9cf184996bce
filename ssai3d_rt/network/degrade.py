"""What a microscope does to an axial slice: blur along one direction, take planes, add noise, and we interpolate back.

The forward model behind every training pair, on synthetic images and on a user's lateral planes alike. Weak physics on
purpose (article, Methods): it states that a microscope low-passes along one axis, not exactly how. Rows are Z.

>>> still = Degradation(along_px=3.0)
>>> still.step, still.photons
(1.0, inf)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ssai3d_rt.imaging.axial import interpolation_matrix

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Degradation:
    """One way in which a sharp slice becomes an axial slice.

    Parameters
    ----------
    along_px, across_px
        Gaussian std along and across the blurred direction, in px.
    angle_rad
        Direction of the blur, away from Z (rows).
    step
        Distance between acquired planes in px, at least 1; `phase` in [0, 1) is the first plane's place.
    photons
        Photons per voxel at intensity 1, infinite for no noise; `read` is the read noise's std at intensity 1.
    """

    along_px: float
    across_px: float = 0.0
    angle_rad: float = 0.0
    step: float = 1.0
    phase: float = 0.0
    photons: float = math.inf
    read: float = 0.0


def degrade(sharp: torch.Tensor, ways: list[Degradation], seed: int) -> torch.Tensor:
    """Turn sharp slices into axial slices: blur, take planes, add noise, interpolate back.

    Parameters
    ----------
    sharp
        ``(N, H, W)`` float32 in [0, 1]; rows are Z. The blur wraps around, so a margin of about 3 x 8 px is lost.
    ways
        One `Degradation` per image.
    seed
        Fixes the noise.

    Returns
    -------
    ``(N, H, W)`` float32, same scale.
    """
    import torch

    _n, h, w = sharp.shape
    device = sharp.device
    fy = torch.fft.fftfreq(h, device=device)[None, :, None]
    fx = torch.fft.rfftfreq(w, device=device)[None, None]

    def column(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device)[:, None, None]

    cos, sin = column([math.cos(d.angle_rad) for d in ways]), column([math.sin(d.angle_rad) for d in ways])
    u, v = fy * cos + fx * sin, fx * cos - fy * sin
    along, across = column([d.along_px for d in ways]), column([d.across_px for d in ways])
    otf = torch.exp(-2 * math.pi**2 * ((along * u) ** 2 + (across * v) ** 2))
    blurred = torch.fft.irfft2(torch.fft.rfft2(sharp) * otf, s=(h, w))
    generator = torch.Generator().manual_seed(seed)
    out = torch.empty_like(blurred)
    for i, way in enumerate(ways):
        planes = blurred[i]
        first = way.phase * (way.step - 1)
        count = int((h - 1 - first) / way.step) + 1
        if way.step > 1:
            at = first + way.step * np.arange(count)
            below = np.floor(at).astype(int)
            part = torch.tensor(at - below, dtype=torch.float32, device=device)[:, None]
            above = np.minimum(below + 1, h - 1)
            planes = planes[below] * (1 - part) + planes[above] * part
        if math.isfinite(way.photons):
            lit = planes.clamp_min(0).cpu() * way.photons
            planes = (torch.poisson(lit, generator=generator) / way.photons).to(device)
        if way.read > 0:
            planes = planes + way.read * torch.randn(planes.shape, generator=generator).to(device)
        if way.step > 1:
            up = torch.from_numpy(interpolation_matrix(count, way.step)).to(device)
            planes = torch.nn.functional.pad(
                (up @ planes)[None, None], (0, 0, round(first), max(h - round(first) - len(up), 0)), mode="replicate"
            )[0, 0, :h]
        out[i] = planes
    return out
