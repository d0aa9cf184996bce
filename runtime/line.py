"""From a row that is ready to a published result: one stack restored at a time, the next one examined meanwhile.

Examine the source in a process of its own (hash it, decode every plane); where its result exists already, say so;
restore it in the worker; check that the source did not change meanwhile; enter the intent; give the result its name;
enter it as done. Each failure is put where it belongs: an input that cannot be used fails at once; a process that dies
is tried again with a new one, a few times; a device with too little memory gets fewer tiles at once; a disk that
refuses pauses the line, no stack is to blame.
"""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ssai3d_rt.errors import BackendError, StorageError
from ssai3d_rt.imaging.openfile import shown
from ssai3d_rt.runtime.complete import Judgement
from ssai3d_rt.runtime.database import LedgerError
from ssai3d_rt.runtime.intake import AwayError
from ssai3d_rt.runtime.ledger import Fault, State
from ssai3d_rt.runtime.messages import (
    Ended,
    Examine,
    Examined,
    Failed,
    Kind,
    Message,
    NotReady,
    Progressed,
    Ready,
    Restore,
    Restored,
)
from ssai3d_rt.runtime.publish import make_folder, place, remove_stale, require_space
from ssai3d_rt.runtime.recovery import take_back
from ssai3d_rt.runtime.results import Results
from ssai3d_rt.runtime.scan import files_of
from ssai3d_rt.runtime.worker import Worker

if TYPE_CHECKING:
    from pathlib import Path

    from ssai3d_rt.progress import Progress
    from ssai3d_rt.runtime.book import Book
    from ssai3d_rt.runtime.inspector import Inspector
    from ssai3d_rt.runtime.intake import Intake
    from ssai3d_rt.runtime.messages import Recipe
    from ssai3d_rt.runtime.roots import Roots
    from ssai3d_rt.runtime.settings import WatchSettings

logger = logging.getLogger(__name__)

_HUNG_S = 3.0


@dataclass(frozen=True, slots=True, eq=False)
class Canary:
    """Whether the device computed what it should, and if not, how that showed."""

    passed: bool
    detail: str = ""


@dataclass(slots=True)
class _Work:
    path: Path
    folder: Path
    began: float
    content: str = ""


