"""Tell the daemon about a finished data set, durably, whether it runs or not: what hooks and `ssai3d-rt submit` do.

A submission is a small file in the output folder's state folder, written whole or not at all; the daemon takes it up
when it runs, looks at the path without waiting for a quiet period (it still has to be complete), and tries a failed
stack again. Where no output folder is given, an empty file `NAME.done` beside the data set says the same to any daemon
that watches it.

>>> import tempfile
>>> with tempfile.TemporaryDirectory() as folder:
...     raw = Path(folder) / "cells.tif"
...     _ = raw.write_bytes(b"II*")
...     submit(raw).name, pending(Path(folder) / "iso"), submit(raw, Path(folder) / "iso").parent.name
('cells.tif.done', [], 'inbox')
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from ssai3d_rt.errors import InputError, StorageError
from ssai3d_rt.imaging.openfile import shown
from ssai3d_rt.runtime.publish import STATE_FOLDER, sync_folder, temporary_name
from ssai3d_rt.runtime.scan import MARKER
from ssai3d_rt.runtime.source import open_source

INBOX = "inbox"
_MOST_BYTES = 1 << 16


def submit(path: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Path:
    """Leave word that a file or folder is finished; return the file that says so.

    Parameters
    ----------
    path
        A finished file, or the folder of a finished data set.
    out
        The daemon's output folder; absent: an empty `NAME.done` is left beside `path`.

    Raises
    ------
    InputError
        There is no such file or folder.
    StorageError
        The word could not be left.
    """
    target = Path(os.path.abspath(path))
    if not target.exists():
        raise InputError(f"{shown(target)} does not exist; give the finished file or folder")
    marker = target.with_name(target.name + MARKER)
    if out is not None:
        folder = Path(os.path.abspath(out)) / STATE_FOLDER / INBOX
        marker = folder / f"{time.time_ns():020d}-{os.getpid()}.json"
    try:
        marker.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_name(marker.parent)
        with open(temporary, "xb") as file:
            if out is not None:
                file.write(json.dumps({"path": str(target)}).encode("ascii"))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, marker)
        sync_folder(marker.parent)
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageError(f"cannot leave word about {shown(target)} in {shown(marker.parent)}: {reason}") from error
    return marker


def pending(out: Path) -> list[tuple[Path, Path | None]]:
    """Return the submissions not yet taken up, oldest first: (word, path); one that makes no sense has no path."""
    try:
        names = sorted(entry.name for entry in os.scandir(out / STATE_FOLDER / INBOX) if entry.name.endswith(".json"))
    except OSError:
        return []
    found: list[tuple[Path, Path | None]] = []
    for name in names:
        word = out / STATE_FOLDER / INBOX / name
        try:
            found.append((word, _target(word)))
        except (InputError, OSError):
            continue  # no word of ours: a folder, a pipe, a link
    return found


def _target(word: Path) -> Path | None:
    """Return the path that a submission names, None where it makes no sense."""
    with open_source(word) as file:
        text = file.read(_MOST_BYTES)
    try:
        target = json.loads(text)["path"]
        if b"\0" in os.fsencode(target):
            return None
        return Path(os.path.realpath(os.path.dirname(target)), os.path.basename(target))
    except (ValueError, KeyError, TypeError, RecursionError, OSError):
        return None
