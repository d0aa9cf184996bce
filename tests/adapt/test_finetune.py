from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from ssai3d_rt.adapt.finetune import finetune
from ssai3d_rt.adapt.mask import Layers, layer_mask, open_layers
from ssai3d_rt.adapt.model import AdaptedModel
from ssai3d_rt.adapt.settings import FinetuneSettings, Targets
from ssai3d_rt.adapt.train import CHECKPOINT
from ssai3d_rt.adapt.zeroshot import layers_of, snip
from ssai3d_rt.errors import ConfigError, InputError
from ssai3d_rt.imaging.simulate import Camera, acquire, spheres
from ssai3d_rt.imaging.stack import Stack
from ssai3d_rt.network.nafnet import NAFNet, NAFNetShape
from ssai3d_rt.network.weights import load_network, save_state, state_from

if TYPE_CHECKING:
    from pathlib import Path

SHAPE = NAFNetShape(width=8, enc=(1, 1), middle=1, dec=(1, 1))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = NAFNet(SHAPE)
    with torch.no_grad():  # beta and gamma start at zero: give the blocks a little to say
        for name, parameter in network.named_parameters():
            if name.endswith(("beta", "gamma")):
                parameter.fill_(0.1)
        network.ending.weight.mul_(0.01)
        network.get_parameter("ending.bias").zero_()
    folder = tmp_path_factory.mktemp("base")
    return save_state(state_from(network), folder / "tiny.safetensors", {"train_px": 32})


@pytest.fixture(scope="module")
def stack() -> Stack:
    return acquire(spheres((40, 48, 48), 12, radius_px=(3.0, 6.0), seed=1), 2.0, std_px=(3.0, 0.5, 0.5), seed=1)


def settings(base: Path, **changes: object) -> FinetuneSettings:
    values = {"base": str(base), "iterations": 30, "check_every": 10, "crop": 32, "batch": 4, "lr": 2e-3}
    values |= {"rehearsal": 0.0, "min_gain_db": 0.0, "targets": "bootstrapped"}
    return FinetuneSettings.of(values | changes)


def test_tuning_raises_the_psnr_of_held_out_pairs_and_changes_only_the_mask(base: Path, stack: Stack) -> None:
    model = finetune(stack, settings=settings(base, share=0.3))
    record = model.record
    assert record.kept == "tuned"
    assert record.best_psnr_db > record.base_psnr_db + 0.2
    before = load_network(base).state
    changed = {key.rpartition(".")[0] for key in before if not np.array_equal(before[key], model.state[key])}
    assert changed == set(record.mask)
    assert 0 < record.trained_parameters < 0.6 * record.total_parameters
    assert record.iterations == 30


def test_the_same_seed_gives_the_same_weights(base: Path, stack: Stack) -> None:
    one, two, other = (finetune(stack, settings=settings(base, seed=seed, iterations=10)) for seed in (1, 1, 2))
    assert all(np.array_equal(one.state[key], two.state[key]) for key in one.state)
    assert any(not np.array_equal(one.state[key], other.state[key]) for key in one.state)


def test_an_interrupted_run_ends_as_an_uninterrupted_one(base: Path, stack: Stack, tmp_path: Path) -> None:
    class Stopped(Exception):  # noqa: N818
        pass

    def stop_at_25(label: str, done: int, total: int, /) -> None:
        if "finetune" in label and done == 25:
            raise Stopped

    whole = finetune(stack, settings=settings(base))
    with pytest.raises(Stopped):
        finetune(stack, settings=settings(base), folder=tmp_path / "model", progress=stop_at_25)
    seen: list[int] = []
    resumed = finetune(
        stack,
        settings=settings(base),
        folder=tmp_path / "model",
        progress=lambda label, done, total: seen.append(done) if "finetune" in label else None,
    )
    assert seen[0] == 21
    for key, value in whole.state.items():
        np.testing.assert_allclose(resumed.state[key], value, atol=1e-6)
    assert [c.iteration for c in resumed.record.checks] == [0, 10, 20, 30]
    assert not (tmp_path / "model" / CHECKPOINT).exists()
    assert (tmp_path / "model" / "loss.png").stat().st_size > 5000


def test_a_checkpoint_of_another_run_is_refused(base: Path, stack: Stack, tmp_path: Path) -> None:
    def stop(label: str, done: int, total: int, /) -> None:
        if "finetune" in label and done == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(stack, settings=settings(base), folder=tmp_path, progress=stop)
    with pytest.raises(ConfigError, match="belongs to another"):
        finetune(stack, settings=settings(base, seed=9), folder=tmp_path)


