"""The ledger: the durable record of what was seen, done and published, in one SQLite file on a local disk.

One row per (path, bundle, parameters). Every change is committed with `synchronous=FULL` before the daemon acts on it,
so what the ledger says survives a power cut. It moves a row only along these lines and refuses all others:

```
 seen ─> waiting <──────────────┬────────────────┐
  │         │                   │ (changed)      │
  ├─────────┴─> ready ─> running ─> publishing ─> done
  ├─> skipped      ^────────┴ retry, restart  │
  └─> gone         └──────────────────────────┘ (result lost)
 failed: from any state but done; back to waiting when the file changes or when asked to try again
 gone: from any state in which the file is only waited for, and from done when the file has another name now
```

`Publishing` is written, with the result's name and hash, before the result gets its name: after a crash in between, the
ledger knows whether the file under that name is its own. The ledger does not look at files; the daemon does.

>>> import tempfile
>>> from ssai3d_rt.runtime.source import Identity
>>> with tempfile.TemporaryDirectory() as folder, Ledger(Path(folder) / "ledger.sqlite", Job("b" * 64, "{}")) as ledger:
...     stack = ledger.see(Path("/raw/a.tif"), Identity(1, 2, 300, 4))
...     stack = ledger.move(stack, State.READY)
...     ledger.counts()
{'ready': 1}
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssai3d_rt.imaging.openfile import shown
from ssai3d_rt.runtime.database import LedgerError, ledger_error, open_database
from ssai3d_rt.runtime.lock import FileLock
from ssai3d_rt.runtime.source import Identity

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from typing_extensions import Self


class State(str, Enum):
    """Where a stack's file is on its way."""

    SEEN = "seen"
    WAITING = "waiting"
    """Not complete yet, or complete and not quiet yet."""
    READY = "ready"
    RUNNING = "running"
    PUBLISHING = "publishing"
    """The result is whole and checked, and is about to get its name."""
    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"
    """Left alone on purpose, with a reason."""
    GONE = "gone"
    """Vanished before it was done."""


class Fault(str, Enum):
    """Kind of a failure: what makes it worth another look."""

    NONE = ""
    INCOMPLETE = "incomplete"
    INPUT = "input"
    WORKER = "worker"


SETTLED = (State.DONE, State.FAILED, State.SKIPPED, State.GONE)
"""States in which nothing is to be done as long as the file stays what it is."""

LEGAL: dict[State, frozenset[State]] = {
    State.SEEN: frozenset({State.WAITING, State.READY, State.FAILED, State.SKIPPED, State.GONE}),
    State.WAITING: frozenset({State.READY, State.FAILED, State.SKIPPED, State.GONE}),
    State.READY: frozenset({State.RUNNING, State.WAITING, State.DONE, State.FAILED, State.SKIPPED, State.GONE}),
    State.RUNNING: frozenset(
        {State.PUBLISHING, State.READY, State.WAITING, State.DONE, State.FAILED, State.SKIPPED, State.GONE}
    ),
    State.PUBLISHING: frozenset({State.DONE, State.READY, State.FAILED}),
    State.DONE: frozenset({State.WAITING, State.READY, State.GONE}),
    State.FAILED: frozenset({State.WAITING, State.READY, State.SKIPPED, State.GONE}),
    State.SKIPPED: frozenset({State.WAITING, State.GONE}),
    State.GONE: frozenset({State.WAITING}),
}


@dataclass(frozen=True, slots=True)
class Job:
    """What is made of every stack: another bundle or other parameters give another result."""

    bundle: str
    parameters: str


