"""`Cuda` over PyCUDA, which is compiled on the rig. Never `pycuda.autoinit`: its context is not the primary one.

It has no CUDA graphs (2026.1).
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import logging
from functools import cache
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


@cache
def _primary_context(driver: Any) -> Any:
    """Retain the primary context once, for as long as the process lives, as CUDA's own runtime does.

    When PyCUDA releases it, it leaves it on the stack of this thread, or does not release it from another one.
    """
    driver.init()
    context = driver.Device(0).retain_primary_context()
    atexit.register(context.detach)  # left to the garbage collector, PyCUDA detaches it as if it were its own
    return context


class PyCuda:
    """See `Cuda`."""

    def __init__(self) -> None:
        try:
            self.driver: Any = importlib.import_module("pycuda.driver")
        except ImportError as error:  # compiled against another CUDA or Python
            raise BackendError(
                f"PyCUDA is installed but cannot be loaded ({error}); build it again, or: pip uninstall pycuda, "
                "pip install cuda-python"
            ) from None
        self._memory: list[Any] = []
        self._handles: list[Any] = []
        with self.told():
            self._context: Any = _primary_context(self.driver)

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """See `Cuda.current`. PyCUDA keeps a stack per thread: each push has its pop in the same thread."""
        if self._context is None:
            raise BackendError("CUDA: it is closed")
        with self.told():
            self._context.push()
        try:
            yield
        finally:
            with self.told():
                self.driver.Context.pop()

    def pinned(self, shape: tuple[int, ...]) -> Float:
        """See `Cuda.pinned`."""
        with self.told():
            array: Float = self.driver.pagelocked_empty(shape, np.float32)
        self._memory.append(array.base)
        array[:] = 0
        return array

    def memory(self, size_bytes: int) -> int:
        """See `Cuda.memory`."""
        with self.told():
            memory = self.driver.mem_alloc(size_bytes)
        self._memory.append(memory)
        return int(memory)

    def stream(self) -> PyCudaStream:
        """See `Cuda.stream`."""
        with self.told():
            return PyCudaStream(self, self.kept(self.driver.Stream(_NON_BLOCKING)))

    def kept(self, handle: Any) -> Any:
        """Keep a stream, event or graph until `close`: PyCUDA frees it with its last reference."""
        self._handles.append(handle)
        return handle

    def close(self) -> None:
        """See `Cuda.close`."""
        if self._context is None:
            return
        with self.current():
            while self._memory:
                self._free(self._memory.pop())
            self._handles.clear()
        self._context = None

    def _free(self, memory: Any) -> None:
        try:
            memory.free()
        except self.driver.Error as error:  # after a fault on the device every call fails; the driver frees it then
            logger.debug("%s", error)

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """Turn PyCUDA's errors into `BackendError`."""
        try:
            yield
        except self.driver.Error as error:
            raise BackendError(f"CUDA: {error}") from None


class PyCudaEvent:
    """See `Event`."""

    def __init__(self, cuda: PyCuda) -> None:
        self._cuda = cuda
        self.event = cuda.kept(cuda.driver.Event(_SLEEPING_EVENT))

    def synchronize(self) -> None:
        """See `Event.synchronize`."""
        with self._cuda.told():
            self.event.synchronize()


class PyCudaStream:
    """See `Stream`."""

    def __init__(self, cuda: PyCuda, stream: Any) -> None:
        self._cuda = cuda
        self._stream = stream
        self.handle = int(stream.handle)

    def upload(self, target: int, source: Float) -> None:
        """See `Stream.upload`."""
        with self._cuda.told():
            self._cuda.driver.memcpy_htod_async(target, source, self._stream)

    def download(self, target: Float, source: int) -> None:
        """See `Stream.download`."""
        with self._cuda.told():
            self._cuda.driver.memcpy_dtoh_async(target, source, self._stream)

    def record(self, event: PyCudaEvent | None = None) -> PyCudaEvent:
        """See `Stream.record`."""
        with self._cuda.told():
            event = event or PyCudaEvent(self._cuda)
            event.event.record(self._stream)
        return event

    def wait(self, event: PyCudaEvent) -> None:
        """See `Stream.wait`."""
        with self._cuda.told():
            self._stream.wait_for_event(event.event)

    def captured(self, work: Callable[[], None]) -> Callable[[], None]:
        """See `Stream.captured`."""
        raise BackendError("PyCUDA has no CUDA graphs; do without, or: pip uninstall pycuda, pip install cuda-python")
