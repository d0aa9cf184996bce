from __future__ import annotations

import numpy as np
import pytest

from ssai3d_rt.calibration.noise import measure_intensity, measure_noise
from ssai3d_rt.imaging.simulate import Camera, acquire, gaussian_psf_blur, standard_strands


@pytest.mark.parametrize("gain", [0.5, 2.0, 8.0])
@pytest.mark.parametrize("read", [2.0, 12.0])
def test_gain_and_read_noise_of_a_smooth_sample(gain: float, read: float) -> None:
    rng = np.random.default_rng(0)
    smooth = gaussian_psf_blur(standard_strands(1), (4.0, 4.0, 4.0))
    expected = 3000 * smooth / smooth.max()
    counts = 200 + gain * rng.poisson(expected / gain) + rng.normal(0, read, smooth.shape)
    data = np.clip(np.rint(counts), 0, 65535).astype(np.uint16)
    noise = measure_noise(data, measure_intensity(data))
    assert noise.gain == pytest.approx(gain, rel=0.2)
    at_background = np.sqrt(read**2 + gain * (noise.background - 200))
    assert noise.read == pytest.approx(at_background, rel=0.25)
    assert 190 < noise.background < 300


def test_fine_structure_is_not_taken_for_much_noise() -> None:
    stack = acquire(standard_strands(2), 3, camera=Camera(photons=500, read_noise=2))
    noise = measure_noise(stack.data, measure_intensity(stack.data))
    assert 6 < noise.gain < 16  # 4000 counts are 500 photons: 8
    assert 10 < noise.snr < 25  # sqrt of the photons in the brightest parts


def test_noise_without_photons_has_no_gain() -> None:
    rng = np.random.default_rng(0)
    smooth = gaussian_psf_blur(standard_strands(3), (4.0, 4.0, 4.0))
    data = np.rint(500 + 3000 * smooth / smooth.max() + rng.normal(0, 10, smooth.shape)).astype(np.uint16)
    noise = measure_noise(data, measure_intensity(data))
    assert noise.read == pytest.approx(10, rel=0.1)
    assert noise.gain * 3000 < 0.3 * 10**2


def test_a_constant_stack_has_no_noise() -> None:
    data = np.full((5, 20, 20), 9, np.uint8)
    noise = measure_noise(data, measure_intensity(data))
    assert (noise.gain, noise.read, noise.snr) == (0, 0, 0)


def test_planes_too_small_to_measure_on() -> None:
    data = np.arange(8, dtype=np.uint8).reshape(2, 2, 2)
    assert measure_noise(data, measure_intensity(data)).snr == 0


def test_intensity_range_and_saturation() -> None:
    data = np.random.default_rng(0).integers(10, 200, (10, 50, 50)).astype(np.uint8)
    data[0] = 255
    found = measure_intensity(data)
    assert found.low == pytest.approx(np.percentile(data, 1))
    assert found.high == 255
    assert found.saturated == pytest.approx(0.1)
    assert measure_intensity(data.astype(np.float32)).saturated == 0


def test_fine_structure_is_not_taken_for_noise() -> None:
    counts = acquire(standard_strands(3), 1, camera=Camera(photons=None), seed=0).data
    assert measure_noise(counts, measure_intensity(counts)).snr > 300
