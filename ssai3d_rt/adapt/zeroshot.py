"""Zero-shot metrics: how much each layer matters for a task, measured before any tuning.

A layer here is a convolution; each metric is one number per layer. W is the layer's weight, A what the layer gives
out in the forward pass, G the loss's derivative by A, g the loss's derivative by W, H the loss's second derivative by
the weights of all layers, mean and std go over the whole tensor. Fourteen metrics come from the article (Methods):

=====================  ===============  =====  =====================  ===================  =====
activation-mean        mean(A)          eq. 1  activation-std         std(A)               eq. 1
activation-abs-mean    mean(abs(A))     eq. 1  activation-abs-std     std(abs(A))          eq. 1
gradient-mean          mean(G)          eq. 2  gradient-std           std(G)               eq. 2
gradient-abs-mean      mean(abs(G))     eq. 2  gradient-abs-std       std(abs(G))          eq. 2
fisher                 mean((A * G)^2)  eq. 3  snip                   mean(abs(g * W))     eq. 4
grasp                  mean(-(H g) W)   eq. 5  synflow                mean(dR/dW * W)      eq. 6
weight-mean            mean(W)          eq. 7  weight-std             std(W)               eq. 7
=====================  ===============  =====  =====================  ===================  =====

All but two come from one forward and one backward pass. ``grasp`` differentiates the gradient once more. ``synflow``
needs no data: R is the sum of what the network, every parameter replaced by its absolute value, makes of an image of
ones (Tanaka et al., NeurIPS 2020); it is taken in double precision. Three more are known by name: ``grad-norm``, the
Euclidean norm of g; ``plain``, mean(g * W); ``magnitude``, mean(abs(W)).

The published code takes eight, some of them reduced in another way: see `published_metrics`. This module does not know
which layers train: see `mask`.

>>> normalised({"snip": {"intro": 1.0, "ending": 3.0, "ups.0.0": 2.0}})
{'snip': {'intro': 0.0, 'ending': 1.0, 'ups.0.0': 0.5}}
"""

from __future__ import annotations

import copy
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from ssai3d_rt.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    import torch

    from ssai3d_rt.network.nafnet import LayerNorm2d, NAFNet

Metrics = dict[str, dict[str, float]]
"""Metric to layer to value; layers in the order of `layers_of`."""

ARTICLE = (
    *("activation-mean", "activation-std", "activation-abs-mean", "activation-abs-std"),
    *("gradient-mean", "gradient-std", "gradient-abs-mean", "gradient-abs-std"),
    *("fisher", "snip", "grasp", "synflow", "weight-mean", "weight-std"),
)
"""The article's metrics, u1 to u14."""
PUBLISHED = ("weight-mean", "weight-var", "grad-norm", "snip", "grasp", "fisher", "plain", "synflow")
"""What the published surgeon takes, in its order."""
METRICS = (*ARTICLE, "grad-norm", "plain", "magnitude")
"""What `metric_of` knows by name."""


class Loss(str, Enum):
    """The loss that is differentiated."""

    MSE = "mse"
    """Mean squared error."""
    CROSS_ENTROPY = "cross_entropy"
    """Cross-entropy over the colour channels, each pixel's target its own colour: what the published code takes."""


def layers_of(network: NAFNet) -> list[str]:
    """Name the layers that can be chosen: every convolution, in the order of the network's modules."""
    import torch

    return [name for name, module in network.named_modules() if isinstance(module, torch.nn.Conv2d)]


def depth_order(layers: Iterable[str]) -> list[str]:
    """Sort layer names as data flows through the network, which is not the order of its modules.

    >>> depth_order(["intro", "ending", "encoders.0.0.conv1", "downs.0", "middle_blks.0.conv1", "ups.0.0"])[-2:]
    ['ups.0.0', 'ending']
    """

    def place(layer: str) -> tuple[int, int, int]:
        part, *rest = layer.split(".")
        stage = {"intro": 0, "encoders": 1, "downs": 1, "middle_blks": 2, "ups": 3, "decoders": 3, "ending": 4}[part]
        level = int(rest[0]) if part in ("encoders", "downs", "ups", "decoders") else 0
        return stage, level, {"downs": 1, "ups": -1}.get(part, 0)

    return sorted(layers, key=place)


def normalised(metrics: Mapping[str, Mapping[str, float]]) -> Metrics:
    """Scale each metric over the layers: its smallest value becomes 0, its largest 1; a constant one becomes 0."""
    scaled: Metrics = {}
    for name, values in metrics.items():
        low, high = min(values.values()), max(values.values())
        width = high - low if high > low else 1.0
        scaled[name] = {layer: (value - low) / width for layer, value in values.items()}
    return scaled


