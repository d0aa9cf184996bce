from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from ssai3d_rt.calibration.limits import measured_limits
from ssai3d_rt.imaging import Stack, read_stack
from ssai3d_rt.imaging.simulate import Camera, acquire, spheres, strands

if TYPE_CHECKING:
    from pathlib import Path

FINE = strands((48, 64, 64), 40, seed=3)
COARSE = spheres((48, 64, 64), 15, seed=3)


def camera(photons: float) -> Camera:
    return Camera(photons=photons, offset=1000)


@pytest.mark.parametrize(
    ("stack", "words"),
    [
        (acquire(FINE, 2), []),
        (acquire(COARSE, 2), []),
        (acquire(FINE, 2, camera=Camera(photons=None)), []),
        (acquire(FINE, 2, camera=camera(60)), []),
        (acquire(FINE, 2, camera=camera(8)), ["very noisy data (signal to noise ratio 1."]),
        (acquire(FINE, 2, std_px=(4.0, 2.0, 2.0)), []),
        (acquire(COARSE, 2, std_px=(4.0, 1.5, 1.5)), []),
        (acquire(FINE, 2, std_px=(6.0, 4.5, 4.5)), ["the lateral planes are blurred themselves (finest detail about"]),
        (Stack(np.full((6, 32, 32), 7, np.uint16), (0.2, 0.1, 0.1)), []),
        (Stack(np.arange(5 * 8 * 8, dtype=np.uint16).reshape(5, 8, 8), (0.2, 0.1, 0.1)), []),
    ],
    ids=["fine", "coarse", "clean", "some noise", "noisy", "oversampled", "soft", "blurred", "constant", "tiny"],
)
def test_measured_limits(stack: Stack, words: list[str]) -> None:
    found = measured_limits(stack)
    assert len(found) == len(words), found
    for sentence, beginning in zip(found, words, strict=True):
        assert sentence.startswith(beginning)
        assert "\n" not in sentence


@pytest.mark.parametrize(
    "name", ["xyz_16bit__spots.tif", "Bead_Image1_crop.tif", "xyz_8bit__mitotic_plate_calibrated.tif"]
)
def test_real_stacks_are_not_blamed(shared_data: Path, name: str) -> None:
    assert measured_limits(read_stack(shared_data / "stacks" / name)) == []
