"""Denoising on the way to a restoration: what is decided, recorded and gained."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from ssai3d_rt.calibration.denoising import Denoising
from ssai3d_rt.imaging.axial import restore_array
from ssai3d_rt.imaging.denoise import NOISY_SNR
from ssai3d_rt.imaging.metrics import mse
from ssai3d_rt.imaging.simulate import Camera, acquire, spheres
from ssai3d_rt.imaging.write import read_provenance, write_ome_tiff
from ssai3d_rt.runtime.backends import open_runner, why_not
from ssai3d_rt.runtime.recipe import BundleRecipe
from ssai3d_rt.runtime.restore import restore, restore_file
from ssai3d_rt.runtime.settings import WatchSettings

if TYPE_CHECKING:
    from pathlib import Path

    from ssai3d_rt.export.bundle import Bundle
    from ssai3d_rt.imaging.stack import Stack

pytestmark = pytest.mark.skipif(why_not("onnxruntime") is not None, reason="needs onnxruntime")


def noisy_stack(photons: float | None = 50, seed: int = 1) -> Stack:
    truth = spheres((40, 40, 40), 10, radius_px=(3.0, 6.0), seed=seed)
    return acquire(truth, 2, camera=Camera(photons=photons), seed=seed)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_a_noisy_stack_is_denoised_and_the_report_says_so(tiny_bundle: Bundle, dtype: str) -> None:
    raw = noisy_stack()
    stack = replace(raw, data=(raw.data / raw.data.max() * 250).astype(dtype))
    with contextlib.closing(open_runner(tiny_bundle, "onnxruntime", threads=1)) as runner:
        done, off = restore(stack, runner), restore(stack, runner, denoise="off")
    assert done.report["denoise"] == "dct"
    assert 1 < done.report["snr"] < NOISY_SNR
    assert "is below" in done.report["denoise_why"]
    assert (off.report["denoise"], off.report["snr"]) == ("off", None)
    assert done.stack.data.dtype == dtype
    assert done.stack.data.mean() == pytest.approx(stack.data.mean(), rel=0.01)
    assert (done.report["offset"], done.report["scale"]) == (off.report["offset"], off.report["scale"])
    # The tiny network hardly changes what it is shown, so less noise shows as less difference between neighbours.
    roughness = [float(np.abs(np.diff(r.stack.data.astype(np.float32), axis=2)).mean()) for r in (done, off)]
    assert roughness[0] < 0.6 * roughness[1]


def test_a_clean_stack_is_restored_as_without_denoising(tiny_bundle: Bundle) -> None:
    with contextlib.closing(open_runner(tiny_bundle, "onnxruntime", threads=1)) as runner:
        done, off = (restore(noisy_stack(None), runner, denoise=mode) for mode in ("auto", "off"))
    assert done.report["denoise"] == "off"
    assert done.report["snr"] > NOISY_SNR
    assert np.array_equal(done.stack.data, off.stack.data)


def test_the_bundle_says_how_unless_asked_otherwise(tiny_bundle: Bundle, tmp_path: Path) -> None:
    adaptation = tiny_bundle.manifest.adaptation
    assert adaptation.denoise == "auto"
    manifest = tiny_bundle.manifest.model_copy(update={"adaptation": adaptation.model_copy(update={"denoise": "off"})})
    bundle = replace(tiny_bundle, manifest=manifest)
    source = tmp_path / "cells.ome.tif"
    write_ome_tiff(source, [noisy_stack()])
    (kept,) = restore_file(source, tmp_path / "one", bundle, backend="onnxruntime")
    (asked,) = restore_file(source, tmp_path / "two", bundle, backend="onnxruntime", denoise="auto")
    assert (kept["denoise"], asked["denoise"]) == ("off", "dct")
    note = read_provenance(tmp_path / "two" / "cells_iso.ome.tif")["normalisation"][0]
    assert note["denoise"] == "dct"
    assert note["snr"] == asked["snr"]


def test_a_watch_that_denoises_otherwise_makes_other_results(tiny_bundle: Bundle) -> None:
    recipes = [BundleRecipe.of(tiny_bundle, WatchSettings(denoise=mode)) for mode in (None, "off", "dct")]
    assert len({recipe.parameters for recipe in recipes}) == 3


def test_denoising_helps_the_base_network_on_a_noisy_stack() -> None:
    pytest.importorskip("torch")
    from ssai3d_rt.network.weights import load_network, network_from, torch_network

    truth = spheres((40, 40, 40), 10, radius_px=(3.0, 6.0), seed=1)
    raw = noisy_stack(25)
    run = torch_network(network_from(load_network("base").state))
    errors = {}
    for mode in ("auto", "off"):
        shown = Denoising.of(raw.data, mode).apply(raw.data)
        counts = restore_array(raw.data, raw.voxel_um, run, tile=48, denoised=shown).data.astype(np.float32)
        errors[mode] = mse((counts - 100) / 4000, truth[: len(counts)])
    assert errors["auto"] < 0.9 * errors["off"]


def test_the_network_is_shown_a_stack_of_the_same_shape() -> None:
    raw = noisy_stack()
    with pytest.raises(ValueError, match="shapes differ"):
        restore_array(raw.data, raw.voxel_um, lambda tiles: tiles, tile=48, denoised=np.zeros((2, 3, 4), np.float32))
