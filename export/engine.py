"""Engines: what NVIDIA's builder compiles from a bundle, kept in the private cache.

One code path builds for TensorRT (10.12+ and 11) and for TensorRT for RTX; the module is handed in. The network is
built strongly typed, so the precision is the one written in the ONNX; no precision flag is ever set. TensorRT for RTX
builds for named compute capabilities and needs no GPU; TensorRT times its kernels on the GPU that it builds for.

An engine is native code: it is never part of a bundle, and `load_engine` hands out its bytes only when they have the
hash that was noted when it was built here. Whether it computes the right numbers is found out after loading, by the
backend (golden tiles).
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import platform
import shutil
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from ssai3d_rt.errors import BackendError, BundleError, MissingPackageError, StorageError
from ssai3d_rt.export.bundle import INPUT
from ssai3d_rt.export.cache import cache_folder, private_folder
from ssai3d_rt.progress import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from threading import Event

    from ssai3d_rt.export.bundle import Bundle

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""Backend name -> Python module."""

RTX_TARGETS = ("SM80", "SM86", "SM89", "SM120")
"""Ampere to Blackwell. Turing (SM75) is left out: it has returned zeros without an error."""

ENGINE, NOTE = "model.engine", "engine.json"
_WORKSPACE_BYTES = 2 << 30


@dataclass(frozen=True, slots=True)
class BatchRange:
    """Tiles per call that an engine accepts; kernels are chosen for `best`."""

    least: int = 1
    best: int = 8
    most: int = 16


@dataclass(frozen=True, slots=True)
class EngineNote:
    """What is noted beside an engine.

    Parameters
    ----------
    backend, version
        Who built it.
    onnx_sha256, sha256
        Of what it was built from, and of the engine.
    targets
        Compute capabilities, or the GPU's name.
    tile, batches
        Shapes it accepts.
    seconds
        The build took.
    warnings
        The builder's warnings, in order.
    """

    backend: str
    version: str
    onnx_sha256: str
    sha256: str
    targets: tuple[str, ...]
    tile: int
    batches: tuple[int, int, int]
    seconds: float
    warnings: tuple[str, ...]


def engine_from_bundle(
    bundle: Bundle,
    backend: str,
    cache_dir: Path | None = None,
    *,
    batches: BatchRange | None = None,
    progress: Progress = silent,
    cancel: Event | None = None,
) -> Path:
    """Return the engine of a bundle for this machine, building it where the cache has none.

    Parameters
    ----------
    bundle
        An opened bundle.
    backend
        ``tensorrt`` or ``tensorrt-rtx``.
    cache_dir
        Where engines are kept; the user's private cache by default.
    batches
        Tiles per call.
    progress
        Told the builder's phases. An exception that it raises stops the build and is raised here.
    cancel
        Stops the build when set.

    Raises
    ------
    MissingPackageError
        The backend's package is not installed.
    BackendError
        The build failed, was cancelled, or needs a GPU that is not here.
    """
    trt = import_trt(backend)
    batches = batches or BatchRange()
    targets = RTX_TARGETS if backend == "tensorrt-rtx" else (_gpu_name(),)
    folder = private_folder((cache_dir or cache_folder()) / "engines") / _key(bundle, backend, trt, targets, batches)
    path = folder / ENGINE
    with contextlib.suppress(BundleError):
        load_engine(path)
        return path
    start = time.monotonic()
    log = trt_log(trt)
    engine = _build(trt, log, bundle, targets if backend == "tensorrt-rtx" else (), batches, _Watch(progress, cancel))
    note = EngineNote(
        backend=backend,
        version=str(trt.__version__),
        onnx_sha256=bundle.onnx_sha256,
        sha256=hashlib.sha256(engine).hexdigest(),
        targets=targets,
        tile=bundle.tile,
        batches=(batches.least, batches.best, batches.most),
        seconds=round(time.monotonic() - start, 3),
        warnings=tuple(log.warnings),
    )
    _keep(folder, engine, note)
    return path


def load_engine(path: Path) -> tuple[bytes, EngineNote]:
    """Read an engine that was built on this machine, its hash checked.

    Raises
    ------
    BundleError
        No engine, no note beside it, or not the bytes that were built.
    """
    try:
        values = json.loads((path.parent / NOTE).read_text(encoding="utf-8"))
        note = EngineNote(
            **values
            | {"targets": tuple(values["targets"]), "batches": tuple(values["batches"])}
            | {"warnings": tuple(values["warnings"])}
        )
        engine = path.read_bytes()
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BundleError(f"{path} is not an engine that was built here: {error}; build it again") from None
    if hashlib.sha256(engine).hexdigest() != note.sha256:
        raise BundleError(f"{path} was changed after it was built (SHA-256 differs); delete it, it will be built again")
    return engine, note


def import_trt(backend: str) -> Any:
    """Import TensorRT or TensorRT for RTX.

    Raises
    ------
    BackendError
        Another name.
    MissingPackageError
        It is not installed.
    """
    if backend not in MODULES:
        raise BackendError(f"no engines for backend {backend!r}; choose from {', '.join(MODULES)}")
    try:
        return importlib.import_module(MODULES[backend])
    except ImportError:
        raise MissingPackageError(MODULES[backend], extra=backend) from None


