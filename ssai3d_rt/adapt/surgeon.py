"""The surgeon: a small network that ranks the layers of one base network by how much fine-tuning them would help.

After the article (Methods, "Sparse fine-tuning with a surgeon network"): a multilayer perceptron of 6 layers and about
200,000 parameters takes a layer's 14 zero-shot metrics and the embedding of its place, and gives one score. What is
learnt is tied to the base network, by the hash of its weights. `PublishedSurgeon` is the one that the published code
comes with, which takes eight metrics and no place.

It does not know how it is trained: see `ranking`; nor where the meta-dataset comes from: see `benefit`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ssai3d_rt.adapt.zeroshot import (
    ARTICLE,
    PUBLISHED,
    Metrics,
    article_metrics,
    depth_order,
    normalised,
    published_metrics,
)
from ssai3d_rt.config import Settings
from ssai3d_rt.errors import ConfigError, MissingPackageError, WeightsError
from ssai3d_rt.network.weights import user_folder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from ssai3d_rt.network.nafnet import NAFNet

Float = npt.NDArray[np.float32]

SHIPPED = Path(__file__).parent / "surgeons"
HIDDEN = 220
LAYERS = 6
EMBEDDING = 16
DROPOUT = 0.2


class Trial(Settings):
    """How well one way to rank does on stacks of kinds that it was not trained on.

    Parameters
    ----------
    rank_correlation
        Spearman's, of the score and the measured benefit over the layers, in the mean over stacks.
    by_kind
        The same for each kind of stack.
    chosen_gain_db
        Measured benefit of a layer, in the mean over the top tenth of the layers and over stacks.
    """

    rank_correlation: float
    by_kind: dict[str, float]
    chosen_gain_db: float


class SurgeonRecord(Settings):
    """Where a surgeon came from and how good it is.

    Parameters
    ----------
    base, base_sha256
        Name of the base network that it ranks the layers of, and `network_hash` of its weights.
    metrics
        Its inputs, in order, each scaled over the layers; then the embedding of the layer's place.
    hidden, embedding
        Width of the hidden layers, and of the embedding.
    stacks
        Stacks that it was trained on, and the kind of each.
    benefit
        How the benefits were measured: see `ssai3d_rt.adapt.benefit.BenefitSettings`.
    training
        Steps, learning rate and so on.
    trials
        Ways to rank, this one (``surgeon``) among them, by name; each kind of stack was left out of the training once.
    seconds
        Time of training and trials.
    versions
        Packages.
    """

    schema_version: int = 1
    base: str
    base_sha256: str
    metrics: tuple[str, ...] = ARTICLE
    hidden: int = HIDDEN
    embedding: int = EMBEDDING
    stacks: dict[str, str] = Field(default_factory=dict)
    benefit: dict[str, Any] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)
    trials: dict[str, Trial] = Field(default_factory=dict)
    seconds: float = 0.0
    versions: dict[str, str] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Surgeon:
    """A trained surgeon: its record and its network, in evaluation mode."""

    record: SurgeonRecord
    network: torch.nn.Module

    def scores(self, network: NAFNet, blurred: torch.Tensor, sharp: torch.Tensor) -> dict[str, float]:
        """Score each layer of the base network for the stack that the pairs are from; the higher, the better.

        Parameters
        ----------
        network
            The base network, as it was when the surgeon was trained.
        blurred, sharp
            Pairs, each ``(N, 1, H, W)`` float32.

        Raises
        ------
        ConfigError
            It was trained for another base network.
        """
        if network_hash(network) != self.record.base_sha256:
            raise ConfigError(
                f"this surgeon is for the base network {self.record.base!r}, not for the one given;"
                " train one for it with: ssai3d-rt surgeon train"
            )
        return self.scores_of(article_metrics(network, blurred, sharp))

    def scores_of(self, metrics: Metrics) -> dict[str, float]:
        """Score layers by their metrics, as measured."""
        import torch

        layers = list(next(iter(metrics.values())))
        with torch.inference_mode():
            values = self.network(torch.from_numpy(inputs_of(metrics, self.record.metrics, self.record.embedding)))
        return dict(zip(layers, values[:, 0].tolist(), strict=True))

    def save(self, path: Path) -> Path:
        """Write ``NAME.safetensors`` and, beside it, the record ``NAME.json``; each appears only when whole."""
        numpy_io = _safetensors()
        path = path.with_suffix(".safetensors")
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {k: np.ascontiguousarray(v.detach().numpy()) for k, v in self.network.state_dict().items()}
        text = json.dumps(self.record.model_dump(mode="json"), indent=1) + "\n"
        for target, content in ((path, numpy_io.save(state)), (path.with_suffix(".json"), text.encode())):
            partial = target.with_name(f".{target.name}.partial")
            partial.write_bytes(content)
            os.replace(partial, target)
        return path

    @classmethod
    def load(cls, path: Path) -> Surgeon:
        """Read what `save` wrote, by either of its files.

        Raises
        ------
        WeightsError
            A file is missing or damaged, or the weights are not those of the record.
        """
        import torch

        numpy_io = _safetensors()
        from safetensors import SafetensorError

        record = read_record(path)
        weights = path.with_suffix(".safetensors")
        network = perceptron(len(record.metrics) + record.embedding, record.hidden)
        try:
            arrays: dict[str, Float] = numpy_io.load_file(str(weights))
            network.load_state_dict({k: torch.from_numpy(v) for k, v in arrays.items()})
        except (SafetensorError, OSError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise WeightsError(f"{weights} is not the surgeon of its record ({reason}); train it again") from None
        return cls(record, network.eval())


@dataclass(frozen=True, slots=True, eq=False)
class PublishedSurgeon:
    """The surgeon of the published code (You-Lab-MIT/SSAI-3D at 61bf0d4), in evaluation mode."""

    network: torch.nn.Module

    @classmethod
    def load(cls, path: Path) -> PublishedSurgeon:
        """Read its checkpoint, ``sur.pt``; never a pickle.

        Raises
        ------
        WeightsError
            The file is missing, or not that checkpoint.
        """
        import torch

        network = _published_perceptron()
        try:
            network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        except (OSError, RuntimeError, TypeError, EOFError, AttributeError, pickle.UnpicklingError) as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise WeightsError(f"{path} is not the published surgeon's checkpoint sur.pt: {reason}") from None
        return cls(network.eval())

    def scores(self, network: NAFNet, blurred: torch.Tensor, sharp: torch.Tensor) -> dict[str, float]:
        """Score each layer; the higher, the better. The loss is the mean squared error; see `published_metrics`."""
        return self.scores_of(published_metrics(network, blurred, sharp))

    def scores_of(self, metrics: Metrics) -> dict[str, float]:
        """Score layers by their metrics, as measured."""
        layers = list(next(iter(metrics.values())))
        return dict(zip(layers, self.rank(inputs_of(metrics, PUBLISHED, 0)).tolist(), strict=True))

    def rank(self, inputs: Float) -> Float:
        """Score ``(layers, 8)`` scaled metrics: ``(layers,)`` float32; the published code negates them, then sorts."""
        import torch

        with torch.inference_mode():
            scores: Float = self.network(torch.from_numpy(inputs))[:, 0].numpy()
        return scores


def surgeon_for(network: NAFNet, path: Path | None = None) -> Surgeon:
    """Load a surgeon for a base network: the one of `path`, else one shipped or trained on this machine.

    Raises
    ------
    ConfigError
        There is none for this base network, or the one of `path` is for another.
    """
    wanted = network_hash(network)
    for candidate in [path] if path is not None else known_surgeons():
        record = read_record(candidate)
        if record.base_sha256 == wanted:
            return Surgeon.load(candidate)
        if path is not None:
            raise ConfigError(
                f"{path} is a surgeon for the base network {record.base!r}, not for the one given;"
                " train one for it with: ssai3d-rt surgeon train"
            )
    raise ConfigError("no surgeon for this base network; train one with: ssai3d-rt surgeon train --base NAME")


def known_surgeons() -> list[Path]:
    """List the records of surgeons that were trained on this machine, then of those that are shipped."""
    return [path for folder in (surgeons_folder(), SHIPPED) for path in sorted(folder.glob("*.json"))]


def surgeons_folder() -> Path:
    """Folder of surgeons trained on this machine: ``surgeons`` beside the folder of imported base networks."""
    return user_folder().parent / "surgeons"


def read_record(path: Path) -> SurgeonRecord:
    """Read a surgeon's record, by either of its files.

    Raises
    ------
    WeightsError
        The record is missing or damaged.
    """
    path = path.with_suffix(".json")
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} is not a surgeon's record ({error}); train it again") from None
    return SurgeonRecord.of(values, where=path)


def network_hash(network: NAFNet) -> str:
    """Hash a network's weights, whatever file they came from: SHA-256 of names and float32 values."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(value.detach().float().numpy()).tobytes())
    return digest.hexdigest()


