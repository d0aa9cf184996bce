"""One job: one method fitted to one stack of one row, what it restores compared with the truth."""

from __future__ import annotations

import hashlib
import logging
import math
import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ssai3d_rt.adapt.settings import FinetuneSettings
from ssai3d_rt.calibration import calibrate
from ssai3d_rt.compare import Budget
from ssai3d_rt.errors import InputError, Ssai3dError
from ssai3d_rt.imaging.metrics import mse, psnr, ssim
from ssai3d_rt.imaging.normalise import Normalisation
from ssai3d_rt.imaging.spots import find_spots
from suite.cases import FWHM_PER_STD, VOXEL_UM
from suite.methods import prepared

if TYPE_CHECKING:
    from ssai3d_rt.imaging.simulate import Camera
    from ssai3d_rt.imaging.stack import Stack
    from suite.rows import Row

Float = npt.NDArray[np.float32]
SHIPPED_STEPS = 3
"""Times the steps that fine-tuning as shipped takes: it is made for minutes."""
SAME_BEAD_PX = 4.0
"""A fitted spot belongs to a bead whose middle is not farther."""


@dataclass(frozen=True, slots=True)
class Job:
    """A row, one of its methods and one of its seeds."""

    row: Row
    method: str
    seed: int
    crop: int | None

    @property
    def digest(self) -> str:
        """Says what was asked for: results of another row definition are not taken for this job's."""
        asked: tuple[Any, ...] = (self.row.case, self.row.restored, self.iterations, self.method, self.seed, self.crop)
        if self.shipped:
            asked = (*asked, FinetuneSettings())
        return hashlib.sha256(repr(asked).encode()).hexdigest()[:12]

    @property
    def iterations(self) -> int:
        """Steps of training, more for what ships."""
        return self.row.iterations * (SHIPPED_STEPS if self.shipped else 1)

    @property
    def shipped(self) -> bool:
        """Whether the method is fine-tuning as shipped, with or without settings."""
        return self.method.partition("[")[0] == "ssai3d"

    @property
    def cost_s(self) -> float:
        """Seconds on one core, about: measured on an AMD EPYC."""
        voxels = self.row.case.side**3
        restoring = {"raw": 0.0, "richardson-lucy": 2.5e-6}.get(self.method, 4e-6) * voxels
        total = 0.7 + 5e-7 * voxels + len(self.row.restored) * (restoring + 1.5e-6 * voxels)
        if self.method in ("raw", "richardson-lucy", "base"):
            return total
        step_s = {"self-net": 0.8, "care": 0.2, "full": 0.2, "sparse:all": 0.2}.get(self.method, 0.13)
        crops = 1.0 if self.method == "self-net" else ((self.crop or 96) / 64) ** 2
        shipped = 4e-6 * voxels + 6 if self.shipped else 0.0
        return total + 1 + self.iterations * step_s * crops + shipped


def run(job: Job) -> list[dict[str, Any]]:
    """Do a job; one result for each stack restored, or one with ``error``."""
    warned = _Warnings()
    logging.getLogger("ssai3d_rt").addHandler(warned)
    begun, cpu = time.monotonic(), time.process_time()
    try:
        results = _measured(job)
    except Ssai3dError as error:
        results = [{"error": str(error)}]
    except Exception:
        results = [{"error": traceback.format_exc()}]
    finally:
        logging.getLogger("ssai3d_rt").removeHandler(warned)
    shared = {
        "row": job.row.name,
        "group": job.row.group,
        "method": job.method,
        "seed": job.seed,
        "digest": job.digest,
        "job_s": round(time.monotonic() - begun, 2),
        "job_cpu_s": round(time.process_time() - cpu, 2),
        "warnings": warned.seen,
    }
    return [shared | result for result in results]


