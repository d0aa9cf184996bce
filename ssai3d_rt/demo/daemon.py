"""`RunningWatch`: ``ssai3d-rt watch`` as a rig runs it, in a process of its own.

The demo starts the same command that a user would start, follows it in its ledger and asks it to stop the way a service
manager does. It knows of the daemon only what any other program can see: command line, log, ledger and results.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import IO, TYPE_CHECKING, Any

from ssai3d_rt.errors import IncompleteError, InputError, StorageError
from ssai3d_rt.runtime.status import summary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path
    from types import TracebackType

STOP_S = 30.0
"""How long the daemon may take to finish what it holds after it was asked to stop."""

POLL_S = 0.1

# A group of its own, so that Ctrl-C in the terminal reaches the demo alone, which then stops the daemon.
if sys.platform == "win32":
    _GROUP_OF_ITS_OWN: dict[str, Any] = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    _STOP = signal.CTRL_BREAK_EVENT
else:
    _GROUP_OF_ITS_OWN: dict[str, Any] = {"start_new_session": True}
    _STOP = signal.SIGTERM


class RunningWatch:
    """A running ``ssai3d-rt watch``; use it as a context.

    Parameters
    ----------
    folder, out, bundle
        As for ``ssai3d-rt watch``.
    log
        File that receives all that the daemon prints.
    options
        More options of the command line.
    """

    def __init__(self, folder: Path, out: Path, bundle: Path, log: Path, options: Iterable[str] = ()) -> None:
        self.arguments = ["watch", str(folder), "-o", str(out), "--bundle", str(bundle), *options]
        self._out = out
        self._log = log
        self._stream: IO[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> RunningWatch:
        self._stream = self._log.open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ssai3d_rt.cli", *self.arguments],
            stdin=subprocess.DEVNULL,
            stdout=self._stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            **_GROUP_OF_ITS_OWN,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            if self._process.poll() is None:
                self._process.send_signal(_STOP)
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._stream is not None:
            self._stream.close()

    def wait_until_watching(self, timeout_s: float) -> None:
        """Wait until the daemon holds its ledger: from then on it sees what is acquired.

        Raises
        ------
        IncompleteError
            See `wait_for`.
        """
        self._wait(lambda: bool(self._ledger().get("running")), "it was watching", timeout_s)

    def wait_for(self, result: Path, timeout_s: float) -> None:
        """Wait until `result` is published.

        Raises
        ------
        IncompleteError
            The daemon listed a stack as failed or ended before, or the time is up.
        """
        self._wait(result.exists, f"{result.name} was published", timeout_s)

    def _wait(self, ready: Callable[[], bool], what: str, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not ready():
            code = self._process.poll() if self._process is not None else None
            if code is not None:
                raise IncompleteError(f"watch ended with exit code {code} before {what}; {self._last_words()}")
            if failed := self._ledger().get("failed"):
                raise IncompleteError(f"watch could not restore {failed[0]['path']}: {failed[0]['reason']}")
            if time.monotonic() > deadline:
                raise IncompleteError(f"watch took longer than {timeout_s:.0f} s before {what}; {self._last_words()}")
            time.sleep(POLL_S)

    def _ledger(self) -> dict[str, Any]:
        """Return the ledger's summary; empty while there is none."""
        try:
            return summary(self._out)
        except (InputError, StorageError):
            return {}

    def _last_words(self) -> str:
        """Quote the last line of the log, and say where to read the rest."""
        lines = self._log.read_text("utf-8", errors="replace").split("\n") if self._log.exists() else []
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f'its last line: "{last}"; see {self._log}' if last else f"it printed nothing; see {self._log}"
