"""Engines: what NVIDIA's builder compiles from a bundle for one kind of GPU.

One code path builds for TensorRT (10.12+ and 11) and for TensorRT for RTX; the module is handed in. The network is
built strongly typed, so the precision is the one written in the ONNX; no precision flag is ever set. TensorRT for RTX
builds for named compute capabilities and needs no GPU; TensorRT times its kernels on the GPU that it builds for, and
keeps the timings for its next build.

An engine is native code: it is never part of a bundle, and `load_engine` hands out its bytes only when they have the
hash that was noted when it was built here. Whether it computes the right numbers is found out after loading, by the
backend (golden tiles).
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import platform
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ssai3d_rt.errors import BackendError, BundleError, MissingPackageError
from ssai3d_rt.export.buildwatch import BuildWatch, monitor
from ssai3d_rt.export.bundle import INPUT
from ssai3d_rt.export.cache import cache_folder, private_folder
from ssai3d_rt.export.enginecache import (
    ENGINE,
    EngineKey,
    EngineNote,
    keep_blob,
    keep_engine,
    load_blob,
    load_engine,
    timing_cache_path,
)
from ssai3d_rt.export.gpu import Gpu, gpu
from ssai3d_rt.progress import Progress, silent

if TYPE_CHECKING:
    from pathlib import Path
    from threading import Event

    from ssai3d_rt.export.bundle import Bundle

__all__ = ["BatchRange", "engine_from_bundle", "engines_from_bundle", "import_trt", "load_engine", "trt_log"]

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""Backend name -> Python module."""

AMPERE_ON, TURING = ("SM80", "SM86", "SM89", "SM120"), ("SM75",)
RTX_GROUPS = (AMPERE_ON, TURING)
"""Targets of TensorRT for RTX, those of one engine together.

Turing gets an engine of its own: one for all five builds too, but its vendor advises against it, since the other cards
would have to do with what Turing has (support matrix of TensorRT for RTX 1.7).
"""

_GROUP_OF = {(8, 0): AMPERE_ON, (8, 6): AMPERE_ON, (8, 9): AMPERE_ON, (12, 0): AMPERE_ON, (7, 5): TURING}
_LABELS = {AMPERE_ON: "engine (Ampere to Blackwell)", TURING: "engine (Turing)"}

RTX_CAPABILITIES = frozenset(_GROUP_OF)
"""GPUs that the engines for TensorRT for RTX run on; it does not know 9.0 (H100, H200) at all.

Turing (7.5) is among them although TensorRT for RTX has returned zeros there without an error: the golden tiles run
after every load, and an engine that gives zeros fails them.
"""

_WORKSPACE_BYTES = 2 << 30
_OPTIONS = f"strongly typed, workspace {_WORKSPACE_BYTES}"


@dataclass(frozen=True, slots=True)
class BatchRange:
    """Tiles per call that an engine accepts; kernels are chosen for `best`."""

    least: int = 1
    best: int = 8
    most: int = 16


