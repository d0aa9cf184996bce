"""A daemon that serves its health, for the drills over HTTP: TOKEN_FILE, and then a daemon's command line.

The daemon's loop waits for its `stop` once each time round: there it is seen to go round, with the time between.
"""

from __future__ import annotations

import base64
import json
import logging
import pickle
import socket
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ssai3d_rt.runtime.watch import WatchSettings, stop_on_signals, watch
from ssai3d_rt.runtime.web import HealthSettings
from tests.runtime.daemon import QUICK
from tests.runtime.quick_watch import Plan

if TYPE_CHECKING:
    from collections.abc import Iterator

GAPS = "gaps.txt"
"""File beside the token, one line a second: longest time between two rounds of the loop in that second, in seconds."""


class Seen(threading.Event):
    """The event that stops the daemon; each wait for it is one round of the loop."""

    def __init__(self, stop: threading.Event, gaps: Path) -> None:
        super().__init__()
        self._stop, self._gaps = stop, gaps
        self._last = self._told = time.monotonic()
        self._longest = 0.0

    def is_set(self) -> bool:
        return self._stop.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        now = time.monotonic()
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
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    health = HealthSettings(port=port, token_file=token_file)
    with stop_on_signals() as stop:
        seen = Seen(stop, token_file.with_name(GAPS))
        watch(plan.folders, recipe, plan.out, settings=settings, health=health, stop=seen)


if __name__ == "__main__":
    main()
