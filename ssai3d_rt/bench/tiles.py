"""Time one way of running a bundle on batches of its golden tiles, after it proved that it gives the right numbers."""

from __future__ import annotations

import contextlib
import statistics
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from ssai3d_rt.errors import ParityError
from ssai3d_rt.export.bundle import Bundle
from ssai3d_rt.export.engine import MODULES, BatchRange
from ssai3d_rt.runtime.backends import BACKENDS, ort, ov, self_test, trt

if TYPE_CHECKING:
    from ssai3d_rt.runtime.backends import Runner

MOST_WAYS = {ov.NAME: 2}
"""Backends that may have several ways to run a bundle; see `open_way`."""

WARM_S = 0.3


def open_way(bundle: Bundle, backend: str, way: int, threads: int | None, batch: int | None = None) -> Runner | None:
    """Open a backend's way number `way` to run a bundle, in the order in which the backend tries them itself.

    Parameters
    ----------
    bundle
        To run.
    backend
        A name of `BACKENDS`.
    way
        From 0, below `MOST_WAYS`; OpenVINO has one per precision of the CPU, the others have one.
    threads
        Threads of a CPU backend; None takes all cores.
    batch
        Tiles that are computed at once; None takes the backend's own choice.

    Returns
    -------
    None where the backend has fewer ways.
    """
    if backend == ov.NAME:
        core = ov.import_openvino().Core()
        offered = ov.precisions(core)
        if way >= len(offered):
            return None
        runner: Runner = ov.OpenVinoRunner(bundle, core, offered[way], threads)
    elif way:
        return None
    elif batch is not None and backend in MODULES:
        return trt.TensorRtRunner(bundle, backend, batches=BatchRange(1, batch, batch))
    elif batch is not None and backend == ort.CUDA:
        return ort.OnnxRuntimeCudaRunner(bundle, batch)
    else:
        runner = next(BACKENDS[backend].candidates(bundle, threads, None))
    runner.batch = batch or runner.batch
    return runner


def time_tiles(
    *, bundle: str, backend: str, way: int, batch: int, threads: int | None, rounds: int, seconds: float
) -> dict[str, Any]:
    """Open, test and time; a task for `ssai3d_rt.bench.child`.

    Parameters
    ----------
    bundle
        Folder.
    backend, way, threads
        See `open_way`.
    batch
        Tiles at once. GPU runners are handed several batches per call, as a restoration does, so that copying and
        computing overlap.
    rounds
        Calls to time at least.
    seconds
        Time to spend at least.

    Returns
    -------
    ``{"absent": True}`` where the backend has no such way; else ``detail``, and either ``refused`` (a sentence) or
    ``open_s``, ``batch``, ``ms`` and ``ms_p95`` per tile, ``psnr_db`` and ``max_error`` on golden tiles.
    """
    opened = Bundle.open(bundle)
    start = time.perf_counter()
    runner = open_way(opened, backend, way, threads, batch)
    if runner is None:
        return {"absent": True}
    with contextlib.closing(runner):
        found: dict[str, Any] = {"detail": runner.detail}
        try:
            report = self_test(runner, opened)
        except ParityError as error:
            return found | {"refused": str(error)}
        found |= {"open_s": time.perf_counter() - start, "batch": batch}
        found |= {"psnr_db": report.real.psnr_db, "max_error": report.extremes.max_error}
        count = runner.batch
        tiles = opened.golden[0][np.arange(count) % len(opened.golden[0])]
        times_ms = [s * 1e3 / count for s in _times(runner, tiles, rounds=rounds, seconds=seconds)]
    return found | {
        "ms": statistics.median(times_ms),
        "ms_p95": float(np.percentile(times_ms, 95)),
        "rounds": len(times_ms),
    }


def _times(runner: Runner, tiles: np.ndarray[Any, np.dtype[np.float32]], *, rounds: int, seconds: float) -> list[float]:
    """Seconds per call, once it is warm; a call ends when its answer is in the host's memory."""
    until = time.perf_counter() + min(WARM_S, seconds)
    while True:
        runner.run(tiles)
        if time.perf_counter() >= until:
            break
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < rounds or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        runner.run(tiles)
        times.append(time.perf_counter() - start)
    return times
