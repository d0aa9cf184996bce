"""Which planes of an OME-Zarr image are there, told by its chunks' files, without decoding one.

zarr reads a chunk that is not there as zeros, without a word. Here a plane is there only if each of its chunks is: a
regular file, not empty, of the right size where it is stored plainly; or, in a shard, an entry of its index whose bytes
lie inside the file.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ssai3d_rt.errors import InputError
from ssai3d_rt.imaging.folder import members, open_member
from ssai3d_rt.imaging.openfile import shown
from ssai3d_rt.imaging.tiff import BOMB_BYTES, BOMB_RATIO

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy.typing as npt

    from ssai3d_rt.imaging.zarrmeta import ZarrArray, ZarrImage

_ABSENT = 2**64 - 1
_SPECIAL = -1


@dataclass(slots=True)
class Present:
    """What is there of one image.

    `planes` has the shape of the axes before Y and X; `first_gap` names the first chunk that is missing or not whole,
    empty where all are.
    """

    planes: npt.NDArray[np.bool_]
    first_gap: str = ""
    _lead: int = field(init=False)

    def __post_init__(self) -> None:
        self._lead = self.planes.ndim

    def lose(self, start: tuple[int, ...], shape: tuple[int, ...], why: str) -> None:
        """Take out the planes that a chunk (its first element, its shape) has a part of."""
        self.planes[tuple(slice(s, s + n) for s, n in zip(start[: self._lead], shape[: self._lead], strict=True))] = (
            False
        )
        self.first_gap = self.first_gap or why


def list_files(folder: Path) -> dict[str, int]:
    """Return the bytes of each file of a data set, by its path inside.

    Raises
    ------
    InputError
        It holds a symbolic link or a special file.
    OSError
        It cannot be read.
    """
    files = {member.name: member.size if member.regular else _SPECIAL for member in members(folder)}
    for name, size in files.items():
        if size == _SPECIAL:
            raise InputError(f"it holds {shown(name)}, a link or special file; inside a data set they are refused")
    return files


def present(folder: Path, image: ZarrImage, files: Mapping[str, int]) -> Present:
    """Say which planes of an image are there.

    Parameters
    ----------
    folder, files
        The data set, and what `list_files` found in it.
    image
        One of its images.

    Raises
    ------
    InputError
        A chunk claims far more than it can hold.
    OSError
        A shard cannot be read.
    """
    array = image.array
    found = Present(np.ones(array.shape[:-2], bool))
    for index, key in array.demanded():
        start = tuple(i * n for i, n in zip(index, array.chunks, strict=True))
        size = files.get(key)
        if size is None:
            found.lose(start, array.chunks, f"chunk {key} is not there")
        elif size == 0:
            found.lose(start, array.chunks, f"chunk {key} is empty")
        elif array.chunk_bytes > BOMB_BYTES and array.chunk_bytes > BOMB_RATIO * size:
            raise InputError(f"chunk {key} claims {array.chunk_bytes} bytes from {size}; refused as implausible")
        elif array.sharding is not None:
            _shard(folder / key, key, size, start, array, found)
        elif array.plain and size != array.chunk_bytes:
            found.lose(start, array.chunks, f"chunk {key} has {size} of {array.chunk_bytes} bytes")
    return found


def _shard(path: Path, key: str, size: int, start: tuple[int, ...], array: ZarrArray, found: Present) -> None:
    """Take out the planes of which a shard lacks a chunk."""
    sharding = array.sharding
    if sharding is None:
        return
    counts = tuple(o // i for o, i in zip(array.chunks, sharding.shape, strict=True))
    length = 16 * math.prod(counts) + (4 if sharding.checksum else 0)
    if size < length:
        found.lose(start, array.chunks, f"shard {key} has {size} bytes, and its index alone {length}")
        return
    with open_member(path) as file:
        file.seek(size - length if sharding.index_at_end else 0)
        raw = file.read(length)
    if len(raw) < length:
        found.lose(start, array.chunks, f"shard {key} is cut off")
        return
    index = np.frombuffer(raw[: 16 * math.prod(counts)], "<u8").reshape(*counts, 2)
    for inner in itertools.product(*(range(count) for count in counts)):
        at = tuple(s + i * n for s, i, n in zip(start, inner, sharding.shape, strict=True))
        if any(a >= n for a, n in zip(at, array.shape, strict=True)):
            continue  # beyond the edge of the image
        offset, count = (int(value) for value in index[inner])
        if offset == _ABSENT or count in (0, _ABSENT):
            found.lose(at, sharding.shape, f"chunk {'/'.join(map(str, inner))} of shard {key} is not there")
        elif offset + count > size:
            found.lose(at, sharding.shape, f"chunk {'/'.join(map(str, inner))} of shard {key} is cut off")
