"""Is a TIFF file a finished stack: plain, ImageJ, OME (one file or several) or a Micro-Manager image stack.

The chain of image file directories ends with 0, every strip and tile lies inside the file, and there are as many planes
as the file declares (OME-XML over several files, ImageJ, Micro-Manager's index map). No pixel is decoded, nothing is
mapped.
"""

from __future__ import annotations

import os
import re
import struct
from dataclasses import replace
from typing import TYPE_CHECKING, BinaryIO
from xml.etree.ElementTree import ParseError

from ssai3d_rt.errors import InputError
from ssai3d_rt.imaging.folder import is_plane_file
from ssai3d_rt.runtime.formats.declared import imagej_planes, is_ome, ome_link, ome_planes, shaped_values
from ssai3d_rt.runtime.formats.tiffwalk import (
    MAX_DESCRIPTION_BYTES,
    Chain,
    End,
    Layout,
    NotTiffError,
    layout,
    walk,
)
from ssai3d_rt.runtime.formats.verdict import Completeness, Judgement, broken, growing, not_ours
from ssai3d_rt.runtime.source import open_source

if TYPE_CHECKING:
    from pathlib import Path

MAX_SIDE = 65_536

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MM_INDEX, _MM_SUMMARY, _MM_INDEX_MAP = 54_773_648, 2_355_492, 3_453_623
_MM_INDEX_ENTRY_BYTES = 20