@dataclass(frozen=True, slots=True)
class Result:
    """One published file, or one about to be: then it still lies under its temporary name."""

    path: Path
    temporary: Path
    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One row: a snapshot. `content` is the SHA-256 of what was read, `nudge` the last marker taken into account."""

    id: int
    path: Path
    state: State
    identity: Identity
    fault: Fault = Fault.NONE
    reason: str = ""
    attempts: int = 0
    content: str = ""
    nudge: str = ""
    results: tuple[Result, ...] = ()
    seconds: float = 0.0
    updated_at: float = field(default=0.0, compare=False)


_MUTABLE = ("fault", "reason", "attempts", "content", "nudge", "seconds")


class Ledger:
    """An open ledger; one daemon at a time.

    Parameters
    ----------
    path
        The SQLite file, made where absent, on a local disk. A damaged one is moved aside and a new one begun.
    job
        Bundle and parameters: rows of other jobs are left alone.

    Raises
    ------
    StorageError
        Another daemon holds it, it is of another schema version, or it cannot be opened or written.
    """

    def __init__(self, path: Path, job: Job) -> None:
        self.path, self.job = path, job
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LedgerError(
                f"cannot make the folder of the ledger {shown(path)}: {error.strerror or error}"
            ) from error
        self._lock = FileLock(path.with_name(path.name + ".lock"))
        try:
            self._database = open_database(path)
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and let the next daemon have it."""
        self._database.close()
        self._lock.release()

    def _commit(self, sql: str, values: tuple[Any, ...]) -> int:
        try:
            return self._database.execute(sql, values).lastrowid or 0
        except sqlite3.Error as error:
            words = f"the ledger {shown(self.path)} could not be written (is its disk full?)"
            raise ledger_error(error, words) from error

    def see(self, path: Path, identity: Identity) -> Entry:
        """Enter a file that was not known, in state ``seen``."""
        now = time.time()
        columns = "path, shown, bundle, parameters, state, device, inode, size, mtime_ns, ctime_ns, seen_at, updated_at"
        row = self._commit(
            f"INSERT INTO stacks ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(os.fsencode(path), shown(path), self.job.bundle, self.job.parameters, State.SEEN.value),
                *(*_columns(identity), now, now),
            ),
        )
        return Entry(row, path, State.SEEN, identity, updated_at=now)

    def move(self, entry: Entry, state: State, *, identity: Identity | None = None, **changes: Any) -> Entry:
        """Move a row to another state, durably, and return its new snapshot.

        Parameters
        ----------
        entry
            The current snapshot.
        state
            The next state, or the same one (to change other fields only).
        identity
            The file's new identity, where it changed.
        **changes
            `fault`, `reason`, `attempts`, `content`, `nudge`, `results`, `seconds`; `fault` and `reason` are cleared
            unless given.

        Raises
        ------
        ValueError
            No such transition.
        StorageError
            It could not be committed; the row is as it was.
        """
        if state is not entry.state and state not in LEGAL[entry.state]:
            raise ValueError(f"{shown(entry.path)}: no way from {entry.state.value} to {state.value}")
        merged = {"fault": Fault.NONE} | changes | {"reason": shown(changes.get("reason", ""))}
        new = replace(entry, state=state, identity=identity or entry.identity, updated_at=time.time(), **merged)
        fields = ", ".join(f"{name}=?" for name in _MUTABLE)
        values = (getattr(new, name) for name in _MUTABLE)
        with self.batch():
            self._commit(
                f"UPDATE stacks SET state=?, device=?, inode=?, size=?, mtime_ns=?, ctime_ns=?, updated_at=?, {fields} "
                "WHERE id=?",
                (
                    *(new.state.value, *_columns(new.identity), new.updated_at),
                    *(value.value if isinstance(value, Enum) else value for value in values),
                    new.id,
                ),
            )
            if new.results != entry.results:
                self._commit("DELETE FROM results WHERE stack=?", (new.id,))
                for result in new.results:
                    paths = os.fsencode(result.path), new.id, os.fsencode(result.temporary)
                    self._commit("INSERT INTO results VALUES (?, ?, ?, ?, ?)", (*paths, result.sha256, result.size))
        return new

    @contextlib.contextmanager
    def batch(self) -> Iterator[None]:
        """Commit all changes made inside at once, or none: many new files, one wait for the disk."""
        if self._database.in_transaction:
            yield
            return
        self._commit("BEGIN", ())
        try:
            yield
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._database.execute("ROLLBACK")
            raise
        self._commit("COMMIT", ())

    def note(self, key: str, value: str) -> None:
        """Keep a word for `status`, such as why the daemon waits."""
        self._commit(
            "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value=excluded.value", (key, value)
        )

    def noted(self, key: str) -> str:
        """Return what was last noted under a key; empty where nothing was."""
        row = self._one("SELECT value FROM meta WHERE key=?", key)
        return "" if row is None else str(row[0])

    def entry(self, path: Path) -> Entry | None:
        """Return the row of a file in this job."""
        return next(self._select("AND path=?", os.fsencode(path)), None)

    def open_entries(self) -> list[Entry]:
        """Rows on which something is still to be done: all but those of `SETTLED`, but those that are incomplete."""
        marks = ", ".join("?" * len(SETTLED))
        values = (*(state.value for state in SETTLED), Fault.INCOMPLETE.value)
        return list(self._select(f"AND (state NOT IN ({marks}) OR fault=?) ORDER BY id", *values))

    def settled(self) -> Iterator[tuple[bytes, str, int, int, int]]:
        """Give path, inode, size and times of every row on which nothing is to be done, as they are stored."""
        marks = ", ".join("?" * (len(SETTLED) - 1))
        sql = (
            "SELECT path, inode, size, mtime_ns, ctime_ns FROM stacks "
            f"WHERE bundle=? AND parameters=? AND state IN ({marks}) AND fault!=?"
        )
        states = (state.value for state in SETTLED if state is not State.GONE)
        values = (self.job.bundle, self.job.parameters, *states, Fault.INCOMPLETE.value)
        with self._reading():
            rows = self._database.cursor()
            rows.row_factory = None  # a million of them
            yield from rows.execute(sql, values)

    def done_after(self, row: int, most: int) -> list[Entry]:
        """Return some done rows, in order, from the one after `row` on."""
        return list(self._select("AND +state='done' AND id>? ORDER BY id LIMIT ?", row, most))

    def below(self, folder: Path, states: Iterable[State], most: int) -> list[Entry]:
        """Return at most so many rows of files below a folder, in one of these states."""
        wanted = [state.value for state in states]
        match = f"AND path>=? AND path<? AND state IN ({', '.join('?' * len(wanted))}) ORDER BY id LIMIT ?"
        return list(self._select(match, *_range_below(folder), *wanted, most))

    def knows_below(self, folder: Path) -> bool:
        """Whether any file below a folder was ever seen, whatever the job."""
        sql = "SELECT 1 FROM stacks WHERE path>=? AND path<? AND state!='gone' LIMIT 1"
        return self._one(sql, *_range_below(folder)) is not None

    def entries(self) -> Iterator[Entry]:
        """Every row of this job, in the order in which the files were seen."""
        return self._select("ORDER BY id")

    def with_content(self, content: str) -> list[Entry]:
        """Rows of this job whose file held the same bytes."""
        return list(self._select("AND content=? AND content!='' ORDER BY id", content))

    def claims(self, result: Path) -> bool:
        """Whether any row, of whatever job, names this result."""
        sql = "SELECT 1 FROM results WHERE path=?"
        return self._one(sql, os.fsencode(result)) is not None

    def counts(self) -> dict[str, int]:
        """Rows of this job by state; states without a row are left out."""
        with self._reading():
            return counts(self._database, self.job)

    def resume(self) -> list[Entry]:
        """Put what an ended daemon left running back to ready; return the rows left in ``publishing``.

        An attempt that ended with the daemon is not the stack's fault and does not count.
        """
        for entry in list(self._select("AND state='running'")):
            reason = "the daemon ended while it ran"
            self.move(entry, State.READY, attempts=max(0, entry.attempts - 1), reason=reason)
        return list(self._select("AND state='publishing' ORDER BY id"))

    def _select(self, where: str, *values: Any) -> Iterator[Entry]:
        match = f"WHERE bundle=? AND parameters=? {where}"
        with self._reading():
            yield from select(self._database, match, (self.job.bundle, self.job.parameters, *values))

    def _one(self, sql: str, *values: Any) -> Any:
        with self._reading():
            return self._database.execute(sql, values).fetchone()

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, ValueError) as error:
            raise ledger_error(error, f"the ledger {shown(self.path)} could not be read") from error


