"""The training loop: AdamW on pairs, a cosine schedule, checks on held-out pairs, the best weights kept.

What is kept is a mean of the weights that it started from and those that it reached (Wortsman et al., "Robust
fine-tuning of zero-shot models", CVPR 2022): it does better on what the pairs do not show. The weights that it starts
from are a candidate: training that does not raise the PSNR of the held-out pairs enough is not used. An interrupted
run goes on from its checkpoint. With `iterations` set the result depends on the seed alone; with `minutes` the
schedule follows the clock. It does not know where pairs or weights come from.
"""

from __future__ import annotations

import json
import logging
import math
import os
import pickle
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ssai3d_rt.adapt.model import Check
from ssai3d_rt.errors import ConfigError
from ssai3d_rt.network.weights import state_from
from ssai3d_rt.progress import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import torch

    from ssai3d_rt.adapt.pairs import PairSource
    from ssai3d_rt.adapt.settings import FinetuneSettings
    from ssai3d_rt.network.nafnet import NAFNet
    from ssai3d_rt.network.weights import State

log = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True, slots=True, eq=False)
class Course:
    """How a training went, and the weights that were best; `tuned` tells whether they are better than the first."""

    checks: tuple[Check, ...]
    state: State
    iterations: int
    tuned: bool


def train(
    network: NAFNet,
    pairs: PairSource,
    settings: FinetuneSettings,
    *,
    identity: str,
    folder: Path | None = None,
    progress: Progress = silent,
    base: State | None = None,
) -> Course:
    """Train the open parameters of a network on pairs and keep the weights that do best on the held-out ones.

    Parameters
    ----------
    network
        The base network, its layers opened or frozen; changed in place.
    pairs
        Training and held-out pairs.
    settings
        Length, learning rate and so on.
    identity
        What the run depends on; a checkpoint of another identity is refused.
    folder
        Where the checkpoint lies.
    progress
        Called after each step: in iterations, or in seconds where the time is what is set.
    base
        The base network's weights, to judge against and to blend with, where the network was trained before.

    Raises
    ------
    ConfigError
        The checkpoint belongs to another run.
    """
    import torch

    held_out = pairs.validation()
    parameters = [p for p in network.parameters() if p.requires_grad]
    first = state_from(network) if base is None else base
    start = {key: torch.from_numpy(value).clone() for key, value in first.items()}
    with _blended(network, start, 0.0):
        run = _Run([_check(network, held_out, 0, None, 0.0)], first, 0, 0.0)
    if not parameters:
        return Course(tuple(run.checks), first, 0, tuned=False)
    optimiser = torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay)
    checkpoint = None if folder is None else folder / CHECKPOINT
    if checkpoint is not None and checkpoint.exists():
        run = _resume(checkpoint, identity, network, optimiser)
    started = time.monotonic() - run.seconds
    recent: list[float] = []
    network.train()
    while (share := _share(settings, run)) < 1 and (not settings.judge or run.since_best < settings.patience):
        for group in optimiser.param_groups:
            group["lr"] = settings.lr * 0.5 * (1 + math.cos(math.pi * share))
        recent.append(step(network, optimiser, pairs.batch(run.iteration, settings.batch)))
        run.iteration += 1
        run.seconds = time.monotonic() - started
        told = f"finetune, PSNR of pairs {recent[-1]:.1f} dB"
        if settings.iterations is None:
            progress(told, min(round(run.seconds), round(settings.minutes * 60)), round(settings.minutes * 60))
        else:
            progress(told, run.iteration, settings.iterations)
        if run.iteration % settings.check_every and _share(settings, run) < 1:
            continue
        with _blended(network, start, settings.blend):
            check = _check(network, held_out, run.iteration, float(np.mean(recent)), run.seconds)
            if not settings.judge or check.held_out_psnr_db > run.best_db:
                run.best = state_from(network)
        run.checks.append(check)
        recent.clear()
        if checkpoint is not None:
            _save(checkpoint, identity, network, optimiser, run)
    tuned = not settings.judge or run.best_db - run.checks[0].held_out_psnr_db > settings.min_gain_db
    return Course(tuple(run.checks), run.best if tuned else first, run.iteration, tuned)


