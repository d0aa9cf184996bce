from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from ssai3d_rt.errors import WeightsError
from ssai3d_rt.network.nafnet import NAFNet, NAFNetShape, Pool, shape_of

if TYPE_CHECKING:
    from pathlib import Path

SMALL = NAFNetShape(width=8, enc=(1, 2), middle=1, dec=(1, 1))


@pytest.mark.parametrize(
    ("window", "given", "wanted"), [(None, "input", "output"), (384, "local_input", "local_output")]
)
def test_equals_the_published_network(shared_data: Path, window: int | None, given: str, wanted: str) -> None:
    with np.load(shared_data / "golden" / "nafnet_w8.npz") as golden:
        state = {k[3:]: torch.from_numpy(golden[k]) for k in golden.files if k.startswith("sd/")}
        image, expected = torch.from_numpy(golden[given].astype(np.float32)), golden[wanted].astype(np.float32)
    network = NAFNet(shape_of(state), window).eval()
    network.load_state_dict(state)
    with torch.inference_mode():
        restored = network(image).numpy()
    assert restored.shape == expected.shape
    assert np.abs(restored - expected).max() < 1e-4 * np.ptp(expected)


def test_shape_is_read_off_the_weights() -> None:
    for shape in (SMALL, NAFNetShape(4, (1, 1, 3), 2, (1, 2, 1), channels=3)):
        assert shape_of(NAFNet(shape).state_dict()) == shape


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda s: s.pop("intro.weight"), "not NAFNet weights"),
        (lambda s: s.pop("downs.0.weight"), "with a gap"),
        (lambda s: s.pop("ups.1.0.weight"), "another number of ways up"),
    ],
)
def test_other_weights_are_refused(change: object, match: str) -> None:
    state = dict(NAFNet(SMALL).state_dict())
    change(state)  # type: ignore[operator]
    with pytest.raises(WeightsError, match=match):
        shape_of(state)


def test_any_size_comes_back_at_its_size() -> None:
    network = NAFNet(SMALL).eval()
    with torch.inference_mode():
        assert network(torch.zeros(2, 1, 13, 22)).shape == (2, 1, 13, 22)


def test_new_network_starts_near_the_identity() -> None:
    torch.manual_seed(0)
    image = torch.rand(1, 1, 32, 32)
    with torch.inference_mode():
        restored = NAFNet(SMALL).eval()(image)
    assert 0 < (restored - image).abs().max() < 3


def test_window_larger_than_the_image_is_the_plain_mean() -> None:
    x = torch.rand(1, 3, 12, 20)
    assert torch.equal(Pool(20)(x), Pool(None)(x))
    local = Pool(6)(x)
    assert local.shape == x.shape
    torch.testing.assert_close(local[0, 0, 6, 10], x[0, 0, 4:10, 8:14].mean())
