"""TensorRT and TensorRT for RTX: engines built from the bundle for this machine, run on its GPU.

One code path for both; see `ssai3d_rt.export.engine` for how engines are built and why only those are loaded, and
`ssai3d_rt.runtime.pipeline` for how copying and computing overlap. TensorRT for RTX compiles its kernels for this GPU
when an engine is loaded; they are kept beside the engine, so that only the first load takes long. They are compiled
at once (`EAGER`), never in the background: the kernels that passed the golden tiles are the ones that go on running.
"""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ssai3d_rt.errors import BackendError, MissingPackageError
from ssai3d_rt.export.bundle import INPUT, OUTPUT
from ssai3d_rt.export.engine import (
    MODULES,
    RTX_CAPABILITIES,
    BatchRange,
    engine_from_bundle,
    import_trt,
    load_engine,
    trt_log,
)
from ssai3d_rt.export.enginecache import jit_cache_path, keep_blob, load_blob
from ssai3d_rt.runtime.cuda import Cuda, Stream, gpu, open_cuda, why_no_cuda
from ssai3d_rt.runtime.pipeline import Pipeline

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ssai3d_rt.export.bundle import Bundle

logger = logging.getLogger(__name__)

TENSORRT, RTX = "tensorrt", "tensorrt-rtx"

_TURING = (7, 5)
_BATCHES_PER_CALL = 4
"""Batches that a caller should hand over at once, so that copying and computing overlap."""

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


def caution(name: str) -> str | None:
    """Return what its user should know before it is used on this machine's GPU, or None."""
    card = gpu()
    if name == RTX and card is not None and card.capability == _TURING:
        return (
            f"TensorRT for RTX has returned zeros without an error on Turing cards such as {card.name}; the golden "
            "tiles are run after every load and would show it; onnxruntime-cuda is the alternative"
        )
    return None


def candidates(bundle: Bundle, name: str, most_tiles: int | None = None) -> Iterator[TensorRtRunner]:
    """Build or take from the cache an engine of the bundle, and load it."""
    usual = BatchRange()
    fewer = BatchRange(1, min(usual.best, most_tiles), min(usual.most, most_tiles)) if most_tiles else None
    yield TensorRtRunner(bundle, name, batches=fewer)


class TensorRtRunner:
    """See `Runner`.

    Parameters
    ----------
    bundle
        To run.
    name
        ``tensorrt`` or ``tensorrt-rtx``.
    batches
        Tiles per call of the engine; it always runs with `best` of them.
    graph
        Launch the network as one CUDA graph per slot.
    """

    def __init__(self, bundle: Bundle, name: str, *, batches: BatchRange | None = None, graph: bool = False) -> None:
        trt = import_trt(name)
        path = engine_from_bundle(bundle, name, batches=batches)
        engine, note = load_engine(path)
        self.name = name
        self.tile = bundle.tile
        self.bundle_id = bundle.bundle_id
        _, best, _ = note.batches
        self.batch = best * _BATCHES_PER_CALL
        self._log = trt_log(trt)
        self._cuda: Cuda | None = open_cuda()
        self._held: list[Any] = []
        self._context: Any = None
        self._pipeline: Pipeline | None = None
        card = gpu()
        if words := caution(name):
            logger.warning("%s", words)
        jit = jit_cache_path(path, card.identity) if name == RTX and card is not None else None
        shape = (best, bundle.manifest.channels, self.tile, self.tile)
        try:
            with self._cuda.current():
                self._load(trt, engine, jit, shape, graph=graph)
        except BaseException:
            self.close()
            raise
        self.detail = f"version {note.version} on {', '.join(note.targets)}, {best} tiles at once"

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
            self._pipeline = self._context = None
            while self._held:  # what was made last goes first
                self._held.pop()
        self._cuda.close()
        self._cuda = None

    def _load(
        self, trt: Any, engine: bytes, jit: Path | None, shape: tuple[int, int, int, int], *, graph: bool
    ) -> None:
        """Load the engine, make its context, and run it once per slot."""
        assert self._cuda is not None
        loaded = self._keep(self._keep(trt.Runtime(self._log)).deserialize_cuda_engine(engine))
        own_graphs = graph
        kernels = b""
        cache: Any = None
        if jit is None:
            self._context = self._keep(loaded.create_execution_context())
        else:
            config = self._keep(loaded.create_runtime_config())
            config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
            if graph and hasattr(trt, "CudaGraphStrategy"):
                config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
                own_graphs = False
            cache = self._keep(config.create_runtime_cache())
            kernels = load_blob(jit)
            if kernels and not cache.deserialize(kernels):
                logger.info("%s is of another driver or GPU; its kernels are compiled again", jit)
            config.set_runtime_cache(cache)
            self._context = self._keep(loaded.create_execution_context(runtime_config=config))
        if not self._context.set_input_shape(INPUT, shape) or self._context.infer_shapes():
            raise self._failed()
        self._pipeline = Pipeline(self._cuda, shape, self._queue)
        self._pipeline.warm_up(graphs=own_graphs)
        if jit is not None and (compiled := bytes(cache.serialize())) != kernels:
            keep_blob(jit, compiled)

    def _queue(self, source: int, target: int, stream: Stream) -> None:
        """Queue one batch."""
        context = self._context
        ready = (
            context.set_tensor_address(INPUT, source)
            and context.set_tensor_address(OUTPUT, target)
            and context.execute_async_v3(stream.handle)
        )
        if not ready:
            raise self._failed()

    def _keep(self, made: Any) -> Any:
        """Keep what TensorRT made until `close`; None is its way to fail."""
        if made is None:
            raise self._failed()
        self._held.append(made)
        return made

    def _failed(self) -> BackendError:
        return BackendError(f"{self.name} failed: {self._log.last_error or 'no reason given'}")
