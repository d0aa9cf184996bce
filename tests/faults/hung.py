"""A file system that can stop answering: a folder served read-only through FUSE by a process that can be stopped.

While its process is stopped, every call that needs it (`stat`, listing, opening, reading) waits in the kernel, as on a
network share whose server is away; nothing times out. Linux, root and /dev/fuse. Nothing is kept in the kernel's
caches, so that a name is always asked for.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import stat
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.faults.mounts import unmount

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_IN = struct.Struct("<IIQQIIIHH")
_OUT = struct.Struct("<IiQ")
_ATTRIBUTES = struct.Struct("<6Q10I")
_READ_ONLY = 1
_LARGEST = 1 << 17


class Share:
    """A served folder; `stop` and `go_on` at will."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def stop(self) -> None:
        """Answer nothing from now on."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Answer what was asked meanwhile, and go on."""
        self._process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def share(folder: Path, at: Path) -> Iterator[Share]:
    """Serve `folder` at `at` while inside."""
    at.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen([sys.executable, "-m", "tests.faults.hung", str(folder), str(at)])
    try:
        deadline = time.monotonic() + 20.0
        while f" {at} fuse " not in Path("/proc/self/mounts").read_text(encoding="utf-8"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the folder cannot be served through FUSE")
            time.sleep(0.01)
        yield Share(process)
    finally:
        process.send_signal(signal.SIGCONT)
        unmount(at)
        process.kill()
        process.wait()


class _Server:
    def __init__(self, folder: Path) -> None:
        self._paths = {1: os.fspath(folder)}
        self._ids = {os.fspath(folder): 1}
        self._answers: dict[int, Callable[[int, bytes], bytes]] = {
            1: self._lookup,
            3: self._attributes_of,
            14: self._open,
            15: self._read,
            17: lambda *_: struct.pack("<5Q4I24x", 1 << 20, 1 << 19, 1 << 19, 1 << 20, 1 << 19, 4096, 255, 4096, 0),
            18: self._release,
            25: lambda *_: b"",
            26: self._begin,
            27: lambda *_: struct.pack("<QII", 0, 0, 0),
            28: self._list,
            29: lambda *_: b"",
        }

    def serve(self, device: int) -> None:
        silent = (2, 36, 42)  # forget, interrupt, several forgets
        while True:
            try:
                message = os.read(device, _LARGEST + 4096)
            except OSError as error:
                if error.errno == errno.ENODEV:  # unmounted
                    return
                if error.errno in (errno.ENOENT, errno.EINTR):
                    continue
                raise
            _, operation, unique, node, *_ = _IN.unpack_from(message)
            if operation in silent:
                continue
            body, failed = b"", 0
            try:
                answer = self._answers.get(operation)
                body = answer(node, message[_IN.size :]) if answer else b""
                failed = 0 if answer else errno.ENOSYS
            except OSError as error:
                failed = error.errno or errno.EIO
            with contextlib.suppress(FileNotFoundError):  # who asked was killed meanwhile
                os.write(device, _OUT.pack(_OUT.size + len(body), -failed, unique) + body)

    def _begin(self, _: int, body: bytes) -> bytes:
        _, _, ahead, _ = struct.unpack_from("<IIII", body)
        return struct.pack("<IIIIHHIIHHII24x", 7, 31, ahead, 0, 12, 9, _LARGEST, 1, _LARGEST // 4096, 0, 0, 0)

    def _attributes(self, path: str) -> bytes:
        found = os.lstat(path)
        times = [found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns]
        whole, rest = [value // 10**9 for value in times], [value % 10**9 for value in times]
        owner = (found.st_mode, found.st_nlink, found.st_uid, found.st_gid, 0, 4096, 0)
        return _ATTRIBUTES.pack(found.st_ino, found.st_size, found.st_blocks, *whole, *rest, *owner)

    def _lookup(self, node: int, body: bytes) -> bytes:
        path = os.path.join(self._paths[node], os.fsdecode(body.rstrip(b"\0")))
        attributes = self._attributes(path)
        number = self._ids.setdefault(path, len(self._ids) + 1)
        self._paths[number] = path
        return struct.pack("<QQQQII", number, 0, 0, 0, 0, 0) + attributes

    def _attributes_of(self, node: int, _: bytes) -> bytes:
        return struct.pack("<QII", 0, 0, 0) + self._attributes(self._paths[node])

    def _open(self, node: int, _: bytes) -> bytes:
        return struct.pack("<QII", os.open(self._paths[node], os.O_RDONLY), 1, 0)

    def _read(self, _: int, body: bytes) -> bytes:
        file, offset, size = struct.unpack_from("<QQI", body)
        return os.pread(file, size, offset)

    def _release(self, _: int, body: bytes) -> bytes:
        os.close(struct.unpack_from("<Q", body)[0])
        return b""

    def _list(self, node: int, body: bytes) -> bytes:
        _, offset, size = struct.unpack_from("<QQI", body)
        listed = b""
        for position, name in enumerate(sorted(os.listdir(self._paths[node])), 1):
            if position <= offset:
                continue
            status = os.lstat(os.path.join(self._paths[node], name))
            raw = os.fsencode(name)
            entry = struct.pack("<QQII", status.st_ino, position, len(raw), stat.S_IFMT(status.st_mode) >> 12) + raw
            entry += b"\0" * (-len(entry) % 8)
            if len(listed) + len(entry) > size:
                break
            listed += entry
        return listed


def main() -> None:
    """Mount and serve until unmounted."""
    folder, at = Path(sys.argv[1]), sys.argv[2]
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    system = ctypes.CDLL(None, use_errno=True)
    if system.mount(b"share", os.fsencode(at), b"fuse", _READ_ONLY, options):
        raise OSError(ctypes.get_errno(), "mount")
    _Server(folder).serve(device)


if __name__ == "__main__":
    main()
