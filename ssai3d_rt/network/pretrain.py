"""Pre-train a base network on synthetic images, from a seed to a shipped file in one command.

No download is possible on a rig, so the base network is made here: sharp images from `deadleaves` are degraded the
way a microscope degrades an axial slice (a directional Gaussian low-pass, planes further apart than pixels, photon
and read noise, cubic interpolation back), and a NAFNet learns to undo it. Rows are the blurred axis (Z), as in every
axial slice of this project. It does not know about microscopes' files or fine-tuning.

The learning rate is constant and falls to zero over the last `decay` share of the run, so a run can be prolonged or cut
short from its checkpoint without starting again; the result depends only on the settings.

>>> PretrainSettings(iterations=20_000).batch
8
"""

from __future__ import annotations

import json
import logging
import math
import multiprocessing
import os
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from ssai3d_rt.config import Settings
from ssai3d_rt.errors import ConfigError
from ssai3d_rt.network.deadleaves import F32, pool_image
from ssai3d_rt.network.degrade import Degradation, degrade
from ssai3d_rt.network.nafnet import NAFNet, NAFNetShape
from ssai3d_rt.progress import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import torch

log = logging.getLogger(__name__)


class PretrainSettings(Settings):
    """How a base network is made; every figure of the recipe that a person may change.

    Parameters
    ----------
    width, enc, middle, dec
        Shape of the network.
    iterations, batch, crop
        Length of the run, images per step and their side in px.
    lr, decay
        Peak learning rate of AdamW, and the share of the run over which it falls to zero.
    images, side
        Number of sharp images in the pool and their side in px.
    seed
        Fixes images, order, degradation and initial weights.
    bfloat16, compiled
        Whether the network runs in bfloat16 where it may, and through `torch.compile` (both save time on a CPU too).
    checkpoint_every
        Iterations between checkpoints.
    """

    width: int = 16
    enc: tuple[int, ...] = (1, 1, 1, 8)
    middle: int = 1
    dec: tuple[int, ...] = (1, 1, 1, 1)
    iterations: int = 18_000
    batch: int = 8
    crop: int = 96
    lr: float = 1e-3
    decay: float = 0.3
    images: int = 6_000
    side: int = 256
    seed: int = 0
    bfloat16: bool = True
    compiled: bool = True
    checkpoint_every: int = 500

    @property
    def shape(self) -> NAFNetShape:
        """The network's hyperparameters."""
        return NAFNetShape(self.width, self.enc, self.middle, self.dec)

    def lr_at(self, iteration: int) -> float:
        """Learning rate of one step: a short warm-up, constant, then a fall to zero along a cosine."""
        start = self.iterations * (1 - self.decay)
        if iteration < start:
            return self.lr * min(1.0, (iteration + 1) / 200)
        return self.lr * 0.5 * (1 + math.cos(math.pi * (iteration - start) / (self.iterations - start)))


def draw_degradation(rng: np.random.Generator) -> Degradation:
    """Draw from the ranges that the base network is made for."""
    along = rng.uniform(0.5, 8.0) if rng.random() < 0.5 else rng.uniform(2.0, 5.5)
    angle = rng.uniform(-45, 45) if rng.random() < 0.35 else rng.normal(0, 4)
    coarse = rng.random() < 0.55 and along > 1.0
    noisy = rng.random() < 0.75
    return Degradation(
        along_px=along,
        across_px=rng.uniform(0, 0.8) if rng.random() < 0.8 else rng.uniform(0.8, 1.6),
        angle_rad=math.radians(angle),
        step=rng.uniform(1.0, min(7.0, 1.0 + 1.4 * along)) if coarse else 1.0,
        phase=rng.random(),
        photons=float(10 ** rng.uniform(1.5, 4.0)) if noisy else math.inf,
        read=float(10 ** rng.uniform(-3.0, -1.6)) if noisy else 0.0,
    )


