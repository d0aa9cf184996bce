"""An acquisition at a fixed rate: FOLDER PERIOD_S FRAMES SIDE_PX TIMES.

Writes stacks of FRAMES images, as ImageJ files through tifffile and without any sync, one image every PERIOD_S, until
it is ended. TIMES gets three 64-bit floats for each image: when it was due and when it was handed over and written,
seconds of the monotonic clock. A camera that cannot hand over its image keeps it: nothing is left out here, whoever
reads the times decides what a camera with so many buffers would have lost.
"""

from __future__ import annotations

import contextlib
import os
import struct
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import tifffile

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt


class _Camera:
    def __init__(self, period_s: float, frames: int, side: int, times: BinaryIO) -> None:
        self._period_s, self._frames, self._times = period_s, frames, times
        self._image = np.random.default_rng(0).integers(1, 4000, (side, side), dtype=np.uint16)
        self._due = time.monotonic() + period_s
        self.shape = (frames, side, side)

    def stack(self) -> Iterator[npt.NDArray[np.uint16]]:
        """Give the images of a stack when they are due; the next is asked for when one was written."""
        for _ in range(self._frames):
            time.sleep(max(0.0, self._due - time.monotonic()))
            began = time.monotonic()
            yield self._image
            self._times.write(struct.pack("<3d", self._due, began, time.monotonic()))
            self._due += self._period_s


def main() -> None:
    """Acquire until ended."""
    folder, period_s, frames, side, times = sys.argv[1:]
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, 0)  # as a microscope's program runs
    with open(times, "wb", buffering=0) as file:
        camera = _Camera(float(period_s), int(frames), int(side), file)
        for number in range(1_000_000):
            path = Path(folder, f"run{number:05d}.tif")
            notes = {"axes": "ZYX", "spacing": 0.2, "unit": "um"}
            shape = {"shape": camera.shape, "dtype": np.uint16, "resolution": (10, 10), "metadata": notes}
            tifffile.imwrite(path, camera.stack(), imagej=True, **shape)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
