"""The daemon: watch folders, restore every stack that becomes complete, publish each result once.

At least once: what becomes complete under a watched folder is restored, or listed as failed with the reason. Exactly
one visible result per file and (content, bundle, parameters), whole or not there. Raw data are opened for reading only.
Events are hints, a scan against the ledger is the truth; the restoration runs in a process that can be thrown away.
Stopped in any way, also by `kill -9` or a power cut, the next start goes on where this one ended.

```
 hints ─┐          ┌─ inspector          ┌─ examiner ─┬─ worker (the device)
 scans ─┴─> intake ┴─> ledger: ready ─> line ─────────┴─> publish ─> ledger: done
```

The inspector, the examiner and the worker are processes of their own.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ssai3d_rt.errors import ConfigError
from ssai3d_rt.imaging.openfile import shown
from ssai3d_rt.progress import silent
from ssai3d_rt.runtime.book import Book, Listener, WatchEvent
from ssai3d_rt.runtime.bulletin import Bulletin
from ssai3d_rt.runtime.database import DamagedLedgerError, LedgerError, set_aside
from ssai3d_rt.runtime.hints import Hints, is_network
from ssai3d_rt.runtime.inspector import Inspector
from ssai3d_rt.runtime.intake import Intake
from ssai3d_rt.runtime.ledger import Job, Ledger
from ssai3d_rt.runtime.line import Line
from ssai3d_rt.runtime.notify import Notifier
from ssai3d_rt.runtime.publish import make_folder
from ssai3d_rt.runtime.recovery import Patrol, recover
from ssai3d_rt.runtime.roots import Roots
from ssai3d_rt.runtime.settings import WatchSettings
from ssai3d_rt.runtime.status import ledger_of, remember_ledger
from ssai3d_rt.runtime.vitals import Vitals
from ssai3d_rt.runtime.web import HealthSettings, serve

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ssai3d_rt.export.bundle import Bundle
    from ssai3d_rt.progress import Progress
    from ssai3d_rt.runtime.messages import Recipe

__all__ = ["HealthSettings", "WatchEvent", "WatchSettings", "stop_on_signals", "watch"]

logger = logging.getLogger(__name__)

_TICK_S = 0.1
_SHARE = {"full": 1.0, "slow": 0.5, "pause": 0.0}
"""Share of the time that the device is at work while an acquisition goes on."""
_REOPEN_S = 1.0


def watch(
    folders: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    bundle: str | os.PathLike[str] | Bundle | Recipe,
    out: str | os.PathLike[str],
    *,
    settings: WatchSettings | None = None,
    health: HealthSettings | None = None,
    stop: threading.Event | None = None,
    listener: Listener | None = None,
    notifier: Notifier | None = None,
    progress: Progress = silent,
) -> dict[str, int]:
    """Watch folders until stopped.

    Parameters
    ----------
    folders
        One folder, or several, each with all folders below.
    bundle
        A bundle or its folder; or any other recipe to restore with.
    out
        Output folder; mirrors the watched folder, and holds the ledger.
    settings
        See `WatchSettings`.
    health
        Where the daemon's health is served; absent: nowhere.
    stop
        Set it to stop. Without one, Ctrl-C and SIGTERM do (in the main thread), see `stop_on_signals`.
    listener
        Called with a `WatchEvent` for every change of a file's state; from this thread.
    notifier
        The service manager, where one started this process.
    progress
        Told how the stack at work gets on.

    Returns
    -------
    dict
        Number of files by state, when stopped.

    Raises
    ------
    ConfigError
        Folders that contradict each other, a ledger on a network file system, or health that cannot be served.
    BundleError, BackendError
        The bundle cannot be restored with on this machine.
    StorageError
        Another daemon works into the same output folder, or the folder or ledger cannot be used.
    """
    settings = settings or WatchSettings()
    roots = Roots([Path(f) for f in ([folders] if isinstance(folders, str | os.PathLike) else folders)], Path(out))
    recipe = _recipe(bundle, settings)
    make_folder(roots.out)
    path = settings.ledger or ledger_of(roots.out)
    if is_network(path.parent if path.parent.is_dir() else roots.out):
        raise ConfigError(
            f"the ledger {shown(path)} is on a network file system; set `ledger` to a file on a local disk"
        )
    ledger = Ledger(path, Job(recipe.bundle_id, recipe.parameters))
    vitals = Vitals(roots.folders, scan_s=settings.scan_s)
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: ledger.close())  # the one that is open then
        remember_ledger(roots.out, path)
        stop = stop or stack.enter_context(stop_on_signals())
        serving = serve(vitals, health or HealthSettings(), out=roots.out, ledger=path, roots=roots.folders)
        stack.enter_context(serving)
        bulletin = Bulletin(vitals, notifier or Notifier(), roots, settings)
        daemon = _Daemon(roots, recipe, settings, bulletin, listener, progress)
        while not stop.is_set():
            try:
                daemon.run(ledger, stop)
            except LedgerError as error:  # noqa: PERF203
                # As after a crash: what is in memory may differ from the ledger, so begin again from the ledger.
                logger.error("%s; the daemon begins again", error)
                ledger.close()
                if isinstance(error, DamagedLedgerError):
                    set_aside(ledger.path, str(error))
                ledger = _reopened(ledger, stop, bulletin)
        return ledger.counts()


@contextlib.contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """Give an event that Ctrl-C or SIGTERM (on Windows: Ctrl-Break) sets; a second one ends the process at once.

    Signals reach the main thread only; in any other, the event is set by nobody.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    names = [name for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in (getattr(signal, name) for name in names)}

    def ask(number: int, _frame: object) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)

    for number in before:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _reopened(closed: Ledger, stop: threading.Event, bulletin: Bulletin) -> Ledger:
    """Open the ledger as soon as its disk allows; the last failure passes through where the daemon is stopped."""
    again_at = time.monotonic() + _REOPEN_S
    while True:
        stop.wait(_TICK_S)
        bulletin.ledger_failed("it could not be written")
        if time.monotonic() < again_at and not stop.is_set():
            continue
        try:
            return Ledger(closed.path, closed.job)
        except LedgerError:
            if stop.is_set():
                raise
        again_at = time.monotonic() + _REOPEN_S


