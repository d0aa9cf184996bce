from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from ssai3d_rt.export.fold import ALL_STEPS, Step, folded_blocks
from ssai3d_rt.network.nafnet import NAFNetShape
from ssai3d_rt.network.weights import State, load_network
from tests.tiny import tiny_state

if TYPE_CHECKING:
    from pathlib import Path

torch = pytest.importorskip("torch")

from ssai3d_rt.export.measure import folding_errors  # noqa: E402
from ssai3d_rt.export.typed import Form, TypedNAFNet  # noqa: E402
from ssai3d_rt.network.weights import network_from  # noqa: E402

SMALL = NAFNetShape(width=8, enc=(1, 2), middle=1, dec=(2, 1))


def base(shared_data: Path) -> State:
    return load_network("base").state


def golden(shared_data: Path) -> State:
    """The published network's random weights, three channels."""
    with np.load(shared_data / "golden" / "nafnet_w8.npz") as file:
        return {key[3:]: file[key] for key in file.files if key.startswith("sd/")}


def published(state: State, tiles: np.ndarray, window: int | None) -> np.ndarray:
    """What the published network makes of gray tiles: colours that are equal, the mean of its answers."""
    channels = state["intro.weight"].shape[1]
    with torch.inference_mode():
        answer = network_from(state, window)(torch.from_numpy(np.repeat(tiles, channels, axis=1)))
        return np.asarray(answer.mean(1, keepdim=True).numpy())


def test_each_step_takes_what_it_folds_and_nothing_else() -> None:
    state = tiny_state(shape=replace(SMALL, channels=3))
    assert folded_blocks(state, frozenset()) == state
    gone = {step: set(state) - set(folded_blocks(state, frozenset({step}))) for step in Step}
    assert gone[Step.NORM] == {key for key in state if ".norm" in key}
    assert gone[Step.SCALE] == {key for key in state if key.endswith((".beta", ".gamma"))}
    assert gone[Step.GRAY] == gone[Step.POOL] == set()
    gray = folded_blocks(state, frozenset({Step.GRAY}))
    changed = {key for key in state if gray[key] is not state[key]}
    assert changed == {"intro.weight", "ending.weight", "ending.bias"}
    assert set(state) - set(folded_blocks(state)) == gone[Step.NORM] | gone[Step.SCALE]


@pytest.mark.parametrize("window", [None, 40, 256], ids=["mean", "window", "window beyond the tile"])
@pytest.mark.parametrize("weights", [golden, base], ids=["golden", "base"])
def test_every_step_alone_and_all_together_leave_the_fp32_network_as_it_is(
    weights: object, window: int | None, shared_data: Path
) -> None:
    state = weights(shared_data)  # type: ignore[operator]
    tiles = np.random.default_rng(0).random((1, 1, 64, 64), dtype=np.float32)
    errors = folding_errors(state, tiles, published(state, tiles, window), pool_window=window)
    colours = {"gray"} if weights is golden else set()
    assert set(errors) == {"none", "norm", "scale", "pool", "all"} | colours
    assert max(errors.values()) < 1e-5, errors
    assert errors["all"] > 0  # something was computed in another order


def test_a_step_that_is_wrong_is_measured() -> None:
    state = tiny_state(strength=1.0, shape=SMALL)
    tiles = np.random.default_rng(0).random((1, 1, 32, 32), dtype=np.float32)
    reference = published(state, tiles, None)
    state["encoders.0.0.norm1.bias"] = state["encoders.0.0.norm1.bias"] + np.float32(0.1)
    assert folding_errors(state, tiles, reference)["norm"] > 1e-5


def test_a_step_left_out_is_still_computed() -> None:
    state = tiny_state(strength=1.0, shape=SMALL)
    tiles = np.random.default_rng(0).random((1, 1, 32, 32), dtype=np.float32)
    with torch.inference_mode():
        for left_out in Step:
            network = TypedNAFNet(state, Form("fp32", pool_window=20, steps=ALL_STEPS - {left_out}))
            restored = network(torch.from_numpy(tiles)).numpy()
            wanted = published(state, tiles, 20)
            assert np.abs(restored - wanted).max() < 1e-5 * np.ptp(wanted), left_out
