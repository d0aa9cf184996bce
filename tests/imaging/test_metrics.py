from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest

from ssai3d_rt.imaging.metrics import isotropy_ratio, mse, ncc, psnr, ssim

Doubles = npt.NDArray[np.float64]


def images(seed: int = 0) -> tuple[Doubles, Doubles]:
    rng = np.random.default_rng(seed)
    truth = rng.random((12, 20, 20))
    return truth + rng.normal(0, 0.05, truth.shape), truth


def test_mse_and_psnr_of_a_known_difference() -> None:
    truth = np.zeros((3, 4, 5), np.uint16)
    image = np.full((3, 4, 5), 655, np.uint16)
    assert mse(image, truth) == 655**2
    assert psnr(image, truth, data_range=65535) == pytest.approx(20 * math.log10(65535 / 655))
    assert psnr(image, image, data_range=65535) == math.inf


def test_unsigned_counts_do_not_wrap() -> None:
    low, high = np.array([[[1]]], np.uint16), np.array([[[2]]], np.uint16)
    assert mse(low, high) == mse(high, low) == 1.0


@pytest.mark.parametrize("std_px", [1.5, None])
def test_ssim_is_one_for_equal_images_and_falls_with_noise(std_px: float | None) -> None:
    image, truth = images()
    worse = truth + 4 * (image - truth)
    assert ssim(truth, truth, 1.0, std_px=std_px) == pytest.approx(1.0)
    assert 1 > ssim(image, truth, 1.0, std_px=std_px) > ssim(worse, truth, 1.0, std_px=std_px) > 0


def test_global_ssim_is_the_articles_equation_9() -> None:
    image, truth = images()
    c1, c2 = 0.01**2, 0.03**2
    covariance = np.cov(image.ravel(), truth.ravel(), bias=True)
    luminance = (2 * image.mean() * truth.mean() + c1) / (image.mean() ** 2 + truth.mean() ** 2 + c1)
    structure = (2 * covariance[0, 1] + c2) / (covariance[0, 0] + covariance[1, 1] + c2)
    assert ssim(image, truth, 1.0, std_px=None) == pytest.approx(luminance * structure)


def test_windowed_ssim_of_one_voxel_computed_the_long_way() -> None:
    # With a window that reaches far beyond a small image, every voxel has the same window up to its weights.
    image, truth = (array[:2, :2, :2] for array in images())
    std, reach = 1.5, 5
    total = 0.0
    for place in np.ndindex(2, 2, 2):
        weight = np.zeros((2, 2, 2))
        for offset in np.ndindex(11, 11, 11):
            shift = np.array(offset) - reach
            source = (place + shift) % 4  # symmetric reflection of two samples has period 4: 0 1 1 0
            weight[tuple(np.where(source < 2, source, 3 - source))] += np.exp(-0.5 * np.sum((shift / std) ** 2))
        weight /= weight.sum()
        mean_a, mean_b = np.sum(weight * image), np.sum(weight * truth)
        var_a, var_b = np.sum(weight * image**2) - mean_a**2, np.sum(weight * truth**2) - mean_b**2
        covariance = np.sum(weight * image * truth) - mean_a * mean_b
        likeness = (2 * mean_a * mean_b + 1e-4) * (2 * covariance + 9e-4)
        total += likeness / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4))
    assert ssim(image, truth, 1.0) == pytest.approx(total / 8)


def test_ssim_does_not_change_with_the_unit() -> None:
    image, truth = images()
    assert ssim(image * 65535, truth * 65535, 65535) == pytest.approx(ssim(image, truth, 1.0))


def test_ncc() -> None:
    image, truth = images()
    assert ncc(3 * truth + 7, truth) == pytest.approx(1.0)
    assert ncc(-truth, truth) == pytest.approx(-1.0)
    assert ncc(image, truth) == pytest.approx(np.corrcoef(image.ravel(), truth.ravel())[0, 1])
    assert ncc(np.ones_like(truth), truth) == 0.0


def test_isotropy_ratio_is_one_when_isotropic_and_below_when_blurred_along_z() -> None:
    assert isotropy_ratio(0.2, 0.2) == 1.0
    assert isotropy_ratio(0.2, 0.7) == pytest.approx(0.286, abs=1e-3)


def test_different_shapes_are_a_programming_mistake() -> None:
    with pytest.raises(ValueError, match="shapes differ"):
        psnr(np.zeros((2, 2, 2)), np.zeros((2, 2, 3)), 1.0)
