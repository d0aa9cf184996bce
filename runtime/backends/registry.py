"""Which backends there are, why one cannot run here, and how one is opened.

A runner is handed out only after it gave the reference's numbers on the bundle's golden tiles. ``auto`` takes the first
GPU backend that does; without a GPU it takes the faster of the CPU backends, which it measures once per bundle and
machine. Passing over a backend is always logged as a warning; a backend that was named is never passed over.

>>> list(BACKENDS)
['tensorrt', 'tensorrt-rtx', 'onnxruntime-cuda', 'openvino', 'onnxruntime', 'torch']
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from ssai3d_rt.errors import BackendError, ParityError, Ssai3dError, StorageError
from ssai3d_rt.export.cache import cache_folder, private_folder
from ssai3d_rt.runtime.backends import ort, ov, reference, trt
from ssai3d_rt.runtime.backends.runner import Runner, self_test

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ssai3d_rt.export.bundle import Bundle

logger = logging.getLogger(__name__)

_TIMED_TILES = 8
_TIMED_ROUNDS = 2


@dataclass(frozen=True, slots=True)
class Backend:
    """A way to run a bundle.

    Parameters
    ----------
    gpu
        Whether it computes on a GPU.
    why_not
        Returns None where it can run, else a sentence that says what to do.
    candidates
        Loads a bundle, with so many threads, in each way that it can; the fastest way first.
    """

    gpu: bool
    why_not: Callable[[], str | None]
    candidates: Callable[[Bundle, int | None], Iterator[Runner]]


def _tensorrt(name: str) -> Backend:
    return Backend(True, partial(trt.why_not, name), lambda bundle, _threads: trt.candidates(bundle, name))


BACKENDS: dict[str, Backend] = {
    trt.TENSORRT: _tensorrt(trt.TENSORRT),
    trt.RTX: _tensorrt(trt.RTX),
    ort.CUDA: Backend(True, ort.why_not_cuda, ort.candidates_cuda),
    ov.NAME: Backend(False, ov.why_not, ov.candidates),
    ort.CPU: Backend(False, ort.why_not_cpu, ort.candidates_cpu),
    reference.NAME: Backend(False, reference.why_not, reference.candidates),
}
"""Backends by name, in order of priority."""

_TIMED = (ov.NAME, ort.CPU)


def why_not(name: str) -> str | None:
    """Say why a backend cannot run here, and what to do; None where it can.

    Raises
    ------
    BackendError
        No backend has that name.
    """
    if name not in BACKENDS:
        raise BackendError(f"there is no backend {name!r}; choose from auto, {', '.join(BACKENDS)}")
    return BACKENDS[name].why_not()


def open_runner(bundle: Bundle, backend: str = "auto", threads: int | None = None, allow_cpu: bool = True) -> Runner:
    """Load a bundle, and test it on its golden tiles.

    Parameters
    ----------
    bundle
        To run.
    backend
        A name of `BACKENDS`, or ``auto``.
    threads
        Threads of a CPU backend; None takes all cores.
    allow_cpu
        Whether a CPU may do the work.

    Raises
    ------
    BackendError
        The named backend cannot run here, or none can.
    ParityError
        The named backend does not give the reference's numbers.
    """
    if backend != "auto":
        if reason := why_not(backend):
            raise BackendError(f"{backend} cannot run here: {reason}")
        if not allow_cpu and not BACKENDS[backend].gpu:
            raise BackendError(
                f"{backend} runs on the CPU, which is not allowed; choose a GPU backend or allow the CPU"
            )
        return _open(bundle, backend, threads)

    for name in (n for n, b in BACKENDS.items() if b.gpu and b.why_not() is None):
        if runner := _try(bundle, name, threads):
            return runner
    if not allow_cpu:
        reasons = "; ".join(f"{n}: {b.why_not() or 'failed'}" for n, b in BACKENDS.items() if b.gpu)
        raise BackendError(f"no GPU backend can run here and the CPU is not allowed ({reasons})")
    return _open_fastest(bundle, threads)


def _open_fastest(bundle: Bundle, threads: int | None) -> Runner:
    """Open the CPU backend that is fastest for this bundle on this machine."""
    timed = [name for name in _TIMED if BACKENDS[name].why_not() is None]
    note = _Choice.of(bundle, threads)
    speeds = note.read() if len(timed) > 1 else {}
    if len(timed) > 1 and set(speeds) != set(timed):
        return _measured(bundle, timed, threads, note)
    order = sorted(timed, key=lambda name: speeds.get(name, 0.0))
    order += [name for name, b in BACKENDS.items() if not b.gpu and name not in timed and b.why_not() is None]
    for name in order:
        if runner := _try(bundle, name, threads):
            return runner
    reasons = "; ".join(f"{name}: {b.why_not() or 'failed, see the log'}" for name, b in BACKENDS.items())
    raise BackendError(f"no backend can run {bundle.folder} here ({reasons})")


def _measured(bundle: Bundle, names: list[str], threads: int | None, note: _Choice) -> Runner:
    """Open all of them, time each, keep the fastest and note the times."""
    runners = {name: runner for name in names if (runner := _try(bundle, name, threads))}
    if not runners:
        raise BackendError(f"no CPU backend gives the reference's numbers for {bundle.folder}; see the log")
    speeds = {name: _tile_ms(runner, bundle) for name, runner in runners.items()}
    fastest = min(speeds, key=lambda name: speeds[name])
    for name, runner in runners.items():
        if name != fastest:
            runner.close()
    if len(runners) == len(names):
        note.write(speeds)
    times = ", ".join(f"{name} {ms:.1f} ms" for name, ms in speeds.items())
    logger.info("%s is the fastest here: %s per tile", fastest, times)
    return runners[fastest]


def _tile_ms(runner: Runner, bundle: Bundle) -> float:
    """Best time per tile in milliseconds, after the self-test warmed it up."""
    tiles = bundle.golden[0]
    tiles = tiles[[number % len(tiles) for number in range(_TIMED_TILES)]]
    best = float("inf")
    for _ in range(_TIMED_ROUNDS):
        start = time.perf_counter()
        runner.run(tiles)
        best = min(best, time.perf_counter() - start)
    return best / len(tiles) * 1e3


def _try(bundle: Bundle, name: str, threads: int | None) -> Runner | None:
    try:
        return _open(bundle, name, threads)
    except Ssai3dError as error:
        logger.warning("%s is passed over: %s", name, error)
        return None


def _open(bundle: Bundle, name: str, threads: int | None) -> Runner:
    """Open the first of a backend's ways to run the bundle that gives the reference's numbers."""
    failed: ParityError | None = None
    for runner in BACKENDS[name].candidates(bundle, threads):
        failed = _failure(runner, bundle)
        if failed is None:
            return runner
        runner.close()
        logger.warning("%s", failed)
    raise failed or BackendError(f"{name} offers no way to run {bundle.folder}")


def _failure(runner: Runner, bundle: Bundle) -> ParityError | None:
    """Test a runner; it is closed where it cannot even run."""
    try:
        report = self_test(runner, bundle)
    except ParityError as error:
        return error
    except BaseException:
        runner.close()
        raise
    logger.info("%s (%s): %.1f dB on real tiles", runner.name, runner.detail, report.real.psnr_db)
    return None


@dataclass(frozen=True, slots=True)
class _Choice:
    """Where the measured times of one bundle on this machine are kept."""

    path: Path

    @classmethod
    def of(cls, bundle: Bundle, threads: int | None) -> _Choice:
        versions = []
        for package in ("openvino", "onnxruntime", "onnxruntime-gpu"):
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                versions.append(f"{package} {importlib.metadata.version(package)}")
        machine = (platform.node(), platform.machine(), platform.processor(), os.cpu_count(), threads, *versions)
        key = hashlib.sha256(repr((bundle.onnx_sha256, machine)).encode()).hexdigest()
        return cls(cache_folder() / "speeds" / f"{key[:24]}.json")

    def read(self) -> dict[str, float]:
        """Milliseconds per tile by backend; empty where nothing was measured."""
        try:
            values = json.loads(self.path.read_text(encoding="utf-8"))
            return {str(name): float(ms) for name, ms in values.items()}
        except (OSError, ValueError, AttributeError, TypeError):
            return {}

    def write(self, speeds: dict[str, float]) -> None:
        """Keep the times; where the cache cannot be written they are measured again next time."""
        temporary = self.path.with_suffix(f".{os.getpid()}.tmp")
        try:
            private_folder(self.path.parent)
            temporary.write_text(json.dumps(speeds) + "\n", encoding="utf-8")
            os.replace(temporary, self.path)
        except (OSError, StorageError) as error:
            logger.warning("the measured speeds are not kept: %s", error)
