"""A real pair: wide-field planes restored, against a confocal stack of the same nucleus.

python benchmarks/real_pair.py xyzc_16bit__dna_conf_wf.tif --iterations 160

The file (NEUBIAS training resources, CC-BY) holds one nucleus twice, as its metadata say: channel 0 by a confocal laser
scanning microscope, channel 1 by a wide-field one, both through a 40x/1.2 W objective, at 455 nm. Each restored volume
is compared with the confocal one by normalised cross-correlation (NCC), which knows no scale and no offset.

What makes it fair: the confocal stack is resampled to the same isotropic grid and shifted onto the raw wide-field
stack once (by the detail of single planes, so that haze does not count), the same for all methods. NCC is taken over
the whole volume but a border that the shift leaves without data, and over the nucleus and its surroundings alone.
Richardson-Lucy has two PSFs, the Gaussian that calibration measures and the theoretical one of a wide-field microscope
(Gibson-Lanni, package MicroscPSF-Py), and its best number of iterations, chosen with the confocal stack at hand.

With --after the same methods are also shown the stack as Richardson-Lucy with the wide-field PSF leaves it: taking
away haze is a wide-field matter that a network for axial blur does not know.

Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.optimize import minimize

from ssai3d_rt.calibration import calibrate
from ssai3d_rt.compare import Budget, method
from ssai3d_rt.compare.classical import RichardsonLucy
from ssai3d_rt.imaging import read_stack
from ssai3d_rt.imaging.axial import resample_z
from ssai3d_rt.imaging.metrics import ncc
from ssai3d_rt.imaging.optics import Objective, diffraction_psf
from ssai3d_rt.imaging.stack import Stack
from ssai3d_rt.progress import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ssai3d_rt.calibration.profile import RigProfile
    from ssai3d_rt.compare import Fit, Method

Float = npt.NDArray[np.float32]

OBJECTIVE = Objective(1.2, wavelength_um=0.455, index=1.333)
PSF_SIDE_PX, FINER = 41, 5
"""Side of the wide-field PSF in voxels, and how much finer it is computed along each axis."""
BORDER_PX = (4, 6, 6)
"""Left out at each end: more than the shift between the channels."""
SURROUNDINGS_PX = 4


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="xyzc_16bit__dna_conf_wf.tif")
    parser.add_argument("--methods", default="raw,base,ssai3d")
    parser.add_argument("--iterations", type=int, default=160, help="of training")
    parser.add_argument("--rl", default="5,10,20,40,80", help="iterations of Richardson-Lucy that are tried")
    parser.add_argument("--after", default="20", help="iterations of Richardson-Lucy before the methods; empty: none")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    stack = read_stack(asked.file, channel=1)
    rig = calibrate(stack)
    confocal, shift = on_the_grid_of(stack, read_stack(asked.file, channel=0))
    places = regions(confocal)
    print(f"confocal shifted by {np.round(shift, 2).tolist()} px (z, y, x); blur that calibration measures along Z:")
    print(f"{rig.blur_px_min:.2f} to {rig.blur_px_max:.2f} px; lateral {rig.lateral_um} um, axial {rig.axial_um} um\n")
    print(f"{'method':32} {'whole':>7} {'nucleus':>8} {'fit s':>6}", flush=True)
    budget, rows = Budget(iterations=asked.iterations, seed=asked.seed), {}
    counts, before = ([int(count) for count in text.split(",") if count] for text in (asked.rl, asked.after))
    named = [(name, method(name)) for name in asked.methods.split(",") if name]
    for label, each in (*named, *richardson_lucy(stack, counts), *after(stack, before, named)):
        fit = each.fit(stack, rig, budget)
        begin = time.monotonic()
        volume = fit.restore(stack)
        row: dict[str, Any] = {name: round(ncc(volume[at], confocal[at]), 4) for name, at in places.items()}
        row |= {"fit_s": round(fit.seconds, 1), "restore_s": round(time.monotonic() - begin, 1)}
        rows[label] = row | {"kept": fit.notes.get("kept")}
        print(f"{label:32} {row['whole']:7.4f} {row['nucleus']:8.4f} {row['fit_s']:6.0f}", flush=True)
    print(json.dumps({"iterations": asked.iterations, "seed": asked.seed, "shift_px": shift.tolist(), "rows": rows}))


@dataclass(frozen=True)
class After:
    """A method that is shown what another one restored."""

    first: Method
    then: Method
    name: str = "after"
    summary: str = "one method after another"

    def fit(self, stack: Stack, rig: RigProfile | None, budget: Budget, *, progress: Progress = silent) -> Fit:
        """Restore with the first, calibrate on that, and fit the second to it."""
        volume = self.first.fit(stack, rig, budget).restore(stack)
        shown = Stack(np.maximum(volume, 0), (stack.lateral_um,) * 3)
        fit = self.then.fit(shown, calibrate(shown), budget, progress=progress)
        return replace(fit, restore=lambda _: fit.restore(shown))


def after(stack: Stack, counts: list[int], named: list[tuple[str, Method]]) -> Iterator[tuple[str, Method]]:
    """Name the methods after Richardson-Lucy with the wide-field PSF."""
    for count in counts:
        first = RichardsonLucy(iterations=count, psf=wide_field_psf(stack))
        yield from ((f"{name} after wide-field {count}", After(first, each)) for name, each in named if name != "raw")


def wide_field_psf(stack: Stack) -> Float:
    """Compute the theoretical PSF of the wide-field microscope in the stack's lateral pixels."""
    return binned(diffraction_psf(OBJECTIVE, pixel_um=stack.lateral_um / FINER, side_px=FINER * PSF_SIDE_PX))


