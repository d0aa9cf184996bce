from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssai3d_rt.imaging.tiling import Cover, reflected, tile_starts


@st.composite
def geometries(draw: st.DrawFn) -> tuple[int, int, int]:
    tile = draw(st.integers(1, 96))
    return draw(st.integers(1, 400)), tile, draw(st.integers(0, tile - 1))


@given(geometries())
def test_weights_sum_to_one_at_every_pixel(geometry: tuple[int, int, int]) -> None:
    length, tile, overlap = geometry
    cover = Cover.of(length, tile=tile, overlap=overlap)
    np.testing.assert_allclose(cover.total(), 1.0, atol=1e-6)
    assert cover.weights.min() >= 0


@given(geometries())
def test_an_identity_network_gives_identity(geometry: tuple[int, int, int]) -> None:
    length, tile, overlap = geometry
    cover = Cover.of(length, tile=tile, overlap=overlap)
    signal = np.random.default_rng(length).random(length)
    back = np.zeros(length)
    for number in range(len(cover.starts)):
        within, pixels = cover.inside(number)
        back[pixels] += (signal[cover.reads(number)] * cover.weights[number])[within]
    np.testing.assert_allclose(back, signal, atol=1e-6)


@given(geometries())
def test_what_lies_beyond_the_ends_is_reflected_within_the_tile(geometry: tuple[int, int, int]) -> None:
    length, tile, overlap = geometry
    cover = Cover.of(length, tile=tile, overlap=overlap)
    signal = np.random.default_rng(length).random(length)
    for number in range(len(cover.starts)):
        within, pixels = cover.inside(number)
        copied = np.full(tile, np.nan)
        copied[within] = signal[pixels]
        outside, mirrored = cover.beyond(number)
        copied[outside] = copied[mirrored]
        np.testing.assert_array_equal(copied, signal[cover.reads(number)])


@given(geometries())
def test_tiles_overlap_as_asked_are_spread_evenly_and_no_more_than_needed(geometry: tuple[int, int, int]) -> None:
    length, tile, overlap = geometry
    starts = tile_starts(length, tile=tile, overlap=overlap)
    if length <= tile:
        assert len(starts) == 1
        assert starts[0] <= 0
        assert starts[0] + tile >= length
        return
    margin = overlap // 2
    steps = np.diff(starts)
    assert starts[0] == -margin
    assert starts[-1] + tile == length + margin
    assert np.ptp(steps) <= 1
    assert steps.max() <= tile - overlap + 1
    if len(starts) > 2:
        assert (len(starts) - 2) * (tile - overlap) + tile < length + 2 * margin


@given(st.integers(1, 40), st.integers(-200, 200))
def test_reflection_repeats_as_often_as_needed(length: int, start: int) -> None:
    found = reflected(np.arange(start, start + 30), length)
    assert found.min() >= 0
    assert found.max() < length
    # numpy's own reflection of a ramp, far enough to both sides, is the reference.
    reference = np.pad(np.arange(length), 300, mode="reflect") if length > 1 else np.zeros(601 + length, int)
    np.testing.assert_array_equal(found, reference[start + 300 : start + 330])


def test_a_short_axis_lies_in_the_middle_of_its_tile() -> None:
    cover = Cover.of(5, tile=12, overlap=4)
    assert cover.starts == (-3,)
    assert cover.reads(0).tolist() == [3, 2, 1, 0, 1, 2, 3, 4, 3, 2, 1, 0]
    assert cover.weights[0].tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 0, 0, 0, 0]


def test_blending_is_smooth() -> None:
    cover = Cover.of(200, tile=64, overlap=24)
    for number, weights in enumerate(cover.weights):
        within, _ = cover.inside(number)
        assert np.abs(np.diff(weights[within])).max() < 0.1


@pytest.mark.parametrize(("length", "tile", "overlap"), [(0, 8, 2), (8, 0, 0), (8, 8, 8), (8, 8, -1)])
def test_impossible_tilings_are_refused(length: int, tile: int, overlap: int) -> None:
    with pytest.raises(ValueError, match="cannot cover"):
        Cover.of(length, tile=tile, overlap=overlap)
