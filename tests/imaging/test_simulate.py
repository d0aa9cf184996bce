from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest

from ssai3d_rt.imaging.metrics import psnr
from ssai3d_rt.imaging.simulate import (
    STANDARD_STD_PX,
    Camera,
    acquire,
    beads,
    cylinders,
    gaussian_psf_blur,
    noise,
    spheres,
    standard_strands,
    strands,
    tubes,
)

if TYPE_CHECKING:
    from collections.abc import Callable

Float = npt.NDArray[np.float32]
SHAPE = (40, 48, 56)
SAMPLES: dict[str, Callable[[int], Float]] = {
    "beads": lambda seed: beads(SHAPE, 10, seed=seed),
    "strands": lambda seed: strands(SHAPE, 12, seed=seed),
    "flat strands": lambda seed: strands(SHAPE, 12, flat=True, seed=seed),
    "tubes": lambda seed: tubes(SHAPE, 8, seed=seed),
    "spheres": lambda seed: spheres(SHAPE, 8, seed=seed),
    "cylinders": lambda seed: cylinders(SHAPE, 8, seed=seed),
}


@pytest.mark.parametrize("sample", SAMPLES)
def test_a_sample_is_a_volume_from_zero_to_one_and_the_same_for_the_same_seed(sample: str) -> None:
    volume = SAMPLES[sample](3)
    assert volume.shape == SHAPE
    assert volume.dtype == np.float32
    assert volume.min() == pytest.approx(0, abs=1e-3)
    assert 0.3 < volume.max() <= 1
    np.testing.assert_array_equal(volume, SAMPLES[sample](3))
    assert np.abs(volume - SAMPLES[sample](4)).max() > 0.3


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_standard_case_loses_about_20_db(seed: int, flat: bool) -> None:
    truth = standard_strands(seed, flat=flat)
    raw = gaussian_psf_blur(truth, STANDARD_STD_PX)
    assert 18.5 < psnr(raw, truth, 1.0) < 21.5


def test_flat_strands_keep_to_their_plane() -> None:
    one = strands((41, 64, 64), 1, thickness_px=(2.0, 2.0), flat=True, seed=5)
    assert 1 <= np.count_nonzero(one.max(axis=(1, 2)) > 0.5) <= 3


def test_beads_have_their_width_and_keep_apart() -> None:
    volume = beads((64, 64, 64), 5, std_px=2.0, seed=0).astype(np.float64)
    # The brightness of all beads over their volume: each holds height (2 pi)^1.5 std^3.
    heights = volume.sum() / ((2 * np.pi) ** 1.5 * 2.0**3)
    assert 5 * 0.5 < heights < 5
    z, y, x = np.unravel_index(volume.argmax(), volume.shape)
    ratio = volume[z, y, x - 2] / volume[z, y, x] * volume[z, y, x + 2] / volume[z, y, x]
    assert ratio == pytest.approx(np.exp(-1.0), rel=0.02)  # exp(-0.5) on each side


def test_a_point_becomes_the_gaussian_that_was_asked_for() -> None:
    point = np.zeros((61, 41, 41), np.float32)
    point[30, 20, 20] = 1
    blurred = gaussian_psf_blur(point, (4.0, 2.0, 0.0)).astype(np.float64)
    grid = np.meshgrid(*(np.arange(n) - n // 2 for n in point.shape), indexing="ij")
    spread = [np.sqrt(np.sum(blurred * g**2)) for g in grid]
    assert blurred.sum() == pytest.approx(1.0, abs=1e-5)
    assert spread == pytest.approx([4.0, 2.0, 0.0], rel=5e-3, abs=0.02)
    assert blurred[30, 20, 20] == blurred.max()


def test_a_tilted_psf_leans_from_z_towards_x() -> None:
    point = np.zeros((61, 21, 61), np.float32)
    point[30, 10, 30] = 1
    blurred = gaussian_psf_blur(point, (5.0, 1.0, 1.0), rotation_deg=30).astype(np.float64)
    z, _, x = np.meshgrid(*(np.arange(n) - n // 2 for n in point.shape), indexing="ij")
    covariance = np.array([[np.sum(blurred * a * b) for b in (z, x)] for a in (z, x)])
    values, vectors = np.linalg.eigh(covariance)
    assert values == pytest.approx([1.0, 25.0], rel=0.02)
    assert np.degrees(np.arctan2(vectors[1, 1], vectors[0, 1])) % 180 == pytest.approx(30, abs=0.5)


def test_blur_keeps_light_and_does_not_darken_the_ends() -> None:
    blurred = gaussian_psf_blur(np.ones((20, 16, 16), np.float32), (4.0, 1.0, 1.0))
    np.testing.assert_allclose(blurred, 1.0, atol=1e-5)


def test_noise_has_the_variance_that_photons_and_camera_give() -> None:
    level = np.full((30, 60, 60), 0.5, np.float32)
    noisy = noise(level, photons=200, read_noise=3, seed=1)
    assert noisy.mean() == pytest.approx(0.5, rel=0.01)
    assert noisy.var() == pytest.approx((0.5 * 200 + 9) / 200**2, rel=0.03)
    np.testing.assert_array_equal(noisy, noise(level, 200, 3, seed=1))


@pytest.mark.parametrize(("step", "planes"), [(1, 40), (3, 14), (4.25, 10), (39, 2)])
def test_acquire_keeps_every_step_and_says_the_voxel_size(step: float, planes: int) -> None:
    truth = SAMPLES["beads"](0)
    stack = acquire(truth, step, std_px=(2.0, 0.5, 0.5), camera=Camera(photons=None), pixel_um=0.2)
    assert stack.data.shape == (planes, 48, 56)
    assert stack.data.dtype == np.uint16
    assert stack.voxel_um == pytest.approx((0.2 * step, 0.2, 0.2))
    if step == int(step):
        expected = 100 + 4000 * gaussian_psf_blur(truth, (2.0, 0.5, 0.5))[:: int(step)]
        assert np.abs(stack.data.astype(float) - expected).max() <= 0.51


def test_acquired_noise_follows_its_seed() -> None:
    truth = SAMPLES["beads"](0)
    first, same, other = (acquire(truth, 4, seed=seed).data.astype(int) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert np.abs(first - other).max() > 10


@pytest.mark.parametrize("std", [(-1.0, 1.0, 1.0), (float("nan"), 1.0, 1.0)])
def test_impossible_blurs_are_refused(std: Any) -> None:
    with pytest.raises(ValueError, match="0 or more"):
        gaussian_psf_blur(np.ones((4, 4, 4), np.float32), std)