def _measured(job: Job) -> list[dict[str, Any]]:
    truth = job.row.case.truth(job.seed)
    stack = job.row.case.stack(truth, job.seed)
    method = prepared(job.method, job.row.case, job.crop)
    notes: dict[str, Any] = {}
    try:
        rig = calibrate(stack)
        notes["calibrated_px"] = (rig.blur_px_min, rig.blur_px_max)
    except InputError as error:
        rig = None
        notes["calibration"] = str(error)
    fit = method.fit(stack, rig, Budget(iterations=job.iterations, seed=job.seed))
    notes |= dict(fit.notes)
    common = {
        "seconds": round(fit.seconds, 2),
        "trained_parameters": fit.trained_parameters,
        "lateral_mse": _lateral_mse(notes, stack, job.row.case.camera),
    }
    results = []
    for name, case in job.row.restored:
        given = stack if case == job.row.case else case.stack(truth, job.seed)
        begun = time.monotonic()
        counts = fit.restore(given)
        values: dict[str, Any] = {"test": name, "restore_s": round(time.monotonic() - begun, 2)}
        volume = on_truth_scale(counts, case.camera)
        values |= compare(volume, truth[: len(volume)])
        if case.sample == "beads":
            values |= bead_widths(volume, truth)
        results.append(values | common | {"notes": notes})
    return results


def on_truth_scale(counts: Float, camera: Camera) -> Float:
    """Undo the simulated camera's known offset and gain: the truth's peak is 1."""
    return (counts.astype(np.float32) - np.float32(camera.offset)) / np.float32(camera.full_scale)


def compare(volume: Float, truth: Float) -> dict[str, float]:
    """Compare with the truth, all on the truth's scale with peak 1.

    The structural similarity is that of the article's eq. 9; its L = 65535 for 16-bit images is peak 1 here.
    ``ssim_local`` takes the same in Gaussian windows and averages.
    """
    return {
        "psnr_db": round(psnr(volume, truth, 1.0), 4),
        "mse": float(f"{mse(volume, truth):.6g}"),
        "ssim": round(ssim(volume, truth, 1.0, std_px=None), 5),
        "ssim_local": round(ssim(volume, truth, 1.0), 5),
    }


def bead_widths(volume: Float, truth: Float) -> dict[str, float]:
    """Full widths at half maximum of the beads that can be fitted, in nanometres; ``beads`` is how many."""
    places = np.array([spot.centre_px for spot in find_spots(truth)])
    unit_nm = 1000 * VOXEL_UM * FWHM_PER_STD
    found = [s for s in find_spots(volume) if np.linalg.norm(places - s.centre_px, axis=1).min() <= SAME_BEAD_PX]
    true = np.array([spot.std_px for spot in find_spots(truth)]) * unit_nm
    if not found:
        return {"beads": 0, "beads_true": len(places)}
    widths = np.array([spot.std_px for spot in found]) * unit_nm
    lateral = np.sqrt(widths[:, 1] * widths[:, 2])
    return {
        "beads": len(found),
        "beads_true": len(places),
        "axial_nm": round(float(widths[:, 0].mean()), 2),
        "axial_sd_nm": round(float(widths[:, 0].std(ddof=1)), 2) if len(found) > 1 else math.nan,
        "lateral_nm": round(float(lateral.mean()), 2),
        "true_lateral_nm": round(float(np.sqrt(true[:, 1] * true[:, 2]).mean()), 2),
    }


def _lateral_mse(notes: dict[str, Any], stack: Stack, camera: Camera) -> float | None:
    """Mean square error of held-out lateral pairs, on the truth's scale as the axial error is; None without pairs."""
    lateral_db = notes.get("lateral_psnr_db")
    if lateral_db is None or not math.isfinite(lateral_db):
        return None
    unit = Normalisation.of(stack.data).scale / camera.full_scale
    return float(f"{10 ** (-lateral_db / 10) * unit**2:.6g}")


class _Warnings(logging.Handler):
    """Collects the package's warnings, so that they are kept with the result."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one message."""
        self.seen.append(record.getMessage())