def pairs(
    settings: PretrainSettings, pool: list[F32], iteration: int, device: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Make the batch of one iteration: (degraded, sharp) crops, each ``(N, 1, crop, crop)`` float32."""
    import torch

    rng = np.random.default_rng([settings.seed, 77, iteration])
    margin = 24
    reach = min(settings.crop + 2 * margin, settings.side)
    crops: list[F32] = []
    ways: list[Degradation] = []
    while len(crops) < settings.batch:
        image = pool[rng.integers(len(pool))]
        y, x = rng.integers(0, settings.side - reach + 1, 2)
        crop = np.rot90(image[y : y + reach, x : x + reach], int(rng.integers(4)))
        crop = crop[::-1] if rng.random() < 0.5 else crop
        if crop[margin:-margin, margin:-margin].std() < 0.01 and rng.random() < 0.95:
            continue  # nothing to learn from an empty field; a few stay in
        crops.append(np.ascontiguousarray(crop, np.float32))
        ways.append(draw_degradation(rng))
    sharp = torch.from_numpy(np.stack(crops)).to(device)
    blurred = degrade(sharp, ways, seed=int(rng.integers(2**62)))
    # A stack is normalised by its own percentiles, so its brightest restored voxels lie above 1: do the same here.
    flat = blurred.flatten(1)
    low = torch.quantile(flat, 0.01, dim=1)
    high = torch.quantile(flat, 0.999, dim=1)
    room = torch.tensor(rng.uniform(0.9, 2.0, settings.batch), dtype=torch.float32, device=device)
    shift = torch.tensor(rng.uniform(-0.02, 0.1, settings.batch), dtype=torch.float32, device=device)
    scale = ((high - low) * room).clamp_min(0.02)[:, None, None]
    offset = (low[:, None, None] / scale) - shift[:, None, None]
    inner = slice(margin, margin + settings.crop)
    return (blurred / scale - offset)[:, None, inner, inner], (sharp / scale - offset)[:, None, inner, inner]


def image_stream(settings: PretrainSettings, workers: int) -> Iterator[F32]:
    """Yield the pool's images in order, drawn by `workers` processes ahead of use, or here if there are none."""
    jobs = [(settings.seed * 1_000_003 + i, settings.side) for i in range(settings.images)]
    if not workers:
        yield from map(pool_image, jobs)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as executor:
        yield from executor.map(pool_image, jobs, chunksize=8)


def pretrain(
    settings: PretrainSettings, out: Path, *, device: str = "cpu", workers: int = 1, progress: Progress = silent
) -> Path:
    """Train a base network; continues from the checkpoint in `out` if there is one.

    Parameters
    ----------
    settings
        The recipe.
    out
        Folder for ``checkpoint.pt``, ``log.jsonl`` and at the end ``base.safetensors`` and ``base.json``.
    device
        A torch device: ``cpu`` or ``cuda``.
    workers
        Processes that draw images; 0 draws them in this one.
    progress
        Called after each step.

    Returns
    -------
    Path of the safetensors file (weights rounded to half precision, so that a typed FP16 export holds the same
    numbers).

    Raises
    ------
    ConfigError
        The checkpoint in `out` was made with other settings.
    """
    import torch

    from ssai3d_rt.network.weights import save_state

    if settings.compiled and device == "cpu" and not any(map(shutil.which, ("g++", "clang++", "cl"))):
        raise ConfigError("torch.compile needs a C++ compiler and none was found; go on without: --no-compile")
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(settings.seed)
    network = NAFNet(settings.shape).to(device)
    average = {k: v.detach().clone() for k, v in network.state_dict().items()}
    run = torch.compile(network) if settings.compiled else network
    optimiser = torch.optim.AdamW(network.parameters(), lr=settings.lr, betas=(0.9, 0.9), weight_decay=0.0)
    first, spent_s = 0, 0.0
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        free = {"iterations", "decay", "checkpoint_every"}
        mine = settings.model_dump(mode="json", exclude=free)
        if json.loads(saved["settings"]) != mine:
            raise ConfigError(f"{checkpoint} was made with other settings; choose another folder or delete it")
        network.load_state_dict(saved["network"])
        average = saved["average"]
        optimiser.load_state_dict(saved["optimiser"])
        first, spent_s = saved["iteration"], saved["seconds"]
    images = image_stream(settings, workers)
    pool: list[F32] = []
    started, losses = time.monotonic(), []
    with (out / "log.jsonl").open("a") as record:
        for iteration in range(first, settings.iterations):
            # The pool grows at a fixed pace while training goes on, so that its content depends on the iteration alone.
            while len(pool) < min(settings.images, 200 + iteration):
                pool.append(next(images))
            for group in optimiser.param_groups:
                group["lr"] = settings.lr_at(iteration)
            degraded, sharp = pairs(settings, pool, iteration, device)
            with torch.autocast(device_type=device, dtype=torch.bfloat16, enabled=settings.bfloat16):
                restored = run(degraded)
            error = (restored.float() - sharp).square().mean((1, 2, 3))
            loss = torch.log(error + 1e-4).mean() * (10 / math.log(10))  # PSNR loss, in dB
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            keep = min(0.999, (iteration + 1) / (iteration + 10))
            with torch.no_grad():
                for key, value in network.state_dict().items():
                    average[key].lerp_(value, 1 - keep)
            gain = 10 * torch.log10((degraded - sharp).square().mean((1, 2, 3)) / error).mean()
            losses.append((loss.item(), gain.item()))
            progress(f"pretrain, loss {loss.item():.2f} dB", iteration + 1, settings.iterations)
            if (iteration + 1) % settings.checkpoint_every == 0 or iteration + 1 == settings.iterations:
                seconds = spent_s + time.monotonic() - started
                torch.save(
                    {
                        "settings": json.dumps(
                            settings.model_dump(mode="json", exclude={"iterations", "decay", "checkpoint_every"})
                        ),
                        "network": network.state_dict(),
                        "average": average,
                        "optimiser": optimiser.state_dict(),
                        "iteration": iteration + 1,
                        "seconds": seconds,
                    },
                    partial := checkpoint.with_suffix(".partial"),
                )
                os.replace(partial, checkpoint)
                mean_loss, mean_gain = np.mean(losses, 0).tolist()
                losses.clear()
                entry = {"iteration": iteration + 1, "loss_db": mean_loss, "gain_db": mean_gain, "seconds": seconds}
                record.write(json.dumps(entry) + "\n")
                record.flush()
    images.close()  # type: ignore[attr-defined]
    state = {k: v.cpu().half().float().numpy() for k, v in average.items()}
    info: dict[str, Any] = {
        "trained_by": "ssai3d-rt weights pretrain",
        "settings": settings.model_dump(mode="json"),
        "train_px": settings.crop,
        "device": device,
        "seconds": round(spent_s + time.monotonic() - started),
        "torch": torch.__version__,
        "log": [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()],
    }
    (out / "base.json").write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")
    return save_state(state, out / "base.safetensors", info)