def test_tuning_that_does_not_help_is_not_used(base: Path, stack: Stack) -> None:
    model = finetune(stack, settings=settings(base, layers="all", lr=1.0, iterations=20))
    before = load_network(base).state
    assert model.record.kept == "base"
    assert all(np.array_equal(before[key], model.state[key]) for key in before)


def test_without_a_judge_the_last_weights_are_kept_even_where_they_are_worse(base: Path, stack: Stack) -> None:
    model = finetune(stack, settings=settings(base, layers="all", lr=1.0, iterations=20, judge=False))
    assert model.record.kept == "tuned"
    assert model.record.best_psnr_db < model.record.base_psnr_db


def test_a_gain_that_the_pairs_cannot_tell_is_not_used(base: Path, stack: Stack) -> None:
    before = load_network(base).state
    gain = finetune(stack, settings=settings(base)).record
    model = finetune(stack, settings=settings(base, min_gain_db=gain.best_psnr_db - gain.base_psnr_db + 0.01))
    assert model.record.kept == "base"
    assert model.record.best_psnr_db == model.record.base_psnr_db
    assert all(np.array_equal(before[key], model.state[key]) for key in before)


def test_synthetic_images_alone_must_show_twice_the_gain(base: Path, stack: Stack) -> None:
    record = finetune(stack, settings=settings(base, targets="synthetic")).record
    gain_db = record.best_psnr_db - record.base_psnr_db
    assert gain_db > 0.1
    for share, kept in ((0.45, "tuned"), (0.55, "base")):
        asked = settings(base, targets="synthetic", min_gain_db=share * gain_db)
        assert finetune(stack, settings=asked).record.kept == kept


def test_without_layers_the_base_comes_back(base: Path, stack: Stack) -> None:
    model = finetune(stack, settings=settings(base, layers="none"))
    assert model.record.kept == "base"
    assert model.record.iterations == 0
    assert model.record.mask == ()


def test_targets_differ(base: Path, stack: Stack) -> None:
    kinds = [target for target in Targets if target is not Targets.AUTO]
    records = [finetune(stack, settings=settings(base, targets=target, iterations=1)).record for target in kinds]
    assert [record.targets for record in records] == [target.value for target in kinds]
    assert len({record.base_psnr_db for record in records}) == len(kinds)


def test_rehearsal_joins_every_batch_and_the_judgement(base: Path, stack: Stack) -> None:
    alone, mixed = (finetune(stack, settings=settings(base, iterations=10, rehearsal=r)) for r in (0.0, 0.5))
    assert mixed.record.base_psnr_db != alone.record.base_psnr_db
    assert any(not np.array_equal(alone.state[key], mixed.state[key]) for key in alone.state)


def test_what_is_kept_lies_between_the_base_and_the_tuned_weights(base: Path, stack: Stack) -> None:
    before = load_network(base).state
    tuned, half = (finetune(stack, settings=settings(base, iterations=10, blend=b)) for b in (1.0, 0.5))
    assert tuned.record.kept == half.record.kept == "tuned"
    for key, value in before.items():
        np.testing.assert_allclose(half.state[key], (value + tuned.state[key]) / 2, atol=1e-6)


def test_time_is_kept(base: Path, stack: Stack) -> None:
    model = finetune(stack, settings=settings(base, iterations=None, minutes=0.03, patience=1000))
    assert model.record.checks[-1].seconds == pytest.approx(1.8, abs=1.5)
    assert model.record.iterations >= 1


def test_training_stops_early(base: Path, stack: Stack) -> None:
    model = finetune(stack, settings=settings(base, layers="all", lr=1.0, iterations=500, patience=2))
    assert model.record.iterations == 20


def test_the_folder_holds_all_and_comes_back(base: Path, stack: Stack, tmp_path: Path) -> None:
    model = finetune(stack, settings=settings(base, iterations=10), folder=tmp_path / "model")
    back = AdaptedModel.load(tmp_path / "model")
    assert back.record == model.record
    assert all(np.array_equal(back.state[key], model.state[key]) for key in model.state)
    assert back.samples.shape[1:] == (stack.isotropic_planes, 48)
    assert {p.name for p in (tmp_path / "model").iterdir()} == {
        "adapted.safetensors",
        "model.json",
        "samples.npz",
        "loss.png",
        "layers.png",
    }