def richardson_lucy(stack: Stack, counts: list[int]) -> Iterator[tuple[str, Method]]:
    """Name Richardson-Lucy with both PSFs and every number of iterations."""
    psf = wide_field_psf(stack)
    for count in counts:
        yield f"richardson-lucy, Gaussian, {count}", RichardsonLucy(iterations=count)
    for count in counts:
        yield f"richardson-lucy, wide-field, {count}", RichardsonLucy(iterations=count, psf=psf)


def binned(psf: npt.NDArray[np.float64]) -> Float:
    """Sum `FINER` samples along each axis into one: pixels are larger than the PSF's detail and collect its light."""
    side = len(psf) // FINER
    return np.asarray(psf.reshape(side, FINER, side, FINER, side, FINER).sum((1, 3, 5)), np.float32)


def on_the_grid_of(stack: Stack, other: Stack) -> tuple[Float, npt.NDArray[np.float64]]:
    """Resample another stack of the same scene to isotropic voxels and shift it onto the stack.

    Returns
    -------
    The volume ``(Zi, Y, X)`` and the shift in px (z, y, x).
    """
    volume = resample_z(other.data.astype(np.float32), other.anisotropy)
    wanted = detail(resample_z(stack.data.astype(np.float32), stack.anisotropy))
    sharp = detail(ndimage.gaussian_filter(volume, (0, 1, 1)))
    inside = _inside()

    def mismatch(shift: npt.NDArray[np.float64]) -> float:
        return -ncc(ndimage.shift(sharp, shift, order=1, mode="nearest")[inside], wanted[inside])

    starts = [np.array([z, 0.0, x]) for z in (-2.0, 0.0, 2.0) for x in (0.0, 3.0)]
    best = min((_descended(mismatch, start) for start in starts), key=lambda found: float(found.fun))
    return ndimage.shift(volume, best.x, order=3, mode="nearest"), best.x


def _descended(function: Any, start: npt.NDArray[np.float64]) -> Any:
    simplex = np.vstack([start, start + 2 * np.eye(3)])
    options = {"initial_simplex": simplex, "xatol": 0.02, "fatol": 1e-6}
    return minimize(function, start, method="Nelder-Mead", options=options)


def detail(volume: Float, std_px: float = 3.0) -> Float:
    """Take the lateral blur of `std_px` off each plane: what is in focus stays."""
    return volume - ndimage.gaussian_filter(volume, (0, std_px, std_px))


def regions(confocal: Float) -> dict[str, Any]:
    """Where NCC is taken: an index per name."""
    nucleus = ndimage.gaussian_filter(confocal, 1) > 0.05 * np.percentile(confocal, 99.9)
    near = ndimage.binary_dilation(nucleus, iterations=SURROUNDINGS_PX)
    allowed = np.zeros(confocal.shape, bool)
    allowed[_inside()] = True
    return {"whole": _inside(), "nucleus": near & allowed}


def _inside() -> tuple[slice, slice, slice]:
    z, y, x = (slice(border, -border) for border in BORDER_PX)
    return z, y, x


if __name__ == "__main__":
    main()
