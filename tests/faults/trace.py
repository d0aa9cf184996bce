"""Faults at an exact system call, and a record of the calls, through strace.

A counter of strace's belongs to one thread and one call: `when=3` of `fsync` is the third fsync of that thread since
strace came. The daemon's own thread and its child's first thread do all that matters to a result, so a single thread
is traced, from the moment on when the daemon waits for its first stack.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.faults.lab import Daemon, Lab

CHANGES = (
    "write,pwrite64,writev,fsync,fdatasync,rename,renameat,renameat2,link,linkat,unlink,unlinkat,ftruncate,"
    "fallocate,mkdir,mkdirat,sendto"
)
"""Calls that change something outside the process."""

_CALL = re.compile(r"^(?:\d+ +)?(\w+)\((.*)$", re.MULTILINE)


@contextlib.contextmanager
def attached(pid: int, log: Path, calls: str, inject: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """Trace one thread of a running process while inside, into `log`; `inject` as in strace's `-e inject=`.

    Raises
    ------
    RuntimeError
        strace cannot attach to it.
    """
    words = ["strace", "-qq", "-y", "-p", str(pid), "-o", str(log), "-e", f"trace={calls}", "-e", "signal=none"]
    if inject:
        words += ["-e", f"inject={inject}"]
    tracer = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 20.0
        while not _is_traced(pid):
            if tracer.poll() is not None or time.monotonic() > deadline:
                tracer.kill()
                said = tracer.stderr.read().decode(errors="replace") if tracer.stderr else ""
                raise RuntimeError(f"strace does not attach: {said}")
            time.sleep(0.005)
        yield tracer
    finally:
        tracer.terminate()
        tracer.wait()
        if tracer.stderr is not None:
            tracer.stderr.close()


def ready_pid(lab: Lab, daemon: Daemon, whom: str) -> int:
    """Wait until the restoring process is ready; return its id, or the daemon's."""
    lab.wait(lambda: "restoring with" in daemon.log)
    return daemon.pid if whom == "daemon" else daemon.restorer()


def calls_of(log: Path) -> list[tuple[str, str]]:
    """Return (call, the rest of its line) for every call in a log."""
    return _CALL.findall(log.read_text(errors="replace"))


def points(log: Path) -> list[tuple[str, int]]:
    """Every call of a log as (call, which of its kind), in the order in which they came."""
    seen: Counter[str] = Counter()
    found = []
    for name, _ in calls_of(log):
        seen[name] += 1
        found.append((name, seen[name]))
    return found


def _is_traced(pid: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except OSError:
        return False
    return "TracerPid:\t0\n" not in text
