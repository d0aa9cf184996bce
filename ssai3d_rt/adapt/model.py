"""`AdaptedModel`: what fine-tuning leaves behind, as a folder that a person can read.

``adapted.safetensors`` (all weights), ``model.json`` (`ModelRecord`: where it came from and how it went),
``samples.npz`` (axial slices of the stack, for the export's golden tiles), and the pictures ``loss.png`` and
``layers.png``. It does not know how to train or export.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ssai3d_rt.calibration.character import Character
from ssai3d_rt.config import Settings
from ssai3d_rt.errors import InputError
from ssai3d_rt.network.weights import State, load_network, save_state

if TYPE_CHECKING:
    from ssai3d_rt.network.nafnet import NAFNetShape

SCHEMA = 1
WEIGHTS, RECORD, SAMPLES = "adapted.safetensors", "model.json", "samples.npz"


class Check(Settings):
    """One look at the held-out pairs: their mean PSNR after `iteration` steps, and that of training batches."""

    iteration: int
    train_psnr_db: float | None
    held_out_psnr_db: float
    seconds: float


class Fingerprint(Settings):
    """What the stack was: SHA-256 of its samples, and figures that tell when later stacks have drifted away from it."""

    sha256: str
    shape: tuple[int, int, int]
    dtype: str
    voxel_um: tuple[float, float, float]
    mean: float
    std: float
    offset: float
    scale: float
    character: Character | None = None


class ModelRecord(Settings):
    """Provenance of an adapted model.

    Parameters
    ----------
    base, base_sha256
        Name and file hash of the base network; `train_px` is the side of its training images in px, if known.
    kept
        ``tuned``, or ``base`` where tuning did not help on the held-out pairs and the base network was kept.
    mask
        Layers that trained, best first; `trained_parameters` of `total_parameters`. `layer_scores` says by which
        scores they were chosen, of all convolutions in the order of the network's modules; empty where by none.
    settings, rig
        The fine-tuning settings and the rig profile in force.
    targets
        The targets that were taken, see `ssai3d_rt.adapt.settings.Targets`.
    blur_px, angles_deg
        The PSF bank's sizes (std, isotropic px) and orientations.
    anisotropy, slice_px
        Plane spacing over lateral pixel, and rows and columns of the largest axial slice, of the stack.
    stacks
        One fingerprint per stack; `source` names the files.
    denoise
        For each stack a sentence: whether it was denoised, and why.
    checks
        The course of the training.
    """

    schema_version: int = SCHEMA
    base: str
    base_sha256: str
    train_px: int | None = None
    kept: str
    mask: tuple[str, ...]
    layer_scores: dict[str, float] = Field(default_factory=dict)
    trained_parameters: int
    total_parameters: int
    settings: dict[str, Any]
    rig: dict[str, Any] | None
    targets: str = ""
    blur_px: tuple[float, float]
    angles_deg: tuple[float, ...]
    anisotropy: float
    slice_px: tuple[int, int]
    channel: str = ""
    source: tuple[str, ...]
    stacks: tuple[Fingerprint, ...]
    denoise: tuple[str, ...] = ()
    checks: tuple[Check, ...]
    iterations: int
    seconds: float
    versions: dict[str, str]

    @property
    def base_psnr_db(self) -> float:
        """PSNR of the base network on the held-out pairs."""
        return self.checks[0].held_out_psnr_db

    @property
    def best_psnr_db(self) -> float:
        """PSNR of the kept weights on the held-out pairs."""
        if self.kept == "base":
            return self.base_psnr_db
        if not self.settings.get("judge", True):
            return self.checks[-1].held_out_psnr_db
        return max(check.held_out_psnr_db for check in self.checks)


@dataclass(frozen=True, slots=True, eq=False)
class AdaptedModel:
    """A base network with the changes that fine-tuning made to it.

    Parameters
    ----------
    state
        All weights by name, float32, one image channel.
    shape
        The network's hyperparameters.
    record
        Provenance.
    samples
        ``(N, H, W)`` float32: normalised axial slices (rows are Z) of the stack, resampled to isotropic pixels.
    """

    state: State
    shape: NAFNetShape
    record: ModelRecord
    samples: npt.NDArray[np.float32]

    def save(self, folder: str | Path) -> Path:
        """Write the folder; weights and record appear under their names only when whole."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f".{SAMPLES}.partial"
        with partial.open("wb") as file:
            np.savez_compressed(file, samples=self.samples)
        os.replace(partial, folder / SAMPLES)
        save_state(self.state, folder / WEIGHTS, {"adapted_from": self.record.base})
        partial = folder / f".{RECORD}.partial"
        partial.write_text(self.record.model_dump_json(indent=1) + "\n", encoding="utf-8")
        os.replace(partial, folder / RECORD)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> AdaptedModel:
        """Read a folder that `save` wrote.

        Raises
        ------
        InputError
            Not such a folder, or a file is missing or damaged.
        """
        folder = Path(folder)
        if not (folder / RECORD).is_file():
            raise InputError(f"{folder} is not an adapted model (no {RECORD}); make one with: ssai3d-rt finetune")
        try:
            values = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            with np.load(folder / SAMPLES, allow_pickle=False) as archive:
                samples = archive["samples"].astype(np.float32)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{folder} is damaged ({error}); fine-tune again") from None
        if values.get("schema_version") != SCHEMA:
            raise InputError(
                f"{folder / RECORD} has schema {values.get('schema_version')}, this release reads {SCHEMA}"
            )
        record = ModelRecord.of(values, where=folder / RECORD)
        network = load_network(folder / WEIGHTS)
        return cls(network.state, network.shape, record, samples)
