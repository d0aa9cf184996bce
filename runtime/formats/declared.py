r"""What a TIFF's first description declares about its planes: OME-XML, ImageJ, or tifffile's shape.

Pure functions of the description's bytes. They count; whether the planes are there is for `complete` to find out.

>>> imagej_planes(b"ImageJ=1.53c\nimages=34\nchannels=2\nslices=17\n")
34
>>> shaped_values(b'{"shape": [17, 88, 89]}')
133144
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from ssai3d_rt.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator


def is_ome(description: bytes) -> bool:
    """Whether a description is (the beginning of) OME-XML."""
    head = description[:4096].lstrip()
    return head.startswith(b"<") and (b"<OME" in head or b":OME" in head)


def imagej_planes(description: bytes) -> int | None:
    """Planes that ImageJ's description declares; None where it is no such description."""
    if not description.startswith(b"ImageJ="):
        return None
    for line in description.splitlines():
        key, _, value = line.partition(b"=")
        if key.strip() == b"images" and value.strip().isdigit():
            return int(value)
    return 1


def shaped_values(description: bytes) -> int | None:
    """Values (not planes) in the series whose shape tifffile wrote as JSON; None where it is no such description."""
    if not description.startswith(b'{"shape":'):
        return None
    try:
        shape = json.loads(description)["shape"]
        return math.prod(int(length) for length in shape)
    except (ValueError, KeyError, TypeError):
        return None


@dataclass(slots=True)
class OmePlanes:
    """Planes of those images in an OME-XML that have at least one plane in the file itself."""

    declared: int = 0
    """SizeZ x SizeC x SizeT of these images, in planes."""
    listed: int = 0
    """Planes that their TiffData elements give a place."""
    own: int = 0
    """Directories that the file itself must hold."""
    others: dict[str, int] = field(default_factory=dict)
    """Directories that each of the other files of these images must hold."""
    first_file: str = ""
    """The file with the first plane of the first of these images; empty for the file itself."""


@dataclass(frozen=True, slots=True)
class _Block:
    file: str
    first: int
    planes: int


def ome_link(description: bytes) -> str:
    """Name of the file that holds the OME-XML instead; empty where it is here.

    Micro-Manager writes the XML of all positions into the first one's file, and such a link into the others.

    Raises
    ------
    InputError
        XML with a document type, or a link outside the file's folder.
    xml.etree.ElementTree.ParseError
        Not well-formed.
    """
    link = next(_named(_parsed(description), "BinaryOnly"), None)
    return "" if link is None else _plain(link.get("MetadataFile", ""))


def ome_planes(
    description: bytes, name: str, siblings: frozenset[str] | set[str], *, linked: bool = False
) -> OmePlanes:
    """Count what an OME-XML declares, from the point of view of one of its files.

    Parameters
    ----------
    description
        The XML, whole.
    name
        Name of the file it was read from.
    siblings
        Names of the files in its folder.
    linked
        Whether the XML was read from another file (see `ome_link`), so that its UUID is not this file's.

    Raises
    ------
    InputError
        XML with a document type (entities), without pixels, or that points outside the file's folder.
    xml.etree.ElementTree.ParseError
        Not well-formed, as where it is only half written.
    """
    root = _parsed(description)
    uuid = "" if linked else root.get("UUID", "")
    images = [_blocks(pixels, name, uuid) for pixels in _named(root, "Pixels")]
    if not images:
        raise InputError("its OME-XML declares no pixels")
    names = {block.file for _, blocks in images for block in blocks if block.file}
    alone = not linked and all(block.file for _, blocks in images for block in blocks)
    if alone and len(names) == 1 and not names & siblings:
        # One file, renamed after it was written.
        images = [(planes, [_Block("", b.first, b.planes) for b in blocks]) for planes, blocks in images]
    result = OmePlanes()
    for planes, blocks in images:
        if not any(not block.file for block in blocks):
            continue
        if not result.declared:
            result.first_file = blocks[0].file
        result.declared += planes
        result.listed += min(planes, sum(block.planes for block in blocks))
        for block in blocks:
            needed = block.first + block.planes
            if block.file:
                result.others[block.file] = max(result.others.get(block.file, 0), needed)
            else:
                result.own = max(result.own, needed)
    if not result.declared:
        raise InputError("its OME-XML places no plane in this file")
    return result


def _parsed(description: bytes) -> ElementTree.Element:
    if b"<!DOCTYPE" in description or b"<!ENTITY" in description:
        raise InputError("its OME-XML declares entities, which no microscope writes")
    return ElementTree.fromstring(description)


def _plain(file: str) -> str:
    if file in (".", "..") or any(mark in file for mark in "/\\:\0"):
        raise InputError(f"its OME-XML points outside its folder ({file!r})")
    return file


def _named(parent: ElementTree.Element, local: str) -> Iterator[ElementTree.Element]:
    return (element for element in parent.iter() if element.tag.rpartition("}")[2] == local)


def _number(element: ElementTree.Element, key: str, default: int | None = None) -> int:
    text = element.get(key)
    if text is None and default is not None:
        return default
    if text is None or not text.strip().isdigit() or len(text) > 12:
        raise InputError(f"its OME-XML has {key}={text!r}, not a count")
    return int(text)


def _blocks(pixels: ElementTree.Element, name: str, uuid: str) -> tuple[int, list[_Block]]:
    """Give the declared planes of one image, and where its TiffData elements place them, in (T, C, Z) order."""
    samples = max((_number(c, "SamplesPerPixel", 1) for c in _named(pixels, "Channel")), default=1)
    sizes = [_number(pixels, key) for key in ("SizeZ", "SizeC", "SizeT")]
    planes = math.prod(sizes) // max(samples, 1)
    blocks: list[tuple[tuple[int, int, int], _Block]] = []
    for data in _named(pixels, "TiffData"):
        has_ifd = data.get("IFD") is not None
        count = _number(data, "PlaneCount", 1 if has_ifd else planes)
        link = next(_named(data, "UUID"), None)
        file = "" if link is None else _plain(link.get("FileName", ""))
        if link is not None and (file == name or (uuid and (link.text or "").strip() == uuid)):
            file = ""
        place = (_number(data, "FirstT", 0), _number(data, "FirstC", 0), _number(data, "FirstZ", 0))
        blocks.append((place, _Block(file, _number(data, "IFD", 0), count)))
    return planes, [block for _, block in sorted(blocks, key=lambda item: item[0])]