def inputs_of(metrics: Mapping[str, Mapping[str, float]], names: Sequence[str], embedding: int) -> Float:
    """Make a surgeon's inputs: the metrics, each scaled over the layers to 0..1, then the embedding of the place.

    Returns
    -------
    ``(layers, metrics + embedding)`` float32, layers in the order of `metrics`.
    """
    scaled = normalised({name: metrics[name] for name in names})
    layers = list(next(iter(metrics.values())))
    columns = np.array([[scaled[name][layer] for name in names] for layer in layers], np.float32)
    order = {layer: place for place, layer in enumerate(depth_order(layers))}
    places = np.array([order[layer] / max(len(layers) - 1, 1) for layer in layers])
    return np.concatenate([columns, positional(places, embedding)], 1)


def positional(places: npt.NDArray[np.float64], size: int) -> Float:
    """Embed places in the network (0 the first layer, 1 the last): sines and cosines, as of Vaswani et al. (2017).

    Returns
    -------
    ``(len(places), size)`` float32; the slowest wave takes two lengths of the network, the fastest 1/32 of it.
    """
    waves = math.pi * 2.0 ** np.linspace(0, 6, max(size // 2, 1))
    angles = places[:, None] * waves
    return np.concatenate([np.sin(angles), np.cos(angles)], 1).astype(np.float32)[:, :size]


def perceptron(inputs: int, hidden: int = HIDDEN) -> torch.nn.Sequential:
    """Make the untrained network: `LAYERS` linear layers with GELU and dropout between them."""
    from torch import nn

    widths = [inputs, *(hidden for _ in range(LAYERS - 1))]
    parts: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        parts += [nn.Linear(before, after), nn.GELU(), nn.Dropout(DROPOUT)]
    return nn.Sequential(*parts, nn.Linear(hidden, 1))


def _published_perceptron() -> torch.nn.Sequential:
    """Make the published network: 8-64-128-128-128-64-1, GELU, and dropout in front of all but the first GELU."""
    from torch import nn

    widths = [8, 64, 128, 128, 128, 64, 1]
    parts: list[nn.Module] = []
    for number, (before, after) in enumerate(itertools.pairwise(widths)):
        parts.append(nn.Linear(before, after))
        if number > 0 and after > 1:
            parts.append(nn.Dropout(DROPOUT))
        if after > 1:
            parts.append(nn.GELU())
    return nn.Sequential(*parts)


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError:
        raise MissingPackageError("safetensors", extra="train") from None
    return safetensors.numpy
