"""OME-XML: which page of which file is which plane, voxel sizes, channel names, annotations.

Read straight from the XML, by the OME model 2016-06 (TiffData: IFD, FirstZ/C/T, PlaneCount, UUID FileName; BinaryOnly
for files whose metadata lie in a sibling). References must be plain names of files in the same folder, a document type
declaration (entities) is refused, and a plane is listed only where its page exists.

An image (a stage position) belongs to a file where at least one of its planes lies there. So one file of a
multi-position acquisition gives its own positions, with or without its siblings, and an image spread over several files
is gathered from them all.
"""

from __future__ import annotations

import logging
import os
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ssai3d_rt.errors import InputError
from ssai3d_rt.imaging.layout import Plane, Position, SourcePool, require_plain_name, require_plausible
from ssai3d_rt.imaging.openfile import open_regular, shown
from ssai3d_rt.imaging.voxel import FoundVoxel, length_um

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ssai3d_rt.imaging.tiff import TiffSource

_log = logging.getLogger(__name__)

MAX_XML_BYTES = 512 * 2**20


@dataclass(frozen=True, slots=True)
class _Block:
    """One TiffData element: `count` pages of a file, from page `ifd` on, hold planes from `first` on."""

    file: str | None
    uuid: str | None
    ifd: int
    first: dict[str, int]
    count: int | None


@dataclass(frozen=True, slots=True)
class _Image:
    index: int
    name: str
    order: str
    size: dict[str, int]
    channels: tuple[str, ...]
    voxel: FoundVoxel
    blocks: list[_Block] = field(default_factory=list)


def is_ome(description: str) -> bool:
    """Whether a page description is OME-XML (or was meant to be)."""
    head = description.lstrip()[:4096]
    return head.startswith("<") and ("<OME" in head or ":OME" in head or "openmicroscopy" in head)


def parse_xml(text: str, path: Path) -> ET.Element:
    """Return the root of an OME-XML text.

    Raises
    ------
    InputError
        It is not well-formed, or declares a document type.
    """
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise InputError(f"{shown(path)}: its OME-XML declares entities; refused")
    try:
        return ET.fromstring(text)
    except ET.ParseError as exc:
        raise InputError(f"{shown(path)}: its OME-XML is damaged: {exc}") from exc


def ome_positions(source: TiffSource, pool: SourcePool) -> list[Position]:
    """Return the positions that have planes in `source`.

    Raises
    ------
    InputError
        The XML is damaged, contradicts the pages, or refers outside the folder.
    IncompleteError
        None of its images has a plane in this file.
    """
    images, own_uuid = _images(source, pool)
    positions = []
    for image in images:
        for block in image.blocks:
            if block.file is not None:
                require_plain_name(block.file, source.path)
        files = {_file_of(block, source, own_uuid) for block in image.blocks}
        if source.path not in files:
            continue
        planes = _locate(image, source, own_uuid, pool)
        times, channels, depth = (image.size[axis] for axis in "TCZ")
        positions.append(
            Position(
                index=image.index,
                name="" if image.name in (str(image.index), f"Image{image.index}") else image.name,
                path=source.path,
                kind="OME-TIFF",
                size=(times, channels, depth),
                channels=image.channels,
                voxel=image.voxel,
                planes=planes,
            )
        )
    if not positions:
        raise InputError(f"{shown(source.path)}: its OME-XML describes no image in this file; was it renamed?")
    return positions


def planes_declared(source: TiffSource, pool: SourcePool) -> int:
    """Return how many planes the images that have planes in `source` will have.

    Raises
    ------
    InputError
        As `ome_positions`.
    """
    images, own_uuid = _images(source, pool)
    here = [i for i in images if source.path in {_file_of(block, source, own_uuid) for block in i.blocks}]
    return sum(image.size["T"] * image.size["C"] * image.size["Z"] for image in here)


def map_annotation(text: str, path: Path, namespace: str) -> dict[str, str] | None:
    """Return the key-value pairs of the first MapAnnotation with that namespace, None where there is none."""
    root = parse_xml(text, path)
    for element in root.iter():
        if _tag(element) == "MapAnnotation" and element.get("Namespace") == namespace:
            return {m.get("K", ""): m.text or "" for m in element.iter() if _tag(m) == "M"}
    return None


def _images(source: TiffSource, pool: SourcePool) -> tuple[list[_Image], str | None]:
    """Return the images of the OME-XML that is in `source` or that it refers to, and the UUID of `source`."""
    root = parse_xml(source.description, source.path)
    own_uuid = root.get("UUID")
    binary_only = next(_children(root, "BinaryOnly"), None)
    if binary_only is not None:
        master = source.path.with_name(require_plain_name(binary_only.get("MetadataFile", ""), source.path))
        root = parse_xml(_xml_of(master, pool), master)
    return [_parse_image(element, i, source.path) for i, element in enumerate(_children(root, "Image"))], own_uuid


