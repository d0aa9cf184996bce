from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from ssai3d_rt.adapt import benefit as room
from ssai3d_rt.adapt.benefit import BenefitSettings, meta_dataset
from ssai3d_rt.adapt.cases import KINDS, Case, real_case, simulated_case
from ssai3d_rt.adapt.zeroshot import ARTICLE, PUBLISHED, layers_of
from ssai3d_rt.errors import ConfigError, InputError
from ssai3d_rt.imaging.simulate import Camera, acquire, spheres
from ssai3d_rt.network.nafnet import NAFNet, NAFNetShape
from ssai3d_rt.network.weights import load_network, network_from, save_state, state_from

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = NAFNet(NAFNetShape(width=4, enc=(1,), middle=1, dec=(1,)))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith(("beta", "gamma")):
                parameter.fill_(0.1)
        network.ending.weight.mul_(0.01)
        network.get_parameter("ending.bias").fill_(0.2)  # a fault that one layer alone can mend
    return save_state(state_from(network), tmp_path_factory.mktemp("base") / "tiny.safetensors", {"train_px": 32})


@pytest.fixture
def settings(base: Path) -> BenefitSettings:
    values = {"iterations": 1, "crop": 16, "batch": 2, "slices": 2, "lr": 0.03, "targets": "raw", "rehearsal": 0.0}
    return BenefitSettings.of({"base": str(base)} | values)


def small(number: int = 0) -> Case:
    sharp = spheres((32, 40, 40), 8, radius_px=(3.0, 5.0), seed=number)
    stack = acquire(sharp, 2, std_px=(2.0, 0.5, 0.5), camera=Camera(photons=None))
    return Case(f"spheres-{number}", "spheres", stack, (1.5, 2.5), sharp[: stack.isotropic_planes] * 4000 + 100)


def test_the_layer_that_is_at_fault_gains_most(base: Path, settings: BenefitSettings) -> None:
    found = room.measure_benefit(small(), settings.model_copy(update={"iterations": 8}))
    network = network_from(load_network(base).state)
    assert found.layers == tuple(layers_of(network))
    gains = dict(zip(found.layers, found.gain_db, strict=True))
    assert max(gains, key=lambda name: gains[name]) == "ending"
    assert gains["ending"] > 1.0
    assert np.shape(found.article) == (len(gains), len(ARTICLE))
    assert np.shape(found.published) == (len(gains), len(PUBLISHED))


def test_each_layer_starts_from_the_base(settings: BenefitSettings, base: Path) -> None:
    """The network after all is the one before: what a layer gains does not depend on those measured earlier."""
    network = network_from(load_network(base).state)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    pairs = room.case_pairs(small(), load_network(base), network, settings)
    batches = [pairs.batch(number, 2) for number in range(3)]
    judged = pairs.validation(2)
    errors = [room._tuned_error(network, "middle_blks.0.conv2", batches, judged, 0.01) for _ in range(2)]
    assert errors[0] == errors[1]
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_an_interrupted_meta_dataset_goes_on(settings: BenefitSettings, tmp_path: Path) -> None:
    class Stopped(Exception):  # noqa: N818
        pass

    def stop(label: str, done: int, total: int, /) -> None:
        if "spheres-1" in label:
            raise Stopped

    cases = [small(0), small(1)]
    with pytest.raises(Stopped):
        meta_dataset(cases, tmp_path, settings, progress=stop)
    assert [p.name for p in tmp_path.iterdir()] == ["spheres-0.json"]
    told: list[tuple[str, int, int]] = []
    found = meta_dataset(cases, tmp_path, settings, progress=lambda *step: told.append(step))
    assert [b.name for b in found] == ["spheres-0", "spheres-1"]
    assert not any("spheres-0" in label for label, _, _ in told)
    layers = len(found[0].layers)
    assert told[-1][1:] == (2 * layers, 2 * layers)
    assert meta_dataset(cases, tmp_path, settings) == found


def test_benefits_measured_in_another_way_are_refused(settings: BenefitSettings, tmp_path: Path) -> None:
    meta_dataset([small()], tmp_path, settings)
    other = settings.model_copy(update={"lr": 0.01})
    with pytest.raises(ConfigError, match=r"spheres-0\.json was measured with other settings"):
        meta_dataset([small()], tmp_path, other)
    (tmp_path / "spheres-0.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"spheres-0\.json cannot be read"):
        meta_dataset([small()], tmp_path, settings)


@pytest.mark.parametrize("kind", KINDS)
def test_a_simulated_case_is_its_truth_blurred(kind: str) -> None:
    case = simulated_case(kind, 0)
    assert case.truth is not None
    assert case.truth.shape == (case.stack.isotropic_planes, *case.stack.data.shape[1:])
    assert np.corrcoef(case.stack.data.mean(0).ravel(), case.truth.mean(0).ravel())[0, 1] > 0.9
    again, other = simulated_case(kind, 0), simulated_case(kind, 1)
    assert np.array_equal(case.stack.data, again.stack.data)
    assert other.truth is not None
    assert not np.array_equal(case.truth[:8], other.truth[:8])


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="no simulated kind 'cubes'; there are strands"):
        simulated_case("cubes", 0)


def test_a_real_stack_is_judged_on_held_out_pairs(settings: BenefitSettings) -> None:
    stack = acquire(spheres((24, 120, 40), 8, radius_px=(3.0, 6.0), seed=3), 2, std_px=(2.0, 0.5, 0.5))
    case = real_case(stack, "mine", (1.5, 2.5))
    assert case.truth is None
    assert case.stack.data.shape == (12, 96, 40)
    network = network_from(load_network(settings.base).state)
    pairs = room.case_pairs(case, load_network(settings.base), network, settings)
    judged = room._judged(case, pairs, settings)
    assert all(torch.equal(a, b) for a, b in zip(judged, pairs.validation(settings.slices), strict=True))
    assert max(room.measure_benefit(case, settings).gain_db) > 0
