"""Voxel sizes: what a file says, what the caller says, and a refusal where neither does. Never a default.

>>> from pathlib import Path
>>> resolve_voxel(Path("a.tif"), FoundVoxel(z_um=0.4, y_um=0.1, x_um=0.1))
(0.4, 0.1, 0.1)
>>> resolve_voxel(Path("a.tif"), FoundVoxel(z_um=None, y_um=0.1, x_um=0.1))
Traceback (most recent call last):
ssai3d_rt.errors.VoxelSizeError: a.tif: the plane spacing (z) is not in the file; give it in um, e.g. --voxel-z 0.4
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ssai3d_rt.errors import VoxelSizeError
from ssai3d_rt.imaging.openfile import shown

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_log = logging.getLogger(__name__)

UM_PER_UNIT = {
    "pm": 1e-6,
    "å": 1e-4,
    "angstrom": 1e-4,
    "nm": 1e-3,
    "nanometer": 1e-3,
    "nanometre": 1e-3,
    "um": 1.0,
    "µm": 1.0,  # micro sign
    "μm": 1.0,  # Greek mu
    "micron": 1.0,
    "microns": 1.0,
    "micrometer": 1.0,
    "micrometre": 1.0,
    "micrometers": 1.0,
    "mm": 1e3,
    "cm": 1e4,
    "in": 25400.0,
    "inch": 25400.0,
    "m": 1e6,
}
"""Micrometres per unit. "pixel", "reference frame" and unknown units are absent on purpose."""

PRINT_UNITS = {"cm", "in", "inch", "m"}
PLAUSIBLE_UM = (0.001, 10.0)
"""A size in a unit that is used for printing counts only where it is one that a microscope can have."""


@dataclass(frozen=True, slots=True)
class FoundVoxel:
    """What a file says about its voxel, in micrometres; None where it says nothing usable."""

    z_um: float | None = None
    y_um: float | None = None
    x_um: float | None = None

    def or_else(self, other: FoundVoxel) -> FoundVoxel:
        """Return this one, with `other` filling in the plane spacing or the lateral size where it is absent."""
        z_um = self.z_um if self.z_um is not None else other.z_um
        if self.y_um is None or self.x_um is None:
            return FoundVoxel(z_um, other.y_um, other.x_um)
        return FoundVoxel(z_um, self.y_um, self.x_um)


def length_um(value: object, unit: str | None) -> float | None:
    """Return a length in micrometres; None where it is absent, zero, not finite or without a physical unit.

    The sign is dropped: a stack taken from top to bottom has the same spacing.

    >>> length_um("94.1", "nm"), length_um(0, "µm"), length_um(1.0, "pixel")
    (0.0941, None, None)
    """
    if not isinstance(unit, str):  # damaged metadata may hold anything
        return None
    factor = UM_PER_UNIT.get(unit.strip().lower().replace("\\u00b5", "µ"))
    if factor is None or isinstance(value, bool):
        return None
    try:
        length = abs(float(value)) * factor  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return round(length, 9) if math.isfinite(length) and length > 0 else None


def pixel_um(resolution: tuple[int, int] | None, unit: str | None) -> float | None:
    """Return the pixel size from a TIFF resolution, (pixels, units) in `unit`.

    Exactly (1, 1) is what writers leave there when they know nothing, and counts as absent.
    """
    if resolution is None or resolution == (1, 1) or resolution[0] <= 0 or resolution[1] <= 0:
        return None
    length = length_um(resolution[1] / resolution[0], unit)
    if length is not None and (unit or "").lower() in PRINT_UNITS and not PLAUSIBLE_UM[0] <= length <= PLAUSIBLE_UM[1]:
        return None
    return length


def voxel_of_tags(
    description: Mapping[str, Any], resolution: tuple[tuple[int, int] | None, tuple[int, int] | None, int]
) -> FoundVoxel:
    """Return the voxel size that an ImageJ-like description and the TIFF resolution tags give together.

    Parameters
    ----------
    description
        May hold ``unit`` and ``spacing`` (of the planes, in that unit).
    resolution
        X, Y as (pixels, units), and the TIFF resolution unit: 1 none, 2 inch, 3 centimetre.
    """
    x_resolution, y_resolution, tiff_unit = resolution
    named = description.get("unit")
    unit = named if isinstance(named, str) else None
    lateral_unit = unit or {2: "inch", 3: "cm"}.get(tiff_unit)
    return FoundVoxel(
        z_um=length_um(description.get("spacing"), unit),
        y_um=pixel_um(y_resolution, lateral_unit),
        x_um=pixel_um(x_resolution, lateral_unit),
    )


def resolve_voxel(
    path: Path, found: FoundVoxel, voxel_z: float | None = None, voxel_xy: float | None = None
) -> tuple[float, float, float]:
    """Return ``(z, y, x)`` in micrometres: the caller's word first, then the file's.

    Raises
    ------
    VoxelSizeError
        One of them is given by neither, or is not a positive number, or the pixels are not square.
    """
    z_um = _chosen(path, "voxel_z", voxel_z, found.z_um)
    y_um = _chosen(path, "voxel_xy", voxel_xy, found.y_um)
    x_um = _chosen(path, "voxel_xy", voxel_xy, found.x_um)
    name = shown(path)
    if z_um is None and (y_um is None or x_um is None):
        raise VoxelSizeError(
            f"{name}: the voxel size (z and xy) is not in the file; give it in um, e.g. --voxel-z 0.4 --voxel-xy 0.1"
        )
    if z_um is None:
        raise VoxelSizeError(f"{name}: the plane spacing (z) is not in the file; give it in um, e.g. --voxel-z 0.4")
    if y_um is None or x_um is None:
        raise VoxelSizeError(f"{name}: the pixel size (xy) is not in the file; give it in um, e.g. --voxel-xy 0.1")
    if abs(y_um - x_um) > 0.01 * max(y_um, x_um):
        raise VoxelSizeError(
            f"{name}: pixels are not square (y {y_um:g} um, x {x_um:g} um); resample them, or give --voxel-xy"
        )
    return z_um, y_um, x_um


def _chosen(path: Path, name: str, given: float | None, found: float | None) -> float | None:
    if given is None:
        return found
    if not math.isfinite(given) or given <= 0:
        raise VoxelSizeError(
            f"{shown(path)}: --{name.replace('_', '-')} must be a positive number of micrometres, got {given}"
        )
    if found is not None and not math.isclose(given, found, rel_tol=1e-6):
        _log.info("%s: %s is %g um as given, the file says %g um", shown(path), name, given, found)
    return float(given)
