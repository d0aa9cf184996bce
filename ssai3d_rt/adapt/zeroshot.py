"""Zero-shot metrics: how much each layer matters for a task, from one forward and backward pass, before any tuning.

A layer here is a convolution. `snip` is abs(dL/dW * W), averaged over the layer's weight (article, eq. 4; Lee et al.,
"SNIP", ICLR 2019). It does not decide which layers train: see `mask`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from ssai3d_rt.network.nafnet import NAFNet


def layers_of(network: NAFNet) -> list[str]:
    """Name the layers that can be chosen: every convolution, in the order of the network's modules."""
    import torch

    return [name for name, module in network.named_modules() if isinstance(module, torch.nn.Conv2d)]


def snip(network: NAFNet, blurred: torch.Tensor, sharp: torch.Tensor) -> dict[str, float]:
    """Measure abs(dL/dW * W) per layer, mean over its weight, L the mean squared error.

    Parameters
    ----------
    network
        The base network; its gradients are cleared, its weights stay.
    blurred, sharp
        Pairs, each ``(N, 1, H, W)`` float32.

    Returns
    -------
    Layer name to metric, not negative.
    """
    import torch

    network.zero_grad(set_to_none=True)
    loss = torch.nn.functional.mse_loss(network(blurred), sharp)
    torch.autograd.backward(loss)
    scores = {}
    for name in layers_of(network):
        weight = network.get_parameter(f"{name}.weight")
        scores[name] = 0.0 if weight.grad is None else float((weight.grad * weight.detach()).abs().mean())
    network.zero_grad(set_to_none=True)
    return scores
