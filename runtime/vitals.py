"""The daemon's vital signs: what its loop says of itself, and whether that adds up to alive and ready.

The loop tells, others ask, from any thread; nothing here opens a file or waits for anything. Alive: the loop went round
a moment ago. Ready: a stack that becomes complete now will be seen, restored and published, as far as anybody knows. A
stack that failed never clears ready; why the daemon is not ready is told in fixed sentences that name no file, so that
anybody may hear them. What it does not know is how the signs are served, and what the ledger holds.

>>> now = 100.0
>>> vitals = Vitals(["/data/raw"], scan_s=5.0, clock=lambda: now)
>>> vitals.beat(); vitals.ledger(); vitals.disk(9_000_000_000, 1_000_000_000); vitals.canary(True)
>>> vitals.worker(WorkerState.IDLE)
>>> vitals.root("/data/raw", problem="Transport endpoint is not connected")
>>> vitals.ready().reasons
('watched folder 0 cannot be read; is its disk or share there?',)
>>> vitals.root("/data/raw"); vitals.ready().ok
True
>>> now = 200.0
>>> vitals.live().reasons
('the daemon has not gone round its loop for 100 s; restart it',)
"""

from __future__ import annotations

import os
import threading
import time
from bisect import bisect_left
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from ssai3d_rt.imaging.openfile import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

BEAT_S = 30.0
"""A loop that was not gone round for so long is not alive."""

CRASH_LOOP = 3
"""So many failures in a row, without an answer in between, and the restoring process is in a crash loop."""

LEAST_SCAN_S = 5.0
"""Scans that are to be more frequent than this are not missed earlier than if they were not."""

BUCKETS_S = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
"""Upper limits, inclusive, of the histograms' buckets; one more holds the rest."""

WAITING_TO_BE_DONE = ("ready", "running", "publishing")
"""States of the stacks that make the queue: complete, and not published yet."""


class WorkerState(str, Enum):
    """What the restoring process is at."""

    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    BACKING_OFF = "backing off"
    """It ended, and the next one is started after a while."""
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Yes, or no and why: sentences that name no file."""

    ok: bool
    reasons: tuple[str, ...] = ()


@dataclass(slots=True)
class Histogram:
    """Durations in seconds: how many in each bucket of `BUCKETS_S` (not summed up), and their sum."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))
    total_s: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(BUCKETS_S, seconds)] += 1
        self.total_s += seconds

    def words(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"count": sum(self.counts), "sum_s": round(self.total_s, 6), "buckets": list(self.counts)}


@dataclass(slots=True)
class _Root:
    scanned_at: float | None = None
    took_s: float = 0.0
    problem: str = ""