def article_metrics(network: NAFNet, blurred: torch.Tensor, sharp: torch.Tensor) -> Metrics:
    """Measure the article's 14 metrics, the loss being the mean squared error.

    Parameters
    ----------
    network
        The base network; its weights stay, its gradients are not touched.
    blurred, sharp
        Pairs, each ``(N, C, H, W)`` float32.

    Returns
    -------
    The metrics `ARTICLE`, in this order, as they are: see `normalised`.
    """
    own = _own_copy(network)
    seen = _one_pass(own, blurred, sharp, Loss.MSE)
    found = {name: {layer: way(look) for layer, look in seen.items()} for name, way in _ONE_PASS.items()}
    found["grasp"] = _grasp(own, blurred, sharp, Loss.MSE)
    found["synflow"] = _synflow(own, blurred)
    return {name: found[name] for name in ARTICLE}


def published_metrics(network: NAFNet, blurred: torch.Tensor, sharp: torch.Tensor, *, loss: Loss = Loss.MSE) -> Metrics:
    """Measure the eight inputs of the published surgeon as the published code does (You-Lab-MIT/SSAI-3D at 61bf0d4).

    Its metrics are those of Abdelfattah et al. ("Zero-cost proxies for lightweight NAS", ICLR 2021), and differ from
    the article's in three. ``fisher`` sums A * G over each channel's pixels before it squares, and halves the mean.
    ``grasp`` takes the statistics of each LayerNorm as constants when it differentiates again, because the published
    LayerNorm has a gradient of its own that hides them. ``weight-var`` is a variance.

    Parameters
    ----------
    network, blurred, sharp
        See `article_metrics`.
    loss
        The published code takes the cross-entropy, the article does not say so.

    Returns
    -------
    The metrics `PUBLISHED`, in this order, as they are: see `normalised`.

    Raises
    ------
    ConfigError
        The cross-entropy for a network of one channel: it is 0 whatever the weights.
    """
    if loss is Loss.CROSS_ENTROPY and network.shape.channels == 1:
        raise ConfigError("the cross-entropy over one image channel is constant; use the mean squared error (mse)")
    own = _own_copy(network)
    seen = _one_pass(own, blurred, sharp, loss)
    found = {name: {layer: way(look) for layer, look in seen.items()} for name, way in _ONE_PASS.items()}
    found["weight-var"] = {layer: float(look.weight.var()) for layer, look in seen.items()}
    found["fisher"] = {
        layer: 0.5 * float((look.out * look.out_grad).sum((2, 3)).square().mean()) for layer, look in seen.items()
    }
    with _constant_statistics(own):
        found["grasp"] = _grasp(own, blurred, sharp, loss)
    found["synflow"] = _synflow(own, blurred)
    return {name: found[name] for name in PUBLISHED}


def metric_of(network: NAFNet, name: str, blurred: torch.Tensor, sharp: torch.Tensor) -> dict[str, float]:
    """Measure one metric of `METRICS` per layer, in no more passes than it needs; see `article_metrics`.

    Raises
    ------
    ConfigError
        No such metric.
    """
    if name not in METRICS:
        raise ConfigError(f"no zero-shot metric {name!r}; there are {', '.join(METRICS)}")
    own = _own_copy(network)
    if name == "grasp":
        return _grasp(own, blurred, sharp, Loss.MSE)
    if name == "synflow":
        return _synflow(own, blurred)
    return {layer: _ONE_PASS[name](look) for layer, look in _one_pass(own, blurred, sharp, Loss.MSE).items()}


def snip(network: NAFNet, blurred: torch.Tensor, sharp: torch.Tensor) -> dict[str, float]:
    """Measure mean(abs(g * W)) per layer (article, eq. 4; Lee et al., "SNIP", ICLR 2019); see `article_metrics`."""
    return metric_of(network, "snip", blurred, sharp)


@dataclass(frozen=True, slots=True, eq=False)
class _Look:
    """A layer as one forward and backward pass show it: weight W, its gradient g, output A and its gradient G."""

    weight: torch.Tensor
    grad: torch.Tensor
    out: torch.Tensor
    out_grad: torch.Tensor


