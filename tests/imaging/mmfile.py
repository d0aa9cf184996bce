"""Write small Micro-Manager image stack files as ``MultipageTiffWriter`` lays them out.

Micro-Manager itself (Java) does not run in a test; real 1.4 files are tested where they are there. This writes what
they do not show: 2.0 summaries, several positions in one file, files that rolled over, and unfinished ones.
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    Plane = npt.NDArray[np.uint16]

SPARE_ENTRIES = 7
"""Entries of the index map that stay zero, as space is reserved for more images than are taken."""


def write_mmstack(
    path: Path,
    planes: Mapping[tuple[int, int, int, int], Plane],
    summary: Mapping[str, Any],
    *,
    finished: bool = True,
    omit_pages: int = 0,
) -> None:
    """Write `planes`, by (position, frame, channel, slice); the last `omit_pages` are only in the index."""
    text = json.dumps(summary).encode()
    index_at = 40 + len(text)
    offset = index_at + 8 + 20 * (len(planes) + SPARE_ENTRIES)
    head = struct.pack("<2sHIII", b"II", 42, offset, 54773648, index_at) + bytes(16)
    head += struct.pack("<II", 2355492, len(text)) + text
    entries, pages = b"", b""
    for number, ((position, frame, channel, z), plane) in enumerate(planes.items()):
        entries += struct.pack("<5I", channel, z, frame, position, offset)
        metadata = json.dumps({"PixelSizeUm": 0.25, "PositionIndex": position}).encode() + b"\0"
        tags = 10
        after = offset + 2 + 12 * tags + 4
        following = after + len(metadata) + plane.nbytes
        last = number == len(planes) - 1 - omit_pages
        height, width = plane.shape
        values = [
            (256, 4, 1, width),
            (257, 4, 1, height),
            (258, 3, 1, 16),
            (259, 3, 1, 1),
            (262, 3, 1, 1),
            (273, 4, 1, after + len(metadata)),
            (277, 3, 1, 1),
            (278, 4, 1, height),
            (279, 4, 1, plane.nbytes),
            (51123, 2, len(metadata), after),
        ]
        page = struct.pack("<H", tags) + b"".join(struct.pack("<HHII", *value) for value in values)
        page += struct.pack("<I", 0 if last and finished else following) + metadata + plane.astype("<u2").tobytes()
        pages += page
        offset = following
        if last:
            omitted = len(planes) - 1 - number
            entries += b"".join(
                struct.pack("<5I", c, k, t, p, offset + i) for i, (p, t, c, k) in enumerate(list(planes)[number + 1 :])
            )
            assert omitted == omit_pages
            break
    index = struct.pack("<II", 3453623, len(planes) + (0 if finished else SPARE_ENTRIES)) + entries
    index += bytes(20 * SPARE_ENTRIES)
    path.write_bytes(head + index + pages + bytes(8 if finished else 4096))
