"""The parts of an adversarial training: a generator, a discriminator, a memory of made images, and losses.

Sized for CPUs. After CycleGAN (Zhu et al., ICCV 2017) as Self-Net uses it: least-squares adversarial loss, patch
discriminator, absolute error with a share of structural similarity.

>>> reach_px()
21
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import nn

DILATIONS = (1, 2, 4, 8)
ENDS_PX = 7
"""Sides of the first and last kernel of a generator."""
SSIM_SHARE = 0.1
"""Weight of ``1 - SSIM`` beside the absolute error (Self-Net's published code)."""
MEMORY = 50
"""Made images that the discriminator may be shown again (CycleGAN)."""


def reach_px() -> int:
    """How far a generator sees in px: as far as a Gaussian blur of std 7 px does, three standard deviations."""
    return 2 * (ENDS_PX // 2) + sum(DILATIONS)


def generator(width: int = 16) -> nn.Module:
    """Make a network whose answer is added to its input, ``(N, 1, H, W)`` to the same; it starts almost at zero."""
    import torch
    from torch import nn

    def conv(c_in: int, c_out: int, side: int, dilation: int = 1) -> nn.Conv2d:
        padding = dilation * (side // 2)
        return nn.Conv2d(c_in, c_out, side, padding=padding, dilation=dilation, padding_mode="reflect")

    layers: list[nn.Module] = [conv(1, width, ENDS_PX), nn.LeakyReLU(0.2)]
    for dilation in DILATIONS:
        layers += [conv(width, width, 3, dilation), nn.LeakyReLU(0.2)]
    last = conv(width, 1, ENDS_PX)
    with torch.no_grad():
        last.weight.mul_(0.1)
        assert last.bias is not None
        last.bias.zero_()
    return nn.Sequential(*layers, last)


def discriminator(width: int = 16) -> nn.Module:
    """Make a network that judges overlapping patches: ``(N, 1, H, W)`` to ``(N, 1, h, w)``, 1 for real."""
    from torch import nn

    layers: list[nn.Module] = [nn.Conv2d(1, width, 4, 2, 1), nn.LeakyReLU(0.2)]
    for level in range(2):
        c = width << level
        layers += [nn.Conv2d(c, 2 * c, 4, 2 - level, 1), nn.InstanceNorm2d(2 * c), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(4 * width, 1, 4, 1, 1))


def likeness_loss(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Mean absolute error plus `SSIM_SHARE` of 1 - SSIM (Gaussian windows of std 1.5 px, L = 1)."""
    return (found - wanted).abs().mean() + SSIM_SHARE * (1 - _ssim(found, wanted))


def judged(network: nn.Module, images: torch.Tensor, verdict: float) -> torch.Tensor:
    """Mean square distance of the discriminator's answer from `verdict`: 1 real, 0 made."""
    loss: torch.Tensor = (network(images) - verdict).square().mean()
    return loss


class Memory:
    """Made images, some old among the new, so that the discriminator does not forget."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng([seed, 7])
        self._images: list[torch.Tensor] = []

    def mix(self, images: torch.Tensor) -> torch.Tensor:
        """Keep some of the images and give others back in their place, as many as came."""
        import torch

        mixed = []
        for image in images.detach():
            if len(self._images) < MEMORY:
                self._images.append(image)
                mixed.append(image)
            elif self._rng.random() < 0.5:
                place = int(self._rng.integers(MEMORY))
                mixed.append(self._images[place])
                self._images[place] = image
            else:
                mixed.append(image)
        return torch.stack(mixed)


def _ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the structural similarity of images about [0, 1] (Wang et al. 2004)."""
    import torch
    from torch.nn.functional import conv2d

    at = torch.arange(-5, 6, dtype=a.dtype)
    line = torch.exp(-0.5 * (at / 1.5) ** 2)
    line = (line / line.sum())[None, None, None]

    def local(values: torch.Tensor) -> torch.Tensor:
        return conv2d(conv2d(values, line), line.transpose(2, 3))

    mean_a, mean_b = local(a), local(b)
    spread = local(a * a) + local(b * b) - mean_a**2 - mean_b**2
    shared = local(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    likeness = (2 * mean_a * mean_b + c1) * (2 * shared + c2) / ((mean_a**2 + mean_b**2 + c1) * (spread + c2))
    return likeness.mean()
