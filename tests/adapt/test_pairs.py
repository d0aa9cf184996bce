from __future__ import annotations

import numpy as np
import pytest
import torch

from ssai3d_rt.adapt.pairs import Mixed, Noise, Pairs
from ssai3d_rt.adapt.psf import Psf, psf_bank


def planes(count: int = 12, side: int = 80) -> np.ndarray:
    return np.random.default_rng(0).random((count, side, side), np.float32)


def test_the_bank_is_the_articles() -> None:
    bank = psf_bank()
    assert len(bank) == 25
    assert sorted({psf.std_px for psf in bank}) == [3, 4, 5, 6, 7]
    assert sorted({psf.angle_deg for psf in bank}) == [-45, -22.5, 0, 22.5, 45]


@pytest.mark.parametrize("angle_deg", [0.0, 45.0, 90.0])
def test_kernel_has_its_width_along_its_direction(angle_deg: float) -> None:
    kernel = Psf(5.0, angle_deg, across_px=1.0).kernel()
    y, x = np.mgrid[-25:26, -25:26]
    angle = np.deg2rad(angle_deg)
    along = y * np.cos(angle) + x * np.sin(angle)
    assert np.sqrt((kernel * along**2).sum()) == pytest.approx(5.0, rel=0.02)


def test_batches_depend_on_number_and_seed_alone() -> None:
    one, two = (Pairs(planes(), psf_bank(), step=2.5, crop=48, seed=3) for _ in range(2))
    assert torch.equal(one.batch(4, 3)[0], two.batch(4, 3)[0])
    assert not torch.equal(one.batch(4, 3)[0], one.batch(5, 3)[0])
    other = Pairs(planes(), psf_bank(), step=2.5, crop=48, seed=4)
    assert not torch.equal(one.batch(4, 3)[1], other.batch(4, 3)[1])


def test_sharp_side_is_a_crop_and_blurred_side_is_blurred() -> None:
    source = planes()
    blurred, sharp = Pairs(source, psf_bank(), step=1.0, crop=32, seed=0).batch(0, 6)
    assert blurred.shape == sharp.shape == (6, 1, 32, 32)
    assert set(sharp.flatten().tolist()) <= set(source.ravel().tolist())
    assert (blurred.std((1, 2, 3)) < 0.6 * sharp.std((1, 2, 3))).all()
    assert (blurred.mean((1, 2, 3)) - sharp.mean((1, 2, 3))).abs().max() < 0.1


def test_held_out_planes_are_never_trained_on() -> None:
    source = np.zeros((20, 64, 64), np.float32)
    source += np.arange(20, dtype=np.float32)[:, None, None]
    source[5:, ::2] += 0.4  # the first planes have no contrast: they do not stand for the stack
    pairs = Pairs(source, [Psf(3.0)], step=1.0, crop=32, seed=0)
    trained = {round(v) for n in range(30) for v in pairs.batch(n, 8)[1].mean((1, 2, 3)).tolist()}
    held_out = {round(v) for v in pairs.validation()[1].mean((1, 2, 3)).tolist()}
    assert held_out
    assert held_out <= set(pairs.held_out)
    assert min(pairs.held_out) >= 4
    assert trained == set(range(5, 20)) - set(pairs.held_out)


def test_small_planes_give_small_crops() -> None:
    pairs = Pairs(planes(6, 40), psf_bank(), step=4.0, crop=96, seed=0)
    assert pairs.crop == 32
    assert pairs.batch(0, 2)[0].shape == (2, 1, 32, 32)


def test_noise_is_on_the_blurred_side_only() -> None:
    flat = np.full((8, 64, 64), 0.5, np.float32)
    blurred, sharp = Pairs(flat, [Psf(3.0)], step=1.0, crop=32, seed=0, noise=Noise(100.0, 0.02)).batch(0, 8)
    assert sharp.std() == 0
    assert blurred.var().item() == pytest.approx(0.5 / 100 + 0.02**2, rel=0.1)


def test_mixed_batches_hold_their_share_of_each_source() -> None:
    values = (planes() + np.float32(value) for value in (0, 10))
    low, high = (Pairs(v.astype(np.float32), psf_bank(), step=1.0, crop=32, seed=0) for v in values)
    mixed = Mixed(low, high, share=0.25)
    means = mixed.batch(0, 8)[1].mean((1, 2, 3))
    assert (means > 5).tolist() == [False] * 6 + [True] * 2
    assert (mixed.batch(0, 2)[1].mean((1, 2, 3)) > 5).tolist() == [False, True]
    assert (mixed.validation(10)[1].mean((1, 2, 3)) > 5).sum() == 5