def test_a_damaged_folder_is_refused_by_name(base: Path, stack: Stack, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not an adapted model \(no model\.json\)"):
        AdaptedModel.load(tmp_path)
    finetune(stack, settings=settings(base, iterations=10), folder=tmp_path / "m")
    record = tmp_path / "m" / "model.json"
    good = record.read_text()
    record.write_text(good[: len(good) // 2])
    with pytest.raises(InputError, match="damaged"):
        AdaptedModel.load(tmp_path / "m")
    record.write_text(json.dumps(json.loads(good) | {"colour": 1}))
    with pytest.raises(ConfigError, match='unknown key "colour"'):
        AdaptedModel.load(tmp_path / "m")


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (np.zeros((4, 32, 32), np.uint16), "has 4 planes; fine-tuning needs at least 5"),
        (np.full((9, 32, 32), 7, np.uint16), "is constant"),
        (np.zeros((9, 8, 32), np.uint16), "at least 16 x 16"),
    ],
)
def test_stacks_that_cannot_teach_are_refused(base: Path, data: np.ndarray, match: str) -> None:
    with pytest.raises(InputError, match=match):
        finetune(Stack(data, (0.2, 0.1, 0.1)), settings=settings(base))


def test_snip_is_the_product_of_weight_and_gradient() -> None:
    torch.manual_seed(0)
    network = NAFNet(SHAPE)
    blurred, sharp = torch.rand(2, 1, 16, 16), torch.rand(2, 1, 16, 16)
    scores = snip(network, blurred, sharp)
    assert list(scores) == layers_of(network)
    # By hand for the last layer: the loss is quadratic in its weight, so a central difference is exact.
    step, by_hand = 1e-2, []
    weight = network.ending.weight
    with torch.no_grad():
        for index in range(8):
            losses = []
            for sign in (1, -1):
                weight[0, index, 1, 1] += sign * step
                losses.append((network(blurred) - sharp).square().mean().item())
                weight[0, index, 1, 1] -= sign * step
            by_hand.append(abs((losses[0] - losses[1]) / (2 * step) * weight[0, index, 1, 1].item()))
    assert scores["ending"] > 0
    network.zero_grad()
    torch.autograd.backward(torch.nn.functional.mse_loss(network(blurred), sharp))
    assert weight.grad is not None
    exact = (weight.grad * weight).abs().detach()
    assert scores["ending"] == pytest.approx(exact.mean().item(), rel=1e-5)
    np.testing.assert_allclose(by_hand, exact[0, :, 1, 1].numpy(), rtol=0.02, atol=1e-6)


def test_masks_open_what_they_name() -> None:
    torch.manual_seed(0)
    network = NAFNet(SHAPE)
    pairs = torch.rand(2, 1, 16, 16), torch.rand(2, 1, 16, 16)
    total = sum(p.numel() for p in network.parameters())
    few = layer_mask(network, Layers.SNIP, pairs, share=0.1)
    assert len(few) == -(-len(layers_of(network)) // 10)
    assert 0 < open_layers(network, few) < total
    ends = layer_mask(network, Layers.FIRST_LAST, pairs)
    assert "intro" in ends
    assert "encoders.0.0.conv1" in ends
    assert "decoders.1.0.conv5" in ends
    assert "middle_blks.0.conv1" not in ends
    assert open_layers(network, layer_mask(network, Layers.ALL, pairs), everything=True) == total
    assert open_layers(network, layer_mask(network, Layers.NONE, pairs)) == 0


def test_a_noisy_stack_is_denoised_before_pairs_are_made(base: Path) -> None:
    truth = spheres((40, 48, 48), 12, radius_px=(3.0, 6.0), seed=1)
    noisy = acquire(truth, 2.0, std_px=(3.0, 0.5, 0.5), camera=Camera(photons=50), seed=1)
    models = {mode: finetune(noisy, settings=settings(base, iterations=2, denoise=mode)) for mode in ("auto", "off")}
    assert "denoised (dct): its signal to noise ratio" in models["auto"].record.denoise[0]
    assert models["off"].record.denoise == ("not denoised, as asked for",)
    assert models["auto"].record.settings["denoise"] == "auto"
    rough = {mode: float(np.abs(np.diff(model.samples, axis=2)).mean()) for mode, model in models.items()}
    assert rough["auto"] < 0.6 * rough["off"]


def test_a_stack_that_is_not_noisy_is_learnt_from_as_it_is(base: Path) -> None:
    truth = spheres((40, 48, 48), 12, radius_px=(3.0, 6.0), seed=1)
    clean = acquire(truth, 2.0, std_px=(3.0, 0.5, 0.5), camera=Camera(photons=None), seed=1)
    auto, off = (finetune(clean, settings=settings(base, iterations=2, denoise=mode)) for mode in ("auto", "off"))
    assert "not denoised: its signal to noise ratio" in auto.record.denoise[0]
    assert np.array_equal(auto.samples, off.samples)
    assert all(np.array_equal(auto.state[key], off.state[key]) for key in auto.state)
