from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from ssai3d_rt.adapt import zeroshot
from ssai3d_rt.adapt.zeroshot import ARTICLE, METRICS, PUBLISHED, Loss
from ssai3d_rt.errors import ConfigError
from ssai3d_rt.network.nafnet import NAFNet, NAFNetShape, shape_of

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def tiny() -> NAFNet:
    torch.manual_seed(3)
    network = NAFNet(NAFNetShape(width=4, enc=(1,), middle=1, dec=(1,)))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith(("beta", "gamma")):
                parameter.fill_(0.3)
    return network.double()


@pytest.fixture(scope="module")
def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(4)
    return torch.rand(2, 1, 8, 8).double(), torch.rand(2, 1, 8, 8).double()


@pytest.mark.parametrize("loss", list(Loss))
def test_the_published_metrics_have_their_golden_values(shared_data: Path, loss: Loss) -> None:
    golden: dict[str, Any] = dict(np.load(shared_data / "golden" / "zeroshot_w8.npz"))
    saved = np.load(shared_data / "golden" / "nafnet_w8.npz")
    state = {k[3:]: torch.from_numpy(saved[k]) for k in saved.files if k.startswith("sd/")}
    network = NAFNet(shape_of(state))
    network.load_state_dict(state)
    lq, gt = torch.from_numpy(golden["lq"]), torch.from_numpy(golden["gt"])
    found = zeroshot.published_metrics(network, lq, gt, loss=loss)
    assert tuple(found) == PUBLISHED
    assert sorted(golden["layers"]) == sorted(zeroshot.layers_of(network))
    for name in ("grad_norm", "snip", "grasp", "fisher", "plain", "synflow"):
        mine = np.array([found[name.replace("_", "-")][layer] for layer in golden["layers"]])
        np.testing.assert_allclose(mine, golden[f"{loss.value}/{name}"], rtol=1e-3, err_msg=name)


def test_each_of_the_articles_metrics_is_what_its_equation_says(
    tiny: NAFNet, pairs: tuple[torch.Tensor, torch.Tensor]
) -> None:
    """Compare with the plain way: hooks that keep A and G, a loop over the second derivatives."""
    found = zeroshot.article_metrics(tiny, *pairs)
    assert tuple(found) == ARTICLE
    kept: dict[str, torch.Tensor] = {}
    module = tiny.get_submodule("middle_blks.0.conv2")
    hook = module.register_forward_hook(lambda _m, _i, out: (out.retain_grad(), kept.update(a=out))[1])
    loss = (tiny(pairs[0]) - pairs[1]).square().mean()
    torch.autograd.backward(loss)
    hook.remove()
    a, w = kept["a"].detach(), tiny.get_parameter("middle_blks.0.conv2.weight")
    assert kept["a"].grad is not None
    assert w.grad is not None
    g, dw = kept["a"].grad, w.grad.clone()
    tiny.zero_grad(set_to_none=True)
    wanted = {
        "activation-mean": a.mean(),
        "activation-std": a.var(correction=0).sqrt(),
        "activation-abs-mean": a.abs().mean(),
        "activation-abs-std": a.abs().var(correction=0).sqrt(),
        "gradient-mean": g.mean(),
        "gradient-std": g.var(correction=0).sqrt(),
        "gradient-abs-mean": g.abs().mean(),
        "gradient-abs-std": g.abs().var(correction=0).sqrt(),
        "fisher": (a * g).pow(2).mean(),
        "snip": (dw * w).abs().mean(),
        "weight-mean": w.mean(),
        "weight-std": w.var(correction=0).sqrt(),
    }
    for name, value in wanted.items():
        assert found[name]["middle_blks.0.conv2"] == pytest.approx(value.item(), rel=1e-6), name
    assert zeroshot.metric_of(tiny, "grad-norm", *pairs)["middle_blks.0.conv2"] == pytest.approx(float(dw.norm()))


