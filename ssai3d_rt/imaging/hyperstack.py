"""TIFF files without an index of planes: ImageJ hyperstacks, tifffile's own files, and plain multi-page TIFF.

The order of the pages says which plane is which: ImageJ's ``channels``, ``slices``, ``frames`` (and ``order``), the
``shape`` and ``axes`` that tifffile writes, or, with neither, pages in order of z. What stays ambiguous is refused.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from ssai3d_rt.errors import InputError, NotAStackError
from ssai3d_rt.imaging.layout import Position, require_plausible
from ssai3d_rt.imaging.openfile import shown
from ssai3d_rt.imaging.voxel import voxel_of_tags

if TYPE_CHECKING:
    from ssai3d_rt.imaging.tiff import TiffSource

Axes = list[tuple[str, int]]
"""Axes among T, C, Z with their sizes, slowest first."""


def hyperstack_position(source: TiffSource) -> Position:
    """Return the one position of a file without plane index.

    Raises
    ------
    InputError
        It holds a single image, or its axes are ambiguous.
    """
    description: dict[str, Any]
    if source.imagej is not None:
        kind, description = "ImageJ hyperstack", source.imagej
        axes = _imagej_axes(source)
    elif (shaped := _shaped(source.description)) is not None:
        kind, description = "TIFF", shaped
        axes = _shaped_axes(source, shaped)
    else:
        kind, description = "TIFF", {}
        axes = [("Z", len(source.pages))]
        if len(source.pages) == 1:
            raise NotAStackError(f"{shown(source.path)}: holds a single image, not a z-stack")
    sizes = {"T": 1, "C": 1, "Z": 1} | dict(axes)
    require_plausible((sizes["T"], sizes["C"], sizes["Z"]), source.path)
    declared = math.prod(sizes.values())
    pages = source.virtual_pages(declared) if len(source.pages) == 1 < declared else source.pages
    if len(pages) > declared:
        raise InputError(
            f"{shown(source.path)}: its description declares {declared} planes but it holds {len(pages)}; "
            "ambiguous, save it again as one hyperstack"
        )
    planes = {}
    for number, page in enumerate(pages):
        where, rest = {"T": 0, "C": 0, "Z": 0}, number
        for axis, size in reversed(axes):
            rest, where[axis] = divmod(rest, size)
        planes[where["T"], where["C"], where["Z"]] = (source, page)
    return Position(
        index=0,
        name="",
        path=source.path,
        kind=kind,
        size=(sizes["T"], sizes["C"], sizes["Z"]),
        channels=("",) * sizes["C"],
        voxel=voxel_of_tags(description, source.resolution),
        planes=planes,
    )


def declared_planes(source: TiffSource) -> int:
    """Return how many planes of all stacks the first description declares; 1 where it declares nothing more."""
    if source.imagej is not None:
        return math.prod(size for _, size in _imagej_axes(source))
    shaped = _shaped(source.description)
    if shaped is None or not all(isinstance(size, int) and size > 0 for size in shaped["shape"]):
        return 1
    return max(1, int(math.prod(shaped["shape"])) // math.prod(source.pages[0].shape))


def _imagej_axes(source: TiffSource) -> Axes:
    meta = source.imagej or {}
    sizes = {
        axis: meta.get(key, 1) if isinstance(meta.get(key, 1), int) else 0
        for axis, key in (("C", "channels"), ("Z", "slices"), ("T", "frames"))
    }
    if min(sizes.values()) < 1:
        raise InputError(f"{shown(source.path)}: its ImageJ description has channels, slices or frames below 1")
    images = meta.get("images", 1)
    if math.prod(sizes.values()) == 1 and isinstance(images, int):
        sizes["Z"] = max(images, len(source.pages))
    order = str(meta.get("order", "czt")).upper()  # fastest first
    order = "CZT" if order == "DEFAULT" else order
    if sorted(order) != ["C", "T", "Z"]:
        raise InputError(f"{shown(source.path)}: its ImageJ description has dimension order {order!r}")
    if math.prod(sizes.values()) == 1:
        raise NotAStackError(f"{shown(source.path)}: holds a single image, not a z-stack")
    return [(axis, sizes[axis]) for axis in reversed(order)]


def _shaped(description: str) -> dict[str, Any] | None:
    """Return tifffile's own description, None where it is something else."""
    if not description.startswith("{"):
        return None
    try:
        meta = json.loads(description)
    except ValueError:
        return None
    return meta if isinstance(meta, dict) and isinstance(meta.get("shape"), list) else None


def _shaped_axes(source: TiffSource, meta: dict[str, Any]) -> Axes:
    shape, name = meta["shape"], shown(source.path)
    if len(shape) < 2 or not all(isinstance(size, int) and size > 0 for size in shape):
        raise InputError(f"{name}: its description declares shape {shape}")
    axes = meta.get("axes")
    outer = list(shape[:-2])
    if tuple(shape[-2:]) != source.pages[0].shape:
        raise InputError(f"{name}: its description declares shape {shape}, its pages are {source.pages[0].shape}")
    if isinstance(axes, str) and len(axes) == len(shape):
        letters = axes.upper()[:-2]
        if axes.upper()[-2:] != "YX":
            raise InputError(f"{name}: has axes {axes}; the last two must be Y and X")
    else:
        letters = "".join("Q" for _ in outer)
    named = [(letter, size) for letter, size in zip(letters, outer, strict=True) if size > 1]
    if len(named) == 1 and named[0][0] not in "TC":
        named = [("Z", named[0][1])]
    if not named and len(source.pages) > 1:  # written page by page, each with a description of its own
        return [("Z", len(source.pages))]
    if not named:
        raise NotAStackError(f"{name}: holds a single image, not a z-stack")
    if {letter for letter, _ in named} - set("TCZ") or len({letter for letter, _ in named}) < len(named):
        raise InputError(
            f"{name}: shape {tuple(shape)} does not say which axis is z, channel or time; "
            "save it with axes, or as an ImageJ hyperstack or OME-TIFF"
        )
    return named
