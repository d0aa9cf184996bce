"""A daemon whose events cannot be relied on: SEED FILE, and then a daemon's command line; SEED 0 changes nothing.

Of the hints that the real observer gives, a third is dropped, a third is told twice or more, all come late and in
another order, some say that a file was closed that was not, and some name files that never were. FILE holds how many
were told and dropped, and the longest time between two rounds of the daemon's loop, which asks once a round.
"""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ssai3d_rt.runtime.hints import Hints
from tests.runtime import quick_watch

if TYPE_CHECKING:
    from collections.abc import Callable

_Take = tuple[dict[Path, bool], bool]
_LATEST = 12
"""Rounds of the loop by which a hint may come late."""


class _Unreliable:
    """Stands between the observer and the daemon."""

    def __init__(self, take: Callable[[Hints], _Take], seed: int, counted: Path) -> None:
        self._take, self._rng, self._counted = take, random.Random(seed), counted
        self._held: list[tuple[int, Path, bool]] = []
        self._round = self._told = self._dropped = self._repeated = 0
        self._reliable, self._last, self._longest_s = seed == 0, time.monotonic(), 0.0

    def take(self, hints: Hints) -> _Take:
        """Return what the daemon is to hear in this round."""
        now = time.monotonic()
        if now - self._last > self._longest_s:
            self._longest_s = now - self._last
            self._note()
        self._last = now
        paths, scan = self._take(hints)
        return (paths, scan) if self._reliable else self._distort(paths, scan)

    def _distort(self, paths: dict[Path, bool], scan: bool) -> _Take:
        rng = self._rng
        self._round += 1
        for path, closed in paths.items():
            times = rng.choice((0, 1, 2, 3)) if rng.random() < 0.7 else 1
            self._dropped += times == 0
            self._repeated += times > 1
            for _ in range(times):
                claimed = closed if rng.random() < 0.8 else not closed
                self._held.append((self._round + rng.randrange(_LATEST), path, claimed))
            if rng.random() < 0.1:
                self._held.append((self._round, path.with_name(f"never-{rng.randrange(1000)}.ome.tif"), True))
        due = [(path, closed) for at, path, closed in self._held if at <= self._round]
        self._held = [item for item in self._held if item[0] > self._round]
        rng.shuffle(due)
        self._told += len(due)
        if due or paths:
            self._note()
        return dict(due), scan and rng.random() < 0.5

    def _note(self) -> None:
        words: dict[str, float] = {"told": self._told, "dropped": self._dropped, "repeated": self._repeated}
        fresh = self._counted.with_suffix(".new")
        fresh.write_text(json.dumps(words | {"longest_round_s": round(self._longest_s, 2)}))
        fresh.replace(self._counted)


def main() -> None:
    """Run the daemon."""
    unreliable = _Unreliable(Hints.take, int(sys.argv[1]), Path(sys.argv[2]))
    Hints.take = lambda self: unreliable.take(self)  # type: ignore[method-assign]
    sys.argv = [sys.argv[0], sys.argv[-1]]
    quick_watch.main()


if __name__ == "__main__":
    main()