def step(network: NAFNet, optimiser: torch.optim.Optimizer, pairs: tuple[torch.Tensor, torch.Tensor]) -> float:
    """Take one step on a batch of pairs, blurred and sharp; returns the batch's mean PSNR in dB, peak 1."""
    import torch

    blurred, sharp = pairs
    error = (network(blurred) - sharp).square().mean((1, 2, 3))
    loss = 10 * torch.log10(error + 1e-6).mean()  # negative PSNR
    optimiser.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_([p for group in optimiser.param_groups for p in group["params"]], 1.0)
    optimiser.step()
    return -loss.item()


@contextmanager
def _blended(network: NAFNet, base: dict[str, torch.Tensor], blend: float) -> Iterator[None]:
    """Give the network the mean of its weights and the base's, `blend` of its own, for the time of a block."""
    own = {key: value.detach().clone() for key, value in network.state_dict().items()}
    network.load_state_dict({key: base[key].lerp(value, blend) for key, value in own.items()})
    try:
        yield
    finally:
        network.load_state_dict(own)


@dataclass(slots=True)
class _Run:
    """A run so far: its checks (the first is of the base), the best weights, steps and seconds spent."""

    checks: list[Check]
    best: State
    iteration: int
    seconds: float

    @property
    def best_db(self) -> float:
        return max(check.held_out_psnr_db for check in self.checks)

    @property
    def since_best(self) -> int:
        """Checks since the best one."""
        values = [check.held_out_psnr_db for check in self.checks]
        return len(values) - 1 - values.index(max(values))


def _share(settings: FinetuneSettings, run: _Run) -> float:
    """Share of the run that is over: of the steps where they are set, else of the time."""
    if settings.iterations is not None:
        return run.iteration / settings.iterations
    return run.seconds / (settings.minutes * 60)


def _check(
    network: NAFNet,
    held_out: tuple[torch.Tensor, torch.Tensor],
    iteration: int,
    train_db: float | None,
    seconds: float,
) -> Check:
    psnr_db = _psnr_db(network, held_out)
    return Check(iteration=iteration, train_psnr_db=train_db, held_out_psnr_db=psnr_db, seconds=round(seconds, 1))


def _psnr_db(network: NAFNet, pairs: tuple[torch.Tensor, torch.Tensor]) -> float:
    """Mean PSNR of restored pairs against the sharp ones, peak 1, in dB."""
    import torch

    blurred, sharp = pairs
    network.eval()
    with torch.inference_mode():
        restored = torch.cat([network(part) for part in torch.split(blurred, 8)])
        error = (restored - sharp).square().mean((1, 2, 3))
        value = float(-10 * torch.log10(error + 1e-6).mean())
    network.train()
    return round(value, 4)


def _resume(checkpoint: Path, identity: str, network: NAFNet, optimiser: torch.optim.Optimizer) -> _Run:
    import torch

    try:
        saved: dict[str, Any] = torch.load(checkpoint, weights_only=True)
        mine = saved["identity"] == identity
    except (OSError, RuntimeError, KeyError, pickle.UnpicklingError) as error:
        raise ConfigError(f"{checkpoint} is damaged ({error}); delete it and start again") from None
    if not mine:
        raise ConfigError(
            f"{checkpoint} belongs to another stack, base or settings; delete it, or choose another model folder"
        )
    network.load_state_dict(saved["network"])
    optimiser.load_state_dict(saved["optimiser"])
    checks = [Check.of(check) for check in json.loads(saved["checks"])]
    best = {key: value.numpy() for key, value in saved["best"].items()}
    log.info("going on from iteration %d", saved["iteration"])
    return _Run(checks, best, saved["iteration"], saved["seconds"])


def _save(checkpoint: Path, identity: str, network: NAFNet, optimiser: torch.optim.Optimizer, run: _Run) -> None:
    import torch

    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    partial = checkpoint.with_name(f".{checkpoint.name}.partial")
    torch.save(
        {
            "identity": identity,
            "network": network.state_dict(),
            "optimiser": optimiser.state_dict(),
            "best": {key: torch.from_numpy(value) for key, value in run.best.items()},
            "checks": json.dumps([check.model_dump() for check in run.checks]),
            "iteration": run.iteration,
            "seconds": run.seconds,
        },
        partial,
    )
    os.replace(partial, checkpoint)
