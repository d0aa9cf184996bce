"""Write stacks as OME-TIFF, streaming, and prove that what was written can be read back.

One file holds one position: times x channels, each a stack, axes TCZYX. Voxel size and channel names go where every
OME reader looks; where the file came from (its provenance) goes into a MapAnnotation that tifffile and Bio-Formats
keep. Only one stack is in memory at a time: stacks may come from a generator. Atomic publishing (temporary name, fsync,
rename) is the runtime's; here an existing file is never overwritten, and a failed write leaves nothing behind.

>>> import numpy as np, tempfile
>>> from pathlib import Path
>>> from ssai3d_rt.imaging.stack import Stack
>>> path = Path(tempfile.mkdtemp()) / "iso.ome.tif"
>>> stack = Stack(np.ones((9, 16, 16), np.uint16), (0.1, 0.1, 0.1), channel="DAPI")
>>> written = write_ome_tiff(path, stack, {"bundle": "cells.ssai3d", "tile": 256})
>>> verify_ome_tiff(path, written)
>>> read_provenance(path)
{'bundle': 'cells.ssai3d', 'tile': 256}
"""

from __future__ import annotations

import hashlib
import json
import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import tifffile

from ssai3d_rt.errors import InputError, Ssai3dError, StorageError
from ssai3d_rt.imaging.ome import is_ome, map_annotation
from ssai3d_rt.imaging.openfile import shown
from ssai3d_rt.imaging.read import open_acquisition
from ssai3d_rt.imaging.stack import Stack
from ssai3d_rt.imaging.tiff import TiffSource

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Mapping

    from ssai3d_rt.imaging.stack import Array

PROVENANCE = "ssai3d-rt/provenance"
"""Namespace of the annotation that holds the provenance."""

BIGTIFF_FROM_BYTES = 2**32 - 2**26
"""Uncompressed size from which a file is BigTIFF: 64 MiB below the 4 GiB that classic TIFF can address."""


ZLIB_LEVEL = 1
"""Fast before small: on 16 bit stacks level 6 took 3 to 6 times longer and saved at most a tenth."""


@dataclass(frozen=True, slots=True)
class Written:
    """What was written, to be compared with what is read back.

    Parameters
    ----------
    shape
        ``(T, C, Z, Y, X)``.
    dtype
        Name of the sample type.
    voxel_um
        ``(z, y, x)`` in micrometres.
    channels
        Channel names.
    sha256
        Hash of each stack's samples (little-endian, C order), by time, then channel.
    provenance
        As given.
    """

    shape: tuple[int, int, int, int, int]
    dtype: str
    voxel_um: tuple[float, float, float]
    channels: tuple[str, ...]
    sha256: tuple[str, ...]
    provenance: dict[str, Any]


