from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from ssai3d_rt.adapt.lesson import prepare
from ssai3d_rt.adapt.settings import FinetuneSettings, Targets
from ssai3d_rt.adapt.targets import balance, like_z, turned_slices
from ssai3d_rt.imaging.axial import resample_z
from ssai3d_rt.imaging.normalise import Normalisation
from ssai3d_rt.imaging.simulate import Camera, acquire, cylinders, spheres, standard_strands
from ssai3d_rt.network.weights import load_network, network_from

if TYPE_CHECKING:
    from ssai3d_rt.imaging.stack import Stack

SHAPE = (96, 96, 96)
SAMPLES = {
    "strands": lambda seed: standard_strands(seed),
    "flat": lambda seed: standard_strands(seed, flat=True),
    "spheres": lambda seed: spheres(SHAPE, 60, seed=seed),
    "cylinders": lambda seed: cylinders(SHAPE, 60, seed=seed),
}


def isotropic(stack: Stack) -> np.ndarray:
    return resample_z(Normalisation.of(stack.data).apply(stack.data), stack.anisotropy)


@pytest.mark.parametrize("seed", [21, 22])
@pytest.mark.parametrize(
    ("sample", "alike"), [("strands", True), ("flat", False), ("spheres", True), ("cylinders", True)]
)
@pytest.mark.parametrize(("step", "photons"), [(1.0, None), (2.0, 300.0)])
def test_flat_samples_are_told_from_others(
    sample: str, alike: bool, seed: int, step: float, photons: float | None
) -> None:
    stack = acquire(SAMPLES[sample](seed), step, camera=Camera(photons=photons), seed=seed)
    assert like_z(isotropic(stack), 4.0) == alike


def test_standing_samples_are_told_too() -> None:
    flat = standard_strands(21, flat=True)
    standing = acquire(np.ascontiguousarray(flat.transpose(1, 0, 2)), 1.0, seed=0)
    assert balance(isotropic(standing), 4.0) < 0.95


def test_too_thin_a_volume_is_not_judged() -> None:
    volume = isotropic(acquire(spheres((24, 64, 64), 12, seed=0), 1.0, seed=0))
    assert not like_z(volume, 4.0)
    assert like_z(volume, 2.0) == (0.8 < balance(volume, 2.0) < 1.25)


def test_an_empty_volume_has_no_balance() -> None:
    assert not like_z(np.zeros((64, 64, 64), np.float32), 4.0)


def test_turned_slices_have_the_lateral_axis_as_rows() -> None:
    volume = np.random.default_rng(0).random((20, 30, 40), np.float32)
    slices = turned_slices(volume)
    assert slices.shape == (70, 30, 20)
    np.testing.assert_array_equal(slices[3], volume[:, 3, :30].T)
    np.testing.assert_array_equal(slices[30 + 5], volume[:, :, 5].T)


@pytest.mark.parametrize(("sample", "targets"), [("cylinders", Targets.TURNED), ("flat", Targets.SYNTHETIC)])
def test_a_lesson_takes_the_targets_and_the_blur_that_suit_the_stack(sample: str, targets: Targets) -> None:
    stack = acquire(SAMPLES[sample](3), 2.0, camera=Camera(photons=None), seed=3)
    base = load_network("base")
    settings = FinetuneSettings(denoise="off")
    lesson = prepare([stack], None, settings, base, network_from(base.state))
    assert lesson.targets is targets
    assert lesson.bank_px[0] < 4.0 < lesson.bank_px[1]
    assert lesson.bank_px[1] - lesson.bank_px[0] < 1.6
    blurred, sharp = lesson.pairs.batch(0, 8)
    assert blurred.shape == sharp.shape == (8, 1, 64, 64)
    along, across = (
        float(blurred.diff(dim=dim).square().mean() / sharp.diff(dim=dim).square().mean()) for dim in (2, 3)
    )
    assert along < 0.5 * across
