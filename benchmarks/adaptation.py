"""How much fine-tuning adds to the base network, on simulated stacks with known truth.

python benchmarks/adaptation.py --samples strands,spheres --ways shipped,article --iterations 160

For each kind of sample one stack is adapted to (noise of 500 photons and every second plane unless --clean, axial
blur std 4 px) and a second one of the same kind, not seen before, is restored (--same: the very stack). Prints PSNR
(dB, peak 1) of the raw stack resampled, of the base network and of each way of tuning with what it gained on held-out
pairs, the means over the seeds, and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ssai3d_rt.adapt.finetune import finetune
from ssai3d_rt.adapt.settings import FinetuneSettings
from ssai3d_rt.calibration import calibrate
from ssai3d_rt.calibration.denoising import Denoising
from ssai3d_rt.compare.tuned import PLAIN
from ssai3d_rt.imaging.axial import resample_z, restore_array
from ssai3d_rt.imaging.metrics import psnr
from ssai3d_rt.imaging.simulate import Camera, acquire, cylinders, spheres, standard_strands
from ssai3d_rt.network.weights import LoadedNetwork, State, load_network, network_from, torch_network

if TYPE_CHECKING:
    from ssai3d_rt.imaging.stack import Stack

Float = npt.NDArray[np.float32]
SIDE = (96, 96, 96)
SAMPLES = {
    "strands": standard_strands,
    "flat": lambda seed: standard_strands(seed, flat=True),
    "spheres": lambda seed: spheres(SIDE, 60, seed=seed),
    "cylinders": lambda seed: cylinders(SIDE, 60, seed=seed),
}
WAYS = {
    "shipped": {},
    "ungated": {"min_gain_db": 0},
    "blended": {"blend": 0.5},
    "half-rehearsal": {"rehearsal": 0.5},
    "lateral": {"targets": "bootstrapped"},
    "synthetic": {"targets": "synthetic"},
    "depthwise": {"layers": "depthwise"},
    "surgeon": {"layers": "surgeon"},
    "tenth": {"share": 0.1},
    "first-last": {"layers": "first-last"},
    "all-layers": {"layers": "all", "lr": 3e-4},
    "article": PLAIN,
}
CAMERA = Camera()


def on_truth_scale(counts: npt.NDArray[np.generic]) -> Float:
    """Undo the simulated camera's known offset and gain."""
    return (counts.astype(np.float32) - np.float32(CAMERA.offset)) / np.float32(CAMERA.full_scale)


def restored_psnr_db(state: State, stack: Stack, truth: Float, tile: int) -> float:
    """Restore with a network, denoised first where a restoration would do so, and compare with the truth."""
    run = torch_network(network_from(state))
    denoised = Denoising.of(stack.data).apply(stack.data)
    volume = on_truth_scale(restore_array(stack.data, stack.voxel_um, run, tile=tile, denoised=denoised).data)
    return psnr(volume, truth[: len(volume)], 1.0)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", default=",".join(SAMPLES))
    parser.add_argument("--ways", default="shipped,article")
    parser.add_argument("--iterations", type=int, default=160)
    parser.add_argument("--seeds", default="5")
    parser.add_argument("--same", action="store_true", help="restore the stack that was adapted to")
    parser.add_argument("--base", default="base")
    parser.add_argument("--clean", action="store_true", help="no noise, and every plane")
    asked = parser.parse_args()
    ways = [way for way in asked.ways.split(",") if way]
    base = load_network(asked.base)
    print(f"{'sample':16} {'raw':>7} {'base':>7}" + "".join(f" {way:>14}   held" for way in ways), flush=True)
    rows: dict[str, dict[str, float]] = {}
    for name in asked.samples.split(","):
        seeds = [int(seed) for seed in asked.seeds.split(",")]
        each = [measured(name, seed, ways, asked, base) for seed in seeds]
        rows[name] = {key: round(float(np.mean([row[key] for row in each])), 3) for key in each[0]}
        if len(seeds) > 1:
            print(line(f"{name}, mean", rows[name], ways), flush=True)
    mean = {key: round(float(np.mean([row[key] for row in rows.values()])), 3) for key in next(iter(rows.values()))}
    print(line("mean of all", mean, ways))
    print(json.dumps({"iterations": asked.iterations, "seeds": asked.seeds, "rows": rows, "mean": mean}))


def measured(name: str, seed: int, ways: list[str], asked: argparse.Namespace, base: LoadedNetwork) -> dict[str, float]:
    """Adapt to a stack in each way and measure what the restorations are worth; prints a line."""
    truths = [SAMPLES[name](seed + i) for i in range(1 if asked.same else 2)]
    camera, step = (Camera(photons=None), 1) if asked.clean else (CAMERA, 2)
    stacks = [acquire(truth, step, camera=camera, seed=i) for i, truth in enumerate(truths)]
    seen, unseen, truth = stacks[0], stacks[-1], truths[-1]
    raw = resample_z(on_truth_scale(unseen.data), unseen.anisotropy)
    row = {"raw_db": psnr(raw, truth[: len(raw)], 1.0), "base_db": restored_psnr_db(base.state, unseen, truth, tile=96)}
    rig = calibrate(seen)
    for way in ways:
        values = {"base": asked.base, "iterations": asked.iterations, "denoise": "off"} | WAYS[way]
        begin = time.monotonic()
        model = finetune(seen, None if way == "article" else rig, settings=FinetuneSettings.of(values))
        row[f"{way}_db"] = restored_psnr_db(model.state, unseen, truth, tile=96)
        row[f"{way}_s"] = round(time.monotonic() - begin, 1)
        held_out = [check.held_out_psnr_db for check in model.record.checks]
        row[f"{way}_held_out_gain_db"] = round(max(held_out) - held_out[0], 3)
    print(line(f"{name}, {seed}", row, ways), flush=True)
    return row


def line(name: str, row: dict[str, float], ways: list[str]) -> str:
    """Write a line of the table."""
    values = "".join(f" {row[f'{way}_db']:14.2f} {row[f'{way}_held_out_gain_db']:+6.2f}" for way in ways)
    return f"{name:16} {row['raw_db']:7.2f} {row['base_db']:7.2f}{values}"


if __name__ == "__main__":
    main()
