"""TensorRT and TensorRT for RTX: engines built from the bundle for this machine, run on its GPU.

One code path for both; see `ssai3d_rt.export.engine` for how engines are built and why only those are loaded.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ssai3d_rt.errors import BackendError, MissingPackageError
from ssai3d_rt.export.bundle import INPUT, OUTPUT
from ssai3d_rt.export.engine import MODULES, engine_from_bundle, import_trt, load_engine, trt_log
from ssai3d_rt.runtime.cuda import Cuda, gpu, open_cuda, why_no_cuda

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ssai3d_rt.export.bundle import Bundle

TENSORRT, RTX = "tensorrt", "tensorrt-rtx"

RTX_CAPABILITIES = {(8, 0), (8, 6), (8, 9), (12, 0)}
"""What the engines for TensorRT for RTX are built for; it does not know 9.0 (H100, H200) at all."""

Float = npt.NDArray[np.float32]


def why_not(name: str) -> str | None:
    """Return None where it can run, else a sentence that says what to do."""
    module = MODULES[name]
    if find_spec(module) is None:
        return str(MissingPackageError(module, extra=name))
    if reason := why_no_cuda():
        return reason
    card = gpu()
    if name == RTX and card is not None and card.capability not in RTX_CAPABILITIES:
        capability = ".".join(str(number) for number in card.capability)
        return (
            f"TensorRT for RTX does not support {card.name} (compute capability {capability}); "
            "use tensorrt or onnxruntime-cuda"
        )
    return None


def candidates(bundle: Bundle, name: str) -> Iterator[TensorRtRunner]:
    """Build or take from the cache an engine of the bundle, and load it."""
    yield TensorRtRunner(bundle, name)


class TensorRtRunner:
    """See `Runner`.

    Parameters
    ----------
    bundle
        To run.
    name
        ``tensorrt`` or ``tensorrt-rtx``.
    """

    def __init__(self, bundle: Bundle, name: str) -> None:
        trt = import_trt(name)
        engine, note = load_engine(engine_from_bundle(bundle, name))
        self.name = name
        self.tile = bundle.tile
        self.bundle_id = bundle.bundle_id
        _, self.batch, self._most = note.batches
        self._tail = (bundle.manifest.channels, self.tile, self.tile)
        self._log = trt_log(trt)
        self._cuda: Cuda | None = open_cuda((self._most, *self._tail))
        self._runtime = trt.Runtime(self._log)
        self._engine = self._runtime.deserialize_cuda_engine(engine)
        self._context: Any = self._engine.create_execution_context() if self._engine is not None else None
        if self._context is None:
            self.close()
            raise BackendError(f"{name} cannot load its engine: {self._log.last_error or 'no reason given'}")
        self.detail = f"version {note.version} on {', '.join(note.targets)}"

    def run(self, tiles: Float) -> Float:
        """See `Runner.run`."""
        out = np.empty_like(tiles)
        for at in range(0, len(tiles), self._most):
            part = tiles[at : at + self._most]
            out[at : at + self._most] = self._run(part)
        return out

    def _run(self, part: Float) -> Float:
        cuda, context = self._cuda, self._context
        if cuda is None:
            raise BackendError(f"{self.name} is closed")
        cuda.enter()
        cuda.upload(part)
        ready = (
            context.set_input_shape(INPUT, (len(part), *self._tail))
            and not context.infer_shapes()
            and context.set_tensor_address(INPUT, cuda.device_in)
            and context.set_tensor_address(OUTPUT, cuda.device_out)
            and context.execute_async_v3(cuda.stream)
        )
        if not ready:
            raise BackendError(f"{self.name} failed: {self._log.last_error or 'no reason given'}")
        return cuda.download(len(part))

    def close(self) -> None:
        """See `Runner.close`."""
        self._context = self._engine = self._runtime = None  # in this order
        if self._cuda is not None:
            self._cuda.close()
        self._cuda = None
