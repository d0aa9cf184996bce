"""Micro-Manager image stack files (``*_MMStack_*.ome.tif``), versions 1.4 and 2.0.

The truth is the index map that Micro-Manager writes beside the pixels (20 bytes per image: channel, slice, frame,
position, page offset), checked against the page chain: it says which images were taken, also after an acquisition was
stopped, and one file is enough. Its OME-XML is not followed, as it drags in the other positions; its summary gives
sizes, names and the plane spacing. A file that rolled over at 4 GiB goes on in ``..._1.ome.tif``, ``..._2.ome.tif``.

While Micro-Manager writes, the last page points into preallocated zeros: such a file is refused as unfinished.
Format: micro-manager.org, "Micro-Manager File Formats"; constants as written by ``MultipageTiffWriter.java``.
"""

from __future__ import annotations

import json
import os
import re
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from ssai3d_rt.errors import IncompleteError, InputError
from ssai3d_rt.imaging import mmsummary
from ssai3d_rt.imaging.layout import Plane, Position, SourcePool, require_plausible
from ssai3d_rt.imaging.openfile import shown
from ssai3d_rt.imaging.voxel import FoundVoxel, voxel_of_tags

if TYPE_CHECKING:
    from pathlib import Path

    from ssai3d_rt.imaging.tiff import TiffSource

INDEX_MAP_MAGIC = 3453623
SUMMARY_MAGIC = 2355492
ENTRY_BYTES = 20

_ROLLED = re.compile(r"(?P<base>.+)_(?P<number>[1-9]\d*)(?P<suffix>\.ome\.tiff?)", re.IGNORECASE)

Index = dict[tuple[int, int, int, int], int]
"""(position, frame, channel, slice) -> byte offset of the page."""


def mmstack_positions(source: TiffSource, pool: SourcePool) -> list[Position]:
    """Return the positions that lie in `source` and in the files that it rolled over into.

    Raises
    ------
    IncompleteError
        Micro-Manager has not finished the file.
    InputError
        Its summary or index map is damaged.
    """
    source = _first_of_set(source, pool)
    summary = _summary(source)
    index = _index_map(source)
    planes = _planes(source, index)
    for follower in _followers(source, index, pool):
        for key, plane in _planes(follower, _index_map(follower)).items():
            planes.setdefault(key, plane)
    channels = mmsummary.channel_names(summary)
    voxel = _voxel(source, summary)
    positions = []
    for number in sorted({key[0] for key in index}):
        own = {(t, c, z): plane for (p, t, c, z), plane in planes.items() if p == number}
        found = [max(axis) + 1 for axis in zip(*(key[1:] for key in index if key[0] == number), strict=True)]
        size = (
            max(mmsummary.declared(summary, "Frames", "time"), found[0]),
            max(mmsummary.declared(summary, "Channels", "channel"), found[1]),
            max(mmsummary.declared(summary, "Slices", "z"), found[2]),
        )
        require_plausible(size, source.path)
        positions.append(
            Position(
                index=number,
                name=_label(summary, number, source),
                path=source.path,
                kind="Micro-Manager image stack",
                size=size,
                channels=(channels + ("",) * size[1])[: size[1]],
                voxel=voxel,
                planes=own,
            )
        )
    return positions


def _summary(source: TiffSource) -> dict[str, Any]:
    magic, length = _integers(source, 32, 2)
    if magic != SUMMARY_MAGIC:
        raise InputError(f"{shown(source.path)}: its Micro-Manager summary is damaged")
    try:
        summary = json.loads(source.header(40, length).decode("utf-8", errors="replace"))
    except ValueError as exc:
        raise InputError(f"{shown(source.path)}: its Micro-Manager summary is damaged: {exc}") from exc
    if not isinstance(summary, dict):
        raise InputError(f"{shown(source.path)}: its Micro-Manager summary is damaged")
    return summary


