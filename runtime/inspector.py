"""Judge sources in a process of its own: what a damaged or hostile file does to its reader does not reach the daemon.

One answer a call, within the time that the settings allow. It does not know what becomes of the answer.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from ssai3d_rt.imaging.openfile import shown
from ssai3d_rt.runtime.complete import Completeness, Judgement
from ssai3d_rt.runtime.messages import Ended, Failed, Judge, Judged, Look, Looked
from ssai3d_rt.runtime.worker import Worker

if TYPE_CHECKING:
    from pathlib import Path

    from ssai3d_rt.runtime.settings import WatchSettings

logger = logging.getLogger(__name__)

_LOOK_S = 2.0
_LATE_WAITS = 12.0
"""So many times the time that was allowed passes before a source that took too long is looked at again."""


class Inspector:
    """Says whether sources are complete; see `complete.completeness`.

    Parameters
    ----------
    settings
        Time and memory that one answer may take.
    """

    def __init__(self, settings: WatchSettings) -> None:
        self._worker = Worker(None, settings)
        self._judge_s = settings.judge_s
        self._late: dict[Path, tuple[float, float, Completeness]] = {}

    def judge(self, path: Path) -> Completeness:
        """Judge one source; one that ends the process is broken.

        One that takes too long is as if it still grew, and is not looked at again for a while, twice as long each time.
        """
        until, wait_s, said = self._late.get(path, (0.0, _LATE_WAITS * self._judge_s, None))
        if said is not None and time.monotonic() < until:
            return said
        answer = self._worker.ask(Judge(path), self._judge_s)
        if isinstance(answer, Judged):
            self._late.pop(path, None)
            return answer.found
        reason = answer.reason if isinstance(answer, Ended | Failed) else str(answer)
        logger.warning("%s: looking at it: %s", shown(path), reason)
        late = isinstance(answer, Ended) and answer.late
        found = Completeness(Judgement.GROWING if late else Judgement.BROKEN, f"looking at it: {reason}")
        if late:
            self._late[path] = (time.monotonic() + wait_s, 2 * wait_s, found)
        return found

    def look(self, path: Path, root: Path) -> Looked | None:
        """Look at a path below a watched folder; None where that folder does not answer."""
        answer = self._worker.ask(Look(path, root), min(self._judge_s, _LOOK_S))
        return answer if isinstance(answer, Looked) else None

    def close(self) -> None:
        """End the process."""
        self._worker.close()
