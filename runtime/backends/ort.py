"""ONNX Runtime, on the CPU or on an NVIDIA GPU (CUDA).

What was asked for is what runs: a session that came up on another device than the one asked for is an error. On the
GPU its buffers are bound once, and copying overlaps with computing: see `ssai3d_rt.runtime.pipeline`.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ssai3d_rt.errors import BackendError, MissingPackageError
from ssai3d_rt.export.bundle import INPUT, OUTPUT
from ssai3d_rt.runtime.backends.runner import at_most
from ssai3d_rt.runtime.cuda import Cuda, Stream, open_cuda, why_no_cuda
from ssai3d_rt.runtime.pipeline import Pipeline

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ssai3d_rt.export.bundle import Bundle

CPU, CUDA = "onnxruntime", "onnxruntime-cuda"

Float = npt.NDArray[np.float32]

_PROVIDERS: dict[str, tuple[str, dict[str, Any]]] = {
    CPU: ("CPUExecutionProvider", {}),
    # TF32 would take bits from the FP32 islands.
    CUDA: ("CUDAExecutionProvider", {"device_id": 0, "use_tf32": 0, "cudnn_conv_algo_search": "HEURISTIC"}),
}
_BATCH = {CPU: 4, CUDA: 16}
_BATCHES_PER_CALL = 4
"""Batches that a caller should hand over at once, so that copying and computing overlap on a GPU."""


def why_not_cpu() -> str | None:
    """Return None where it can run, else a sentence that says what to do."""
    return None if find_spec("onnxruntime") else str(MissingPackageError("onnxruntime", extra="cpu"))


def why_not_cuda() -> str | None:
    """Return None where it can run, else a sentence that says what to do."""
    if find_spec("onnxruntime") is None:
        return str(MissingPackageError("onnxruntime", extra="gpu"))
    try:
        import onnxruntime
    except Exception as error:  # whatever a broken install raises
        return f"the installed onnxruntime cannot be loaded ({type(error).__name__}); ssai3d-rt doctor says what to do"
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return (
            "the installed onnxruntime has no CUDA; run: pip uninstall -y onnxruntime, "
            'then pip install "ssai3d-rt[gpu]"'
        )
    return why_no_cuda()


def candidates_cpu(bundle: Bundle, threads: int | None, most_tiles: int | None = None) -> Iterator[OnnxRuntimeRunner]:
    """Load the bundle on the CPU."""
    yield at_most(OnnxRuntimeRunner(bundle, threads), most_tiles)


def candidates_cuda(
    bundle: Bundle, _threads: int | None, most_tiles: int | None = None
) -> Iterator[OnnxRuntimeCudaRunner]:
    """Load the bundle on the GPU."""
    yield OnnxRuntimeCudaRunner(bundle, min(_BATCH[CUDA], most_tiles or _BATCH[CUDA]))


class OnnxRuntimeRunner:
    """On the CPU; see `Runner`.

    The answers are written where the caller gets them. The memory arena stays on: without it batches of several tiles
    take about twice the time.

    Parameters
    ----------
    bundle
        To run.
    threads
        Threads to use; None takes all cores.
    """

    name = CPU

    def __init__(self, bundle: Bundle, threads: int | None) -> None:
        self.tile = bundle.tile
        self.bundle_id = bundle.bundle_id
        self.batch = _BATCH[CPU]
        self._session: Any = open_session(bundle, CPU, threads)
        self.detail = _detail(CPU)

    def run(self, tiles: Float) -> Float:
        """See `Runner.run`."""
        answers = np.empty(tiles.shape, np.float32)
        try:
            for at in range(0, len(tiles), self.batch):
                given, part = np.ascontiguousarray(tiles[at : at + self.batch]), answers[at : at + self.batch]
                binding = self._session.io_binding()
                binding.bind_cpu_input(INPUT, given)
                binding.bind_output(OUTPUT, "cpu", 0, np.float32, part.shape, part.ctypes.data)
                self._session.run_with_iobinding(binding)
        except Exception as error:
            raise BackendError(f"ONNX Runtime failed: {_first_line(error)}") from None
        return answers

    def close(self) -> None:
        """See `Runner.close`."""
        self._session = None


class OnnxRuntimeCudaRunner:
    """On an NVIDIA GPU; see `Runner`.

    Parameters
    ----------
    bundle
        To run.
    batch
        Tiles at once; it always runs with as many.
    """

    name = CUDA

    def __init__(self, bundle: Bundle, batch: int = _BATCH[CUDA]) -> None:
        self.tile = bundle.tile
        self.bundle_id = bundle.bundle_id
        self.batch = batch * _BATCHES_PER_CALL
        self._bundle: Bundle | None = bundle
        self._session: Any = None
        self._options: Any = None
        self._bindings: dict[int, Any] = {}
        self._shape = (batch, bundle.manifest.channels, bundle.tile, bundle.tile)
        self._cuda: Cuda | None = open_cuda()
        self._pipeline: Pipeline | None = None
        try:
            with self._cuda.current():
                self._pipeline = Pipeline(self._cuda, self._shape, self._compute)
                self._pipeline.warm_up()
        except BaseException:
            self.close()
            raise
        self._bundle = None
        self.detail = f"{_detail(CUDA)}, {batch} tiles at once"

    def run(self, tiles: Float) -> Float:
        """See `Runner.run`."""
        if self._cuda is None or self._pipeline is None:
            raise BackendError(f"{self.name} is closed")
        with self._cuda.current():
            return self._pipeline.run(tiles)

    def close(self) -> None:
        """See `Runner.close`."""
        if self._cuda is None:
            return
        with self._cuda.current():
            self._bindings = {}
            self._pipeline = self._session = None
        self._cuda.close()
        self._cuda = None

    def _compute(self, source: int, target: int, stream: Stream) -> None:
        """Queue the network for one batch; the session and each slot's binding are made when they are first needed."""
        try:
            if self._session is None and self._bundle is not None:
                import onnxruntime

                self._session = open_session(self._bundle, CUDA, stream=stream.handle)
                self._options = onnxruntime.RunOptions()
                # The pipeline's events say when a batch is done.
                self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")
            if source not in self._bindings:
                binding = self._session.io_binding()
                binding.bind_input(INPUT, "cuda", 0, np.float32, self._shape, source)
                binding.bind_output(OUTPUT, "cuda", 0, np.float32, self._shape, target)
                self._bindings[source] = binding
            self._session.run_with_iobinding(self._bindings[source], self._options)
        except BackendError:
            raise
        except Exception as error:
            raise BackendError(f"ONNX Runtime failed: {_first_line(error)}") from None


