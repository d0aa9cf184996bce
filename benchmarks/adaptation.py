"""How much fine-tuning adds to the base network, on simulated stacks with known truth.

python benchmarks/adaptation.py --samples strands,spheres --ways shipped,article --iterations 160

For each kind of sample one stack is adapted to (noise of 500 photons and every second plane unless --clean, axial
blur std 4 px) and a second one of the same kind, not seen before, is restored. Prints PSNR (dB, peak 1) of the raw
stack resampled, of the base network and of each way of tuning, and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ssai3d_rt.adapt.finetune import finetune
from ssai3d_rt.adapt.psf import ARTICLE_ANGLES_DEG
from ssai3d_rt.adapt.settings import FinetuneSettings
from ssai3d_rt.calibration import calibrate
from ssai3d_rt.calibration.denoising import Denoising
from ssai3d_rt.imaging.axial import resample_z, restore_array
from ssai3d_rt.imaging.metrics import psnr
from ssai3d_rt.imaging.simulate import Camera, acquire, cylinders, spheres, standard_strands
from ssai3d_rt.network.weights import State, load_network, network_from, torch_network

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
    "tuned-alone": {"blend": 1.0},
    "no-rehearsal": {"rehearsal": 0.0},
    "first-last": {"layers": "first-last"},
    "all-layers": {"layers": "all", "lr": 3e-4},
    "article": {"targets": "raw", "rehearsal": 0.0, "blend": 1.0, "angles_deg": ARTICLE_ANGLES_DEG, "lr": 1e-3},
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
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--base", default="base")
    parser.add_argument("--clean", action="store_true", help="no noise, and every plane")
    asked = parser.parse_args()
    ways = [way for way in asked.ways.split(",") if way]
    base = load_network(asked.base)
    print(f"{'sample':10} {'raw':>7} {'base':>7}" + "".join(f" {way:>13}" for way in ways), flush=True)
    rows = {}
    for name in asked.samples.split(","):
        truths = [SAMPLES[name](asked.seed + i) for i in range(2)]
        camera, step = (Camera(photons=None), 1) if asked.clean else (CAMERA, 2)
        seen, unseen = (acquire(truth, step, camera=camera, seed=i) for i, truth in enumerate(truths))
        raw = resample_z(on_truth_scale(unseen.data), unseen.anisotropy)
        row = {
            "raw_db": psnr(raw, truths[1][: len(raw)], 1.0),
            "base_db": restored_psnr_db(base.state, unseen, truths[1], tile=96),
        }
        print(f"{name:10} {row['raw_db']:7.2f} {row['base_db']:7.2f}", end="", flush=True)
        rig = calibrate(seen)
        for way in ways:
            values = {"base": asked.base, "iterations": asked.iterations} | WAYS[way]
            begin = time.monotonic()
            model = finetune(seen, None if way == "article" else rig, settings=FinetuneSettings.of(values))
            row[f"{way}_db"] = restored_psnr_db(model.state, unseen, truths[1], tile=96)
            row[f"{way}_s"] = round(time.monotonic() - begin, 1)
            print(f" {row[f'{way}_db']:13.2f}", end="", flush=True)
        print()
        rows[name] = {key: round(value, 3) for key, value in row.items()}
    print(json.dumps({"iterations": asked.iterations, "seed": asked.seed, "rows": rows}))


if __name__ == "__main__":
    main()
