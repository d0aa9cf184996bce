from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from ssai3d_rt.errors import ParityError
from ssai3d_rt.export.engine import engine_from_bundle, load_engine
from ssai3d_rt.export.golden import golden_tiles
from ssai3d_rt.export.onnxfile import facts_of
from ssai3d_rt.export.parity import Limits, check_parity
from ssai3d_rt.network.nafnet import NAFNetShape
from tests.tiny import SHAPE, TILE, tiny_model, tiny_state, with_onnx

if TYPE_CHECKING:
    from ssai3d_rt.export.bundle import Bundle

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from ssai3d_rt.export.fold import ALL_STEPS, Step  # noqa: E402
from ssai3d_rt.export.typed import Form, TypedNAFNet, onnx_from_model  # noqa: E402
from ssai3d_rt.network.weights import network_from  # noqa: E402

DEEP = NAFNetShape(width=8, enc=(1, 2), middle=1, dec=(2, 1))
HALF, FULL = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT


def reference(state: dict[str, np.ndarray], tiles: np.ndarray, window: int | None = None) -> np.ndarray:
    with torch.inference_mode():
        return np.asarray(network_from(state, window)(torch.from_numpy(tiles)).numpy())


def ort(model: bytes, tiles: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"tiles": tiles})[0])


class Graph:
    """An ONNX graph with the type of every value, and its nodes by operator."""

    def __init__(self, data: bytes) -> None:
        graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(data), strict_mode=True).graph
        values = (*graph.value_info, *graph.input, *graph.output)
        self.types = {v.name: v.type.tensor_type.elem_type for v in values}
        self.types |= {i.name: i.data_type for i in graph.initializer}
        self.nodes = graph.node
        self.made_by = {name: node for node in graph.node for name in node.output}

    def of(self, kind: str) -> list[Any]:
        return [node for node in self.nodes if node.op_type == kind]

    def type_of(self, node: Any) -> int:
        """The type that a node computes in; fails where its values differ."""
        names = [name for name in (*node.input, *node.output) if name]
        assert len({self.types[name] for name in names}) == 1, names
        return int(self.types[node.output[0]])


@pytest.fixture
def typed(tiny_bundle: Bundle) -> bytes:
    return tiny_bundle.onnx


NATIVE16 = Form(
    layer_norm="native16", wide=frozenset({"encoders.0.0.conv2", "encoders.0.0.gate1", "middle_blks.0.residual1"})
)
UNFOLDED = Form(layer_norm="native32", steps=frozenset(), pool_window=24)


@pytest.fixture(scope="module")
def native16() -> bytes:
    """LayerNormalization on FP16, and some tensors that stay FP32."""
    return onnx_from_model(tiny_state(strength=1.0), NATIVE16, tile=TILE)


@pytest.fixture(scope="module")
def unfolded() -> bytes:
    """LayerNormalization in FP32, three colours, a pooling window, nothing folded."""
    return onnx_from_model(tiny_state(strength=1.0, shape=replace(SHAPE, channels=3)), UNFOLDED, tile=TILE)


@pytest.mark.parametrize("window", [None, 24, 100], ids=["mean", "tlc", "wide tlc"])
def test_the_folded_fp32_twin_equals_the_network(window: int | None) -> None:
    state = tiny_state(shape=DEEP, strength=1.0)
    tiles = np.random.default_rng(0).random((2, 1, 48, 64), dtype=np.float32)
    with torch.inference_mode():
        ours = TypedNAFNet(state, Form("fp32", pool_window=window))(torch.from_numpy(tiles)).numpy()
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
        assert port.elem_type == FULL
        assert [d.dim_value for d in port.shape.dim] == [0, 1, TILE, TILE]
        assert port.shape.dim[0].dim_param
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
    metadata = {p.key: p.value for p in model.metadata_props}
    assert set(metadata) == {"tile", "precision", "state_sha256", "tools"}
    assert (metadata["tile"], metadata["precision"]) == ("64", "fp16")
    for count in (1, 2, 5):
        assert ort(typed, np.zeros((count, 1, TILE, TILE), np.float32)).shape == (count, 1, TILE, TILE)


BLOCKS = SHAPE.enc[0] + SHAPE.middle + SHAPE.dec[0]


def test_convolutions_are_fp16_and_the_islands_are_fp32(typed: bytes) -> None:
    graph = Graph(typed)
    assert len(graph.of("Conv")) == 4 + 6 * BLOCKS
    assert {graph.type_of(node) for node in graph.of("Conv")} == {HALF}
    # Two means per LayerNorm, two LayerNorms and one pooled mean per block.
    assert len(graph.of("ReduceMean")) == 5 * BLOCKS
    assert {graph.types[node.input[0]] for node in graph.of("ReduceMean")} == {FULL}
    squares = [node for node in graph.of("Mul") if node.input[0] == node.input[1]]
    assert len(squares) == 2 * BLOCKS
    assert {graph.type_of(node) for node in squares} == {FULL}
    final = [node for node in graph.of("Add") if "tiles" in node.input]
    assert [graph.type_of(node) for node in final] == [FULL]


