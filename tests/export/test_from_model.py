from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import pytest

import ssai3d_rt
from ssai3d_rt.calibration.precision import PrecisionPlan, tensor_names
from ssai3d_rt.errors import BundleError, ConfigError, ParityError
from ssai3d_rt.export import from_model
from ssai3d_rt.export.from_model import export_bundle, pool_window_for, state_sha256, tile_for
from ssai3d_rt.imaging.axial import resample_z
from ssai3d_rt.imaging.normalise import Normalisation
from ssai3d_rt.imaging.read import read_stack
from ssai3d_rt.network.nafnet import NAFNetShape
from ssai3d_rt.network.weights import State, list_bases, load_network
from tests.tiny import SHAPE, TILE, tiny_model, tiny_state

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ssai3d_rt.export.bundle import Bundle

onnx = pytest.importorskip("onnx")
for package in ("torch", "onnxscript", "onnxruntime", "safetensors"):
    pytest.importorskip(package)


def test_a_bundle_says_all_that_a_rig_must_know(tiny_bundle: Bundle) -> None:
    manifest = tiny_bundle.manifest
    model = tiny_model()
    assert manifest.name == "tiny"
    assert (manifest.tile, manifest.channels, manifest.precision, manifest.layer_norm) == (64, 1, "fp16", "island")
    assert (manifest.network.width, manifest.network.enc, manifest.network.pool_window_px) == (8, (1,), None)
    assert manifest.network.state_sha256 == state_sha256(model.state)
    assert manifest.parity.real.tiles == 4
    assert manifest.parity.real.psnr_db >= manifest.limits.real_psnr_db == 55
    assert manifest.parity.real.non_finite == manifest.parity.extremes.non_finite == 0
    assert manifest.rehearsal.real.psnr_db >= 55
    assert manifest.rehearsal.real.psnr_db < manifest.parity.real.psnr_db  # a CPU rounds less than a GPU
    assert 0 < manifest.peak_activation < 1e4
    assert manifest.folding.keys() == {"none", "norm", "scale", "pool", "all"}
    assert max(manifest.folding.values()) < 1e-5
    assert manifest.adaptation.base == "tiny"
    assert manifest.adaptation.blur_px == (1.0, 4.0)
    assert {"torch", "onnx", "onnxruntime", "ssai3d-rt", "python"} <= set(manifest.tools)
    tiles, reference = tiny_bundle.golden
    assert np.abs(reference - tiles).max() > 0.01  # the network does something


def test_a_bundle_says_which_tensors_stay_fp32_and_shows_their_ranges(tiny_bundle: Bundle) -> None:
    entry = tiny_bundle.manifest.calibration
    assert entry is not None
    assert (entry.wide, entry.wide_weights, entry.headroom) == ((), (), 4.0)
    plan = PrecisionPlan.from_json((tiny_bundle.folder / "precision.json").read_bytes())
    assert tuple(item.name for item in plan.ranges) == tensor_names(SHAPE)
    assert entry.tensors == len(plan.ranges)
    assert entry.highest == pytest.approx(plan.highest.peak, rel=1e-4)
    assert entry.highest == pytest.approx(tiny_bundle.manifest.peak_activation, rel=1e-2)
    pytest.importorskip("matplotlib")
    assert (tiny_bundle.folder / "precision.png").read_bytes()[1:4] == b"PNG"


def test_the_weights_in_a_bundle_are_those_of_the_model(tiny_bundle: Bundle) -> None:
    loaded = load_network(tiny_bundle.folder / "adapted.safetensors")
    assert loaded.shape == SHAPE
    assert loaded.info == {"adapted_from": "tiny", "train_px": TILE}
    assert state_sha256(loaded.state) == tiny_bundle.manifest.network.state_sha256


def overflowing(state: State) -> None:
    """The stream that runs through the network leaves FP16's range; the FP32 network is fine."""
    state["intro.weight"] *= np.float32(5e4)
    state["ending.weight"] *= np.float32(1e-5)


def cancelling(state: State) -> None:
    """The image rides on a large constant that the last layer takes away again: FP16 loses it in rounding."""
    state["intro.bias"][:] = 8000
    state["ups.0.0.weight"][:] = 0
    state["ending.weight"] -= state["ending.weight"].mean(1, keepdims=True)
    state["ending.weight"] *= np.float32(20)


POISON: dict[str, tuple[Callable[[State], object], str]] = {
    "nan": (lambda s: s["ups.0.0.weight"].__setitem__((0, 0), np.nan), "ups.0.0.weight are not finite"),
    "precision": (cancelling, "the network in fp16 is off the FP32 reference: PSNR .* at least 55 dB is needed"),
    "fp32": (lambda s: s["intro.weight"].__imul__(3e38), "FP32 network itself gives values that are not finite|reach"),
}


@pytest.mark.parametrize(("poison", "message"), POISON.values(), ids=POISON)
def test_a_poisoned_network_is_refused_and_leaves_nothing(
    tmp_path: Path, poison: Callable[[State], object], message: str
) -> None:
    state = tiny_state()
    poison(state)
    with pytest.raises(ParityError, match=message):
        export_bundle(tiny_model(state), tmp_path / "bad.ssai3d", tile=TILE)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def wide_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    state = tiny_state()
    overflowing(state)
    return export_bundle(tiny_model(state), tmp_path_factory.mktemp("wide") / "wide.ssai3d", tile=TILE)


