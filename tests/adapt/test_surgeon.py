from __future__ import annotations

import json
from typing import TYPE_CHECKING, get_args

import numpy as np
import pytest
import torch

from ssai3d_rt.adapt import surgeon as room
from ssai3d_rt.adapt.benefit import Benefit, BenefitSettings
from ssai3d_rt.adapt.mask import Layers, layer_mask, select_layers
from ssai3d_rt.adapt.picture import draw_layers
from ssai3d_rt.adapt.ranking import RankingSettings, rank_correlation, train_surgeon
from ssai3d_rt.adapt.surgeon import PublishedSurgeon, Surgeon, SurgeonRecord, network_hash, perceptron
from ssai3d_rt.adapt.zeroshot import ARTICLE, METRICS, PUBLISHED, article_metrics, depth_order, layers_of
from ssai3d_rt.commands import adaptation
from ssai3d_rt.errors import ConfigError, WeightsError
from ssai3d_rt.network.nafnet import NAFNet, NAFNetShape
from ssai3d_rt.network.weights import load_network, network_from, save_state, state_from

if TYPE_CHECKING:
    from pathlib import Path

Pair = tuple[torch.Tensor, torch.Tensor]


@pytest.fixture(scope="module")
def tiny() -> NAFNet:
    torch.manual_seed(3)
    network = NAFNet(NAFNetShape(width=4, enc=(1, 1), middle=1, dec=(1, 1)))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith(("beta", "gamma")):
                parameter.fill_(0.3)
    return network


