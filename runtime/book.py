"""The open ledger, the rows on which something is to be done in memory, and whoever listens to it.

The daemon's one place for changes: a change is committed first, then seen by the rest of the daemon, then told to the
listener. A listener that fails is logged and never stops the work. Rows that are settled stay in the ledger, of which
there may be a million.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ssai3d_rt.imaging.openfile import shown
from ssai3d_rt.runtime.ledger import SETTLED, Entry, Fault, Ledger, State

if TYPE_CHECKING:
    from collections.abc import Mapping
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
    fault
        What kind of failure it was, where it failed.
    """

    path: Path
    state: State
    reason: str = ""
    seconds: float = 0.0
    results: tuple[Path, ...] = ()
    fault: Fault = Fault.NONE

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
        self.counts = Counter(ledger.counts())
        self._open: dict[Path, Entry] = {entry.path: entry for entry in ledger.open_entries()}
        self.ready: dict[Path, None] = {path: None for path, entry in self._open.items() if entry.state is State.READY}

    def row(self, path: Path) -> Entry | None:
        """Return the row of a file; None where it was never seen."""
        return self._open.get(path) or self.ledger.entry(path)

    def __getitem__(self, path: Path) -> Entry:
        """Return the row of a file that was seen."""
        entry = self.row(path)
        if entry is None:
            raise KeyError(path)
        return entry

    def unchanged(self, files: Mapping[Path, Identity]) -> set[Path]:
        """Return those of some files that are settled, and still what they were then."""
        if not files:
            return set()
        sought = {
            (os.fsencode(path), str(now.inode), now.size, now.mtime_ns, now.ctime_ns): path
            for path, now in files.items()
        }
        return {sought[row] for row in self.ledger.settled() if row in sought}

    def see(self, path: Path, identity: Identity) -> Entry:
        """Enter a file that was not known."""
        entry = self._open[path] = self.ledger.see(path, identity)
        self.counts[entry.state.value] += 1
        self._tell(entry)
        return entry

    def touch(self, entry: Entry, identity: Identity) -> Entry:
        """Note the new identity of a file that is waited for; the ledger learns it with the next move."""
        entry = self._open[entry.path] = replace(entry, identity=identity)
        return entry

    def move(self, entry: Entry, state: State, **changes: Any) -> Entry:
        """Move a row, see `Ledger.move`."""
        new = self.ledger.move(entry, state, **changes)
        self.counts[entry.state.value] -= 1
        self.counts[state.value] += 1
        if state in SETTLED and new.fault is not Fault.INCOMPLETE:
            self._open.pop(entry.path, None)
        else:
            self._open[entry.path] = new
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
            seconds = entry.seconds if done else 0.0
            self._listener(WatchEvent(entry.path, entry.state, entry.reason, seconds, results, entry.fault))
        except Exception:
            logger.exception("a listener failed")
