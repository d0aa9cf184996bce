"""Tiles through the device in batches: while one is computed, the next is copied in and the last copied out.

Two slots of buffers take turns. Three streams, for copying in, computing and copying out, are joined by events; the
caller's thread fills a slot again only after it emptied it. Every batch has the same number of tiles, the last one is
filled up: what was proven on the golden tiles is what runs, whatever number of tiles comes. It does not know what is
computed, nor whose CUDA it is.

```
slot 0   in  compute  out   in  compute  out
slot 1       in  compute  out   in  compute  out
```
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ssai3d_rt.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ssai3d_rt.runtime.cuda import Cuda, Event, Stream

Float = npt.NDArray[np.float32]


@dataclass(slots=True)
class _Slot:
    """Buffers of one batch, the events of the batch that is in them, and where its answer goes."""

    host_in: Float
    host_out: Float
    device_in: int
    device_out: int
    compute: Callable[[], None]
    copied_in: Event | None = None
    computed: Event | None = None
    copied_out: Event | None = None
    answer: Float | None = None


class Pipeline:
    """Make it, `run` it and drop it inside `Cuda.current`, in one thread at a time.

    Parameters
    ----------
    cuda
        Gives memory and streams, and frees them.
    shape
        Of a batch of float32 tiles, ``(N, C, T, T)``; the answer has the same.
    compute
        Queues the work for one batch: ``compute(source, target, stream)``, device addresses and a stream.
    slots
        Batches at once.
    """

    def __init__(
        self, cuda: Cuda, shape: tuple[int, int, int, int], compute: Callable[[int, int, Stream], None], slots: int = 2
    ) -> None:
        self._shape = shape
        self._copy_in, self._compute, self._copy_out = cuda.stream(), cuda.stream(), cuda.stream()
        self._slots = []
        for _ in range(slots):
            source, target = (cuda.memory(math.prod(shape) * 4) for _ in range(2))
            work = partial(compute, source, target, self._compute)
            self._slots.append(_Slot(cuda.pinned(shape), cuda.pinned(shape), source, target, work))

    def warm_up(self, *, graphs: bool = False) -> None:
        """Run an empty batch through each slot, since the first one is slow; then, where asked, capture CUDA graphs.

        Raises
        ------
        BackendError
            The work fails, or cannot be captured.
        """
        for slot in self._slots:
            self._queue(slot, np.zeros(self._shape, np.float32), np.empty(self._shape, np.float32))
        for slot in self._slots:
            self._collect(slot)
        if graphs:
            for slot in self._slots:
                slot.compute = self._compute.captured(slot.compute)

    def run(self, tiles: Float) -> Float:
        """Run any number of tiles, ``(M, C, T, T)`` float32; the answer is the caller's to keep.

        Raises
        ------
        BackendError
            The tiles have another shape, or the work fails; the pipeline is empty then.
        """
        if tiles.shape[1:] != self._shape[1:]:
            raise BackendError(f"tiles of shape {tiles.shape[1:]} were given to an engine for {self._shape[1:]}")
        answers = np.empty(tiles.shape, np.float32)
        batch = self._shape[0]
        used: list[_Slot] = []
        try:
            for number, at in enumerate(range(0, len(tiles), batch)):
                slot = self._slots[number % len(self._slots)]
                if slot.answer is not None:
                    used.remove(slot)
                    self._collect(slot)
                used.append(slot)
                self._queue(slot, tiles[at : at + batch], answers[at : at + batch])
            for slot in used:
                self._collect(slot)
        except BaseException:
            self._drain()
            raise
        return answers

    def _queue(self, slot: _Slot, tiles: Float, answer: Float) -> None:
        """Queue one batch; the slot must be empty."""
        slot.answer = answer
        slot.host_in[: len(tiles)] = tiles
        slot.host_in[len(tiles) :] = 0
        self._copy_in.upload(slot.device_in, slot.host_in)
        slot.copied_in = self._copy_in.record(slot.copied_in)
        self._compute.wait(slot.copied_in)
        slot.compute()
        slot.computed = self._compute.record(slot.computed)
        self._copy_out.wait(slot.computed)
        self._copy_out.download(slot.host_out, slot.device_out)
        slot.copied_out = self._copy_out.record(slot.copied_out)

    def _collect(self, slot: _Slot) -> None:
        """Wait for the slot's batch and take its answer; everything of the slot is free afterwards."""
        if slot.copied_out is not None and slot.answer is not None:
            slot.copied_out.synchronize()
            slot.answer[:] = slot.host_out[: len(slot.answer)]
        slot.answer = None

    def _drain(self) -> None:
        """Wait for all that was queued, so that no buffer is still in use, and forget it."""
        for stream in (self._copy_in, self._compute, self._copy_out):
            with contextlib.suppress(BackendError):
                stream.record().synchronize()
        for slot in self._slots:
            slot.answer = None
