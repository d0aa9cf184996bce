"""The surgeon's meta-dataset: how much it helps to fine-tune each layer alone, measured on stack after stack.

For each stack the base network is tuned many times, each time one convolution (weight and bias) with all else frozen,
for the same few steps on the same pairs. The benefit of a layer is the gain in dB on axial slices: against the truth
where the stack is simulated, on held-out pairs where it is real. The article (Methods, "Sparse fine-tuning with a
surgeon network") has 300 such data pairs from 5 stacks. One file per stack, so an interrupted run goes on.

It does not know how to rank layers: see `surgeon`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ssai3d_rt.adapt.pairs import Mixed, Noise, Pairs, PairSource
from ssai3d_rt.adapt.psf import psf_bank
from ssai3d_rt.adapt.rehearsal import rehearsal_planes
from ssai3d_rt.adapt.surgeon import network_hash
from ssai3d_rt.adapt.zeroshot import article_metrics, layers_of, published_metrics
from ssai3d_rt.calibration.noise import measure_intensity, measure_noise
from ssai3d_rt.config import Settings
from ssai3d_rt.errors import ConfigError, InputError
from ssai3d_rt.imaging.axial import deblur_axial, resample_z
from ssai3d_rt.imaging.normalise import Normalisation
from ssai3d_rt.network.nafnet import largest_tile
from ssai3d_rt.network.weights import load_network, network_from, torch_network
from ssai3d_rt.progress import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch

    from ssai3d_rt.adapt.cases import Case
    from ssai3d_rt.network.nafnet import NAFNet
    from ssai3d_rt.network.weights import LoadedNetwork

Float = npt.NDArray[np.float32]

METRIC_PAIRS = 16
"""Pairs that the zero-shot metrics are taken on."""
LATERAL_BLUR_PX = 0.8
REHEARSAL_IMAGES = 48


class BenefitSettings(Settings):
    """How the benefit of a layer is measured.

    Parameters
    ----------
    base
        Name of a base network, or a weights file.
    iterations, batch, crop, lr
        The short run of each layer: steps of Adam with a cosine schedule to zero, pairs per step and their side in px.
    targets, rehearsal
        What the layers learn from, and the share of synthetic pairs; see `ssai3d_rt.adapt.settings.FinetuneSettings`.
    slices
        Axial slices (or held-out pairs) that the gain is measured on.
    seed
        Fixes all that is drawn.
    """

    base: str = "base"
    iterations: int = Field(default=8, ge=1)
    batch: int = Field(default=4, ge=2)
    crop: int = Field(default=48, ge=16)
    lr: float = Field(default=1e-3, gt=0)
    targets: Literal["raw", "bootstrapped"] = "bootstrapped"
    rehearsal: float = Field(default=0.5, ge=0, lt=1)
    slices: int = Field(default=16, ge=2)
    seed: int = 0


class Benefit(Settings):
    """What was measured on one stack.

    Parameters
    ----------
    name, kind
        Of the `Case`.
    identity
        What the measurement depends on.
    base_sha256
        `network_hash` of the base network's weights.
    layers
        Names of the convolutions, in the order of the network's modules.
    gain_db
        Gain by fine-tuning each layer alone; below 0 where it did harm.
    base_db
        PSNR of the base network on the same slices.
    article, published
        One row of zero-shot metrics per layer, as they are (not normalised); see `ssai3d_rt.adapt.zeroshot`.
    settings
        The `BenefitSettings` in force.
    seconds
        Time that it took.
    """

    name: str
    kind: str
    identity: str
    base_sha256: str
    layers: tuple[str, ...]
    gain_db: tuple[float, ...]
    base_db: float
    article: tuple[tuple[float, ...], ...]
    published: tuple[tuple[float, ...], ...]
    settings: BenefitSettings
    seconds: float


def measure_benefit(case: Case, settings: BenefitSettings, *, progress: Progress = silent) -> Benefit:
    """Fine-tune each layer alone and measure what it gains.

    Parameters
    ----------
    case
        The stack, with its truth where it is simulated.
    settings
        See `BenefitSettings`.
    progress
        Told the layers done.

    Raises
    ------
    WeightsError
        The base network cannot be loaded.
    InputError
        The stack has too few planes.
    """
    import time

    import torch

    base = load_network(settings.base)
    started = time.monotonic()
    network = network_from(base.state)
    pairs = case_pairs(case, base, network, settings)
    batches = [pairs.batch(number, settings.batch) for number in range(settings.iterations)]
    judged, wanted = _judged(case, pairs, settings)
    layers = layers_of(network)
    with torch.inference_mode():
        before = float((network(judged) - wanted).square().mean())
    gains = []
    for number, layer in enumerate(layers):
        after = _tuned_error(network, layer, batches, (judged, wanted), settings.lr)
        gains.append(round(10 * math.log10((before + 1e-9) / (after + 1e-9)), 5))
        progress(f"tune each layer alone, {case.name}", number + 1, len(layers))
    sample = pairs.batch(settings.iterations, METRIC_PAIRS)
    return Benefit(
        name=case.name,
        kind=case.kind,
        identity=identity_of(case, network, settings),
        base_sha256=network_hash(network),
        layers=tuple(layers),
        gain_db=tuple(gains),
        base_db=round(-10 * math.log10(before + 1e-9), 3),
        article=_rows(article_metrics(network, *sample)),
        published=_rows(published_metrics(network, *sample)),
        settings=settings,
        seconds=round(time.monotonic() - started, 1),
    )


def meta_dataset(
    cases: Sequence[Case], folder: Path, settings: BenefitSettings | None = None, *, progress: Progress = silent
) -> list[Benefit]:
    """Measure all cases, each once: a file that is there already is read.

    Parameters
    ----------
    cases
        Stacks to measure on.
    folder
        Where ``NAME.json`` is kept for each case.
    settings
        See `BenefitSettings`.
    progress
        Told the layers done, of all cases.

    Raises
    ------
    ConfigError
        A file in `folder` was measured with other settings, another base network or another stack.
    """
    settings = settings or BenefitSettings()
    folder.mkdir(parents=True, exist_ok=True)
    network = network_from(load_network(settings.base).state)
    found: list[Benefit] = []
    for number, case in enumerate(cases):
        path = folder / f"{case.name}.json"
        if path.exists():
            benefit = read_benefit(path)
            if benefit.identity != identity_of(case, network, settings):
                raise ConfigError(
                    f"{path} was measured with other settings, another base network or another stack;"
                    " delete it, or choose another folder"
                )
        else:

            def told(label: str, done: int, total: int, /, number: int = number) -> None:
                progress(label, number * total + done, len(cases) * total)

            benefit = measure_benefit(case, settings, progress=told)
            partial = path.with_name(f".{path.name}.partial")
            partial.write_text(json.dumps(benefit.model_dump(mode="json")) + "\n", encoding="utf-8")
            os.replace(partial, path)
        found.append(benefit)
    return found


def read_benefit(path: Path) -> Benefit:
    """Read a file that `meta_dataset` wrote.

    Raises
    ------
    InputError
        The file is missing or damaged.
    """
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); delete it and measure again") from None
    return Benefit.of(values, where=path)


def identity_of(case: Case, network: NAFNet, settings: BenefitSettings) -> str:
    """Hash what a measurement depends on: the stack, the base network and the settings (not the base's name)."""
    stack = hashlib.sha256(case.stack.data.tobytes()).hexdigest()
    figures = settings.model_dump(mode="json", exclude={"base"})
    values = [case.name, case.kind, stack, case.blur_px, case.truth is not None, network_hash(network), figures]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def case_pairs(case: Case, base: LoadedNetwork, network: NAFNet, settings: BenefitSettings) -> PairSource:
    """Make the pairs of a case as fine-tuning makes them."""
    stack = case.stack
    if stack.data.shape[0] < 5:
        raise InputError(f"{case.name} has {stack.data.shape[0]} planes; measuring benefits needs at least 5")
    scale = Normalisation.of(stack.data)
    raw = scale.apply(stack.data)
    bank = psf_bank(*case.blur_px, angles_deg=(-10.0, -5.0, 0.0, 5.0, 10.0))
    restored = settings.targets == "bootstrapped"
    noise, planes = Noise(), raw
    if restored:
        tile = largest_tile(base.info.get("train_px"))
        planes = deblur_axial(resample_z(raw, stack.anisotropy), torch_network(network), tile=tile).volume
        measured = measure_noise(stack.data, measure_intensity(stack.data))
        dark = measured.read**2 + measured.gain * max(scale.offset - measured.background, 0.0)
        photons = scale.scale / measured.gain if measured.gain > 0 else math.inf
        noise = Noise(photons, math.sqrt(dark) / scale.scale)
    across_px = LATERAL_BLUR_PX if restored else 0.0
    step, crop, seed = stack.anisotropy, settings.crop, settings.seed
    own = Pairs(planes, bank, step=step, crop=crop, seed=seed, noise=noise, across_px=across_px)
    if not settings.rehearsal:
        return own
    blur_px = float(np.mean(case.blur_px))
    images = rehearsal_planes(REHEARSAL_IMAGES, side=own.crop + 64, blur_px=blur_px, seed=seed)
    second = Pairs(images, bank, step=step, crop=own.crop, seed=seed + 1, noise=noise, across_px=LATERAL_BLUR_PX)
    return Mixed(own, second, settings.rehearsal)


def _judged(case: Case, pairs: PairSource, settings: BenefitSettings) -> tuple[torch.Tensor, torch.Tensor]:
    """Give what a gain is measured on: axial slices and the truth's, or held-out pairs; each ``(N, 1, H, W)``."""
    import torch

    if case.truth is None:
        return pairs.validation(settings.slices)
    scale = Normalisation.of(case.stack.data)
    volume = resample_z(scale.apply(case.stack.data), case.stack.anisotropy)
    truth = scale.apply(case.truth)
    rng = np.random.default_rng([settings.seed, 7])
    side = settings.crop
    seen: list[Float] = []
    sharp: list[Float] = []
    for number in range(settings.slices):
        for source, kept in ((volume, seen), (truth, sharp)):
            view = source if number % 2 else source.transpose(0, 2, 1)
            kept.append(view[:side])
        at = int(rng.integers(seen[-1].shape[1]))
        start = int(rng.integers(max(seen[-1].shape[2] - side, 0) + 1))
        seen[-1], sharp[-1] = (part[-1][:, at, start : start + side] for part in (seen, sharp))
    rows, columns = min(s.shape[0] for s in seen), min(s.shape[1] for s in seen)
    both = (np.stack([s[None, :rows, :columns] for s in part]) for part in (seen, sharp))
    one, two = (torch.from_numpy(np.ascontiguousarray(part)) for part in both)
    return one, two


def _tuned_error(
    network: NAFNet,
    layer: str,
    batches: list[tuple[torch.Tensor, torch.Tensor]],
    judged: tuple[torch.Tensor, torch.Tensor],
    lr: float,
) -> float:
    """Tune one layer, measure the mean squared error, and put its weights back."""
    import torch

    network.requires_grad_(False)
    module = network.get_submodule(layer)
    first = {key: value.clone() for key, value in module.state_dict().items()}
    parameters = list(module.requires_grad_(True).parameters())
    optimiser = torch.optim.Adam(parameters, lr=lr)
    for number, (blurred, sharp) in enumerate(batches):
        for group in optimiser.param_groups:
            group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * number / len(batches)))
        error = (network(blurred) - sharp).square().mean((1, 2, 3))
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(10 * torch.log10(error + 1e-6).mean())
        optimiser.step()
    with torch.inference_mode():
        after = float((network(judged[0]) - judged[1]).square().mean())
    module.load_state_dict(first)
    network.requires_grad_(True)
    return after


def _rows(metrics: dict[str, dict[str, float]]) -> tuple[tuple[float, ...], ...]:
    """Turn metric -> layer -> value into one row per layer."""
    return tuple(zip(*(values.values() for values in metrics.values()), strict=True))
