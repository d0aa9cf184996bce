"""The bundle `NAME.ssai3d/`: the portable export, and the manifest that holds it together.

A bundle is a folder with a `manifest.json` that names every other file with its size and SHA-256. It is opened without
torch, onnx or safetensors; each file is hashed before anything looks into it, and the bytes that were hashed are those
that are used. It never holds an engine: engines are native code and live in a private cache (see `engine`). It does not
know how a bundle is made from a model: see `from_model`.

>>> import tempfile
>>> with tempfile.TemporaryDirectory() as folder:
...     Bundle.open(folder)
Traceback (most recent call last):
ssai3d_rt.errors.BundleError: ...manifest.json is missing...
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from ssai3d_rt.errors import BundleError, StorageError
from ssai3d_rt.export.manifest import SCHEMA_VERSION, AdaptationEntry, FileEntry, Manifest, NetworkEntry, PrecisionEntry
from ssai3d_rt.export.onnxfile import FLOAT, facts_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "AdaptationEntry",
    "Bundle",
    "FileEntry",
    "Manifest",
    "NetworkEntry",
    "PrecisionEntry",
    "check_target",
    "entries_of",
    "golden_file",
    "write_bundle",
]

SUFFIX = ".ssai3d"
INPUT, OUTPUT = "tiles", "restored"
"""Names of the ONNX graph's input and output."""

MANIFEST, ONNX, GOLDEN, WEIGHTS = "manifest.json", "model.onnx", "golden.npz", "adapted.safetensors"
PRECISION, PICTURE = "precision.json", "precision.png"
"""The measured ranges and their picture: for people, not in every bundle."""

_REQUIRED, _OPTIONAL = {ONNX, GOLDEN, WEIGHTS}, {PRECISION, PICTURE}

# Left by file managers on their own; holding them against a user would help nobody.
_IGNORED = {".DS_Store", "Thumbs.db", "desktop.ini"}
_MANIFEST_BYTES = 1 << 20
_GOLDEN_BYTES = 1 << 30

Float = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Bundle:
    """An opened, verified bundle; make one with `Bundle.open`.

    Parameters
    ----------
    folder
        Where it lies.
    manifest
        See `Manifest`.
    golden
        ``(tiles, reference)``, each ``(N, 1, T, T)`` float32: golden tiles and the FP32 reference's answers.
    golden_kinds
        N names: ``real`` or the name of an extreme.
    bundle_id
        SHA-256 of the manifest, which holds all other hashes.
    """

    folder: Path
    manifest: Manifest
    golden: tuple[Float, Float]
    golden_kinds: tuple[str, ...]
    bundle_id: str

    @classmethod
    def open(cls, folder: str | Path) -> Bundle:
        """Open a bundle after checking its schema, file list, sizes and every hash.

        Raises
        ------
        BundleError
            Not a bundle, damaged, changed after its export, or of another schema version.
        """
        folder = Path(folder)
        if not folder.is_dir():
            what = "is a file, a bundle is a folder" if folder.exists() else "does not exist"
            raise BundleError(f"{folder} {what}; give the folder NAME{SUFFIX} that `ssai3d-rt export` made")
        text = _read(folder, MANIFEST, _MANIFEST_BYTES)
        manifest = _manifest(folder, text)
        _check_listing(folder, manifest)
        for name in manifest.files.keys() - {ONNX, GOLDEN}:
            _verified(folder, name, manifest.files[name])
        _check_onnx(folder, manifest, _verified(folder, ONNX, manifest.files[ONNX]))
        golden, kinds = _golden(folder, manifest, _verified(folder, GOLDEN, manifest.files[GOLDEN]))
        return cls(folder, manifest, golden, kinds, hashlib.sha256(text).hexdigest())

    @property
    def tile(self) -> int:
        """Side of a tile in pixels."""
        return self.manifest.tile

    @property
    def onnx(self) -> bytes:
        """Read the ONNX file, its hash checked again; nothing keeps its bytes, which may be hundreds of megabytes.

        Raises
        ------
        BundleError
            It was changed or removed since the bundle was opened.
        """
        return _verified(self.folder, ONNX, self.manifest.files[ONNX])

    def weights(self) -> bytes:
        """Read the adapted weights (safetensors), their hash checked again.

        Raises
        ------
        BundleError
            They were changed or removed since the bundle was opened.
        """
        return _verified(self.folder, WEIGHTS, self.manifest.files[WEIGHTS])

    @property
    def onnx_sha256(self) -> str:
        """Hash of the ONNX file; engines are keyed by it."""
        return self.manifest.files[ONNX].sha256


