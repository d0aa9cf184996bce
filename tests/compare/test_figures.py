from __future__ import annotations

import numpy as np
import pytest

from ssai3d_rt.compare.figures import blurred_again, fitted_to, measure, truth_for
from ssai3d_rt.errors import InputError
from ssai3d_rt.imaging.axial import resample_z
from ssai3d_rt.imaging.simulate import Camera, acquire, gaussian_psf_blur, strands
from ssai3d_rt.imaging.stack import Stack

TRUTH = strands((48, 40, 44), 15, seed=3)
CLEAN = acquire(TRUTH, 4, std_px=(3.0, 0.0, 0.0), camera=Camera(photons=None))


def test_blurring_again_is_what_the_microscope_did() -> None:
    planes = blurred_again(TRUTH, 12, 4.0, 3.0)
    assert np.allclose(planes, gaussian_psf_blur(TRUTH, (3.0, 0.0, 0.0))[::4][:12], atol=2e-3)


def test_the_truth_explains_the_stack_and_a_mirrored_one_does_not() -> None:
    true = TRUTH[: CLEAN.isotropic_planes] * 4000 + 100
    good = measure(true, CLEAN, 3.0)
    bad = measure(np.ascontiguousarray(true[:, ::-1]), CLEAN, 3.0)
    blurred = measure(resample_z(CLEAN.data.astype(np.float32), 4.0), CLEAN, 3.0)
    assert good.residual < 0.06
    assert bad.residual > 1.0
    assert good.residual < 0.5 * blurred.residual


def test_a_blurred_volume_is_less_isotropic_than_the_truth() -> None:
    true = TRUTH[: CLEAN.isotropic_planes]
    sharp = measure(true, CLEAN, 3.0, true)
    blurred = measure(resample_z(CLEAN.data.astype(np.float32), 4.0), CLEAN, 3.0, true)
    assert sharp.isotropy is not None
    assert blurred.isotropy is not None
    assert blurred.isotropy < 0.6 < sharp.isotropy
    assert sharp.ncc == pytest.approx(1.0)
    assert sharp.ssim == pytest.approx(1.0)
    assert blurred.ncc is not None
    assert blurred.ncc < 0.9


def test_figures_against_the_truth_do_not_depend_on_the_scale() -> None:
    true = TRUTH[: CLEAN.isotropic_planes]
    volume = resample_z(CLEAN.data.astype(np.float32), 4.0)
    one, other = measure(volume, CLEAN, 3.0, true), measure(volume, CLEAN, 3.0, 60000 * true + 500)
    assert one.psnr_db == pytest.approx(other.psnr_db, abs=0.01)
    assert one.ssim == pytest.approx(other.ssim, abs=1e-3)


def test_fitting_gives_back_a_volume_of_another_scale() -> None:
    assert np.allclose(fitted_to(3 * TRUTH + 7, TRUTH), TRUTH, atol=1e-4)
    assert np.allclose(fitted_to(np.ones_like(TRUTH), TRUTH), TRUTH.mean())


def test_what_cannot_be_measured_is_absent() -> None:
    flat = np.full((CLEAN.isotropic_planes, *CLEAN.data.shape[1:]), 7.0, np.float32)
    found = measure(flat, CLEAN, 3.0)
    assert (found.axial_um, found.lateral_um, found.isotropy, found.psnr_db) == (None, None, None, None)


def test_a_truth_must_fit_the_stack() -> None:
    voxel = (0.1, 0.1, 0.1)
    assert truth_for(CLEAN, Stack(TRUTH, voxel)).shape == (CLEAN.isotropic_planes, 40, 44)
    with pytest.raises(InputError, match="isotropic voxels"):
        truth_for(CLEAN, Stack(TRUTH, (0.4, 0.1, 0.1)))
    with pytest.raises(InputError, match=r"has shape .* the restored stack has"):
        truth_for(CLEAN, Stack(TRUTH[:, 1:], voxel))
