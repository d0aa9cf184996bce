"""Self-Net: learn from the stack itself how axial slices are degraded, then learn to undo it.

Ning et al., "Deep self-learning enables fast, high-fidelity isotropic resolution restoration for volumetric
fluorescence microscopy", Light: Science & Applications 12, 204 (2023). No PSF is assumed. In every step: (1) a
generator learns from unpaired images to turn lateral planes, sampled and interpolated as the stack is, into what a
discriminator takes for axial slices, and a second one the way back (CycleGAN); (2) the restoration network learns,
supervised, to turn these made slices into the lateral planes they came from. The two stages are tied: the generator
also answers for the restoration's error.

The structure and losses are those of the published code; the generators and discriminators are smaller, the adversarial
losses count more, and the restoration network has the shape of the base network, with random weights, as in `care`.

>>> SelfNet().name
'self-net'
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ssai3d_rt.adapt.pairs import Pairs
from ssai3d_rt.adapt.psf import Psf
from ssai3d_rt.compare.gan import Memory, discriminator, generator, judged, likeness_loss
from ssai3d_rt.compare.method import Budget, Fit
from ssai3d_rt.compare.scratch import random_network, training_planes
from ssai3d_rt.compare.tuned import restore_with
from ssai3d_rt.imaging.axial import resample_z
from ssai3d_rt.network.weights import load_network, state_from
from ssai3d_rt.progress import Progress, silent

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ssai3d_rt.calibration.profile import RigProfile
    from ssai3d_rt.imaging.stack import Stack
    from ssai3d_rt.network.nafnet import NAFNet

Float = npt.NDArray[np.float32]

BATCH = 8
GAN_SHARE = 1.0
"""Weight of the adversarial losses beside the cycle's. Published is 0.1; in the few steps that a CPU has time for, the
generators then stay where they begin, at giving back what they are given."""
TIE_SHARE = 0.1
"""Weight of the restoration's error in the generators' loss."""
WARM_UP = 0.1
"""Share of the training after which the generator answers for the restoration's error."""


@dataclass(frozen=True, slots=True)
class SelfNet:
    """Degradation learnt unpaired, restoration learnt on what it makes.

    Parameters
    ----------
    crop
        Side of the training images in px; that of the published code.
    lr
        Learning rate of the restoration network; `gan_lr` of generators and discriminators. Cosine schedules to zero.
    base
        The base network whose shape the restoration network takes.
    """

    name: str = "self-net"
    summary: str = "Self-Net: degradation learnt from unpaired slices, then restoration from scratch"
    crop: int = 64
    lr: float = 1e-3
    gan_lr: float = 5e-4
    base: str = "base"

    def fit(self, stack: Stack, rig: RigProfile | None, budget: Budget, *, progress: Progress = silent) -> Fit:
        """Train both stages; see `Method`."""
        started = time.monotonic()
        planes = training_planes(stack)
        pairs = Pairs(planes, [Psf(0.0)], step=stack.anisotropy, crop=self.crop, seed=budget.seed)
        slices = AxialSlices(resample_z(planes, stack.anisotropy), pairs.crop, budget.seed)
        network = random_network(load_network(self.base).shape, budget.seed)
        stages = Stages(network, self, contrast=float(planes.std()), seed=budget.seed)
        done, recent, begun = 0, [0.0], time.monotonic()
        while (share := _share(budget, done, time.monotonic() - begun)) < 1:
            lateral, sharp = pairs.batch(done, BATCH)
            error = stages.step(lateral, slices.batch(done, BATCH), sharp, share)
            recent = [*recent[-19:], error] if done else [error]
            done += 1
            if budget.iterations is None:
                limit = round(budget.longest_s)
                progress("self-net", min(round(time.monotonic() - begun), limit), limit)
            else:
                progress("self-net", done, budget.iterations)
        state = state_from(stages.restoration)
        notes = {
            "iterations": done,
            "lateral_psnr_db": stages.held_out_psnr_db(*pairs.validation()),
            "train_psnr_db": round(-10 * math.log10(float(np.mean(recent)) + 1e-6), 4),
        }
        return Fit(restore_with(state, pairs.crop), time.monotonic() - started, stages.parameters, notes)


class AxialSlices:
    """Crops of XZ and YZ slices; rows are Z.

    Parameters
    ----------
    volume
        ``(Zi, Y, X)`` float32, isotropic voxels.
    crop
        Side of a crop in px; a volume that is smaller is mirrored.
    seed
        Fixes what is drawn.
    """

    def __init__(self, volume: Float, crop: int, seed: int) -> None:
        short = [(0, max(0, crop - side)) for side in volume.shape]
        self._volume = np.pad(volume, short, mode="symmetric")
        self._crop, self._seed = crop, seed
        self._floor = 0.5 * float(volume.std())

    def batch(self, number: int, size: int) -> torch.Tensor:
        """Make batch `number`: ``(size, 1, crop, crop)`` float32; the same for the same number."""
        import torch

        rng = np.random.default_rng([self._seed, 3, number])
        crops = []
        for _ in range(size):
            view = self._volume if rng.random() < 0.5 else self._volume.transpose(0, 2, 1)
            for _ in range(8):  # prefer places with something in them, take what comes after some tries
                z, y, x = (int(rng.integers(side - room + 1)) for side, room in self._rooms(view))
                crop = view[z : z + self._crop, y, x : x + self._crop]
                if crop.std() >= self._floor:
                    break
            crops.append(crop[:, ::-1] if rng.random() < 0.5 else crop)
        return torch.from_numpy(np.stack(crops)[:, None].copy())

    def _rooms(self, view: Float) -> zip[tuple[int, int]]:
        return zip(view.shape, (self._crop, 1, self._crop), strict=True)


