"""The layer mask: which layers of the base network may change during fine-tuning.

Tuning few layers keeps what the base network learnt from far more data than one stack (article, Fig. 3: with few layers
the lateral training error predicts the axial error; with all it does not). Most ways score the layers and keep a share
of the best.

>>> choose({"a": 0.1, "b": 3.0, "c": 2.0, "d": 0.2}, share=0.5)
('b', 'c')
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from ssai3d_rt.adapt.zeroshot import METRICS, layers_of, metric_of
from ssai3d_rt.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from ssai3d_rt.network.nafnet import NAFNet


class Layers(str, Enum):
    """Ways to choose the layers that train; all but the last five score every layer and keep the top share.

    Those named after a metric take its highest values: see `ssai3d_rt.adapt.zeroshot`.
    """

    SURGEON = "surgeon"
    """By the surgeon that was trained for the base network."""
    SURGEON_PUBLISHED = "surgeon-published"
    """By the published surgeon; its checkpoint sur.pt must be given."""
    SNIP = "snip"
    GRASP = "grasp"
    FISHER = "fisher"
    SYNFLOW = "synflow"
    GRAD_NORM = "grad-norm"
    PLAIN = "plain"
    MAGNITUDE = "magnitude"
    ACTIVATION_MEAN = "activation-mean"
    ACTIVATION_STD = "activation-std"
    ACTIVATION_ABS_MEAN = "activation-abs-mean"
    ACTIVATION_ABS_STD = "activation-abs-std"
    GRADIENT_MEAN = "gradient-mean"
    GRADIENT_STD = "gradient-std"
    GRADIENT_ABS_MEAN = "gradient-abs-mean"
    GRADIENT_ABS_STD = "gradient-abs-std"
    WEIGHT_MEAN = "weight-mean"
    WEIGHT_STD = "weight-std"
    RANDOM = "random"
    """By chance, the same for the same seed: a control."""
    FIRST_LAST = "first-last"
    """The first and the last stage."""
    DEPTHWISE = "depthwise"
    """The depth-wise convolutions."""
    ALL = "all"
    """Every parameter: full fine-tuning, for comparison."""
    NONE = "none"
    """No layer: the base network as it is."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Chosen layers.

    Parameters
    ----------
    mask
        Names of convolutions; where they were scored, the best first.
    scores
        Score of every convolution, in the order of the network's modules; empty where none were scored.
    """

    mask: tuple[str, ...]
    scores: dict[str, float] = field(default_factory=dict)


def choose(scores: Mapping[str, float], share: float = 0.1) -> tuple[str, ...]:
    """Name the layers with the highest scores, best first: `share` of them, rounded up (article: about 10 %)."""
    if not 0 < share <= 1:
        raise ConfigError(f"share of layers must be above 0 and at most 1, got {share}")
    ranked = sorted(scores, key=lambda name: (-scores[name], name))
    return tuple(ranked[: math.ceil(share * len(ranked))])


def select_layers(
    network: NAFNet,
    layers: Layers,
    pairs: tuple[torch.Tensor, torch.Tensor],
    *,
    share: float = 0.1,
    surgeon: str | None = None,
    seed: int = 0,
) -> Selection:
    """Choose the layers that train.

    Parameters
    ----------
    network
        The base network; comes back as it was.
    layers
        How to choose.
    pairs
        Blurred and sharp, each ``(N, 1, H, W)`` float32, for the metrics.
    share
        Share of layers to keep where they are scored.
    surgeon
        File of the surgeon, for `Layers.SURGEON` (instead of the one that goes with the base network) and
        `Layers.SURGEON_PUBLISHED`.
    seed
        For `Layers.RANDOM`.

    Returns
    -------
    Names of convolutions; for ``all`` every convolution (and then every other parameter trains too).

    Raises
    ------
    ConfigError
        No surgeon for this base network, or no checkpoint of the published one given; a share out of range.
    WeightsError
        The surgeon's file is missing or damaged.
    """
    names = layers_of(network)
    if layers is Layers.NONE:
        return Selection(())
    if layers is Layers.ALL:
        return Selection(tuple(names))
    if layers is Layers.DEPTHWISE:
        return Selection(tuple(n for n in names if getattr(network.get_submodule(n), "groups", 1) > 1))
    if layers is Layers.FIRST_LAST:
        last = f"decoders.{len(network.shape.dec) - 1}."
        return Selection(tuple(n for n in names if n in ("intro", "ending") or n.startswith(("encoders.0.", last))))
    scores = _scores(network, layers, pairs, surgeon, seed)
    return Selection(choose(scores, share), scores)


def layer_mask(
    network: NAFNet, layers: Layers, pairs: tuple[torch.Tensor, torch.Tensor], *, share: float = 0.1
) -> tuple[str, ...]:
    """Name the layers that train; see `select_layers`."""
    return select_layers(network, layers, pairs, share=share).mask


def open_layers(network: NAFNet, mask: tuple[str, ...], *, everything: bool = False) -> int:
    """Let the layers of the mask train and freeze all else; returns the number of trained parameters."""
    trained = 0
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(everything or name.rpartition(".")[0] in mask)
        trained += parameter.numel() if parameter.requires_grad else 0
    return trained


def _scores(
    network: NAFNet, layers: Layers, pairs: tuple[torch.Tensor, torch.Tensor], surgeon: str | None, seed: int
) -> dict[str, float]:
    """Score every layer."""
    if layers.value in METRICS:
        return metric_of(network, layers.value, *pairs)
    if layers is Layers.RANDOM:
        import numpy as np

        names = layers_of(network)
        return dict(zip(names, np.random.default_rng([seed, 4]).random(len(names)).tolist(), strict=True))
    from ssai3d_rt.adapt.surgeon import PublishedSurgeon, surgeon_for

    if layers is Layers.SURGEON:
        return surgeon_for(network, Path(surgeon) if surgeon else None).scores(network, *pairs)
    if not surgeon:
        raise ConfigError(
            "layers = surgeon-published needs the published checkpoint sur.pt (from You-Lab-MIT/SSAI-3D):"
            " give its path with --surgeon, or as the setting surgeon"
        )
    return PublishedSurgeon.load(Path(surgeon)).scores(network, *pairs)
