"""The PSF bank: which blurs turn a sharp lateral plane into something like an axial slice.

25 Gaussian PSFs, 5 sizes x 5 orientations (article, Methods: std 3..7 px, -45..45 degrees, 51 x 51 support). A
*variety* on purpose: it states that a microscope low-passes along one axis, not exactly how, which guards against a
wrong PSF. Sizes come from the rig profile where there is one.

>>> bank = psf_bank(3.0, 7.0)
>>> len(bank), bank[0].std_px, bank[-1].angle_deg
(25, 3.0, 45.0)
>>> kernel = bank[0].kernel()
>>> kernel.shape, round(float(kernel.sum()), 3)
((51, 51), 1.0)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

ARTICLE_STD_PX = (3.0, 7.0)
ARTICLE_ANGLES_DEG = (-45.0, -22.5, 0.0, 22.5, 45.0)
SUPPORT_PX = 51


@dataclass(frozen=True, slots=True)
class Psf:
    """A Gaussian PSF that blurs along one direction.

    Parameters
    ----------
    std_px
        Standard deviation along the blurred direction in isotropic pixels.
    angle_deg
        Direction, in degrees away from Z (rows).
    across_px
        Standard deviation across it; 0 leaves that direction as sharp as it is.
    """

    std_px: float
    angle_deg: float = 0.0
    across_px: float = 0.0

    def kernel(self, support_px: int = SUPPORT_PX) -> npt.NDArray[np.float32]:
        """Sample the PSF: ``(support, support)`` float32, sum 1; rows are Z; a width below 0.3 px is drawn as 0.3."""
        half = support_px // 2
        y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float64)
        angle = np.deg2rad(self.angle_deg)
        along, across = y * np.cos(angle) + x * np.sin(angle), x * np.cos(angle) - y * np.sin(angle)
        kernel = np.exp(-0.5 * ((along / self.std_px) ** 2 + (across / max(self.across_px, 0.3)) ** 2))
        return np.asarray(kernel / kernel.sum(), np.float32)


def psf_bank(
    min_px: float = ARTICLE_STD_PX[0],
    max_px: float = ARTICLE_STD_PX[1],
    *,
    angles_deg: tuple[float, ...] = ARTICLE_ANGLES_DEG,
    sizes: int = 5,
) -> list[Psf]:
    """Make the bank: `sizes` widths from `min_px` to `max_px`, each at all `angles_deg`."""
    return [Psf(float(std), angle) for std in np.linspace(min_px, max_px, sizes) for angle in angles_deg]
