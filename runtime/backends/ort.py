"""ONNX Runtime, on the CPU or on an NVIDIA GPU (CUDA).

What was asked for is what runs: a session that came up on another device than the one asked for is an error.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ssai3d_rt.errors import BackendError, MissingPackageError
from ssai3d_rt.export.bundle import INPUT, OUTPUT
from ssai3d_rt.runtime.cuda import why_no_gpu

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


def why_not_cpu() -> str | None:
    """Return None where it can run, else a sentence that says what to do."""
    return None if find_spec("onnxruntime") else str(MissingPackageError("onnxruntime", extra="cpu"))


def why_not_cuda() -> str | None:
    """Return None where it can run, else a sentence that says what to do."""
    if find_spec("onnxruntime") is None:
        return str(MissingPackageError("onnxruntime", extra="gpu"))
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return (
            "the installed onnxruntime has no CUDA; run: pip uninstall -y onnxruntime, "
            'then pip install "ssai3d-rt[gpu]"'
        )
    return why_no_gpu()


def candidates_cpu(bundle: Bundle, threads: int | None) -> Iterator[OnnxRuntimeRunner]:
    """Load the bundle on the CPU."""
    yield OnnxRuntimeRunner(bundle, CPU, threads)


def candidates_cuda(bundle: Bundle, threads: int | None) -> Iterator[OnnxRuntimeRunner]:
    """Load the bundle on the GPU."""
    yield OnnxRuntimeRunner(bundle, CUDA, threads)


class OnnxRuntimeRunner:
    """See `Runner`.

    Parameters
    ----------
    bundle
        To run.
    name
        ``onnxruntime`` or ``onnxruntime-cuda``.
    threads
        Threads to use; None takes all cores.
    """

    def __init__(self, bundle: Bundle, name: str, threads: int | None) -> None:
        import onnxruntime

        self.name = name
        self.tile = bundle.tile
        self.bundle_id = bundle.bundle_id
        self.batch = _BATCH[name]
        provider, provider_options = _PROVIDERS[name]
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # Idle threads sleep: the acquisition's programs need those cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if threads is not None:
            options.intra_op_num_threads = threads
        if name == CUDA and hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()
        try:
            self._session: Any = onnxruntime.InferenceSession(
                bundle.onnx, options, providers=[(provider, provider_options)]
            )
        except Exception as error:
            raise BackendError(f"ONNX Runtime cannot load {bundle.folder}: {_first_line(error)}") from None
        self._session.disable_fallback()
        found = self._session.get_providers()
        if found[:1] != [provider]:
            raise BackendError(
                f"ONNX Runtime came up on {', '.join(found)} instead of {provider}; its CUDA or cuDNN libraries are "
                'missing or do not fit: pip install "ssai3d-rt[gpu]", or choose another backend'
            )
        self.detail = f"{provider.removesuffix('ExecutionProvider')}, version {onnxruntime.__version__}"

    def run(self, tiles: Float) -> Float:
        """See `Runner.run`."""
        parts = []
        try:
            for at in range(0, len(tiles), self.batch):
                parts += self._session.run([OUTPUT], {INPUT: tiles[at : at + self.batch]})
        except Exception as error:
            raise BackendError(f"ONNX Runtime failed: {_first_line(error)}") from None
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def close(self) -> None:
        """See `Runner.close`."""
        self._session = None


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
