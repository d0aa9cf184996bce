from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from ssai3d_rt.errors import WeightsError
from ssai3d_rt.network.nafnet import NAFNet, NAFNetShape
from ssai3d_rt.network.weights import (
    folded,
    import_weights,
    list_bases,
    load_network,
    network_from,
    save_state,
    state_from,
)

SHAPE = NAFNetShape(width=4, enc=(1, 1), middle=1, dec=(1, 1))
RGB = NAFNetShape(width=4, enc=(1, 1), middle=1, dec=(1, 1), channels=3)


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSAI3D_RT_HOME", str(tmp_path / "home"))


def random_network(shape: NAFNetShape) -> NAFNet:
    torch.manual_seed(1)
    network = NAFNet(shape).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def test_safetensors_round_trip(tmp_path: Path) -> None:
    state = state_from(random_network(SHAPE))
    path = save_state(state, tmp_path / "net.safetensors", {"train_px": 96})
    loaded = load_network(path)
    assert loaded.shape == SHAPE
    assert loaded.info == {"train_px": 96}
    assert all(np.array_equal(loaded.state[key], value) for key, value in state.items())


def test_weights_whole_in_half_precision_take_half_the_room(tmp_path: Path) -> None:
    state = state_from(random_network(SHAPE))
    halves = {key: value.astype(np.float16).astype(np.float32) for key, value in state.items()}
    small = save_state(halves, tmp_path / "half.safetensors", {})
    large = save_state(state, tmp_path / "full.safetensors", {})
    assert small.stat().st_size < 0.7 * large.stat().st_size
    assert all(np.array_equal(load_network(small).state[key], value) for key, value in halves.items())


def test_published_checkpoint_loads_without_being_told_its_shape(shared_data: Path, tmp_path: Path) -> None:
    with np.load(shared_data / "golden" / "nafnet_w8.npz") as golden:
        state = {k[3:]: torch.from_numpy(golden[k]) for k in golden.files if k.startswith("sd/")}
    torch.save({"params": state}, tmp_path / "NAFNet-REDS-width8.pth")
    loaded = load_network(tmp_path / "NAFNet-REDS-width8.pth")
    assert loaded.shape == NAFNetShape(width=8, enc=(1, 1, 1, 2), middle=1, dec=(1, 1, 1, 1), channels=1)
    assert loaded.name == "NAFNet-REDS-width8"


def test_folding_to_one_channel_is_exact() -> None:
    network = random_network(RGB).double()
    gray = NAFNet(SHAPE).double().eval()
    state = {k: v.numpy() for k, v in network.state_dict().items()}
    gray.load_state_dict({k: torch.from_numpy(np.asarray(v)) for k, v in folded(state).items()})
    image = torch.rand(2, 1, 24, 20, dtype=torch.float64)
    with torch.inference_mode():
        wanted = network(image.expand(-1, 3, -1, -1)).mean(1, keepdim=True)
        torch.testing.assert_close(gray(image), wanted, rtol=0, atol=1e-12)


def test_three_channel_checkpoint_is_folded_at_load(tmp_path: Path) -> None:
    network = random_network(RGB)
    torch.save(network.state_dict(), tmp_path / "rgb.pth")
    image = torch.rand(1, 1, 16, 16)
    with torch.inference_mode():
        wanted = network(image.expand(-1, 3, -1, -1)).mean(1, keepdim=True)
        torch.testing.assert_close(network_from(load_network(tmp_path / "rgb.pth").state)(image), wanted)


def a_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"params": Path("x")}))


def not_weights(path: Path) -> None:
    torch.save({"params": 3}, path)


def nan_inside(path: Path) -> None:
    state = random_network(SHAPE).state_dict()
    state["intro.bias"][0] = torch.nan
    torch.save(state, path)


def another_shape(path: Path) -> None:
    state = random_network(SHAPE).state_dict()
    state["middle_blks.0.conv1.weight"] = torch.zeros(2, 2, 1, 1)
    torch.save(state, path)


def one_too_many(path: Path) -> None:
    torch.save(random_network(SHAPE).state_dict() | {"head.weight": torch.zeros(1)}, path)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (a_pickle, "not a checkpoint of weights alone"),
        (not_weights, "does not hold a state dict"),
        (nan_inside, "not finite"),
        (another_shape, "has shape"),
        (one_too_many, r"does not have: head\.weight"),
        (lambda path: path.write_bytes(b""), "not a checkpoint"),
    ],
)
def test_bad_checkpoints_are_refused_by_name(tmp_path: Path, make: object, match: str) -> None:
    make(tmp_path / "bad.pth")  # type: ignore[operator]
    with pytest.raises(WeightsError, match=match) as caught:
        load_network(tmp_path / "bad.pth")
    assert "bad.pth" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"\0" * 50)
    with pytest.raises(WeightsError, match="not a safetensors file"):
        load_network(tmp_path / "x.safetensors")


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(WeightsError, match="known base networks: base"):
        load_network("bse")


def test_import_makes_a_network_known_by_name(tmp_path: Path) -> None:
    torch.save({"params": random_network(RGB).state_dict()}, tmp_path / "published.pth")
    entry = import_weights(tmp_path / "published.pth", "published-w4")
    assert entry in list_bases()
    assert load_network("published-w4").info["imported_from"] == "published.pth"
    with pytest.raises(WeightsError, match="exists already"):
        import_weights(tmp_path / "published.pth", "published-w4")


def test_the_shipped_base_loads_and_says_how_it_was_made() -> None:
    base = load_network("base")
    assert base.shape.channels == 1
    assert base.info["train_px"] == base.info["settings"]["crop"]
    assert base.path.stat().st_size < 8_000_000
