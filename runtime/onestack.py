"""Restore one stack in memory, and report what was done to it.

With a trust map the network works twice: on the stack, and on what the microscope would have seen of the restored stack
(see `trust`). It does not know files.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ssai3d_rt.calibration.denoising import Denoising
from ssai3d_rt.export.bundle import Bundle
from ssai3d_rt.imaging.axial import deblur_axial, resample_z, restore_array
from ssai3d_rt.imaging.limits import require_restorable
from ssai3d_rt.progress import Progress, silent
from ssai3d_rt.runtime.backends import open_runner
from ssai3d_rt.runtime.caution import warnings_of
from ssai3d_rt.runtime.sanity import require_likeness
from ssai3d_rt.runtime.trust import doubt_warning, doubtful_share, seen_again, trust_map

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ssai3d_rt.export.bundle import AdaptationEntry
    from ssai3d_rt.imaging.axial import Float
    from ssai3d_rt.imaging.normalise import Normalisation
    from ssai3d_rt.imaging.stack import Stack
    from ssai3d_rt.runtime.backends import Runner

OVERLAP_PX = 32


@dataclass(frozen=True, slots=True, eq=False)
class Restored:
    """What `restore` returns.

    Parameters
    ----------
    stack
        Isotropic, of the raw stack's dtype and intensity scale, with its names.
    report
        What was done: shapes, voxel sizes, normalisation, backend, bundle, seconds, warnings; plain JSON values.
    trust
        ``(Z, Y, X)`` float32, likely error as a fraction of the intensity range (see `trust`), where it was asked for.
    """

    stack: Stack
    report: dict[str, Any]
    trust: Stack | None = None


def restore(
    stack: Stack,
    how: Bundle | Runner,
    *,
    trust: bool = False,
    denoise: str | Denoising | None = None,
    warnings: Sequence[str] | None = None,
    progress: Progress = silent,
) -> Restored:
    """Restore one stack.

    Parameters
    ----------
    stack
        As acquired.
    how
        An opened bundle (a backend is then chosen for this call), or a runner, which stays open.
    trust
        Also predict the error of each voxel; takes twice the time.
    denoise
        ``auto``, ``off``, a denoiser's name, or what was chosen for this stack before; None does as the bundle says,
        and is ``auto`` with a runner.
    warnings
        What `warnings_of` said of the stack, where that was asked before; None asks it here.
    progress
        Told the tiles done.

    Raises
    ------
    ConfigError
        No denoiser of that name.
    InputError
        Fewer than three planes, or samples that are not finite.
    BackendError
        No backend can run the bundle here, or it failed, or what came out has nothing in common with the stack.
    """
    if isinstance(how, Bundle):
        told = warnings_of(stack, how.manifest.adaptation) if warnings is None else warnings
        mode = mode_of(denoise, how.manifest.adaptation) if not isinstance(denoise, Denoising) else denoise
        with contextlib.closing(open_runner(how)) as runner:
            return restore(stack, runner, trust=trust, denoise=mode, warnings=told, progress=progress)
    require_restorable(stack)
    start = time.monotonic()
    plan = denoise if isinstance(denoise, Denoising) else Denoising.of(stack.data, mode_of(denoise))
    result = restore_array(
        stack.data,
        stack.voxel_um,
        how.run,
        tile=how.tile,
        batch=how.batch,
        overlap=OVERLAP_PX,
        want_disagreement=trust,
        denoised=plan.apply(stack.data, progress=progress),
        progress=progress,
    )
    require_likeness(stack.data, result.data)
    restored = replace(stack, data=result.data, voxel_um=result.voxel_um)
    doubt = None
    share = 0.0
    if result.disagreement is not None:
        counts = result.data.astype(np.float32)
        again = _restored_again(stack, counts, result.normalisation, how, plan, progress)
        trusted = trust_map(stack, counts, result.disagreement, result.normalisation, again=again)
        share = doubtful_share(trusted, stack, counts, result.normalisation)
        doubt = replace(restored, data=trusted)
    report = {
        "source": str(stack.source) if stack.source else None,
        "position": stack.position,
        "time": stack.time,
        "channel": stack.channel,
        "dtype": stack.data.dtype.name,
        "shape": list(stack.data.shape),
        "voxel_um": list(stack.voxel_um),
        "restored_shape": list(restored.data.shape),
        "restored_voxel_um": list(restored.voxel_um),
        "offset": result.normalisation.offset,
        "scale": result.normalisation.scale,
        "mean_ratio": result.mean_ratio,
        "backend": how.name,
        "backend_detail": how.detail,
        "bundle_id": how.bundle_id,
        "tile": how.tile,
        "overlap": OVERLAP_PX,
        **plan.record(),
        "denoise_why": plan.why,
        "seconds": round(time.monotonic() - start, 3),
        "warnings": warnings_of(stack) if warnings is None else list(warnings),
    }
    if doubt is not None:
        report["mean_doubt"] = float(doubt.data.mean(dtype=np.float64))
        report["doubtful"] = round(share, 4)
        report["warnings"] += [sentence] if (sentence := doubt_warning(share)) else []
    return Restored(restored, report, doubt)


def mode_of(denoise: str | None, adaptation: AdaptationEntry | None = None) -> str:
    """Say how to denoise: as asked, else as the bundle's model was made, else ``auto``."""
    if denoise is not None:
        return denoise
    return adaptation.denoise if adaptation is not None else "auto"


def _restored_again(
    stack: Stack, restored: Float, scale: Normalisation, runner: Runner, plan: Denoising, progress: Progress
) -> Float:
    """Restore what the microscope would have seen of the restored stack: ``(Zi, Y, X)`` float32, normalised."""
    planes = seen_again(stack, restored, scale)
    quiet = plan.apply(planes)
    shown = resample_z(scale.apply(planes if quiet is None else quiet), stack.anisotropy)
    if stack.data.min() == stack.data.max():
        return shown

    def told(label: str, done: int, total: int, /) -> None:
        progress(f"{label} again, for the trust map", done, total)

    result = deblur_axial(shown, runner.run, tile=runner.tile, batch=runner.batch, overlap=OVERLAP_PX, progress=told)
    return result.volume
