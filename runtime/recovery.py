"""After the daemon ended in any way: finish, or take back, what it was about to publish; and see that results stay.

The ledger's intents (rows in ``publishing``, with the name and hash of each file) say what to look for. It does not
decide what comes next: rows go back to ``ready`` and the line takes them.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from ssai3d_rt.errors import StorageError
from ssai3d_rt.runtime.ledger import State
from ssai3d_rt.runtime.publish import Sealed, holds, place, remove_stale
from ssai3d_rt.runtime.scan import candidate

if TYPE_CHECKING:
    from pathlib import Path

    from ssai3d_rt.runtime.book import Book
    from ssai3d_rt.runtime.ledger import Entry, Ledger, Result

_AT_ONCE = 200


class Patrol:
    """Looks, a few at a time, whether the results of done rows are still there.

    A row whose result is gone, or has another size, goes back to work where its source is still there.

    Parameters
    ----------
    book
        The daemon's.
    """

    def __init__(self, book: Book) -> None:
        self._book = book
        self._row = 0
        self.over = False

    def step(self) -> None:
        """Look at some more."""
        if self.over:
            return
        entries = self._book.ledger.done_after(self._row, _AT_ONCE)
        for entry in entries:
            self._row = entry.id
            if not is_there(entry) and candidate(entry.path) is not None:
                self._book.move(entry, State.READY, attempts=0, reason="its result is no longer there")
        self.over = not entries


def recover(ledger: Ledger, out: Path) -> None:
    """Finish or take back what an ended daemon was about to publish, and remove its temporary files."""
    for entry in ledger.resume():
        if entry.results and all(_named(result) for result in entry.results):
            ledger.move(entry, State.DONE, reason="published as the daemon ended")
        else:
            take_back(entry)
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


def take_back(entry: Entry) -> None:
    """Remove those files of a result that got their names before the rest could."""
    for result in entry.results:
        if holds(result.path, result.sha256, result.size):
            result.path.unlink()


def is_there(entry: Entry) -> bool:
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
