"""What methods that train a network from scratch have in common: planes to learn from, and random weights.

>>> import numpy as np
>>> from ssai3d_rt.imaging.stack import Stack
>>> stack = Stack(np.random.default_rng(0).integers(0, 99, (6, 40, 32), np.uint16), (0.4, 0.1, 0.1))
>>> training_planes(stack).shape
(6, 40, 32)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ssai3d_rt.adapt.finetune import MIN_PLANES
from ssai3d_rt.errors import InputError
from ssai3d_rt.imaging.fourier import richest_window
from ssai3d_rt.imaging.normalise import Normalisation
from ssai3d_rt.network.nafnet import NAFNet, NAFNetShape

if TYPE_CHECKING:
    from ssai3d_rt.imaging.stack import Stack

Float = npt.NDArray[np.float32]

MIN_SIDE_PX = 16
"""Narrower planes than this are refused, as by fine-tuning."""


def training_planes(stack: Stack) -> Float:
    """Return the planes that training looks at: ``(Z, Y, X)`` float32, normalised; a wide stack's richest window.

    Raises
    ------
    InputError
        Too few or too small planes, or a constant stack.
    """
    where = stack.source or "the stack"
    if stack.data.shape[0] < MIN_PLANES or min(stack.data.shape[1:]) < MIN_SIDE_PX:
        raise InputError(
            f"{where} has shape {stack.data.shape}; training needs at least {MIN_PLANES} planes of "
            f"{MIN_SIDE_PX} x {MIN_SIDE_PX} px"
        )
    if stack.data.min() == stack.data.max():
        raise InputError(f"{where} is constant; train on a stack that shows the sample")
    return Normalisation.of(stack.data).apply(richest_window(stack.data))


def random_network(shape: NAFNetShape, seed: int) -> NAFNet:
    """Make a network with random weights, the same for the same seed; torch's own random state stays as it was."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NAFNet(shape)
