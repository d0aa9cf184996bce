"""`FinetuneSettings`: every figure of fine-tuning that a person may change.

>>> FinetuneSettings(iterations=300).layers.value
'snip'
"""

from __future__ import annotations

from enum import Enum

from pydantic import Field

from ssai3d_rt.adapt.mask import Layers
from ssai3d_rt.config import Settings
from ssai3d_rt.imaging.denoise import DenoiseMode


class Targets(str, Enum):
    """What the network learns to give back."""

    RAW = "raw"
    """The stack's own lateral planes (article)."""
    BOOTSTRAPPED = "bootstrapped"
    """The lateral planes of the stack restored once by the base network."""
    TURNED = "turned"
    """The axial slices of that restored stack, blurred along their lateral axis; see `ssai3d_rt.adapt.targets`."""
    SYNTHETIC = "synthetic"
    """Images to rehearse on alone, blurred and noisy as the stack is."""
    AUTO = "auto"
    """``turned`` where the sample's structures are as long along Z as they are laterally, else ``synthetic``."""


class FinetuneSettings(Settings):
    """How fine-tuning goes.

    Parameters
    ----------
    base
        Name of a base network, or a weights file.
    minutes, iterations
        Time or steps of training; with `iterations` the time plays no part.
    layers, share
        How the layers that train are chosen (see `ssai3d_rt.adapt.mask.Layers`), and which share of them is kept where
        they are ranked.
    surgeon
        File of a surgeon, for ``layers = "surgeon"`` (instead of the one that goes with the base network) and for
        ``"surgeon-published"`` (the published checkpoint sur.pt).
    targets
        What the network learns to give back, see `Targets`.
    denoise
        Whether the stack's planes are denoised before pairs are made: ``auto`` where it is noisy, ``off``, or a
        denoiser's name. A bundle restores in the same way unless asked otherwise.
    rehearsal
        Share of each batch that are synthetic images, blurred as this rig does it (see `rehearsal`); 0 for none, as in
        the article.
    angles_deg
        Orientations of the PSF bank away from Z, in degrees.
    batch, crop
        Pairs per step and their side in px (article: 8 and 256; smaller here, for CPUs).
    lr, weight_decay
        Of AdamW, with a cosine schedule to zero (article: Adam, 1e-3 and 1e-4).
    blend
        Share of the tuned weights in the mean of base and tuned weights that is kept; 1 keeps the tuned weights alone,
        as in the article.
    min_gain_db
        PSNR on the held-out pairs that tuned weights must gain to be used; twice as much where the pairs are synthetic
        images alone. The pairs cannot tell less, see docs/benchmark.md.
    judge
        Whether the held-out pairs decide which weights are kept, the base network's included; without it the last ones
        are, as in the article.
    patience
        Checks on the held-out pairs without a better result before training stops early.
    check_every
        Steps between two checks.
    max_voxels
        Of the isotropic volume that training looks at; from a larger stack its liveliest part is taken.
    seed
        Fixes all that is drawn.
    """

    base: str = "base"
    minutes: float = Field(default=5.0, gt=0)
    iterations: int | None = Field(default=None, ge=1)
    layers: Layers = Layers.SNIP
    share: float = Field(default=0.3, gt=0, le=1)
    surgeon: str | None = None
    targets: Targets = Targets.AUTO
    denoise: DenoiseMode = "auto"
    rehearsal: float = Field(default=0.75, ge=0, lt=1)
    angles_deg: tuple[float, ...] = (-10.0, -5.0, 0.0, 5.0, 10.0)
    batch: int = Field(default=8, ge=2)
    crop: int = Field(default=64, ge=16)
    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=1e-4, ge=0)
    blend: float = Field(default=1.0, gt=0, le=1)
    min_gain_db: float = Field(default=1.4, ge=0)
    judge: bool = True
    patience: int = Field(default=6, ge=1)
    check_every: int = Field(default=40, ge=1)
    max_voxels: int = Field(default=24_000_000, ge=100_000)
    seed: int = 0
