"""The daemon's side of the restoring process: start it, give it a command, hear it, throw it away, start another.

Nothing here waits: `Worker.poll` returns what has been said since the last call. A process that dies, or says nothing
for too long, is thrown away and the next one starts after a back-off; the caller does the same to one that failed in a
way it did not expect (`restart`), because a graphics card that faulted once may answer with garbage until its process
is gone. Which stack is to blame is for the caller to decide.
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
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from ssai3d_rt.runtime.child import Ended, Message, NotReady, Progressed, Ready, receive, send

if TYPE_CHECKING:
    from ssai3d_rt.runtime.child import Hash, Recipe, Restore
    from ssai3d_rt.runtime.settings import WatchSettings

logger = logging.getLogger(__name__)

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_START = "import sys; sys.path[:] = {path!r}; from ssai3d_rt.runtime.child import serve; serve()"


class Worker:
    """One restoring process at a time.

    Parameters
    ----------
    recipe
        What to restore with.
    settings
        Patience, priority and threads.
    """

    def __init__(self, recipe: Recipe, settings: WatchSettings) -> None:
        self._pickled = pickle.dumps(recipe)
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._heard: SimpleQueue[Message] = SimpleQueue()
        self._reader: threading.Thread | None = None
        self._ready = False
        self._busy = False
        self._heard_at = 0.0
        self._failures = 0
        self._start_at = 0.0
        self.name = ""

    @property
    def idle(self) -> bool:
        """Whether a command can be given now."""
        return self._ready and not self._busy

    @property
    def process_id(self) -> int | None:
        """Id of the process, None while there is none."""
        return self._process.pid if self._process else None

    def order(self, command: Hash | Restore) -> None:
        """Give a command; only while `idle`."""
        if not self.idle or self._process is None or self._process.stdin is None:
            raise RuntimeError("the worker is not idle")
        self._busy = True
        self._heard_at = time.monotonic()
        with contextlib.suppress(OSError):  # it just died: poll() will say so
            send(self._process.stdin, command)

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
            self._heard_at = now
            if isinstance(message, Ready):
                self._ready, self.name = True, message.name
            elif isinstance(message, Ended | NotReady):
                self.restart(failed=True)
                return messages
            elif not isinstance(message, Progressed):
                self._busy, self._failures = False, 0
        patience_s = self._settings.stall_s if self._ready else self._settings.start_s
        if (self._busy or not self._ready) and now - self._heard_at > patience_s:
            self.restart(failed=True)
            messages.append(Ended(f"the restoring process said nothing for {patience_s:g} s and was ended"))
        return messages

    def restart(self, *, failed: bool) -> None:
        """Throw the process away; the next `poll` starts another one, after a back-off where it `failed`."""
        self.close()
        self._failures = self._failures + 1 if failed else 0
        self._start_at = time.monotonic() + (self._settings.wait_s(self._failures) if failed else 0.0)

    def close(self) -> None:
        """End the process, at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            if self._process.stdin is not None:
                with contextlib.suppress(OSError):  # what was not yet sent cannot be
                    self._process.stdin.close()
            if self._reader is not None:
                self._reader.join()
            if self._process.stdout is not None:
                self._process.stdout.close()
        self._process, self._reader = None, None
        self._ready = self._busy = False
        self._heard = SimpleQueue()

    def _start(self, now: float) -> None:
        environment = dict(os.environ)
        if self._settings.threads is not None:
            environment |= dict.fromkeys(_THREAD_VARIABLES, str(self._settings.threads))
        below_normal = 0x4000 | 0x200  # BELOW_NORMAL_PRIORITY_CLASS | CREATE_NEW_PROCESS_GROUP (no Ctrl-C)
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START.format(path=sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=sys.platform != "win32",
            creationflags=below_normal if sys.platform == "win32" else 0,
        )
        self._heard_at = now
        self._reader = threading.Thread(
            target=_listen, args=(self._process, self._heard), name="restoring process", daemon=True
        )
        self._reader.start()
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                send(self._process.stdin, (self._settings.nice, self._pickled))


def _listen(process: subprocess.Popen[bytes], heard: SimpleQueue[Message]) -> None:
    if process.stdout is None:
        return
    try:
        while True:
            heard.put(receive(process.stdout))
    except (EOFError, OSError, ValueError):
        code = process.wait()
        how = f"by signal {-code}" if code < 0 else f"with exit status {code}"
        heard.put(Ended(f"the restoring process ended {how}"))
