"""Which backends there are, why one cannot run here, and how one is opened.

A runner is handed out only after it gave the reference's numbers on the bundle's golden tiles. ``auto`` takes the
fastest backend that does on the machine's GPU, or on its CPU where it has no GPU; it measures them once per bundle and
machine. A machine with a GPU does not fall back to its CPU unless that is asked for by ``cpu``. Passing over a backend
is always logged as a warning; a backend that was named is never passed over.

>>> list(BACKENDS)
['tensorrt', 'tensorrt-rtx', 'onnxruntime-cuda', 'openvino', 'onnxruntime', 'torch', 'torch-compile']
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
from ssai3d_rt.export.gpu import driver_fault, gpu
from ssai3d_rt.runtime.backends import ort, ov, reference, trt
from ssai3d_rt.runtime.backends.runner import Runner, self_test

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ssai3d_rt.export.bundle import Bundle

logger = logging.getLogger(__name__)

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
        Loads a bundle, with so many threads and at most so many tiles at once, in each way that it can; the fastest way
        first.
    """

    gpu: bool
    why_not: Callable[[], str | None]
    candidates: Callable[[Bundle, int | None, int | None], Iterator[Runner]]


def _tensorrt(name: str) -> Backend:
    return Backend(True, partial(trt.why_not, name), lambda bundle, _, most: trt.candidates(bundle, name, most))


BACKENDS: dict[str, Backend] = {
    trt.TENSORRT: _tensorrt(trt.TENSORRT),
    trt.RTX: _tensorrt(trt.RTX),
    ort.CUDA: Backend(True, ort.why_not_cuda, ort.candidates_cuda),
    ov.NAME: Backend(False, ov.why_not, ov.candidates),
    ort.CPU: Backend(False, ort.why_not_cpu, ort.candidates_cpu),
    reference.NAME: Backend(False, reference.why_not, reference.candidates),
    reference.COMPILED: Backend(False, reference.why_not_compiled, reference.candidates_compiled),
}
"""Backends by name, in order of priority."""

AUTO, ANY_CPU = "auto", "cpu"
"""Not names of backends, but ways to let one be chosen."""

_NOT_TIMED = (reference.NAME, reference.COMPILED)
"""What is there to compare with, and the last resort."""


def why_not(name: str) -> str | None:
    """Say why a backend cannot run here, and what to do; None where it can.

    Raises
    ------
    BackendError
        No backend has that name.
    """
    if name not in BACKENDS:
        raise BackendError(f"there is no backend {name!r}; choose from {AUTO}, {ANY_CPU}, {', '.join(BACKENDS)}")
    return BACKENDS[name].why_not()


def gpu_out_of_reach() -> bool:
    """Whether this machine has a GPU that no installed backend can use."""
    return gpu() is not None and not any(b.gpu and b.why_not() is None for b in BACKENDS.values())


def open_runner(
    bundle: Bundle, backend: str = "auto", threads: int | None = None, most_tiles: int | None = None
) -> Runner:
    """Load a bundle, and test it on its golden tiles.

    Parameters
    ----------
    bundle
        To run.
    backend
        A name of `BACKENDS`; ``auto``, the fastest on the GPU, on a machine without one on the CPU; or ``cpu``, the
        fastest on the CPU.
    threads
        Threads of a CPU backend; None takes all cores.
    most_tiles
        Tiles that may be computed at once, where the device has little memory; None leaves it to the backend.

    Raises
    ------
    BackendError
        The named backend cannot run here, or none can; or the machine has a GPU that none can use, and ``cpu`` was not
        asked for.
    ParityError
        The named backend does not give the reference's numbers.
    """
    if backend not in (AUTO, ANY_CPU):
        if reason := why_not(backend):
            raise BackendError(f"{backend} cannot run here: {reason}")
        return _open(bundle, backend, threads, most_tiles)
    if backend == AUTO:
        if runner := _open_fastest(bundle, threads, most_tiles, on_gpu=True):
            return runner
        if fault := driver_fault():
            raise BackendError(f"{fault}; --backend cpu restores on the CPU instead")
        if (card := gpu()) is not None:
            raise BackendError(
                f"no backend can use this machine's {card.name} for {bundle.folder} ({_reasons(gpu_only=True)}); "
                "ssai3d-rt doctor says what is missing, --backend cpu restores on the CPU instead"
            )
    if runner := _open_fastest(bundle, threads, most_tiles, on_gpu=False):
        return runner
    raise BackendError(f"no backend can run {bundle.folder} here ({_reasons(gpu_only=False)})")