class _Watch:
    """Joins progress, cancelling and errors of the caller; called from the builder's threads."""

    def __init__(self, progress: Progress, cancel: Event | None) -> None:
        self._progress = progress
        self._cancel = cancel
        self.error: BaseException | None = None

    @property
    def cancelled(self) -> bool:
        """Whether the build was to stop."""
        return self.error is not None or (self._cancel is not None and self._cancel.is_set())

    def step(self, phase: str, done: int, total: int) -> bool:
        """Report a step; False stops the build."""
        if not self.cancelled:
            try:
                self._progress(f"engine: {phase}", done, total)
            except BaseException as error:
                self.error = error
        return not self.cancelled


def _build(trt: Any, log: Any, bundle: Bundle, targets: tuple[str, ...], batches: BatchRange, watch: _Watch) -> bytes:
    try:
        builder = trt.Builder(log)
    except TypeError:  # the factory returned a null pointer: TensorRT found no usable driver
        raise BackendError(
            f"{trt.__name__} cannot build an engine here: no NVIDIA GPU or driver "
            f"({log.last_error or 'no reason given'}); build on the rig, or use --engine tensorrt-rtx"
        ) from None
    flags = 0
    if hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):
        flags |= 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, log)
    if not parser.parse(bundle.onnx):
        reasons = "; ".join(str(parser.get_error(i).desc()) for i in range(parser.num_errors))
        raise BackendError(f"{trt.__name__} cannot read {bundle.folder}: {reasons or log.last_error}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, _WORKSPACE_BYTES)
    tail = (bundle.manifest.channels, bundle.tile, bundle.tile)
    profile = builder.create_optimization_profile()
    profile.set_shape(INPUT, (batches.least, *tail), (batches.best, *tail), (batches.most, *tail))
    config.add_optimization_profile(profile)
    if targets:
        config.num_compute_capabilities = len(targets)
        for number, target in enumerate(targets):
            config.set_compute_capability(getattr(trt.ComputeCapability, target), number)
    monitor = _monitor(trt, watch)  # must outlive the build
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if watch.error is not None:
        raise watch.error
    if plan is None or watch.cancelled:
        why = "cancelled" if watch.cancelled else log.last_error or "the builder gave no reason"
        raise BackendError(f"{trt.__name__} built no engine for {bundle.folder}: {why}")
    return bytes(plan)


def _monitor(trt: Any, watch: _Watch) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the base comes at run time
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._totals: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._totals[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            total = self._totals.get(phase_name, step + 1)
            return watch.step(phase_name, min(step + 1, total), total)

        def phase_finish(self, phase_name: str) -> None:
            self._totals.pop(phase_name, None)

    return Monitor()


def trt_log(trt: Any) -> Any:
    """Make a logger that keeps warnings and the last error instead of printing them."""

    class Log(trt.ILogger):  # type: ignore[misc]  # the base comes at run time
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.warnings: list[str] = []
            self.last_error = ""

        def log(self, severity: Any, message: str) -> None:
            if severity == trt.ILogger.WARNING:
                self.warnings.append(message)
            elif severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.last_error = message

    return Log()


def _key(bundle: Bundle, backend: str, trt: Any, targets: tuple[str, ...], batches: BatchRange) -> str:
    """Return a folder name that changes with everything that an engine depends on."""
    parts = [bundle.onnx_sha256, backend, str(trt.__version__), *targets, str(asdict(batches))]
    if backend == "tensorrt":  # not portable between systems; TensorRT for RTX is
        parts += [platform.system(), platform.machine()]
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return f"{backend}-{trt.__version__}-{digest[:24]}"


def _gpu_name() -> str:
    """Return the first GPU's name, compute capability and driver, which a TensorRT engine is bound to."""
    try:
        runtime = importlib.import_module("cuda.bindings.runtime")
    except ImportError:
        raise MissingPackageError("cuda.bindings", extra="tensorrt") from None
    status, properties = runtime.cudaGetDeviceProperties(0)
    if status != runtime.cudaError_t.cudaSuccess:
        _, text = runtime.cudaGetErrorString(status)
        raise BackendError(
            f"tensorrt cannot build an engine here: no NVIDIA GPU or driver ({text.decode()}); "
            "build on the rig, or use --engine tensorrt-rtx"
        )
    _, driver = runtime.cudaDriverGetVersion()
    return f"{properties.name.decode()} {properties.major}.{properties.minor} driver {driver // 1000}"


def _keep(folder: Path, engine: bytes, note: EngineNote) -> None:
    """Put engine and note into the cache as one folder, whole or not at all."""
    temporary = folder.with_name(f".{folder.name}.{uuid4().hex[:8]}.tmp")
    try:
        temporary.mkdir(mode=0o700)
        with open(temporary / ENGINE, "wb") as file:
            file.write(engine)
            file.flush()
            os.fsync(file.fileno())
        (temporary / NOTE).write_text(json.dumps(asdict(note), indent=2) + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)  # what is there failed its check
        try:
            os.rename(temporary, folder)
        except OSError:
            load_engine(folder / ENGINE)  # another process was faster; its engine is as good
    except OSError as error:
        raise StorageError(f"cannot keep the engine in {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def engine_notes(cache_dir: Path | None = None) -> Iterator[tuple[Path, EngineNote]]:
    """List the engines in the cache that are whole."""
    for path in sorted(((cache_dir or cache_folder()) / "engines").glob(f"*/{ENGINE}")):
        with contextlib.suppress(BundleError):
            yield path, load_engine(path)[1]
