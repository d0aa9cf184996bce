from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from ssai3d_rt.errors import ParityError
from ssai3d_rt.export.fold import folded_blocks
from ssai3d_rt.export.golden import golden_tiles
from ssai3d_rt.export.onnxfile import facts_of
from ssai3d_rt.export.parity import Limits, check_parity
from ssai3d_rt.network.nafnet import NAFNetShape
from tests.tiny import SHAPE, TILE, tiny_model, tiny_state

if TYPE_CHECKING:
    from ssai3d_rt.export.bundle import Bundle

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from ssai3d_rt.export.typed import TypedNAFNet, onnx_from_model, rehearse  # noqa: E402
from ssai3d_rt.network.weights import network_from  # noqa: E402

DEEP = NAFNetShape(width=8, enc=(1, 2), middle=1, dec=(2, 1))


def reference(state: dict[str, np.ndarray], tiles: np.ndarray, window: int | None = None) -> np.ndarray:
    with torch.inference_mode():
        return np.asarray(network_from(state, window)(torch.from_numpy(tiles)).numpy())


def ort(model: bytes, tiles: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"tiles": tiles})[0])


@pytest.fixture
def typed(tiny_bundle: Bundle) -> bytes:
    return tiny_bundle.onnx


def test_folding_removes_norms_and_factors_and_changes_nothing_else() -> None:
    state = tiny_state()
    folded = folded_blocks(state)
    gone = set(state) - set(folded)
    assert gone == {k for k in state if k.rpartition(".")[2] in ("beta", "gamma") or ".norm" in k}
    assert folded["intro.weight"] is state["intro.weight"]
    assert all(folded[key].dtype == np.float32 for key in folded)


@pytest.mark.parametrize("window", [None, 24, 100], ids=["mean", "tlc", "wide tlc"])
def test_the_folded_fp32_twin_equals_the_network(window: int | None) -> None:
    state = tiny_state(shape=DEEP, strength=1.0)
    tiles = np.random.default_rng(0).random((2, 1, 48, 64), dtype=np.float32)
    with torch.inference_mode():
        ours = TypedNAFNet(state, half=False, pool_window=window)(torch.from_numpy(tiles)).numpy()
    theirs = reference(state, tiles, window)
    assert np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max()
    if window == 24:
        assert np.abs(theirs - reference(state, tiles)).max() > 1e-4  # the window makes a difference


def test_the_fp16_file_is_one_file_with_fp32_ends_and_a_dynamic_batch(typed: bytes) -> None:
    model = onnx.load_from_string(typed)
    onnx.checker.check_model(model, full_check=True)
    ports = {p.name: p.type.tensor_type for p in (*model.graph.input, *model.graph.output)}
    assert set(ports) == {"tiles", "restored"}
    for port in ports.values():
        assert port.elem_type == onnx.TensorProto.FLOAT
        assert [d.dim_value for d in port.shape.dim] == [0, 1, TILE, TILE]
        assert port.shape.dim[0].dim_param
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
    metadata = {p.key: p.value for p in model.metadata_props}
    assert set(metadata) == {"tile", "precision", "state_sha256", "tools"}
    assert (metadata["tile"], metadata["precision"]) == ("64", "fp16")
    for count in (1, 2, 5):
        assert ort(typed, np.zeros((count, 1, TILE, TILE), np.float32)).shape == (count, 1, TILE, TILE)