class Vitals:
    """What the daemon's loop says of itself. Every method may be called from any thread and returns at once.

    Parameters
    ----------
    roots
        The watched folders, in the order in which they are numbered; each must be scanned before the daemon is ready.
    scan_s
        Time between two full scans, seconds.
    canary
        Whether what restores has golden tiles to reproduce; then it must, before the daemon is ready.
    clock
        A clock that never goes back, seconds.
    """

    def __init__(
        self,
        roots: Sequence[str | os.PathLike[str]],
        *,
        scan_s: float,
        canary: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lock = threading.Lock()
        self._clock, self._scan_s, self._has_canary = clock, scan_s, canary
        self._began = self._beat_at = clock()
        self._beats = 0
        self._roots = {os.fspath(root): _Root() for root in roots}
        self._ledger: str | None = None
        self._disk: tuple[int, int, str] | None = None
        self._canary: tuple[bool, str, float] | None = None
        self._worker = (WorkerState.STARTING, 0, 0)
        self._paused = ""
        self._counts: dict[str, int] = {}
        self._faults: dict[str, int] = {}
        self._seconds, self._latency = Histogram(), Histogram()

    def beat(self) -> None:
        """Note that the loop went round."""
        with self._lock:
            self._beat_at = self._clock()
            self._beats += 1

    def root(self, path: str | os.PathLike[str], *, took_s: float = 0.0, problem: str = "") -> None:
        """Note that a watched folder was scanned, in `took_s` seconds; or could not be, and why.

        Raises
        ------
        KeyError
            It is not one of the watched folders.
        """
        with self._lock:
            root = self._roots[os.fspath(path)]
            root.problem = problem
            if not problem:
                root.scanned_at, root.took_s = self._clock(), took_s

    def ledger(self, problem: str = "") -> None:
        """Note that the ledger was written; or could not be opened or written, and why."""
        with self._lock:
            self._ledger = problem

    def disk(self, free_bytes: int, reserve_bytes: int, *, problem: str = "") -> None:
        """Note how much room the results' disk has, and how much of it is never used; or why it cannot be written."""
        with self._lock:
            self._disk = (free_bytes, reserve_bytes, problem)

    def canary(self, passed: bool, detail: str = "") -> None:
        """Note whether the restoring process reproduced its golden tiles, and if not, how far it was off."""
        with self._lock:
            self._canary = (passed, detail, self._clock())

    def worker(self, state: WorkerState, *, restarts: int = 0, failures: int = 0) -> None:
        """Note what the restoring process is at, how often another one was started, how often it failed in a row."""
        with self._lock:
            self._worker = (state, restarts, failures)

    def paused(self, reason: str = "") -> None:
        """Note why no stack is begun for now, or that it goes on; it may be on purpose and does not clear ready."""
        with self._lock:
            self._paused = reason

    def counts(self, counts: Mapping[str, int]) -> None:
        """Note how many stacks are in which state."""
        with self._lock:
            self._counts = dict(counts)

    def done(self, seconds: float, latency_s: float) -> None:
        """Count a published stack: seconds of work, and seconds since it was found complete."""
        with self._lock:
            self._seconds.add(seconds)
            self._latency.add(latency_s)

    def failed(self, fault: str) -> None:
        """Count a stack that was listed as failed, with a fault of this kind."""
        kind = getattr(fault, "value", fault)
        with self._lock:
            self._faults[str(kind)] = self._faults.get(str(kind), 0) + 1

    def live(self) -> Verdict:
        """Whether the loop goes round."""
        with self._lock:
            return _verdict(self._not_live())

    def ready(self) -> Verdict:
        """Whether a stack that becomes complete now will be seen, restored and published."""
        with self._lock:
            return _verdict([reason for reason, _ in self._not_ready()])

    def snapshot(self, *, names: bool = False) -> dict[str, Any]:
        """Return all signs, of one moment, as JSON values.

        Parameters
        ----------
        names
            Also what may name files: paths of the watched folders, and what exactly the problems are.

        Returns
        -------
        dict
            ``live``, ``ready``, ``reasons``, ``up_s``, ``beats``, ``beat_age_s``, ``roots`` (``ok``,
            ``scan_age_s``), ``ledger_ok``, ``disk`` (``free_bytes``, ``reserve_bytes``, ``ok``), ``canary``
            (``passed``, ``age_s``), ``worker`` (``state``, ``restarts``, ``failures``), ``paused``, ``counts``,
            ``queue``, ``faults``, ``seconds`` and ``latency`` (``count``, ``sum_s``, ``buckets``). What is not known
            yet is None. With `names` also ``problems``, ``paused_why``, and each root's ``path``.
        """
        with self._lock:
            now = self._clock()
            not_ready = self._not_ready()
            state, restarts, failures = self._worker
            found: dict[str, Any] = {
                "live": not self._not_live(),
                "ready": not not_ready,
                "reasons": [reason for reason, _ in not_ready],
                "up_s": round(now - self._began, 3),
                "beats": self._beats,
                "beat_age_s": round(now - self._beat_at, 3),
                "roots": [
                    {
                        "ok": not self._root_trouble(number, root, now),
                        "scan_age_s": None if root.scanned_at is None else round(now - root.scanned_at, 3),
                    }
                    for number, root in enumerate(self._roots.values())
                ],
                "ledger_ok": None if self._ledger is None else not self._ledger,
                "disk": None
                if self._disk is None
                else {
                    "free_bytes": self._disk[0],
                    "reserve_bytes": self._disk[1],
                    "ok": self._disk[0] >= self._disk[1] and not self._disk[2],
                },
                "canary": None
                if self._canary is None
                else {"passed": self._canary[0], "age_s": round(now - self._canary[2], 3)},
                "worker": {"state": state.value, "restarts": restarts, "failures": failures},
                "paused": bool(self._paused),
                "counts": dict(self._counts),
                "queue": sum(self._counts.get(name, 0) for name in WAITING_TO_BE_DONE),
                "faults": dict(self._faults),
                "seconds": self._seconds.words(),
                "latency": self._latency.words(),
            }
            if names:
                found["problems"] = [f"{reason} ({detail})" if detail else reason for reason, detail in not_ready]
                found["paused_why"] = self._paused
                for root, path in zip(found["roots"], self._roots, strict=True):
                    root["path"] = shown(path)
            return found

    def _not_live(self) -> list[str]:
        age = self._clock() - self._beat_at
        return [f"the daemon has not gone round its loop for {age:.0f} s; restart it"] if age >= BEAT_S else []

    def _not_ready(self) -> list[tuple[str, str]]:
        """Return why it is not ready: sentences without names, each with what exactly is known."""
        now = self._clock()
        found = [(reason, "") for reason in self._not_live()]
        if self._ledger is None:
            found.append(("the ledger is not open yet", ""))
        elif self._ledger:
            found.append(("the ledger cannot be written; is its disk full or gone?", self._ledger))
        for number, root in enumerate(self._roots.values()):
            found += self._root_trouble(number, root, now)
        if self._disk is None:
            found.append(("the results' disk was not looked at yet", ""))
        elif self._disk[2]:
            found.append(("the results' disk refuses to store; see the log", self._disk[2]))
        elif self._disk[0] < self._disk[1]:
            found.append(
                (
                    f"the results' disk has {self._disk[0] / 1e9:.2f} GB free, below the reserve of "
                    f"{self._disk[1] / 1e9:.2f} GB; make room",
                    "",
                )
            )
        if self._has_canary and self._canary is None:
            found.append(("the restoring process has not reproduced its golden tiles yet", ""))
        elif self._canary is not None and not self._canary[0]:
            found.append(
                (
                    "the restoring process did not reproduce its golden tiles; see the log",
                    self._canary[1],
                )
            )
        if self._worker[2] >= CRASH_LOOP:
            found.append((f"the restoring process failed {self._worker[2]} times in a row; see the log", ""))
        return found

    def _root_trouble(self, number: int, root: _Root, now: float) -> list[tuple[str, str]]:
        name = f"watched folder {number}"
        if root.problem:
            return [(f"{name} cannot be read; is its disk or share there?", root.problem)]
        if root.scanned_at is None:
            return [(f"{name} was not scanned yet", "")]
        # A scan that takes longer than the time between two is not late before it could be through twice.
        longest_s = 2 * max(self._scan_s, root.took_s, LEAST_SCAN_S / 2)
        if (age := now - root.scanned_at) > longest_s:
            return [(f"{name} was not scanned for {age:.0f} s; does its disk or share answer?", "")]
        return []


def _verdict(reasons: list[str]) -> Verdict:
    return Verdict(not reasons, tuple(reasons))