def golden_file(tiles: Float, reference: Float, kinds: Sequence[str]) -> bytes:
    """Pack golden tiles as the bytes of an ``.npz`` file that holds no pickle."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, tiles=tiles, reference=reference, kinds=np.array(kinds, dtype=np.str_))
    return buffer.getvalue()


def entries_of(contents: Mapping[str, bytes]) -> dict[str, FileEntry]:
    """Return the manifest's file list for some contents."""
    return {
        name: FileEntry(size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        for name, data in contents.items()
    }


def write_bundle(
    folder: str | Path, manifest: Manifest, contents: Mapping[str, bytes], *, overwrite: bool = False
) -> Bundle:
    """Write a bundle beside its final place, open it there as a test, then give it its name.

    Parameters
    ----------
    folder
        ``NAME.ssai3d``; the suffix is required, so that a slip never replaces some other folder.
    manifest
        Its `files` must describe `contents`.
    contents
        Bytes by file name, without the manifest.
    overwrite
        Replace a bundle that lies there already.

    Raises
    ------
    BundleError
        The name, or something lies there already.
    StorageError
        The folder cannot be written.
    """
    folder = Path(folder)
    check_target(folder, overwrite=overwrite)
    temporary = folder.with_name(f".{folder.name}.{uuid4().hex[:8]}.tmp")
    try:
        temporary.mkdir(parents=True)
        text = manifest.model_dump_json(indent=2) + "\n"
        for name, data in {**contents, MANIFEST: text.encode()}.items():
            with open(temporary / name, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        Bundle.open(temporary)
        old = folder.with_name(f".{folder.name}.{uuid4().hex[:8]}.old")
        if folder.exists():
            os.rename(folder, old)
        os.rename(temporary, folder)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise StorageError(f"cannot write the bundle {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Bundle.open(folder)


def check_target(folder: Path, *, overwrite: bool) -> None:
    """Refuse a bundle's place before any work is done.

    Raises
    ------
    BundleError
        Without the suffix, or something lies there that may not be replaced.
    """
    if folder.suffix != SUFFIX:
        raise BundleError(f"{folder}: a bundle's name ends in {SUFFIX}; try {folder.with_name(folder.name + SUFFIX)}")
    if not folder.exists():
        return
    if not overwrite:
        raise BundleError(f"{folder} exists already; choose another name, or replace it with --overwrite")
    if not folder.is_dir() or (any(folder.iterdir()) and not (folder / MANIFEST).is_file()):
        raise BundleError(f"{folder} exists and is not a bundle; it is not overwritten")


def _manifest(folder: Path, text: bytes) -> Manifest:
    where = folder / MANIFEST
    try:
        values = json.loads(text)
    except ValueError as error:
        raise BundleError(f"{where} is not valid JSON: {error}; export the bundle again") from None
    version = values.get("schema_version") if isinstance(values, dict) else None
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{where} has schema version {version}, this ssai3d-rt reads {SCHEMA_VERSION}; "
            "export the bundle again with this version, or install the version that made it"
        )
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"{where}: {key}: {first['msg']}; export the bundle again") from None


def _check_listing(folder: Path, manifest: Manifest) -> None:
    wanted = set(manifest.files)
    if odd := wanted - _REQUIRED - _OPTIONAL:
        raise BundleError(f"{folder / MANIFEST} lists files that a bundle does not have: {', '.join(sorted(odd))}")
    if missing := _REQUIRED - wanted:
        raise BundleError(f"{folder / MANIFEST} does not list {', '.join(sorted(missing))}; export the bundle again")
    found = {entry.name for entry in os.scandir(folder)} - _IGNORED - {MANIFEST}
    if extra := found - wanted:
        raise BundleError(
            f"{folder} holds files that its manifest does not list: {', '.join(sorted(extra))}; remove them"
        )
    if absent := wanted - found:
        raise BundleError(f"{folder} is not whole, {', '.join(sorted(absent))} is missing; copy or export it again")


def _read(folder: Path, name: str, limit_bytes: int) -> bytes:
    path = folder / name
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise BundleError(f"{path} is not a regular file; export the bundle again")
    try:
        with open(path, "rb") as file:
            data = file.read(limit_bytes + 1)
    except FileNotFoundError:
        raise BundleError(f"{path} is missing; {folder} is not a whole bundle, copy or export it again") from None
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror or error}") from None
    if len(data) > limit_bytes:
        raise BundleError(f"{path} is larger than its {limit_bytes} bytes; copy or export the bundle again")
    return data


def _verified(folder: Path, name: str, entry: FileEntry) -> bytes:
    data = _read(folder, name, entry.size_bytes)
    if len(data) != entry.size_bytes:
        raise BundleError(
            f"{folder / name} has {len(data)} of {entry.size_bytes} bytes; copy or export the bundle again"
        )
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise BundleError(f"{folder / name} was changed after its export (SHA-256 differs); copy or export it again")
    return data


def _check_onnx(folder: Path, manifest: Manifest, onnx: bytes) -> None:
    where = folder / ONNX
    try:
        facts = facts_of(onnx)
    except BundleError as error:
        raise BundleError(f"{where}: {error}") from None
    if facts.external_data:
        raise BundleError(f"{where} keeps weights in another file; a bundle's ONNX is one file, export it again")
    dims = (None, manifest.channels, manifest.tile, manifest.tile)
    for name, ports in ((INPUT, facts.inputs), (OUTPUT, facts.outputs)):
        if [(p.name, p.element, p.dims[1:]) for p in ports] != [(name, FLOAT, dims[1:])] or ports[0].dims[
            0
        ] is not None:
            raise BundleError(f"{where} does not have the one port {name} (N, {dims[1]}, {dims[2]}, {dims[3]}) float32")


def _golden(folder: Path, manifest: Manifest, data: bytes) -> tuple[tuple[Float, Float], tuple[str, ...]]:
    where = folder / GOLDEN
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(info.file_size for info in archive.infolist()) > _GOLDEN_BYTES:
                raise BundleError(f"{where} unpacks to more than {_GOLDEN_BYTES >> 20} MiB; export the bundle again")
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            tiles, reference, kinds = (arrays[key] for key in ("tiles", "reference", "kinds"))
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError) as error:
        raise BundleError(f"{where} does not hold golden tiles: {error}; export the bundle again") from None
    shape = (len(kinds), manifest.channels, manifest.tile, manifest.tile)
    if tiles.shape != shape or reference.shape != shape or {tiles.dtype, reference.dtype} != {np.dtype(np.float32)}:
        raise BundleError(f"{where} does not hold float32 tiles of shape {shape}; export the bundle again")
    return (tiles, reference), tuple(str(kind) for kind in kinds)
