"""What was built is kept here: engines with their notes, and the caches of builder and just-in-time compiler.

Deserialising any of it is running native code. So it lies in the user's private cache, under a name that changes with
everything it depends on, and its bytes are handed out only when they have the SHA-256 that was noted when they were
built on this machine. It does not build, and it needs no vendor's package.

>>> import tempfile
>>> from pathlib import Path
>>> with tempfile.TemporaryDirectory() as folder:
...     keep_blob(Path(folder) / "timing.cache", b"measured")
...     load_blob(Path(folder) / "timing.cache")
b'measured'
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING
from uuid import uuid4

from ssai3d_rt.errors import BundleError, StorageError
from ssai3d_rt.export.cache import cache_folder, private_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

logger = logging.getLogger(__name__)

ENGINE, NOTE = "model.engine", "engine.json"
_HEX = 64
_LEFT_BEHIND_S = 3600.0


@dataclass(frozen=True, slots=True)
class EngineKey:
    """Everything that an engine depends on; another value of any of it is another engine.

    Parameters
    ----------
    onnx_sha256
        Of the network.
    backend, version
        Who builds it; the version to its last part.
    targets
        Compute capabilities, or the GPU with its driver.
    system
        Operating system and processor; empty where engines are portable between them.
    tile, batches
        Shapes that it accepts: side in pixels; fewest, best and most tiles per call.
    options
        What else the builder was told.
    """

    onnx_sha256: str
    backend: str
    version: str
    targets: tuple[str, ...]
    system: str
    tile: int
    batches: tuple[int, int, int]
    options: str

    @property
    def digest(self) -> str:
        """SHA-256 over all of it."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    @property
    def folder(self) -> str:
        """Name of the engine's folder in the cache."""
        return f"{self.backend}-{self.version}-{self.digest[:24]}"


@dataclass(frozen=True, slots=True)
class EngineNote:
    """What is noted beside an engine.

    Parameters
    ----------
    key
        `EngineKey.digest` of what it was built from and for.
    sha256
        Of the engine.
    bundle
        Name of the bundle, for people.
    onnx_sha256, backend, version, targets, tile, batches
        See `EngineKey`.
    built
        When: UTC, ISO 8601.
    seconds
        The build took.
    warnings
        The builder's warnings, in order.
    """

    key: str
    sha256: str
    bundle: str
    onnx_sha256: str
    backend: str
    version: str
    targets: tuple[str, ...]
    tile: int
    batches: tuple[int, int, int]
    built: str
    seconds: float
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CachedEngine:
    """One engine in the cache: where, its note, its size, and whether it is still what was built."""

    path: Path
    note: EngineNote
    size_bytes: int
    whole: bool


def load_engine(path: Path) -> tuple[bytes, EngineNote]:
    """Read an engine that was built on this machine, its hash checked.

    Raises
    ------
    BundleError
        No engine, no note beside it, or not the bytes that were built.
    """
    note = _read_note(path)
    try:
        engine = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror or error}; build it again") from None
    if hashlib.sha256(engine).hexdigest() != note.sha256:
        raise BundleError(f"{path} was changed after it was built (SHA-256 differs); delete it, it will be built again")
    return engine, note


def keep_engine(folder: Path, engine: bytes, note: EngineNote) -> None:
    """Put engine and note into the cache as one folder, whole or not at all.

    Raises
    ------
    StorageError
        It cannot be written.
    """
    temporary = folder.with_name(f".{folder.name}.{uuid4().hex[:8]}.tmp")
    try:
        temporary.mkdir(mode=0o700)
        with open(temporary / ENGINE, "wb") as file:
            file.write(engine)
            file.flush()
            os.fsync(file.fileno())
        (temporary / NOTE).write_text(json.dumps(asdict(note), indent=2) + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)  # what is there failed its check
        try:
            os.rename(temporary, folder)
        except OSError:
            load_engine(folder / ENGINE)  # another process was faster; its engine is as good
    except OSError as error:
        raise StorageError(f"cannot keep the engine in {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def cached_engines(cache_dir: Path | None = None) -> Iterator[CachedEngine]:
    """List the engines in the cache, in order of their names; each is read and its hash checked."""
    for path in sorted((_root(cache_dir) / "engines").glob(f"[!.]*/{ENGINE}")):
        with contextlib.suppress(BundleError, OSError):
            note = _read_note(path)
            whole = hashlib.sha256(path.read_bytes()).hexdigest() == note.sha256
            yield CachedEngine(path, note, path.stat().st_size, whole)


def clear_engines(cache_dir: Path | None = None) -> list[tuple[Path, int]]:
    """Remove all engines, what was left of interrupted builds, and the builder's timing caches.

    Returns
    -------
    list
        What was removed, each with its size in bytes.

    Raises
    ------
    StorageError
        Something cannot be removed.
    """
    removed = []
    now = time.time()
    for group in ("engines", "timing"):
        folder = _root(cache_dir) / group
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.name.startswith(".") and now - path.stat().st_mtime < _LEFT_BEHIND_S:
                continue  # another process may be writing it now
            size = sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())
            try:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
            except OSError as error:
                raise StorageError(f"cannot remove {path}: {error.strerror or error}") from error
            removed.append((path, size))
    return removed


def timing_cache_path(backend: str, version: str, identity: str, cache_dir: Path | None = None) -> Path:
    """Return where the builder's kernel timings of one exact version on one GPU are kept."""
    digest = hashlib.sha256(f"{version}\n{identity}".encode()).hexdigest()
    return private_folder(_root(cache_dir) / "timing") / f"{backend}-{version}-{digest[:12]}.cache"


def jit_cache_path(engine: Path, identity: str) -> Path:
    """Return where the kernels that were compiled for one GPU are kept: beside their engine, and gone with it."""
    return engine.with_name(f"jit-{hashlib.sha256(identity.encode()).hexdigest()[:12]}.cache")


def load_blob(path: Path) -> bytes:
    """Read what `keep_blob` wrote; empty where there is nothing, or where it is not what was written."""
    try:
        stored = path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        logger.warning("%s cannot be read (%s); starting with an empty one", path, error.strerror or error)
        return b""
    digest, blob = stored[:_HEX], stored[_HEX + 1 :]
    if hashlib.sha256(blob).hexdigest().encode() != digest:
        logger.warning("%s was changed after it was written (SHA-256 differs); starting with an empty one", path)
        return b""
    return blob


def keep_blob(path: Path, blob: bytes) -> None:
    """Write bytes with their SHA-256 before them, whole or not at all.

    It is only a cache: where it cannot be written, a warning says so and the work goes on.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
        with open(descriptor, "wb") as file:
            file.write(hashlib.sha256(blob).hexdigest().encode() + b"\n" + blob)
        os.replace(temporary, path)
    except OSError as error:
        logger.warning("%s is not kept: %s", path, error.strerror or error)
        with contextlib.suppress(OSError):
            temporary.unlink()


def _root(cache_dir: Path | None) -> Path:
    return cache_dir or cache_folder()


def _read_note(path: Path) -> EngineNote:
    try:
        values = json.loads((path.parent / NOTE).read_text(encoding="utf-8"))
        lists = {name: tuple(values[name]) for name in ("targets", "batches", "warnings")}
        return EngineNote(**values | lists)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BundleError(f"{path} is not an engine that was built here: {error}; build it again") from None
