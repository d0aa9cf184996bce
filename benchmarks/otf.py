"""Fine-tuning while the stack is coming in, against fine-tuning on the finished stack with as many steps.

python benchmarks/otf.py --period 0.75 --ready-within 60

Another process writes the demo's stack plane by plane with ome-writers (as pymmcore-plus does) every --period seconds;
this one follows the file. The rig profile comes from an earlier stack. Prints the time from the first plane and from
the last plane to the model, the PSNR (dB, peak 1, against the truth) of the stack resampled, restored by the base
network, and by the network tuned either way, and one JSON line. With --iterations the steps are set, and time is not;
with --unjudged the tuned weights are compared even where the held-out pairs would keep the base network.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssai3d_rt.adapt.arrivals import Geometry
from ssai3d_rt.adapt.finetune import finetune
from ssai3d_rt.adapt.follow import Follower
from ssai3d_rt.adapt.settings import FinetuneSettings
from ssai3d_rt.calibration import calibrate
from ssai3d_rt.demo.sample import PIXEL_UM, Sample
from ssai3d_rt.imaging.axial import resample_z, restore_array
from ssai3d_rt.imaging.growing import Following, GrowingStack
from ssai3d_rt.imaging.metrics import psnr
from ssai3d_rt.imaging.stack import Stack
from ssai3d_rt.network.weights import State, load_network, network_from, torch_network

if TYPE_CHECKING:
    from ssai3d_rt.adapt.model import AdaptedModel
    from ssai3d_rt.calibration.profile import RigProfile

Z_STEP = 2


def acquire_slowly(path: str, seed: int, size_px: int, period_s: float) -> None:
    """Write the stack as an acquisition does: a plane, a pause, a plane."""
    from ome_writers import AcquisitionSettings, create_stream

    planes = Sample.strands(seed, size_px=size_px).counts[::Z_STEP]
    scales = (Z_STEP * PIXEL_UM, PIXEL_UM, PIXEL_UM)
    dimensions = [
        {"name": name, "count": count, "type": "space", "scale": scale, "unit": "micrometer"}
        for name, count, scale in zip("zyx", planes.shape, scales, strict=True)
    ]
    settings = {"root_path": path, "dimensions": dimensions, "dtype": "uint16", "format": "ome-tiff"}
    with create_stream(AcquisitionSettings.model_validate(settings)) as stream:
        for plane in planes:
            time.sleep(period_s)
            stream.append(plane)


def stack_of(sample: Sample) -> Stack:
    """Return what the microscope sees of a sample."""
    return Stack(sample.counts[::Z_STEP], (Z_STEP * PIXEL_UM, PIXEL_UM, PIXEL_UM))


def followed(
    asked: argparse.Namespace, rig: RigProfile, settings: FinetuneSettings
) -> tuple[AdaptedModel, dict[str, Any]]:
    """Fine-tune on the growing file; returns the model and its times."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cells.ome.tif"
        arguments = (str(path), asked.seed, asked.size, asked.period)
        writer = multiprocessing.get_context("spawn").Process(target=acquire_slowly, args=arguments)
        writer.start()

        def writer_works() -> None:
            if writer.exitcode not in (None, 0):
                raise RuntimeError(f"the process that writes the stack ended with {writer.exitcode}")

        growing = GrowingStack(path, Following(poll_s=0.1), on_look=writer_works)
        header = growing.header()
        first_s, cpu_s, early = time.monotonic(), time.process_time(), 0

        def count_early(label: str, _: int, __: int, /) -> None:
            nonlocal early
            early += label.startswith("learn while")

        geometry = Geometry(header.shape, header.voxel_um)
        with Follower(
            geometry, rig, settings=settings, ready_within_s=asked.ready_within, progress=count_early
        ) as follower:
            for _, plane in growing:
                follower.add(plane)
            last_s = time.monotonic()
            model = follower.result()
        ready_s = time.monotonic()
        writer.join()
    times = {
        "planes_s": round(last_s - first_s, 1),
        "after_last_plane_s": round(ready_s - last_s, 1),
        "total_s": round(ready_s - first_s, 1),
        "cpu_s": round(time.process_time() - cpu_s, 1),
        "steps": model.record.iterations,
        "early_steps": early,
    }
    return model, times


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=96, help="edge of the sample in px; the demo's is 96")
    parser.add_argument("--period", type=float, default=0.75, help="seconds between two planes")
    parser.add_argument("--ready-within", type=float, default=60.0)
    parser.add_argument("--iterations", type=int, default=None)
    parser.add_argument("--unjudged", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    sample = Sample.strands(asked.seed, size_px=asked.size)
    stack = stack_of(sample)
    rig = calibrate(stack_of(Sample.strands(asked.seed + 1000, size_px=asked.size)))
    settings = FinetuneSettings(iterations=asked.iterations, judge=not asked.unjudged)

    def psnr_db(state: State) -> float:
        restored = restore_array(stack.data, stack.voxel_um, torch_network(network_from(state)), tile=96).data
        return round(psnr(sample.on_truth_scale(restored), sample.truth[: len(restored)], 1.0), 2)

    otf, times = followed(asked, rig, settings)
    began_s = time.monotonic()
    offline = finetune(stack, rig, settings=settings.model_copy(update={"iterations": times["steps"]}))
    offline_s = round(time.monotonic() - began_s, 1)
    raw = resample_z(sample.on_truth_scale(stack.data), stack.anisotropy)
    row = {
        "raw_db": round(psnr(raw, sample.truth[: len(raw)], 1.0), 2),
        "base_db": psnr_db(load_network(settings.base).state),
        "offline_db": psnr_db(offline.state),
        "otf_db": psnr_db(otf.state),
        "offline_kept": offline.record.kept,
        "otf_kept": otf.record.kept,
    }
    print(f"{len(stack.data)} planes of {asked.size} x {asked.size} px, one every {asked.period:g} s")
    print(f"first to last plane       {times['planes_s']:7.1f} s")
    print(f"last plane to the model   {times['after_last_plane_s']:7.1f} s")
    print(f"first plane to the model  {times['total_s']:7.1f} s   {times['cpu_s']} s of CPU", end="")
    print(f", {times['steps']} steps, {times['early_steps']} of them on parts of the stack")
    print(f"offline, as many steps    {offline_s:7.1f} s")
    print(f"PSNR against the truth    raw {row['raw_db']}, base {row['base_db']}", end="")
    print(f", offline {row['offline_db']} ({row['offline_kept']}), while coming in {row['otf_db']} ({row['otf_kept']})")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    print(json.dumps({"size": asked.size, "period_s": asked.period, "load": load} | times | row))


if __name__ == "__main__":
    main()
