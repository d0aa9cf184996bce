"""From a file in a watched folder to a row that is ready: look, wait, judge.

Hints, scans, markers and submissions all end in the same look at one file. A file is ready when its structure is
complete (see `complete`) and it was unchanged for a while; the while is spared where the file itself declares that it
is whole and its writer closed it, or where it was submitted. A file that stays incomplete is listed as failed and
looked at again when it changes. Times are monotonic: a jump of the wall clock changes nothing.

After the first scan of a folder only what differs from the scan before is looked at. A folder that cannot be read, that
does not answer, or in whose place there is another one (a share that was unmounted leaves its empty mount point) has
nothing taken for deleted.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from typing import TYPE_CHECKING

from ssai3d_rt.imaging.openfile import shown
from ssai3d_rt.runtime.agenda import Agenda
from ssai3d_rt.runtime.complete import Judgement
from ssai3d_rt.runtime.ledger import Fault, State
from ssai3d_rt.runtime.publish import discard
from ssai3d_rt.runtime.scan import MARKER, Found, is_data_set, scan
from ssai3d_rt.runtime.scanner import Scanned, Scanner
from ssai3d_rt.runtime.submit import pending

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from ssai3d_rt.runtime.book import Book
    from ssai3d_rt.runtime.hints import Hints
    from ssai3d_rt.runtime.inspector import Inspector
    from ssai3d_rt.runtime.ledger import Entry
    from ssai3d_rt.runtime.messages import Looked
    from ssai3d_rt.runtime.roots import Roots
    from ssai3d_rt.runtime.settings import WatchSettings
    from ssai3d_rt.runtime.source import Identity

logger = logging.getLogger(__name__)

_PENDING = (State.SEEN, State.WAITING)
_AT_WORK = (State.RUNNING, State.PUBLISHING)
_INBOX_S = 0.5
_JUDGING_S = 0.5
"""Time spent on judging before the worker is heard again."""
_SLOW_SCANS, _SLOW_S = 3.0, 10.0
"""A folder whose scan takes longer than so many intervals or last scans, and so many seconds, does not answer."""
_STIRRED_S, _STIRRED_SCANS = 1.0, 5.0
_FORGOTTEN_AT_ONCE = 10_000
_WAITED_FOR = (*_PENDING, State.READY, State.FAILED, State.SKIPPED)


class AwayError(Exception):
    """A watched folder does not answer, or is not the one that it was."""


class Intake:
    """Takes files into the book.

    Parameters
    ----------
    book, roots, hints, inspector, settings
        The daemon's.
    """

    def __init__(self, book: Book, roots: Roots, hints: Hints, inspector: Inspector, settings: WatchSettings) -> None:
        self._book, self._roots, self._hints, self._settings = book, roots, hints, settings
        self._inspector = inspector
        self._scanner = Scanner(roots.folders, hints.supervise)
        self._places: dict[Path, str] = {}
        self._last: dict[Path, dict[Path, Identity]] = {}
        self._markers: dict[Path, str] = {}
        self._agenda = Agenda()
        self._stirred: dict[Path, bool] = {}
        self._folders: dict[Path, int] = {}
        self._next_scan = self._next_inbox = 0.0
        self._written_at = -float("inf")
        self.problems: dict[Path, str] = dict.fromkeys(roots.folders, "")
        """By watched folder: why it is not watched just now, or empty."""
        self.scanned_at: dict[Path, float] = {}
        """By watched folder: when its last scan was picked up, monotonic."""
        self.scan_took_s: dict[Path, float] = {}

    def step(self, now: float) -> None:
        """Do all that is due."""
        paths, scan_now = self._hints.take()
        if scan_now or now >= self._next_scan:
            self._scanner.start()
            self._next_scan = now + self._settings.scan_s
        for scanned in self._scanner.take():
            self._take_scan(scanned, now)
        self._note_slow_folders()
        self._stirred |= paths
        self._take_hints(now)
        if now >= self._next_inbox:
            self._take_submissions(now)
            self._next_inbox = now + _INBOX_S
        self._judge_due(now)

    def acquiring(self, now: float) -> bool:
        """Whether something was written to a watched folder a moment ago."""
        return now - self._written_at < self._settings.acquiring_s

    def answers(self, path: Path) -> bool:
        """Whether the watched folder of a path can be read just now."""
        root = self._roots.root_of(path)
        return root is not None and not self.problems[root]

    def close(self) -> None:
        """Let the scans end."""
        self._scanner.stop()

    def _judge_due(self, now: float) -> None:
        until = time.monotonic() + _JUDGING_S
        with self._book.ledger.batch():
            while time.monotonic() < until and (path := self._agenda.due(now)) is not None:
                if self.answers(path):
                    self._judge(path, now)
                else:
                    self._agenda.schedule(path, now + self._settings.scan_s)

    def look(self, path: Path, found: Identity | None, now: float) -> None:
        """Look at one file as it is now (`found`: see `scan.candidate`)."""
        if found is None:
            return
        entry = self._book.row(path)
        if entry is None:
            self._book.see(path, found)
            self._wait(path, now)
            if abs(time.time() - found.mtime_ns / 1e9) < self._settings.acquiring_s:
                self._written_at = now
        elif entry.state in _AT_WORK:
            return  # a change is noticed when the work ends
        elif found != entry.identity or entry.state is State.GONE:
            self._written_at = now
            if entry.state in _PENDING:
                self._book.touch(entry, found)
            else:
                reason = "it is back" if entry.state is State.GONE else "it changed"
                self._book.move(entry, State.WAITING, identity=found, attempts=0, reason=reason)
            self._wait(path, now)
        elif path not in self._agenda and (entry.state in _PENDING or entry.fault is Fault.INCOMPLETE):
            self._wait(path, now)

    def wait_again(self, entry: Entry, reason: str) -> None:
        """Send a row back to waiting: it turned out not to be complete, or changed while it was read."""
        try:
            found = self.identity(entry.path)
        except AwayError:
            if entry.state is State.RUNNING:
                self._book.move(entry, State.READY, attempts=entry.attempts - 1, reason=reason)
            return
        if found is None:
            self._lose(entry, reason)
            return
        self._book.move(entry, State.WAITING, identity=found, reason=reason)
        self._wait(entry.path, time.monotonic())

    def identity(self, path: Path) -> Identity | None:
        """Return what a source is now, None where it is gone from its watched folder.

        Raises
        ------
        AwayError
            That folder does not answer, or is not the one that it was: nothing can be said.
        """
        looked = self._look_at(path)
        if looked.identity is None and looked.place != self._places.get(self._root(path)):
            self._next_scan = 0.0
            raise AwayError
        return looked.identity

    def _look_at(self, path: Path) -> Looked:
        root = self._root(path)
        if self.problems[root]:
            raise AwayError
        looked = self._inspector.look(path, root)
        if looked is None:
            self._problem(root, "does not answer")
            raise AwayError
        return looked

    def _root(self, path: Path) -> Path:
        root = self._roots.root_of(path)
        if root is None:
            raise AwayError
        return root

    def _lose(self, entry: Entry, reason: str) -> None:
        """Note that a file is not there; a scan that finds it again takes it for a new one."""
        self._agenda.drop(entry.path)
        for files in self._last.values():
            files.pop(entry.path, None)
        self._book.move(entry, State.GONE, reason=reason)

    def _wait(self, path: Path, now: float) -> None:
        self._agenda.begin(path, now)
        self._agenda.schedule(path, now + self._settings.quiet_s)

    def _take_hints(self, now: float) -> None:
        if not self._stirred:
            return
        until = time.monotonic() + _JUDGING_S
        with self._book.ledger.batch():
            while self._stirred and time.monotonic() < until:
                path = next(iter(self._stirred))
                with contextlib.suppress(AwayError):
                    self._hint(path, self._stirred.pop(path), now)

    def _hint(self, path: Path, closed: bool, now: float) -> None:
        if path.name.lower().endswith(MARKER):
            self._next_scan = now
            return
        looked = self._look_at(path)
        if looked.owner != path:
            # Something in a data set, which may have thousands of files: the next scan comes sooner.
            took_s = self.scan_took_s.get(self._root(path), 0.0)
            self._next_scan = min(self._next_scan, now + max(_STIRRED_S, _STIRRED_SCANS * took_s))
            if looked.owner not in self._agenda:
                self.look(looked.owner, looked.identity, now)
            return
        self.look(path, looked.identity, now)
        look = self._agenda.get(path)
        if look is not None:
            look.closed = closed
            if closed:
                self._agenda.schedule(path, now)

    def _take_scan(self, scanned: Scanned, now: float) -> None:
        root, found = scanned.root, scanned.found
        self.scanned_at[root], self.scan_took_s[root] = now, scanned.took_s
        if found is None:
            self._problem(root, "cannot be read")
            return
        replaced = self._replaced(scanned, found)
        if replaced and not found.files:
            self._problem(root, "is empty, and another folder than before (is its disk or share not mounted?)")
            return
        self._problem(root, "")
        if not replaced:
            self._places[root] = scanned.place
        self._folders[root] = found.folders
        self._hints.note_shortage(sum(self._folders.values()))
        last = self._last.get(root)
        if last is None:
            settled = self._book.unchanged(found.files)
            changed = [path for path in found.files if path not in settled]
        else:
            changed = [path for path, identity in found.files.items() if last.get(path) != identity]
        with self._book.ledger.batch():
            for path in changed:
                self.look(path, found.files[path], now)
            if found.whole and not replaced:
                self._forget(root, found, last)
        if not replaced:
            self._last[root] = found.files
        news = {path: value for path, value in found.markers.items() if self._markers.get(path) != value}
        self._take_markers(found, found.files if news else changed, now)
        self._markers |= news

    def _replaced(self, scanned: Scanned, found: Found) -> bool:
        """Whether there is another folder in the place of a watched one, with none of the files that it held."""
        ledger, key = self._book.ledger, f"root {os.fsencode(scanned.root).hex()}"
        before = ledger.noted(key)
        if before == scanned.place:
            return False
        last = self._last.get(scanned.root)
        same = any(map(self._book.row, found.files)) if last is None else any(path in last for path in found.files)
        known = not before or same or not ledger.knows_below(scanned.root)
        if known:
            ledger.note(key, scanned.place)
        return not known

    def _problem(self, root: Path, words: str) -> None:
        if words and not self.problems[root]:
            logger.warning("%s %s; nothing is taken for deleted, it is looked for again", shown(root), words)
        elif self.problems[root] and not words:
            logger.warning("%s is back", shown(root))
        self.problems[root] = words

    def _note_slow_folders(self) -> None:
        longest_s = max([self._settings.scan_s, *self.scan_took_s.values()])
        for root in self._scanner.slow(max(_SLOW_S, _SLOW_SCANS * longest_s)):
            if not self.problems[root]:
                self._problem(root, "does not answer")

    def _forget(self, root: Path, found: Found, last: dict[Path, Identity] | None) -> None:
        """Note which files are gone on which something was still to be done."""
        if last is None:
            entries = self._book.ledger.below(root, _WAITED_FOR, _FORGOTTEN_AT_ONCE)
        else:
            rows = (self._book.row(path) for path in last if path not in found.files)
            entries = [entry for entry in rows if entry is not None and entry.state in _WAITED_FOR]
        for entry in entries:
            if entry.path not in found.files and not os.path.lexists(entry.path):
                self._lose(entry, "the file is gone")

    def _take_markers(self, found: Found, files: Iterable[Path], now: float) -> None:
        if not found.markers:
            return
        folders = {path: value for path, value in found.markers.items() if path not in found.files}
        for path in files:
            value = found.markers.get(path) or next((folders[p] for p in path.parents if p in folders), "")
            entry = self._book[path]
            if value and entry.nudge != value:
                entry = self._book.move(entry, entry.state, nudge=value, reason=entry.reason, fault=entry.fault)
                self._submitted(entry, now)

    def _take_submissions(self, now: float) -> None:
        for word, path in pending(self._roots.out):
            files: list[Path] = []
            if path is not None and self._roots.root_of(path) is not None:
                files = list(scan(path).files) if path.is_dir() and not is_data_set(path) else [path]
            for file in files:
                with contextlib.suppress(AwayError):
                    self.look(file, self.identity(file), now)
                if (entry := self._book.row(file)) is not None:
                    self._submitted(entry, now)
            if not files:
                logger.warning("submitted: %s; it is not a stack in a watched folder", shown(path or word))
            discard(word)

    def _submitted(self, entry: Entry, now: float) -> None:
        if entry.state in (State.FAILED, State.SKIPPED):
            entry = self._book.move(entry, State.WAITING, attempts=0, reason="it was submitted again")
            self._wait(entry.path, now)
        look = self._agenda.get(entry.path)
        if look is not None:
            look.submitted = True
            self._agenda.schedule(entry.path, now)

    def _judge(self, path: Path, now: float) -> None:
        look, entry = self._agenda.get(path), self._book[path]
        if look is None or (entry.state not in _PENDING and entry.fault is not Fault.INCOMPLETE):
            self._agenda.drop(path)
            return
        try:
            found = self.identity(path)
        except AwayError:
            self._agenda.schedule(path, now + self._settings.scan_s)
            return
        if found is None:
            self._lose(entry, "the file is gone")
            return
        if found != entry.identity:
            self.look(path, found, now)
            return
        unchanged_s = now - look.changed_at
        quiet = unchanged_s >= self._settings.quiet_s
        if not (quiet or look.closed or look.submitted):
            self._agenda.schedule(path, look.changed_at + self._settings.quiet_s)
            return
        judged = self._inspector.judge(path)
        if judged.state is Judgement.COMPLETE and (quiet or look.submitted or judged.declared):
            self._settle(entry, State.READY)
        elif judged.state is Judgement.BROKEN and quiet:
            self._settle(entry, State.FAILED, fault=Fault.INPUT, reason=judged.reason)
        elif judged.state is Judgement.NOT_OURS and quiet:
            self._settle(entry, State.SKIPPED, reason=judged.reason)
        elif judged.state is Judgement.GROWING and quiet:
            self._still_growing(entry, judged.reason, unchanged_s, now)
        else:
            self._agenda.schedule(path, look.changed_at + self._settings.quiet_s)

    def _still_growing(self, entry: Entry, reason: str, unchanged_s: float, now: float) -> None:
        patience_s = self._settings.incomplete_after_s
        if unchanged_s >= patience_s or entry.fault is Fault.INCOMPLETE:
            if entry.fault is not Fault.INCOMPLETE:
                words = f"incomplete: {reason}; nothing new for {patience_s:g} s"
                self._book.move(entry, State.FAILED, fault=Fault.INCOMPLETE, reason=words)
            self._agenda.schedule(entry.path, now + patience_s)  # another file of its set may come
            return
        if entry.state is not State.WAITING or entry.reason != reason:
            self._book.move(entry, State.WAITING, reason=reason)
        wait_s = min(patience_s - unchanged_s, max(self._settings.quiet_s, self._settings.scan_s))
        self._agenda.schedule(entry.path, now + max(wait_s, 0.05))

    def _settle(self, entry: Entry, state: State, *, fault: Fault = Fault.NONE, reason: str = "") -> None:
        self._agenda.drop(entry.path)
        self._book.move(entry, state, fault=fault, reason=reason)
