"""What stands in for threads, processes and the end of a process, where the daemon goes step by step in a test."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from ssai3d_rt.runtime import child
from ssai3d_rt.runtime.messages import Ended, Restore
from ssai3d_rt.runtime.scanner import Scanner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ssai3d_rt.runtime.messages import Command, Message


class Killed(BaseException):
    """The process is no more."""


class Fuse:
    """Ends the process, or fails the ledger or the disk, at one of the next changes of what is on the disk."""

    def __init__(self) -> None:
        self.left: int | None = None
        self.error: BaseException = Killed()

    def burn(self) -> None:
        """Count one change."""
        if self.left is None:
            return
        self.left -= 1
        if self.left < 0:
            self.left = None
            raise self.error

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function that changes what is on the disk: it may end before and after."""

        def wrapped(*args: Any, **options: Any) -> Any:
            self.burn()
            made = function(*args, **options)
            self.burn()
            return made

        return wrapped


class Here:
    """Stands in for `Worker`: commands are answered in this process, by the code that answers them in the other."""

    def __init__(self, restorer: Any, lags: Iterator[int]) -> None:
        self._restorer, self._lags = restorer, lags
        self._answer: tuple[int, Message] | None = None
        self.crash = False
        self.restarts = self.failures = 0
        self.process_id: int | None = None

    @property
    def silent_s(self) -> float:
        """It never hangs."""
        return 0.0

    @property
    def idle(self) -> bool:
        """Whether a command can be given."""
        return self._answer is None

    def order(self, command: Command) -> None:
        """Do it now; it is heard of later."""
        assert self.idle
        if self.crash and isinstance(command, Restore):
            self.crash = False
            self._answer = next(self._lags), Ended("the restoring process ended by signal 9")
            return
        self._answer = next(self._lags), child._answer(self._restorer, command, child._Pacer(), io.BytesIO())

    def poll(self) -> list[Message]:
        """Hear what is due."""
        if self._answer is None:
            return []
        lag, message = self._answer
        if lag:
            self._answer = lag - 1, message
            return []
        self._answer = None
        return [message]

    def restart(self, *, failed: bool) -> None:
        """Forget what it did."""
        self._answer = None
        self.restarts += failed

    def shrink(self) -> bool:
        """There is memory enough."""
        return False

    def pace(self, share: float) -> None:
        """It has no pace."""

    def close(self) -> None:
        """Forget what it did."""
        self._answer = None


class Inline(Scanner):
    """Scans at once, in this thread."""

    def start(self) -> None:
        """Scan every folder."""
        for root in list(self._begun):
            self._run(root)


class Events:
    """Stands in for `Hints`: what the machine wants to be known."""

    def __init__(self) -> None:
        self.paths: dict[Path, bool] = {}
        self.scan = False

    def supervise(self, root: Path) -> None:
        """Nothing runs."""

    def note_shortage(self, folders: int) -> None:
        """Nothing is short."""

    def take(self) -> tuple[dict[Path, bool], bool]:
        """Hand out what was noted."""
        taken = self.paths, self.scan
        self.paths, self.scan = {}, False
        return taken
