"""Scan watched folders, each in a thread of its own: a share that does not answer holds nobody up.

A scan is started, goes on beside everything else, and is picked up when it is there. The thread of a folder that never
answers is left behind when the daemon ends, which does not wait for it. What a scan finds is in `scan`.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from ssai3d_rt.runtime.messages import Looked
from ssai3d_rt.runtime.scan import Found, candidate, owner_of, scan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

_JOIN_S = 2.0


@dataclass(frozen=True, slots=True)
class Scanned:
    """One finished scan.

    Parameters
    ----------
    root
        The watched folder.
    found
        What lies below it; None where it is not there or cannot be read.
    place
        Which folder, on which disk, had its name: another one means that a disk came or went.
    took_s
        Seconds.
    """

    root: Path
    found: Found | None
    place: str
    took_s: float = 0.0


class Scanner:
    """Scans of some folders.

    Parameters
    ----------
    roots
        The watched folders.
    before
        Called with a folder before each scan of it, in its thread.
    """

    def __init__(self, roots: Iterable[Path], before: Callable[[Path], object]) -> None:
        self._before = before
        self._begun: dict[Path, tuple[threading.Thread, float] | None] = dict.fromkeys(roots)
        self._finished: SimpleQueue[Scanned] = SimpleQueue()

    def start(self) -> None:
        """Begin a scan of each folder that is not being scanned."""
        for root, begun in self._begun.items():
            if begun is None:
                thread = threading.Thread(target=self._run, args=(root,), name=f"scan of {root.name}", daemon=True)
                self._begun[root] = (thread, time.monotonic())
                thread.start()

    def take(self) -> list[Scanned]:
        """Return the scans that were finished since the last call."""
        taken: list[Scanned] = []
        try:
            while True:
                taken.append(self._finished.get_nowait())
        except Empty:
            pass
        for scanned in taken:
            self._begun[scanned.root] = None
        return taken

    def slow(self, longer_than_s: float) -> set[Path]:
        """Return the folders whose scan has been going on for longer than this."""
        now = time.monotonic()
        return {root for root, begun in self._begun.items() if begun is not None and now - begun[1] > longer_than_s}

    def stop(self) -> None:
        """Wait for the scans that end soon."""
        deadline = time.monotonic() + _JOIN_S
        for begun in self._begun.values():
            if begun is not None:
                begun[0].join(max(0.0, deadline - time.monotonic()))

    def _run(self, root: Path) -> None:
        began = time.monotonic()
        place = place_of(root)
        try:
            self._before(root)
            found = scan(root) if root.is_dir() else None
        except OSError:
            found = None
        if found is not None and not found.whole and not found.files:
            found = None
        self._finished.put(Scanned(root, found, place, time.monotonic() - began))


def place_of(folder: Path) -> str:
    """Say which folder, on which disk, has this name; empty where none has."""
    try:
        status = os.stat(folder)
    except OSError:
        return ""
    return f"{status.st_dev}:{status.st_ino}"


def looked(path: Path, root: Path) -> Looked:
    """Look at one path below a watched folder; where that does not answer, this does not, either."""
    owner = owner_of(path, root)
    return Looked(owner, candidate(owner), place_of(root))