def _index_map(source: TiffSource) -> Index:
    (offset,) = _integers(source, 12, 1)
    if offset == 0 or offset + 8 > source.size_bytes:
        raise IncompleteError(f"{shown(source.path)}: Micro-Manager has not written its index map; not finished")
    magic, count = _integers(source, offset, 2)
    if magic != INDEX_MAP_MAGIC:
        raise IncompleteError(f"{shown(source.path)}: its Micro-Manager index map is missing; not finished, or damaged")
    raw = source.header(offset + 8, min(count * ENTRY_BYTES, source.size_bytes))
    entries = np.frombuffer(raw[: len(raw) // ENTRY_BYTES * ENTRY_BYTES], f"{source.byteorder}u4").reshape(-1, 5)
    index = {
        (int(p), int(t), int(c), int(z)): int(at) for c, z, t, p, at in entries if at
    }  # a later entry replaces an earlier
    if not index:
        raise IncompleteError(f"{shown(source.path)}: its Micro-Manager index map is empty; no image was written")
    return index


def _planes(source: TiffSource, index: Index) -> dict[tuple[int, int, int, int], Plane]:
    """Return the planes of the index map whose page is in the file's page chain."""
    pages = {page.offset: page for page in source.pages}
    return {key: (source, pages[at]) for key, at in index.items() if at in pages}


def _first_of_set(source: TiffSource, pool: SourcePool) -> TiffSource:
    """Return the file that `source` is the continuation of, or itself."""
    match = _ROLLED.fullmatch(source.path.name)
    if match is None:
        return source
    base = source.path.with_name(match["base"] + match["suffix"])
    if not os.path.isfile(base):
        return source
    first = pool.open(base)
    return first if first.is_micro_manager and _continues(_index_map(first), _index_map(source)) else source


def _followers(source: TiffSource, index: Index, pool: SourcePool) -> list[TiffSource]:
    """Return the files that `source` rolled over into, in order."""
    stem, suffix = _split(source.path)
    followers: list[TiffSource] = []
    seen = dict(index)
    while os.path.isfile(path := source.path.with_name(f"{stem}_{len(followers) + 1}{suffix}")):
        follower = pool.open(path)
        if not follower.is_micro_manager or not _continues(seen, more := _index_map(follower)):
            break
        followers.append(follower)
        seen |= more
    return followers


def _continues(first: Index, second: Index) -> bool:
    """Whether the second file can be the continuation of the first: a position in common, no image in common.

    A position that is merely called like a continuation ("A" and "A_1") has none in common.
    """
    shared = {key[0] for key in first} & {key[0] for key in second}
    return bool(shared) and not first.keys() & second.keys()


def _split(path: Path) -> tuple[str, str]:
    lower = path.name.lower()
    for suffix in (".ome.tif", ".ome.tiff", ".tif", ".tiff"):
        if lower.endswith(suffix):
            return path.name[: -len(suffix)], path.name[-len(suffix) :]
    return path.stem, path.suffix


def _voxel(source: TiffSource, summary: dict[str, Any]) -> FoundVoxel:
    tags = voxel_of_tags({}, source.resolution)  # whole pixels per centimetre only: the last resort
    return mmsummary.voxel(summary, source.page_metadata).or_else(FoundVoxel(None, tags.y_um, tags.x_um))


def _label(summary: dict[str, Any], number: int, source: TiffSource) -> str:
    """Return the name of a position: from the summary's position list, else from the file's name."""
    if label := mmsummary.position_label(summary, number):
        return label
    name = mmsummary.plain(source.page_metadata.get("PositionName"))
    if isinstance(name, str) and name and mmsummary.plain(source.page_metadata.get("PositionIndex")) == number:
        return name
    stem, _ = _split(source.path)
    _, found, after = stem.partition("_MMStack_")
    return after if found and mmsummary.declared(summary, "Positions", "position") > 1 else ""


def _integers(source: TiffSource, at: int, count: int) -> tuple[int, ...]:
    raw = source.header(at, 4 * count)
    if len(raw) < 4 * count:
        raise IncompleteError(f"{shown(source.path)}: cut off at byte {at + len(raw)}")
    return struct.unpack(f"{source.byteorder}{count}I", raw)
