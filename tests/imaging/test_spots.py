from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from ssai3d_rt.imaging.simulate import Camera, acquire, beads
from ssai3d_rt.imaging.spots import GAUSSIAN_FWHM, find_spots, fwhm_um, spot_fwhm_um


@pytest.mark.parametrize("std", [1.2, 2.0, 7.3])
@pytest.mark.parametrize("baseline", [0.0, 250.0])
def test_fwhm_of_a_gaussian_profile(std: float, baseline: float) -> None:
    profile = baseline + 100 * np.exp(-0.5 * ((np.arange(60) - 30.3) / std) ** 2)
    # Between two samples the crossing is linear: a few per cent wrong where the peak is three samples wide.
    assert fwhm_um(profile, 0.2) == pytest.approx(0.2 * GAUSSIAN_FWHM * std, rel=0.06 if std < 2 else 0.02)


def test_fwhm_is_nan_where_a_side_does_not_fall() -> None:
    assert math.isnan(fwhm_um([1, 2, 3, 4], 1.0))
    assert math.isnan(fwhm_um([5, 5, 5, 5], 1.0))


@pytest.mark.parametrize(
    ("step", "axial_std", "photons"),
    [
        pytest.param(1, 4.0, None, id="clean"),
        pytest.param(3, 4.0, 300, id="planes 3 px apart"),
        pytest.param(5, 3.0, 300, id="planes 5 px apart"),
        pytest.param(2, 5.0, 150, id="noisy"),
    ],
)
def test_beads_blurred_by_a_known_psf_have_the_expected_width(
    step: int, axial_std: float, photons: float | None
) -> None:
    truth = beads((96, 96, 96), 20, std_px=1.5, seed=2)
    stack = acquire(truth, step, std_px=(axial_std, 1.0, 1.0), camera=Camera(photons))
    found = spot_fwhm_um(stack.data, stack.voxel_um)
    assert found.count >= 8
    assert found.axial_um == pytest.approx(0.1 * GAUSSIAN_FWHM * math.hypot(1.5, axial_std), rel=0.06)
    assert found.lateral_um == pytest.approx(0.1 * GAUSSIAN_FWHM * math.hypot(1.5, 1.0), rel=0.06)


def test_places_heights_and_backgrounds_are_found() -> None:
    z, y, x = np.ogrid[0:40, 0:64, 0:64]
    centres = [(12.3, 20.7, 15.2), (28.1, 40.4, 50.9)]
    volume = np.full((40, 64, 64), 50.0)
    for cz, cy, cx in centres:
        volume += 400 * np.exp(-0.5 * (((z - cz) / 3) ** 2 + ((y - cy) / 2) ** 2 + ((x - cx) / 1.6) ** 2))
    found = sorted(find_spots(volume), key=lambda spot: spot.centre_px)
    assert len(found) == 2
    for spot, centre in zip(found, centres, strict=True):
        assert spot.centre_px == pytest.approx(centre, abs=0.01)
        assert spot.std_px == pytest.approx((3, 2, 1.6), rel=0.01)
        assert (spot.height, spot.background) == pytest.approx((400, 50), rel=0.01)
        assert spot.quality > 0.99


def test_touching_spots_are_left_out() -> None:
    z, y, x = np.ogrid[0:30, 0:80, 0:80]

    def spot(cz: float, cy: float, cx: float) -> Any:
        return np.exp(-0.5 * (((z - cz) / 2) ** 2 + ((y - cy) / 2) ** 2 + ((x - cx) / 2) ** 2))

    volume = spot(15, 20, 20) + spot(15, 20, 28) + spot(15, 60, 60)
    found = find_spots(volume)
    assert [spot.centre_px for spot in found] == [pytest.approx((15, 60, 60), abs=0.05)]


def test_spots_cut_by_the_border_are_left_out() -> None:
    z, y, x = np.ogrid[0:20, 0:40, 0:40]
    volume = np.exp(-0.5 * ((z / 3) ** 2 + ((y - 20) / 2) ** 2 + ((x - 20) / 2) ** 2))
    assert find_spots(volume) == []


@pytest.mark.parametrize(
    "volume",
    [
        pytest.param(np.zeros((20, 30, 30)), id="empty"),
        pytest.param(np.random.default_rng(0).normal(100, 5, (20, 60, 60)), id="noise"),
        pytest.param(np.ones((3, 30, 30)), id="too few planes"),
    ],
)
def test_nothing_is_found_where_nothing_is(volume: Any) -> None:
    found = spot_fwhm_um(volume, (0.3, 0.1, 0.1))
    assert found.count == 0
    assert math.isnan(found.axial_um)
    assert math.isnan(found.lateral_um)


def test_real_beads(shared_data: Any) -> None:
    import tifffile

    data = tifffile.imread(shared_data / "stacks" / "Bead_Image1_crop.tif")
    found = spot_fwhm_um(data, (0.125, 0.0225, 0.0225))
    assert found.count == 4  # as many as can be seen
    # Read by eye off the profiles through the brightest bead: 0.60 um along Z, 0.16 and 0.22 um along X and Y.
    assert found.axial_um == pytest.approx(0.6, rel=0.1)
    assert found.lateral_um == pytest.approx(0.19, rel=0.1)


def test_real_spots(shared_data: Any) -> None:
    import tifffile

    data = tifffile.imread(shared_data / "stacks" / "xyz_16bit__spots.tif")
    found = spot_fwhm_um(data, (0.4, 0.0941, 0.0941))
    assert found.count >= 4
    assert 0.2 < found.lateral_um < 0.35
    assert 0.7 < found.axial_um < 1.2
