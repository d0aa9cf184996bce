"""Is a file that appeared in a rig's folder a finished stack? Decided from its own structure, never from a stable size.

`completeness` is a pure function of what is on disk at that moment: the chain of image file directories ends with 0,
every strip and tile lies inside the file, and there are as many planes as the file declares (OME-XML over several
files, ImageJ, Micro-Manager's index map). It opens the file read-only, maps nothing and decodes no pixel. What it
cannot know, because a plain TIFF declares nothing, is whether a writer will add planes: `Completeness.declared` says
so, and the daemon then also waits for a quiet period.

>>> import tempfile
>>> with tempfile.TemporaryDirectory() as folder:
...     path = Path(folder) / "notes.tif"
...     _ = path.write_text("not an image")
...     completeness(path).reason
"it is not a TIFF file (it begins with b'not an i')"
"""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import BinaryIO
from xml.etree.ElementTree import ParseError

from ssai3d_rt.errors import InputError
from ssai3d_rt.runtime.declared import imagej_planes, is_ome, ome_link, ome_planes, shaped_values
from ssai3d_rt.runtime.source import identity, identity_of, open_source
from ssai3d_rt.runtime.tiffwalk import MAX_DESCRIPTION_BYTES, Chain, End, Layout, NotTiffError, layout, walk

SUFFIXES = (".tif", ".tiff")
TEMPORARY = (".tmp", ".temp", ".part", ".partial", ".filepart", ".crdownload", ".swp", "~")

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MAX_SIDE = 65_536
_MM_INDEX, _MM_SUMMARY, _MM_INDEX_MAP = 54_773_648, 2_355_492, 3_453_623
_MM_INDEX_ENTRY_BYTES = 20
_SINGLE_PLANE = re.compile(r"img_(\d{9}_.*_\d{3}|(channel|position|time|z)\d{3}.*)\.tiff?", re.IGNORECASE)


class Judgement(str, Enum):
    """What `completeness` says about a file."""

    COMPLETE = "complete"
    GROWING = "growing"
    """Something that it needs is not there yet; a file cut off for good looks the same."""
    BROKEN = "broken"
    """No further bytes can make it a stack."""
    NOT_OURS = "not-ours"
    """Left alone: another kind of file, or one that belongs to another file's stacks."""


@dataclass(frozen=True, slots=True)
class Completeness:
    """The judgement on one file, with its reason in words.

    Parameters
    ----------
    state
        The judgement.
    reason
        One line for people; empty where complete.
    planes_expected, planes_found
        Planes that the file declares (None: it declares nothing) and planes whose data lie in the file.
    format
        ``plain``, ``imagej``, ``ome``, ``micro-manager``, or empty where not known.
    also
        Names of the other files, in the same folder, that hold planes of its stacks.
    """

    state: Judgement
    reason: str = ""
    planes_expected: int | None = None
    planes_found: int = 0
    format: str = ""
    also: tuple[str, ...] = ()

    @property
    def declared(self) -> bool:
        """Whether the file itself says that it is whole; a plain TIFF never does."""
        return self.planes_expected is not None


def is_candidate(name: str) -> bool:
    """Whether a file of this name can be a stack: a TIFF suffix, and no temporary or hidden name."""
    lower = name.lower()
    return lower.endswith(SUFFIXES) and not lower.startswith((".", "~"))


def completeness(path: str | os.PathLike[str]) -> Completeness:
    """Judge one file by its structure.

    Never raises for what is in the file or for a file that is gone or held by its writer.
    """
    path = Path(path)
    lower = path.name.lower()
    if lower.startswith((".", "~")) or lower.endswith(TEMPORARY):
        return _not_ours("it has a temporary or hidden name")
    if not lower.endswith(SUFFIXES):
        return _not_ours("its name does not end with .tif or .tiff")
    if "_ndtiffstack" in lower:
        return _not_ours("NDTiff data sets are not read; let Micro-Manager save image stack files")
    try:
        with open_source(path) as file:
            before = identity_of(os.fstat(file.fileno()))
            verdict = _judge(file, before.size, path)
        if identity(path) != before:
            return replace(verdict, state=Judgement.GROWING, reason="it changed while it was checked")
    except InputError:
        return _not_ours("it is not a regular file (links and special files are not followed)")
    except FileNotFoundError:
        return _growing("it is gone")
    except OSError as error:
        return _growing(f"it cannot be read: {error.strerror or error}")
    return verdict


def _not_ours(reason: str) -> Completeness:
    return Completeness(Judgement.NOT_OURS, reason)


def _growing(reason: str, expected: int | None = None, found: int = 0, kind: str = "") -> Completeness:
    return Completeness(Judgement.GROWING, reason, expected, found, kind)


def _broken(reason: str, found: int = 0, kind: str = "") -> Completeness:
    return Completeness(Judgement.BROKEN, reason, None, found, kind)