def _xml_of(path: Path, pool: SourcePool) -> str:
    if path.suffix.lower() in (".tif", ".tiff"):
        return pool.open(path).description
    with open_regular(path) as file:
        raw = file.read(MAX_XML_BYTES + 1)
    if len(raw) > MAX_XML_BYTES:
        raise InputError(f"{shown(path)}: more than {MAX_XML_BYTES} bytes of XML")
    return raw.decode("utf-8", errors="replace")


def _parse_image(element: ET.Element, index: int, path: Path) -> _Image:
    pixels = next(_children(element, "Pixels"), None)
    if pixels is None:
        raise InputError(f"{shown(path)}: image {index} of its OME-XML has no pixels")
    order = pixels.get("DimensionOrder", "")
    if len(order) != 5 or sorted(order) != sorted("XYZCT") or not order.startswith("XY"):
        raise InputError(f"{shown(path)}: its OME-XML has dimension order {order!r}")
    size = {axis: _whole(pixels, f"Size{axis}", path) for axis in "XYZCT"}
    require_plausible((size["T"], size["C"], size["Z"]), path)
    names = [channel.get("Name", "") for channel in _children(pixels, "Channel")]
    names = (names + [""] * size["C"])[: size["C"]]
    voxel = FoundVoxel(
        *(length_um(pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit", "µm")) for axis in "ZYX")
    )
    blocks = []
    for data in _children(pixels, "TiffData"):
        uuid = next(_children(data, "UUID"), None)
        ifd, count = data.get("IFD"), data.get("PlaneCount")
        blocks.append(
            _Block(
                file=uuid.get("FileName") if uuid is not None else None,
                uuid=(uuid.text or "").strip() if uuid is not None else None,
                ifd=_whole(data, "IFD", path) if ifd is not None else 0,
                first={axis: _whole(data, f"First{axis}", path, default=0) for axis in "ZCT"},
                count=_whole(data, "PlaneCount", path) if count is not None else (1 if ifd is not None else None),
            )
        )
    return _Image(index, element.get("Name", ""), order, size, tuple(names), voxel, blocks)


def _locate(
    image: _Image, source: TiffSource, own_uuid: str | None, pool: SourcePool
) -> dict[tuple[int, int, int], Plane]:
    """Return where each existing plane of `image` lies."""
    planes: dict[tuple[int, int, int], Plane] = {}
    axes = image.order[2:]  # fastest first
    expected = (image.size["Y"], image.size["X"])
    total = image.size["Z"] * image.size["C"] * image.size["T"]
    dropped = 0
    for block in image.blocks:
        path = _file_of(block, source, own_uuid)
        if path != source.path and not os.path.exists(path):
            _log.info("%s: %s is not there", shown(source.path), shown(path.name))
            continue
        holder = source if path == source.path else pool.open(path)
        start, stride = 0, 1
        for axis in axes:
            start += block.first[axis] * stride
            stride *= image.size[axis]
        wanted = total - start if block.count is None else block.count
        for i, page in enumerate(holder.pages[block.ifd : block.ifd + max(0, wanted)]):
            if start + i >= total:
                dropped += 1
                continue
            where, rest = {}, start + i
            for axis in axes:
                rest, where[axis] = divmod(rest, image.size[axis])
            if page.shape != expected:
                raise InputError(
                    f"{shown(path)}: page {page.index} is {page.shape[0]} x {page.shape[1]}, "
                    f"its OME-XML says {expected[0]} x {expected[1]}"
                )
            key = (where["T"], where["C"], where["Z"])
            if planes.setdefault(key, (holder, page)) != (holder, page):
                raise InputError(f"{shown(source.path)}: its OME-XML gives plane (t, c, z) = {key} twice")
    if dropped:
        _log.warning("%s: %d pages lie beyond what its OME-XML declares and are not read", shown(source.path), dropped)
    return planes


def _file_of(block: _Block, source: TiffSource, own_uuid: str | None) -> Path:
    """Return the file that a block refers to; a renamed file is still recognised by its UUID."""
    if block.file is None or (own_uuid and block.uuid == own_uuid):
        return source.path
    return source.path.with_name(block.file)


def _children(element: ET.Element, tag: str) -> Iterator[ET.Element]:
    return (child for child in element if _tag(child) == tag)


def _tag(element: ET.Element) -> str:
    return str(element.tag).rsplit("}", 1)[-1]


def _whole(element: ET.Element, name: str, path: Path, default: int | None = None) -> int:
    text = element.get(name)
    if text is None and default is not None:
        return default
    try:
        value = int(text or "")
    except ValueError:
        value = -1
    if value < 0:
        raise InputError(f"{shown(path)}: its OME-XML has {name}={text!r}")
    return value
