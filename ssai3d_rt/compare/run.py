"""Compare methods on one stack: fit each, restore, measure, write; one table and one picture of all.

Methods run one after another. Of each restored volume only the slices for the picture are kept in memory.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ssai3d_rt.compare.classical import middle_blur_px
from ssai3d_rt.compare.figures import Figures, fitted_to, measure, truth_for
from ssai3d_rt.compare.picture import Panel, Place, draw, liveliest_place
from ssai3d_rt.compare.table import markdown
from ssai3d_rt.errors import BackendError, ConfigError
from ssai3d_rt.imaging.axial import resample_z
from ssai3d_rt.imaging.normalise import Normalisation
from ssai3d_rt.imaging.stack import Stack
from ssai3d_rt.imaging.write import write_ome_tiff
from ssai3d_rt.progress import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from ssai3d_rt.calibration.profile import RigProfile
    from ssai3d_rt.compare.method import Budget, Fit, Method

Float = npt.NDArray[np.float32]

RECORD, TABLE, PICTURE = "comparison.json", "comparison.md", "comparison.png"


@dataclass(frozen=True, slots=True)
class Row:
    """What one method did.

    Parameters
    ----------
    method, summary
        Name, and what it does.
    figures
        See `Figures`.
    fit_s, restore_s
        Seconds that training and restoring took.
    trained_parameters, notes
        See `Fit`.
    file
        Name of the restored stack's file.
    """

    method: str
    summary: str
    figures: Figures
    fit_s: float
    restore_s: float
    trained_parameters: int
    notes: Mapping[str, Any]
    file: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """What `compare` leaves: one row per method, and the files."""

    source: str
    rows: tuple[Row, ...]
    has_truth: bool
    folder: Path

    @property
    def picture(self) -> Path:
        """The picture."""
        return self.folder / PICTURE

    def record(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {"source": self.source, "has_truth": self.has_truth, "rows": [asdict(row) for row in self.rows]}


def compare(
    stack: Stack,
    methods: Sequence[Method],
    folder: Path,
    *,
    rig: RigProfile | None = None,
    budget: Budget,
    truth: Stack | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Comparison:
    """Fit all methods to one stack, restore it with each, and write what came of it.

    Parameters
    ----------
    stack
        The raw stack.
    methods
        At least one; see `ssai3d_rt.compare.METHODS`.
    folder
        For ``NAME.ome.tif`` of each method (a colon becomes a hyphen), `RECORD`, `TABLE` and `PICTURE`.
    rig
        What was measured about the microscope.
    budget
        How long each method may train.
    truth
        Isotropic voxels as large as the stack's lateral pixels, on any intensity scale.
    overwrite
        Replace an earlier comparison in the folder.
    progress
        Told what goes on.

    Raises
    ------
    ConfigError
        No method, the same twice, or the folder holds a comparison.
    InputError
        The truth does not belong to the stack, or the stack does not suit a method.
    BackendError
        A method returned another shape, or values that are not finite.
    MissingPackageError
        A method's package, or matplotlib, is not installed.
    """
    _require_usable(methods, folder, overwrite=overwrite)
    true = truth_for(stack, truth) if truth is not None else None
    place = liveliest_place(true if true is not None else resample_z(stack.data.astype(np.float32), stack.anisotropy))
    rows, panels = [], []
    for each in methods:

        def told(label: str, done: int, total: int, /, name: str = each.name) -> None:
            progress(f"{name}: {label}", done, total)

        fit = each.fit(stack, rig, budget, progress=told)
        progress(f"{each.name}: restore", 0, 1)
        started = time.monotonic()
        volume = _checked(fit.restore(stack), stack, each.name)
        restore_s = time.monotonic() - started
        progress(f"{each.name}: restore", 1, 1)
        figures = measure(volume, stack, middle_blur_px(rig), true)
        file = _write(volume, stack, each, fit, folder)
        trained = fit.trained_parameters
        rows.append(Row(each.name, each.summary, figures, fit.seconds, restore_s, trained, dict(fit.notes), file))
        panels.append(_panel(each.name, figures, volume, true, place))
    source = stack.source.name if stack.source else "a stack in memory"
    found = Comparison(source, tuple(rows), true is not None, folder)
    if true is not None:
        panels.append(Panel("truth", (), place.xz(true), place.yz(true)))
    draw(panels, found.picture, title=source, voxel_um=stack.lateral_um)
    (folder / RECORD).write_text(json.dumps(found.record(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    (folder / TABLE).write_text(markdown(found.rows, found.source), encoding="utf-8")
    return found


def _require_usable(methods: Sequence[Method], folder: Path, *, overwrite: bool) -> None:
    names = [each.name for each in methods]
    if not names:
        raise ConfigError("there is no method to compare")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"the method {twice[0]} is named twice")
    if (folder / RECORD).exists() and not overwrite:
        raise ConfigError(f"{folder} holds a comparison; replace it with --overwrite, or name another folder with -o")
    folder.mkdir(parents=True, exist_ok=True)
    if overwrite:
        for path in (folder / RECORD, folder / TABLE, folder / PICTURE, *(folder / _file_name(n) for n in names)):
            path.unlink(missing_ok=True)


def _checked(volume: Float, stack: Stack, name: str) -> Float:
    wanted = (stack.isotropic_planes, *stack.data.shape[1:])
    if volume.shape != wanted:
        raise BackendError(f"{name} returned shape {volume.shape} instead of {wanted}")
    if not np.isfinite(volume).all():
        raise BackendError(f"{name} returned values that are not finite (NaN or infinity)")
    return volume


def _file_name(name: str) -> str:
    return f"{name.replace(':', '-')}.ome.tif"


def _write(volume: Float, stack: Stack, method: Method, fit: Fit, folder: Path) -> str:
    """Write a restored volume in the stack's dtype; return the file's name."""
    counts = Normalisation(0.0, 1.0).undo(volume, stack.data.dtype)
    restored = Stack(counts, (stack.lateral_um, *stack.voxel_um[1:]), stack.channel, stack.time, stack.position)
    name = _file_name(method.name)
    write_ome_tiff(folder / name, restored, {"method": method.name, "notes": dict(fit.notes)})
    return name


def _panel(name: str, figures: Figures, volume: Float, truth: Float | None, place: Place) -> Panel:
    lines = []
    if figures.psnr_db is not None:
        lines += [f"PSNR {figures.psnr_db:.1f} dB", f"SSIM {figures.ssim:.3f}", f"NCC {figures.ncc:.3f}"]
    if figures.axial_um is not None:
        lines.append(f"axial {figures.axial_um:.2f} µm")
    if figures.isotropy is not None and truth is None:
        lines.append(f"isotropy {figures.isotropy:.2f}")
    if truth is None:
        lines.append(f"residual {100 * figures.residual:.1f} %")
        return Panel(name, tuple(lines), place.xz(volume), place.yz(volume))
    # A truth may be on another scale of intensities: shown is what is measured.
    fitted = fitted_to(volume, truth)
    return Panel(name, tuple(lines), place.xz(fitted), place.yz(fitted), place.xz(fitted - truth))
