"""CUDA, as far as TensorRT needs it: is there a GPU, and buffers with one stream on its primary context.

The driver itself says whether a GPU is there, so that nothing needs to be installed to find out. Memory and streams
come from PyCUDA where it is installed, from cuda-python otherwise; both use the primary context, which other libraries
in the process share. It does not know about networks.

>>> why_no_gpu() is None or "NVIDIA" in why_no_gpu()
True
"""

from __future__ import annotations

import ctypes
import importlib
import sys
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from ssai3d_rt.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Callable

Float = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Gpu:
    """The first GPU: its name and compute capability."""

    name: str
    capability: tuple[int, int]


class Cuda(Protocol):
    """Two pairs of buffers (host and device, in and out) and a stream; made by `open_cuda`."""

    stream: int
    device_in: int
    device_out: int

    def enter(self) -> None:
        """Make the context current in this thread; call before any use of TensorRT."""

    def upload(self, tiles: Float) -> None:
        """Copy tiles to the device, on the stream."""

    def download(self, count: int) -> Float:
        """Wait for the stream and return `count` tiles, ``(count, C, T, T)``; valid until the next call."""

    def close(self) -> None:
        """Free everything, and leave the context."""


@cache
def gpu() -> Gpu | None:
    """Ask the driver for the first GPU; None where there is no driver or no GPU."""
    try:
        driver = cast("Any", ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"))
    except OSError:
        return None
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(128)
    # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR is 75, _MINOR is 76.
    steps: list[Callable[[], int]] = [
        lambda: driver.cuInit(0),
        lambda: driver.cuDeviceGet(ctypes.byref(device), 0),
        lambda: driver.cuDeviceGetName(name, len(name), device),
        lambda: driver.cuDeviceGetAttribute(ctypes.byref(major), 75, device),
        lambda: driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, device),
    ]
    if any(step() != 0 for step in steps):
        return None
    return Gpu(name.value.decode(errors="replace"), (major.value, minor.value))


def why_no_gpu() -> str | None:
    """Return None where an NVIDIA GPU can be used, else a sentence that says what to do."""
    if gpu() is None:
        return "no NVIDIA GPU or driver was found; install the NVIDIA driver, or use openvino or onnxruntime on the CPU"
    return None


def why_no_cuda() -> str | None:
    """Return None where buffers can be made, else a sentence that says what to do."""
    if not (_installed("cuda.bindings") or _installed("pycuda")):
        return "neither cuda-python nor PyCUDA is installed; run: pip install cuda-python"
    return why_no_gpu()


def open_cuda(shape: tuple[int, int, int, int]) -> Cuda:
    """Make buffers for up to ``(N, C, T, T)`` float32 tiles on the first GPU.

    Raises
    ------
    BackendError
        No package, no GPU, or no memory on it.
    """
    if reason := why_no_cuda():
        raise BackendError(reason)
    return _PyCuda(shape) if _installed("pycuda") else _CudaPython(shape)


def _installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # a parent package is absent
        return False


class _CudaPython:
    """`Cuda` over ``cuda.bindings``."""

    def __init__(self, shape: tuple[int, int, int, int]) -> None:
        self._rt = importlib.import_module("cuda.bindings.runtime")
        self._shape = shape
        self._bytes = int(np.prod(shape)) * 4
        self._host: list[int] = []
        self._device: list[int] = []
        self._stream: Any = None
        try:
            self.enter()
            self._stream = self._call("cudaStreamCreateWithFlags", self._rt.cudaStreamNonBlocking)
            for _ in range(2):
                self._host.append(int(self._call("cudaHostAlloc", self._bytes, self._rt.cudaHostAllocDefault)))
                self._device.append(int(self._call("cudaMalloc", self._bytes)))
        except BackendError:
            self.close()
            raise
        self.stream = int(self._stream)
        self.device_in, self.device_out = self._device
        self._in, self._out = (self._array(address) for address in self._host)

    def enter(self) -> None:
        self._call("cudaSetDevice", 0)  # the primary context

    def upload(self, tiles: Float) -> None:
        self._in[: len(tiles)] = tiles
        self._copy(self.device_in, self._host[0], tiles.nbytes, "cudaMemcpyHostToDevice")

    def download(self, count: int) -> Float:
        size = self._bytes // self._shape[0] * count
        self._copy(self._host[1], self.device_out, size, "cudaMemcpyDeviceToHost")
        self._call("cudaStreamSynchronize", self._stream)
        return self._out[:count]

    def close(self) -> None:
        self._in = self._out = np.empty((0, *self._shape[1:]), np.float32)
        for address in self._device:
            self._rt.cudaFree(address)
        for address in self._host:
            self._rt.cudaFreeHost(address)
        if self._stream is not None:
            self._rt.cudaStreamDestroy(self._stream)
        self._device, self._host, self._stream = [], [], None

    def _copy(self, target: int, source: int, size: int, kind: str) -> None:
        self._call("cudaMemcpyAsync", target, source, size, getattr(self._rt.cudaMemcpyKind, kind), self._stream)

    def _array(self, address: int) -> Float:
        memory = (ctypes.c_float * (self._bytes // 4)).from_address(address)
        array: Float = np.ctypeslib.as_array(memory).reshape(self._shape)
        return array

    def _call(self, name: str, *args: Any) -> Any:
        status, *values = getattr(self._rt, name)(*args)
        if status != self._rt.cudaError_t.cudaSuccess:
            _, text = self._rt.cudaGetErrorString(status)
            raise BackendError(f"CUDA: {name} failed: {text.decode()}")
        return values[0] if values else None


class _PyCuda:
    """`Cuda` over PyCUDA."""

    def __init__(self, shape: tuple[int, int, int, int]) -> None:
        self._driver = importlib.import_module("pycuda.driver")
        self._entered = 0
        try:
            self._driver.init()
            self._context = self._driver.Device(0).retain_primary_context()
            self.enter()
            self._stream = self._driver.Stream()
            self._in = self._driver.pagelocked_empty(shape, np.float32)
            self._out = self._driver.pagelocked_empty(shape, np.float32)
            self._memory = [self._driver.mem_alloc(self._in.nbytes) for _ in range(2)]
        except self._driver.Error as error:
            self._leave()
            raise BackendError(f"CUDA: {error}") from None
        self.stream = int(self._stream.handle)
        self.device_in, self.device_out = (int(memory) for memory in self._memory)

    def enter(self) -> None:
        """Push the context; a context is current per thread."""
        if self._entered == 0:
            self._context.push()
            self._entered += 1

    def upload(self, tiles: Float) -> None:
        self._in[: len(tiles)] = tiles
        self._driver.memcpy_htod_async(self.device_in, self._in[: len(tiles)], self._stream)

    def download(self, count: int) -> Float:
        part: Float = self._out[:count]
        self._driver.memcpy_dtoh_async(part, self.device_out, self._stream)
        self._stream.synchronize()
        return part

    def close(self) -> None:
        for memory in self._memory:
            memory.free()
        self._memory = []
        self._leave()

    def _leave(self) -> None:
        if self._entered:
            self._context.pop()
            self._entered = 0
