"""Train a surgeon on a meta-dataset, and try it against other ways to rank layers.

Training is the article's (Methods, "Sparse fine-tuning with a surgeon network"): a pairwise ranking loss, since only
the order of the layers of one stack matters; Adam, weight decay 1e-6. Each pair of layers counts as much as their
benefits differ: most pairs differ by less than can be measured.

A trial leaves out all stacks of one kind, trains on the others and ranks the layers for those left out, for each kind
in turn. Beside the surgeon stand: each single metric, chance, ``mean-benefit`` (a layer's mean benefit on the stacks
trained on, whatever the stack: what knowing the network alone gives), the published surgeon, and ``measured`` (the best
possible choice).
"""

from __future__ import annotations

import math
import time
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ssai3d_rt.adapt.surgeon import (
    EMBEDDING,
    HIDDEN,
    Surgeon,
    SurgeonRecord,
    Trial,
    inputs_of,
    network_hash,
    perceptron,
)
from ssai3d_rt.adapt.zeroshot import ARTICLE, PUBLISHED, Metrics, layers_of
from ssai3d_rt.config import Settings
from ssai3d_rt.errors import ConfigError
from ssai3d_rt.network.weights import load_network, network_from
from ssai3d_rt.progress import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from ssai3d_rt.adapt.benefit import Benefit
    from ssai3d_rt.adapt.surgeon import PublishedSurgeon

Values = npt.NDArray[np.float64]

SHARE = 0.1
"""Share of layers that count as chosen in a trial (article: about 10 %)."""
RANDOM_DRAWS = 50
"""Random orders that stand for chance."""


class RankingSettings(Settings):
    """How a surgeon is trained.

    Parameters
    ----------
    steps
        Steps; each sees all pairs of layers of every stack.
    hidden
        Width of the network's hidden layers.
    lr, weight_decay
        Of Adam (article: 1e-4 and 1e-6; a higher rate here, for fewer steps).
    seed
        Fixes the first weights and the dropout.
    """

    steps: int = Field(default=150, ge=1)
    hidden: int = Field(default=HIDDEN, ge=1)
    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=1e-6, ge=0)
    seed: int = 0


def train_surgeon(
    benefits: Sequence[Benefit],
    settings: RankingSettings | None = None,
    *,
    published: PublishedSurgeon | None = None,
    progress: Progress = silent,
) -> Surgeon:
    """Train on all stacks; the record holds the trials that leave kinds of stacks out.

    Parameters
    ----------
    benefits
        The meta-dataset, of one base network.
    settings
        See `RankingSettings`.
    published
        The published surgeon, to be tried beside this one.
    progress
        Told the trainings done: one per kind of stack (none where there is one kind only), and the last.

    Raises
    ------
    ConfigError
        No stacks, or stacks measured with different base networks.
    """
    settings = settings or RankingSettings()
    if not benefits:
        raise ConfigError("training a surgeon needs the benefits of at least one stack")
    if len({(b.base_sha256, b.layers) for b in benefits}) > 1:
        raise ConfigError("these benefits were measured with different base networks; measure them again with one")
    started = time.monotonic()
    trials = _trials(benefits, settings, published, progress)
    network = _trained(benefits, settings)
    kinds = len({b.kind for b in benefits})
    progress("train the surgeon", kinds + 1, kinds + 1)
    record = SurgeonRecord(
        base=benefits[0].settings.base,
        base_sha256=benefits[0].base_sha256,
        hidden=settings.hidden,
        stacks={b.name: b.kind for b in benefits},
        benefit=benefits[0].settings.model_dump(mode="json"),
        training=settings.model_dump(mode="json"),
        trials=trials,
        seconds=round(time.monotonic() - started, 1),
        versions={package: version(package) for package in ("ssai3d-rt", "torch", "numpy")},
    )
    return Surgeon(record, network)


def rank_correlation(one: Values, two: Values) -> float:
    """Spearman's rank correlation of two ``(N,)`` arrays; 0 where one of them is constant."""
    centred = []
    for part in (one, two):
        _, place, count = np.unique(part, return_inverse=True, return_counts=True)
        ranks = (np.cumsum(count) - (count - 1) / 2)[place]  # equal values share their mean rank
        centred.append(ranks - ranks.mean())
    length = float(np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum()))
    return float((centred[0] * centred[1]).sum()) / length if length > 0 else 0.0


