"""What this machine can do at best: multiply large matrices, and copy memory. The yardsticks of a benchmark.

Each figure is the best of several rounds. The CPU's matrices go through numpy and, where it is installed, OpenVINO (the
only one here that multiplies in bfloat16); the GPU's through torch, where it is installed with CUDA.
"""

from __future__ import annotations

import importlib
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from ssai3d_rt.doctor import usable_cores
from ssai3d_rt.runtime.backends.ov import import_openvino
from ssai3d_rt.runtime.cuda import gpu

if TYPE_CHECKING:
    from collections.abc import Callable

SIDE = 1536
GPU_SIDE = 8192
COPY_BYTES = 1 << 28
ROUNDS = 6


def measure_machine(*, threads: int | None) -> dict[str, Any]:
    """Measure; a task for `ssai3d_rt.bench.child`.

    Returns
    -------
    ``{"flops": {"cpu fp32": ..., ...}, "bytes_per_s": {"cpu": ..., ...}}``, floating-point operations per second by
    device and number format, and bytes read plus written per second by device; what cannot be measured is left out.
    """
    workers = threads or usable_cores()
    flops = {"cpu fp32": _numpy_flops(), **_openvino_flops(threads)}
    flops["cpu fp32"] = max(flops["cpu fp32"], flops.pop("openvino fp32", 0.0))
    rates = {"cpu": _copied_per_s(workers)}
    if gpu() is not None and find_spec("torch") is not None:
        on_gpu, rate = _gpu()
        flops |= on_gpu
        rates |= rate
    return {"flops": flops, "bytes_per_s": rates, "cores": workers}


def _numpy_flops() -> float:
    a, b = (np.random.default_rng(seed).random((SIDE, SIDE), np.float32) for seed in (0, 1))
    out = np.empty_like(a)
    return 2 * SIDE**3 / _best(lambda: np.matmul(a, b, out=out))


def _openvino_flops(threads: int | None) -> dict[str, float]:
    if find_spec("openvino") is None:
        return {}
    ov = import_openvino()
    ops = importlib.import_module("openvino.opset13")
    core = ov.Core()
    rng = np.random.default_rng(0)
    tiles = ops.parameter([SIDE, SIDE], np.float32)
    model = ov.Model([ops.matmul(tiles, ops.constant(rng.random((SIDE, SIDE), np.float32)), False, False)], [tiles])
    given = rng.random((SIDE, SIDE), np.float32)
    found = {}
    offered = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    for hint, name in (("f32", "openvino fp32"), ("bf16", "cpu bf16")):
        if hint == "bf16" and "BF16" not in offered:
            continue
        options = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
        request = core.compile_model(
            model, "CPU", options | ({} if threads is None else {"INFERENCE_NUM_THREADS": threads})
        ).create_infer_request()
        request.set_input_tensor(ov.Tensor(given))
        found[name] = 2 * SIDE**3 / _best(request.infer)
    return found


def _copied_per_s(workers: int) -> float:
    """Copy large arrays with every thread, far beyond the caches; each byte is read once and written once."""
    parts = [np.ones(COPY_BYTES // workers // 8) for _ in range(workers)]
    targets = [np.empty_like(part) for part in parts]
    with ThreadPoolExecutor(workers) as pool:
        seconds = _best(lambda: list(pool.map(np.copyto, targets, parts)))
    return 2 * sum(part.nbytes for part in parts) / seconds


def _gpu() -> tuple[dict[str, float], dict[str, float]]:
    import torch

    if not torch.cuda.is_available():
        return {}, {}
    flops = {}
    torch.backends.cuda.matmul.allow_tf32 = False
    for name, kind in (("gpu fp16", torch.float16), ("gpu fp32", torch.float32)):
        a, b = (torch.randn(GPU_SIDE, GPU_SIDE, device="cuda", dtype=kind) for _ in range(2))
        out = torch.empty_like(a)
        flops[name] = 2 * GPU_SIDE**3 / _best(lambda a=a, b=b, out=out: _done(torch.matmul(a, b, out=out)))  # type: ignore[misc]
    large = torch.empty(4 * COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(large)
    seconds = _best(lambda: _done(target.copy_(large)))
    return flops, {"gpu": 2 * large.numel() / seconds}


def _done(_: Any) -> None:
    import torch

    torch.cuda.synchronize()


def _best(work: Callable[[], Any]) -> float:
    """Seconds of the quickest of several calls, after one that warms up."""
    work()
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best
