from __future__ import annotations

import logging
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ssai3d_rt.errors import BackendError, InputError, VoxelSizeError
from ssai3d_rt.imaging.axial import deblur_axial, interpolation_matrix, resample_z, restore_array
from ssai3d_rt.imaging.stack import Stack
from ssai3d_rt.imaging.tiling import Cover

Float = npt.NDArray[np.float32]


def identity(tiles: Float) -> Float:
    return tiles


def vertical_filter(tiles: Float) -> Float:
    """Shift-equivariant: sharpens along the rows' axis over 3 pixels, zero outside the tile like a convolution."""
    padded = np.pad(tiles, [(0, 0), (0, 0), (1, 1), (0, 0)])
    return np.asarray(1.5 * tiles - 0.25 * padded[:, :, :-2] - 0.25 * padded[:, :, 2:], np.float32)


def volume(shape: tuple[int, int, int], seed: int = 0) -> Float:
    return np.random.default_rng(seed).random(shape, np.float32)


@pytest.mark.parametrize(
    ("n_in", "spacing"), [(1, 4.0), (2, 3.0), (17, 4.25), (6, 35.2), (9, 1.0), (9, 0.5), (30, 1.37)]
)
def test_interpolation_matrix_has_the_stacks_shape_and_rows_that_sum_to_one(n_in: int, spacing: float) -> None:
    matrix = interpolation_matrix(n_in, spacing)
    stack = Stack(np.zeros((n_in, 2, 2), np.uint8), (spacing, 1.0, 1.0))
    assert matrix.shape == (stack.isotropic_planes, n_in)
    assert matrix.dtype == np.float32
    np.testing.assert_allclose(matrix.sum(axis=1), 1.0, atol=1e-6)


def test_resampling_keeps_planes_and_reproduces_parabolas_between_them() -> None:
    # Cubic convolution with a = -0.5 is exact for polynomials up to degree 2 away from the ends.
    z = np.arange(10.0)
    planes = np.repeat((3 + 2 * z - 0.4 * z**2).astype(np.float32), 12).reshape(10, 3, 4)
    fine = resample_z(planes, 4.0)
    np.testing.assert_allclose(fine[::4], planes, atol=1e-5)
    at = np.arange(37) / 4
    inner = (at >= 1) & (at <= 8)
    np.testing.assert_allclose(fine[inner, 1, 2], (3 + 2 * at - 0.4 * at**2)[inner], atol=1e-4)


def test_resampling_beyond_the_last_plane_does_not_happen() -> None:
    assert resample_z(volume((3, 2, 2)), 2.6).shape[0] == 6  # planes at 0, 2.6, 5.2: pixels 0 to 5


@pytest.mark.parametrize(
    ("shape", "tile", "overlap"),
    [
        pytest.param((20, 24, 28), 32, 8, id="one tile, padded"),
        pytest.param((32, 32, 32), 32, 8, id="one tile, exact"),
        pytest.param((50, 33, 41), 24, 8, id="many tiles"),
        pytest.param((3, 40, 70), 32, 12, id="three planes, reflected many times"),
        pytest.param((1, 5, 6), 16, 4, id="one plane"),
        pytest.param((40, 40, 40), 16, 64, id="overlap larger than tile"),
    ],
)
@pytest.mark.parametrize("batch", [1, 7])
def test_a_network_that_does_nothing_changes_nothing(
    shape: tuple[int, int, int], tile: int, overlap: int, batch: int
) -> None:
    data = volume(shape)
    result = deblur_axial(data, identity, tile=tile, batch=batch, overlap=overlap, want_disagreement=True)
    np.testing.assert_allclose(result.volume, data, atol=1e-6)
    assert result.disagreement is not None
    assert result.disagreement.max() < 1e-6


def test_tiles_are_full_batches_of_axial_slices_with_z_down_the_rows() -> None:
    z = np.arange(16, dtype=np.float32)[:, None, None] * np.ones((16, 16, 16), np.float32)
    seen: list[int] = []

    def look(tiles: Float) -> Float:
        seen.append(len(tiles))
        assert tiles.dtype == np.float32
        np.testing.assert_array_equal(tiles, np.broadcast_to(np.arange(16.0)[:, None], tiles.shape))
        return tiles

    deblur_axial(z, look, tile=16, batch=5)
    assert seen == [5, 5, 5, 5, 5, 5, 2]  # 16 XZ and 16 YZ slices


