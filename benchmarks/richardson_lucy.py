"""How many iterations of Richardson-Lucy: PSNR against the truth on simulated stacks, the blur as calibrated.

python benchmarks/richardson_lucy.py

Strands, spheres and cylinders in 64^3 voxels, axial blur std 4 px, 500 photons, every second plane. Prints PSNR (dB,
peak 1) as a table and one JSON line.
"""

from __future__ import annotations

import argparse
import json

from ssai3d_rt.calibration import calibrate
from ssai3d_rt.compare import METHODS, Budget
from ssai3d_rt.compare.classical import RichardsonLucy
from ssai3d_rt.imaging.metrics import psnr
from ssai3d_rt.imaging.simulate import Camera, acquire, cylinders, spheres, strands

SIDE = (64, 64, 64)
SAMPLES = {"strands": strands, "spheres": spheres, "cylinders": cylinders}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", default="5,10,20,40,80")
    parser.add_argument("--seed", type=int, default=5)
    asked = parser.parse_args()
    counts = [int(count) for count in asked.iterations.split(",")]
    camera = Camera()
    print(f"{'sample':10} {'raw':>6}" + "".join(f" {count:6}" for count in counts), flush=True)
    rows = {}
    for name, sample in SAMPLES.items():
        truth = sample(SIDE, 20, seed=asked.seed)
        stack = acquire(truth, 2, camera=camera, seed=1)
        rig, truth = calibrate(stack), truth[: stack.isotropic_planes]
        found = []
        for each in (METHODS["raw"], *(RichardsonLucy(iterations=count) for count in counts)):
            volume = each.fit(stack, rig, Budget()).restore(stack)
            found.append(round(psnr((volume - camera.offset) / camera.full_scale, truth, 1.0), 2))
        rows[name] = found
        print(f"{name:10}" + "".join(f" {value:6.2f}" for value in found), flush=True)
    print(json.dumps({"iterations": counts, "psnr_db": rows}))


if __name__ == "__main__":
    main()
