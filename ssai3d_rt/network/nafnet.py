"""NAFNet: the restoration network, whole, in one file.

Written after Chen et al., "Simple Baselines for Image Restoration" (ECCV 2022), with the parameter names of the
published checkpoints, so that their state dicts load as they are; numerically equal to the published network and to
its `Local` variant (TLC: pooling in a window of 1.5 x the training size; Chu et al., ECCV 2022). It knows nothing of
files, colours or microscopes: see `weights` for loading and for folding three-channel networks into one.

Its hyperparameters are read off the shapes of the state dict, so no side file can disagree:

>>> shape = NAFNetShape(width=8, enc=(1, 1), middle=1, dec=(1, 1))
>>> network = NAFNet(shape)
>>> shape_of(network.state_dict()) == shape
True
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ssai3d_rt.errors import MissingPackageError, WeightsError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn
else:
    try:
        import torch
        import torch.nn.functional as F
        from torch import Tensor, nn
    except ImportError:  # the classes below then say what to install as soon as one is made

        class nn:  # noqa: N801
            """Stand-in for `torch.nn` where torch is absent."""

            class Module:
                """Refuses to be made, and says what to install."""

                def __init__(self, *args: object, **kwargs: object) -> None:
                    raise MissingPackageError("torch", extra="train")


EPS = 1e-6
"""Added to the variance in each LayerNorm, as published."""
LARGEST_TILE = 256
"""Side in px of the largest tile that is chosen by itself."""


class HasShape(Protocol):
    """Anything with a `shape`: a tensor or an array."""

    @property
    def shape(self) -> Any:
        """Sizes along the axes."""


@dataclass(frozen=True, slots=True)
class NAFNetShape:
    """Hyperparameters of a NAFNet.

    Parameters
    ----------
    width
        Channels after `intro`; doubled at each level.
    enc, dec
        Blocks per encoder and decoder level, the first level first (`dec` from the deepest up, as published).
    middle
        Blocks at the bottom.
    channels
        Image channels in and out.
    """

    width: int
    enc: tuple[int, ...]
    middle: int
    dec: tuple[int, ...]
    channels: int = 1

    @property
    def multiple(self) -> int:
        """Heights and widths are padded to a multiple of this many pixels."""
        return 1 << len(self.enc)


class LayerNorm2d(nn.Module):
    """Normalise each pixel over its channels, then scale and shift per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same."""
        centred = x - x.mean(1, keepdim=True)
        variance = (centred * centred).mean(1, keepdim=True)
        y = centred * torch.rsqrt(variance + EPS)
        return y * self.weight[:, None, None] + self.bias[:, None, None]


class Pool(nn.Module):
    """Mean over the image, or over a window of at most `window` pixels around each pixel (TLC)."""

    def __init__(self, window: int | None) -> None:
        super().__init__()
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, 1, 1), or (N, C, H, W) when the window is smaller than the image."""
        h, w = x.shape[-2:]
        if self.window is None or (self.window >= h and self.window >= w):
            return x.mean((2, 3), keepdim=True)
        kh, kw = min(self.window, h), min(self.window, w)
        y = F.avg_pool2d(F.avg_pool2d(x, (kh, 1), stride=1), (1, kw), stride=1)  # separable: far less work
        dh, dw = h - y.shape[-2], w - y.shape[-1]
        return F.pad(y, (dw // 2, dw - dw // 2, dh // 2, dh - dh // 2), mode="replicate")


class SimpleGate(nn.Module):
    """Product of the first and the second half of the channels."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, 2C, H, W) -> (N, C, H, W)."""
        a, b = x.chunk(2, 1)
        return a * b


class NAFBlock(nn.Module):
    """Depth-wise convolution with gate and channel attention, then a gated 1 x 1 pair, both residual."""

    def __init__(self, c: int, window: int | None) -> None:
        super().__init__()
        self.norm1 = LayerNorm2d(c)
        self.conv1 = nn.Conv2d(c, 2 * c, 1)
        self.conv2 = nn.Conv2d(2 * c, 2 * c, 3, padding=1, groups=2 * c)
        self.sca = nn.Sequential(Pool(window), nn.Conv2d(c, c, 1))
        self.conv3 = nn.Conv2d(c, c, 1)
        self.norm2 = LayerNorm2d(c)
        self.conv4 = nn.Conv2d(c, 2 * c, 1)
        self.conv5 = nn.Conv2d(c, c, 1)
        self.gate = SimpleGate()
        self.beta = nn.Parameter(torch.zeros(1, c, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(1, c, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same."""
        y = self.gate(self.conv2(self.conv1(self.norm1(x))))
        x = x + self.conv3(y * self.sca(y)) * self.beta
        y = self.gate(self.conv4(self.norm2(x)))
        out: Tensor = x + self.conv5(y) * self.gamma
        return out


class NAFNet(nn.Module):
    """The network: an encoder and a decoder of `NAFBlock`s with added skips, and the input added to the output.

    Parameters
    ----------
    shape
        Hyperparameters.
    pool_window
        Side of the pooling window in pixels of the input image (TLC: 1.5 x the training size); None pools over the
        whole image, as in training.
    """

    def __init__(self, shape: NAFNetShape, pool_window: int | None = None) -> None:
        super().__init__()
        self.shape = shape
        self.pool_window = pool_window

        def blocks(count: int, c: int, level: int) -> nn.Sequential:
            window = None if pool_window is None else pool_window >> level
            return nn.Sequential(*(NAFBlock(c, window) for _ in range(count)))

        c, levels = shape.width, len(shape.enc)
        self.intro = nn.Conv2d(shape.channels, c, 3, padding=1)
        self.ending = nn.Conv2d(c, shape.channels, 3, padding=1)
        self.encoders = nn.ModuleList(blocks(n, c << i, i) for i, n in enumerate(shape.enc))
        self.downs = nn.ModuleList(nn.Conv2d(c << i, c << (i + 1), 2, stride=2) for i in range(levels))
        self.middle_blks = blocks(shape.middle, c << levels, levels)
        self.ups = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c << i, c << (i + 1), 1, bias=False), nn.PixelShuffle(2))
            for i in range(levels, 0, -1)
        )
        self.decoders = nn.ModuleList(
            blocks(n, c << i, i) for i, n in zip(range(levels - 1, -1, -1), shape.dec, strict=True)
        )

    def forward(self, image: Tensor) -> Tensor:
        """(N, C, H, W) float in about [0, 1] -> the same; zeros pad to the multiple of the shape, as published."""
        h, w = image.shape[-2:]
        m = self.shape.multiple
        padded = F.pad(image, (0, -w % m, 0, -h % m)) if (h % m or w % m) else image
        x = self.intro(padded)
        skips = []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            x = encoder(x)
            skips.append(x)
            x = down(x)
        x = self.middle_blks(x)
        for decoder, up, skip in zip(self.decoders, self.ups, reversed(skips), strict=True):
            x = decoder(up(x) + skip)
        restored: Tensor = (self.ending(x) + padded)[..., :h, :w]
        return restored


def shape_of(state: Mapping[str, HasShape]) -> NAFNetShape:
    """Read a network's hyperparameters off its state dict.

    Raises
    ------
    WeightsError
        The keys or shapes are not those of a NAFNet.
    """
    if "intro.weight" not in state or "ending.weight" not in state:
        raise WeightsError("these are not NAFNet weights: intro.weight and ending.weight are missing")

    def count(pattern: str) -> int:
        found = {int(m.group(1)) for key in state if (m := re.match(pattern, key))}
        if found != set(range(len(found))):
            raise WeightsError(f"NAFNet weights with a gap: {pattern} has the numbers {sorted(found)}")
        return len(found)

    levels = count(r"downs\.(\d+)\.weight$")
    if count(r"ups\.(\d+)\.0\.weight$") != levels or levels == 0:
        raise WeightsError(f"NAFNet weights with {levels} ways down and another number of ways up")
    width, channels = (int(n) for n in state["intro.weight"].shape[:2])
    return NAFNetShape(
        width=width,
        enc=tuple(count(rf"encoders\.{i}\.(\d+)\.conv1\.weight$") for i in range(levels)),
        middle=count(r"middle_blks\.(\d+)\.conv1\.weight$"),
        dec=tuple(count(rf"decoders\.{i}\.(\d+)\.conv1\.weight$") for i in range(levels)),
        channels=channels,
    )


def largest_tile(train_px: int | None) -> int:
    """Return the largest tile in px for a network that was trained on images of `train_px`.

    The channel attention takes means over the tile, so a tile much larger than the training images changes them. Up to
    1.5 times their side is what TLC (Chu et al., ECCV 2022) found good; `LARGEST_TILE` is the most in any case, unless
    the training images were larger.
    """
    if train_px is None:
        return LARGEST_TILE
    return max(train_px, min(LARGEST_TILE, train_px * 3 // 2))
