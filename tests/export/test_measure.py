from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from ssai3d_rt.calibration.precision import tensor_names
from ssai3d_rt.errors import ParityError
from ssai3d_rt.export.golden import golden_tiles
from ssai3d_rt.export.parity import Limits, check_parity
from ssai3d_rt.network.nafnet import NAFNetShape
from ssai3d_rt.network.weights import load_network
from tests.tiny import TILE, tiny_model, tiny_state

if TYPE_CHECKING:
    from ssai3d_rt.network.weights import State

torch = pytest.importorskip("torch")

from ssai3d_rt.export.measure import plan_precision, rehearse  # noqa: E402
from ssai3d_rt.export.typed import Form, TypedNAFNet, onnx_from_model  # noqa: E402
from ssai3d_rt.network.weights import network_from  # noqa: E402

DEEP = NAFNetShape(width=8, enc=(1, 2), middle=1, dec=(2, 1))


@pytest.fixture(scope="module")
def benchmark() -> Any:
    """The benchmark that shows the same on full-size networks."""
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "precision.py"
    spec = importlib.util.spec_from_file_location("precision_benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def reference(state: State, tiles: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return np.asarray(network_from(state)(torch.from_numpy(tiles)).numpy())


def test_every_stored_tensor_is_measured_under_its_name() -> None:
    state = tiny_state(strength=1.0, shape=DEEP)
    tiles, kinds = golden_tiles(32)
    plan = plan_precision(state, tiles, kinds)
    assert tuple(item.name for item in plan.ranges) == tensor_names(DEEP)
    stored: list[str] = []
    network = TypedNAFNet(state, Form("fp32"), observe=lambda name, _: stored.append(name))
    with torch.inference_mode():
        intro = network.intro_weight
        network(torch.from_numpy(tiles[:1]))
        first = torch.nn.functional.conv2d(torch.from_numpy(tiles), intro, network.intro_bias, padding=1).abs().numpy()
    assert tuple(stored) == tensor_names(DEEP)  # the names' order is the order of computation
    found = plan.ranges[1]
    real = np.array([kind == "simulated" for kind in kinds])
    assert found.peak == pytest.approx(first.max(), rel=1e-5)
    assert found.peak_on == kinds[int(first.max(axis=(1, 2, 3)).argmax())] == "hot_pixel"
    assert found.rms == pytest.approx(np.sqrt(np.mean(first[real] ** 2)), rel=1e-5)
    assert np.quantile(first[real], 0.99) < found.high <= first[real].max()


def test_a_rehearsal_gives_the_numbers_of_half_precision_arithmetic() -> None:
    state = tiny_state(strength=1.0)
    tiles, _ = golden_tiles(TILE, tiny_model().samples)
    rehearsed, peak = rehearse(state, tiles)
    with torch.inference_mode():
        half = TypedNAFNet(state)(torch.from_numpy(tiles)).numpy()
    exact = reference(state, tiles)
    error, apart = np.abs(half - exact).max(), np.abs(half - rehearsed).max()
    assert apart <= error < 100 * np.abs(rehearsed - exact).max()
    assert 1 < peak < 1000
    assert np.abs(rehearse(state, tiles, Form("fp32"))[0] - exact).max() < 1e-4


def test_a_rehearsal_shows_what_a_cpu_hides() -> None:
    state = tiny_state()
    state["intro.weight"] *= np.float32(5e4)
    state["ending.weight"] *= np.float32(1e-5)
    tiles = np.random.default_rng(0).random((2, 1, 16, 16), dtype=np.float32)
    rehearsed, peak = rehearse(state, tiles)
    assert peak > 65504
    assert not np.isfinite(rehearsed).all()
    assert np.isfinite(reference(state, tiles)).all()
    assert 65504 < rehearse(state, tiles, Form("fp32"))[1] < 1e6


@pytest.mark.parametrize(("amplitude", "overflows"), [(20, False), (2000, True)])
def test_a_rehearsal_takes_the_squares_of_layer_norm_in_half_precision(amplitude: float, overflows: bool) -> None:
    state = tiny_state()
    for key in ("intro.weight", "intro.bias"):
        state[key] *= np.float32(amplitude)
    tiles = np.random.default_rng(0).random((2, 1, 32, 32), dtype=np.float32)
    peaks = {mode: rehearse(state, tiles, Form(layer_norm=mode))[1] for mode in ("island", "native32", "native16")}
    assert peaks["island"] == pytest.approx(peaks["native32"], rel=1e-2)
    assert peaks["island"] < 65504
    assert np.isinf(peaks["native16"]) == overflows
    # Where its input is FP32 already, so is the operator.
    names = frozenset(tensor_names(NAFNetShape(width=8, enc=(1,), middle=1, dec=(1,))))
    assert rehearse(state, tiles, Form(layer_norm="native16", wide=names))[1] == 0


def test_values_too_small_for_fp16_stay_fp32(benchmark: Any) -> None:
    state = tiny_state(strength=1.0)
    tiles, kinds = golden_tiles(TILE, tiny_model().samples)
    small = benchmark.swollen(state, stream=1.0, gates=2.0**-24, every=1)
    exact = reference(small, tiles)
    assert np.abs(exact - reference(state, tiles)).max() < 1e-5
    plan = plan_precision(small, tiles, kinds)
    assert {"encoders.0.0.gate1", "encoders.0.0.pooled", "encoders.0.0.attended"} <= set(plan.reasons)
    assert set(plan.reasons.values()) == {"small"}
    with pytest.raises(ParityError, match="at least 55 dB"):
        check_parity(exact, rehearse(small, tiles)[0], kinds=kinds, limits=Limits(), what="without")
    check_parity(exact, rehearse(small, tiles, Form(wide=plan.wide))[0], kinds=kinds, limits=Limits(), what="with")


@pytest.mark.parametrize("which", ["base", "swollen"])
def test_fp16_with_fp32_where_it_is_needed_is_55_db_or_more_and_finite(which: str, benchmark: Any) -> None:
    """The export's promise, on a network that runs in plain FP16 and on a wide one that does not."""
    shape = NAFNetShape(width=64, enc=(1, 1), middle=1, dec=(1, 1))
    plain = load_network("base").state if which == "base" else benchmark.random_state(shape)
    state = plain if which == "base" else benchmark.swollen(plain, every=2)
    tiles, kinds = golden_tiles(32)
    exact = reference(state, tiles)
    plan = plan_precision(state, tiles, kinds)
    limits = Limits(real_psnr_db=55.0)
    if which == "base":
        assert plan.wide == frozenset()
    else:
        assert np.abs(exact - reference(plain, tiles)).max() < 1e-3 * np.ptp(exact)  # the same function
        for broken in (benchmark.plain_half(state, tiles), rehearse(state, tiles)[0]):
            with pytest.raises(ParityError, match=r"not finite|at least 55 dB"):
                check_parity(exact, broken, kinds=kinds, limits=limits, what="plain FP16")
        assert 10 < len(plan.wide) < 0.7 * len(plan.ranges)
    form = Form(wide=plan.wide)
    rehearsed, peak = rehearse(state, tiles, form)
    assert peak <= 65504 / 3.9
    check_parity(exact, rehearsed, kinds=kinds, limits=limits, what="rehearsed")
    if which == "swollen":  # the export of the base is compared in test_from_model
        pytest.importorskip("onnx")
        exported = benchmark.run_onnx(onnx_from_model(state, form, tile=32), tiles)
        check_parity(exact, exported, kinds=kinds, limits=limits, what="exported")