def _reasons(*, gpu_only: bool) -> str:
    """Say why each backend did not do."""
    return "; ".join(
        f"{n}: {b.why_not() or 'failed, see the log'}" for n, b in BACKENDS.items() if b.gpu or not gpu_only
    )


def _open_fastest(bundle: Bundle, threads: int | None, most_tiles: int | None, *, on_gpu: bool) -> Runner | None:
    """Open the backend that is fastest for this bundle on this machine's GPU, or on its CPU; None where none does."""
    able = [name for name, b in BACKENDS.items() if b.gpu == on_gpu and b.why_not() is None]
    timed = [name for name in able if name not in _NOT_TIMED]
    note = _Choice.of(bundle, threads, timed)
    speeds = note.read() if len(timed) > 1 else {}
    if most_tiles is None and len(timed) > 1 and set(speeds) != set(timed):
        return _measured(bundle, timed, threads, note)
    for name in sorted(able, key=lambda name: (name in _NOT_TIMED, speeds.get(name, 0.0))):
        if runner := _try(bundle, name, threads, most_tiles):
            return runner
    return None


def _measured(bundle: Bundle, names: list[str], threads: int | None, note: _Choice) -> Runner | None:
    """Open all of them, time each, keep the fastest and note the times."""
    runners = {name: runner for name in names if (runner := _try(bundle, name, threads))}
    if not runners:
        return None
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
    tiles = tiles[[number % len(tiles) for number in range(2 * runner.batch)]]  # full batches that may overlap
    best = float("inf")
    for _ in range(_TIMED_ROUNDS):
        start = time.perf_counter()
        runner.run(tiles)
        best = min(best, time.perf_counter() - start)
    return best / len(tiles) * 1e3


def _try(bundle: Bundle, name: str, threads: int | None, most_tiles: int | None = None) -> Runner | None:
    try:
        return _open(bundle, name, threads, most_tiles)
    except Ssai3dError as error:
        logger.warning("%s is passed over: %s", name, error)
        return None


def _open(bundle: Bundle, name: str, threads: int | None, most_tiles: int | None) -> Runner:
    """Open a backend; whatever a vendor's package raises, a broken install above all, becomes a `BackendError`."""
    try:
        return _first_that_agrees(bundle, name, threads, most_tiles)
    except Ssai3dError:
        raise
    except Exception as error:
        logger.debug("%s", name, exc_info=True)
        words = next(iter(str(error).splitlines()), "") or "no reason given"
        raise BackendError(
            f"{name} cannot be loaded ({type(error).__name__}: {words}); ssai3d-rt doctor says what to do"
        ) from None


def _first_that_agrees(bundle: Bundle, name: str, threads: int | None, most_tiles: int | None) -> Runner:
    """Open the first of a backend's ways to run the bundle that gives the reference's numbers."""
    failed: ParityError | None = None
    for runner in BACKENDS[name].candidates(bundle, threads, most_tiles):
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
    def of(cls, bundle: Bundle, threads: int | None, names: list[str]) -> _Choice:
        versions = []
        for package in ("openvino", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt_rtx"):
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                versions.append(f"{package} {importlib.metadata.version(package)}")
        machine = (platform.node(), platform.machine(), platform.processor(), os.cpu_count(), gpu())
        key = hashlib.sha256(repr((bundle.onnx_sha256, machine, threads, names, versions)).encode()).hexdigest()
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
