"""From a file in a watched folder to a row that is ready: look, wait, judge.

Hints, scans, markers and submissions all end in the same look at one file. A file is ready when its structure is
complete (see `complete`) and it was unchanged for a while; the while is spared where the file itself declares that it
is whole and its writer closed it, or where it was submitted. A file that stays incomplete is listed as failed and
looked at again when it changes. Times are monotonic: a jump of the wall clock changes nothing.
"""

from __future__ import annotations

import heapq
import logging
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ssai3d_rt.imaging.openfile import shown
from ssai3d_rt.runtime.complete import Judgement, completeness
from ssai3d_rt.runtime.ledger import Fault, State
from ssai3d_rt.runtime.scan import MARKER, Found, candidate, scan
from ssai3d_rt.runtime.submit import pending

if TYPE_CHECKING:
    from pathlib import Path

    from ssai3d_rt.runtime.book import Book
    from ssai3d_rt.runtime.hints import Hints
    from ssai3d_rt.runtime.ledger import Entry
    from ssai3d_rt.runtime.roots import Roots
    from ssai3d_rt.runtime.settings import WatchSettings
    from ssai3d_rt.runtime.source import Identity

logger = logging.getLogger(__name__)

_PENDING = (State.SEEN, State.WAITING)
_AT_WORK = (State.RUNNING, State.PUBLISHING)
_INBOX_S = 0.5
_JUDGED_AT_ONCE = 200
"""Files judged before the worker is heard again."""


@dataclass(slots=True)
class _Look:
    """What is known of a file that is waited for, beside its row."""

    changed_at: float
    closed: bool = False
    submitted: bool = False


