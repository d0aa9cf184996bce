"""What the daemon and its processes say to each other: commands one way, messages the other.

Both are pickles over private pipes between a parent and its own child; nothing else ever reads or writes them. Who runs
the commands is in `child`, who gives them in `worker`.

>>> import io
>>> stream = io.BytesIO()
>>> send(stream, Progressed("restore", 3, 8))
>>> _ = stream.seek(0)
>>> receive(stream)
Progressed(label='restore', done=3, total=8)
"""

from __future__ import annotations

import pickle
import struct
from dataclasses import dataclass
from enum import Enum
from typing import IO, TYPE_CHECKING, Any, Protocol

from ssai3d_rt.runtime.publish import RESULT_SUFFIX, Sealed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ssai3d_rt.errors import Ssai3dError
    from ssai3d_rt.progress import Progress
    from ssai3d_rt.runtime.complete import Completeness
    from ssai3d_rt.runtime.source import Identity

_LENGTH = struct.Struct("<Q")


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
        """Restore all stacks of a source into new files in `order.folder`, named by `publish.temporary_name`.

        Raises what `restore_position` does; a `MemoryError`, or a `BackendError` that says so, where the device has too
        little memory.
        """

    def check(self) -> None:
        """Prove that the device still computes what it should; raises `DeviceError` where it does not."""

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

    def open(self, most_tiles: int | None = None, /) -> Restorer:
        """Make the restorer, which runs at most so many tiles at once; called in the child."""

    def made(self, result: Path, content: str, /) -> int:
        """Of how many files the result is that this file belongs to; 0 where it was not made by this recipe from that.

        Called in the daemon.
        """


class Kind(str, Enum):
    """Whose fault an error is, and so what to do next."""

    INPUT = "input"
    INCOMPLETE = "incomplete"
    NOT_OURS = "not-ours"
    """In order, but no stack."""
    STORAGE = "storage"
    MEMORY = "memory"
    """The device has too little memory for so many tiles at once."""
    DEVICE = "device"
    """The device computes nonsense; the process is thrown away, and what it made and is not published, too."""
    WORKER = "worker"


@dataclass(frozen=True, slots=True)
class Setup:
    """What a process is told first.

    Parameters
    ----------
    recipe
        A pickled `Recipe`; None for a process that only looks at sources.
    nice, idle_disk
        How far it steps back for others.
    memory_bytes
        More address space than this it cannot have (POSIX); None where a GPU's driver needs more than it uses.
    most_tiles
        See `Recipe.open`.
    """

    recipe: bytes | None
    nice: int
    idle_disk: bool
    memory_bytes: int | None = None
    most_tiles: int | None = None


@dataclass(frozen=True, slots=True)
class Look:
    """Command: say what a path below a watched folder is now."""

    path: Path
    root: Path


@dataclass(frozen=True, slots=True)
class Judge:
    """Command: say whether a source is complete."""

    path: Path


@dataclass(frozen=True, slots=True)
class Examine:
    """Command: hash the files of a source, and decode all of its planes."""

    source: Path
    files: tuple[Path, ...]
    voxel_z_um: float | None
    voxel_xy_um: float | None


@dataclass(frozen=True, slots=True)
class Restore:
    """Command: restore a source, with this SHA-256, into temporary files in a folder, and seal them."""

    source: Path
    content: str
    folder: Path


@dataclass(frozen=True, slots=True)
class Pace:
    """Not a command: from now on be at work for this share of the time (0: pause); it is heard at once."""

    share: float


Command = Look | Judge | Examine | Restore


@dataclass(frozen=True, slots=True)
class Ready:
    """Message: the process can be given commands."""

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
class Looked:
    """Message: what the path belongs to (itself, or a data set), the identity of that, None where it is not there.

    `place` tells which folder, on which disk, has the name of the watched one; empty where none has.
    """

    owner: Path
    identity: Identity | None
    place: str


@dataclass(frozen=True, slots=True)
class Judged:
    """Message: whether the source is complete."""

    found: Completeness


@dataclass(frozen=True, slots=True)
class Examined:
    """Message: the source can be read; SHA-256 of its files."""

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
    """Message (made by the parent's side): the process is no more; `late`, because an answer took too long."""

    reason: str = "the process ended"
    late: bool = False


Message = Ready | NotReady | Progressed | Looked | Judged | Examined | Restored | Failed | Ended


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
