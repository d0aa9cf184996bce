from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ssai3d_rt.errors import InputError
from ssai3d_rt.imaging.normalise import Normalisation


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_there_and_back_gives_the_same_counts(dtype: type) -> None:
    top = 255 if dtype is np.uint8 else 65535
    data: npt.NDArray[Any] = np.random.default_rng(0).integers(0, top + 1, (6, 20, 30)).astype(dtype)
    scale = Normalisation.of(data)
    back = scale.undo(scale.apply(data), data.dtype)
    assert back.dtype == data.dtype
    # float32 holds 24 bits: exact for integers, one part in a million for floats.
    np.testing.assert_allclose(back, data, rtol=0, atol=0 if data.dtype.kind == "u" else 1e-6 * top)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_percentiles_agree_with_numpy(dtype: type) -> None:
    data: npt.NDArray[Any] = np.random.default_rng(1).gamma(2.0, 20.0, (7, 33, 41)).clip(0, 250).astype(dtype)
    scale = Normalisation.of(data, 2.0, 99.5)
    low, high = np.percentile(data.astype(np.float64), (2.0, 99.5))
    assert scale.offset == pytest.approx(low, rel=1e-6)
    assert scale.offset + scale.scale == pytest.approx(high, rel=1e-6)


def test_normalised_is_about_zero_to_one() -> None:
    data = np.random.default_rng(2).poisson(100, (8, 32, 32)).astype(np.uint16)
    normal = Normalisation.of(data).apply(data)
    assert normal.dtype == np.float32
    assert np.percentile(normal, (1, 99.99)) == pytest.approx([0, 1], abs=1e-3)


def test_a_constant_stack_has_scale_one() -> None:
    assert Normalisation.of(np.full((3, 4, 4), 7, np.uint16)) == Normalisation(7.0, 1.0)


def test_a_stack_with_very_few_bright_voxels_is_scaled_to_its_range() -> None:
    data = np.zeros((10, 200, 200), np.uint16)
    data[5, 100, 100] = 4000
    assert Normalisation.of(data) == Normalisation(0.0, 4000.0)


def test_undo_rounds_half_to_even_and_clips() -> None:
    values = np.array([-3.0, 0.5, 1.5, 2.4, 254.6, 300.0], np.float32)
    assert Normalisation(0.0, 1.0).undo(values, np.uint8).tolist() == [0, 0, 2, 2, 255, 255]
    assert Normalisation(1.0, 2.0).undo(values, np.float32).tolist() == pytest.approx(values * 2 + 1)


def test_apply_and_undo_leave_their_input_alone() -> None:
    data = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    before = data.copy()
    scale = Normalisation(3.0, 2.0)
    scale.undo(scale.apply(data), np.uint8)
    scale.undo(data, np.float32)
    np.testing.assert_array_equal(data, before)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite_are_refused(bad: float) -> None:
    data = np.zeros((3, 10, 10), np.float32)
    data[1, 2, 3] = bad
    with pytest.raises(InputError, match="not finite"):
        Normalisation.of(data)


def test_nonsense_parameters_are_programming_mistakes() -> None:
    with pytest.raises(ValueError, match="percentiles"):
        Normalisation.of(np.zeros((1, 2, 2), np.uint8), 60, 40)
    with pytest.raises(ValueError, match="positive"):
        Normalisation(0.0, 0.0)
