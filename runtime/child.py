"""The process that restores: what runs in it, and what it and the daemon say to each other.

The daemon starts it, gives it a recipe for a restorer and then one command at a time; it answers with messages. It may
crash, hang or be killed at any moment: it owns nothing but a temporary file. When the daemon ends, however it ends, the
pipe closes and this process ends too. Messages are pickles over private pipes between a parent and its own child;
standard output is turned away from that pipe, so that a library that prints cannot garble it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import pickle
import struct
import sys
import threading
from dataclasses import dataclass, field
from enum import Enum
from queue import SimpleQueue
from typing import IO, TYPE_CHECKING, Any, Protocol

from ssai3d_rt.errors import IncompleteError, InputError, Ssai3dError, StorageError
from ssai3d_rt.runtime.publish import RESULT_SUFFIX, Sealed, seal
from ssai3d_rt.runtime.source import content_hash

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ssai3d_rt.progress import Progress

logger = logging.getLogger(__name__)

_LENGTH = struct.Struct("<Q")
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}


@dataclass(frozen=True, slots=True)
class Part:
    """One file of a result, under a temporary name, and how to read it back and check it (raises where it is wrong).

    `label` tells the positions of one source apart (an only one has none), `suffix` what is in the file, `warnings`
    what a user must know before believing it.
    """

    temporary: Path
    check: Callable[[Path], object]
    label: str = ""
    suffix: str = RESULT_SUFFIX
    warnings: tuple[str, ...] = ()


class Restorer(Protocol):
    """Restores files one after the other; made once per process."""

    name: str

    def restore(self, order: Restore, progress: Progress, /) -> list[Part]:
        """Restore all stacks of a source into new files in `order.folder`, named by `publish.temporary_name`."""

    def close(self) -> None:
        """Let go of the device."""


class Recipe(Protocol):
    """What the daemon hands to its child; must be picklable."""

    @property
    def bundle_id(self) -> str:
        """Tells one bundle from another."""

    @property
    def parameters(self) -> str:
        """What else decides the result, as text."""

    def open(self) -> Restorer:
        """Make the restorer; called in the child."""

    def made(self, result: Path, content: str, /) -> bool:
        """Whether a file under a result's name was made by this recipe from that content; called in the daemon."""


class Kind(str, Enum):
    """Whose fault an error is, and so what to do next."""

    INPUT = "input"
    INCOMPLETE = "incomplete"
    STORAGE = "storage"
    WORKER = "worker"


@dataclass(frozen=True, slots=True)
class Hash:
    """Command: hash a source."""

    files: list[Path]


@dataclass(frozen=True, slots=True)
class Restore:
    """Command: restore a source, with this SHA-256, into temporary files in a folder, and seal them."""

    source: Path
    content: str
    folder: Path


@dataclass(frozen=True, slots=True)
class Ready:
    """Message: the restorer is made."""

    name: str


@dataclass(frozen=True, slots=True)
class NotReady:
    """Message: the restorer cannot be made; `error` is set where the failure is an expected one."""

    reason: str
    error: Ssai3dError | None


@dataclass(frozen=True, slots=True)
class Progressed:
    """Message: the work goes on."""

    label: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Hashed:
    """Message: SHA-256 of the source."""

    content: str


@dataclass(frozen=True, slots=True)
class Restored:
    """Message: the temporary files are whole, checked and on the disk; by label and suffix."""

    parts: dict[tuple[str, str], Sealed]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Failed:
    """Message: the command failed; the process lives on."""

    kind: Kind
    reason: str


@dataclass(frozen=True, slots=True)
class Ended:
    """Message (made by the parent's side): the process is no more."""

    reason: str = field(default="the restoring process ended")


Message = Ready | NotReady | Progressed | Hashed | Restored | Failed | Ended


def send(stream: IO[bytes], message: object) -> None:
    """Write one message."""
    data = pickle.dumps(message)
    stream.write(_LENGTH.pack(len(data)) + data)
    stream.flush()


def receive(stream: IO[bytes]) -> Any:
    """Read one message.

    Raises
    ------
    EOFError
        The other side is gone.
    """
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    (length,) = _LENGTH.unpack(head)
    data = stream.read(length)
    if len(data) < length:
        raise EOFError
    return pickle.loads(data)


def serve() -> None:
    """Run the child: make the restorer, then answer commands until the daemon is gone."""
    commands: SimpleQueue[Any] = SimpleQueue()
    inbound = os.fdopen(os.dup(0), "rb")
    outbound = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    os.close(0)
    os.open(os.devnull, os.O_RDONLY)

    def listen() -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                commands.put(receive(inbound))
        os._exit(0)  # at once, in the middle of a computation too

    threading.Thread(target=listen, name="commands", daemon=True).start()
    nice, pickled = commands.get()
    if hasattr(os, "nice"):
        with contextlib.suppress(OSError):
            os.nice(nice)
    try:
        restorer = pickle.loads(pickled).open()
    except Exception as error:
        expected = isinstance(error, Ssai3dError)
        if not expected:
            logger.exception("the restorer could not be made")
        send(outbound, NotReady(_words(error), error if isinstance(error, Ssai3dError) else None))
        return
    send(outbound, Ready(restorer.name))
    while True:
        send(outbound, _answer(restorer, commands.get(), outbound))


def _answer(restorer: Restorer, command: Hash | Restore, outbound: IO[bytes]) -> Message:
    def progress(label: str, done: int, total: int, /) -> None:
        send(outbound, Progressed(label, done, total))

    try:
        if isinstance(command, Hash):
            return _hash(command)
        parts = restorer.restore(command, progress)
        warnings = dict.fromkeys(sentence for part in parts for sentence in part.warnings)
        sealed = {(part.label, part.suffix): seal(part.temporary, part.check) for part in parts}
        return Restored(sealed, tuple(warnings))
    except IncompleteError as error:
        return Failed(Kind.INCOMPLETE, _words(error))
    except InputError as error:
        return Failed(Kind.INPUT, _words(error))
    except StorageError as error:
        return Failed(Kind.STORAGE, _words(error))
    except OSError as error:
        return Failed(Kind.STORAGE if error.errno in _DISK_ERRORS else Kind.WORKER, _words(error))
    except Exception as error:
        if not isinstance(error, Ssai3dError):
            logger.exception("restoring failed")
        return Failed(Kind.WORKER, _words(error))


def _hash(command: Hash) -> Hashed | Failed:
    try:
        return Hashed(content_hash(command.files))
    except OSError as error:
        return Failed(Kind.INCOMPLETE, f"it cannot be read: {error.strerror or error}")


def _words(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, Ssai3dError) else f"{type(error).__name__}: {text}"


if __name__ == "__main__":
    sys.exit("this module is run by `ssai3d-rt watch`")
