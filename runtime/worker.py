"""The daemon's side of its processes: start one, give it a command, hear it, throw it away, start another.

Nothing here waits, but for `ask`: `Worker.poll` returns what has been said since the last call. A process that dies, or
says nothing for too long, is thrown away and the next one starts after a back-off; the caller does the same to one that
failed in a way it did not expect (`restart`), because a graphics card that faulted once may answer with garbage until
its process is gone. Which stack is to blame is for the caller to decide.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import subprocess
import sys
import threading
import time
from collections import deque
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from ssai3d_rt.runtime.messages import (
    Command,
    Ended,
    Message,
    NotReady,
    Pace,
    Progressed,
    Ready,
    Setup,
    receive,
    send,
)

if TYPE_CHECKING:
    from ssai3d_rt.runtime.messages import Recipe
    from ssai3d_rt.runtime.settings import WatchSettings

logger = logging.getLogger(__name__)

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_START = "import sys; sys.path[:] = {path!r}; from ssai3d_rt.runtime.child import serve; serve()"
_GAPS = 500
_ENOUGH_GAPS = 50
_HANG_FACTOR, _HANG_LEAST_S = 10.0, 30.0
"""At work on tiles, a silence of so many times the 99th percentile of those before is a hang."""
_END_S = 0.5
_FIRST_SHRUNK = 8
_ASK_START_S = 60.0


class Worker:
    """One process at a time.

    Parameters
    ----------
    recipe
        What to restore with; None for a process that only looks at sources.
    settings
        Patience, priority, memory and threads.
    """

    def __init__(self, recipe: Recipe | None, settings: WatchSettings) -> None:
        self._pickled = None if recipe is None else pickle.dumps(recipe)
        self._what = "restoring process" if recipe is not None else "examining process"
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._heard: SimpleQueue[Message] = SimpleQueue()
        self._reader: threading.Thread | None = None
        self._ready = False
        self._busy = False
        self._rhythm = _Rhythm()
        self._heard_at = 0.0
        self._failures = 0
        self._start_at = 0.0
        self._share = 1.0
        self._most_tiles: int | None = None
        self.name = ""
        self.restarts = 0

    @property
    def idle(self) -> bool:
        """Whether a command can be given now."""
        return self._ready and not self._busy

    @property
    def process_id(self) -> int | None:
        """Id of the process, None while there is none."""
        return self._process.pid if self._process else None

    @property
    def failures(self) -> int:
        """Failures in a row, the last of them not yet followed by an answer."""
        return self._failures

    @property
    def silent_s(self) -> float:
        """Seconds since it was last heard while at work; 0 where it is not."""
        return time.monotonic() - self._heard_at if self._busy else 0.0

    def order(self, command: Command) -> None:
        """Give a command; only while `idle`."""
        if not self.idle:
            raise RuntimeError("the worker is not idle")
        self._busy = True
        self._heard_at = time.monotonic()
        self._rhythm.begin()
        self._say(command)

    def ask(self, command: Command, timeout_s: float) -> Message:
        """Give a command, and wait for its answer; a process that takes longer is ended, and `Ended` says so.

        Starts the process first where there is none. For commands that take no time on sources in order.
        """
        deadline = time.monotonic() + min(self._settings.start_s, _ASK_START_S)
        self._start_at = 0.0
        while not self.idle:
            for message in self.poll():
                if isinstance(message, Ended | NotReady):
                    return message
            if time.monotonic() > deadline:
                return Ended(f"the {self._what} does not start")
            time.sleep(0.002)
        self.order(command)
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                message = self._heard.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                self.restart(failed=True)
                return Ended(f"it took longer than {timeout_s:g} s", late=True)
            if isinstance(message, Ended):
                self.restart(failed=True)
                return message
            if not isinstance(message, Progressed):
                self._busy, self._failures = False, 0
                return message

    def pace(self, share: float) -> None:
        """Have it at work for this share of the time, from now on; 0 pauses it between two batches of tiles."""
        if share != self._share:
            self._share = share
            self._say(Pace(share))

    def poll(self) -> list[Message]:
        """Return what was said since the last call; start the process where it is due, kill it where it hangs."""
        now = time.monotonic()
        if self._process is None:
            if now >= self._start_at:
                self._start(now)
            return []
        messages: list[Message] = []
        with contextlib.suppress(Empty):
            while True:
                messages.append(self._heard.get_nowait())
        for message in messages:
            if isinstance(message, Ready):
                self._ready, self.name = True, message.name
            elif isinstance(message, Ended | NotReady):
                self.restart(failed=True)
                return messages
            elif isinstance(message, Progressed):
                self._rhythm.heard(message, now - self._heard_at)
            else:
                self._busy, self._failures = False, 0
            self._heard_at = now
        patience_s = self._rhythm.patience_s(self._settings.stall_s) if self._ready else self._settings.start_s
        if (self._busy or not self._ready) and now - self._heard_at > patience_s:
            self.restart(failed=True)
            messages.append(Ended(f"the {self._what} said nothing for {patience_s:g} s and was ended"))
        return messages

    def restart(self, *, failed: bool) -> None:
        """Throw the process away; the next `poll` starts another one, after a back-off where it `failed`."""
        self.close()
        self.restarts += 1
        self._failures = self._failures + 1 if failed else 0
        self._start_at = time.monotonic() + (self._settings.wait_s(self._failures) if failed else 0.0)

    def shrink(self) -> bool:
        """Throw the process away; the next one runs half as many tiles at once. False where it cannot be less."""
        if self._most_tiles == 1:
            return False
        self._most_tiles = _FIRST_SHRUNK if self._most_tiles is None else self._most_tiles // 2
        self.close()
        self.restarts += 1
        self._start_at = 0.0
        return True

    def close(self) -> None:
        """End the process, at once."""
        if self._process is not None:
            self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):  # it waits for a share that does not answer
                self._process.wait(_END_S)
            if self._process.stdin is not None:
                with contextlib.suppress(OSError):  # what was not yet sent cannot be
                    self._process.stdin.close()
            if self._reader is not None:
                self._reader.join(_END_S)
            # What waits for a share that does not answer cannot be ended; the reader is left behind with its pipe.
            if self._process.stdout is not None and (self._reader is None or not self._reader.is_alive()):
                self._process.stdout.close()
        self._process, self._reader = None, None
        self._ready = self._busy = False
        self._heard = SimpleQueue()

    def _start(self, now: float) -> None:
        examines = self._pickled is None
        threads = 1 if examines else self._settings.threads
        environment = dict(os.environ)
        if threads is not None:
            environment |= dict.fromkeys(_THREAD_VARIABLES, str(threads))
        new_group = 0x200  # CREATE_NEW_PROCESS_GROUP: no Ctrl-C
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START.format(path=sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=sys.platform != "win32",
            creationflags=new_group if sys.platform == "win32" else 0,
        )
        self._heard_at = now
        self._reader = threading.Thread(
            target=_listen, args=(self._process, self._heard, self._what), name=self._what, daemon=True
        )
        self._reader.start()
        memory_bytes = self._settings.examine_bytes_or_default if examines else None
        self._say(Setup(self._pickled, self._settings.nice, self._settings.idle_disk, memory_bytes, self._most_tiles))
        if self._share != 1.0:
            self._say(Pace(self._share))

    def _say(self, said: object) -> None:
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):  # it just died: poll() will say so
                send(self._process.stdin, said)


class _Rhythm:
    """How long the process was silent between two batches of tiles, and so what silence is a hang."""

    def __init__(self) -> None:
        self._gaps: deque[float] = deque(maxlen=_GAPS)
        self._in_tiles = False

    def begin(self) -> None:
        self._in_tiles = False

    def heard(self, message: Progressed, gap_s: float) -> None:
        if self._in_tiles:
            self._gaps.append(gap_s)
        self._in_tiles = 0 < message.done < message.total

    def patience_s(self, most_s: float) -> float:
        """Seconds; at work on tiles it is learnt, before and after (opening, writing to the disk) it is `most_s`."""
        if not self._in_tiles or len(self._gaps) < _ENOUGH_GAPS:
            return most_s
        slowest = sorted(self._gaps)[int(0.99 * len(self._gaps))]
        return min(most_s, max(_HANG_LEAST_S, _HANG_FACTOR * slowest))


def _listen(process: subprocess.Popen[bytes], heard: SimpleQueue[Message], what: str) -> None:
    if process.stdout is None:
        return
    try:
        while True:
            heard.put(receive(process.stdout))
    except (EOFError, OSError, ValueError):
        code = process.wait()
        how = f"by signal {-code}" if code < 0 else f"with exit status {code}"
        heard.put(Ended(f"the {what} ended {how}"))
