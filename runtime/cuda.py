"""CUDA, as far as TensorRT needs it: is there a GPU, and memory, streams and events on its primary context.

The driver itself says whether a GPU is there, so that nothing needs to be installed to find out. Memory and streams
come from PyCUDA where it is installed, from cuda-python otherwise; both use the primary context, which other libraries
in the process share. It does not know about networks, nor in which order work is queued: see
`ssai3d_rt.runtime.pipeline`.

>>> why_no_gpu() is None or "NVIDIA" in why_no_gpu()
True
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from ssai3d_rt.errors import BackendError
from ssai3d_rt.export.gpu import Gpu, driver_fault, gpu

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

__all__ = ["Cuda", "Event", "Gpu", "Stream", "gpu", "open_cuda", "why_no_cuda", "why_no_gpu"]

Float = npt.NDArray[np.float32]


class Event(Protocol):
    """A point in a stream's work."""

    def synchronize(self) -> None:
        """Wait, in this thread, until the work before it is done; the thread sleeps."""


class Stream(Protocol):
    """Work on the device, done in the order in which it was queued; everything here returns at once.

    Attributes
    ----------
    handle
        What TensorRT takes as a stream.
    """

    handle: int

    def upload(self, target: int, source: Float) -> None:
        """Copy pinned memory to the device."""

    def download(self, target: Float, source: int) -> None:
        """Copy from the device to pinned memory."""

    def record(self, event: Any = None) -> Event:
        """Mark this point, with an event of its own or with one that is used again."""

    def wait(self, event: Any) -> None:
        """Let the work that is queued from here on begin only after the event."""

    def captured(self, work: Callable[[], None]) -> Callable[[], None]:
        """Capture what `work` queues on this stream as a CUDA graph, without doing it; return what queues the graph.

        Raises `BackendError` where the work cannot be captured or the package has no graphs.
        """


class Cuda(Protocol):
    """The first GPU; made by `open_cuda`. Use what it gives out only inside `current`."""

    def current(self) -> AbstractContextManager[None]:
        """Make its context current in this thread for the time of a `with`; what was current before comes back."""

    def pinned(self, shape: tuple[int, ...]) -> Float:
        """Page-locked host memory of zeros; do not touch it after `close`."""

    def memory(self, size_bytes: int) -> int:
        """Device memory; its address."""

    def stream(self) -> Stream:
        """Make a stream that does not wait for the default stream."""

    def close(self) -> None:
        """Free all that it gave out, from any thread, also after a failure; safe to call twice."""


def why_no_gpu() -> str | None:
    """Return None where an NVIDIA GPU can be used, else a sentence that says what to do."""
    if fault := driver_fault():
        return fault
    if gpu() is None:
        return "no NVIDIA GPU or driver was found; install the NVIDIA driver, or use openvino or onnxruntime on the CPU"
    return None


def why_no_cuda() -> str | None:
    """Return None where memory and streams can be had, else a sentence that says what to do."""
    if not (_installed("cuda.bindings") or _installed("pycuda")):
        return "neither cuda-python nor PyCUDA is installed; run: pip install cuda-python"
    return why_no_gpu()


def open_cuda() -> Cuda:
    """Take the first GPU.

    Raises
    ------
    BackendError
        No package, no GPU, or the driver refuses.
    """
    if reason := why_no_cuda():
        raise BackendError(reason)
    if _installed("pycuda"):
        from ssai3d_rt.runtime.with_pycuda import PyCuda

        return PyCuda()
    from ssai3d_rt.runtime.with_cuda_python import CudaPython

    return CudaPython()


def _installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # a parent package is absent
        return False