def _recipe(bundle: str | os.PathLike[str] | Bundle | Recipe, settings: WatchSettings) -> Recipe:
    if not isinstance(bundle, str | os.PathLike) and hasattr(bundle, "made"):
        return cast("Recipe", bundle)
    from ssai3d_rt.export.bundle import Bundle
    from ssai3d_rt.runtime.recipe import BundleRecipe

    return BundleRecipe.of(bundle if isinstance(bundle, Bundle) else Bundle.open(Path(cast("str", bundle))), settings)


@dataclass(frozen=True, slots=True)
class _Daemon:
    roots: Roots
    recipe: Recipe
    settings: WatchSettings
    bulletin: Bulletin
    listener: Listener | None
    progress: Progress

    def run(self, ledger: Ledger, stop: threading.Event) -> None:
        """Go round the loop until stopped; what is at work then may finish if that is quick."""
        settings = self.settings
        recover(ledger, self.roots.out)
        book = Book(ledger, self._hear)
        hints = Hints(self.roots.folders, settings)
        inspector = Inspector(settings)
        intake = Intake(book, self.roots, hints, inspector, settings)
        line = Line(book, self.roots, intake, inspector, settings, self.recipe, self.progress)
        patrol = Patrol(book)
        try:
            while not stop.is_set():
                now = time.monotonic()
                intake.step(now)
                line.pace(_SHARE[settings.while_acquiring] if intake.acquiring(now) else 1.0)
                line.step(now)
                patrol.step()
                self.bulletin.step(now, book, intake, line)
                stop.wait(_TICK_S)
            self.bulletin.stopping()
            deadline = time.monotonic() + settings.stop_s
            line.pace(1.0)
            while line.busy and time.monotonic() < deadline:
                self.bulletin.beat(time.monotonic())
                line.step(time.monotonic(), take_new=False)
                time.sleep(_TICK_S)
            line.abandon()
        finally:
            line.close()
            inspector.close()
            intake.close()
            hints.stop()

    def _hear(self, event: WatchEvent) -> None:
        self.bulletin.hear(event)
        if self.listener is not None:
            self.listener(event)