class Stages:
    """The five networks and their optimisers; `step` trains all of them once.

    Parameters
    ----------
    restoration
        The network that restores.
    method
        Gives the learning rates.
    contrast
        Standard deviation of the images; generators and discriminators are shown images divided by it, as most of a
        fluorescence image is dark and they would learn slowly.
    seed
        Fixes the weights they begin with.
    """

    def __init__(self, restoration: NAFNet, method: SelfNet, *, contrast: float, seed: int) -> None:
        import torch

        self.restoration, self._contrast = restoration, contrast
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + 1)
            self._degrade, self._sharpen = generator(), generator()
            self._axial, self._lateral = discriminator(), discriminator()
        makers = [*self._degrade.parameters(), *self._sharpen.parameters()]
        judges = [*self._axial.parameters(), *self._lateral.parameters()]
        self._optimisers = (
            torch.optim.Adam(makers, method.gan_lr, betas=(0.5, 0.999)),
            torch.optim.Adam(judges, method.gan_lr, betas=(0.5, 0.999)),
            torch.optim.AdamW(restoration.parameters(), method.lr, weight_decay=1e-4),
        )
        self._rates = (method.gan_lr, method.gan_lr, method.lr)
        self._memory = Memory(seed), Memory(seed + 1)

    @property
    def parameters(self) -> int:
        """Numbers that training changes, in all networks."""
        return sum(p.numel() for o in self._optimisers for g in o.param_groups for p in g["params"])

    def degraded(self, lateral: torch.Tensor) -> torch.Tensor:
        """Turn sampled lateral planes into what axial slices look like, both ``(N, 1, H, W)``."""
        return self._made_by(self._degrade, lateral)

    def _made_by(self, generator: nn.Module, images: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = images + self._contrast * generator(images / self._contrast)
        return made

    def _judged(self, network: nn.Module, images: torch.Tensor, verdict: float) -> torch.Tensor:
        return judged(network, images / self._contrast, verdict)

    def step(self, lateral: torch.Tensor, axial: torch.Tensor, sharp: torch.Tensor, share: float) -> float:
        """Train once; `share` of the training is over. Returns the restoration's mean square error."""
        import torch

        makers, judges, restorer = self._optimisers
        for optimiser, rate in zip(self._optimisers, self._rates, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * share))
        made_axial = self.degraded(lateral)
        made_lateral = self._made_by(self._sharpen, axial)
        _hold((self._axial, self._lateral, self.restoration), still=True)
        adversarial = self._judged(self._axial, made_axial, 1.0) + self._judged(self._lateral, made_lateral, 1.0)
        loss = GAN_SHARE * adversarial + likeness_loss(self._made_by(self._sharpen, made_axial), lateral)
        loss = loss + likeness_loss(self.degraded(made_lateral), axial)
        if share >= WARM_UP:
            loss = loss + TIE_SHARE * likeness_loss(self.restoration(made_axial), sharp)
        _descend(makers, loss)
        _hold((self._axial, self._lateral, self.restoration), still=False)

        shown = self._memory[0].mix(made_axial), self._memory[1].mix(made_lateral)
        loss = self._judged(self._axial, axial, 1.0) + self._judged(self._axial, shown[0], 0.0)
        loss = loss + self._judged(self._lateral, lateral, 1.0) + self._judged(self._lateral, shown[1], 0.0)
        _descend(judges, 0.5 * loss)

        with torch.no_grad():
            made_axial = self.degraded(lateral)
        restored = self.restoration(made_axial)
        _descend(restorer, likeness_loss(restored, sharp))
        return float((restored.detach() - sharp).square().mean())

    def held_out_psnr_db(self, lateral: torch.Tensor, sharp: torch.Tensor) -> float:
        """PSNR of held-out lateral planes, degraded as learnt and restored; mean over images, peak 1, in dB."""
        import torch

        with torch.inference_mode():
            restored = torch.cat([self.restoration(self.degraded(part)) for part in torch.split(lateral, 8)])
            error = (restored - sharp).square().mean((1, 2, 3))
        return round(float(-10 * torch.log10(error + 1e-6).mean()), 4)


def _share(budget: Budget, done: int, seconds: float) -> float:
    return seconds / budget.longest_s if budget.iterations is None else done / budget.iterations


def _hold(networks: tuple[nn.Module, ...], *, still: bool) -> None:
    for network in networks:
        network.requires_grad_(not still)


def _descend(optimiser: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    import torch

    optimiser.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    optimiser.step()
