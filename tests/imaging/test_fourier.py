from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest

from ssai3d_rt.errors import InputError
from ssai3d_rt.imaging.fourier import (
    cutoff_of,
    fourier_resolution_um,
    half_period_um,
    noise_variance,
    richest_window,
    spectrum,
)
from ssai3d_rt.imaging.simulate import Camera, acquire, beads, gaussian_psf_blur, standard_strands, strands, tubes

if TYPE_CHECKING:
    from collections.abc import Callable

Volume = npt.NDArray[Any]
SAMPLES: dict[str, Callable[[], Volume]] = {
    "strands": lambda: strands((96, 64, 64), 30, seed=3),
    "flat strands": lambda: strands((96, 64, 64), 22, flat=True, seed=3),
    "tubes": lambda: tubes((96, 64, 64), 20, seed=3),
    "beads": lambda: beads((96, 64, 64), 10, std_px=1.0, seed=3),
}


@pytest.mark.parametrize("std", [2.0, 6.0])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_gaussian_spot_gives_its_own_width_along_every_axis(std: float, axis: int) -> None:
    grid = np.ogrid[-48:48, -48:48, -48:48]
    width = [1.5, 1.5, 1.5]
    width[axis] = std
    spot = np.exp(-0.5 * sum((g / w) ** 2 for g, w in zip(grid, width, strict=True)))
    voxel_um = (0.3, 0.1, 0.1)
    expected = half_period_um(std * voxel_um[axis])
    assert fourier_resolution_um(spot, voxel_um, axis) == pytest.approx(expected, rel=0.05)
    assert half_period_um(1.0) == pytest.approx(1.20, abs=0.01)  # the factor that the docstring gives


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("photons", [None, 200])
def test_the_resolution_grows_with_the_blur_whatever_the_sample(sample: str, photons: float | None) -> None:
    truth = SAMPLES[sample]()
    found = [
        fourier_resolution_um(acquire(truth, 1, std_px=(std, 0.5, 0.5), camera=Camera(photons)).data, (0.1,) * 3, 0)
        for std in (1.5, 2.5, 4.0, 6.0)
    ]
    assert np.all(np.diff(found) > 0.05)
    # What the blur adds, in squares, is the blur: the sample's own fineness cancels.
    added = np.sqrt(found[3] ** 2 - found[1] ** 2) / half_period_um(0.1)
    assert added == pytest.approx(np.sqrt(6.0**2 - 2.5**2), rel=0.1)


def test_noise_moves_the_figure_little() -> None:
    truth = standard_strands(4)
    clean, noisy = (
        fourier_resolution_um(acquire(truth, 1, camera=Camera(photons)).data, (0.1,) * 3, 0) for photons in (None, 50)
    )
    assert noisy == pytest.approx(clean, rel=0.08)


def test_scale_and_offset_do_not_matter() -> None:
    blurred = gaussian_psf_blur(standard_strands(5), (4.0, 0.5, 0.5))
    once = fourier_resolution_um(blurred, (0.1,) * 3, 0)
    assert fourier_resolution_um(1000 * blurred + 300, (0.1,) * 3, 0) == pytest.approx(once, rel=1e-2)
    assert fourier_resolution_um(blurred, (0.2,) * 3, 0) == pytest.approx(2 * once, rel=1e-6)


def test_the_resolution_is_never_finer_than_the_sampling_and_says_what_ends_the_spectrum() -> None:
    stack = acquire(standard_strands(6), 6, std_px=(1.0, 0.5, 0.5))
    assert fourier_resolution_um(stack.data, stack.voxel_um, 0) == pytest.approx(0.6)
    assert cutoff_of(spectrum(stack.data, 0, stack.voxel_um[0])).limit == "sampling"
    fine = acquire(standard_strands(6), 1, std_px=(4.0, 0.5, 0.5), camera=Camera(None))
    assert cutoff_of(spectrum(fine.data, 0, 0.1)).limit == "signal"


def test_noise_alone_has_no_resolution() -> None:
    noise = np.random.default_rng(0).normal(1000, 20, (48, 64, 64))
    with pytest.raises(InputError, match="no structure stands out"):
        fourier_resolution_um(noise, (0.1,) * 3, 0)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 32, 32)])
def test_too_few_planes_are_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(InputError, match="at least 4 samples"):
        fourier_resolution_um(np.random.default_rng(0).random(shape), (0.1,) * 3, 0)


def test_a_constant_volume_is_refused() -> None:
    with pytest.raises(InputError, match="constant"):
        fourier_resolution_um(np.full((16, 16, 16), 5.0), (0.1,) * 3, 0)


@pytest.mark.parametrize("std", [1.0, 7.0])
def test_noise_variance_of_known_noise(std: float) -> None:
    smooth = 500 * gaussian_psf_blur(standard_strands(7), (4.0, 3.0, 3.0))
    noisy = smooth + np.random.default_rng(0).normal(0, std, smooth.shape)
    assert noise_variance(noisy) == pytest.approx(std**2, rel=0.03)


def test_the_spectrum_of_white_noise_is_flat_at_its_floor() -> None:
    noise = np.random.default_rng(1).normal(0, 3, (64, 64, 64))
    for axis in (0, 1, 2):
        found = spectrum(noise, axis, 0.1)
        assert found.frequency[-1] == pytest.approx(5.0)
        assert found.power[8:].mean() == pytest.approx(found.floor, rel=0.05)


def test_a_wide_stack_is_measured_where_its_contrast_is() -> None:
    wide = np.zeros((4, 600, 1400), np.float32)
    wide[:, 300:500, 1000:1200] = np.random.default_rng(0).random((4, 200, 200))
    window = richest_window(wide)
    assert window.shape == (4, 512, 512)
    assert np.shares_memory(window, wide)
    assert window.sum() == pytest.approx(wide.sum(), rel=1e-4)


def test_real_spots_are_finer_laterally_than_axially(shared_data: Any) -> None:
    import tifffile

    data = tifffile.imread(shared_data / "stacks" / "xyz_16bit__spots.tif")
    axial, y, x = (fourier_resolution_um(data, (0.4, 0.0941, 0.0941), axis) for axis in (0, 1, 2))
    assert 0.1 < x < 0.25
    assert 0.1 < y < 0.25
    assert axial > 1.5 * max(x, y)
