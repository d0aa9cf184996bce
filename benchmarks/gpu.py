"""All that has to be measured on a GPU, in one call: the tests that need one, then networks of two widths.

python benchmarks/gpu.py --keep bundles
python benchmarks/gpu.py --no-tests --widths 8 --tile 64 --shape 24,64,64 --backends onnxruntime,torch    on a CPU

Networks of the published depth (blocks 1,1,1,28; 1; 1,1,1,1) with random weights are exported with tiles of 256 px.
Every backend that can use the GPU, PyTorch with and without its compiler among them, runs tiles in several batches (ms
per tile, share of the measured peak, memory) and then restores a stack of 300 x 300 x 300, files and all. Without
--keep the bundles are exported again each time; exporting needs the `train` extra and takes minutes for width 64.

Prints the tables and one JSON line. Fails where a test failed. Measure on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from ssai3d_rt import console
from ssai3d_rt.bench.plan import Plan
from ssai3d_rt.bench.run import bench
from ssai3d_rt.bench.sample import PUBLISHED, random_state, simulated_stack, untuned_model
from ssai3d_rt.bench.table import notes, tables
from ssai3d_rt.export.bundle import Bundle
from ssai3d_rt.export.from_model import export_bundle
from ssai3d_rt.export.gpu import gpu
from ssai3d_rt.imaging.write import write_ome_tiff
from ssai3d_rt.runtime.backends import BACKENDS, why_not

ROOT = Path(__file__).resolve().parents[1]


def bundle_of(width: int, tile: int, folder: Path) -> Bundle:
    """Export a random network of the published depth, unless that was done before."""
    path = folder / f"width{width}-{tile}.ssai3d"
    if path.exists():
        return Bundle.open(path)
    print(f"exporting width {width}", flush=True)
    model = untuned_model(
        random_state(replace(PUBLISHED, width=width)), simulated_stack((12, 128, 128), 4.0), base="random"
    )
    return export_bundle(model, path, tile=tile)


def rivals() -> list[str]:
    """Name the backends that use the GPU here."""
    on_it = (name for name, backend in BACKENDS.items() if backend.gpu or name.startswith("torch"))
    return [name for name in on_it if not why_not(name)]


def main() -> None:
    """Test, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", default="32,64")
    parser.add_argument("--tile", type=int, default=256)
    parser.add_argument("--batches", default="1,8,16")
    parser.add_argument("--shape", default="300,300,300", help="Z,Y,X of the stack")
    parser.add_argument("--backends", help="names; by default all that use the GPU here")
    parser.add_argument("--keep", type=Path, help="folder for the bundles")
    parser.add_argument("--no-tests", action="store_true", help="leave the tests out")
    asked = parser.parse_args()
    if not asked.backends and gpu() is None:
        parser.error("there is no GPU here; to try it on a CPU, name --backends and a small --shape")
    names = asked.backends.split(",") if asked.backends else rivals()
    failed = 0
    if not asked.no_tests:
        failed = subprocess.run([sys.executable, "-m", "pytest", "-m", "gpu"], cwd=ROOT, check=False).returncode
    planes, rows, columns = (int(size) for size in asked.shape.split(","))
    plan = Plan(backends=tuple(names), batches=tuple(int(size) for size in asked.batches.split(",")))
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = asked.keep or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        source = Path(name, "raw.ome.tif")
        write_ome_tiff(source, simulated_stack((planes, rows, columns), 1.0), {})
        for width in (int(width) for width in asked.widths.split(",")):
            measured = bench(bundle_of(width, asked.tile, folder), source, plan)
            print(f"\nwidth {width}", flush=True)
            for table in tables(measured):
                console.show_table(table)
            console.show(*notes(measured))
            found[width] = measured.record()
    print(json.dumps({"backends": names, "tests": failed, "widths": found}))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
