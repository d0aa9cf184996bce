from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from ssai3d_rt.errors import ConfigError
from ssai3d_rt.imaging.simulate import gaussian_psf_blur
from ssai3d_rt.network.deadleaves import KINDS, sharp_image
from ssai3d_rt.network.degrade import Degradation, degrade
from ssai3d_rt.network.pretrain import PretrainSettings, pretrain
from ssai3d_rt.network.weights import load_network

if TYPE_CHECKING:
    from pathlib import Path

TINY = PretrainSettings(
    width=4,
    enc=(1, 1),
    dec=(1, 1),
    iterations=6,
    batch=2,
    crop=32,
    side=96,
    images=8,
    checkpoint_every=3,
    compiled=False,
)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_images_are_in_range_and_not_empty(kind: object) -> None:
    images = [kind(np.random.default_rng(seed), 96) for seed in range(5)]  # type: ignore[operator]
    for image in images:
        assert image.shape == (96, 96)
        assert image.dtype == np.float32
        assert 0 <= image.min() <= image.max() <= 1
    assert max(image.std() for image in images) > 0.03


def test_a_seed_gives_the_same_image_and_another_seed_another() -> None:
    assert np.array_equal(sharp_image(3, 64), sharp_image(3, 64))
    assert not np.array_equal(sharp_image(3, 64), sharp_image(4, 64))


def test_blur_along_z_is_the_microscopes_blur() -> None:
    volume = np.zeros((96, 1, 96), np.float32)
    volume[40:56, 0, 30:60] = 1
    wanted = gaussian_psf_blur(np.repeat(volume, 3, 1), (4.0, 0.0, 0.0))[:, 1]
    blurred = degrade(torch.from_numpy(volume[:, 0][None]), [Degradation(along_px=4.0)], seed=0)[0].numpy()
    assert np.abs(blurred - wanted).max() < 0.01


def test_angle_turns_the_blur() -> None:
    point = torch.zeros(1, 65, 65)
    point[0, 32, 32] = 1
    turned = degrade(point, [Degradation(along_px=5.0, across_px=1.0, angle_rad=math.pi / 2)], seed=0)
    straight = degrade(point, [Degradation(along_px=5.0, across_px=1.0)], seed=0)
    torch.testing.assert_close(turned[0], straight[0].T, rtol=0, atol=1e-5)


def test_planes_further_apart_still_give_back_smooth_images() -> None:
    rows = torch.sin(torch.arange(128) / 12)[None, :, None].expand(1, 128, 8)
    plain = degrade(rows, [Degradation(along_px=0.5)], seed=0)
    sampled = degrade(rows, [Degradation(along_px=0.5, step=4.0, phase=0.5)], seed=0)
    assert sampled.shape == rows.shape
    assert (sampled - plain)[:, 8:-8].abs().mean() < 0.05


def test_noise_has_the_variance_asked_for() -> None:
    flat = torch.full((1, 200, 200), 0.5)
    noisy = degrade(flat, [Degradation(along_px=1.0, photons=100.0, read=0.05)], seed=1)
    assert noisy.var().item() == pytest.approx(0.5 / 100 + 0.05**2, rel=0.05)


def test_the_run_goes_on_from_its_checkpoint_to_the_same_weights(tmp_path: Path) -> None:
    whole = load_network(pretrain(TINY, tmp_path / "whole", workers=0))
    pretrain(TINY.model_copy(update={"iterations": 3, "decay": 0.0}), tmp_path / "parts", workers=0)
    two = load_network(pretrain(TINY.model_copy(update={"decay": TINY.decay}), tmp_path / "parts", workers=0))
    assert whole.info["settings"]["iterations"] == 6
    # Both runs have the same learning rate until the fall begins; the first part ends before that.
    assert TINY.lr_at(2) == TINY.model_copy(update={"iterations": 3, "decay": 0.0}).lr_at(2)
    for key, value in whole.state.items():
        np.testing.assert_allclose(two.state[key], value, atol=1e-3)
    log = (tmp_path / "parts" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in log] == [3, 6]


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    pretrain(TINY, tmp_path, workers=0)
    with pytest.raises(ConfigError, match="other settings"):
        pretrain(TINY.model_copy(update={"seed": 5}), tmp_path, workers=0)