@pytest.fixture(scope="module")
def base(tiny: NAFNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_state(state_from(tiny), tmp_path_factory.mktemp("base") / "tiny.safetensors", {})


@pytest.fixture(scope="module")
def pairs() -> Pair:
    torch.manual_seed(4)
    return torch.rand(2, 1, 16, 16), torch.rand(2, 1, 16, 16)


def made_up(network: NAFNet, base: Path, kinds: tuple[str, ...], *, per_kind: int = 2) -> list[Benefit]:
    """Benefits that go with one metric (the 3rd), each stack with metrics of its own."""
    rng = np.random.default_rng(5)
    layers = layers_of(network)
    found = []
    for kind in kinds:
        for number in range(per_kind):
            article = rng.random((len(layers), len(ARTICLE)))
            found.append(
                Benefit(
                    name=f"{kind}-{number}",
                    kind=kind,
                    identity="",
                    base_sha256=network_hash(network),
                    layers=tuple(layers),
                    gain_db=tuple((0.2 * article[:, 2] - 0.05).tolist()),
                    base_db=20.0,
                    article=tuple(map(tuple, article.tolist())),
                    published=tuple(map(tuple, rng.random((len(layers), len(PUBLISHED))).tolist())),
                    settings=BenefitSettings(base=str(base)),
                    seconds=1.0,
                )
            )
    return found


@pytest.fixture(scope="module")
def trained(tiny: NAFNet, base: Path) -> Surgeon:
    return train_surgeon(made_up(tiny, base, ("dots", "lines")), RankingSettings(steps=120, lr=3e-3, hidden=24))


def test_the_published_checkpoint_gives_its_golden_scores_and_order(shared_data: Path) -> None:
    golden = np.load(shared_data / "golden" / "surgeon_scores.npz")
    scores = PublishedSurgeon.load(shared_data / "golden" / "ssai3d_sur.pt").rank(golden["metrics"])
    np.testing.assert_allclose(scores, golden["scores"], atol=1e-5)
    assert np.array_equal(np.argsort(-scores, kind="stable"), golden["order_best_first"])


def test_the_published_surgeon_chooses_layers(shared_data: Path, tiny: NAFNet, pairs: Pair) -> None:
    file = str(shared_data / "golden" / "ssai3d_sur.pt")
    chosen = select_layers(tiny, Layers.SURGEON_PUBLISHED, pairs, surgeon=file)
    assert len(chosen.mask) == -(-len(layers_of(tiny)) // 10)
    assert chosen.mask[0] == max(chosen.scores, key=lambda name: chosen.scores[name])


def test_the_published_surgeon_needs_its_file(tiny: NAFNet, pairs: Pair, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"needs the published checkpoint sur\.pt.*--surgeon"):
        layer_mask(tiny, Layers.SURGEON_PUBLISHED, pairs)
    torch.save({"0.weight": torch.zeros(3)}, tmp_path / "sur.pt")
    for file in (tmp_path / "sur.pt", tmp_path / "absent.pt"):
        with pytest.raises(WeightsError, match=r"not the published surgeon's checkpoint"):
            select_layers(tiny, Layers.SURGEON_PUBLISHED, pairs, surgeon=str(file))


def test_its_size_is_the_articles() -> None:
    network = perceptron(len(ARTICLE) + room.EMBEDDING)
    assert sum(isinstance(part, torch.nn.Linear) for part in network) == 6
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(200_000, rel=0.02)


def test_it_learns_which_metric_tells_on_kinds_that_it_did_not_see(trained: Surgeon) -> None:
    trials = trained.record.trials
    assert trials["surgeon"].rank_correlation > 0.8
    assert trials[ARTICLE[2]].rank_correlation == 1.0
    assert trials["measured"].rank_correlation == 1.0
    assert abs(trials["random"].rank_correlation) < 0.2
    assert abs(trials["mean-benefit"].rank_correlation) < 0.5
    assert set(trials["surgeon"].by_kind) == {"dots", "lines"}
    best = trials["measured"].chosen_gain_db
    assert trials["random"].chosen_gain_db < trials["surgeon"].chosen_gain_db <= best <= 0.15
    assert {"magnitude", "snip", "grad-norm"} <= set(trials)


def test_the_same_seed_gives_the_same_surgeon(tiny: NAFNet, base: Path) -> None:
    benefits = made_up(tiny, base, ("dots",))
    one, two, other = (
        train_surgeon(benefits, RankingSettings(steps=3, seed=seed, hidden=8)).network.state_dict()
        for seed in (0, 0, 1)
    )
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


def test_it_comes_back_from_its_files_with_the_same_scores(
    trained: Surgeon, tiny: NAFNet, pairs: Pair, tmp_path: Path
) -> None:
    path = trained.save(tmp_path / "mine.safetensors")
    back = Surgeon.load(path)
    assert back.record == trained.record
    assert back.scores(tiny, *pairs) == trained.scores(tiny, *pairs)
    assert list(back.scores(tiny, *pairs)) == layers_of(tiny)


def test_damaged_files_are_refused_by_name(trained: Surgeon, tmp_path: Path) -> None:
    path = trained.save(tmp_path / "mine.safetensors")
    path.write_bytes(b"\0" * 100)
    with pytest.raises(WeightsError, match=r"mine\.safetensors is not the surgeon of its record"):
        Surgeon.load(path)
    path.with_suffix(".json").write_text("{", encoding="utf-8")
    with pytest.raises(WeightsError, match=r"mine\.json is not a surgeon's record"):
        Surgeon.load(path)


def test_it_serves_only_its_own_base(
    trained: Surgeon, tiny: NAFNet, pairs: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSAI3D_RT_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="no surgeon for this base network; train one with: ssai3d-rt surgeon train"):
        layer_mask(tiny, Layers.SURGEON, pairs)
    path = trained.save(room.surgeons_folder() / "tiny.safetensors")
    found = select_layers(tiny, Layers.SURGEON, pairs, share=0.2)
    assert found.scores == trained.scores(tiny, *pairs)
    assert len(found.mask) == -(-len(found.scores) // 5)
    changed = NAFNet(tiny.shape)
    with pytest.raises(ConfigError, match=r"for the base network .*tiny.*train one for it with: ssai3d-rt surgeon"):
        select_layers(changed, Layers.SURGEON, pairs, surgeon=str(path))
    with pytest.raises(ConfigError, match="train one for it"):
        trained.scores(changed, *pairs)


def test_the_shipped_surgeon_is_for_the_shipped_base_and_better_than_chance() -> None:
    record = room.read_record(room.SHIPPED / "base.json")
    assert record.base_sha256 == network_hash(network_from(load_network("base").state))
    best = {
        name: trial.rank_correlation for name, trial in record.trials.items() if name not in ("surgeon", "measured")
    }
    assert record.trials["surgeon"].rank_correlation > max(best.values()) > record.trials["random"].rank_correlation
    assert {"snip", "magnitude", "surgeon-published", "mean-benefit"} <= set(record.trials)
    Surgeon.load(room.SHIPPED / "base.safetensors")


def test_benefits_of_two_bases_are_refused(tiny: NAFNet, base: Path) -> None:
    one, two = made_up(tiny, base, ("dots",))
    other = two.model_copy(update={"base_sha256": "another"})
    with pytest.raises(ConfigError, match="different base networks"):
        train_surgeon([one, other])
    with pytest.raises(ConfigError, match="at least one stack"):
        train_surgeon([])


def test_the_place_in_the_network_is_told_by_depth(tiny: NAFNet, pairs: Pair) -> None:
    metrics = article_metrics(tiny, *pairs)
    inputs = room.inputs_of(metrics, ARTICLE, 4)
    assert inputs.shape == (len(layers_of(tiny)), len(ARTICLE) + 4)
    assert inputs[:, : len(ARTICLE)].min() == 0
    assert inputs[:, : len(ARTICLE)].max() == 1
    order = depth_order(layers_of(tiny))
    slow = dict(zip(layers_of(tiny), inputs[:, len(ARTICLE) + 2], strict=True))  # cosine of half a turn
    assert np.all(np.diff([slow[name] for name in order]) < 0)


@pytest.mark.parametrize(
    "layers", [mode for mode in Layers if "surgeon" not in mode.value], ids=lambda mode: mode.value
)
def test_every_mode_chooses(layers: Layers, tiny: NAFNet, pairs: Pair) -> None:
    names = layers_of(tiny)
    chosen = select_layers(tiny, layers, pairs)
    counts = {"first-last": 14, "depthwise": 5, "all": len(names), "none": 0}
    assert len(chosen.mask) == counts.get(layers.value, -(-len(names) // 10))
    assert set(chosen.mask) <= set(names)
    if layers.value in counts:
        assert not chosen.scores
    else:
        lowest = min(chosen.scores[name] for name in chosen.mask)
        assert sum(score > lowest for score in chosen.scores.values()) < len(chosen.mask)
    if layers is Layers.DEPTHWISE:
        assert all(name.endswith("conv2") for name in chosen.mask)


def test_chance_depends_on_the_seed_alone(tiny: NAFNet, pairs: Pair) -> None:
    one, two, other = (select_layers(tiny, Layers.RANDOM, pairs, seed=seed) for seed in (1, 1, 2))
    assert one == two != other


def test_the_command_line_knows_every_mode() -> None:
    modes = {mode.value for mode in Layers}
    assert set(get_args(adaptation.Layers)) == modes
    assert set(METRICS) <= set(get_args(adaptation.Ranked)) < modes


def test_rank_correlation_is_spearmans() -> None:
    one, two = np.array([1.0, 2, 3, 4, 5]), np.array([5.0, 6, 7, 8, 7])
    assert rank_correlation(one, two) == pytest.approx(0.8207826816681233)  # SciPy's example of spearmanr
    assert rank_correlation(one, np.ones(5)) == 0.0


def test_the_picture_of_the_layers_is_written(tiny: NAFNet, tmp_path: Path) -> None:
    names = layers_of(tiny)
    scores = {name: float(number) for number, name in enumerate(names)}
    with_scores = draw_layers(names, names[-3:], scores, tmp_path / "a.png").read_bytes()
    other = draw_layers(names, names[:3], scores, tmp_path / "b.png").read_bytes()
    without = draw_layers(names, names[:3], {}, tmp_path / "c.png").read_bytes()
    assert len({with_scores, other, without}) == 3
    assert min(map(len, (with_scores, other, without))) > 5000


def test_the_record_is_plain_json(trained: Surgeon, tmp_path: Path) -> None:
    values = json.loads(trained.save(tmp_path / "s").with_suffix(".json").read_text(encoding="utf-8"))
    assert SurgeonRecord.of(values) == trained.record
    assert values["stacks"]["dots-0"] == "dots"