def test_tiles_at_the_ends_are_reflected() -> None:
    volume = np.random.default_rng(0).random((9, 30, 21), np.float32)
    seen: list[Float] = []

    def network(tiles: Float) -> Float:
        seen.append(tiles.copy())
        return tiles

    deblur_axial(volume, network, tile=16, batch=4, overlap=8)
    depth, across = Cover.of(9, tile=16, overlap=8), Cover.of(21, tile=16, overlap=8)
    wanted = [volume[:, y][np.ix_(depth.reads(0), across.reads(j))] for j in range(2) for y in range(30)]
    np.testing.assert_array_equal(np.concatenate(seen)[: len(wanted), 0], wanted)


def test_a_local_filter_gives_the_same_tiled_and_untiled_and_no_seam() -> None:
    data = volume((90, 60, 70))
    tiled = deblur_axial(data, vertical_filter, tile=32, overlap=12).volume
    whole = deblur_axial(data, vertical_filter, tile=128).volume
    # Only the outermost row of a tile sees the zeros that the filter pads with, and it has next to no weight.
    np.testing.assert_allclose(tiled, whole, atol=5e-3)
    ramp = np.ascontiguousarray(np.broadcast_to(np.linspace(0, 1, 90, dtype=np.float32)[:, None, None], data.shape))
    seams = np.diff(deblur_axial(ramp, vertical_filter, tile=32, overlap=12).volume, 2, axis=0)
    assert np.abs(seams)[1:-1].max() < 5e-3


def test_the_ends_of_the_stack_do_not_glow() -> None:
    # With zeros beyond the ends the sharpening filter would lift the first and last plane by a quarter.
    data = np.ones((40, 20, 20), np.float32)
    for tile in (24, 48):
        result = deblur_axial(data, vertical_filter, tile=tile, overlap=8).volume
        np.testing.assert_allclose(result[[0, -1]], 1.0, atol=1e-6)


def test_both_views_are_averaged_and_their_difference_told() -> None:
    data = np.zeros((8, 8, 8), np.float32)
    calls = 0

    def changing(tiles: Float) -> Float:
        nonlocal calls
        calls += 1
        return tiles + np.float32(1.0 if calls == 1 else 3.0)  # the first batch holds XZ, the second YZ

    result = deblur_axial(data, changing, tile=8, batch=8, want_disagreement=True)
    np.testing.assert_allclose(result.volume, 2.0)
    assert result.disagreement is not None
    np.testing.assert_allclose(result.disagreement, 1.0)
    assert deblur_axial(data, identity, tile=8).disagreement is None


def test_xz_slices_run_along_x_and_yz_slices_along_y() -> None:
    data = volume((6, 7, 9))
    seen: list[Float] = []

    def keep(tiles: Float) -> Float:
        seen.extend(tiles[:, 0].copy())
        return tiles

    deblur_axial(data, keep, tile=16)
    np.testing.assert_array_equal(seen[2][5:11, 3:12], data[:, 2, :])
    np.testing.assert_array_equal(seen[7 + 4][5:11, 4:11], data[:, :, 4])


def test_progress_counts_every_tile() -> None:
    reports: list[tuple[int, int]] = []
    deblur_axial(volume((30, 10, 12)), identity, tile=16, overlap=4, progress=lambda _, a, b: reports.append((a, b)))
    assert reports[0][0] == 0
    assert reports[-1][0] == reports[-1][1]
    assert [done for done, _ in reports] == sorted(done for done, _ in reports)


def test_a_network_of_another_shape_is_refused() -> None:
    with pytest.raises(BackendError, match="shape"):
        deblur_axial(volume((8, 8, 8)), lambda tiles: tiles[:, :, ::2], tile=8)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_restored_keeps_dtype_planes_and_scale(dtype: type) -> None:
    data: npt.NDArray[Any] = (volume((6, 20, 22)) * 200 + 20).astype(dtype)
    restored = restore_array(data, (0.4, 0.1, 0.1), identity, tile=32)
    assert restored.data.dtype == data.dtype
    assert restored.data.shape == (21, 20, 22)
    assert restored.voxel_um == (0.1, 0.1, 0.1)
    assert restored.mean_ratio == pytest.approx(1.0, abs=1e-3)
    tolerance = 1 if np.dtype(dtype).kind == "u" else 0.2
    np.testing.assert_allclose(restored.data[::4].astype(float), data.astype(float), atol=tolerance)


