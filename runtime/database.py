"""The ledger's SQLite file: opened so that what is committed survives a power cut, and replaced where it is damaged.

It knows the tables, not what the rows mean: see `ledger`.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from typing import TYPE_CHECKING

from ssai3d_rt.errors import StorageError
from ssai3d_rt.imaging.openfile import shown

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 2

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS stacks (
    id INTEGER PRIMARY KEY,
    path BLOB NOT NULL, shown TEXT NOT NULL, bundle TEXT NOT NULL, parameters TEXT NOT NULL,
    state TEXT NOT NULL, fault TEXT NOT NULL DEFAULT '', reason TEXT NOT NULL DEFAULT '',
    attempts INTEGER NOT NULL DEFAULT 0,
    device INTEGER NOT NULL, inode BLOB NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    ctime_ns INTEGER NOT NULL DEFAULT 0,
    content TEXT NOT NULL DEFAULT '', nudge TEXT NOT NULL DEFAULT '',
    seconds REAL NOT NULL DEFAULT 0, seen_at REAL NOT NULL, updated_at REAL NOT NULL,
    UNIQUE (path, bundle, parameters)
);
CREATE TABLE IF NOT EXISTS results (
    path BLOB PRIMARY KEY, stack INTEGER NOT NULL REFERENCES stacks (id),
    temporary BLOB NOT NULL, sha256 TEXT NOT NULL, size INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS by_stack ON results (stack);
CREATE INDEX IF NOT EXISTS by_content ON stacks (content, bundle, parameters) WHERE content != '';
CREATE INDEX IF NOT EXISTS by_state ON stacks (state, updated_at);
"""


class LedgerError(StorageError):
    """The ledger cannot be read or written."""


class DamagedLedgerError(LedgerError):
    """The file is no ledger, or no longer."""


def ledger_error(error: Exception, words: str) -> LedgerError:
    """Return what to raise in place of an error of SQLite, or of a row that makes no sense."""
    whole = isinstance(error, sqlite3.OperationalError)
    return (LedgerError if whole else DamagedLedgerError)(f"{words}: {error}")


def open_database(path: Path) -> sqlite3.Connection:
    """Open the file for the daemon that holds its lock; make it where absent, begin a new one where it is damaged.

    Raises
    ------
    LedgerError
        It is of another schema version, or cannot be opened or written.
    """
    try:
        return _opened(path)
    except DamagedLedgerError as error:
        set_aside(path, str(error))
        return _opened(path)


def connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """Open the file as it is; `read_only` beside a running daemon, to look at it.

    Raises
    ------
    LedgerError
        It cannot be opened.
    """
    try:
        mode = "ro" if read_only else "rwc"
        database = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None, timeout=10
        )
    except sqlite3.Error as error:
        raise LedgerError(f"the ledger {shown(path)} cannot be opened: {error}") from error
    database.row_factory = sqlite3.Row
    database.text_factory = lambda text: text.decode("utf-8", "replace")
    return database


def _opened(path: Path) -> sqlite3.Connection:
    database = connect(path)
    try:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        problem = database.execute("PRAGMA quick_check(1)").fetchone()[0]
        if problem != "ok":
            raise DamagedLedgerError(" ".join(problem.split()))
        database.executescript(_SCHEMA)
        database.execute("INSERT OR IGNORE INTO meta VALUES ('schema', ?)", (str(SCHEMA_VERSION),))
        version = database.execute("SELECT value FROM meta WHERE key='schema'").fetchone()[0]
        if version == "1":
            _upgrade_from_1(database)
            version = str(SCHEMA_VERSION)
        if version != str(SCHEMA_VERSION):
            raise LedgerError(
                f"the ledger {shown(path)} has schema version {version}, this ssai3d-rt writes "
                f"{SCHEMA_VERSION}; use the version that made it, or move it away"
            )
    except sqlite3.Error as error:
        database.close()
        if isinstance(error, sqlite3.OperationalError):
            raise LedgerError(f"the ledger {shown(path)} cannot be used: {error}") from error
        raise DamagedLedgerError(str(error)) from error
    except BaseException:
        database.close()
        raise
    return database


def _upgrade_from_1(database: sqlite3.Connection) -> None:
    """Version 2 knows when a file's status changed; every file is hashed once more and found to be the same."""
    database.execute("BEGIN")
    database.execute("ALTER TABLE stacks ADD COLUMN ctime_ns INTEGER NOT NULL DEFAULT 0")
    database.execute("UPDATE meta SET value='2' WHERE key='schema'")
    database.execute("COMMIT")


def set_aside(path: Path, why: str) -> None:
    """Give a damaged file, which nobody has open, another name, so that a new one can be begun.

    Raises
    ------
    LedgerError
        It cannot be renamed.
    """
    aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
    try:
        for suffix in ("-wal", "-shm", ""):
            part = path.with_name(path.name + suffix)
            if part.exists():
                os.rename(part, aside.with_name(aside.name + suffix))
    except OSError as error:
        raise LedgerError(
            f"the damaged ledger {shown(path)} cannot be moved away: {error.strerror or error}"
        ) from error
    logger.error(
        "the ledger %s is damaged (%s); it is now %s; a new one takes over the results on disk",
        *(shown(path), why, aside.name),
    )
