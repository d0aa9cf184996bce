"""`Sample`: something to put under the demo's microscope, of which the truth is known.

A sample is a volume of strands on an isotropic grid and what an anisotropic microscope's camera counts in each of its
planes: blurred along Z, with shot noise and read noise. The camera's offset and gain lead from counts back to the
truth's scale. It does not know how it is acquired: `microscope` shows its planes to a camera or writes them to a file.

>>> sample = Sample.strands(seed=1, size_px=32)
>>> sample.truth.shape == sample.counts.shape, sample.counts.dtype.name, sample.pixel_um
(True, 'uint16', 0.1)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ssai3d_rt.imaging.simulate import STANDARD_SHAPE, STANDARD_STRANDS, Camera, acquire, strands

PIXEL_UM = 0.1
"""Size of the camera's pixel in the sample."""


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One simulated sample and what a camera counts in each of its planes.

    Parameters
    ----------
    truth
        ``(Z, Y, X)`` float32 in [0, 1], isotropic.
    counts
        ``(Z, Y, X)`` uint16: what the camera counts at the height of each plane of `truth`, noise included.
    camera
        Offset, gain and noise of the camera that counted.
    seed
        Seed of the sample and of its noise.
    pixel_um
        Edge of a voxel of both volumes, in micrometres.
    """

    truth: npt.NDArray[np.float32]
    counts: npt.NDArray[np.uint16]
    camera: Camera
    seed: int
    pixel_um: float = PIXEL_UM

    @classmethod
    def strands(cls, seed: int, *, size_px: int = STANDARD_SHAPE[0]) -> Sample:
        """Make a cube of strands in all directions; with the default size, the standard case (axial std 4 px).

        Parameters
        ----------
        seed
            Another seed is another sample of the same kind.
        size_px
            Edge of the cube; the density of the strands stays.
        """
        count = max(1, round(STANDARD_STRANDS * (size_px / STANDARD_SHAPE[0]) ** 2))
        truth = strands((size_px, size_px, size_px), count, seed=seed)
        camera = Camera()
        seen = acquire(truth, camera=camera, pixel_um=PIXEL_UM, seed=seed)
        return cls(truth, seen.data.astype(np.uint16, copy=False), camera, seed)

    def on_truth_scale(self, counts: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        """Return counts of any volume of this sample on the scale of `truth`: float32, by the known offset and gain."""
        return (counts.astype(np.float32) - np.float32(self.camera.offset)) / np.float32(self.camera.full_scale)
