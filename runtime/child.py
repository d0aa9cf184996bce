"""The processes that do the daemon's dangerous work: one looks at sources, one restores.

The daemon starts each, tells it how (`Setup`), and then gives it one command at a time; it answers with messages. It
may crash, hang or be killed at any moment: it owns nothing but temporary files. When the daemon ends, however it ends,
the pipe closes and the process ends too. Standard output is turned away from that pipe, so that a library that prints
cannot garble it.

A restored stack is answered for only after the restorer proved, once more and after that stack, that its device
computes what it should: a graphics card that went wrong in between has nothing published.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import pickle
import re
import sys
import threading
import time
from queue import SimpleQueue
from typing import IO, TYPE_CHECKING, Any

import psutil

from ssai3d_rt.errors import (
    BackendError,
    DeviceError,
    IncompleteError,
    InputError,
    NotAStackError,
    Ssai3dError,
    StorageError,
)
from ssai3d_rt.runtime.complete import completeness
from ssai3d_rt.runtime.examine import examine
from ssai3d_rt.runtime.messages import (
    Command,
    Examine,
    Examined,
    Failed,
    Judge,
    Judged,
    Kind,
    Look,
    Message,
    NotReady,
    Pace,
    Part,
    Progressed,
    Ready,
    Restore,
    Restored,
    Restorer,
    Setup,
    receive,
    send,
)
from ssai3d_rt.runtime.publish import discard, seal
from ssai3d_rt.runtime.scanner import looked

if TYPE_CHECKING:
    from ssai3d_rt.progress import Progress

logger = logging.getLogger(__name__)

_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}
_MEMORY_WORDS = re.compile(
    r"out of memory|out_of_memory|bad[ _]alloc|failed to allocate|cudaErrorMemory", re.IGNORECASE
)
_HEARTBEAT_S = 0.5


def serve() -> None:
    """Run a process: hear the setup, then answer commands until the daemon is gone."""
    commands: SimpleQueue[Any] = SimpleQueue()
    pace = _Pacer()
    inbound = os.fdopen(os.dup(0), "rb")
    outbound = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    os.close(0)
    os.open(os.devnull, os.O_RDONLY)

    def listen() -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                said = receive(inbound)
                if isinstance(said, Pace):
                    pace.share = said.share
                else:
                    commands.put(said)
        os._exit(0)  # at once, in the middle of a computation too

    threading.Thread(target=listen, name="commands", daemon=True).start()
    setup: Setup = commands.get()
    step_back(setup.nice, idle_disk=setup.idle_disk)
    if setup.memory_bytes is not None:
        _limit_memory(setup.memory_bytes)
    restorer: Restorer | None = None
    try:
        if setup.recipe is not None:
            restorer = pickle.loads(setup.recipe).open(setup.most_tiles)
    except Exception as error:
        expected = isinstance(error, Ssai3dError)
        if not expected:
            logger.exception("the restorer could not be made")
        send(outbound, NotReady(_words(error), error if isinstance(error, Ssai3dError) else None))
        return
    send(outbound, Ready(restorer.name if restorer is not None else "examiner"))
    while True:
        command = commands.get()
        pace.begin()
        send(outbound, _answer(restorer, command, pace, outbound))


def step_back(nice: int, *, idle_disk: bool) -> None:
    """Let others go first: processor time, and the disk where the system can tell (Linux, Windows)."""
    process = psutil.Process()
    with contextlib.suppress(OSError, psutil.Error):
        if sys.platform == "win32":
            process.nice(psutil.BELOW_NORMAL_PRIORITY_CLASS if nice else psutil.NORMAL_PRIORITY_CLASS)
        else:
            os.nice(nice)
            if nice and sys.platform == "linux":  # at once out of the way of whoever wakes up
                os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    with contextlib.suppress(OSError, psutil.Error, AttributeError):
        if idle_disk and sys.platform == "linux":
            process.ionice(psutil.IOPRIO_CLASS_IDLE)
        elif idle_disk and sys.platform == "win32":
            process.ionice(psutil.IOPRIO_VERYLOW)


def _limit_memory(memory_bytes: int) -> None:
    if sys.platform == "win32":
        return
    import resource

    with contextlib.suppress(OSError, ValueError):  # a lower limit is in force already
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))


class _Pacer:
    """Makes the work pause between two batches of tiles, as long as it takes to be at work for a share of the time."""

    def __init__(self) -> None:
        self.share = 1.0
        self._since = time.monotonic()

    def begin(self) -> None:
        self._since = time.monotonic()

    def rest(self, alive: Message, outbound: IO[bytes]) -> None:
        worked_s = time.monotonic() - self._since
        rested_s = 0.0
        while self.share < 1.0 and (self.share <= 0 or rested_s < worked_s * (1 / self.share - 1)):
            wait_s = _HEARTBEAT_S if self.share <= 0 else min(_HEARTBEAT_S, worked_s * (1 / self.share - 1) - rested_s)
            time.sleep(wait_s)
            rested_s += wait_s
            if rested_s >= _HEARTBEAT_S:
                send(outbound, alive)
        self.begin()


def _answer(restorer: Restorer | None, command: Command, pace: _Pacer, outbound: IO[bytes]) -> Message:
    def progress(label: str, done: int, total: int, /) -> None:
        alive = Progressed(label, done, total)
        send(outbound, alive)
        if done < total:
            pace.rest(alive, outbound)

    try:
        if isinstance(command, Look):
            return looked(command.path, command.root)
        if isinstance(command, Judge):
            return Judged(completeness(command.path))
        if isinstance(command, Examine):
            return Examined(examine(command, progress))
        if restorer is None:
            raise RuntimeError("this process only looks at sources")
        return _restored(restorer, command, progress)
    except IncompleteError as error:
        return Failed(Kind.INCOMPLETE, _words(error))
    except NotAStackError as error:
        return Failed(Kind.NOT_OURS, _words(error))
    except InputError as error:
        return Failed(Kind.INPUT, _words(error))
    except StorageError as error:
        return Failed(Kind.STORAGE, _words(error))
    except MemoryError as error:
        if isinstance(command, Restore):
            return Failed(Kind.MEMORY, f"too little memory ({error})")
        return Failed(Kind.INPUT, "reading it takes more memory than `examine_bytes` allows")
    except DeviceError as error:
        return Failed(Kind.DEVICE, _words(error))
    except BackendError as error:
        return Failed(Kind.MEMORY if _MEMORY_WORDS.search(str(error)) else Kind.WORKER, _words(error))
    except OSError as error:
        if isinstance(command, Examine):
            return Failed(Kind.INCOMPLETE, f"it cannot be read: {error.strerror or error}")
        return Failed(Kind.STORAGE if error.errno in _DISK_ERRORS else Kind.WORKER, _words(error))
    except Exception as error:
        if not isinstance(error, Ssai3dError):
            logger.exception("it failed")
        return Failed(Kind.WORKER, _words(error))


def _restored(restorer: Restorer, command: Restore, progress: Progress) -> Restored:
    parts = restorer.restore(command, progress)
    try:
        restorer.check()
        warnings = dict.fromkeys(sentence for part in parts for sentence in part.warnings)
        sealed = {(part.label, part.suffix): seal(part.temporary, part.check) for part in parts}
    except BaseException:
        _discard(parts)
        raise
    return Restored(sealed, tuple(warnings))


def _discard(parts: list[Part]) -> None:
    for part in parts:
        discard(part.temporary)


def _words(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, Ssai3dError) else f"{type(error).__name__}: {text}"


if __name__ == "__main__":
    sys.exit("this module is run by `ssai3d-rt watch`")