def write_ome_tiff(
    path: str | os.PathLike[str],
    stacks: Stack | Iterable[Stack],
    provenance: Mapping[str, Any] | None = None,
    *,
    times: int | None = None,
    channels: Sequence[str] | None = None,
) -> Written:
    """Write the stacks of one position to a new OME-TIFF.

    Parameters
    ----------
    path
        A file that does not exist yet, by custom ``*.ome.tif``.
    stacks
        One stack, or all of a position by time, then channel; equal in shape, dtype and voxel size. Anything but a
        stack, list or tuple is consumed lazily and needs `times` or `channels`.
    provenance
        Where the data come from: any JSON values by name.
    times
        Number of time points; follows from the number of stacks where that is known.
    channels
        Channel names; follow from the stacks where those are known.

    Raises
    ------
    InputError
        The file exists, or the stacks do not belong together, or are too few.
    StorageError
        It could not be written (disk full, no permission).
    """
    path = Path(path)
    stacks = [stacks] if isinstance(stacks, Stack) else stacks
    if isinstance(stacks, Sequence):
        channels = channels if channels is not None else _channels_of(stacks, times)
        times = times if times is not None else len(stacks) // max(1, len(channels))
        if not stacks or len(stacks) != times * len(channels):
            raise InputError(f"{shown(path)}: {len(stacks)} stacks are not {times} times x {len(channels)} channels")
    names = tuple(channels if channels is not None else ("",))
    source = iter(stacks)
    first = next(source, None)
    if first is None:
        raise InputError(f"{shown(path)}: there is no stack to write")
    kept = dict(provenance or {})
    metadata, voxel_um = _metadata(first, names, kept), first.voxel_um
    stream = _Stream(path, first, source, times if times is not None else 1, names)
    del first  # the stream lets go of each stack before it asks for the next
    try:
        file = open(path, "xb+")  # noqa: SIM115
    except FileExistsError as exc:
        raise InputError(f"{shown(path)}: exists already; give another name or remove it") from exc
    except OSError as exc:
        raise StorageError(f"{shown(path)}: cannot be created: {exc.strerror or exc}") from exc
    try:
        with file:
            _write(file, stream, metadata)
            stream.require_end()
            file.flush()
    except BaseException as exc:
        path.unlink(missing_ok=True)
        if isinstance(exc, OSError) and not isinstance(exc, Ssai3dError):
            raise StorageError(f"{shown(path)}: could not be written: {exc.strerror or exc}") from exc
        raise
    return Written(stream.shape, stream.dtype.name, voxel_um, names, tuple(stream.hashes), kept)


def verify_ome_tiff(path: str | os.PathLike[str], expected: Written) -> None:
    """Read a file back, every plane of it, and compare with what was written.

    Raises
    ------
    StorageError
        Pixels, sizes, names or provenance differ, or it cannot be read.
    """
    path = Path(path)
    try:
        with open_acquisition(path) as acquisition:
            for number, key in enumerate(acquisition.keys):
                stack = acquisition.read(key)
                _compare(path, "number of stacks", len(acquisition.keys), len(expected.sha256))
                _compare(path, "shape", stack.data.shape, expected.shape[2:])
                _compare(path, "sample type", stack.data.dtype.name, expected.dtype)
                _compare(path, "channel", stack.channel, expected.channels[number % len(expected.channels)])
                if not np.allclose(stack.voxel_um, expected.voxel_um, rtol=1e-6, atol=0):
                    raise StorageError(f"{shown(path)}: voxel size read back as {stack.voxel_um}")
                _compare(path, f"pixels of {key}", _sha256(stack.data), expected.sha256[number])
        _compare(path, "provenance", read_provenance(path), json.loads(json.dumps(expected.provenance)))
    except InputError as exc:
        raise StorageError(f"read back after writing: {exc}") from exc


