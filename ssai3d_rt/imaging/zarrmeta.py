"""What the metadata of an OME-Zarr say (0.4 on zarr version 2, 0.5 on version 3): images, arrays and their chunks.

Read from the JSON files alone, without the zarr package, so that a daemon can ask what has to be there before anything
is decoded. The first level of the multiscales is the image; a bioformats2raw folder is one image per series. Whatever
is not understood is refused by its name: an axis, a codec, a way of naming chunks. What is cut off, or not there yet,
raises `IncompleteError`, because a writer may still bring it.

Formats: the zarr specification, versions 2 and 3 (sharding 1.0); the OME-Zarr specification, 0.4 and 0.5.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ssai3d_rt.errors import IncompleteError, InputError
from ssai3d_rt.imaging.folder import read_member
from ssai3d_rt.imaging.openfile import shown
from ssai3d_rt.imaging.samples import stack_dtype
from ssai3d_rt.imaging.voxel import FoundVoxel, length_um

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_JSON_BYTES = 64 << 20
MAX_SIDE = 65_536
MAX_CHUNKS = 20_000_000
MAX_CHUNK_BYTES = 4 << 30
MAX_IMAGES = 10_000
VERSION_3_CODECS = frozenset(("bytes", "transpose", "gzip", "zstd", "blosc", "crc32c", "sharding_indexed"))
VERSION_2_CODECS = frozenset(
    ("zlib", "gzip", "bz2", "zstd", "lz4", "lzma", "blosc", "crc32", "crc32c", "shuffle", "delta")
)

_DTYPE = re.compile(r"[<>|=]?[uifcb]\d{1,2}|(u?int|float|complex)\d{1,3}|bool")


@dataclass(frozen=True, slots=True)
class Sharding:
    """How a chunk's file (a shard) holds several chunks: their shape, and its index at the end or the start.

    The index has 16 bytes per chunk, offset and length, and a checksum of 4 bytes where `checksum`.
    """

    shape: tuple[int, ...]
    index_at_end: bool
    checksum: bool


@dataclass(frozen=True, slots=True)
class ZarrArray:
    """One array: where it lies in the data set, how large it is, and how its chunks are cut and named."""

    path: str
    version: int
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype[np.generic]
    fill: Any
    prefix: str
    separator: str
    plain: bool
    """Whether chunks are stored as they are: then their size is known."""
    sharding: Sharding | None

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of chunk files along each axis."""
        return tuple(-(-size // chunk) for size, chunk in zip(self.shape, self.chunks, strict=True))

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a chunk file's content when decoded."""
        return math.prod(self.chunks) * self.dtype.itemsize

    @property
    def unit(self) -> tuple[int, ...]:
        """Shape of what is decoded at once: a chunk, or where there are shards, a chunk in them."""
        return self.sharding.shape if self.sharding else self.chunks

    def key(self, index: tuple[int, ...]) -> str:
        """Path inside the data set of the file that holds the chunk of that index."""
        name = self.separator.join([*([self.prefix] if self.prefix else []), *(str(i) for i in index)])
        return f"{self.path}/{name}" if self.path else name

    def demanded(self) -> Iterator[tuple[tuple[int, ...], str]]:
        """Yield index and path of every chunk file that the shape demands."""
        for index in itertools.product(*(range(count) for count in self.grid)):
            yield index, self.key(index)


@dataclass(frozen=True, slots=True)
class ZarrImage:
    """One image of a data set: its array, and what its axes mean.

    `axes` are letters of ``tczyx``, ending with ``yx``.
    """

    path: str
    name: str
    axes: str
    array: ZarrArray
    voxel: FoundVoxel
    channels: tuple[str, ...]

    @property
    def size(self) -> tuple[int, int, int]:
        """``(T, C, Z)``."""
        sizes = dict(zip(self.axes, self.array.shape, strict=True))
        return sizes.get("t", 1), sizes.get("c", 1), sizes.get("z", 1)

    def leading(self, time: int, channel: int, z: int) -> tuple[int, ...]:
        """Index of a plane along the axes before Y and X."""
        where = {"t": time, "c": channel, "z": z}
        return tuple(where[axis] for axis in self.axes[:-2])

    def where(self, leading: tuple[int, ...]) -> tuple[int, int, int]:
        """``(t, c, z)`` of an index along the axes before Y and X."""
        found = dict(zip(self.axes[:-2], leading, strict=True))
        return found.get("t", 0), found.get("c", 0), found.get("z", 0)


def zarr_images(folder: Path) -> list[ZarrImage]:
    """Return the images of a data set.

    Raises
    ------
    IncompleteError
        Metadata are missing, cut off, or do not describe an image yet.
    InputError
        They describe what cannot be read, lead out of the folder, or claim more than any acquisition has.
    """
    version, attributes = _group(folder, "")
    if "multiscales" in attributes:
        return [_image(folder, "", version, attributes)]
    if "plate" in attributes:
        raise InputError("it is a plate; restore the images of its wells one by one")
    if "bioformats2raw.layout" in attributes:
        return [_image(folder, path, *_group(folder, path, version)) for path in _series(folder, version)]
    raise IncompleteError("it describes no image (no multiscales in its metadata)")


def plain_path(path: object) -> str:
    """Return a path inside a data set, refusing one that leads out of it.

    >>> plain_path("A/0")
    'A/0'
    """
    if not isinstance(path, str) or path.startswith("/") or any(c in path for c in "\\\0:"):
        raise InputError(f"its metadata lead out of the data set ({path!r}); refused")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts or not parts:
        raise InputError(f"its metadata lead out of the data set ({path!r}); refused")
    return "/".join(parts)


def _series(folder: Path, version: int) -> list[str]:
    """Return the paths of a bioformats2raw folder's images: listed, counted in the OME-XML, or else those there."""
    try:
        _, attributes = _group(folder, "OME", version)
    except IncompleteError:
        attributes = {}
    listed = attributes.get("series")
    if isinstance(listed, list) and listed:
        if len(listed) > MAX_IMAGES:
            raise InputError(f"it lists {len(listed)} images; not plausible")
        return [plain_path(path) for path in listed]
    xml = folder / "OME" / "METADATA.ome.xml"
    if os.path.lexists(xml):
        count = len(re.findall(rb"<(?:\w+:)?Image[\s>]", read_member(xml, MAX_JSON_BYTES)))
        return [str(number) for number in range(count)]
    found = [str(number) for number in itertools.takewhile(lambda n: (folder / str(n)).is_dir(), range(MAX_IMAGES))]
    if not found:
        raise IncompleteError("it holds no image yet")
    return found


def _json(folder: Path, inside: str) -> dict[str, Any]:
    try:
        raw = read_member(folder / inside, MAX_JSON_BYTES)
    except InputError as error:
        if not os.path.lexists(folder / inside):
            raise IncompleteError(f"{shown(inside)} is not there") from error
        raise
    try:
        value = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise IncompleteError(f"{shown(inside)} is not whole: {type(error).__name__}") from error
    if not isinstance(value, dict):
        raise InputError(f"{shown(inside)} holds no object")
    return value


def _group(folder: Path, path: str, version: int = 0) -> tuple[int, dict[str, Any]]:
    """Return the version of zarr and the OME attributes of a group."""
    inside = f"{path}/" if path else ""
    if version != 2 and (version == 3 or os.path.lexists(folder / f"{inside}zarr.json")):
        meta = _json(folder, f"{inside}zarr.json")
        attributes = meta.get("attributes", {})
        if meta.get("node_type") == "array":
            raise InputError("it is a bare array, not OME-Zarr; nothing says which axis is which")
        ome = attributes.get("ome", {}) if isinstance(attributes, dict) else None
        if not isinstance(ome, dict):
            raise InputError(f"{shown(inside)}zarr.json has attributes that are no object")
        return 3, ome
    if not os.path.lexists(folder / f"{inside}.zattrs"):
        if os.path.lexists(folder / f"{inside}.zarray"):
            raise InputError("it is a bare array, not OME-Zarr; nothing says which axis is which")
        raise IncompleteError(f"{shown(inside)}zarr.json or {shown(inside)}.zattrs is not there")
    return 2, _json(folder, f"{inside}.zattrs")


def _image(folder: Path, path: str, version: int, attributes: dict[str, Any]) -> ZarrImage:
    scales = attributes.get("multiscales")
    if scales is None:
        raise IncompleteError(f"{shown(path) or 'it'} describes no image (no multiscales in its metadata)")
    try:
        scale = scales[0]
        axes = "".join(str(a["name"] if isinstance(a, dict) else a) for a in scale["axes"]).lower()
        names = [a["name"] if isinstance(a, dict) else a for a in scale["axes"]]
        units = [str(a.get("unit") or "") if isinstance(a, dict) else None for a in scale["axes"]]
        level = scale["datasets"][0]
        inside = plain_path(level["path"])
        steps = [_scale(holder, len(names)) for holder in (scale, level)]
        labels = _labels(attributes)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"its multiscales are damaged: {type(error).__name__}: {error}") from error
    if any(str(name).lower() not in tuple("tczyx") for name in names) or len(set(axes)) < len(names):
        raise InputError(f"its axes are {shown(', '.join(map(str, names)))}; only t, c, z, y and x are understood")
    if not axes.endswith("yx"):
        raise InputError(f"its axes are {axes}; the last two must be y and x")
    array = _array(folder, f"{path}/{inside}" if path else inside, version)
    if len(array.shape) != len(axes):
        raise InputError(f"it has {len(axes)} axes, and an array of {len(array.shape)}")
    if max(array.shape[-2:]) > MAX_SIDE:
        raise InputError(f"it claims planes of {array.shape[-2]} x {array.shape[-1]} pixels; not plausible")
    lengths = {
        axis: length_um(steps[0][i] * steps[1][i], unit) for i, (axis, unit) in enumerate(zip(axes, units, strict=True))
    }
    count = array.shape[axes.index("c")] if "c" in axes else 1
    if count > 1_000_000:
        raise InputError(f"it claims {count} channels; not plausible")
    return ZarrImage(
        path=path,
        name=name if isinstance(name := scale.get("name"), str) and path else path,
        axes=axes,
        array=array,
        voxel=FoundVoxel(lengths.get("z"), lengths["y"], lengths["x"]),
        channels=(labels + ("",) * count)[:count],
    )


def _labels(attributes: dict[str, Any]) -> tuple[str, ...]:
    omero = attributes.get("omero")
    channels = omero.get("channels", []) if isinstance(omero, dict) else []
    return tuple(str(c.get("label") or "") for c in channels)


def _scale(holder: dict[str, Any], count: int) -> list[float]:
    for step in holder.get("coordinateTransformations") or []:
        if step.get("type") == "scale" and len(step["scale"]) == count:
            return [float(value) for value in step["scale"]]
    return [1.0] * count


def _array(folder: Path, path: str, version: int) -> ZarrArray:
    meta = _json(folder, f"{path}/{'zarr.json' if version == 3 else '.zarray'}")
    try:
        array = _array_3(path, meta) if version == 3 else _array_2(path, meta)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{shown(path)} has damaged metadata: {type(error).__name__}: {error}") from error
    if min(array.shape, default=0) < 1 or min(array.chunks, default=0) < 1 or len(array.chunks) != len(array.shape):
        raise InputError(f"{shown(path)} has shape {array.shape} in chunks of {array.chunks}")
    if array.sharding and (
        len(array.sharding.shape) != len(array.chunks)
        or any(i < 1 or o % i for o, i in zip(array.chunks, array.sharding.shape, strict=True))
    ):
        raise InputError(f"{shown(path)} has shards of {array.chunks} with chunks of {array.sharding.shape}")
    units = math.prod(array.grid) * math.prod(o // i for o, i in zip(array.chunks, array.unit, strict=True))
    if units > MAX_CHUNKS or math.prod(array.unit) * array.dtype.itemsize > MAX_CHUNK_BYTES:
        raise InputError(f"{shown(path)} claims shape {array.shape} in chunks of {array.unit}; not plausible")
    if stack_dtype(array.dtype) is None:
        raise InputError(f"{shown(path)} has sample type {array.dtype}; save it as uint8, uint16 or float32")
    return array


def _array_2(path: str, meta: dict[str, Any]) -> ZarrArray:
    if meta["zarr_format"] != 2:
        raise InputError(f"{shown(path)} is zarr version {meta['zarr_format']}; only 2 and 3 can be read")
    codecs = [codec for codec in [meta.get("compressor"), *(meta.get("filters") or [])] if codec is not None]
    for codec in codecs:
        if codec["id"] not in VERSION_2_CODECS:
            raise InputError(f"{shown(path)} is stored with {shown(str(codec['id']))}, a codec that is not known")
    if meta.get("order", "C") not in ("C", "F"):
        raise InputError(f"{shown(path)} has order {meta['order']!r}")
    return ZarrArray(
        path=path,
        version=2,
        shape=_counts(meta["shape"]),
        chunks=_counts(meta["chunks"]),
        dtype=_dtype(meta["dtype"]),
        fill=meta.get("fill_value"),
        prefix="",
        separator=_separator(meta.get("dimension_separator", ".")),
        plain=not codecs,
        sharding=None,
    )


def _array_3(path: str, meta: dict[str, Any]) -> ZarrArray:
    if meta["zarr_format"] != 3 or meta["node_type"] != "array":
        raise InputError(f"{shown(path)} is no array of zarr version 3")
    if meta.get("storage_transformers"):
        raise InputError(f"{shown(path)} is stored in a way that is not known (storage transformers)")
    if meta["chunk_grid"]["name"] != "regular":
        raise InputError(f"{shown(path)} has a chunk grid that is not known ({meta['chunk_grid']['name']!r})")
    encoding = meta["chunk_key_encoding"]
    if encoding["name"] not in ("default", "v2"):
        raise InputError(f"{shown(path)} names its chunks in a way that is not known ({encoding['name']!r})")
    default = encoding["name"] == "default"
    separator = (encoding.get("configuration") or {}).get("separator", "/" if default else ".")
    codecs = meta["codecs"]
    _require_known(path, codecs)
    sharding = next((codec["configuration"] for codec in codecs if codec["name"] == "sharding_indexed"), None)
    if sharding is not None and len(codecs) > 1:
        raise InputError(f"{shown(path)} has shards that are stored with further codecs")
    return ZarrArray(
        path=path,
        version=3,
        shape=_counts(meta["shape"]),
        chunks=_counts(meta["chunk_grid"]["configuration"]["chunk_shape"]),
        dtype=_dtype(meta["data_type"]),
        fill=meta.get("fill_value"),
        prefix="c" if default else "",
        separator=_separator(separator),
        plain=[codec["name"] for codec in codecs] == ["bytes"],
        sharding=_sharding(path, sharding) if sharding is not None else None,
    )


def _sharding(path: str, configuration: dict[str, Any]) -> Sharding:
    _require_known(path, configuration["codecs"])
    if any(codec["name"] == "sharding_indexed" for codec in configuration["codecs"]):
        raise InputError(f"{shown(path)} has shards inside shards")
    index = [codec["name"] for codec in configuration.get("index_codecs", [{"name": "bytes"}, {"name": "crc32c"}])]
    if index not in (["bytes"], ["bytes", "crc32c"]):
        raise InputError(f"{shown(path)} has shards with an index stored as {', '.join(map(str, index))}")
    place = configuration.get("index_location", "end")
    if place not in ("start", "end"):
        raise InputError(f"{shown(path)} has shards with an index at {place!r}")
    return Sharding(_counts(configuration["chunk_shape"]), place == "end", "crc32c" in index)


def _require_known(path: str, codecs: list[dict[str, Any]]) -> None:
    for codec in codecs:
        if codec["name"] not in VERSION_3_CODECS:
            raise InputError(f"{shown(path)} is stored with {shown(str(codec['name']))}, a codec that is not known")


def _counts(values: list[Any]) -> tuple[int, ...]:
    if not all(type(value) is int and 0 <= value < 1 << 40 for value in values) or not 2 <= len(values) <= 5:
        raise InputError(f"its metadata give a shape of {str(values)[:80]}")
    return tuple(values)


def _dtype(name: Any) -> np.dtype[np.generic]:
    if not isinstance(name, str) or not _DTYPE.fullmatch(name):
        raise InputError(f"its metadata give the sample type {str(name)[:80]}")
    return np.dtype(name).newbyteorder("=")


def _separator(value: Any) -> str:
    if value not in (".", "/"):
        raise InputError(f"its metadata give the separator {value!r}")
    return str(value)