class Intake:
    """Takes files into the book.

    Parameters
    ----------
    book, roots, hints, settings
        The daemon's.
    """

    def __init__(self, book: Book, roots: Roots, hints: Hints, settings: WatchSettings) -> None:
        self._book, self._roots, self._hints, self._settings = book, roots, hints, settings
        self._looks: dict[Path, _Look] = {}
        self._due: list[tuple[float, Path]] = []
        self._next_scan = self._next_inbox = 0.0
        self._missing: set[Path] = set()

    def step(self, now: float) -> None:
        """Do all that is due."""
        paths, scan_now = self._hints.take()
        if scan_now or now >= self._next_scan:
            self._hints.supervise()
            self._scan(now)
            self._next_scan = time.monotonic() + self._settings.scan_s
        for path, closed in paths.items():
            self._hint(path, closed, now)
        if now >= self._next_inbox:
            self._take_submissions(now)
            self._next_inbox = now + _INBOX_S
        if self._due and self._due[0][0] <= now:
            self._judge_due(now)

    def _judge_due(self, now: float) -> None:
        with self._book.ledger.batch():
            for _ in range(_JUDGED_AT_ONCE):
                if not self._due or self._due[0][0] > now:
                    return
                _, path = heapq.heappop(self._due)
                if path in self._looks:
                    self._judge(path, now)

    def look(self, path: Path, found: Identity | None, now: float) -> None:
        """Look at one file as it is now (`found`: see `scan.candidate`)."""
        if found is None:
            return
        entry = self._book.rows.get(path)
        if entry is None:
            self._book.see(path, found)
            self._wait(path, now)
        elif entry.state in _AT_WORK:
            return  # a change is noticed when the work ends
        elif found != entry.identity or entry.state is State.GONE:
            if entry.state in _PENDING:
                self._book.touch(entry, found)
            else:
                reason = "it is back" if entry.state is State.GONE else "it changed"
                self._book.move(entry, State.WAITING, identity=found, attempts=0, reason=reason)
            self._wait(path, now)
        elif path not in self._looks and (entry.state in _PENDING or entry.fault is Fault.INCOMPLETE):
            self._wait(path, now)

    def wait_again(self, entry: Entry, reason: str) -> None:
        """Send a row back to waiting: it turned out not to be complete, or changed while it was read."""
        found = candidate(entry.path)
        if found is None:
            self._book.move(entry, State.GONE, reason=reason)
            return
        self._book.move(entry, State.WAITING, identity=found, reason=reason)
        self._wait(entry.path, time.monotonic())

    def _wait(self, path: Path, now: float) -> None:
        self._looks[path] = _Look(now)
        heapq.heappush(self._due, (now + self._settings.quiet_s, path))

    def _hint(self, path: Path, closed: bool, now: float) -> None:
        if self._roots.root_of(path) is None:
            return
        if path.name.lower().endswith(MARKER):
            self._next_scan = now
            return
        self.look(path, candidate(path), now)
        look = self._looks.get(path)
        if look is not None:
            look.closed = closed
            if closed:
                heapq.heappush(self._due, (now, path))

    def _scan(self, now: float) -> None:
        for root in self._roots.folders:
            found = scan(root) if root.is_dir() else None
            if found is None or (not found.whole and not found.files):
                if root not in self._missing:
                    logger.warning(
                        "%s cannot be read; nothing is taken for deleted, it is looked for again", shown(root)
                    )
                self._missing.add(root)
                continue
            if root in self._missing:
                logger.warning("%s is back", shown(root))
                self._missing.discard(root)
            with self._book.ledger.batch():
                for path, identity in found.files.items():
                    self.look(path, identity, now)
                if found.whole:
                    self._forget(root, found)
            self._take_markers(found, now)

    def _forget(self, root: Path, found: Found) -> None:
        open_states = (*_PENDING, State.READY, State.FAILED, State.SKIPPED)
        lost = [
            entry
            for path, entry in self._book.rows.items()
            if entry.state in open_states and path not in found.files and path.is_relative_to(root)
        ]
        for entry in lost:
            if not os.path.lexists(entry.path):
                self._looks.pop(entry.path, None)
                self._book.move(entry, State.GONE, reason="the file is gone")

    def _take_markers(self, found: Found, now: float) -> None:
        folders = {path: value for path, value in found.markers.items() if path not in found.files}
        for path in found.files if folders else found.markers.keys() & found.files.keys():
            value = found.markers.get(path) or next((folders[p] for p in path.parents if p in folders), "")
            entry = self._book.rows[path]
            if value and entry.nudge != value:
                entry = self._book.move(entry, entry.state, nudge=value, reason=entry.reason, fault=entry.fault)
                self._submitted(entry, now)

    def _take_submissions(self, now: float) -> None:
        for word, path in pending(self._roots.out):
            files: list[Path] = []
            if path is not None and self._roots.root_of(path) is not None:
                files = list(scan(path).files) if path.is_dir() else [path]
            for file in files:
                self.look(file, candidate(file), now)
                if (entry := self._book.rows.get(file)) is not None:
                    self._submitted(entry, now)
            if not files:
                logger.warning("submitted: %s; it is not a stack in a watched folder", shown(path or word))
            word.unlink(missing_ok=True)

    def _submitted(self, entry: Entry, now: float) -> None:
        if entry.state in (State.FAILED, State.SKIPPED):
            entry = self._book.move(entry, State.WAITING, attempts=0, reason="it was submitted again")
            self._wait(entry.path, now)
        look = self._looks.get(entry.path)
        if look is not None:
            look.submitted = True
            heapq.heappush(self._due, (now, entry.path))

    def _judge(self, path: Path, now: float) -> None:
        look, entry = self._looks[path], self._book.rows[path]
        if entry.state not in _PENDING and entry.fault is not Fault.INCOMPLETE:
            del self._looks[path]
            return
        found = candidate(path)
        if found != entry.identity:
            self.look(path, found, now)
            return
        unchanged_s = now - look.changed_at
        quiet = unchanged_s >= self._settings.quiet_s
        if not (quiet or look.closed or look.submitted):
            heapq.heappush(self._due, (look.changed_at + self._settings.quiet_s, path))
            return
        judged = completeness(path)
        if judged.state is Judgement.COMPLETE and (quiet or look.submitted or judged.declared):
            self._settle(entry, State.READY)
        elif judged.state is Judgement.BROKEN and quiet:
            self._settle(entry, State.FAILED, fault=Fault.INPUT, reason=judged.reason)
        elif judged.state is Judgement.NOT_OURS and quiet:
            self._settle(entry, State.SKIPPED, reason=judged.reason)
        elif judged.state is Judgement.GROWING and quiet:
            self._still_growing(entry, judged.reason, unchanged_s, now)
        else:
            heapq.heappush(self._due, (look.changed_at + self._settings.quiet_s, path))

    def _still_growing(self, entry: Entry, reason: str, unchanged_s: float, now: float) -> None:
        patience_s = self._settings.incomplete_after_s
        if unchanged_s >= patience_s or entry.fault is Fault.INCOMPLETE:
            if entry.fault is not Fault.INCOMPLETE:
                words = f"incomplete: {reason}; nothing new for {patience_s:g} s"
                self._book.move(entry, State.FAILED, fault=Fault.INCOMPLETE, reason=words)
            heapq.heappush(self._due, (now + patience_s, entry.path))  # another file of its set may come
            return
        if entry.state is not State.WAITING or entry.reason != reason:
            self._book.move(entry, State.WAITING, reason=reason)
        wait_s = min(patience_s - unchanged_s, max(self._settings.quiet_s, self._settings.scan_s))
        heapq.heappush(self._due, (now + max(wait_s, 0.05), entry.path))

    def _settle(self, entry: Entry, state: State, *, fault: Fault = Fault.NONE, reason: str = "") -> None:
        del self._looks[entry.path]
        self._book.move(entry, state, fault=fault, reason=reason)
