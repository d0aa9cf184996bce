"""Asking a daemon whether it is live or ready, from outside: what `ssai3d-rt status OUT --live` does.

A daemon that serves its health over HTTP leaves the address in its output folder; who wants to know asks there. The
address alone proves nothing, a daemon that was killed leaves it behind: that a daemon runs, and that the address is
its own, is told by its ledger's lock. No token is needed, and no proxy is used.
"""

from __future__ import annotations

import http.client
import json
import os
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from ssai3d_rt.imaging.openfile import shown
from ssai3d_rt.runtime.publish import STATE_FOLDER, temporary_name
from ssai3d_rt.runtime.status import find_ledger, is_running, lock_of
from ssai3d_rt.runtime.vitals import Verdict

if TYPE_CHECKING:
    from pathlib import Path

_NOTE = "health.json"
_PATIENCE_S = 5.0
_MOST_BYTES = 1 << 16


def note_of(out: Path) -> Path:
    """Return the file that says where the daemon of an output folder serves its health."""
    return out / STATE_FOLDER / _NOTE


def leave_note(out: Path, address: str) -> None:
    """Say where health is served; an empty address says that it is not.

    Raises
    ------
    OSError
        It cannot be written.
    """
    note = note_of(out)
    if not address:
        note.unlink(missing_ok=True)
        return
    note.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(note.parent)
    try:
        temporary.write_text(json.dumps({"address": address, "process": os.getpid()}), encoding="ascii")
        os.replace(temporary, note)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def ask(out: Path, what: Literal["live", "ready"]) -> Verdict:
    """Ask the daemon of an output folder.

    Parameters
    ----------
    out
        The output folder.
    what
        The question.

    Raises
    ------
    InputError
        The folder holds no ledger.
    """
    ledger = find_ledger(out)
    if not is_running(ledger):
        return Verdict(False, (f"no daemon runs on {shown(out)}; start it with ssai3d-rt watch",))
    silent = "a daemon runs, but does not say how it is; give it a port in the table [health] of its settings"
    try:
        note = json.loads(note_of(out).read_text(encoding="ascii"))
        address, process = note["address"], note["process"]
    except FileNotFoundError:
        return Verdict(False, (silent,))
    except (OSError, ValueError, KeyError, TypeError):
        return Verdict(False, (f"{shown(note_of(out))} cannot be read; start the daemon again",))
    if process != _holder(lock_of(ledger)):  # another daemon's, which was killed
        return Verdict(False, (silent,))
    try:
        return _answer(str(address), what)
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
        return Verdict(False, (f"a daemon runs, but does not answer at {shown(str(address))}: {shown(str(error))}",))


def _holder(lock: Path) -> int | None:
    """Return the id of the process that a lock file names; its first byte may not be read on Windows."""
    try:
        with open(lock, "rb", buffering=0) as file:
            file.seek(1)
            return int(file.read(16).strip(b"\0 \n"))
    except (OSError, ValueError):
        return None


def _answer(address: str, what: str) -> Verdict:
    place = urlsplit(address)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=_PATIENCE_S)
    try:
        connection.request("GET", f"/{what}")
        found = json.loads(connection.getresponse().read(_MOST_BYTES))
    finally:
        connection.close()
    return Verdict(found[what] is True, tuple(shown(str(reason)) for reason in found["reasons"]))
