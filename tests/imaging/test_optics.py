from __future__ import annotations

import numpy as np
import pytest

from ssai3d_rt.imaging.optics import Gaussian, Objective, diffraction_psf, varying_psf_blur
from ssai3d_rt.imaging.simulate import STANDARD_STD_PX, Camera, acquire, gaussian_psf_blur, psf_blur, record, strands
from ssai3d_rt.imaging.spots import fwhm_um

SHARP, WIDE = Gaussian((1.5, 0.5, 0.5)), Gaussian((4.0, 0.5, 0.5), 20.0)
SMALL = 41


def test_a_recorded_stack_is_what_acquiring_the_sharp_sample_gives() -> None:
    truth = strands((24, 32, 32), 6, seed=1)
    blurred = gaussian_psf_blur(truth, STANDARD_STD_PX)
    one = record(blurred, 3, camera=Camera(photons=80), seed=4)
    other = acquire(truth, 3, camera=Camera(photons=80), seed=4)
    np.testing.assert_array_equal(one.data, other.data)
    assert one.voxel_um == other.voxel_um == (0.3, 0.1, 0.1)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_psf_that_does_not_change_is_one_blur(axis: int) -> None:
    volume = strands((28, 32, 36), 8, seed=2)
    inside = (slice(4, -4),) * 3
    varying = varying_psf_blur(volume, (SHARP, SHARP, SHARP), axis=axis)
    np.testing.assert_allclose(varying[inside], gaussian_psf_blur(volume, SHARP.std_px)[inside], atol=1e-5)


def test_each_end_of_the_field_gets_its_own_psf_and_the_middle_the_mean_of_both() -> None:
    points = np.zeros((33, 9, 121), np.float32)
    points[16, 4, [0, 60, 120]] = 1
    shown = varying_psf_blur(points, (SHARP, WIDE), axis=2)
    alone = np.zeros((33, 9, 61), np.float32)
    alone[16, 4, 30] = 1
    sharp, wide = (gaussian_psf_blur(alone, psf.std_px, psf.rotation_deg) for psf in (SHARP, WIDE))
    np.testing.assert_allclose(shown[:, :, 45:76], (sharp + wide)[:, :, 15:46] / 2, atol=2e-4)
    assert shown[16, 4, 0] > 2 * shown[16, 4, 120]


def test_a_varying_psf_needs_two() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        varying_psf_blur(np.zeros((4, 4, 4), np.float32), (SHARP,), axis=0)


def test_the_theoretical_psf_is_as_wide_as_diffraction_says_and_no_gaussian() -> None:
    pytest.importorskip("microscPSF", reason="diffraction is computed by MicroscPSF-Py")
    middle = SMALL // 2
    widths = {}
    for confocal in (False, True):
        psf = diffraction_psf(Objective(1.1, confocal=confocal), side_px=SMALL)
        assert psf.sum() == pytest.approx(1)
        assert psf.min() >= 0
        assert [int(i) for i in np.unravel_index(psf.argmax(), psf.shape)] == [middle] * 3
        np.testing.assert_allclose(psf, psf[::-1], atol=1e-6 * psf.max())
        np.testing.assert_allclose(psf, psf.transpose(0, 2, 1), atol=1e-6 * psf.max())
        widths[confocal] = (fwhm_um(psf[:, middle, middle], 0.1), fwhm_um(psf[middle, middle], 0.1))
    # Airy disk: 0.51 wavelengths / NA. Along the axis of a wide-field microscope, Born and Wolf: sinc^2.
    axial, lateral = widths[False]
    assert lateral == pytest.approx(0.51 * 0.52 / 1.1, rel=0.1)
    assert axial == pytest.approx(0.886 * 0.52 / (1.33 - (1.33**2 - 1.1**2) ** 0.5), rel=0.15)
    assert widths[True][0] == pytest.approx(axial / 2**0.5, rel=0.05)
    line = diffraction_psf(Objective(1.1), side_px=SMALL)[:, middle, middle]
    dips = (np.diff(np.sign(np.diff(line))) > 0).sum()
    assert dips >= 2  # a Gaussian has none


def test_a_psf_needs_a_middle() -> None:
    with pytest.raises(ValueError, match="odd side"):
        diffraction_psf(Objective(1.0), side_px=20)


def test_blurring_with_a_point_changes_nothing() -> None:
    volume = strands((12, 16, 20), 4, seed=3)
    point = np.zeros((3, 5, 3))
    point[1, 2, 1] = 1
    np.testing.assert_allclose(psf_blur(volume, point), volume, atol=1e-6)