def test_what_fp16_cannot_hold_stays_fp32_in_an_fp16_bundle(wide_bundle: Bundle) -> None:
    entry = wide_bundle.manifest.calibration
    assert entry is not None
    assert {"intro", "encoders.0.0.residual1", "skips.0"} <= set(entry.wide)
    assert not any(name.endswith(("norm1", "gate1", "attention")) for name in entry.wide)
    assert entry.wide_weights == ("ending",)
    assert entry.highest > 65504 >= wide_bundle.manifest.peak_activation
    assert wide_bundle.manifest.parity.real.psnr_db >= 55
    assert wide_bundle.manifest.rehearsal.real.psnr_db >= 55
    assert wide_bundle.manifest.rehearsal.extremes.non_finite == 0
    graph = onnx.load_from_string(wide_bundle.onnx).graph
    kinds = [i.data_type for i in graph.initializer if i.name.endswith("_weight")]
    assert kinds.count(onnx.TensorProto.FLOAT16) > 10 > kinds.count(onnx.TensorProto.FLOAT) > 0


def test_a_layer_norm_whose_squares_overflow_is_refused_in_native16(tmp_path: Path) -> None:
    state = tiny_state()
    for key in ("intro.weight", "intro.bias"):
        state[key] *= np.float32(200)  # values of some hundreds: they fit FP16, their squares do not
    state["ending.weight"] /= np.float32(200)
    with pytest.raises(ParityError, match=r"squares in LayerNorm reach inf .* export with --layer-norm island"):
        export_bundle(tiny_model(state), tmp_path / "n.ssai3d", tile=TILE, layer_norm="native16")
    assert list(tmp_path.iterdir()) == []


def test_an_export_in_fp32_holds_no_fp16(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = tiny_state()
    overflowing(state)
    seen: list[tuple[str, int, int]] = []
    with caplog.at_level(logging.WARNING):
        bundle = ssai3d_rt.export(  # type: ignore[operator]  # the package is callable
            tiny_model(state),
            tmp_path / "wide.ssai3d",
            tile=TILE,
            precision="fp32",
            layer_norm="native32",
            progress=lambda label, done, total: seen.append((label, done, total)),
        )
    assert bundle.manifest.precision == "fp32"
    assert bundle.manifest.layer_norm == "native32"
    assert bundle.manifest.calibration is None
    assert bundle.manifest.peak_activation > 65504
    assert bundle.manifest.parity.real.psnr_db >= 90
    graph = onnx.load_from_string(bundle.onnx).graph
    assert all(i.data_type != onnx.TensorProto.FLOAT16 for i in graph.initializer)
    assert sum(node.op_type == "LayerNormalization" for node in graph.node) == 6
    assert [done for _, done, _ in seen] == [0, 1, 2, 3, 4, 5, 6]
    assert not caplog.records


def test_a_bad_target_or_tile_is_refused_before_any_work(tmp_path: Path) -> None:
    model = tiny_model()
    with pytest.raises(BundleError, match=r"ends in .ssai3d"):
        export_bundle(model, tmp_path / "cells")
    with pytest.raises(ConfigError, match="tile 63 px does not suit this network; give a multiple of 2"):
        export_bundle(model, tmp_path / "cells.ssai3d", tile=63)


@pytest.mark.parametrize(
    ("slice_px", "train_px", "tile", "window"),
    [
        ((69, 88), 96, 96, None),
        ((20, 30), 96, 32, None),
        ((300, 512), 96, 144, None),
        ((300, 512), 256, 256, None),
        ((300, 512), None, 256, None),
        ((120, 130), None, 144, None),
        ((4, 5), 96, 16, None),
    ],
)
def test_the_tile_fits_the_slices_and_the_training(
    slice_px: tuple[int, int], train_px: int | None, tile: int, window: int | None
) -> None:
    shape = NAFNetShape(width=16, enc=(1, 1, 1, 8), middle=1, dec=(1, 1, 1, 1))
    record = tiny_model(slice_px=slice_px, train_px=train_px).record
    assert tile_for(shape, record) == tile
    assert pool_window_for(record, tile) == window


def test_a_tile_beyond_the_training_gets_a_pooling_window() -> None:
    assert pool_window_for(tiny_model(train_px=96).record, 256) == 144


def test_the_shipped_base_keeps_its_numbers_on_real_tiles(tmp_path: Path, shared_data: Path) -> None:
    if not any(base.shipped and base.name == "base" for base in list_bases()):
        pytest.skip("no base network is shipped yet")
    base = load_network("base")
    stack = read_stack(shared_data / "stacks" / "xyz_16bit__spots.tif")
    slices = resample_z(Normalisation.of(stack.data).apply(stack.data), stack.anisotropy).transpose(1, 0, 2)
    model = tiny_model(base.state, base.shape, slice_px=slices.shape[1:], train_px=base.info.get("train_px"))
    object.__setattr__(model, "samples", np.ascontiguousarray(slices[::8]))
    bundle = export_bundle(model, tmp_path / "base.ssai3d")
    assert bundle.golden_kinds[:4] == ("real",) * 4
    assert bundle.manifest.parity.real.psnr_db >= 55
    assert bundle.tile == 96


def test_a_bundle_denoises_as_fine_tuning_did() -> None:
    def mode(**settings: object) -> str:
        return from_model._adaptation(tiny_model(settings=settings).record).denoise

    assert mode(denoise="off") == "off"
    assert mode() == "auto"  # a model made before there was a choice
