"""OME-Zarr data sets: 0.4 and 0.5, sharded or not, one image or several (bioformats2raw).

The metadata and the files say what is there (`zarrmeta`, `zarrchunks`); the zarr package only decodes, and is asked for
nothing that is not there, because it would answer with zeros. Where a chunk holds several planes, a plane that was
never written looks like one of the fill value alone, and is taken for missing.
"""

from __future__ import annotations

import asyncio
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ssai3d_rt.errors import IncompleteError, InputError, MissingPackageError
from ssai3d_rt.imaging.folder import Unchanged
from ssai3d_rt.imaging.layout import Plane, Position, SourcePool, require_plausible
from ssai3d_rt.imaging.openfile import shown
from ssai3d_rt.imaging.tiff import Page
from ssai3d_rt.imaging.zarrchunks import list_files, present
from ssai3d_rt.imaging.zarrmeta import ZarrImage, zarr_images

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ssai3d_rt.imaging.stack import Array

MAX_BLOCK_BYTES = 512 << 20
"""Planes that share a chunk are decoded together where they take no more than this."""


def omezarr_positions(folder: Path, pool: SourcePool) -> list[Position]:
    """Return the positions of a data set: its images.

    Raises
    ------
    IncompleteError
        Metadata are missing or cut off, or an image has no plane yet.
    InputError
        It cannot be read; the message says why.
    """
    try:
        files = list_files(folder)
        images = zarr_images(folder)
        positions = []
        for number, image in enumerate(images):
            require_plausible(image.size, folder)
            positions.append(_position(folder, number, image, present(folder, image, files).planes, pool))
    except OSError as error:
        raise InputError(f"{shown(folder)}: cannot be read: {error.strerror or error}") from error
    except InputError as error:
        text = str(error)
        raise type(error)(text if text.startswith(shown(folder)) else f"{shown(folder)}: {text}") from error
    return positions


def _position(folder: Path, number: int, image: ZarrImage, there: Any, pool: SourcePool) -> Position:
    source = pool.add(ZarrSource(folder, image))
    shape = (image.array.shape[-2], image.array.shape[-1])
    planes: dict[tuple[int, int, int], Plane] = {}
    for at in np.flatnonzero(there).tolist():
        leading = tuple(int(i) for i in np.unravel_index(at, image.array.shape[:-2])) if image.axes[:-2] else ()
        planes[image.where(leading)] = (source, Page(shape, image.array.dtype, at, None, at))
    return Position(
        index=number,
        name=image.name,
        path=folder,
        kind=f"OME-Zarr {'0.5' if image.array.version == 3 else '0.4'}",
        size=image.size,
        channels=image.channels,
        voxel=image.voxel,
        planes=planes,
    )