def test_grasp_is_the_second_derivative_along_the_gradient(
    tiny: NAFNet, pairs: tuple[torch.Tensor, torch.Tensor]
) -> None:
    """Compare with a finite difference of gradients."""
    layers = zeroshot.layers_of(tiny)
    weights = [tiny.get_parameter(f"{layer}.weight") for layer in layers]

    def gradients() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad((tiny(pairs[0]) - pairs[1]).square().mean(), weights)

    first = gradients()
    step = 1e-4
    with torch.no_grad():
        [w.add_(step * g) for w, g in zip(weights, first, strict=True)]
    after = gradients()
    with torch.no_grad():
        [w.sub_(2 * step * g) for w, g in zip(weights, first, strict=True)]
    before = gradients()
    with torch.no_grad():
        [w.add_(step * g) for w, g in zip(weights, first, strict=True)]
    found = zeroshot.metric_of(tiny, "grasp", *pairs)
    for layer, weight, one, two in zip(layers, weights, after, before, strict=True):
        wanted = float((-(one - two) / (2 * step) * weight.detach()).mean())
        assert found[layer] == pytest.approx(wanted, rel=1e-3, abs=1e-9), layer


def test_synflow_needs_no_data_and_is_the_layers_share_of_the_flow(
    tiny: NAFNet, pairs: tuple[torch.Tensor, torch.Tensor]
) -> None:
    """The flow is linear in the last layer's weight, so the metric's sum there is the flow less input and bias."""
    found = zeroshot.metric_of(tiny, "synflow", *pairs)
    assert found == zeroshot.metric_of(tiny, "synflow", pairs[1], pairs[0])
    positive = NAFNet(tiny.shape).double()
    positive.load_state_dict({k: v.abs() for k, v in tiny.state_dict().items()})
    ones = torch.ones(1, 1, 8, 8).double()
    flow = float((positive(ones) - ones).detach().sum()) - 64 * float(positive.get_parameter("ending.bias").detach())
    assert found["ending"] * tiny.ending.weight.numel() == pytest.approx(flow, rel=1e-9)


def test_measuring_leaves_the_network_as_it_was(tiny: NAFNet, pairs: tuple[torch.Tensor, torch.Tensor]) -> None:
    before = {k: v.clone() for k, v in tiny.state_dict().items()}
    tiny.intro.requires_grad_(False)
    found = zeroshot.published_metrics(tiny, *pairs)
    assert found["snip"]["intro"] > 0
    assert not tiny.intro.weight.requires_grad
    tiny.intro.requires_grad_(True)
    assert all(torch.equal(before[k], v) for k, v in tiny.state_dict().items())
    assert all(p.grad is None for p in tiny.parameters())


def test_single_metrics_agree_with_the_whole_set(tiny: NAFNet, pairs: tuple[torch.Tensor, torch.Tensor]) -> None:
    whole = zeroshot.article_metrics(tiny, *pairs)
    for name in ARTICLE:
        assert zeroshot.metric_of(tiny, name, *pairs) == pytest.approx(whole[name])
    assert set(METRICS) - set(ARTICLE) == {"grad-norm", "plain", "magnitude"}
    with pytest.raises(ConfigError, match="no zero-shot metric 'snap'; there are activation-mean"):
        zeroshot.metric_of(tiny, "snap", *pairs)


def test_cross_entropy_is_refused_for_one_channel(tiny: NAFNet, pairs: tuple[torch.Tensor, torch.Tensor]) -> None:
    with pytest.raises(ConfigError, match="constant"):
        zeroshot.published_metrics(tiny, *pairs, loss=Loss.CROSS_ENTROPY)


def test_normalised_metrics_go_from_0_to_1_and_constant_ones_are_0() -> None:
    assert zeroshot.normalised({"a": {"x": 2.0, "y": 2.0}, "b": {"x": -1.0, "y": 3.0, "z": 1.0}}) == {
        "a": {"x": 0.0, "y": 0.0},
        "b": {"x": 0.0, "y": 1.0, "z": 0.5},
    }


def test_depth_order_follows_the_data() -> None:
    layers = zeroshot.layers_of(NAFNet(NAFNetShape(width=2, enc=(1, 2), middle=1, dec=(1, 1))))
    stages = [layer.partition(".conv")[0].partition(".sca")[0] for layer in zeroshot.depth_order(layers)]
    order = "intro encoders.0.0 downs.0 encoders.1.0 encoders.1.1 downs.1 middle_blks.0 ups.0.0 decoders.0.0 ups.1.0"
    assert list(dict.fromkeys(stages)) == [*order.split(), "decoders.1.0", "ending"]
    assert sorted(zeroshot.depth_order(layers)) == sorted(layers)
