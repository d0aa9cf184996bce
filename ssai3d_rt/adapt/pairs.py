"""Semi-synthetic pairs, made on the fly from lateral planes: (blurred as an axial slice would be, sharp).

Planes are cropped, turned, blurred with a PSF of the bank, sampled at the stack's plane distance and interpolated
back, exactly as an axial slice is when it is restored. Nothing is written to disk. A block of neighbouring planes with
the contrast of the whole is held out: `Pairs.validation` is the same fixed set each time.

>>> import numpy as np
>>> from ssai3d_rt.adapt.psf import psf_bank
>>> planes = np.random.default_rng(0).random((10, 64, 64), np.float32)
>>> source = Pairs(planes, psf_bank(), step=2.0, crop=32, seed=1)
>>> blurred, sharp = source.batch(0, 4)
>>> tuple(blurred.shape), len(source.trained), len(source.held_out)
((4, 1, 32, 32), 8, 2)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from ssai3d_rt.network.degrade import Degradation, degrade

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from ssai3d_rt.adapt.psf import Psf

Float = npt.NDArray[np.float32]
MARGIN_PX = 24
"""Pixels around a crop that the blur may reach into (3 std of the widest PSF)."""


@dataclass(frozen=True, slots=True)
class Noise:
    """Noise added to the blurred image of a pair, on the normalised scale; see `Degradation`."""

    photons: float = math.inf
    read: float = 0.0


class PairSource(Protocol):
    """Where training takes its pairs from."""

    def batch(self, number: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Make training batch `number`: blurred and sharp, each ``(size, 1, H, W)`` float32."""

    def validation(self, size: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
        """Make the fixed pairs that training never sees."""


class Pairs:
    """A source of training and validation pairs from the lateral planes of one or more stacks.

    Parameters
    ----------
    planes
        ``(N, Y, X)`` float32, normalised; a tenth, at least two neighbouring planes, is held out.
    bank
        The PSFs to draw from.
    step
        Distance of acquired planes in isotropic pixels: the stack's anisotropy.
    crop
        Side of a pair in px; made smaller, to a multiple of 16, where the planes are smaller.
    seed
        Fixes everything that is drawn.
    noise
        Added to the blurred images; for targets that are themselves free of noise.
    across_px
        Largest std of a blur across the PSF, drawn from 0 up; for targets sharper than the microscope's lateral planes.
    any_direction
        Whether planes may be blurred along their columns too; otherwise along their rows alone.
    held_out
        Numbers of the planes to hold out instead.
    """

    def __init__(
        self,
        planes: Float,
        bank: list[Psf],
        *,
        step: float,
        crop: int,
        seed: int,
        noise: Noise | None = None,
        across_px: float = 0.0,
        any_direction: bool = True,
        held_out: Sequence[int] | None = None,
    ) -> None:
        contrast = planes.reshape(len(planes), -1).std(1)
        self.held_out = _like_the_whole(contrast) if held_out is None else held_out
        self.trained = [i for i in range(len(planes)) if i not in self.held_out]
        if not self.held_out or not self.trained:
            raise ValueError(f"of {len(planes)} planes {len(self.held_out)} are held out; both kinds are needed")
        self.crop = max(16, min(crop, min(planes.shape[1:]) // 16 * 16))
        self.bank, self.step, self.seed = bank, max(1.0, step), seed
        self.noise = noise or Noise()
        self.across_px, self.any_direction = across_px, any_direction
        reach = [max(0, self.crop - side) for side in planes.shape[1:]]
        pad = [(0, 0)] + [(MARGIN_PX, MARGIN_PX + extra) for extra in reach]
        self._planes = np.pad(planes, pad, mode="symmetric")
        self._floor = 0.25 * float(np.median(contrast))

    def batch(self, number: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Make training batch `number`: two ``(size, 1, crop, crop)`` float32 tensors; the same for the same number."""
        return self._make(np.random.default_rng([self.seed, 1, number]), size, self.trained)

    def validation(self, size: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
        """Make the fixed pairs from the held-out planes."""
        return self._make(np.random.default_rng([self.seed, 2]), size, self.held_out)

    def _make(self, rng: np.random.Generator, size: int, planes: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        reach = self.crop + 2 * MARGIN_PX
        inner = slice(MARGIN_PX, MARGIN_PX + self.crop)
        crops: list[Float] = []
        ways: list[Degradation] = []
        rows, columns = self._planes.shape[1:]
        for _ in range(size):
            for _ in range(8):  # prefer fields with something in them, take what comes after some tries
                plane = self._planes[planes[int(rng.integers(len(planes)))]]
                y, x = int(rng.integers(rows - reach + 1)), int(rng.integers(columns - reach + 1))
                crop = plane[y : y + reach, x : x + reach]
                if crop[inner, inner].std() >= self._floor:
                    break
            crop = np.rot90(crop, int(rng.integers(4)) if self.any_direction else 2 * int(rng.integers(2)))
            crops.append(np.ascontiguousarray(crop[::-1] if rng.random() < 0.5 else crop))
            psf = self.bank[rng.integers(len(self.bank))]
            across_px = psf.across_px + self.across_px * rng.random()
            way = Degradation(psf.std_px, across_px, math.radians(psf.angle_deg), self.step, rng.random())
            ways.append(replace(way, photons=self.noise.photons, read=self.noise.read))
        sharp = torch.from_numpy(np.stack(crops))
        blurred = degrade(sharp, ways, seed=int(rng.integers(2**62)))
        return blurred[:, None, inner, inner], sharp[:, None, inner, inner]


def _like_the_whole(contrast: npt.NDArray[np.float32]) -> range:
    """Return the block of neighbouring planes, a tenth and at least two, whose contrast is most like that of all."""
    count = max(2, len(contrast) // 10)
    if count >= len(contrast):
        raise ValueError(f"{len(contrast)} planes are too few to hold two out")
    blocks = np.convolve(contrast, np.full(count, 1 / count), "valid")
    first = int(np.argmin(np.abs(blocks - contrast.mean())))
    return range(first, first + count)


class Mixed:
    """Pairs from two sources in every batch and in the validation: `share` of them from the second.

    Parameters
    ----------
    first, second
        Sources with the same crop.
    share
        Above 0 and below 1; each source gives at least one pair of a batch.
    """

    def __init__(self, first: PairSource, second: PairSource, share: float) -> None:
        self._sources = first, second
        self._share = share

    def batch(self, number: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """See `PairSource`; `size` at least 2."""
        from_second = min(max(round(size * self._share), 1), size - 1)
        return self._join(
            self._sources[0].batch(number, size - from_second), self._sources[1].batch(number, from_second)
        )

    def validation(self, size: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
        """See `PairSource`; half of them from each source, whatever the share: both must do well."""
        return self._join(self._sources[0].validation(size // 2), self._sources[1].validation(size // 2))

    @staticmethod
    def _join(
        one: tuple[torch.Tensor, torch.Tensor], two: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        return torch.cat([one[0], two[0]]), torch.cat([one[1], two[1]])