@dataclass(slots=True, eq=False)
class ZarrSource:
    """The planes of one image, decoded by the zarr package.

    Parameters
    ----------
    folder
        The data set.
    image
        Which of its images.
    """

    folder: Path
    image: ZarrImage
    _array: Any = field(init=False, default=None)
    _unchanged: Unchanged = field(init=False, default_factory=Unchanged)
    _block: tuple[tuple[int, ...], Array, list[Path]] | None = field(init=False, default=None)

    @property
    def path(self) -> Path:
        """Folder of the array."""
        return self.folder / self.image.array.path

    def read(self, page: Page) -> Array:
        """Return the ``(Y, X)`` pixels of a plane, native byte order.

        Raises
        ------
        IncompleteError
            A chunk of it is gone, or was changed; or it was never written.
        InputError
            A chunk cannot be decoded.
        MissingPackageError
            The zarr package is not installed.
        """
        shape = self.image.array.shape[:-2]
        leading = tuple(int(i) for i in np.unravel_index(page.index, shape)) if shape else ()
        unit = self.image.array.unit[:-2]
        block_bytes = math.prod(unit) * math.prod(page.shape) * page.dtype.itemsize
        together = unit if block_bytes <= MAX_BLOCK_BYTES else (1,) * len(unit)
        number = tuple(i // n for i, n in zip(leading, together, strict=True))
        if self._block is None or self._block[0] != number:
            start = tuple(i * n for i, n in zip(number, together, strict=True))
            self._block = (number, *self._decoded(start, together))
        self._unchanged.again(self._block[2])
        plane: Array = self._block[1][tuple(i % n for i, n in zip(leading, together, strict=True))]
        if math.prod(unit) > 1 and _is_fill(plane, self.image.array.fill):
            t, c, z = self.image.where(leading)
            raise IncompleteError(
                f"{shown(self.folder)}: plane (t={t}, c={c}, z={z}) holds nothing but the fill value; in chunks of "
                "several planes that is what a plane looks like that was not written"
            )
        return plane.astype(page.dtype, copy=False)

    def require_unchanged(self) -> None:
        """Raise `IncompleteError` if a file that was read from was changed since."""
        self._unchanged.require()

    def close(self) -> None:
        """Forget what was decoded."""
        self._array = self._block = None

    def _decoded(self, start: tuple[int, ...], shape: tuple[int, ...]) -> tuple[Array, list[Path]]:
        """Return the planes of a block, and the files that they were read from."""
        keys = list(self._keys(start, shape))
        paths = [self.folder / key for key in keys]
        for path in paths:
            self._unchanged.note(path)
        where = (*(slice(s, min(s + n, m)) for s, n, m in zip(start, shape, self.image.array.shape, strict=False)), ...)
        try:
            with ThreadPoolExecutor(1) as thread:  # the caller's thread may have an event loop of its own
                pixels = thread.submit(asyncio.run, self._fetch(where)).result()
        except (MissingPackageError, InputError):
            raise
        except Exception as exc:  # zarr and its codecs raise nearly anything on damaged data
            more = f" or one of {len(keys) - 1} others" if len(keys) > 1 else ""
            raise InputError(
                f"{shown(self.folder)}: chunk {keys[0]}{more} cannot be decoded: {type(exc).__name__}: {exc}"
            ) from exc
        self._unchanged.require(paths)
        return np.asarray(pixels), paths

    async def _fetch(self, where: Any) -> Any:
        if self._array is None:
            try:
                from zarr.api.asynchronous import open_array
                from zarr.storage import LocalStore
            except ImportError as exc:
                raise MissingPackageError("zarr", extra="zarr") from exc
            array = self.image.array
            self._unchanged.note(self.path / ("zarr.json" if array.version == 3 else ".zarray"))
            store = await LocalStore.open(self.folder, read_only=True)
            opened = await open_array(
                store=store, path=array.path, mode="r", zarr_format=3 if array.version == 3 else 2
            )
            if opened.shape != array.shape or opened.dtype.newbyteorder("=") != array.dtype:
                raise IncompleteError(f"{shown(self.path)}: its metadata changed while it was read")
            self._array = opened
        return await self._array.getitem(where)

    def _keys(self, start: tuple[int, ...], shape: tuple[int, ...]) -> Iterator[str]:
        """Yield the files that the planes of a block lie in."""
        array = self.image.array
        first = tuple(s // n for s, n in zip(start, array.chunks, strict=False))
        last = tuple(
            (min(s + n, m) - 1) // c for s, n, m, c in zip(start, shape, array.shape, array.chunks, strict=False)
        )
        lead = np.ndindex(*(b - a + 1 for a, b in zip(first, last, strict=True)))
        for offset in lead:
            for tile in np.ndindex(*array.grid[-2:]):
                yield array.key((*(a + o for a, o in zip(first, offset, strict=True)), *tile))


def _is_fill(plane: Array, fill: Any) -> bool:
    value = fill if isinstance(fill, (int, float)) else 0
    return bool(plane.flat[0] == value) and bool((plane == value).all())