def test_wide_tensors_are_fp32_and_so_is_what_takes_or_gives_them(native16: bytes) -> None:
    state = tiny_state(strength=1.0)
    graph = Graph(native16)
    # conv2 gives a wide tensor. Nothing else: the attention's product may be FP16 again, and conv3 takes that.
    assert sorted(graph.type_of(node) for node in graph.of("Conv")) == [FULL] + [HALF] * (3 + 6 * BLOCKS)
    gates = [n for n in graph.of("Mul") if all(graph.made_by[i].op_type == "Split" for i in n.input)]
    assert sorted(graph.type_of(node) for node in gates) == [FULL] + [HALF] * (2 * BLOCKS - 1)
    # The LayerNorm that takes the wide residual computes in FP32 whatever the mode.
    norms = graph.of("LayerNormalization")
    assert sorted(graph.type_of(node) for node in norms) == [FULL] + [HALF] * (2 * BLOCKS - 1)
    assert len(graph.of("ReduceMean")) == BLOCKS  # the pooled means alone
    tiles, kinds = golden_tiles(TILE, tiny_model().samples)
    check_parity(reference(state, tiles), ort(native16, tiles), kinds=kinds, limits=Limits(), what="native16")
    with torch.inference_mode():
        eager = TypedNAFNet(state, NATIVE16)(torch.from_numpy(tiles)).numpy()
    check_parity(reference(state, tiles), eager, kinds=kinds, limits=Limits(), what="eager")


def test_nothing_folded_exports_too(unfolded: bytes) -> None:
    state = tiny_state(strength=1.0, shape=replace(SHAPE, channels=3))
    tiles, kinds = golden_tiles(TILE, tiny_model().samples)
    wanted = reference(state, np.repeat(tiles, 3, axis=1), 24).mean(1, keepdims=True)
    check_parity(wanted, ort(unfolded, tiles), kinds=kinds, limits=Limits(), what="unfolded")
    graph = Graph(unfolded)
    norms = graph.of("LayerNormalization")
    assert [graph.type_of(node) for node in norms] == [FULL] * 2 * BLOCKS
    assert {"encoders_0_0_norm1_weight", "intro_weight"} <= set(graph.types)
    assert [p.dims for p in facts_of(unfolded).inputs] == [(None, 1, TILE, TILE)]


@pytest.mark.parametrize("which", ["native16", "unfolded"])
def test_tensorrt_for_rtx_builds_every_form_and_warns_of_nothing(
    which: str, tiny_bundle: Bundle, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    pytest.importorskip("tensorrt_rtx")
    bundle = with_onnx(tiny_bundle, request.getfixturevalue(which), tmp_path)
    data, note = load_engine(engine_from_bundle(bundle, "tensorrt-rtx", tmp_path))
    assert len(data) > 10_000
    assert not [w for w in note.warnings if "norm" in w.lower() or "FP16" in w], note.warnings


def test_the_file_holds_nothing_of_this_machine_and_is_the_same_each_time(typed: bytes) -> None:
    for trace in (b"site-packages", b"stack_trace", str(Path(__file__).parents[2]).encode()):
        assert trace not in typed
    assert onnx_from_model(tiny_state(), tile=TILE, metadata=facts_of(typed).metadata) == typed


def test_a_file_with_a_pooling_window_gives_the_local_networks_numbers() -> None:
    state = tiny_state(strength=1.0)
    model = onnx_from_model(state, Form(pool_window=24), tile=TILE)
    tiles, kinds = golden_tiles(TILE, tiny_model().samples)
    check_parity(reference(state, tiles, 24), ort(model, tiles), kinds=kinds, limits=Limits(), what="it")
    assert any(node.op_type == "AveragePool" for node in onnx.load_from_string(model).graph.node)


@pytest.mark.parametrize("value", [1e6, 1e-6], ids=["too large", "too small"])
def test_weights_that_fp16_cannot_hold_stay_fp32(value: float) -> None:
    state = tiny_state(strength=1.0)
    tiles, _ = golden_tiles(TILE, tiny_model().samples)
    wanted = reference(state, tiles)
    for part in ("weight", "bias"):
        state[f"encoders.0.0.conv3.{part}"] *= np.float32(value)
    state["encoders.0.0.beta"] /= np.float32(value)
    unfolded = Form(steps=ALL_STEPS - {Step.SCALE}, wide=frozenset({"encoders.0.0.conv3"}))
    for form, count in ((Form(), 0), (unfolded, 2)):
        network = TypedNAFNet(state, form)
        assert sum(b.dtype == torch.float32 for name, b in network.named_buffers() if "conv" in name) == count
        with torch.inference_mode():
            restored = network(torch.from_numpy(tiles)).numpy()
        assert np.abs(restored - wanted).max() < 0.01 * np.ptp(wanted)


def test_weights_that_are_not_finite_are_refused() -> None:
    state = tiny_state()
    state["encoders.0.0.conv3.weight"][0, 0] = np.nan
    with pytest.raises(ParityError, match=r"encoders.0.0.conv3.weight are not finite"):
        onnx_from_model(state, tile=TILE)


def test_a_tile_or_a_form_that_there_is_not_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="not a multiple of 2"):
        onnx_from_model(tiny_state(), tile=63)
    with pytest.raises(ValueError, match="'bf16' is none of fp16, fp32"):
        Form("bf16")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'native8' is none of island, native32, native16"):
        Form(layer_norm="native8")  # type: ignore[arg-type]
