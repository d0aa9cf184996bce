"""The layer mask: which layers of the base network may change during fine-tuning.

Tuning few layers keeps what the base network learnt from far more data than one stack (article, Fig. 3: with few layers
the lateral training error predicts the axial error; with all it does not).

>>> choose({"a": 0.1, "b": 3.0, "c": 2.0, "d": 0.2}, share=0.5)
('b', 'c')
"""

from __future__ import annotations

import math
from enum import Enum
from typing import TYPE_CHECKING

from ssai3d_rt.adapt.zeroshot import layers_of, snip
from ssai3d_rt.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from ssai3d_rt.network.nafnet import NAFNet


class Layers(str, Enum):
    """Ways to choose the layers that train."""

    SNIP = "snip"
    """The top share by the snip metric."""
    FIRST_LAST = "first-last"
    """The first and the last stage."""
    ALL = "all"
    """Every parameter: full fine-tuning, for comparison."""
    NONE = "none"
    """No layer: the base network as it is."""


def choose(scores: Mapping[str, float], share: float = 0.1) -> tuple[str, ...]:
    """Name the layers with the highest scores, best first: `share` of them, rounded up (article: about 10 %)."""
    if not 0 < share <= 1:
        raise ConfigError(f"share of layers must be above 0 and at most 1, got {share}")
    ranked = sorted(scores, key=lambda name: (-scores[name], name))
    return tuple(ranked[: math.ceil(share * len(ranked))])


def layer_mask(
    network: NAFNet, layers: Layers, pairs: tuple[torch.Tensor, torch.Tensor], *, share: float = 0.1
) -> tuple[str, ...]:
    """Choose the layers that train.

    Parameters
    ----------
    network
        The base network.
    layers
        How to choose.
    pairs
        Blurred and sharp, each ``(N, 1, H, W)`` float32, for the metric.
    share
        Share of layers that `snip` keeps.

    Returns
    -------
    Names of convolutions; for ``all`` every convolution (and then every other parameter trains too).
    """
    names = layers_of(network)
    if layers is Layers.NONE:
        return ()
    if layers is Layers.ALL:
        return tuple(names)
    if layers is Layers.FIRST_LAST:
        last = f"decoders.{len(network.shape.dec) - 1}."
        return tuple(n for n in names if n in ("intro", "ending") or n.startswith(("encoders.0.", last)))
    return choose(snip(network, *pairs), share)


def open_layers(network: NAFNet, mask: tuple[str, ...], *, everything: bool = False) -> int:
    """Let the layers of the mask train and freeze all else; returns the number of trained parameters."""
    trained = 0
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(everything or name.rpartition(".")[0] in mask)
        trained += parameter.numel() if parameter.requires_grad else 0
    return trained
