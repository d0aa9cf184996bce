"""What a daemon has seen, done and published, read from its ledger; works beside a running daemon and without one."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Any

from ssai3d_rt.errors import InputError, StorageError
from ssai3d_rt.imaging.openfile import shown
from ssai3d_rt.runtime.database import connect
from ssai3d_rt.runtime.ledger import Entry, State, counts, select
from ssai3d_rt.runtime.lock import is_held
from ssai3d_rt.runtime.publish import STATE_FOLDER

LEDGER = "ledger.sqlite"
_ELSEWHERE = "ledger-is-at"


def ledger_of(out: Path) -> Path:
    """Return the usual place of the ledger of an output folder."""
    return out / STATE_FOLDER / LEDGER


def remember_ledger(out: Path, ledger: Path) -> None:
    """Note in the output folder where its ledger is, for `summary`, where that is not the usual place."""
    note = out / STATE_FOLDER / _ELSEWHERE
    if ledger == ledger_of(out):
        note.unlink(missing_ok=True)
        return
    note.parent.mkdir(exist_ok=True)
    note.write_bytes(os.fsencode(ledger.absolute()))


def summary(where: str | os.PathLike[str], *, most: int = 10) -> dict[str, Any]:
    """Summarise a ledger.

    Parameters
    ----------
    where
        The daemon's output folder, or the ledger's file.
    most
        Length of each list.

    Returns
    -------
    dict
        ``ledger``; ``running`` (whether a daemon holds it); ``paused`` (why, or empty); ``counts`` by state;
        ``working``, ``failed`` and ``done`` (the latest first: ``path``, ``fault``, ``reason``, ``results``,
        ``seconds``, ``attempts``, ``updated_at`` as seconds since 1970). All of it can be written as JSON.

    Raises
    ------
    InputError
        There is no ledger.
    StorageError
        It cannot be read.
    """
    path = find_ledger(Path(where))
    database = connect(path, read_only=True)
    try:
        if not database.execute("SELECT 1 FROM sqlite_master WHERE name='stacks'").fetchone():
            raise InputError(f"the ledger {shown(path)} is only just being made; ask again in a moment")
        paused = database.execute("SELECT value FROM meta WHERE key='paused'").fetchone()
        return {
            "ledger": shown(path),
            "running": is_running(path),
            "paused": paused[0] if paused else "",
            "counts": counts(database),
            "working": _latest(database, (State.RUNNING, State.PUBLISHING), most),
            "failed": _latest(database, (State.FAILED,), most),
            "done": _latest(database, (State.DONE,), most),
        }
    except sqlite3.Error as error:
        raise StorageError(f"the ledger {shown(path)} cannot be read: {error}") from error
    finally:
        database.close()


def find_ledger(where: Path) -> Path:
    """Return the ledger of an output folder, or the ledger's file itself.

    Raises
    ------
    InputError
        There is none.
    """
    if where.is_file():
        return where
    note = where / STATE_FOLDER / _ELSEWHERE
    path = Path(os.fsdecode(note.read_bytes())) if note.is_file() else ledger_of(where)
    if not path.is_file():
        raise InputError(f"{shown(where)} holds no ledger; give the output folder of a `ssai3d-rt watch`")
    return path


def is_running(ledger: Path) -> bool:
    """Whether a living daemon holds a ledger."""
    return is_held(lock_of(ledger))


def lock_of(ledger: Path) -> Path:
    """Return the file whose lock a living daemon holds."""
    return ledger.with_name(ledger.name + ".lock")


def _latest(database: sqlite3.Connection, states: tuple[State, ...], most: int) -> list[dict[str, Any]]:
    marks = ", ".join("?" * len(states))
    match = f"WHERE state IN ({marks}) ORDER BY updated_at DESC LIMIT ?"
    return [_words(entry) for entry in select(database, match, (*(state.value for state in states), most))]


def _words(entry: Entry) -> dict[str, Any]:
    return {
        "path": shown(entry.path),
        "state": entry.state.value,
        "fault": entry.fault.value,
        "reason": entry.reason,
        "results": [shown(result.path) for result in entry.results],
        "seconds": round(entry.seconds, 3),
        "attempts": entry.attempts,
        "updated_at": entry.updated_at,
    }