class Line:
    """Takes ready rows one by one.

    Parameters
    ----------
    book, roots, intake, inspector, settings
        The daemon's.
    recipe
        What to restore with.
    progress
        Told how the stack at work gets on.
    """

    def __init__(
        self,
        book: Book,
        roots: Roots,
        intake: Intake,
        inspector: Inspector,
        settings: WatchSettings,
        recipe: Recipe,
        progress: Progress,
    ) -> None:
        self._book, self._roots, self._intake, self._settings = book, roots, intake, settings
        self._inspector, self._progress = inspector, progress
        self._results = Results(book, recipe)
        self.examiner = Worker(None, settings)
        self.worker = Worker(recipe, settings)
        self._examined: _Work | None = None
        self._next: _Work | None = None
        self._work: _Work | None = None
        self._not_before: dict[Path, float] = {}
        self._paused_until = 0.0
        self._refusals = 0
        self._ever_ready = False
        self.paused = ""
        """Why no stack is begun for now; empty where they are."""
        self.refused = ""
        """What the results' disk said when it refused to store; empty since it last stored something."""
        self.canary: Canary | None = None
        """How the last look at the device ended."""

    @property
    def busy(self) -> bool:
        """Whether a stack is being restored."""
        return self._work is not None

    def step(self, now: float, *, take_new: bool = True) -> None:
        """Hear the processes, and give each its next stack."""
        for message in self.examiner.poll():
            self._hear_examiner(message, now)
        for message in self.worker.poll():
            self._hear(message, now)
        self._give_up_what_hangs()
        if not take_new or now < self._paused_until:
            return
        if self._examined is None and self._next is None and self.examiner.idle:
            self._examine_next(now)
        if self._work is None and self._next is not None and self.worker.idle:
            self._restore_next(now)

    def _give_up_what_hangs(self) -> None:
        """Take a process away from a source whose folder does not answer: others wait for it."""
        work = self._examined
        if work is not None and self.examiner.silent_s > _HUNG_S and not self._intake.answers(work.path):
            self._examined = None
            self.examiner.restart(failed=False)
        work = self._work
        if work is not None and self.worker.silent_s > _HUNG_S and not self._intake.answers(work.path):
            self._work = None
            self.worker.restart(failed=False)
            remove_stale(work.folder, below=False)
            entry = self._book[work.path]
            words = "its folder does not answer"
            self._book.move(entry, State.READY, attempts=max(0, entry.attempts - 1), reason=words)

    def pace(self, share: float) -> None:
        """Have the device at work for this share of the time."""
        self.worker.pace(share)

    def abandon(self) -> None:
        """Give the stack at work up (it is ready again) and end the processes."""
        self.close()
        if self._work is not None:
            entry = self._book[self._work.path]
            remove_stale(self._work.folder, below=False)
            self._work = None
            if entry.state is State.RUNNING:
                self._book.move(entry, State.READY, attempts=entry.attempts - 1, reason="the daemon was stopped")

    def close(self) -> None:
        """End the processes."""
        self.examiner.close()
        self.worker.close()

    def _examine_next(self, now: float) -> None:
        for path in list(self._book.ready):
            if self._not_before.get(path, 0.0) > now or not self._intake.answers(path):
                continue
            entry = self._book[path]
            try:
                found = self._intake.identity(path)
            except AwayError:
                continue
            if found != entry.identity:
                self._intake.wait_again(entry, "it changed")
                continue
            judged = self._inspector.judge(path)
            if judged.state is not Judgement.COMPLETE:
                self._intake.wait_again(entry, judged.reason)
                continue
            self._examined = _Work(path, self._roots.folder_of(path), now)
            files = (*files_of(path), *(path.with_name(name) for name in judged.also))
            self.examiner.order(Examine(path, files, self._settings.voxel_z_um, self._settings.voxel_xy_um))
            return

    def _hear_examiner(self, message: Message, now: float) -> None:
        work = self._examined
        if work is None or isinstance(message, Progressed | Ready):
            return
        self._examined = None
        entry = self._book[work.path]
        if isinstance(message, Examined):
            if entry.state is not State.READY:
                return  # it changed while it was examined
            if os.path.realpath(work.folder) != str(work.folder):
                words = f"its folder {shown(work.folder)} leads elsewhere (a link); results are written through none"
                self._book.move(entry, State.FAILED, fault=Fault.INPUT, reason=words)
                return
            try:
                make_folder(work.folder)
                known = self._results.exists_already(entry, message.content, work.folder)
            except LedgerError:
                raise
            except StorageError as error:
                self._pause(str(error), now)
                return
            if not known:
                work.content = message.content
                self._next = work
        elif isinstance(message, Failed):
            self._failed(work, message.kind, message.reason, now)
        elif isinstance(message, Ended | NotReady):
            self._failed(work, Kind.WORKER, message.reason, now, fault=Fault.INPUT)

    def _restore_next(self, now: float) -> None:
        work, self._next = self._next, None
        if work is None:
            return
        entry = self._book[work.path]
        if entry.state is not State.READY:
            return
        try:
            found = self._intake.identity(work.path)
        except AwayError:
            return
        if found != entry.identity:
            self._intake.wait_again(entry, "it changed")
            return
        try:
            require_space(work.folder, 2 * entry.identity.size, self._settings.reserve_bytes)
        except StorageError as error:
            self._pause(str(error), now)
            self._next = work
            return
        self._work = work
        attempts = entry.attempts + 1
        self._book.move(entry, State.RUNNING, content=work.content, results=(), attempts=attempts)
        self.worker.order(Restore(work.path, work.content, work.folder))

    def _hear(self, message: Message, now: float) -> None:
        if isinstance(message, Progressed):
            self._progress(message.label, message.done, message.total)
        elif isinstance(message, Ready):
            self._ever_ready = True
            self.canary = Canary(True)
            logger.info("restoring with %s", message.name)
        elif isinstance(message, NotReady):
            if not self._ever_ready:
                raise message.error or BackendError(f"the restoring process cannot start: {message.reason}")
            logger.error("the restoring process cannot start, it is tried again: %s", message.reason)
        elif self._work is None:
            logger.warning("%s; another one is started", getattr(message, "reason", message))
        elif isinstance(message, Restored):
            self._restored(self._work, message, now)
        elif isinstance(message, Ended):
            self._failed(self._work, Kind.WORKER, message.reason, now)
        elif isinstance(message, Failed):
            self._failed(self._work, message.kind, message.reason, now)

    def _restored(self, work: _Work, made: Restored, now: float) -> None:
        entry = self._book[work.path]
        try:
            found = self._intake.identity(work.path)
        except AwayError:  # whether it changed, nobody can say: the stack is done again
            self._work = None
            remove_stale(work.folder, below=False)
            words = "its folder went away while it was read"
            self._book.move(entry, State.READY, attempts=entry.attempts - 1, reason=words)
            return
        if found is not None and found != entry.identity:
            self._work = None
            remove_stale(work.folder, below=False)
            self._intake.wait_again(entry, "it changed while it was read")
            return
        try:
            results = tuple(self._results.named(entry, work.folder, *name, part) for name, part in made.parts.items())
            entry = self._book.move(entry, State.PUBLISHING, results=results)
            for result, sealed in zip(results, made.parts.values(), strict=True):
                place(sealed, result.path)
        except LedgerError:
            raise
        except StorageError as error:
            self._failed(work, Kind.STORAGE, str(error), now)
            return
        self._work = None
        self.canary = Canary(True)
        self.refused = ""
        if self._refusals:
            self._say_paused("")
        self._refusals = 0
        self._not_before.pop(work.path, None)
        reason = "; ".join(f"warning: {sentence}" for sentence in made.warnings)
        self._book.move(entry, State.DONE, seconds=time.monotonic() - work.began, reason=reason)

    def _failed(self, work: _Work, kind: Kind, reason: str, now: float, *, fault: Fault = Fault.WORKER) -> None:
        """Put a failure where it belongs; `fault` is what a process that died again and again is put down to."""
        if work is self._work:
            self._work = None
            remove_stale(work.folder, below=False)
            if kind is Kind.MEMORY:
                reason = f"{reason}; tried with fewer tiles at once"
                kind = Kind.WORKER if not self.worker.shrink() else kind
            if kind is Kind.DEVICE:
                logger.error("%s; the restoring process is started again", reason)
                self.canary = Canary(False, reason)
                kind = Kind.WORKER
            if kind is Kind.INPUT:
                # The source was read before, all of it, by another process: this one may be at fault.
                kind, fault = Kind.WORKER, Fault.INPUT
            if kind is Kind.WORKER and self.worker.idle:
                self.worker.restart(failed=True)
        entry = self._book[work.path]
        if entry.state not in (State.READY, State.RUNNING, State.PUBLISHING):
            return
        # A stack that was only examined has not counted this attempt yet.
        attempts = entry.attempts + (entry.state is State.READY)
        if kind is Kind.STORAGE:
            self.refused = reason
            self._pause(reason, now)
            if entry.state is State.PUBLISHING:
                take_back(entry)
            self._book.move(entry, State.READY, attempts=attempts - 1, results=(), reason=reason)
        elif kind is Kind.MEMORY:
            self._book.move(entry, State.READY, attempts=attempts - 1, reason=reason)
        elif kind is Kind.NOT_OURS:
            self._book.move(entry, State.SKIPPED, reason=reason)
        elif kind is Kind.INPUT:
            self._book.move(entry, State.FAILED, fault=Fault.INPUT, reason=reason)
        elif kind is Kind.INCOMPLETE and attempts < self._settings.attempts:
            self._intake.wait_again(entry, reason)
        elif attempts >= self._settings.attempts:
            fault = Fault.INPUT if kind is Kind.INCOMPLETE else fault
            words = f"failed {attempts} times, last: {reason}"
            self._book.move(entry, State.FAILED, fault=fault, attempts=attempts, reason=words)
        else:
            self._not_before[entry.path] = now + self._settings.wait_s(attempts)
            self._book.move(entry, State.READY, attempts=attempts, reason=f"tried again after: {reason}")

    def _pause(self, reason: str, now: float) -> None:
        self._refusals += 1
        self._paused_until = now + min(self._settings.wait_s(self._refusals), self._settings.scan_s)
        if self._refusals == 1:
            logger.error("paused, and tried again by itself: %s", reason)
        self._say_paused(reason)

    def _say_paused(self, reason: str) -> None:
        self.paused = reason
        self._book.ledger.note("paused", reason)
