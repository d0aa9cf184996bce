from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from ssai3d_rt.adapt.mask import Layers
from ssai3d_rt.compare import METHODS, Budget, method
from ssai3d_rt.compare.care import Care
from ssai3d_rt.compare.classical import RichardsonLucy, deconvolve, gaussian_psf
from ssai3d_rt.compare.selfnet import AxialSlices, SelfNet
from ssai3d_rt.compare.tuned import Tuned
from ssai3d_rt.errors import ConfigError, InputError
from ssai3d_rt.imaging.axial import resample_z
from ssai3d_rt.imaging.metrics import psnr
from ssai3d_rt.imaging.simulate import Camera, acquire, spheres, strands
from ssai3d_rt.imaging.stack import Stack
from ssai3d_rt.network.weights import save_state
from tests.tiny import tiny_stack, tiny_state

if TYPE_CHECKING:
    from pathlib import Path

STACK = tiny_stack()
SHORT = Budget(iterations=2)


@pytest.fixture(scope="module")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A base network of a few thousand random weights."""
    pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    path: Path = tmp_path_factory.mktemp("bases") / "tiny.safetensors"
    return str(save_state(tiny_state(), path, {"train_px": 64}))


def test_the_names_that_are_promised() -> None:
    promised = {"raw", "richardson-lucy", "care", "self-net", "base", "article", "full", "ssai3d"}
    assert set(METHODS) == promised | {f"sparse:{layers.value}" for layers in Layers}
    assert all(name == each.name and each.summary for name, each in METHODS.items())


def test_an_unknown_name_brings_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r'unknown method "richardson"; did you mean "richardson-lucy"\?'):
        method("richardson")
    with pytest.raises(ConfigError, match="known: raw, richardson-lucy"):
        method("xyzzy")


@pytest.mark.parametrize("values", [{"iterations": 0}, {"minutes": 0.0}, {"minutes": -1.0}])
def test_a_budget_is_positive(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="must be above 0"):
        Budget(**values)  # type: ignore[arg-type]


def test_raw_is_the_stack_resampled() -> None:
    volume = method("raw").fit(STACK, None, SHORT).restore(STACK)
    assert np.array_equal(volume, resample_z(STACK.data.astype(np.float32), STACK.anisotropy))


def test_richardson_lucy_brings_spheres_nearer_to_the_truth() -> None:
    pytest.importorskip("skimage")
    truth = spheres((40, 36, 36), 6, seed=2)
    stack = acquire(truth, 2, camera=Camera(photons=2000), seed=1)
    found = {}
    for each in (METHODS["raw"], RichardsonLucy(std_px=(4.0, 0.0, 0.0))):
        volume = each.fit(stack, None, SHORT).restore(stack)
        assert volume.shape == (stack.isotropic_planes, 36, 36)
        found[each.name] = psnr((volume - 100) / 4000, truth[: len(volume)], 1.0)
    assert found["richardson-lucy"] > found["raw"] + 2


def test_richardson_lucy_leaves_an_even_stack_even_to_its_borders() -> None:
    pytest.importorskip("skimage")
    data = np.full((8, 20, 20), 1000, np.uint16)
    data[4, 10, 10] = 1001
    volume = deconvolve(Stack(data, (0.2, 0.1, 0.1)), gaussian_psf((3.0, 1.0, 1.0)), 10, background=100.0)
    assert np.abs(volume / 1000 - 1).max() < 0.02


def test_richardson_lucy_takes_a_psf_that_is_given() -> None:
    pytest.importorskip("skimage")
    width = (2.0, 0.5, 0.5)
    volumes = [
        each.fit(STACK, None, SHORT).restore(STACK)
        for each in (RichardsonLucy(std_px=width), RichardsonLucy(psf=3 * gaussian_psf(width)), RichardsonLucy())
    ]
    assert np.allclose(volumes[0], volumes[1], rtol=1e-3)
    assert not np.allclose(volumes[0], volumes[2], rtol=1e-2)


def test_care_learns_and_its_last_weights_are_used(tiny_base: str) -> None:
    care = method("care", base=tiny_base)
    assert isinstance(care, Care)
    short, longer = (care.fit(STACK, None, Budget(iterations=count)) for count in (1, 25))
    assert longer.notes["lateral_psnr_db"] > short.notes["lateral_psnr_db"] + 0.5
    assert longer.notes["psf_std_px"] == 5.0
    assert longer.trained_parameters == sum(value.size for value in tiny_state().values())
    volume = longer.restore(STACK)
    assert volume.shape == (STACK.isotropic_planes, *STACK.data.shape[1:])
    assert not np.allclose(volume, short.restore(STACK), atol=1)


def test_care_is_told_its_psf_and_repeats_itself(tiny_base: str) -> None:
    told = [replace(Care(base=tiny_base), std_px=std).fit(STACK, None, SHORT) for std in (2.0, 6.0, 6.0)]
    assert [fit.notes["psf_std_px"] for fit in told] == [2.0, 6.0, 6.0]
    volumes = [fit.restore(STACK) for fit in told]
    assert np.array_equal(volumes[1], volumes[2])
    assert not np.array_equal(volumes[0], volumes[1])


def test_self_net_trains_within_its_budget_and_repeats_itself(tiny_base: str) -> None:
    each = method("self-net", base=tiny_base)
    assert isinstance(each, SelfNet)
    fits = [each.fit(STACK, None, Budget(iterations=2, seed=seed)) for seed in (0, 0, 1)]
    volumes = [fit.restore(STACK) for fit in fits]
    assert np.array_equal(volumes[0], volumes[1])
    assert not np.array_equal(volumes[0], volumes[2])
    assert math.isfinite(fits[0].notes["lateral_psnr_db"])
    assert fits[0].notes["iterations"] == 2
    timed = each.fit(STACK, None, Budget(minutes=1e-4))
    assert timed.notes["iterations"] == 1


def test_rows_of_axial_crops_are_z() -> None:
    depth = np.arange(20, dtype=np.float32)[:, None, None] * np.ones((20, 24, 24), np.float32)
    crops = AxialSlices(depth, 16, seed=0).batch(0, 6).numpy()
    assert crops.shape == (6, 1, 16, 16)
    assert np.all(np.diff(crops[:, 0], axis=1) == 1)
    assert np.all(np.diff(crops[:, 0], axis=2) == 0)
    assert AxialSlices(depth[:10], 16, seed=0).batch(0, 2).shape == (2, 1, 16, 16)


def test_the_articles_recipe_keeps_tuned_weights_whatever_they_gain(tiny_base: str) -> None:
    base, none, article, full = (
        method(name, base=tiny_base).fit(STACK, None, SHORT) for name in ("base", "sparse:none", "article", "full")
    )
    as_it_is = base.restore(STACK)
    assert (base.trained_parameters, none.trained_parameters) == (0, 0)
    assert np.array_equal(none.restore(STACK), as_it_is)
    assert article.notes["kept"] == "tuned"
    assert not np.array_equal(article.restore(STACK), as_it_is)
    assert 0 < article.trained_parameters < full.trained_parameters
    assert full.trained_parameters == sum(value.size for value in tiny_state().values())


def test_the_articles_recipe_does_not_depend_on_the_rig() -> None:
    plain = [each for each in METHODS.values() if isinstance(each, Tuned) and each.name != "ssai3d"]
    assert plain
    assert all(not each.uses_rig and each.settings["judge"] is False for each in plain)
    assert METHODS["ssai3d"] == Tuned("ssai3d", METHODS["ssai3d"].summary)


@pytest.mark.parametrize("name", ["care", "self-net"])
def test_stacks_that_nothing_can_be_learnt_from_are_refused(name: str, tiny_base: str) -> None:
    each = method(name, base=tiny_base)
    few = Stack(STACK.data[:3], STACK.voxel_um)
    with pytest.raises(InputError, match="at least 5 planes"):
        each.fit(few, None, SHORT)
    with pytest.raises(InputError, match="is constant"):
        each.fit(Stack(np.ones((8, 32, 32), np.uint16), STACK.voxel_um), None, SHORT)


def test_a_stack_wider_than_it_is_deep_is_restored_whole(tiny_base: str) -> None:
    stack = acquire(strands((17, 24, 60), 6, seed=4), 2)
    volume = method("base", base=tiny_base).fit(stack, None, SHORT).restore(stack)
    assert volume.shape == (stack.isotropic_planes, 24, 60)
    assert volume.dtype == np.float32
