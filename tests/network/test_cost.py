from __future__ import annotations

import pytest

from ssai3d_rt.network.cost import cost_of
from ssai3d_rt.network.nafnet import NAFNet, NAFNetShape

SHAPES = {
    "tiny": NAFNetShape(width=8, enc=(1,), middle=1, dec=(1,)),
    "deep": NAFNetShape(width=4, enc=(1, 2, 1), middle=2, dec=(2, 1, 1), channels=3),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_count_is_torchs_own(shape: NAFNetShape) -> None:
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    network = NAFNet(shape).eval()
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.zeros(1, shape.channels, 32, 48))
    cost = cost_of(shape, 32, 48)
    assert cost.flops == counter.get_total_flops()
    convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    assert cost.weights == sum(m.weight.numel() for m in convolutions)
    moved = []
    for module in convolutions:
        module.register_forward_hook(lambda _, given, out: moved.append(given[0].numel() + out.numel()))
    with torch.inference_mode():
        network(torch.zeros(1, shape.channels, 32, 48))
    assert cost.values == sum(moved)


def test_published_networks_cost_what_is_published() -> None:
    blocks = {"enc": (1, 1, 1, 28), "middle": 1, "dec": (1, 1, 1, 1)}
    for width, channels, gmacs in ((64, 3, 63.05), (64, 1, 62.90), (32, 3, 15.96), (16, 3, 4.09)):
        shape = NAFNetShape(width=width, channels=channels, **blocks)  # type: ignore[arg-type]
        assert cost_of(shape, 256).macs / 1e9 == pytest.approx(gmacs, rel=2e-3)


def test_batches_share_the_weights() -> None:
    cost = cost_of(SHAPES["tiny"], 32)
    assert cost.moved_bytes(2, 4) == 2 * (4 * cost.values + cost.weights)


def test_a_size_that_the_network_pads_is_refused() -> None:
    with pytest.raises(ValueError, match=r"33 x 32 px is not a multiple of 2"):
        cost_of(SHAPES["tiny"], 33, 32)
