"""`Arrivals`: the planes of one stack between the thread that brings them and the one that learns from them.

Adding a plane copies it and returns at once, whatever the other side does: an acquisition is never held up. It does not
know what the planes are for.

>>> import numpy as np
>>> arrivals = Arrivals(Geometry((3, 4, 4), voxel_um=(0.4, 0.1, 0.1)))
>>> arrivals.add(np.zeros((4, 4), np.uint16))
>>> arrivals.count, arrivals.wait(1), arrivals.stack().data.shape
(1, 1, (1, 4, 4))
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ssai3d_rt.errors import IncompleteError, InputError
from ssai3d_rt.imaging.stack import DTYPES, Array, Stack

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Geometry:
    """What is known of a stack before it is there.

    Parameters
    ----------
    shape
        ``(Z, Y, X)``; Z is None where nobody knows how many planes there will be.
    voxel_um
        ``(z, y, x)`` in micrometres.
    channel, position, time, source
        As for `Stack`.
    """

    shape: tuple[int | None, int, int]
    voxel_um: tuple[float, float, float]
    channel: str = ""
    position: str = ""
    time: int = 0
    source: Path | None = None


class StoppedError(Exception):
    """Nobody waits for the result any more."""


class Arrivals:
    """The planes so far, of a stack that is arriving.

    Parameters
    ----------
    geometry
        Its voxel size is checked at once.

    Raises
    ------
    InputError
        A shape that no stack has.
    VoxelSizeError
        See `Stack`.
    """

    def __init__(self, geometry: Geometry) -> None:
        depth, rows, columns = geometry.shape
        if min(rows, columns) < 1 or (depth is not None and depth < 1):
            raise InputError(f"a stack has axes (Z, Y, X), got shape {geometry.shape}")
        Stack(np.zeros((1, 1, 1), np.uint8), geometry.voxel_um)
        self.geometry = geometry
        self.ended_s: float | None = None
        """`time.monotonic` when the last plane had arrived."""
        self._planes: list[Array] = []
        self._whole: Array | None = None
        self._stopped = False
        self._changed = threading.Condition()

    @property
    def count(self) -> int:
        """Planes so far."""
        return len(self._planes)

    @property
    def ended(self) -> bool:
        """Whether no more planes come."""
        return self.ended_s is not None

    def add(self, plane: Array) -> None:
        """Take the next plane, ``(Y, X)`` uint8, uint16 or float32 counts; it is copied.

        Raises
        ------
        InputError
            It is of another size or type than the stack, not finite, or one too many.
        """
        depth, rows, columns = self.geometry.shape
        size, number = (rows, columns), len(self._planes)
        if plane.shape != size:
            raise InputError(f"plane {number} has shape {plane.shape}, the stack's planes {size}")
        if plane.dtype.name not in DTYPES:
            raise InputError(f"plane {number} has sample type {plane.dtype}; convert to {', '.join(DTYPES)}")
        if number and plane.dtype != self._planes[0].dtype:
            raise InputError(f"plane {number} has sample type {plane.dtype}, the others {self._planes[0].dtype}")
        if plane.dtype.kind == "f" and not np.isfinite(plane).all():
            raise InputError(f"plane {number} has NaN or infinite samples")
        if self.ended or (depth is not None and number >= depth):
            raise InputError(f"plane {number} comes after the end of a stack of {number} planes")
        if depth is not None and self._whole is None:
            self._whole = np.empty((depth, *size), plane.dtype)
        if self._whole is None:
            kept: Array = plane.copy()
        else:
            kept = self._whole[number]
            kept[...] = plane
        with self._changed:
            self._planes.append(kept)
            self._changed.notify_all()

    def end(self, *, stopped_early: bool = False) -> None:
        """Say that no more planes come.

        Raises
        ------
        IncompleteError
            Fewer came than the geometry declares, and not because the acquisition was stopped.
        """
        declared = self.geometry.shape[0]
        if declared is not None and self.count < declared and not stopped_early:
            raise IncompleteError(f"the stack has {declared} planes, and only {self.count} of them came")
        with self._changed:
            if self.ended_s is None:
                self.ended_s = time.monotonic()
            self._changed.notify_all()

    def stop(self) -> None:
        """Let all who wait, and all who call `check`, have `StoppedError`."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def check(self) -> None:
        """Raise `StoppedError` after `stop`."""
        if self._stopped:
            raise StoppedError

    def wait(self, count: int) -> int:
        """Wait until there are `count` planes or no more come; returns how many there are."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._planes) >= count or self.ended or self._stopped)
        self.check()
        return len(self._planes)

    def wait_for_end(self) -> None:
        """Wait until no more planes come."""
        with self._changed:
            self._changed.wait_for(lambda: self.ended or self._stopped)
        self.check()

    def stack(self, count: int | None = None) -> Stack:
        """Return the first `count` planes, all so far by default."""
        planes = self._planes[:count]
        data = np.stack(planes) if self._whole is None else self._whole[: len(planes)]
        known = self.geometry
        return Stack(data, known.voxel_um, known.channel, known.time, known.position, known.source)
