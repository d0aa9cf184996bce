"""From one raw stack to an isotropic one, with the public API, on a simulated sample of which the truth is known.

    python examples/adapt_and_restore.py --iterations 200

Replace the simulated stack with ``rt.read_stack("cells.ome.tif")`` to use your own.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import ssai3d_rt as rt
from ssai3d_rt.imaging.metrics import fourier_resolution_um
from ssai3d_rt.imaging.simulate import acquire, strands


def main() -> None:
    """Calibrate, fine-tune, export, restore; print what became of the axial resolution."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=200, help="steps of fine-tuning")
    parser.add_argument("--size", type=int, default=96, help="edge of the simulated sample in pixels")
    parser.add_argument("--out", type=Path, help="where to keep the bundle; thrown away by default")
    arguments = parser.parse_args()

    size = arguments.size
    stack = acquire(strands((size, size, size), max(1, 60 * size**2 // 96**2)), 4)
    print(f"raw:      {stack.data.shape} {stack.data.dtype}, voxel {stack.voxel_um} um")

    rig = rt.calibrate(stack)
    print(f"measured: lateral {rig.lateral_um:.2f} um, axial {rig.axial_um:.2f} um")

    model = rt.finetune(stack, rig, iterations=arguments.iterations)
    print(f"adapted:  kept {model.record.kept}, {model.record.trained_parameters} parameters trained")

    with tempfile.TemporaryDirectory() as scratch:
        bundle = rt.export(model, (arguments.out or Path(scratch)) / "strands.ssai3d")
        isotropic = rt.restore(stack, bundle)
    print(f"restored: {isotropic.data.shape} {isotropic.data.dtype}, voxel {isotropic.voxel_um} um")

    axial_um = fourier_resolution_um(isotropic.data, isotropic.voxel_um, 0)
    print(f"axial resolution: raw {rig.axial_um:.2f} um, restored {axial_um:.2f} um")


if __name__ == "__main__":
    main()