def engine_from_bundle(
    bundle: Bundle,
    backend: str,
    cache_dir: Path | None = None,
    *,
    batches: BatchRange | None = None,
    targets: tuple[str, ...] | None = None,
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
    targets
        One of `RTX_GROUPS`, for TensorRT for RTX only; by default the one for this machine's GPU, Ampere to Blackwell
        where there is none.
    progress
        Told percent of the build, in this thread. An exception that it raises stops the build and is raised here, as
        is Ctrl-C.
    cancel
        Stops the build when set.

    Raises
    ------
    MissingPackageError
        The backend's package is not installed.
    BackendError
        The package cannot be loaded; the build failed, was cancelled, or needs a GPU that is not here.
    """
    trt = import_trt(backend)
    card = gpu()
    if backend == "tensorrt-rtx":
        targets = targets or rtx_targets(card)
        build_for, system, label = targets, "", _LABELS.get(targets, "engine")  # portable between systems
    else:
        if card is None:
            raise BackendError(_no_gpu(trt, "the driver found none"))
        targets, build_for = (card.identity,), ()
        system, label = f"{platform.system()} {platform.machine()}", "engine"
    batches = batches or BatchRange()
    key = EngineKey(
        onnx_sha256=bundle.onnx_sha256,
        backend=backend,
        version=str(trt.__version__),
        targets=targets,
        system=system,
        tile=bundle.tile,
        batches=(batches.least, batches.best, batches.most),
        options=_OPTIONS,
    )
    folder = private_folder((cache_dir or cache_folder()) / "engines") / key.folder
    path = folder / ENGINE
    with contextlib.suppress(BundleError):
        if load_engine(path)[1].key == key.digest:
            return path
    timing = timing_cache_path(backend, key.version, f"{system}\n{targets[0]}", cache_dir) if not build_for else None
    log = trt_log(trt)
    watch = BuildWatch(cancel)
    start = time.monotonic()
    engine = watch.run(lambda: _build(trt, log, bundle, build_for, batches, timing, watch), label, progress)
    note = EngineNote(
        key=key.digest,
        sha256=hashlib.sha256(engine).hexdigest(),
        bundle=bundle.folder.name,
        onnx_sha256=key.onnx_sha256,
        backend=backend,
        version=key.version,
        targets=targets,
        tile=key.tile,
        batches=key.batches,
        built=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        seconds=round(time.monotonic() - start, 3),
        warnings=tuple(log.warnings),
    )
    keep_engine(folder, engine, note)
    return path


def engines_from_bundle(
    bundle: Bundle,
    backend: str,
    cache_dir: Path | None = None,
    *,
    batches: BatchRange | None = None,
    progress: Progress = silent,
    cancel: Event | None = None,
) -> list[Path]:
    """Return the engines of a bundle for all GPUs that can be built for from here.

    With TensorRT for RTX that is Turing to Blackwell, on any machine; with TensorRT it is this machine's GPU. See
    `engine_from_bundle`.
    """
    groups = RTX_GROUPS if backend == "tensorrt-rtx" else (None,)
    return [
        engine_from_bundle(
            bundle, backend, cache_dir, batches=batches, targets=targets, progress=progress, cancel=cancel
        )
        for targets in groups
    ]


def rtx_targets(card: Gpu | None) -> tuple[str, ...]:
    """Return what an engine of TensorRT for RTX is built for, so that it runs on this GPU."""
    return _GROUP_OF.get(card.capability, AMPERE_ON) if card is not None else AMPERE_ON


def import_trt(backend: str) -> Any:
    """Import TensorRT or TensorRT for RTX.

    Raises
    ------
    BackendError
        Another name, or an installation that cannot be loaded.
    MissingPackageError
        It is not installed.
    """
    if backend not in MODULES:
        raise BackendError(f"no engines for backend {backend!r}; choose from {', '.join(MODULES)}")
    module = MODULES[backend]
    try:
        trt = importlib.import_module(module)
        if not hasattr(trt, "Builder"):  # a folder that was left behind imports as an empty package
            raise ImportError("it has no Builder")
        return trt
    except Exception as error:  # vendors' packages raise what they like when a library is missing
        if isinstance(error, ModuleNotFoundError) and error.name == module:
            raise MissingPackageError(module, extra=backend) from None
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no reason'}"
        raise BackendError(
            f"{module} is installed but cannot be loaded ({reason}); run: "
            f'pip install --force-reinstall "ssai3d-rt[{backend}]"'
        ) from None


def _no_gpu(trt: Any, reason: str) -> str:
    return (
        f"{trt.__name__} cannot build an engine here: no NVIDIA GPU or driver ({reason}); "
        "build on the rig, or use tensorrt-rtx"
    )


def _build(
    trt: Any,
    log: Any,
    bundle: Bundle,
    build_for: tuple[str, ...],
    batches: BatchRange,
    timing: Path | None,
    watch: BuildWatch,
) -> bytes:
    try:
        builder = trt.Builder(log)
    except TypeError:  # the factory returned a null pointer: TensorRT found no usable driver
        raise BackendError(_no_gpu(trt, log.last_error or "no reason given")) from None
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
    if build_for:
        config.num_compute_capabilities = len(build_for)
        for number, target in enumerate(build_for):
            config.set_compute_capability(getattr(trt.ComputeCapability, target), number)
    timings = _timings(config, timing) if timing is not None else None  # like the monitor, it must outlive the build
    config.progress_monitor = listener = monitor(trt, watch)
    plan = builder.build_serialized_network(network, config)
    del listener
    if plan is None or watch.cancelled:
        why = "cancelled" if watch.cancelled else log.last_error or "the builder gave no reason"
        raise BackendError(f"{trt.__name__} built no engine for {bundle.folder}: {why}")
    if timing is not None and timings is not None:
        keep_blob(timing, bytes(timings.serialize()))
    return bytes(plan)


def _timings(config: Any, path: Path) -> Any:
    """Give the builder what it measured before on this GPU, or an empty cache; None where it takes neither."""
    for blob in (load_blob(path), b""):
        timings = config.create_timing_cache(blob)
        if timings is not None and config.set_timing_cache(timings, ignore_mismatch=False):
            return timings
    return None


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
