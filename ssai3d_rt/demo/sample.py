"""`Sample`: something to put under the demo's microscope, of which the truth is known.

A sample is a volume of strands on an isotropic grid, what an anisotropic microscope makes of it (blurred along Z, shot
noise, read noise, 16 bit counts), and the two numbers that lead from counts back to the truth's scale. It does not know
how it is acquired: `microscope` shows its planes to a camera or writes them to a file.

>>> sample = Sample.strands(seed=1, size=32)
>>> sample.truth.shape == sample.counts.shape, sample.counts.dtype.name, sample.pixel_um
(True, 'uint16', 0.1)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ssai3d_rt.imaging import simulate

AXIAL_STD_PX = 4.0
"""Axial standard deviation of the blur, in isotropic pixels (the article's simulations use 0.5 and 4.0)."""

LATERAL_STD_PX = 0.5
"""Lateral standard deviation of the blur, in pixels."""


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One simulated sample and what a camera counts in each of its planes.

    Parameters
    ----------
    truth
        ``(Z, Y, X)`` float32 in [0, 1], isotropic.
    counts
        ``(Z, Y, X)`` uint16: what the camera counts at the height of each plane of `truth`, noise included.
    pixel_um
        Edge of a voxel of both volumes, in micrometres.
    offset_counts, full_scale_counts
        Camera counts where the truth is 0, and how many more where it is 1 (before blur and noise).
    seed
        Seed of the sample and of its noise.
    """

    truth: npt.NDArray[np.float32]
    counts: npt.NDArray[np.uint16]
    pixel_um: float
    offset_counts: float
    full_scale_counts: float
    seed: int

    @classmethod
    def strands(cls, seed: int, *, size: int = 96, pixel_um: float = 0.1, photons: float = 1000.0) -> Sample:
        """Make a cube of strands in all directions, as seen through an axially blurring microscope.

        Parameters
        ----------
        seed
            Another seed is another sample of the same kind.
        size
            Edge of the cube in pixels.
        pixel_um
            Size of the camera's pixel in the sample, in micrometres.
        photons
            Photons that reach the camera from one pixel of full brightness: the fewer, the noisier.
        """
        truth = simulate.strands((size, size, size), seed=seed)
        blurred = simulate.gaussian_psf_blur(truth, (AXIAL_STD_PX, LATERAL_STD_PX, LATERAL_STD_PX))
        noisy = simulate.noise(blurred, photons=photons, read_noise=2.0 / photons, seed=seed)
        offset, full_scale = 400.0, 20000.0
        counts = np.clip(np.rint(offset + full_scale * noisy), 0, 65535).astype(np.uint16)
        return cls(truth, counts, pixel_um, offset, full_scale, seed)

    def on_truth_scale(self, counts: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        """Return counts of any volume of this sample on the scale of `truth`: float32, by the known offset and gain."""
        return (counts.astype(np.float32) - np.float32(self.offset_counts)) / np.float32(self.full_scale_counts)
