"""OpenVINO on the CPU: often the fastest without a GPU, most of all where the CPU computes in bfloat16.

Tiles are single requests spread over a few streams, which on several cores is faster than batches; threads are not
pinned to cores, as the acquisition may need those. Bfloat16 is tried first where the CPU has it; the golden tiles
decide.
"""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ssai3d_rt.errors import BackendError, MissingPackageError
from ssai3d_rt.export.bundle import INPUT, ONNX

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ssai3d_rt.export.bundle import Bundle

NAME = "openvino"

ONE_STREAM_BYTES = 64 << 20
"""From this size of the ONNX on there is one stream: one tile of a large network keeps all cores busy, and each stream
holds weights of its own."""

Float = npt.NDArray[np.float32]


def why_not() -> str | None:
    """Return None where it can run, else a sentence that says what to do."""
    return None if find_spec("openvino") else str(MissingPackageError("openvino", extra="cpu"))


def candidates(bundle: Bundle, threads: int | None, most_tiles: int | None = None) -> Iterator[OpenVinoRunner]:
    """Load the bundle in each precision that the CPU offers, the fastest first."""
    core = import_openvino().Core()
    for precision in precisions(core):
        yield OpenVinoRunner(bundle, core, precision, threads, one_stream=most_tiles is not None)


def precisions(core: Any) -> tuple[str, ...]:
    """Return the precisions that the CPU offers, the fastest first."""
    return ("bf16", "f32") if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") else ("f32",)


def import_openvino() -> Any:
    """Import OpenVINO, but not its telemetry: the import alone would report to its vendor over the network."""
    name = "openvino_telemetry"
    if name in sys.modules:
        return importlib.import_module("openvino")
    sys.modules[name] = None  # type: ignore[assignment]  # how Python marks a module that must not be imported
    try:
        return importlib.import_module("openvino")
    finally:
        sys.modules.pop(name, None)


class OpenVinoRunner:
    """See `Runner`.

    Parameters
    ----------
    bundle
        To run.
    core
        An ``openvino.Core``.
    precision
        ``bf16`` or ``f32``.
    threads
        Threads to use; None takes all cores.
    one_stream
        Compute one tile at a time, which takes the least memory.
    """

    name = NAME

    def __init__(
        self, bundle: Bundle, core: Any, precision: str, threads: int | None, *, one_stream: bool = False
    ) -> None:
        options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": precision,
            "PERFORMANCE_HINT": "THROUGHPUT",
            "ENABLE_CPU_PINNING": False,
        }
        if one_stream or bundle.manifest.files[ONNX].size_bytes > ONE_STREAM_BYTES:
            options["NUM_STREAMS"] = 1
        if threads is not None:
            options["INFERENCE_NUM_THREADS"] = threads
        self.tile = bundle.tile
        self.bundle_id = bundle.bundle_id
        self._shape = (1, bundle.manifest.channels, self.tile, self.tile)
        try:
            model = core.read_model(bundle.onnx)
            model.reshape({INPUT: list(self._shape)})
            compiled = core.compile_model(model, "CPU", options)
            self._queue: Any = import_openvino().AsyncInferQueue(compiled, 0)  # 0: as many requests as streams
        except RuntimeError as error:
            raise BackendError(f"OpenVINO cannot load {bundle.folder}: {_first_line(error)}") from None
        streams = len(self._queue)
        self.batch = 4 * streams
        self.detail = f"{precision} on the CPU, {streams} stream{'s' if streams > 1 else ''}"

    def run(self, tiles: Float) -> Float:
        """See `Runner.run`."""
        out = np.empty_like(tiles)

        def keep(request: Any, at: int) -> None:
            out[at] = request.get_output_tensor().data[0]

        try:
            self._queue.set_callback(keep)
            for at in range(len(tiles)):
                self._queue.start_async({INPUT: tiles[at : at + 1]}, at)
            self._queue.wait_all()
        except RuntimeError as error:
            raise BackendError(f"OpenVINO failed: {_first_line(error)}") from None
        return out

    def close(self) -> None:
        """See `Runner.close`."""
        self._queue = None


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