def judge_tiff(file: BinaryIO, size: int, path: Path) -> Completeness:
    """Judge an opened TIFF file of `size` bytes by its structure."""
    header = file.read(64)
    if not header.strip(b"\0"):
        return growing("it is empty" if size == 0 else "its header is not written yet")
    try:
        tiff = layout(header)
    except NotTiffError:
        return broken(f"it is not a TIFF file (it begins with {header[:8]!r})")
    except struct.error:
        whole = header[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")[: len(header)]
        return (
            growing(f"it holds only {size} bytes of its header")
            if whole or size < 4
            else broken("it is not a TIFF file")
        )
    chain = walk(file, size, tiff)
    kind = _format(header, tiff, chain)
    fault = structure(chain, size, kind)
    if fault is not None:
        return fault
    if kind == "micro-manager":
        unfinished = _micro_manager(file, size, header, chain, path)
        if unfinished is not None:
            return unfinished
    first = chain.descriptions[0] if chain.descriptions else b""
    if is_ome(first):
        return _ome(first, chain, path, kind)
    if path.name.lower().endswith((".ome.tif", ".ome.tiff")):
        return growing("its OME-XML is not written yet", None, len(chain.pages), kind)
    return _contiguous(first, chain, size, path)


def _format(header: bytes, tiff: Layout, chain: Chain) -> str:
    if len(header) >= 36 and struct.unpack_from(tiff.order + "I", header, 32) == (_MM_SUMMARY,):
        return "micro-manager"
    first = chain.descriptions[0] if chain.descriptions else b""
    if is_ome(first):
        return "ome"
    return "imagej" if imagej_planes(first) is not None else "plain"


def structure(chain: Chain, size: int, kind: str) -> Completeness | None:
    """Say what is wrong with the directories and the places of their data; None where nothing is."""
    found = len(chain.pages)
    if chain.end is End.CYCLIC:
        return broken("its planes form a circle", found, kind)
    if chain.end is End.TOO_MANY:
        return broken(f"it has more than {found} planes", found, kind)
    for index, page in enumerate(chain.pages):
        if not (0 < page.width <= MAX_SIDE and 0 < page.length <= MAX_SIDE):
            return broken(f"plane {index} claims {page.width} x {page.length} pixels", index, kind)
        if page.unwritten:
            return growing(f"the data of plane {index} are not written yet", None, index, kind)
        if page.data_end > size:
            return growing(
                f"the data of plane {index} end at byte {page.data_end}, the file at {size}", None, index, kind
            )
        if page.compression == 1 and page.data_bytes < page.plane_bytes:
            return broken(f"plane {index} has {page.data_bytes} bytes for {page.plane_bytes}", index, kind)
    if chain.end is not End.FINISHED:
        return growing(f"plane {found}, or what it points to, {chain.end.value} ({size} bytes)", None, found, kind)
    return None


def _micro_manager(file: BinaryIO, size: int, header: bytes, chain: Chain, path: Path) -> Completeness | None:
    """Say what shows that Micro-Manager still writes an image stack file; None where nothing does.

    It allocates the whole file at its start, writes the index map and the description of the first plane when it closes
    the file, and closes `_metadata.txt` just before.
    """
    found, kind = len(chain.pages), "micro-manager"
    order = "<" if header[:2] == b"II" else ">"
    mark, place = struct.unpack_from(order + "II", header, 8)
    if not chain.descriptions or not chain.descriptions[0]:
        return growing("Micro-Manager has not closed it: no description in the first plane", None, found, kind)
    if mark != _MM_INDEX or place == 0 or place + 8 > size:
        return growing("Micro-Manager has not closed it: no index map", None, found, kind)
    file.seek(place)
    begins, entries = struct.unpack(order + "II", file.read(8))
    if begins != _MM_INDEX_MAP or place + 8 + entries * _MM_INDEX_ENTRY_BYTES > size:
        return growing("Micro-Manager has not closed it: the index map is not whole", None, found, kind)
    if entries > found:
        return growing(f"Micro-Manager's index map lists {entries} planes, {found} are there", entries, found, kind)
    notes = path.with_name(re.sub(r"(\.ome)?\.tiff?$", "", path.name, flags=re.IGNORECASE) + "_metadata.txt")
    if notes.is_file():
        with open_source(notes) as text:
            text.seek(-min(64, os.fstat(text.fileno()).st_size), os.SEEK_END)
            tail = b"".join(text.read(64).split())
        if not tail.endswith(b"}}"):
            return growing(f"Micro-Manager has not closed {notes.name}", entries, found, kind)
    return None


def _ome(description: bytes, chain: Chain, path: Path, kind: str) -> Completeness:
    pages = len(chain.pages)
    try:
        siblings = {entry.name for entry in os.scandir(path.parent)}
        link = ome_link(description)
        if link and link not in siblings:
            return growing(f"{link}, which holds its OME-XML, is not there yet", None, pages, kind)
        xml = _linked(path.with_name(link)) if link else description
        planes = ome_planes(xml, path.name, siblings, linked=bool(link))
    except OSError:
        return growing(f"{link}, which holds its OME-XML, cannot be read", None, pages, kind)
    except ParseError:
        return growing("its OME-XML is not whole", None, pages, kind)
    except InputError as error:
        return broken(str(error), pages, kind)
    if planes.first_file:
        return replace(not_ours(f"it continues {planes.first_file}"), format=kind)
    found = min(planes.listed, pages + sum(planes.others.values()))
    if planes.own > pages:
        found = max(0, planes.listed - (planes.own - pages))
        return growing(f"it declares {planes.listed} planes, {found} are there", planes.declared, found, kind)
    if planes.listed < planes.declared:
        reason = f"it declares {planes.declared} planes, but gives only {planes.listed} a place"
        return growing(reason, planes.declared, planes.listed, kind)
    for name, needed in sorted(planes.others.items()):
        missing = _sibling(path.with_name(name), needed) if name in siblings else "is not there yet"
        if missing:
            return growing(f"{name}, which holds the rest of it, {missing}", planes.declared, found, kind)
    return Completeness(Judgement.COMPLETE, "", planes.declared, found, kind, tuple(sorted(planes.others)))


def _linked(path: Path) -> bytes:
    """Read the OME-XML that another file holds: a TIFF's first description, or a companion file of XML."""
    with open_source(path) as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(64)
        if head.startswith(_MAGIC) and size >= 16:
            found = walk(file, size, layout(head)).descriptions
            return found[0] if found else b""
        file.seek(0)
        return file.read(MAX_DESCRIPTION_BYTES)


def _sibling(path: Path, needed: int) -> str:
    """Say what another file of the same image lacks; empty where it is whole."""
    try:
        with open_source(path) as file:
            size = os.fstat(file.fileno()).st_size
            chain = walk(file, size, layout(file.read(64)))
    except (OSError, InputError, NotTiffError, struct.error):
        return "cannot be read"
    if structure(chain, size, "ome") is not None or len(chain.pages) < needed:
        return "is not whole"
    return ""


def _contiguous(description: bytes, chain: Chain, size: int, path: Path) -> Completeness:
    """Plain and ImageJ TIFF: one directory per plane, or one in front of the data of all planes."""
    first, pages = chain.pages[0], [page for page in chain.pages if not page.reduced]
    imagej = imagej_planes(description)
    kind, expected = ("imagej" if imagej is not None else "plain"), imagej
    values = shaped_values(description)
    if values is not None:
        expected = max(1, values // (first.width * first.length * first.samples))
    if expected is None or len(pages) >= expected:
        if len(pages) == 1 and is_plane_file(path.name):
            return not_ours(
                "it is one plane of a series of separate images, which is read where it has a folder of its own"
            )
        return Completeness(Judgement.COMPLETE, "", expected, len(pages), kind)
    found = len(pages)
    if len(pages) == 1 and first.compression == 1:
        found = min(expected, (size - first.data_start) // first.plane_bytes)
        if found == expected:
            return Completeness(Judgement.COMPLETE, "", expected, found, kind)
    return growing(f"it declares {expected} planes, {found} are there", expected, found, kind)
