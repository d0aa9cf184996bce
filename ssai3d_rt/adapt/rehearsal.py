"""Rehearsal: synthetic sharp images that keep fine-tuning honest.

A stack's own planes are never quite sharp, and the planes that the base network restored are what that network already
believes. Synthetic images (see `ssai3d_rt.network.deadleaves`) are sharp beyond doubt. Blurred and sampled as this rig
does it, they keep the network from forgetting, teach it this rig's blur rather than every blur, and help to judge it.

>>> planes = rehearsal_planes(2, side=64, blur_px=4.0, seed=0)
>>> planes.shape, planes.dtype.name
((2, 64, 64), 'float32')
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ssai3d_rt.network.deadleaves import sharp_image
from ssai3d_rt.network.degrade import Degradation, degrade
from ssai3d_rt.progress import Progress, silent

if TYPE_CHECKING:
    import torch

SEEDS_FROM = 10_000_000
"""Seeds beyond those that pre-training draws from."""


def rehearsal_planes(
    count: int, *, side: int, blur_px: float, seed: int, progress: Progress = silent
) -> npt.NDArray[np.float32]:
    """Draw sharp images and scale each as a stack is: what is brightest once blurred lies about 1.

    Parameters
    ----------
    count, side
        Images, and their side in px.
    blur_px
        Typical std of the blur along Z in px.
    seed
        Fixes the images.
    progress
        Told the images drawn.

    Returns
    -------
    ``(count, side, side)`` float32, background about 0.
    """
    rng = np.random.default_rng([seed, 3])
    planes = np.empty((count, side, side), np.float32)
    way = [Degradation(along_px=blur_px)]
    for number in range(count):
        sharp = sharp_image(SEEDS_FROM + seed * 1_000_003 + number, side)
        blurred = degrade(_tensor(sharp[None]), way, seed=0)[0].numpy()
        low, high = np.quantile(blurred, (0.01, 0.999))
        planes[number] = (sharp - low) / max((high - low) * rng.uniform(0.9, 2.0), 0.02)
        progress("draw images to rehearse on", number + 1, count)
    return planes


def _tensor(image: npt.NDArray[np.float32]) -> torch.Tensor:
    import torch

    return torch.from_numpy(image)
