"""A picture of how the resolution was measured: spectra, cut-offs and, where there are beads, their profiles.

It knows how to draw, not how to measure.

>>> import tempfile
>>> from pathlib import Path
>>> from ssai3d_rt.calibration import calibrate
>>> from ssai3d_rt.imaging.simulate import acquire, strands
>>> stack = acquire(strands((48, 48, 48), 12), 3)
>>> with tempfile.TemporaryDirectory() as folder:
...     path = Path(folder) / "rig.png"
...     draw_spectra(stack, calibrate(stack), path)
...     path.stat().st_size > 10_000
True
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ssai3d_rt.calibration.beads import PointSpots, point_spots, profile_along
from ssai3d_rt.calibration.resolution import lateral_cutoffs
from ssai3d_rt.errors import InputError, StorageError
from ssai3d_rt.figure import new_figure
from ssai3d_rt.imaging.fourier import cutoff_of, richest_window, spectrum

if TYPE_CHECKING:
    from pathlib import Path

    from ssai3d_rt.calibration.profile import RigProfile
    from ssai3d_rt.imaging.stack import Stack

LATERAL, AXIAL = "#0072b2", "#d55e00"


def draw_spectra(stack: Stack, profile: RigProfile, path: Path) -> None:
    """Write a PNG: power along X, Y and Z against spatial frequency with noise floors and cut-offs; bead profiles.

    Parameters
    ----------
    stack
        A stack that the profile was measured on.
    profile
        What was measured.
    path
        The PNG to write.

    Raises
    ------
    MissingPackageError
        matplotlib is not installed.
    StorageError
        The picture could not be written.
    """
    # Measured where calibration measured: in the window that holds most contrast.
    stack = replace(stack, data=richest_window(stack.data))
    spots = _spots(stack)
    panels = 2 if spots is None else 3
    figure = new_figure(figsize=(4.8 * panels, 4.2), layout="constrained")
    axes = figure.subplots(1, panels)
    _draw_slices(axes[0], stack)
    _draw_power(axes[1], stack)
    if spots is not None:
        _draw_profiles(axes[2], stack, spots)
    how = f"{profile.spots} spots" if profile.resolution_from == "spots" else "spectra"
    figure.suptitle(
        f"{stack.source.name if stack.source else 'stack'}: lateral {profile.lateral_um:.3g} µm, axial "
        f"{profile.axial_um:.3g} µm (FWHM, from {how}); blur along Z {profile.blur_px_min:.2g} to "
        f"{profile.blur_px_max:.2g} px",
        fontsize=10,
    )
    try:
        figure.savefig(path, dpi=130)
    except OSError as error:
        raise StorageError(f"cannot write the picture {path}: {error.strerror or error}") from error


def _spots(stack: Stack) -> PointSpots | None:
    try:
        lateral = lateral_cutoffs(stack)
    except InputError:
        return None
    std_um = sum(cutoff.std_um for cutoff in lateral) / len(lateral)
    return point_spots(stack.data, stack.voxel_um, lateral_std_um=std_um)


def _draw_slices(axes: Any, stack: Stack) -> None:
    """XZ maximum projection in true proportions, so that the blur can be seen."""
    projection = stack.data.max(axis=1).astype(np.float64)
    low, high = np.percentile(projection, (1, 99.8))
    z_um, _, x_um = stack.voxel_um
    extent = (0, projection.shape[1] * x_um, projection.shape[0] * z_um, 0)
    axes.imshow(projection, cmap="gray", vmin=low, vmax=max(high, low + 1e-9), extent=extent, interpolation="nearest")
    axes.set(title="XZ, brightest along Y", xlabel="X (µm)", ylabel="Z (µm)")


def _draw_power(axes: Any, stack: Stack) -> None:
    lowest = np.inf
    for axis, name, colour, style in ((2, "X", LATERAL, "-"), (1, "Y", LATERAL, "--"), (0, "Z", AXIAL, "-")):
        try:
            found = spectrum(stack.data, axis, stack.voxel_um[axis])
        except InputError:
            continue
        top = float(found.power.max()) or 1.0
        label = name
        try:
            cutoff = cutoff_of(found)
        except InputError:
            label += ": no structure above noise"
        else:
            by = "" if cutoff.limit == "signal" else f" ({cutoff.limit} limit)"
            label += f": ends at {cutoff.frequency:.3g} / µm{by}"
            axes.axvline(cutoff.frequency, color=colour, linestyle=style, linewidth=0.8)
        axes.plot(found.frequency[1:], found.power[1:] / top, color=colour, linestyle=style, label=label)
        if found.floor > 0:
            axes.axhline(found.floor / top, color=colour, linestyle=":", linewidth=0.8)
        lowest = min(lowest, float(found.power[1:].min()) / top)
    axes.set(
        title="power (dotted: noise floor)",
        xlabel="spatial frequency (cycles / µm)",
        ylabel="relative power",
        yscale="log",
        ylim=(max(lowest / 3, 1e-9), 3),
    )
    axes.legend(fontsize=8)


def _draw_profiles(axes: Any, stack: Stack, spots: PointSpots) -> None:
    widths = (
        ("X and Y", (2, 1), LATERAL, spots.lateral_std_um, spots.lateral_um),
        ("Z", (0,), AXIAL, spots.axial_std_um, spots.axial_um),
    )
    for name, along, colour, std_um, fwhm_um in widths:
        for axis, marker in zip(along, (".", "+"), strict=False):
            distance, height = profile_along(stack.data, spots, axis, stack.voxel_um[axis])
            axes.plot(distance, height, marker, color=colour, markersize=4, alpha=0.5)
        curve = np.linspace(-4 * std_um, 4 * std_um, 200)
        axes.plot(curve, np.exp(-0.5 * (curve / std_um) ** 2), color=colour, label=f"{name}: FWHM {fwhm_um:.3g} µm")
    axes.set(title=f"{spots.count} spots", xlabel="distance from the centre (µm)", ylabel="height", ylim=(-0.2, 1.4))
    axes.legend(fontsize=8)