def counts(database: sqlite3.Connection, job: Job | None = None) -> dict[str, int]:
    """Rows by state, of one job or of all."""
    sql = "SELECT state, COUNT(*) FROM stacks {} GROUP BY state"
    rows = (
        database.execute(sql.format("WHERE bundle=? AND parameters=?"), (job.bundle, job.parameters))
        if job
        else database.execute(sql.format(""))
    )
    found = dict(tuple(row) for row in rows)
    return {state.value: found[state.value] for state in State if state.value in found}


def select(database: sqlite3.Connection, match: str, values: tuple[Any, ...] = ()) -> Iterator[Entry]:
    """Rows as snapshots; `match` is the rest of the SQL statement from WHERE on."""
    for row in database.execute(f"SELECT * FROM stacks {match}", values).fetchall():
        results = database.execute("SELECT * FROM results WHERE stack=? ORDER BY path", (row["id"],)).fetchall()
        yield Entry(
            id=row["id"],
            path=Path(os.fsdecode(row["path"])),
            state=State(row["state"]),
            identity=Identity(row["device"], int(row["inode"]), row["size"], row["mtime_ns"], row["ctime_ns"]),
            fault=Fault(row["fault"]),
            results=tuple(
                Result(Path(os.fsdecode(r["path"])), Path(os.fsdecode(r["temporary"])), r["sha256"], r["size"])
                for r in results
            ),
            updated_at=row["updated_at"],
            **{name: row[name] for name in _MUTABLE if name != "fault"},
        )


def _range_below(folder: Path) -> tuple[bytes, bytes]:
    prefix = os.fsencode(os.path.join(folder, ""))
    return prefix, prefix[:-1] + bytes([prefix[-1] + 1])


def _columns(identity: Identity) -> tuple[int, str, int, int, int]:
    # An inode of ReFS or NTFS can be wider than SQLite's integers.
    return identity.device, str(identity.inode), identity.size, identity.mtime_ns, identity.ctime_ns