def read_provenance(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the provenance that `write_ome_tiff` stored; empty where the file holds none.

    Raises
    ------
    InputError
        It is not a readable TIFF.
    """
    with TiffSource(Path(path)) as source:
        if not is_ome(source.description):
            return {}
        pairs = map_annotation(source.description, source.path, PROVENANCE) or {}
    return {key: _decoded(text) for key, text in pairs.items()}


class _Stream:
    """Planes in order, hashed as they pass, refusing stacks that do not belong together."""

    def __init__(self, path: Path, first: Stack, rest: Iterator[Stack], times: int, channels: tuple[str, ...]) -> None:
        depth, height, width = first.data.shape
        self.shape = (times, len(channels), depth, height, width)
        self.dtype = first.data.dtype
        self.hashes: list[str] = []
        self._path = path
        self._next: Stack | None = first
        self._look = _look(first)
        self._rest = rest
        self._channels = channels

    def __iter__(self) -> Iterator[Array]:
        count = self.shape[0] * self.shape[1]
        for number in range(count):
            stack = self._next if number == 0 else next(self._rest, None)
            self._next = None
            if stack is None:
                raise InputError(f"{shown(self._path)}: {number} stacks came, {count} were announced")
            self._require_alike(stack, number)
            running = hashlib.sha256()
            for z, plane in enumerate(stack.data):
                plain = np.array(plane)  # a copy: tifffile keeps some planes, and must not keep the stack with them
                running.update(_little_endian(plain))
                if z == len(stack.data) - 1:  # here, as nobody asks for more after the last plane
                    self.hashes.append(running.hexdigest())
                yield plain
            del stack, plane, plain  # before the next one is made

    def require_end(self) -> None:
        """Refuse more stacks than were announced."""
        if next(self._rest, None) is not None:
            count = self.shape[0] * self.shape[1]
            raise InputError(f"{shown(self._path)}: more stacks came than the {count} that were announced")

    def _require_alike(self, stack: Stack, number: int) -> None:
        if _look(stack) != self._look:
            raise InputError(f"{shown(self._path)}: stack {number} is {_look(stack)}, the first one {self._look}")
        wanted = self._channels[number % len(self._channels)]
        if stack.channel != wanted:
            raise InputError(
                f"{shown(self._path)}: stack {number} is of channel {stack.channel!r}, expected {wanted!r} "
                "(order: time, then channel)"
            )


def _look(stack: Stack) -> tuple[tuple[int, ...], str, tuple[float, float, float]]:
    return stack.data.shape, stack.data.dtype.name, stack.voxel_um


def _write(file: Any, stream: _Stream, metadata: dict[str, Any]) -> None:
    nbytes = math.prod(stream.shape) * stream.dtype.itemsize
    with tifffile.TiffWriter(file, ome=True, bigtiff=nbytes >= BIGTIFF_FROM_BYTES) as writer:
        writer.write(
            iter(stream),
            shape=stream.shape,
            dtype=stream.dtype,
            photometric="minisblack",
            compression="zlib",
            compressionargs={"level": ZLIB_LEVEL},
            predictor=stream.dtype.kind == "u",
            maxworkers=1,  # more would read planes ahead, and take the acquisition's cores
            metadata=metadata,
        )


def _metadata(stack: Stack, channels: tuple[str, ...], provenance: dict[str, Any]) -> dict[str, Any]:
    z_um, y_um, x_um = stack.voxel_um
    metadata: dict[str, Any] = {"axes": "TCZYX"}
    for axis, size_um in (("X", x_um), ("Y", y_um), ("Z", z_um)):
        metadata |= {f"PhysicalSize{axis}": size_um, f"PhysicalSize{axis}Unit": "µm"}
    if any(channels):
        metadata["Channel"] = {"Name": list(channels)}
    if stack.position:
        metadata["Name"] = stack.position
    if provenance:
        pairs = {key: _encoded(value) for key, value in provenance.items()}
        metadata["MapAnnotation"] = {"Namespace": PROVENANCE, "Value": pairs}
    # The same provenance gives the same file, to the bit. What has none is told apart at random, not by this machine's
    # network address, which would be published with it.
    told = uuid.uuid5(uuid.NAMESPACE_URL, PROVENANCE + json.dumps(metadata, sort_keys=True))
    return metadata | {"UUID": str(told if provenance else uuid.uuid4())}


def _channels_of(stacks: Sequence[Stack], times: int | None) -> tuple[str, ...]:
    """Return the channel names of one time point: those of the stacks until the first name or time comes again."""
    if times is not None:
        return tuple(stack.channel for stack in stacks[: len(stacks) // max(1, times)])
    return tuple(stack.channel for stack in stacks if stack.time == stacks[0].time)


def _encoded(value: Any) -> str:
    """Return a value as text that `_decoded` turns back: plain strings stay readable, the rest is JSON."""
    if isinstance(value, str):
        try:
            json.loads(value)
        except ValueError:
            return value
    return json.dumps(value, ensure_ascii=False)


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _little_endian(data: Array) -> memoryview:
    little: npt.NDArray[Any] = data.astype(data.dtype.newbyteorder("<"), copy=False)
    return little.data.cast("B")


def _sha256(data: Array) -> str:
    return hashlib.sha256(_little_endian(np.ascontiguousarray(data))).hexdigest()


def _compare(path: Path, what: str, found: object, expected: object) -> None:
    if found != expected:
        raise StorageError(f"{shown(path)}: {what} read back as {found}, written was {expected}")
