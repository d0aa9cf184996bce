"""A daemon that serves its health, for the drills over HTTP: TOKEN_FILE, and then a daemon's command line.

The daemon's loop waits for its `stop` once each time round: there it is seen to go round, with the time between.
"""

from __future__ import annotations

import base64
import json
import logging
import pickle
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ssai3d_rt.runtime.status import ledger_of
from ssai3d_rt.runtime.vitals import Vitals
from ssai3d_rt.runtime.watch import WatchSettings, stop_on_signals, watch
from ssai3d_rt.runtime.web import HealthSettings, serve
from tests.runtime.daemon import QUICK
from tests.runtime.quick_watch import Plan

if TYPE_CHECKING:
    from collections.abc import Iterator

GAPS = "gaps.txt"
"""File beside the token, one line a second: longest time between two rounds of the loop in that second, in seconds."""


class Seen(threading.Event):
    """The event that stops the daemon; each wait for it is one round of the loop."""

    def __init__(self, vitals: Vitals, stop: threading.Event, gaps: Path) -> None:
        super().__init__()
        self._vitals, self._stop, self._gaps = vitals, stop, gaps
        self._last = self._told = time.monotonic()
        self._longest = 0.0

    def is_set(self) -> bool:
        return self._stop.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        now = time.monotonic()
        self._vitals.beat()
        self._longest = max(self._longest, now - self._last)
        self._last = now
        if now - self._told >= 1.0:
            with open(self._gaps, "a", encoding="ascii") as file:
                file.write(f"{self._longest:.3f}\n")
            self._told, self._longest = now, 0.0
        return self._stop.wait(timeout)


def gaps(folder: Path) -> Iterator[float]:
    """Longest time between two rounds of the loop, second by second."""
    path = folder / GAPS
    yield from map(float, path.read_text(encoding="ascii").split() if path.exists() else [])


def main() -> None:
    """Run the daemon and serve its health at any free port."""
    logging.basicConfig(level=logging.INFO, format="%(created).3f %(name)s %(message)s")
    token_file, plan = Path(sys.argv[1]), Plan(**json.loads(sys.argv[-1]))
    settings = WatchSettings.model_validate(QUICK.model_dump() | plan.settings)
    recipe = pickle.loads(base64.b64decode(plan.recipe))
    vitals = Vitals(plan.folders, scan_s=settings.scan_s)
    out, health = Path(plan.out), HealthSettings(token_file=token_file)
    served = serve(vitals, health, out=out, ledger=ledger_of(out), roots=list(map(Path, plan.folders)), port=0)
    with served, stop_on_signals() as stop:
        watch(plan.folders, recipe, out, settings=settings, stop=Seen(vitals, stop, token_file.with_name(GAPS)))


if __name__ == "__main__":
    main()
