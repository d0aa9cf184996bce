"""Whose result is which file: the name a new result gets, and whether a source has its result already.

A source that was only touched or renamed, or whose result another ledger knew (this one is new, or was damaged), is not
restored again: every result says in its provenance what it was made from, with what, and of how many files it is.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

from ssai3d_rt.imaging.openfile import shown
from ssai3d_rt.runtime.ledger import Result, State
from ssai3d_rt.runtime.publish import RESULT_SUFFIX, TRUST_SUFFIX, hash_of, result_name, result_stem
from ssai3d_rt.runtime.recovery import is_there

if TYPE_CHECKING:
    from pathlib import Path

    from ssai3d_rt.runtime.book import Book
    from ssai3d_rt.runtime.ledger import Entry
    from ssai3d_rt.runtime.messages import Recipe
    from ssai3d_rt.runtime.publish import Sealed

SUFFIXES = (RESULT_SUFFIX, TRUST_SUFFIX)


class Results:
    """Results of one job.

    Parameters
    ----------
    book
        The daemon's.
    recipe
        What makes them.
    """

    def __init__(self, book: Book, recipe: Recipe) -> None:
        self._book, self._recipe = book, recipe

    def named(self, entry: Entry, folder: Path, label: str, suffix: str, sealed: Sealed) -> Result:
        """Give one file of a new result its name."""
        path = folder / result_name(entry.path.name, label=label, suffix=suffix)
        if os.path.lexists(path) or self._book.ledger.claims(path):
            tag = self._tag(entry.path, entry.content)
            path = folder / result_name(entry.path.name, label=label, tag=tag, suffix=suffix)
        return Result(path, sealed.path, sealed.sha256, sealed.size)

    def exists_already(self, entry: Entry, content: str, folder: Path) -> bool:
        """Enter a row as done whose content has its result, and say whether it has."""
        if entry.content == content and entry.results and is_there(entry):
            self._done(entry, content, entry.results, "its content did not change")
            return True
        for other in self._book.ledger.with_content(content):
            if other.state is State.DONE and not os.path.lexists(other.path) and is_there(other):
                with self._book.ledger.batch():
                    self._book.move(other, State.GONE, results=(), reason=f"it is now {shown(entry.path)}")
                    self._done(entry, content, other.results, f"it was {shown(other.path)}")
                return True
        if found := self._unclaimed(entry.path, content, folder):
            self._done(entry, content, found, "its result was already there")
            return True
        return False

    def _unclaimed(self, source: Path, content: str, folder: Path) -> tuple[Result, ...]:
        """Return the files on disk that are the whole result of this content and that no row names."""
        files: list[Path] = []
        wanted = 0
        for path in sorted(folder.iterdir()):
            exact = self._is_plain_name(path.name, source, content)
            if not (exact or path.name.startswith(result_stem(source.name) + "_")) or self._book.ledger.claims(path):
                continue
            if path.is_symlink() or not path.is_file():
                continue
            files_of_it = self._recipe.made(path, content)
            if files_of_it > 1 or (exact and files_of_it):
                wanted = files_of_it
                files.append(path)
        if not files or len(files) != wanted:
            return ()
        return tuple(Result(path, path, hash_of(path), path.stat().st_size) for path in files)

    def _is_plain_name(self, result: str, source: Path, content: str) -> bool:
        """Whether a result of this name is not of one position among several."""
        tags = ("", self._tag(source, content))
        names = (result_name(source.name, tag=tag, suffix=suffix) for tag in tags for suffix in SUFFIXES)
        return result in names

    def _tag(self, path: Path, content: str) -> str:
        """Distinguish the result from one of the same name: of another content, bundle, or file (a.tif, a.tiff)."""
        key = (os.fsencode(path), content.encode(), self._recipe.bundle_id.encode(), self._recipe.parameters.encode())
        return hashlib.sha256(b"\0".join(key)).hexdigest()[:8]

    def _done(self, entry: Entry, content: str, results: tuple[Result, ...], reason: str) -> None:
        self._book.move(entry, State.DONE, content=content, results=results, reason=reason)