@pytest.mark.parametrize("gain", [0.7, 1.0, 1.4])
def test_the_mean_is_kept_whatever_the_networks_gain(gain: float) -> None:
    data = (volume((8, 24, 24)) ** 4 * 40000 + 300).astype(np.uint16)
    raw = resample_z(data.astype(np.float32), 3.0)
    restored = restore_array(data, (0.3, 0.1, 0.1), lambda t: t * np.float32(gain), tile=32)
    assert restored.mean_ratio == pytest.approx(gain, rel=0.01)
    assert restored.data.mean() == pytest.approx(raw.mean(), rel=0.002)


@pytest.mark.parametrize(("dark_ends", "factor"), [(True, 1.0), (False, 1.0), (True, 1.7), (False, 0.6)])
def test_the_mean_of_few_planes_is_kept_though_the_ends_count_half(dark_ends: bool, factor: float) -> None:
    data = np.random.default_rng(1).integers(3000, 5000, (9, 24, 24)).astype(np.uint16)
    ends = data[[0, -1]] // 4
    if dark_ends:
        data[[0, -1]] = ends
    else:
        data[1:-1] //= 4
    plain = resample_z(data.astype(np.float32), 4.0).mean()
    assert abs(plain / data.mean() - 1) > 0.05  # what sampling alone would do
    result = restore_array(data, (0.4, 0.1, 0.1), lambda tiles: tiles * np.float32(factor), tile=48)
    assert result.data.mean() == pytest.approx(data.mean(), rel=0.01)


def test_a_network_that_adds_a_lot_is_shifted_back_and_reported(caplog: pytest.LogCaptureFixture) -> None:
    data = (volume((8, 24, 24)) * 1000 + 5000).astype(np.uint16)
    with caplog.at_level(logging.WARNING):
        restored = restore_array(data, (0.3, 0.1, 0.1), lambda t: t + np.float32(2.0), tile=32)
    assert "changed the mean" in caplog.text
    assert restored.data.mean() == pytest.approx(data.mean(), rel=0.01)


@pytest.mark.parametrize("value", [0, 77, 65535])
def test_a_constant_stack_stays_constant_even_if_the_network_would_change_it(value: int) -> None:
    data = np.full((4, 10, 10), value, np.uint16)
    restored = restore_array(data, (0.3, 0.1, 0.1), lambda t: t + np.float32(0.5), tile=16, want_disagreement=True)
    np.testing.assert_array_equal(restored.data, np.full((10, 10, 10), value))
    assert restored.disagreement is not None
    assert restored.disagreement.max() == 0


def test_disagreement_is_in_counts() -> None:
    data = (volume((8, 8, 8)) * 1000).astype(np.uint16)
    calls = 0

    def changing(tiles: Float) -> Float:
        nonlocal calls
        calls += 1
        return tiles + np.float32(0.1 if calls == 1 else 0.0)

    restored = restore_array(data, (0.1, 0.1, 0.1), changing, tile=8, want_disagreement=True)
    assert restored.disagreement is not None
    assert restored.disagreement.mean() == pytest.approx(0.05 * restored.normalisation.scale, rel=1e-3)


def test_bad_networks_and_bad_stacks_are_refused() -> None:
    data = (volume((4, 8, 8)) * 1000).astype(np.uint16)
    with pytest.raises(BackendError, match="not finite"):
        restore_array(data, (0.3, 0.1, 0.1), lambda t: t * np.float32(np.nan), tile=16)
    with pytest.raises(VoxelSizeError, match="voxel size"):
        restore_array(data, (0.0, 0.1, 0.1), identity, tile=16)
    with pytest.raises(InputError, match="axes"):
        restore_array(data[0], (0.3, 0.1, 0.1), identity, tile=16)