_ONE_PASS: dict[str, Callable[[_Look], float]] = {
    "activation-mean": lambda look: float(look.out.mean()),
    "activation-std": lambda look: float(look.out.std(correction=0)),
    "activation-abs-mean": lambda look: float(look.out.abs().mean()),
    "activation-abs-std": lambda look: float(look.out.abs().std(correction=0)),
    "gradient-mean": lambda look: float(look.out_grad.mean()),
    "gradient-std": lambda look: float(look.out_grad.std(correction=0)),
    "gradient-abs-mean": lambda look: float(look.out_grad.abs().mean()),
    "gradient-abs-std": lambda look: float(look.out_grad.abs().std(correction=0)),
    "fisher": lambda look: float((look.out * look.out_grad).square().mean()),
    "snip": lambda look: float((look.grad * look.weight).abs().mean()),
    "weight-mean": lambda look: float(look.weight.mean()),
    "weight-std": lambda look: float(look.weight.std(correction=0)),
    "grad-norm": lambda look: float(look.grad.norm()),
    "plain": lambda look: float((look.grad * look.weight).mean()),
    "magnitude": lambda look: float(look.weight.abs().mean()),
}


def _own_copy(network: NAFNet) -> NAFNet:
    """Copy a network, all its parameters open."""
    return copy.deepcopy(network).requires_grad_(True)


def _loss(network: NAFNet, blurred: torch.Tensor, sharp: torch.Tensor, loss: Loss) -> torch.Tensor:
    import torch.nn.functional as F

    restored = network(blurred)
    return F.mse_loss(restored, sharp) if loss is Loss.MSE else F.cross_entropy(restored, sharp)


def _one_pass(network: NAFNet, blurred: torch.Tensor, sharp: torch.Tensor, loss: Loss) -> dict[str, _Look]:
    """Look at every layer in one forward and one backward pass."""
    import torch

    layers = layers_of(network)
    outputs: dict[str, torch.Tensor] = {}
    hooks = [
        network.get_submodule(layer).register_forward_hook(
            lambda _module, _inputs, output, layer=layer: outputs.__setitem__(layer, output)
        )
        for layer in layers
    ]
    try:
        value = _loss(network, blurred, sharp, loss)
    finally:
        for hook in hooks:
            hook.remove()
    weights = [network.get_parameter(f"{layer}.weight") for layer in layers]
    wanted = [*weights, *(outputs[layer] for layer in layers)]
    grads = torch.autograd.grad(value, wanted)
    parts = zip(layers, weights, grads[: len(layers)], grads[len(layers) :], strict=True)
    return {name: _Look(weight.detach(), grad, outputs[name].detach(), above) for name, weight, grad, above in parts}


def _grasp(network: NAFNet, blurred: torch.Tensor, sharp: torch.Tensor, loss: Loss) -> dict[str, float]:
    """Mean of -(H g) * W per layer: the second derivative along the gradient itself, over all layers' weights."""
    import torch

    layers = layers_of(network)
    weights = [network.get_parameter(f"{layer}.weight") for layer in layers]
    grads = torch.autograd.grad(_loss(network, blurred, sharp, loss), weights, create_graph=True)
    along = torch.stack([(grad.detach() * grad).sum() for grad in grads]).sum()
    curved = torch.autograd.grad(along, weights)
    return {
        layer: float(-(part * weight.detach()).mean())
        for layer, part, weight in zip(layers, curved, weights, strict=True)
    }


def _synflow(network: NAFNet, like: torch.Tensor) -> dict[str, float]:
    """Mean of dR/dW * W per layer at absolute weights, where it is never negative; `like` gives the image's size."""
    import torch

    own = _own_copy(network).double()
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.abs_()
    layers = layers_of(own)
    weights = [own.get_parameter(f"{layer}.weight") for layer in layers]
    flow = own(torch.ones((1, *like.shape[1:]), dtype=torch.float64)).sum()
    grads = torch.autograd.grad(flow, weights)
    return {
        layer: float((weight.detach() * grad).abs().mean())
        for layer, weight, grad in zip(layers, weights, grads, strict=True)
    }


@contextmanager
def _constant_statistics(network: NAFNet) -> Iterator[None]:
    """Hide from the second derivative, for a block, that each LayerNorm's gradient depends on what it is given."""
    from ssai3d_rt.network.nafnet import LayerNorm2d

    hooks = [m.register_forward_hook(_linear_norm) for m in network.modules() if isinstance(m, LayerNorm2d)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _linear_norm(norm: LayerNorm2d, inputs: tuple[torch.Tensor], _output: torch.Tensor) -> torch.Tensor:
    """Return a LayerNorm's output ``(N, C, H, W)`` expanded to first order about its input."""
    from ssai3d_rt.network.nafnet import EPS

    at = inputs[0].detach()
    away = inputs[0] - at  # zero, with a gradient of one
    centred = at - at.mean(1, keepdim=True)
    scale = (centred.square().mean(1, keepdim=True) + EPS).rsqrt()
    unit = centred * scale
    change = scale * (away - away.mean(1, keepdim=True) - unit * (away * unit).mean(1, keepdim=True))
    return (unit + change) * norm.weight[:, None, None] + norm.bias[:, None, None]
