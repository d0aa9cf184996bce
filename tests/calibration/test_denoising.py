from __future__ import annotations

import numpy as np
import pytest

from ssai3d_rt.calibration.denoising import Denoising
from ssai3d_rt.calibration.profile import Noise
from ssai3d_rt.errors import ConfigError
from ssai3d_rt.imaging.simulate import Camera, acquire, spheres, strands

SAMPLES = {
    "strands": strands((64, 64, 64), 18, seed=1),
    "spheres": spheres((64, 64, 64), 18, seed=1),
}


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize(("photons", "name"), [(25, "dct"), (100, "dct"), (None, "off")])
def test_noisy_stacks_are_denoised_and_clean_ones_are_not(
    sample: str, step: int, photons: float | None, name: str
) -> None:
    stack = acquire(SAMPLES[sample], step, camera=Camera(photons=photons), seed=1)
    plan = Denoising.of(stack.data)
    assert plan.name == name
    assert plan.on is (name != "off")
    done = plan.apply(stack.data)
    assert (done is not None) is plan.on
    assert plan.record()["denoise"] == name
    assert f"{plan.record()['snr']:.3g}" in plan.why


def test_off_does_not_even_measure() -> None:
    plan = Denoising.of(np.zeros((4, 8, 8), np.uint16), "off")
    assert (plan.noise, plan.record()) == (None, {"denoise": "off", "snr": None})


def test_a_rig_profiles_noise_counts_where_it_says_a_ratio() -> None:
    stack = acquire(SAMPLES["spheres"], 2, camera=Camera(photons=100), seed=1)
    assert Denoising.of(stack.data, noise=Noise(gain=0.1, read=1.0, background=100, snr=80)).name == "off"
    assert Denoising.of(stack.data, noise=Noise(gain=0.1, read=1.0)).name == "dct"


def test_a_constant_stack_is_left_alone() -> None:
    plan = Denoising.of(np.full((5, 20, 20), 9, np.uint8), "dct")
    assert plan.name == "off"
    assert "could not be measured" in plan.why


def test_a_wrong_mode_is_refused() -> None:
    with pytest.raises(ConfigError, match='no denoiser is called "gauss"'):
        Denoising.of(np.zeros((4, 8, 8), np.uint16), "gauss")
