"""`Cuda` over cuda-python: the driver's own functions, each checked. It has wheels for Linux and Windows."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import logging
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ssai3d_rt.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

logger = logging.getLogger(__name__)

Float = npt.NDArray[np.float32]

_NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING: does not wait for the default stream."""
_SLEEPING_EVENT = 3
"""CU_EVENT_BLOCKING_SYNC | CU_EVENT_DISABLE_TIMING: who waits sleeps; the acquisition needs that core."""


class CudaPython:
    """See `Cuda`."""

    def __init__(self) -> None:
        self.driver: Any = importlib.import_module("cuda.bindings.driver")
        self._frees: list[tuple[str, Any]] = []
        self._context: Any = None
        self.call("cuInit", 0)
        self._device = self.call("cuDeviceGet", 0)
        self._context = self.call("cuDevicePrimaryCtxRetain", self._device)

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """See `Cuda.current`."""
        if self._context is None:
            raise BackendError("CUDA: it is closed")
        self.call("cuCtxPushCurrent", self._context)
        try:
            yield
        finally:
            self.call("cuCtxPopCurrent")

    def pinned(self, shape: tuple[int, ...]) -> Float:
        """See `Cuda.pinned`."""
        count = math.prod(shape)
        address = self._made("cuMemHostAlloc", count * 4, 0, free="cuMemFreeHost")
        memory = (ctypes.c_float * count).from_address(int(address))
        array: Float = np.ctypeslib.as_array(memory).reshape(shape)
        array[:] = 0
        return array

    def memory(self, size_bytes: int) -> int:
        """See `Cuda.memory`."""
        return int(self._made("cuMemAlloc", size_bytes, free="cuMemFree"))

    def stream(self) -> CudaPythonStream:
        """See `Cuda.stream`."""
        return CudaPythonStream(self, self._made("cuStreamCreate", _NON_BLOCKING, free="cuStreamDestroy"))

    def event(self) -> CudaPythonEvent:
        """Make an event."""
        return CudaPythonEvent(self, self._made("cuEventCreate", _SLEEPING_EVENT, free="cuEventDestroy"))

    def graph(self, graph: Any) -> Any:
        """Make a graph ready to be launched."""
        return self._made("cuGraphInstantiate", graph, 0, free="cuGraphExecDestroy")

    def close(self) -> None:
        """See `Cuda.close`."""
        if self._context is None:
            return
        with self.current():
            while self._frees:
                name, handle = self._frees.pop()
                try:
                    self.call(name, handle)
                except BackendError as error:  # after a fault on the device every call fails; the driver frees it then
                    logger.debug("%s", error)
        self._context = None
        self.call("cuDevicePrimaryCtxRelease", self._device)

    def call(self, name: str, *arguments: Any) -> Any:
        """Call the driver; its error becomes a `BackendError`."""
        status, *values = getattr(self.driver, name)(*arguments)
        if status != self.driver.CUresult.CUDA_SUCCESS:
            _, text = self.driver.cuGetErrorString(status)
            raise BackendError(f"CUDA: {name} failed: {text.decode() if text else status}")
        return values[0] if values else None

    def _made(self, name: str, *arguments: Any, free: str) -> Any:
        handle = self.call(name, *arguments)
        self._frees.append((free, handle))
        return handle


class CudaPythonEvent:
    """See `Event`."""

    def __init__(self, cuda: CudaPython, event: Any) -> None:
        self._cuda = cuda
        self.event = event

    def synchronize(self) -> None:
        """See `Event.synchronize`."""
        self._cuda.call("cuEventSynchronize", self.event)


class CudaPythonStream:
    """See `Stream`."""

    def __init__(self, cuda: CudaPython, stream: Any) -> None:
        self._cuda = cuda
        self._stream = stream
        self.handle = int(stream)

    def upload(self, target: int, source: Float) -> None:
        """See `Stream.upload`."""
        self._cuda.call("cuMemcpyHtoDAsync", target, source.ctypes.data, source.nbytes, self._stream)

    def download(self, target: Float, source: int) -> None:
        """See `Stream.download`."""
        self._cuda.call("cuMemcpyDtoHAsync", target.ctypes.data, source, target.nbytes, self._stream)

    def record(self, event: CudaPythonEvent | None = None) -> CudaPythonEvent:
        """See `Stream.record`."""
        event = event or self._cuda.event()
        self._cuda.call("cuEventRecord", event.event, self._stream)
        return event

    def wait(self, event: CudaPythonEvent) -> None:
        """See `Stream.wait`."""
        self._cuda.call("cuStreamWaitEvent", self._stream, event.event, 0)

    def captured(self, work: Callable[[], None]) -> Callable[[], None]:
        """See `Stream.captured`."""
        mode = self._cuda.driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._cuda.call("cuStreamBeginCapture", self._stream, mode)
        try:
            work()
        finally:
            graph = self._cuda.call("cuStreamEndCapture", self._stream)
        ready = self._cuda.graph(graph)
        self._cuda.call("cuGraphDestroy", graph)
        return lambda: self._cuda.call("cuGraphLaunch", ready, self._stream)
