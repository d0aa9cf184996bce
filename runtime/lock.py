"""A lock that belongs to a process and ends with it, however it ends: for "one daemon per ledger".

The operating system holds the lock, not the file's existence, so nothing has to be cleaned up after a crash. The file
also says which process holds it, for the message that the second one gives.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

from ssai3d_rt.errors import StorageError
from ssai3d_rt.imaging.openfile import shown

if TYPE_CHECKING:
    from pathlib import Path

_RETRY_S = 0.5


class FileLock:
    """Held from construction until `release` or the end of the process.

    Raises
    ------
    StorageError
        Another process holds it, or the file cannot be made.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._descriptor: int | None = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
        except OSError as error:
            raise StorageError(f"cannot make the lock file {shown(path)}: {error.strerror or error}") from error
        deadline = time.monotonic() + _RETRY_S  # someone may just be asking `is_held`
        while not _try_lock(self._descriptor):
            if time.monotonic() > deadline:
                holder = os.pread(self._descriptor, 64, 1) if hasattr(os, "pread") else b""
                os.close(self._descriptor)
                who = f" (process {holder.decode('ascii', 'replace').strip()})" if holder.strip(b"\0 \n") else ""
                raise StorageError(
                    f"another watch{who} already runs on {shown(path.parent)}; stop it, or give another output folder"
                )
            time.sleep(0.05)
        os.lseek(self._descriptor, 1, os.SEEK_SET)
        os.write(self._descriptor, f"{os.getpid()}\n".ljust(16).encode())

    def release(self) -> None:
        """Give the lock back; doing it twice does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def is_held(path: Path) -> bool:
    """Whether a living process holds the lock."""
    try:
        descriptor = os.open(path, os.O_RDWR | getattr(os, "O_CLOEXEC", 0))
    except FileNotFoundError:
        return False
    try:
        return not _try_lock(descriptor)
    finally:
        os.close(descriptor)


if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int) -> bool:
        """Lock the first byte only: the rest stays readable for the second process."""
        os.lseek(descriptor, 0, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _try_lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
