"""Beads and other point-like spots as a ruler: which of a stack's spots may be trusted, and their mean profile.

Any bright thing can be fitted with a Gaussian. Point-like spots are round, of one size, and as wide as the spectrum of
the stack says a point would be; ends of fibres and nuclei are not.

>>> import numpy as np
>>> from ssai3d_rt.imaging.simulate import acquire, beads
>>> stack = acquire(beads((48, 96, 96), 8, std_px=1.5, seed=1), 2, std_px=(3.0, 0.5, 0.5))
>>> found = point_spots(stack.data, stack.voxel_um, lateral_std_um=0.16)
>>> found is not None and found.count >= 6
True
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ssai3d_rt.imaging.spots import GAUSSIAN_FWHM, Spot, find_spots

Volume = npt.NDArray[Any]
Doubles = npt.NDArray[np.float64]

FEWEST_SPOTS = 4
"""Good spots that a resolution may be based on."""
_ROUND = 1.5
_SCATTER = 0.3
_LIKE_SPECTRUM = (0.5, 1.6)


@dataclass(frozen=True, slots=True, eq=False)
class PointSpots:
    """The point-like spots of a stack.

    Parameters
    ----------
    spots
        Round ones, brightest first.
    axial_std_um, lateral_std_um
        Medians of their standard deviations in micrometres.
    """

    spots: tuple[Spot, ...]
    axial_std_um: float
    lateral_std_um: float

    @property
    def count(self) -> int:
        """Number of spots."""
        return len(self.spots)

    @property
    def axial_um(self) -> float:
        """Full width at half maximum along Z in micrometres."""
        return GAUSSIAN_FWHM * self.axial_std_um

    @property
    def lateral_um(self) -> float:
        """Lateral full width at half maximum in micrometres."""
        return GAUSSIAN_FWHM * self.lateral_std_um


def point_spots(data: Volume, voxel_um: tuple[float, float, float], *, lateral_std_um: float) -> PointSpots | None:
    """Find spots that show the point-spread function; None unless there are at least `FEWEST_SPOTS` that agree.

    Parameters
    ----------
    data
        ``(Z, Y, X)`` counts.
    voxel_um
        ``(z, y, x)`` voxel size in micrometres.
    lateral_std_um
        Standard deviation that the lateral spectrum gives a point; spots of another size are not points.
    """
    found = find_spots(data)
    if not found:
        return None
    std = np.array([spot.std_px for spot in found]) * np.asarray(voxel_um)
    lateral = np.sqrt(std[:, 1] * std[:, 2])
    lower, upper = (bound * lateral_std_um for bound in _LIKE_SPECTRUM)
    good = (std[:, 1:].max(axis=1) < _ROUND * std[:, 1:].min(axis=1)) & (lateral > lower) & (lateral < upper)
    if np.count_nonzero(good) < max(FEWEST_SPOTS, len(found) / 2):
        return None
    axial, lateral = std[good, 0], lateral[good]
    if _scatter(axial) > _SCATTER or _scatter(lateral) > _SCATTER:
        return None
    spots = tuple(spot for spot, keep in zip(found, good, strict=True) if keep)
    return PointSpots(spots, float(np.median(axial)), float(np.median(lateral)))


def profile_along(data: Volume, spots: PointSpots, axis: int, spacing_um: float) -> tuple[Doubles, Doubles]:
    """Collect samples through the spots' centres: (distance in um, height from 0 to about 1), sorted by distance."""
    distances, heights = [], []
    for spot in spots.spots:
        place: list[int | slice] = [round(c) for c in spot.centre_px]
        reach = int(np.ceil(4 * spot.std_px[axis])) + 1
        middle = round(spot.centre_px[axis])
        first = max(0, middle - reach)
        place[axis] = slice(first, middle + reach + 1)
        line = data[tuple(place)].astype(np.float64)
        distances.append((np.arange(first, first + line.size) - spot.centre_px[axis]) * spacing_um)
        heights.append((line - spot.background) / spot.height)
    distance, height = np.concatenate(distances), np.concatenate(heights)
    order = np.argsort(distance)
    return distance[order], height[order]


def _scatter(values: Doubles) -> float:
    """Relative spread, robust: 1.48 times the median absolute deviation over the median."""
    middle = float(np.median(values))
    return 1.4826 * float(np.median(np.abs(values - middle))) / middle
