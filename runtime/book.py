"""The open ledger with its rows in memory, and whoever listens to it.

The daemon's one place for changes: a change is committed first, then seen by the rest of the daemon, then told to the
listener. A listener that fails is logged and never stops the work.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ssai3d_rt.imaging.openfile import shown
from ssai3d_rt.runtime.ledger import Entry, Ledger, State

if TYPE_CHECKING:
    from pathlib import Path

    from ssai3d_rt.runtime.source import Identity

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """What happened to a file.

    Parameters
    ----------
    path
        The source.
    state
        Its state now.
    reason
        Why, where that is not plain.
    seconds
        Time of the restoration, where it is done.
    results
        The published files, where it is done.
    """

    path: Path
    state: State
    reason: str = ""
    seconds: float = 0.0
    results: tuple[Path, ...] = ()

    def __str__(self) -> str:
        """One line for people."""
        words = [f"{self.state.value:10} {shown(self.path)}"]
        if self.results:
            words.append("-> " + ", ".join(shown(result) for result in self.results))
        if self.state is State.DONE and self.seconds:
            words.append(f"({self.seconds:.1f} s)")
        return " ".join(words) + (f": {self.reason}" if self.reason else "")


Listener = Callable[[WatchEvent], object]


class Book:
    """Rows of the running job.

    Parameters
    ----------
    ledger
        Open.
    listener
        Told of every change of a state or its reason.
    """

    def __init__(self, ledger: Ledger, listener: Listener | None = None) -> None:
        self.ledger = ledger
        self._listener = listener
        self.rows: dict[Path, Entry] = {entry.path: entry for entry in ledger.entries()}
        self.ready: dict[Path, None] = {path: None for path, entry in self.rows.items() if entry.state is State.READY}

    def see(self, path: Path, identity: Identity) -> Entry:
        """Enter a file that was not known."""
        entry = self.rows[path] = self.ledger.see(path, identity)
        self._tell(entry)
        return entry

    def touch(self, entry: Entry, identity: Identity) -> Entry:
        """Note the new identity of a file that is waited for; the ledger learns it with the next move."""
        entry = self.rows[entry.path] = replace(entry, identity=identity)
        return entry

    def move(self, entry: Entry, state: State, **changes: Any) -> Entry:
        """Move a row, see `Ledger.move`."""
        new = self.rows[entry.path] = self.ledger.move(entry, state, **changes)
        if state is State.READY:
            self.ready[entry.path] = None
        else:
            self.ready.pop(entry.path, None)
        if (new.state, new.reason) != (entry.state, entry.reason):
            self._tell(new)
        return new

    def _tell(self, entry: Entry) -> None:
        if self._listener is None:
            return
        done = entry.state is State.DONE
        results = tuple(result.path for result in entry.results) if done else ()
        try:
            self._listener(WatchEvent(entry.path, entry.state, entry.reason, entry.seconds if done else 0.0, results))
        except Exception:
            logger.exception("a listener failed")
