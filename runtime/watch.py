"""The daemon: watch folders, restore every stack that becomes complete, publish each result once.

At least once: what becomes complete under a watched folder is restored, or listed as failed with the reason. Exactly
one visible result per file and (content, bundle, parameters), whole or not there. Raw data are opened for reading only.
Events are hints, a scan against the ledger is the truth; the restoration runs in a process that can be thrown away.
Stopped in any way, also by `kill -9` or a power cut, the next start goes on where this one ended.

```
 hints ─┐                      ┌─ completeness              ┌─ worker process
 scan ──┴─> intake ─> ledger ──┴─> ready ─> line (one stack) ┴─> publish ─> ledger: done
```
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ssai3d_rt.errors import ConfigError
from ssai3d_rt.imaging.openfile import shown
from ssai3d_rt.progress import silent
from ssai3d_rt.runtime.book import Book, Listener, WatchEvent
from ssai3d_rt.runtime.database import LedgerError
from ssai3d_rt.runtime.hints import Hints, is_network
from ssai3d_rt.runtime.intake import Intake
from ssai3d_rt.runtime.ledger import Job, Ledger
from ssai3d_rt.runtime.line import Line, recover
from ssai3d_rt.runtime.publish import make_folder
from ssai3d_rt.runtime.roots import Roots
from ssai3d_rt.runtime.settings import WatchSettings
from ssai3d_rt.runtime.status import ledger_of, remember_ledger

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ssai3d_rt.export.bundle import Bundle
    from ssai3d_rt.progress import Progress
    from ssai3d_rt.runtime.messages import Recipe

__all__ = ["WatchEvent", "WatchSettings", "stop_on_signals", "watch"]

logger = logging.getLogger(__name__)

_TICK_S = 0.1
_REOPEN_S = 5.0


def watch(
    folders: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    bundle: str | os.PathLike[str] | Bundle | Recipe,
    out: str | os.PathLike[str],
    *,
    settings: WatchSettings | None = None,
    stop: threading.Event | None = None,
    listener: Listener | None = None,
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
    stop
        Set it to stop. Without one, Ctrl-C and SIGTERM do (in the main thread), see `stop_on_signals`.
    listener
        Called with a `WatchEvent` for every change of a file's state; from this thread.
    progress
        Told how the stack at work gets on.

    Returns
    -------
    dict
        Number of files by state, when stopped.

    Raises
    ------
    ConfigError
        Folders that contradict each other, or a ledger on a network file system.
    BundleError, BackendError
        The bundle cannot be restored with on this machine.
    StorageError
        Another daemon works into the same output folder, or the folder or ledger cannot be used.
    """
    if stop is None:
        with stop_on_signals() as stop:
            return watch(folders, bundle, out, settings=settings, stop=stop, listener=listener, progress=progress)
    settings = settings or WatchSettings()
    roots = Roots([Path(f) for f in ([folders] if isinstance(folders, str | os.PathLike) else folders)], Path(out))
    recipe = _recipe(bundle, settings)
    make_folder(roots.out)
    path = settings.ledger or ledger_of(roots.out)
    if is_network(path.parent if path.parent.is_dir() else roots.out):
        raise ConfigError(
            f"the ledger {shown(path)} is on a network file system; set `ledger` to a file on a local disk"
        )
    job = Job(recipe.bundle_id, recipe.parameters)
    ledger = Ledger(path, job)
    remember_ledger(roots.out, path)
    while not stop.is_set():
        try:
            with ledger:
                return _run(ledger, roots, recipe, settings, stop, listener, progress)
        except LedgerError as error:  # noqa: PERF203
            # As after a crash: what is in memory may differ from the ledger, so begin again from the ledger.
            logger.error("%s; the daemon begins again", error)
            ledger = _reopened(path, job, stop)
    with ledger:
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


def _reopened(path: Path, job: Job, stop: threading.Event) -> Ledger:
    """Open the ledger as soon as its disk allows; the last failure passes through where the daemon is stopped."""
    while True:
        stop.wait(_REOPEN_S)
        try:
            return Ledger(path, job)
        except LedgerError:
            if stop.is_set():
                raise


def _recipe(bundle: str | os.PathLike[str] | Bundle | Recipe, settings: WatchSettings) -> Recipe:
    if not isinstance(bundle, str | os.PathLike) and hasattr(bundle, "made"):
        return cast("Recipe", bundle)
    from ssai3d_rt.export.bundle import Bundle
    from ssai3d_rt.runtime.recipe import BundleRecipe

    return BundleRecipe.of(bundle if isinstance(bundle, Bundle) else Bundle.open(Path(cast("str", bundle))), settings)


def _run(
    ledger: Ledger,
    roots: Roots,
    recipe: Recipe,
    settings: WatchSettings,
    stop: threading.Event,
    listener: Listener | None,
    progress: Progress,
) -> dict[str, int]:
    recover(ledger, roots.out)
    book = Book(ledger, listener)
    hints = Hints(roots.folders, settings)
    intake = Intake(book, roots, hints, settings)
    line = Line(book, roots, intake, settings, recipe, progress)
    try:
        line.check_results()
        while not stop.is_set():
            now = time.monotonic()
            intake.step(now)
            line.step(now)
            stop.wait(_TICK_S)
        deadline = time.monotonic() + settings.stop_s
        while line.busy and time.monotonic() < deadline:
            line.step(time.monotonic(), take_new=False)
            time.sleep(_TICK_S)
        line.abandon()
        return ledger.counts()
    finally:
        line.close()
        hints.stop()
