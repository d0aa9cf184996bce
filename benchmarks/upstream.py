"""The published way to restore a stack against this one: the same weights, stack and machine, in one run.

python benchmarks/upstream.py
python benchmarks/upstream.py --networks base --backends openvino,torch --shape 12,64,64
python benchmarks/upstream.py --keep bundles    keeps the bundles there, and takes them from there the next time

Two networks: ``width64`` has the published shape (blocks 1,1,1,28; 1; 1,1,1,1) and random weights, ``base`` is the one
that ships. Two stacks of 24 x 128 x 128 simulated planes: ``sparse`` 4 px apart, where the published way pads its
slices of 93 x 128 with zeros to 96 x 128 and this one reflects them to a tile of 128; ``cube`` so far apart that the
isotropic volume is a cube and nobody pads anything. The published way: see `ssai3d_rt.bench.upstream`. Every backend
that gives the reference's numbers restores each stack, files and all, in a process of its own.

Prints a table per case, and one JSON line at the end: how many times faster the fastest backend is, seconds with and
without loading, both peaks of resident memory, and how much the FP32 forms of both are alike where they compute the
same function (PSNR; 60 dB is asked for). Measure on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssai3d_rt import console
from ssai3d_rt.bench.plan import Plan
from ssai3d_rt.bench.run import UPSTREAM, bench
from ssai3d_rt.bench.sample import PUBLISHED, random_state, simulated_stack, untuned_model
from ssai3d_rt.bench.table import notes, tables
from ssai3d_rt.export.bundle import Bundle
from ssai3d_rt.export.from_model import export_bundle
from ssai3d_rt.imaging.write import write_ome_tiff
from ssai3d_rt.network.weights import load_network

if TYPE_CHECKING:
    from ssai3d_rt.bench.run import Bench
    from ssai3d_rt.imaging.stack import Stack

SPARSE = 4.0


def bundle_of(name: str, stack: Stack, folder: Path, width: int) -> Bundle:
    """Export a network as it is, unless that was done before."""
    path = folder / f"{name}-{stack.data.shape[-1]}.ssai3d"
    if path.exists():
        return Bundle.open(path)
    if name == "base":
        base = load_network()
        model = untuned_model(base.state, stack, base=base.name, train_px=base.info.get("train_px"))
    else:
        model = untuned_model(random_state(replace(PUBLISHED, width=width)), stack, base="random")
    print(f"exporting {name} with tiles that hold a whole slice", flush=True)
    side = -(-max(model.record.slice_px) // model.shape.multiple) * model.shape.multiple
    return export_bundle(model, path, tile=side)


def summary(network: str, stack: str, found: Bench) -> dict[str, Any]:
    """Compare the fastest row with the published way."""
    theirs = next(row for row in found.stacks if row.backend == UPSTREAM)
    ours = min((row for row in found.stacks if row.backend != UPSTREAM), key=lambda row: row.restore_s)
    return {
        "network": network,
        "stack": stack,
        "fastest": f"{ours.backend} ({ours.detail})",
        "times_faster": round(theirs.restore_s / ours.restore_s, 2),
        "times_faster_with_loading": round((theirs.open_s + theirs.restore_s) / (ours.open_s + ours.restore_s), 2),
        "seconds": [round(theirs.restore_s, 2), round(ours.restore_s, 2)],
        "peak_mib": [theirs.host_bytes >> 20, ours.host_bytes >> 20],
        "fp32_alike_db": found.same and found.same["psnr_db"],
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="width64,base")
    parser.add_argument("--stacks", default="sparse,cube")
    parser.add_argument("--backends", default="openvino,onnxruntime,torch")
    parser.add_argument("--shape", default="24,128,128", help="Z,Y,X of the raw stack")
    parser.add_argument("--width", type=int, default=64, help="of the random network")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--keep", type=Path, help="folder for the bundles")
    asked = parser.parse_args()
    planes, rows, columns = (int(size) for size in asked.shape.split(","))
    plan = Plan(backends=tuple(asked.backends.split(",")), batches=(), threads=asked.threads, upstream=True)
    rows_of: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = asked.keep or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        for kind in asked.stacks.split(","):
            anisotropy = SPARSE if kind == "sparse" else (max(rows, columns) - 1) / (planes - 1)
            stack = simulated_stack((planes, rows, columns), anisotropy)
            source = Path(name, f"{kind}.ome.tif")
            write_ome_tiff(source, stack, {})
            for network in asked.networks.split(","):
                found = bench(bundle_of(network, stack, folder, asked.width), source, plan)
                print(f"\n{network}, {kind}: planes {anisotropy:.2f} px apart", flush=True)
                for table in tables(found):
                    console.show_table(table)
                console.show(*notes(found))
                rows_of.append(summary(network, kind, found))
    print(json.dumps({"shape": [planes, rows, columns], "rows": rows_of}))


if __name__ == "__main__":
    main()
