"""Which files are waited for, and when each is to be judged next: one time per file, the earliest that was asked for.

Times are monotonic seconds. It knows nothing of what a file is.

>>> from pathlib import Path
>>> agenda = Agenda()
>>> agenda.begin(Path("a.tif"), 10.0).closed
False
>>> agenda.schedule(Path("a.tif"), 12.0); agenda.schedule(Path("a.tif"), 11.0); agenda.schedule(Path("a.tif"), 15.0)
>>> agenda.due(10.5), agenda.due(11.0), agenda.due(20.0)
(None, PosixPath('a.tif'), None)
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_NEVER = float("inf")


@dataclass(slots=True)
class Look:
    """What is known of a file that is waited for, beside its row."""

    changed_at: float
    due_at: float = _NEVER
    closed: bool = False
    submitted: bool = False


class Agenda:
    """Files that are waited for."""

    def __init__(self) -> None:
        self._looks: dict[Path, Look] = {}
        self._due: list[tuple[float, Path]] = []

    def __contains__(self, path: Path) -> bool:
        return path in self._looks

    def get(self, path: Path) -> Look | None:
        """Return what is known of a file; None where it is not waited for."""
        return self._looks.get(path)

    def begin(self, path: Path, changed_at: float) -> Look:
        """Wait for a file, from now on, or anew: what was planned before does not count any more."""
        look = self._looks[path] = Look(changed_at)
        return look

    def drop(self, path: Path) -> None:
        """Wait for a file no longer."""
        self._looks.pop(path, None)

    def schedule(self, path: Path, at: float) -> None:
        """Have a file that is waited for judged at that time, or at the one set before where that is earlier."""
        look = self._looks[path]
        if at < look.due_at:
            look.due_at = at
            heapq.heappush(self._due, (at, path))

    def due(self, now: float) -> Path | None:
        """Return a file whose time has come, once; None where there is none."""
        while self._due and self._due[0][0] <= now:
            at, path = heapq.heappop(self._due)
            look = self._looks.get(path)
            if look is not None and look.due_at == at:
                look.due_at = _NEVER
                return path
        return None