def metrics_of(benefit: Benefit, names: tuple[str, ...] = ARTICLE) -> Metrics:
    """Take the stored metrics of a stack: those of `ARTICLE` or of `PUBLISHED`."""
    rows = np.array(benefit.article if names == ARTICLE else benefit.published)
    return {name: dict(zip(benefit.layers, rows[:, column].tolist(), strict=True)) for column, name in enumerate(names)}


def _trained(benefits: Sequence[Benefit], settings: RankingSettings) -> torch.nn.Module:
    """Train a network on the stacks, all their pairs of layers in every step; it comes back in evaluation mode."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        inputs = torch.from_numpy(np.stack([inputs_of(metrics_of(b), ARTICLE, EMBEDDING) for b in benefits]))
        gains = torch.tensor([b.gain_db for b in benefits])
        weight = (gains[:, :, None] - gains[:, None]).clamp_min(0)  # (stacks, layers, layers)
        weight = weight / weight.sum().clamp_min(1e-12)
        network = perceptron(inputs.shape[-1], settings.hidden)
        optimiser = torch.optim.Adam(network.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
        network.train()
        for _ in range(settings.steps):
            scores = network(inputs)[..., 0]
            margin = scores[:, :, None] - scores[:, None]
            loss = (torch.nn.functional.softplus(-margin) * weight).sum()  # pairwise logistic loss (RankNet)
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimiser.step()
    return network.eval()


def _trials(
    benefits: Sequence[Benefit], settings: RankingSettings, published: PublishedSurgeon | None, progress: Progress
) -> dict[str, Trial]:
    """Try every way to rank on each kind of stack, trained on the other kinds; none where there is one kind only."""
    kinds = list(dict.fromkeys(b.kind for b in benefits))
    if len(kinds) < 2:
        return {}
    magnitude = _magnitude(benefits[0])
    rng = np.random.default_rng(settings.seed)
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for number, kind in enumerate(kinds):
        rest = [b for b in benefits if b.kind != kind]
        trained = Surgeon(SurgeonRecord(base="", base_sha256=""), _trained(rest, settings))
        for benefit in (b for b in benefits if b.kind == kind):
            article, eight = metrics_of(benefit), metrics_of(benefit, PUBLISHED)
            ways = {name: _values(values) for name, values in (eight | article).items()}
            ways["magnitude"] = magnitude
            ways["surgeon"] = _values(trained.scores_of(article))
            ways["mean-benefit"] = np.mean([b.gain_db for b in rest], 0)
            ways["measured"] = np.array(benefit.gain_db)
            if published is not None:
                ways["surgeon-published"] = _values(published.scores_of(eight))
            judged = {name: _judge(way, ways["measured"]) for name, way in ways.items()}
            chance = [_judge(rng.random(len(magnitude)), ways["measured"]) for _ in range(RANDOM_DRAWS)]
            one, two = np.mean(chance, 0)
            judged["random"] = (float(one), float(two))
            for name, values in judged.items():
                found.setdefault(name, {}).setdefault(kind, []).append(values)
        progress("train the surgeon", number + 1, len(kinds) + 1)
    return {name: _trial(values) for name, values in found.items()}


def _judge(scores: Values, gain_db: Values) -> tuple[float, float]:
    """Rank correlation of scores and gains, and the mean gain in dB of the layers that the scores would choose."""
    chosen = np.argsort(-scores, kind="stable")[: math.ceil(SHARE * len(scores))]
    return rank_correlation(scores, gain_db), float(gain_db[chosen].mean())


def _trial(values: dict[str, list[tuple[float, float]]]) -> Trial:
    """Sum up a way to rank, from its (rank correlation, chosen gain) for each stack of each kind."""
    every = np.array([pair for pairs in values.values() for pair in pairs])
    return Trial(
        rank_correlation=round(float(every[:, 0].mean()), 3),
        by_kind={kind: round(float(np.mean([pair[0] for pair in pairs])), 3) for kind, pairs in values.items()},
        chosen_gain_db=round(float(every[:, 1].mean()), 4),
    )


def _magnitude(benefit: Benefit) -> Values:
    """Mean absolute weight of each layer of the base network that benefits were measured with."""
    network = network_from(load_network(benefit.settings.base).state)
    if network_hash(network) != benefit.base_sha256:
        raise ConfigError(f"{benefit.name} was measured with another base network than {benefit.settings.base!r} is")
    return np.array([float(network.get_parameter(f"{n}.weight").detach().abs().mean()) for n in layers_of(network)])


def _values(scores: dict[str, float]) -> Values:
    return np.array(list(scores.values()))
