"""What to bench where nothing is given: a simulated stack, and bundles of networks as they are, not fine-tuned.

>>> simulated_stack((5, 20, 24), 4).data.shape
(5, 20, 24)
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ssai3d_rt.adapt.model import AdaptedModel, ModelRecord
from ssai3d_rt.errors import MissingPackageError
from ssai3d_rt.imaging.axial import resample_z
from ssai3d_rt.imaging.normalise import Normalisation
from ssai3d_rt.imaging.simulate import acquire, strands
from ssai3d_rt.network.nafnet import NAFNet, NAFNetShape, shape_of
from ssai3d_rt.network.weights import State, state_from

if TYPE_CHECKING:
    from ssai3d_rt.imaging.stack import Stack

PUBLISHED = NAFNetShape(width=64, enc=(1, 1, 1, 28), middle=1, dec=(1, 1, 1, 1))
"""Hyperparameters of NAFNet-REDS-width64 on one channel."""

VOXELS_PER_STRAND = 20_000
SAMPLES = 8


def simulated_stack(shape: tuple[int, int, int], anisotropy: float, seed: int = 0) -> Stack:
    """Record strands, blurred along Z, with photon noise.

    Parameters
    ----------
    shape
        ``(Z, Y, X)`` of the stack.
    anisotropy
        Plane spacing over lateral pixel, at least 1.
    seed
        Same seed, same stack.

    Returns
    -------
    uint16.
    """
    planes, rows, columns = shape
    deep = (math.ceil((planes - 1) * anisotropy - 1e-6) + 1, rows, columns)
    sample = strands(deep, 10 + math.prod(deep) // VOXELS_PER_STRAND, seed=seed)
    return acquire(sample, anisotropy, seed=seed)


def random_state(shape: NAFNetShape = PUBLISHED, *, strength: float = 0.05, seed: int = 0) -> State:
    """Draw random weights for every layer; `strength` is how much the network changes its input.

    Raises
    ------
    MissingPackageError
        torch is not installed.
    """
    try:
        import torch
    except ImportError:
        raise MissingPackageError("torch", extra="train") from None
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        network = NAFNet(shape)
        for name, parameter in network.named_parameters():
            if ".norm" in name or name.endswith(("beta", "gamma")):
                parameter.add_(0.3 * torch.randn_like(parameter))
        network.ending.weight.mul_(strength)
        network.get_parameter("ending.bias").zero_()
    return state_from(network)


def untuned_model(state: State, stack: Stack, *, base: str, train_px: int | None = None) -> AdaptedModel:
    """Take a network as it is for an adapted model, to export it; its golden tiles are cut from the stack.

    Parameters
    ----------
    state
        Weights of one image channel.
    stack
        What will be restored.
    base
        Name of the weights.
    train_px
        Side of the images that they were trained on, where it is known.
    """
    volume = resample_z(Normalisation.of(stack.data).apply(stack.data), stack.anisotropy)
    slices = volume.transpose(1, 0, 2)[:: max(1, volume.shape[1] // SAMPLES)]
    record = ModelRecord(
        base=base,
        base_sha256="",
        train_px=train_px,
        kept="base",
        mask=(),
        trained_parameters=0,
        total_parameters=sum(value.size for value in state.values()),
        settings={},
        rig=None,
        blur_px=(0.0, 0.0),
        angles_deg=(),
        anisotropy=stack.anisotropy,
        slice_px=(volume.shape[0], max(volume.shape[1:])),
        source=(),
        stacks=(),
        checks=(),
        iterations=0,
        seconds=0.0,
        versions={},
    )
    return AdaptedModel(state, shape_of(state), record, np.ascontiguousarray(slices))