def open_session(bundle: Bundle, name: str, threads: int | None = None, stream: int | None = None) -> Any:
    """Make a session, and look where it came up.

    Parameters
    ----------
    bundle
        To run.
    name
        ``onnxruntime`` or ``onnxruntime-cuda``.
    threads
        Threads on the CPU; None takes all cores.
    stream
        CUDA stream that it computes on; its own by default.

    Raises
    ------
    BackendError
        The file cannot be loaded, or only on another device.
    """
    import onnxruntime

    provider, provider_options = _PROVIDERS[name]
    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Idle threads sleep: the acquisition's programs need those cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if threads is not None:
        options.intra_op_num_threads = threads
    if stream is not None:
        provider_options = provider_options | {"user_compute_stream": str(stream)}
    if name == CUDA and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()
    try:
        session = onnxruntime.InferenceSession(bundle.onnx, options, providers=[(provider, provider_options)])
    except Exception as error:
        raise BackendError(f"ONNX Runtime cannot load {bundle.folder}: {_first_line(error)}") from None
    session.disable_fallback()
    found = session.get_providers()
    if found[:1] != [provider]:
        raise BackendError(
            f"ONNX Runtime came up on {', '.join(found)} instead of {provider}; its CUDA or cuDNN libraries are "
            'missing or do not fit: pip install "ssai3d-rt[gpu]", or choose another backend'
        )
    return session


def _detail(name: str) -> str:
    import onnxruntime

    return f"{_PROVIDERS[name][0].removesuffix('ExecutionProvider')}, version {onnxruntime.__version__}"


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
