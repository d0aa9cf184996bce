from __future__ import annotations

from typing import get_args

import numpy as np
import numpy.typing as npt
import pytest

from ssai3d_rt.commands.options import Denoise
from ssai3d_rt.errors import ConfigError
from ssai3d_rt.imaging import denoise as module
from ssai3d_rt.imaging.denoise import DENOISERS, NOISY_SNR, DenoiseMode, NoiseModel, choose_denoiser, denoise
from ssai3d_rt.imaging.simulate import Camera, acquire, spheres

NOISY = NoiseModel(gain=40.0, read=80.0, background=100.0, snr=8.0)


def pair(photons: float | None, seed: int = 3) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint16]]:
    """The same spheres without noise (float32 counts) and with it."""
    truth = spheres((40, 56, 48), 14, radius_px=(3.0, 6.0), seed=seed)
    clean, noisy = (acquire(truth, 2, camera=Camera(photons=p), seed=seed).data for p in (None, photons))
    return clean.astype(np.float32), noisy.astype(np.uint16)


def rms(values: npt.NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean(values.astype(np.float64) ** 2)))


@pytest.mark.parametrize("name", DENOISERS)
def test_most_noise_goes_and_the_sample_and_its_mean_stay(name: str) -> None:
    clean, noisy = pair(100)
    done = denoise(noisy, NOISY, name)
    assert done.dtype == np.float32
    assert rms(done - clean) < 0.5 * rms(noisy - clean)
    assert done.mean(dtype=np.float64) == pytest.approx(noisy.mean(), rel=1e-5)
    lit = clean > 2000
    assert done[lit].mean() == pytest.approx(clean[lit].mean(), rel=0.02)
    # What was taken away is noise: it knows nothing of the sample.
    assert abs(np.corrcoef((noisy - done).ravel(), clean.ravel())[0, 1]) < 0.05


@pytest.mark.parametrize("name", DENOISERS)
def test_what_is_not_noisy_is_not_blurred(name: str) -> None:
    clean, _ = pair(None)
    counts = clean.astype(np.uint16)
    assert np.array_equal(denoise(counts, NoiseModel(0.0, 0.0), name), clean)
    # Even where the measured noise is too high by a photon camera's count or two.
    done = denoise(counts, NoiseModel(gain=1.0, read=2.0, background=100.0, snr=60.0), name)
    assert rms(done - clean) < 5
    assert np.abs(done - clean).max() < 0.02 * 4000


def test_off_changes_nothing() -> None:
    _, noisy = pair(100)
    assert np.array_equal(denoise(noisy, NOISY, "off"), noisy.astype(np.float32))


@pytest.mark.parametrize("shape", [(1, 20, 30), (3, 5, 7), (8, 8, 8), (5, 9, 17)], ids=str)
def test_stacks_of_any_size(shape: tuple[int, int, int]) -> None:
    noisy = np.random.default_rng(0).normal(500, 50, shape).astype(np.float32)
    done = denoise(noisy, NoiseModel(gain=0.0, read=50.0, snr=3.0), "dct")
    assert done.shape == shape
    assert done.std() < 0.5 * noisy.std()


def test_bands_leave_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    _, noisy = pair(100)
    whole = denoise(noisy, NOISY, "dct")
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(module, "_BAND", 16)
    banded = denoise(noisy, NOISY, "dct", progress=lambda label, done, total: told.append((done, total)))
    assert np.allclose(banded, whole, atol=1e-2)
    assert told == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]


CASES = {
    "noisy": ("auto", NoiseModel(1, 1, 0, 5.0), "dct", "5, is below"),
    "just": ("auto", NoiseModel(1, 1, 0, NOISY_SNR), "off", "not below"),
    "clean": ("auto", NoiseModel(1, 1, 0, 100.0), "off", "100, is not below"),
    "asked for": ("dct", NoiseModel(1, 1, 0, 100.0), "dct", "as asked for"),
    "off": ("off", NoiseModel(1, 1, 0, 1.0), "off", "as asked for"),
    "constant": ("auto", NoiseModel(0, 0, 0, 0.0), "off", "could not be measured"),
    "not measured": ("dct", None, "off", "could not be measured"),
}


@pytest.mark.parametrize(("mode", "noise", "name", "words"), CASES.values(), ids=CASES)
def test_the_choice_and_its_reason(mode: str, noise: NoiseModel | None, name: str, words: str) -> None:
    chosen, why = choose_denoiser(mode, noise)
    assert chosen == name
    assert words in why


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ConfigError, match='no denoiser is called "bm3d"; take auto, off or dct'):
        choose_denoiser("bm3d", NOISY)
    with pytest.raises(ConfigError, match='no denoiser is called "auto"; take off or dct'):
        denoise(np.zeros((3, 8, 8), np.uint8), NOISY, "auto")


def test_the_modes_are_the_same_everywhere() -> None:
    assert get_args(DenoiseMode) == ("auto", "off", *DENOISERS)
    assert get_args(get_args(get_args(Denoise)[0])[0]) == get_args(DenoiseMode)