def test_convolutions_are_fp16_and_the_islands_are_fp32(typed: bytes) -> None:
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(typed), strict_mode=True)
    types = {v.name: v.type.tensor_type.elem_type for v in (*model.graph.value_info, *model.graph.input)}
    types |= {v.name: v.type.tensor_type.elem_type for v in model.graph.output}
    types |= {i.name: i.data_type for i in model.graph.initializer}
    half, full = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    of = {kind: [n for n in model.graph.node if n.op_type == kind] for kind in ("Conv", "ReduceMean", "Mul", "Add")}
    blocks = SHAPE.enc[0] + SHAPE.middle + SHAPE.dec[0]
    assert len(of["Conv"]) == 4 + 6 * blocks
    assert all(types[name] == half for node in of["Conv"] for name in (*node.input, *node.output))
    # Two means per LayerNorm, two LayerNorms and one pooled mean per block.
    assert len(of["ReduceMean"]) == 5 * blocks
    assert all(types[node.input[0]] == types[node.output[0]] == full for node in of["ReduceMean"])
    squares = [node for node in of["Mul"] if node.input[0] == node.input[1]]
    assert len(squares) == 2 * blocks
    assert all(types[node.output[0]] == full for node in squares)
    final = [node for node in of["Add"] if "tiles" in node.input]
    assert len(final) == 1
    assert types[final[0].output[0]] == full


def test_the_file_holds_nothing_of_this_machine_and_is_the_same_each_time(typed: bytes) -> None:
    for trace in (b"site-packages", b"stack_trace", str(Path(__file__).parents[2]).encode()):
        assert trace not in typed
    assert onnx_from_model(tiny_state(), tile=TILE, metadata=facts_of(typed).metadata) == typed


def test_a_file_with_a_pooling_window_gives_the_local_networks_numbers() -> None:
    state = tiny_state(strength=1.0)
    model = onnx_from_model(state, tile=TILE, pool_window=24)
    tiles, kinds = golden_tiles(TILE, tiny_model().samples)
    check_parity(reference(state, tiles, 24), ort(model, tiles), kinds=kinds, limits=Limits(), what="it")
    assert any(node.op_type == "AveragePool" for node in onnx.load_from_string(model).graph.node)


def test_a_rehearsal_gives_the_numbers_of_half_precision_arithmetic() -> None:
    state = tiny_state(strength=1.0)
    tiles, _ = golden_tiles(TILE, tiny_model().samples)
    rehearsed, peak = rehearse(state, tiles)
    with torch.inference_mode():
        half = TypedNAFNet(state, half=True)(torch.from_numpy(tiles)).numpy()
    exact = reference(state, tiles)
    error, apart = np.abs(half - exact).max(), np.abs(half - rehearsed).max()
    assert apart <= error < 100 * np.abs(rehearsed - exact).max()
    assert 1 < peak < 1000
    assert np.abs(rehearse(state, tiles, precision="fp32")[0] - exact).max() < 1e-4


def test_a_rehearsal_shows_what_a_cpu_hides() -> None:
    state = tiny_state()
    state["intro.weight"] *= np.float32(5e4)
    state["ending.weight"] *= np.float32(1e-5)
    tiles = np.random.default_rng(0).random((2, 1, 16, 16), dtype=np.float32)
    rehearsed, peak = rehearse(state, tiles)
    assert peak > 65504
    assert not np.isfinite(rehearsed).all()
    assert np.isfinite(reference(state, tiles)).all()
    assert 65504 < rehearse(state, tiles, precision="fp32")[1] < 1e6


@pytest.mark.parametrize(
    ("value", "message"),
    [(np.nan, "encoders.0.0.conv3.weight are not finite"), (1e6, r"conv3.weight reach .* FP16 ends at 65504")],
    ids=["nan", "overflow"],
)
def test_weights_that_fp16_cannot_hold_are_refused(value: float, message: str) -> None:
    state = tiny_state()
    state["encoders.0.0.conv3.weight"][0, 0] = value
    with pytest.raises(ParityError, match=message):
        onnx_from_model(state, tile=TILE)


def test_weights_that_overflow_only_when_folded_are_refused() -> None:
    state = tiny_state()
    state["encoders.0.0.beta"][:] = 1e7
    with pytest.raises(ParityError, match="FP16 ends at 65504"):
        onnx_from_model(state, tile=TILE)


def test_a_tile_that_the_network_cannot_take_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="not a multiple of 2"):
        onnx_from_model(tiny_state(), tile=63)