def _judge(file: BinaryIO, size: int, path: Path) -> Completeness:
    header = file.read(64)
    if not header.strip(b"\0"):
        return _growing("it is empty" if size == 0 else "its header is not written yet")
    try:
        tiff = layout(header)
    except NotTiffError:
        return _broken(f"it is not a TIFF file (it begins with {header[:8]!r})")
    except struct.error:
        whole = header[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")[: len(header)]
        return (
            _growing(f"it holds only {size} bytes of its header")
            if whole or size < 4
            else _broken("it is not a TIFF file")
        )
    chain = walk(file, size, tiff)
    kind = _format(header, tiff, chain)
    fault = _structure(chain, size, kind)
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
        return _growing("its OME-XML is not written yet", None, len(chain.pages), kind)
    return _contiguous(first, chain, size, path)


def _format(header: bytes, tiff: Layout, chain: Chain) -> str:
    if len(header) >= 36 and struct.unpack_from(tiff.order + "I", header, 32) == (_MM_SUMMARY,):
        return "micro-manager"
    first = chain.descriptions[0] if chain.descriptions else b""
    if is_ome(first):
        return "ome"
    return "imagej" if imagej_planes(first) is not None else "plain"


def _structure(chain: Chain, size: int, kind: str) -> Completeness | None:
    """Say what is wrong with the directories and the places of their data; None where nothing is."""
    found = len(chain.pages)
    if chain.end is End.CYCLIC:
        return _broken("its planes form a circle", found, kind)
    if chain.end is End.TOO_MANY:
        return _broken(f"it has more than {found} planes", found, kind)
    for index, page in enumerate(chain.pages):
        if not (0 < page.width <= MAX_SIDE and 0 < page.length <= MAX_SIDE):
            return _broken(f"plane {index} claims {page.width} x {page.length} pixels", index, kind)
        if page.unwritten:
            return _growing(f"the data of plane {index} are not written yet", None, index, kind)
        if page.data_end > size:
            return _growing(
                f"the data of plane {index} end at byte {page.data_end}, the file at {size}", None, index, kind
            )
        if page.compression == 1 and page.data_bytes < page.plane_bytes:
            return _broken(f"plane {index} has {page.data_bytes} bytes for {page.plane_bytes}", index, kind)
    if chain.end is not End.FINISHED:
        return _growing(f"plane {found}, or what it points to, {chain.end.value} ({size} bytes)", None, found, kind)
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
        return _growing("Micro-Manager has not closed it: no description in the first plane", None, found, kind)
    if mark != _MM_INDEX or place == 0 or place + 8 > size:
        return _growing("Micro-Manager has not closed it: no index map", None, found, kind)
    file.seek(place)
    begins, entries = struct.unpack(order + "II", file.read(8))
    if begins != _MM_INDEX_MAP or place + 8 + entries * _MM_INDEX_ENTRY_BYTES > size:
        return _growing("Micro-Manager has not closed it: the index map is not whole", None, found, kind)
    if entries > found:
        return _growing(f"Micro-Manager's index map lists {entries} planes, {found} are there", entries, found, kind)
    notes = path.with_name(re.sub(r"(\.ome)?\.tiff?$", "", path.name, flags=re.IGNORECASE) + "_metadata.txt")
    if notes.is_file():
        with open_source(notes) as text:
            text.seek(-min(64, os.fstat(text.fileno()).st_size), os.SEEK_END)
            tail = b"".join(text.read(64).split())
        if not tail.endswith(b"}}"):
            return _growing(f"Micro-Manager has not closed {notes.name}", entries, found, kind)
    return None


def _ome(description: bytes, chain: Chain, path: Path, kind: str) -> Completeness:
    pages = len(chain.pages)
    try:
        siblings = {entry.name for entry in os.scandir(path.parent)}
        link = ome_link(description)
        if link and link not in siblings:
            return _growing(f"{link}, which holds its OME-XML, is not there yet", None, pages, kind)
        xml = _linked(path.with_name(link)) if link else description
        planes = ome_planes(xml, path.name, siblings, linked=bool(link))
    except OSError:
        return _growing(f"{link}, which holds its OME-XML, cannot be read", None, pages, kind)
    except ParseError:
        return _growing("its OME-XML is not whole", None, pages, kind)
    except InputError as error:
        return _broken(str(error), pages, kind)
    if planes.first_file:
        return replace(_not_ours(f"it continues {planes.first_file}"), format=kind)
    found = min(planes.listed, pages + sum(planes.others.values()))
    if planes.own > pages:
        found = max(0, planes.listed - (planes.own - pages))
        return _growing(f"it declares {planes.listed} planes, {found} are there", planes.declared, found, kind)
    if planes.listed < planes.declared:
        reason = f"it declares {planes.declared} planes, but gives only {planes.listed} a place"
        return _growing(reason, planes.declared, planes.listed, kind)
    for name, needed in sorted(planes.others.items()):
        missing = _sibling(path.with_name(name), needed) if name in siblings else "is not there yet"
        if missing:
            return _growing(f"{name}, which holds the rest of it, {missing}", planes.declared, found, kind)
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
    if _structure(chain, size, "ome") is not None or len(chain.pages) < needed:
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
        if len(pages) == 1 and _SINGLE_PLANE.fullmatch(path.name):
            return _not_ours("it is one plane of a separate-image series; let Micro-Manager save image stack files")
        return Completeness(Judgement.COMPLETE, "", expected, len(pages), kind)
    found = len(pages)
    if len(pages) == 1 and first.compression == 1:
        found = min(expected, (size - first.data_start) // first.plane_bytes)
        if found == expected:
            return Completeness(Judgement.COMPLETE, "", expected, found, kind)
    return _growing(f"it declares {expected} planes, {found} are there", expected, found, kind)
