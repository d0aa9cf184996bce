"""`Cuda` in numpy: a stream is a real thread, an event a real wait, and every piece of work takes its own random time.

So the pipeline is tested for what it has to do: where it does not wait, or fills a buffer that is still in use, the
numbers are wrong. What an address stands for is an array; memory that was freed is gone.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from queue import SimpleQueue
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ssai3d_rt.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ssai3d_rt.runtime.cuda import Stream

Float = npt.NDArray[np.float32]

LONGEST_S = 0.001


class NumpyCuda:
    """See `Cuda`."""

    def __init__(self) -> None:
        self.arrays: dict[int, Float] = {}
        self.pinned_arrays: list[Float] = []
        self.streams: list[NumpyStream] = []
        self.entered = threading.local()
        self.pushes: list[tuple[str, int]] = []

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """See `Cuda.current`."""
        self.entered.depth = getattr(self.entered, "depth", 0) + 1
        try:
            yield
        finally:
            self.entered.depth -= 1
            self.pushes.append((threading.current_thread().name, self.entered.depth))

    def check(self) -> None:
        """What the driver answers in a thread where no context is current."""
        if not getattr(self.entered, "depth", 0):
            raise BackendError("CUDA: invalid device context")

    def pinned(self, shape: tuple[int, ...]) -> Float:
        """See `Cuda.pinned`."""
        self.check()
        self.pinned_arrays.append(np.zeros(shape, np.float32))
        return self.pinned_arrays[-1]

    def memory(self, size_bytes: int) -> int:
        """See `Cuda.memory`. It holds what was there before, as a device's does."""
        self.check()
        address = 0x1000 + len(self.arrays)
        self.arrays[address] = np.full(size_bytes // 4, np.nan, np.float32)
        return address

    def stream(self) -> NumpyStream:
        """See `Cuda.stream`."""
        self.check()
        self.streams.append(NumpyStream(self))
        return self.streams[-1]

    def close(self) -> None:
        """See `Cuda.close`."""
        for stream in self.streams:
            stream.queue.put(None)
            stream.thread.join()
        self.arrays.clear()
        self.pinned_arrays.clear()
        self.streams.clear()


class NumpyEvent:
    """See `Event`. A wait is for the record before it, not for one that comes later."""

    def __init__(self, cuda: NumpyCuda) -> None:
        self._cuda = cuda
        self.reached = threading.Event()

    def synchronize(self) -> None:
        """See `Event.synchronize`."""
        self._cuda.check()
        assert self.reached.wait(10)


class NumpyStream:
    """See `Stream`."""

    def __init__(self, cuda: NumpyCuda) -> None:
        self.cuda = cuda
        self.handle = id(self)
        self.queue: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self.thread = threading.Thread(target=self._work)
        self.capturing: list[Callable[[], object]] | None = None
        self.thread.start()

    def _work(self) -> None:
        while (work := self.queue.get()) is not None:
            time.sleep(random.random() * LONGEST_S)
            work()

    def put(self, work: Callable[[], object]) -> None:
        """Queue work, or take it into the graph that is captured."""
        self.cuda.check()
        if self.capturing is not None:
            self.capturing.append(work)
        else:
            self.queue.put(work)

    def upload(self, target: int, source: Float) -> None:
        """See `Stream.upload`."""
        array = self.cuda.arrays[target]
        self.put(lambda: array[: source.size].__setitem__(slice(None), source.ravel()))

    def download(self, target: Float, source: int) -> None:
        """See `Stream.download`."""
        array = self.cuda.arrays[source]
        self.put(lambda: target.ravel().__setitem__(slice(None), array[: target.size]))

    def record(self, event: NumpyEvent | None = None) -> NumpyEvent:
        """See `Stream.record`."""
        event = event or NumpyEvent(self.cuda)
        event.reached = reached = threading.Event()
        self.put(reached.set)
        return event

    def wait(self, event: NumpyEvent) -> None:
        """See `Stream.wait`."""
        reached = event.reached
        self.put(lambda: reached.wait(10))

    def captured(self, work: Callable[[], None]) -> Callable[[], None]:
        """See `Stream.captured`."""
        graph: list[Callable[[], object]] = []
        self.capturing = graph
        work()
        self.capturing = None
        return lambda: self.put(lambda: [step() for step in graph])


def squared_plus_one(cuda: NumpyCuda) -> Callable[[int, int, Stream], None]:
    """Work for a pipeline: what a network would be."""

    def compute(source: int, target: int, stream: Stream) -> None:
        assert isinstance(stream, NumpyStream)
        taken, answer = cuda.arrays[source], cuda.arrays[target]
        stream.put(lambda: np.copyto(answer, taken**2 + 1))

    return compute
