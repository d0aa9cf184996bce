r"""Raw files as the daemon touches them: opened for reading only, never waited on, identified before and after.

`open_source` gives an unbuffered binary file that neither follows a symbolic link, nor hangs on a FIFO, nor keeps the
acquisition from renaming or deleting its own file on Windows. `Identity` notices that a file changed, `content_hash`
proves what was read. Nothing here knows about TIFF or about the ledger.

>>> import tempfile
>>> from pathlib import Path
>>> with tempfile.TemporaryDirectory() as folder:
...     path = Path(folder) / "a.tif"
...     _ = path.write_bytes(b"II*\0")
...     identity(path).size, content_hash([path])[:8]
(4, '75a2a133')
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ssai3d_rt.errors import InputError
from ssai3d_rt.imaging.openfile import shown

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Identity:
    """What a file's `stat` says; two equal identities mean "not changed in between" (the content hash proves it).

    `ctime_ns` notices a file that was rewritten and given its old modification time. `device` is kept but not compared:
    a share or disk that is mounted again may come back under another number.
    """

    device: int = field(compare=False)
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int = 0


def identity_of(result: os.stat_result) -> Identity:
    """Take the identity out of a `stat` result."""
    return Identity(result.st_dev, result.st_ino, result.st_size, result.st_mtime_ns, result.st_ctime_ns)


def identity(path: Path) -> Identity:
    """Identity of the file itself; a symbolic link is not followed.

    Raises
    ------
    OSError
        The file is gone or cannot be examined.
    """
    return identity_of(os.lstat(path))


def open_source(path: Path) -> io.FileIO:
    """Open a regular file for reading, unbuffered.

    Raises
    ------
    InputError
        Not a regular file (a symbolic link, folder, FIFO, device or socket).
    OSError
        It cannot be opened: gone, not readable, or held by another program.
    """
    if not stat.S_ISREG(os.lstat(path).st_mode):
        raise InputError(f"{shown(path)} is not a regular file (links and special files are not followed)")
    file = io.FileIO(_descriptor(path), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise InputError(f"{shown(path)} is not a regular file")
    return file


def content_hash(paths: Iterable[Path], *, below: Path | None = None) -> str:
    """SHA-256 of the bytes of one file, or of several in the order given, in hexadecimal.

    The name and size of a file below the folder `below` count too: there, which bytes are in which file has a meaning.
    """
    digest = hashlib.sha256()
    for path in paths:
        with open_source(path) as file:
            if below is not None and path != below and path.is_relative_to(below):
                digest.update(os.fsencode(path.relative_to(below)) + b"\0%d\0" % os.fstat(file.fileno()).st_size)
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


if sys.platform == "win32":

    def _descriptor(path: Path) -> int:
        """Open with all sharing allowed: Python's own open() would make the writer's rename fail."""
        import ctypes
        import msvcrt
        from ctypes import wintypes

        kernel = ctypes.WinDLL("kernel32", use_last_error=True)
        create = kernel.CreateFileW
        create.argtypes = [
            wintypes.LPCWSTR,
            wintypes.DWORD,
            wintypes.DWORD,
            wintypes.LPVOID,
            wintypes.DWORD,
            wintypes.DWORD,
            wintypes.HANDLE,
        ]
        create.restype = wintypes.HANDLE
        generic_read, share_all, open_existing, sequential = 0x80000000, 0x7, 3, 0x08000000
        handle = create(str(path), generic_read, share_all, None, open_existing, sequential, None)
        if handle == wintypes.HANDLE(-1).value:
            raise ctypes.WinError(ctypes.get_last_error())
        return msvcrt.open_osfhandle(handle, os.O_RDONLY | os.O_BINARY | os.O_NOINHERIT)

else:

    def _descriptor(path: Path) -> int:
        """O_NONBLOCK: a FIFO that appears between the check and the open must not hang us."""
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
