"""Publishing a result: whole or not at all, never over something different, and still there after a power cut.

A result is written under a short temporary name in its own folder, then sealed (written out to the disk, read back and
checked, hashed), then placed: it gets its name in one step that fails where the name is taken, and the folder is
written out too. A sync that fails is never tried again, because the system may then call lost data safe; the temporary
file is thrown away and the stack done again. It does not know what a result holds; the caller brings the check.

>>> result_name("cells.ome.tif"), result_name("cells.tif", tag="1a2b3c4d")
('cells_iso.ome.tif', 'cells_1a2b3c4d_iso.ome.tif')
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ssai3d_rt.errors import StorageError
from ssai3d_rt.imaging.openfile import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RESULT_SUFFIX = "_iso.ome.tif"
TRUST_SUFFIX = "_trust.ome.tif"
STATE_FOLDER = ".ssai3d-rt"
"""Folder inside the output folder for the ledger and submissions."""

_TEMPORARY = re.compile(r"\.ssai3d-[0-9a-f]{8}\.tmp")
_NAME_BYTES = 240
_CHUNK_BYTES = 1 << 20
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Sealed:
    """A temporary file that is on the disk and was checked."""

    path: Path
    sha256: str
    size: int


def result_name(source: str, *, label: str = "", tag: str = "", suffix: str = RESULT_SUFFIX) -> str:
    """Name of the result of a source file; a name that is too long is cut and given a hash.

    Parameters
    ----------
    source
        Name of the source file, with its suffix.
    label
        Tells the parts of a result of several files apart; the main or only one has none.
    tag
        Goes before the suffix where the plain name is taken by another result.
    suffix
        Says what is in the file.
    """
    stem = result_stem(source)
    plain = re.sub(r"[^\w.+-]+", "-", label)[:60]
    suffix = "".join(f"_{part}" for part in (plain, tag) if part) + suffix
    if len(os.fsencode(stem + suffix)) > _NAME_BYTES:
        digest = hashlib.sha256(os.fsencode(source)).hexdigest()[:8]
        room = _NAME_BYTES - len(suffix) - len(digest) - 1
        while len(os.fsencode(stem)) > room:
            stem = stem[:-1]
        stem = f"{stem}~{digest}"
    return stem + suffix


def result_stem(source: str) -> str:
    """Beginning of the name of every result of a source, where it need not be cut."""
    return re.sub(r"(\.ome)?\.(tiff?|zarr)$", "", source, flags=re.IGNORECASE)


def result_folder(relative: Path) -> Path:
    """Mirror of a source's folder below the output folder; names that Windows reserves get an underscore."""
    return Path(*(f"{part}_" if _RESERVED.fullmatch(part) else part for part in relative.parts))


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, durably.

    Raises
    ------
    StorageError
        It cannot be made.
    """
    with _storage_errors(f"make the folder {shown(folder)}"):
        missing = []
        while not folder.is_dir():
            missing.append(folder)
            folder = folder.parent
        for new in reversed(missing):
            new.mkdir(exist_ok=True)
            sync_folder(new.parent)


def temporary_name(folder: Path) -> Path:
    """Give a short name in the result's own folder: renaming is then one step, and no name is too long."""
    return folder / f".ssai3d-{secrets.token_hex(4)}.tmp"


def remove_stale(out: Path, *, below: bool = True) -> int:
    """Remove the temporary files that an ended process left in a folder (and `below`); return how many."""
    removed = 0
    for folder, folders, names in os.walk(out):
        for name in [name for name in folders if name.startswith(".ssai3d-trust-")]:
            shutil.rmtree(Path(folder, name), ignore_errors=True)
        if not below:
            folders.clear()
        for name in names:
            if _TEMPORARY.fullmatch(name):
                with contextlib.suppress(OSError):
                    os.unlink(Path(folder, name))
                    removed += 1
    return removed


def require_space(folder: Path, needed_bytes: int, reserve_bytes: int) -> None:
    """Refuse to begin where the disk has too little room left.

    Parameters
    ----------
    folder
        On the disk in question.
    needed_bytes
        Twice the estimated size of the result: it may not compress, and the disk is shared.
    reserve_bytes
        What must stay free afterwards: the acquisition may write to the same disk.

    Raises
    ------
    StorageError
        Too little room.
    """
    with _storage_errors(f"look at the disk of {shown(folder)}"):
        free = shutil.disk_usage(folder).free
    if free < needed_bytes + reserve_bytes:
        needed_gb, free_gb = (needed_bytes + reserve_bytes) / 1e9, free / 1e9
        raise StorageError(
            f"the disk of {shown(folder)} has {free_gb:.2f} GB free, {needed_gb:.2f} GB are needed "
            "(twice the result, and the reserve); make room"
        )


def seal(temporary: Path, check: Callable[[Path], object]) -> Sealed:
    """Write a finished temporary file out to the disk, check it by reading it back, and hash it.

    Raises
    ------
    StorageError
        The disk refused; the file must be thrown away. What `check` raises passes through.
    """
    with _storage_errors(f"write {shown(temporary)} to the disk"):
        descriptor = os.open(temporary, os.O_RDWR | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    check(temporary)
    with _storage_errors(f"read {shown(temporary)} back"):
        return Sealed(temporary, hash_of(temporary), temporary.stat().st_size)


def place(sealed: Sealed, final: Path) -> None:
    """Give a sealed file its final name, in one step and durably.

    The name may be taken by the very same bytes (then nothing is left to do), never by anything else.

    Raises
    ------
    StorageError
        Something different has that name, or the disk refused.
    """
    with _storage_errors(f"publish {shown(final)}"):
        try:
            _rename_to_new(sealed.path, final)
        except FileExistsError:
            if not holds(final, sealed.sha256, sealed.size):
                raise StorageError(
                    f"{shown(final)} is already there and is something else; it is not overwritten, move it away"
                ) from None
            os.unlink(sealed.path)
        sync_folder(final.parent)


def holds(path: Path, sha256: str, size: int) -> bool:
    """Whether a regular file has exactly these contents."""
    try:
        return not path.is_symlink() and path.is_file() and path.stat().st_size == size and hash_of(path) == sha256
    except OSError:
        return False


def discard(temporary: Path) -> None:
    """Remove a temporary file where it is still there."""
    with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)


def hash_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def sync_folder(folder: Path) -> None:
    """Write a folder's names out to the disk (Windows keeps them in its journal by itself)."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rename_to_new(temporary: Path, final: Path) -> None:
    """Rename, and fail where the name is taken."""
    if sys.platform == "win32":
        os.rename(temporary, final)
        return
    try:
        os.link(temporary, final, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL, errno.EXDEV):
            raise
        # A file system without hard links (FAT, some network shares): there, only we write below the output folder.
        if final.exists() or final.is_symlink():
            raise FileExistsError(final) from None
        os.rename(temporary, final)
    else:
        os.unlink(temporary)


@contextlib.contextmanager
def _storage_errors(what: str) -> Iterator[None]:
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"cannot {what}: {error.strerror or error}") from error
