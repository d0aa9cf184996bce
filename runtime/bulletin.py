"""Tell the world how the daemon is: its vital signs, and the service manager.

Collects from the daemon's parts, once a second, what `vitals` and `notify` want to know. It decides nothing.
"""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING

from ssai3d_rt.runtime.ledger import State
from ssai3d_rt.runtime.vitals import WorkerState

if TYPE_CHECKING:
    from pathlib import Path

    from ssai3d_rt.runtime.book import Book, WatchEvent
    from ssai3d_rt.runtime.intake import Intake
    from ssai3d_rt.runtime.line import Canary, Line
    from ssai3d_rt.runtime.notify import Notifier
    from ssai3d_rt.runtime.roots import Roots
    from ssai3d_rt.runtime.settings import WatchSettings
    from ssai3d_rt.runtime.vitals import Vitals

_EVERY_S = 1.0
_WRITE_S = 10.0
BEAT = "beat"
"""Key under which the ledger holds when the daemon last wrote to it, seconds since 1970."""


class Bulletin:
    """What is told of one daemon.

    Parameters
    ----------
    vitals, notifier
        Who is told.
    roots, settings
        The daemon's.
    """

    def __init__(self, vitals: Vitals, notifier: Notifier, roots: Roots, settings: WatchSettings) -> None:
        self._vitals, self._notifier, self._roots, self._settings = vitals, notifier, roots, settings
        self._next = self._next_write = 0.0
        self._scanned_at: dict[Path, float] = {}
        self._ready_at: dict[Path, float] = {}
        self._canary: Canary | None = None
        self._said_ready = False

    def hear(self, event: WatchEvent) -> None:
        """Count what happened to a file."""
        now = time.monotonic()
        if event.state is State.READY:
            self._ready_at.setdefault(event.path, now)
        elif event.state in (State.DONE, State.FAILED, State.GONE):
            complete_at = self._ready_at.pop(event.path, now)
            if event.state is State.DONE and event.seconds:
                self._vitals.done(event.seconds, now - complete_at)
            elif event.state is State.FAILED:
                self._vitals.failed(event.fault.value)

    def step(self, now: float, book: Book, intake: Intake, line: Line) -> None:
        """Tell what there is to tell; call it every turn of the loop."""
        self.beat(now)
        if now < self._next:
            return
        self._next = now + _EVERY_S
        if now >= self._next_write:
            self._next_write = now + _WRITE_S
            book.ledger.note(BEAT, f"{time.time():.3f}")
            self._vitals.ledger()
        for root, problem in intake.problems.items():
            scanned_at = intake.scanned_at.get(root)
            if problem:
                self._vitals.root(root, problem=problem)
            elif scanned_at is not None and self._scanned_at.get(root) != scanned_at:
                self._vitals.root(root, took_s=intake.scan_took_s.get(root, 0.0))
                self._scanned_at[root] = scanned_at
        self._tell_disk(line.refused)
        if line.canary is not None and line.canary is not self._canary:
            self._canary = line.canary
            self._vitals.canary(line.canary.passed, line.canary.detail)
        worker = line.worker
        state = WorkerState.BUSY if line.busy else WorkerState.IDLE if worker.idle else WorkerState.STARTING
        if worker.process_id is None and worker.failures:
            state = WorkerState.BACKING_OFF
        self._vitals.worker(state, restarts=worker.restarts, failures=worker.failures)
        self._vitals.paused(line.paused)
        counts = {name: number for name, number in book.counts.items() if number}
        self._vitals.counts(counts)
        words = ", ".join(f"{number} {name}" for name, number in counts.items()) or "nothing seen yet"
        if self._said_ready:
            self._notifier.status(words)
        else:
            self._said_ready = True
            self._notifier.ready(words)

    def ledger_failed(self, words: str) -> None:
        """Tell that the ledger cannot be written; the daemon lives and tries again."""
        self.beat(time.monotonic())
        self._vitals.ledger(words)
        self._next_write = 0.0

    def beat(self, now: float) -> None:
        """Tell that the daemon is alive."""
        self._vitals.beat()
        self._notifier.beat(now)

    def stopping(self) -> None:
        """Tell that the daemon ends."""
        self._notifier.stopping()
        self._vitals.worker(WorkerState.STOPPED)

    def _tell_disk(self, problem: str) -> None:
        try:
            free = shutil.disk_usage(self._roots.out).free
        except OSError as error:
            self._vitals.disk(0, self._settings.reserve_bytes, problem=str(error.strerror or error))
            return
        self._vitals.disk(free, self._settings.reserve_bytes, problem=problem)
