from __future__ import annotations

import numpy as np
import pytest

from ssai3d_rt.errors import ParityError
from ssai3d_rt.export.golden import HOT, golden_tiles, tiles_of
from ssai3d_rt.export.parity import BEST_DB, Limits, check_parity, compare

KINDS = ("real", "real", "ones")


def reference() -> np.ndarray:
    return np.random.default_rng(0).random((3, 1, 8, 8), dtype=np.float32)


def test_compare_measures_error_psnr_and_what_is_not_finite() -> None:
    theirs = np.linspace(0, 2, 64, dtype=np.float32).reshape(1, 1, 8, 8)
    ours = theirs + np.float32(0.02)
    ours[0, 0, 0, :2] = (np.nan, np.inf)
    parity = compare(theirs, ours)
    assert parity.non_finite == 2
    assert parity.value_range == 2.0
    assert parity.max_error == pytest.approx(0.02, rel=1e-4)
    assert parity.psnr_db == pytest.approx(40.0, abs=1e-3)  # 10 log10(2^2 / 0.02^2)


def test_equal_arrays_and_constant_references_have_finite_figures() -> None:
    flat = np.full((1, 1, 4, 4), 3.0, np.float32)
    assert (compare(flat, flat).psnr_db, compare(flat, flat).value_range) == (BEST_DB, 1.0)


def test_a_good_result_passes() -> None:
    report = check_parity(reference(), reference() + np.float32(1e-4), kinds=KINDS, limits=Limits(), what="it")
    assert report.real.tiles == 2
    assert report.extremes.tiles == 1
    assert 75 < report.real.psnr_db < 85


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ((0, 0, 0, 0), np.nan, r"it gives 1 values that are not finite \(tiles: real\)"),
        ((2, 0, 3, 3), np.inf, r"not finite \(tiles: ones\)"),
        ((1, 0, 0, 0), 0.5, "PSNR .* dB on real tiles, at least 55 dB is needed"),
        ((2, 0, 0, 0), 0.05, "error 0.05 on the tile 'ones', allowed 0.02"),
    ],
    ids=["nan", "inf", "real", "extreme"],
)
def test_a_bad_result_is_refused(place: tuple[int, ...], value: float, message: str) -> None:
    result = reference()
    result[place] += value
    with pytest.raises(ParityError, match=message):
        check_parity(reference(), result, kinds=KINDS, limits=Limits(), what="it")


def test_a_result_of_another_shape_is_refused() -> None:
    with pytest.raises(ParityError, match=r"returned shape \(2, 1, 8, 8\)"):
        check_parity(reference(), reference()[:2], kinds=KINDS, limits=Limits(), what="it")


def test_golden_tiles_hold_real_slices_and_every_extreme() -> None:
    slices = np.random.default_rng(0).random((6, 40, 30), dtype=np.float32)
    slices[4] *= 3
    tiles, kinds = golden_tiles(32, slices, real=2)
    assert kinds == ("real", "real", "zeros", "ones", "hot_pixel", "dim_noise", "full_range")
    assert tiles.dtype == np.float32
    assert tiles.shape == (7, 1, 32, 32)
    by_kind = dict(zip(kinds, tiles[:, 0], strict=True))
    assert np.isin(tiles[0], slices[4]).all()  # the slice with the most contrast, only its own pixels
    assert (by_kind["zeros"] == 0).all()
    assert (by_kind["ones"] == 1).all()
    assert by_kind["hot_pixel"].max() == HOT == by_kind["hot_pixel"].sum()
    assert 0.005 < by_kind["dim_noise"].mean() < 0.02


def test_slices_smaller_than_a_tile_are_reflected_never_padded_with_zeros() -> None:
    slices = 1 + np.random.default_rng(0).random((2, 10, 12), dtype=np.float32)
    assert tiles_of(slices, 32, 5).min() >= 1.0
