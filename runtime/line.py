"""From a row that is ready to a published result: one stack at a time, each failure put where it belongs.

Hash the source; where its result exists already, say so; restore it in the worker; check that the source did not change
meanwhile; enter the intent; give the result its name; enter it as done. An input that cannot be used fails at once; a
worker that dies is tried again with a new process, a few times; a disk that refuses pauses the line, no stack is to
blame.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ssai3d_rt.errors import BackendError, StorageError
from ssai3d_rt.imaging.openfile import shown
from ssai3d_rt.runtime.child import (
    Ended,
    Failed,
    Hash,
    Hashed,
    Kind,
    Message,
    NotReady,
    Progressed,
    Ready,
    Restore,
    Restored,
)
from ssai3d_rt.runtime.complete import Judgement, completeness
from ssai3d_rt.runtime.database import LedgerError
from ssai3d_rt.runtime.ledger import Entry, Fault, Ledger, Result, State
from ssai3d_rt.runtime.publish import (
    Sealed,
    hash_of,
    holds,
    make_folder,
    place,
    remove_stale,
    require_space,
    result_name,
)
from ssai3d_rt.runtime.scan import candidate
from ssai3d_rt.runtime.worker import Worker

if TYPE_CHECKING:
    from pathlib import Path

    from ssai3d_rt.progress import Progress
    from ssai3d_rt.runtime.book import Book
    from ssai3d_rt.runtime.child import Recipe
    from ssai3d_rt.runtime.intake import Intake
    from ssai3d_rt.runtime.roots import Roots
    from ssai3d_rt.runtime.settings import WatchSettings

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Work:
    path: Path
    folder: Path
    began: float


class Line:
    """Takes ready rows one by one.

    Parameters
    ----------
    book, roots, intake, settings
        The daemon's.
    recipe
        What to restore with.
    progress
        Told how the stack at work gets on.
    """

    def __init__(
        self, book: Book, roots: Roots, intake: Intake, settings: WatchSettings, recipe: Recipe, progress: Progress
    ) -> None:
        self._book, self._roots, self._intake, self._settings = book, roots, intake, settings
        self._recipe, self._progress = recipe, progress
        self._worker = Worker(recipe, settings)
        self._work: _Work | None = None
        self._not_before: dict[Path, float] = {}
        self._paused_until = 0.0
        self._refusals = 0
        self._ever_ready = False

    @property
    def busy(self) -> bool:
        """Whether a stack is at work."""
        return self._work is not None

    def check_results(self) -> None:
        """Put done rows whose result is gone, or has another size, back to work where their source is still there."""
        for entry in list(self._book.rows.values()):
            if entry.state is State.DONE and not _there(entry) and candidate(entry.path) is not None:
                self._book.move(entry, State.READY, attempts=0, reason="its result is no longer there")

    def step(self, now: float, *, take_new: bool = True) -> None:
        """Hear the worker, and give it the next stack."""
        for message in self._worker.poll():
            self._hear(message, now)
        if take_new and self._work is None and self._worker.idle and now >= self._paused_until:
            self._take_next(now)

    def abandon(self) -> None:
        """Give the stack at work up (it is ready again) and end the worker."""
        self._worker.close()
        if self._work is not None:
            entry = self._book.rows[self._work.path]
            remove_stale(self._work.folder, below=False)
            self._work = None
            if entry.state is State.RUNNING:
                self._book.move(entry, State.READY, attempts=entry.attempts - 1, reason="the daemon was stopped")

    def close(self) -> None:
        """End the worker."""
        self._worker.close()

    def _take_next(self, now: float) -> None:
        for path in list(self._book.ready):
            if self._not_before.get(path, 0.0) > now:
                continue
            entry = self._book.rows[path]
            if candidate(path) != entry.identity:
                self._intake.wait_again(entry, "it changed")
                continue
            judged = completeness(path)
            if judged.state is not Judgement.COMPLETE:
                self._intake.wait_again(entry, judged.reason)
                continue
            folder = self._roots.folder_of(path)
            try:
                make_folder(folder)
                require_space(folder, 2 * entry.identity.size, self._settings.reserve_bytes)
            except StorageError as error:
                self._pause(str(error), now)
                return
            self._work = _Work(path, folder, now)
            self._worker.order(Hash([path, *(path.with_name(name) for name in judged.also)]))
            return

    def _hear(self, message: Message, now: float) -> None:
        if isinstance(message, Progressed):
            self._progress(message.label, message.done, message.total)
        elif isinstance(message, Ready):
            self._ever_ready = True
            logger.info("restoring with %s", message.name)
        elif isinstance(message, NotReady):
            if not self._ever_ready:
                raise message.error or BackendError(f"the restoring process cannot start: {message.reason}")
            logger.error("the restoring process cannot start, it is tried again: %s", message.reason)
        elif self._work is None:
            logger.warning("%s; another one is started", getattr(message, "reason", message))
        elif isinstance(message, Hashed):
            self._hashed(self._work, message.content)
        elif isinstance(message, Restored):
            self._restored(self._work, message, now)
        elif isinstance(message, Ended):
            self._failed(self._work, Kind.WORKER, message.reason, now)
        elif isinstance(message, Failed):
            if message.kind is Kind.WORKER:
                self._worker.restart(failed=True)
            self._failed(self._work, message.kind, message.reason, now)

    def _hashed(self, work: _Work, content: str) -> None:
        entry = self._book.rows[work.path]
        if entry.state is not State.READY or self._exists_already(
            entry, content, work.folder
        ):  # it changed while it was hashed
            self._work = None
        else:
            entry = self._book.move(entry, State.RUNNING, content=content, results=(), attempts=entry.attempts + 1)
            self._worker.order(Restore(work.path, content, work.folder))

    def _exists_already(self, entry: Entry, content: str, folder: Path) -> bool:
        """Whether this content has its result: the file was only touched or renamed, or the ledger is new."""
        if entry.content == content and entry.results and _there(entry):
            self._done_before(entry, content, entry.results, "its content did not change")
            return True
        for other in self._book.ledger.with_content(content):
            if other.state is State.DONE and not os.path.lexists(other.path) and _there(other):
                other = self._book.rows[other.path]
                with self._book.ledger.batch():
                    self._book.move(other, State.GONE, results=(), reason=f"it is now {shown(entry.path)}")
                    self._done_before(entry, content, other.results, f"it was {shown(other.path)}")
                return True
        for tag in ("", self._tag(entry.path, content)):
            path = folder / result_name(entry.path.name, tag=tag)
            if path.is_file() and not self._book.ledger.claims(path) and self._recipe.made(path, content):
                result = Result(path, path, hash_of(path), path.stat().st_size)
                self._done_before(entry, content, (result,), "its result was already there")
                return True
        return False

    def _done_before(self, entry: Entry, content: str, results: tuple[Result, ...], reason: str) -> None:
        self._book.move(entry, State.DONE, content=content, results=results, reason=reason)

    def _restored(self, work: _Work, made: Restored, now: float) -> None:
        entry = self._book.rows[work.path]
        found = candidate(work.path)
        if found is not None and found != entry.identity:
            self._work = None
            remove_stale(work.folder, below=False)
            self._intake.wait_again(entry, "it changed while it was read")
            return
        try:
            results = tuple(self._result(entry, work.folder, *name, sealed) for name, sealed in made.parts.items())
            entry = self._book.move(entry, State.PUBLISHING, results=results)
            for result, sealed in zip(results, made.parts.values(), strict=True):
                place(sealed, result.path)
        except LedgerError:
            raise
        except StorageError as error:
            self._failed(work, Kind.STORAGE, str(error), now)
            return
        self._work = None
        if self._refusals:
            self._book.ledger.note("paused", "")
        self._refusals = 0
        self._not_before.pop(work.path, None)
        reason = "; ".join(f"warning: {sentence}" for sentence in made.warnings)
        self._book.move(entry, State.DONE, seconds=time.monotonic() - work.began, reason=reason)

    def _result(self, entry: Entry, folder: Path, label: str, suffix: str, sealed: Sealed) -> Result:
        path = folder / result_name(entry.path.name, label=label, suffix=suffix)
        if os.path.lexists(path) or self._book.ledger.claims(path):
            tag = self._tag(entry.path, entry.content)
            path = folder / result_name(entry.path.name, label=label, tag=tag, suffix=suffix)
        return Result(path, sealed.path, sealed.sha256, sealed.size)

    def _tag(self, path: Path, content: str) -> str:
        """Distinguish the result from one of the same name: of another content, bundle, or file (a.tif, a.tiff)."""
        key = (os.fsencode(path), content.encode(), self._recipe.bundle_id.encode(), self._recipe.parameters.encode())
        return hashlib.sha256(b"\0".join(key)).hexdigest()[:8]

    def _failed(self, work: _Work, kind: Kind, reason: str, now: float) -> None:
        self._work = None
        remove_stale(work.folder, below=False)
        entry = self._book.rows[work.path]
        if entry.state not in (State.READY, State.RUNNING, State.PUBLISHING):
            return
        exhausted = entry.attempts >= self._settings.attempts
        if kind is Kind.STORAGE:
            self._pause(reason, now)
            if entry.state is State.PUBLISHING:
                _take_back(entry)
            attempts = max(0, entry.attempts - 1)
            self._book.move(entry, State.READY, attempts=attempts, results=(), reason=reason)
        elif kind is Kind.INPUT:
            self._book.move(entry, State.FAILED, fault=Fault.INPUT, reason=reason)
        elif kind is Kind.INCOMPLETE and not exhausted:
            self._intake.wait_again(entry, reason)
        elif exhausted:
            fault = Fault.INPUT if kind is Kind.INCOMPLETE else Fault.WORKER
            self._book.move(entry, State.FAILED, fault=fault, reason=f"failed {entry.attempts} times, last: {reason}")
        else:
            attempts = max(entry.attempts, 1)
            self._not_before[entry.path] = now + self._settings.wait_s(attempts)
            self._book.move(entry, State.READY, attempts=attempts, reason=f"tried again after: {reason}")

    def _pause(self, reason: str, now: float) -> None:
        self._refusals += 1
        self._paused_until = now + self._settings.wait_s(self._refusals)
        if self._refusals == 1:
            logger.error("paused, and tried again by itself: %s", reason)
        self._book.ledger.note("paused", reason)


def recover(ledger: Ledger, out: Path) -> None:
    """Finish or take back what an ended daemon was about to publish, and remove its temporary files."""
    for entry in ledger.resume():
        if entry.results and all(_named(result) for result in entry.results):
            ledger.move(entry, State.DONE, reason="published as the daemon ended")
        else:
            _take_back(entry)
            ledger.move(entry, State.READY, results=(), attempts=0, reason="the daemon ended while it was published")
    remove_stale(out)


def _named(result: Result) -> bool:
    """Whether a result has its name, or could be given it now."""
    if holds(result.path, result.sha256, result.size):
        return True
    if os.path.lexists(result.path) or not holds(result.temporary, result.sha256, result.size):
        return False
    try:
        place(Sealed(result.temporary, result.sha256, result.size), result.path)
    except StorageError:
        return False
    return True


def _take_back(entry: Entry) -> None:
    """Remove those files of a result that got their names before the rest could."""
    for result in entry.results:
        if holds(result.path, result.sha256, result.size):
            result.path.unlink()


def _there(entry: Entry) -> bool:
    """Whether the results of a row are there, with their sizes."""
    if not entry.results:
        return False
    try:
        found = [os.lstat(result.path) for result in entry.results]
    except OSError:
        return False
    return all(
        stat.S_ISREG(status.st_mode) and status.st_size == result.size
        for status, result in zip(found, entry.results, strict=True)
    )
