"""Where the time of a restoration goes, and how much memory it takes: 300 x 300 x 300 with the base network that ships.

python benchmarks/restore.py
python benchmarks/restore.py --denoise off
python benchmarks/restore.py --shape 75,300,300 --anisotropy 4
python benchmarks/restore.py --shape 12,64,64 --backend onnxruntime

Simulates a uint16 stack, exports the base network as it is, and restores the file in a process of its own. That process
is watched from outside: the runner and the stages are wrapped here, nothing in the product measures. Each stage counts
its own time, without the stages that it calls, in whatever thread it runs; most of them run while the network does, so
their sum is more than the time that they cost. What they cost is the line ``outside the network``: the total without
the time in which the network computed. Prints a table and one JSON line. Measure on a quiet machine.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

DENOISE = "denoise"
STAGES = {
    "read": ["ssai3d_rt.imaging.read:Acquisition.read"],
    "choose how to denoise": ["ssai3d_rt.calibration.denoising:Denoising.of"],
    DENOISE: ["ssai3d_rt.calibration.denoising:Denoising.apply"],
    "look for what to warn of": ["ssai3d_rt.runtime.restore:warnings_of", "ssai3d_rt.runtime.onestack:warnings_of"],
    "percentiles": ["ssai3d_rt.imaging.normalise:Normalisation.of"],
    "normalise": ["ssai3d_rt.imaging.normalise:Normalisation.apply"],
    "resample": ["ssai3d_rt.imaging.axial:resample_z"],
    "gather tiles": ["ssai3d_rt.imaging.axial:_Run.gather"],
    "add answers": ["ssai3d_rt.imaging.axial:_Run.add"],
    "undo": ["ssai3d_rt.imaging.normalise:Normalisation.undo"],
    "restore, rest": ["ssai3d_rt.runtime.restore:restore"],
    "write": ["ssai3d_rt.runtime.restore:write_ome_tiff"],
    "sync, read back": ["ssai3d_rt.runtime.restore:seal"],
}
"""Stages, and where their functions are looked up when they are called."""

WAITING = ["concurrent.futures:Future.result", "queue:Queue.get", "time:sleep"]
"""What a thread does while another one works; it is no stage's own time."""


class Watch:
    """Seconds by stage, without those of the stages inside."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside = threading.local()
        self._lock = threading.Lock()

    def watched(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function."""

        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            outer = getattr(self._inside, "spent", 0.0)
            self._inside.spent = 0.0
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                whole = time.perf_counter() - start
                with self._lock:
                    # Denoising waits for threads of its own.
                    self.seconds[stage] += whole if stage == DENOISE else whole - self._inside.spent
                self._inside.spent = outer + whole

        return timed

    def wrap(self, stage: str, place: str) -> None:
        """Replace the function at ``module:name`` or ``module:Class.name``; it must exist."""
        module, _, name = place.partition(":")
        owner: Any = importlib.import_module(module)
        *classes, name = name.split(".")
        for part in classes:
            owner = getattr(owner, part)
        known = vars(owner)[name]
        if isinstance(known, classmethod):
            setattr(owner, name, classmethod(self.watched(stage, known.__func__)))
        else:
            setattr(owner, name, self.watched(stage, known))


def restore(
    bundle: str, source: str, out: str, backend: str, *, threads: int | None, denoise: str | None
) -> dict[str, Any]:
    """Restore, watched; runs in a process of its own."""
    from ssai3d_rt.bench.memory import resident_peak_bytes
    from ssai3d_rt.export.bundle import Bundle
    from ssai3d_rt.runtime.backends import open_runner
    from ssai3d_rt.runtime.restore import restore_file

    watch = Watch()
    for stage, places in STAGES.items():
        for place in places:
            watch.wrap(stage, place)
    for place in WAITING:
        watch.wrap("waiting", place)
    with contextlib.closing(open_runner(Bundle.open(bundle), backend, threads=threads)) as runner:
        loaded_bytes = resident_peak_bytes()
        runner.run = watch.watched("network", runner.run)  # type: ignore[method-assign]
        start = time.perf_counter()
        (report,) = restore_file(source, out, runner, denoise=denoise)
        total_s = time.perf_counter() - start
    network_s = watch.seconds.pop("network")
    watch.seconds.pop("waiting")
    return {
        "backend": f"{runner.name} ({runner.detail})",
        "restored_shape": report["restored_shape"],
        "tile": report["tile"],
        "total_s": total_s,
        "network_s": network_s,
        "outside_s": total_s - network_s,
        "stages_s": dict(watch.seconds),
        "peak_bytes": resident_peak_bytes(),
        "loaded_bytes": loaded_bytes,
        "mean_ratio": report["mean_ratio"],
    }


def prepared(shape: tuple[int, int, int], anisotropy: float, folder: Path) -> tuple[Path, Path]:
    """Simulate the stack and export the base network."""
    from ssai3d_rt.bench.sample import simulated_stack, untuned_model
    from ssai3d_rt.export.from_model import export_bundle
    from ssai3d_rt.imaging.write import write_ome_tiff
    from ssai3d_rt.network.weights import load_network

    stack = simulated_stack(shape, anisotropy)
    write_ome_tiff(folder / "raw.ome.tif", stack, {})
    base = load_network()
    model = untuned_model(base.state, stack, base=base.name, train_px=base.info.get("train_px"))
    return folder / "raw.ome.tif", export_bundle(model, folder / "base.ssai3d").folder


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="300,300,300", help="Z,Y,X of the raw stack")
    parser.add_argument("--anisotropy", type=float, default=1.0)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--denoise", help="auto, off or dct; as the bundle says by default")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        print(json.dumps(restore(*asked.child, asked.backend, threads=asked.threads, denoise=asked.denoise)))
        return
    planes, rows, columns = (int(size) for size in asked.shape.split(","))
    with tempfile.TemporaryDirectory() as name:
        print("simulating the stack, exporting the base network", flush=True)
        source, bundle = prepared((planes, rows, columns), asked.anisotropy, Path(name))
        words = [sys.executable, __file__, "--backend", asked.backend, "--child", bundle, source, f"{name}/out.ome.tif"]
        words += ["--threads", str(asked.threads)] if asked.threads else []
        words += ["--denoise", asked.denoise] if asked.denoise else []
        done = subprocess.run([str(word) for word in words], stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
    total_s = found["total_s"]
    print(f"{found['backend']}, tiles of {found['tile']} px, result {' x '.join(map(str, found['restored_shape']))}")
    lines = {"total": total_s, "network": found["network_s"], "outside the network": found["outside_s"]}
    for stage, seconds in lines.items():
        print(f"{stage:26} {seconds:8.2f} s {100 * seconds / total_s:6.1f} %")
    print("stages, many of them while the network runs:")
    for stage, seconds in sorted(found["stages_s"].items(), key=lambda entry: -entry[1]):
        print(f"  {stage:24} {seconds:8.2f} s {100 * seconds / total_s:6.1f} %")
    gib = found["peak_bytes"] / (1 << 30)
    print(f"resident peak {gib:.2f} GiB, of that {found['loaded_bytes'] / (1 << 30):.2f} GiB before the stack was read")
    print(json.dumps(found | {"outside_share": round(found["outside_s"] / total_s, 4)}))


if __name__ == "__main__":
    main()
