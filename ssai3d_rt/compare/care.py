"""CARE's isotropic restoration: a network trained from scratch on pairs made with one PSF that is taken as known.

Weigert et al., "Content-aware image restoration", Nature Methods 15, 1090 (2018), as the SSAI-3D article compares with
it (Methods, "Baselines"): lateral planes are blurred along one axis with an explicit PSF, sampled as the stack is, and
a network learns to undo that. It has the shape of the base network but random weights, so that the two differ in what
they were trained on alone. The last weights are used.

>>> Care(std_px=5.0).name
'care'
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ssai3d_rt.adapt.pairs import Pairs
from ssai3d_rt.adapt.psf import Psf
from ssai3d_rt.adapt.settings import FinetuneSettings
from ssai3d_rt.adapt.train import train
from ssai3d_rt.compare.classical import middle_blur_px
from ssai3d_rt.compare.method import Budget, Fit
from ssai3d_rt.compare.scratch import random_network, training_planes
from ssai3d_rt.compare.tuned import restore_with
from ssai3d_rt.network.weights import load_network
from ssai3d_rt.progress import Progress, silent

if TYPE_CHECKING:
    from ssai3d_rt.calibration.profile import RigProfile
    from ssai3d_rt.imaging.stack import Stack


@dataclass(frozen=True, slots=True)
class Care:
    """Training from scratch with one PSF.

    Parameters
    ----------
    std_px
        Standard deviation of the PSF along Z in isotropic pixels; the middle of the rig profile's blur range where
        None, and without a profile 5 px, as in the article.
    crop
        Side of the training images in px.
    lr
        Learning rate of AdamW, with a cosine schedule to zero.
    base
        The base network whose shape is taken.
    """

    name: str = "care"
    summary: str = "CARE: a network trained from scratch with one known Gaussian PSF"
    std_px: float | None = None
    crop: int = 96
    lr: float = 1e-3
    base: str = "base"

    def fit(self, stack: Stack, rig: RigProfile | None, budget: Budget, *, progress: Progress = silent) -> Fit:
        """Train; see `Method`."""
        started = time.monotonic()
        planes = training_planes(stack)
        std_px = middle_blur_px(rig) if self.std_px is None else self.std_px
        psf = Psf(std_px, rig.blur_angle_deg if rig is not None else 0.0)
        settings = FinetuneSettings(
            iterations=budget.iterations,
            minutes=budget.longest_s / 60,
            lr=self.lr,
            crop=self.crop,
            blend=1.0,
            judge=False,
            seed=budget.seed,
        )
        pairs = Pairs(planes, [psf], step=stack.anisotropy, crop=settings.crop, seed=budget.seed)
        network = random_network(load_network(self.base).shape, budget.seed)
        course = train(network, pairs, settings, identity=self.name, progress=progress)
        last = course.checks[-1]
        notes = {
            "psf_std_px": std_px,
            "iterations": course.iterations,
            "lateral_psnr_db": last.held_out_psnr_db,
            "train_psnr_db": last.train_psnr_db,
        }
        trained = sum(value.size for value in course.state.values())
        return Fit(restore_with(course.state, pairs.crop), time.monotonic() - started, trained, notes)
