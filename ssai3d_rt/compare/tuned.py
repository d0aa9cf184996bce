"""Methods that start from a base network: as it is, fine-tuned as shipped, as in the article, all layers, some layers.

`article` and its relatives follow the article's plain recipe: the stack's own lateral planes as targets, the wide bank
of PSFs (std 3 to 7 px, -45 to 45 degrees) whatever the rig, a learning rate of 1e-3, and the last tuned weights are
used, whether or not held-out pairs gained. Only the selection of the layers differs between them.

>>> from ssai3d_rt.adapt.mask import Layers
>>> plain("sparse:first-last", Layers.FIRST_LAST).settings["layers"]
'first-last'
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ssai3d_rt.adapt.finetune import finetune
from ssai3d_rt.adapt.psf import ARTICLE_ANGLES_DEG
from ssai3d_rt.adapt.settings import FinetuneSettings
from ssai3d_rt.calibration.denoising import Denoising
from ssai3d_rt.compare.method import Budget, Fit
from ssai3d_rt.imaging.axial import restore_array
from ssai3d_rt.imaging.denoise import OFF
from ssai3d_rt.network.nafnet import largest_tile
from ssai3d_rt.network.weights import load_network, network_from, torch_network
from ssai3d_rt.progress import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ssai3d_rt.adapt.mask import Layers
    from ssai3d_rt.calibration.profile import RigProfile
    from ssai3d_rt.imaging.stack import Stack
    from ssai3d_rt.network.weights import State

Float = npt.NDArray[np.float32]

PLAIN: dict[str, Any] = {
    "share": 0.1,
    "targets": "raw",
    "rehearsal": 0.0,
    "blend": 1.0,
    "angles_deg": ARTICLE_ANGLES_DEG,
    "lr": 1e-3,
    "judge": False,
}
"""The article's recipe, as far as it differs from what ships."""


@dataclass(frozen=True, slots=True)
class Base:
    """The base network as it is: restoration without training.

    Parameters
    ----------
    base
        Name of a base network, or a weights file.
    denoise
        Whether noisy stacks are denoised first, as `Denoising` takes it; ``auto`` is what ships.
    """

    name: str = "base"
    summary: str = "the base network as it is"
    base: str = "base"
    denoise: str = "auto"

    def fit(self, stack: Stack, rig: RigProfile | None, budget: Budget, *, progress: Progress = silent) -> Fit:
        """Load the network; see `Method`."""
        network = load_network(self.base)
        restore = restore_with(network.state, network.info.get("train_px"), denoise=self.denoise)
        return Fit(restore, 0.0, 0, {"base": network.name})


@dataclass(frozen=True, slots=True)
class Tuned:
    """A base network, fine-tuned.

    Parameters
    ----------
    settings
        Those of `FinetuneSettings` that differ from what ships.
    uses_rig
        Whether the bank of PSFs and the noise come from the rig profile; the article's otherwise.
    base
        Name of a base network, or a weights file.
    """

    name: str
    summary: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    uses_rig: bool = True
    base: str = "base"

    def fit(self, stack: Stack, rig: RigProfile | None, budget: Budget, *, progress: Progress = silent) -> Fit:
        """Fine-tune; see `Method`."""
        length = {"iterations": budget.iterations, "minutes": budget.longest_s / 60, "seed": budget.seed}
        settings = FinetuneSettings.of({"base": self.base} | length | dict(self.settings), where=self.name)
        model = finetune(stack, rig if self.uses_rig else None, settings=settings, progress=progress)
        record = model.record
        last = record.checks[-1]
        notes = {
            "base": record.base,
            "kept": record.kept,
            "layers": list(record.mask),
            "iterations": record.iterations,
            "base_psnr_db": record.base_psnr_db,
            "lateral_psnr_db": record.best_psnr_db,
            "train_psnr_db": last.train_psnr_db,
        }
        changed = record.trained_parameters if record.kept == "tuned" else 0
        restore = restore_with(model.state, record.train_px, denoise=settings.denoise)
        return Fit(restore, record.seconds, changed, notes)


def plain(name: str, layers: Layers, summary: str = "") -> Tuned:
    """Make a method that fine-tunes these layers by the article's plain recipe."""
    summary = summary or f"the article's recipe, layers chosen by {layers.value}"
    return Tuned(name, summary, PLAIN | {"layers": layers.value}, uses_rig=False)


def restore_with(state: State, train_px: int | None, *, denoise: str = OFF) -> Callable[[Stack], Float]:
    """Make the function that restores stacks with a network: XZ and YZ slices, averaged.

    Parameters
    ----------
    state
        The network's weights.
    train_px
        Side of the images that it was trained on; its tiles are at most half as large again.
    denoise
        Whether the network is shown the stack denoised: ``auto`` where it is noisy, ``off``, or a denoiser's name.
    """

    def restore(stack: Stack) -> Float:
        network = network_from(state)
        multiple = network.shape.multiple
        longest = max(stack.isotropic_planes, *stack.data.shape[1:])
        tile = min(largest_tile(train_px) // multiple, -(-longest // multiple)) * multiple
        run, denoised = torch_network(network), Denoising.of(stack.data, denoise).apply(stack.data)
        restored = restore_array(stack.data, stack.voxel_um, run, tile=tile, denoised=denoised)
        return restored.data.astype(np.float32)

    return restore
