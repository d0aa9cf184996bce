"""Long runs, compressed: thousands of stacks one after the other, and a ledger of a million rows.

A rig takes a stack every half minute or so. What an hour of that does to memory, the same number of stacks do in some
seconds here: an hour-equivalent is `STACKS_PER_HOUR` stacks.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from ssai3d_rt.runtime.database import open_database
from ssai3d_rt.runtime.scan import scan
from ssai3d_rt.runtime.source import identity
from tests.faults.drill import Outcome, drill
from tests.faults.inputs import Memory
from tests.faults.lab import Lab
from tests.runtime.quick import QuickRecipe

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.faults.lab import Daemon

STACKS_PER_HOUR = 120
MOST_MB_PER_HOUR = 1.0
MOST_MORE = 5
"""Descriptors or threads at the end, more than after warming up."""

SPREAD_MB = 100
"""In the second half of a run, memory is never so much above its mean (the twentieth that is farthest off left out)."""

_AHEAD = 12
_PAIRS = 400


@dataclass(frozen=True, slots=True)
class Sample:
    """What a daemon and its processes held when so many stacks were done."""

    done: int
    rss_mb: float
    children_mb: float
    descriptors: int
    threads: int


def sample(daemon: Daemon, done: int) -> Sample:
    """Look at a daemon."""
    own = psutil.Process(daemon.pid)
    children_mb = 0.0
    for child in own.children():
        with contextlib.suppress(psutil.Error):
            children_mb += child.memory_info().rss / (1 << 20)
    return Sample(done, own.memory_info().rss / (1 << 20), children_mb, own.num_fds(), own.num_threads())


def slope(samples: Sequence[Sample], value: Callable[[Sample], float]) -> float:
    """Growth per stack: the median of the slopes between all pairs of samples (Theil and Sen), which outliers leave."""
    thin = samples[:: max(1, len(samples) // _PAIRS)]
    slopes = [(value(b) - value(a)) / (b.done - a.done) for a, b in combinations(thin, 2) if b.done > a.done]
    return float(np.median(slopes)) if slopes else 0.0


def verdict(samples: Sequence[Sample]) -> tuple[list[str], dict[str, Any]]:
    """Judge a run, its first third left out as warming up."""
    warm = [s for s in samples if s.done > samples[-1].done / 3]
    second = sorted(s.rss_mb for s in warm[len(warm) // 4 :])
    kept = second[: max(1, len(second) * 19 // 20)]
    grown = {"daemon": slope(warm, lambda s: s.rss_mb), "children": slope(warm, lambda s: s.children_mb)}
    more = {"descriptors": warm[-1].descriptors - warm[0].descriptors, "threads": warm[-1].threads - warm[0].threads}
    complaints = [
        f"the {whose} grow by {per_stack * STACKS_PER_HOUR:.2f} MB per hour-equivalent"
        for whose, per_stack in grown.items()
        if per_stack * STACKS_PER_HOUR > MOST_MB_PER_HOUR
    ]
    complaints += [f"{number} more {what}" for what, number in more.items() if number > MOST_MORE]
    spread = kept[-1] - float(np.mean(kept))
    complaints += [f"memory varies by {spread:.0f} MB"] if spread > SPREAD_MB else []
    figures: dict[str, Any] = {f"{whose}_mb_per_1000_stacks": round(1000 * each, 3) for whose, each in grown.items()}
    figures |= {f"{whose}_mb_per_hour": round(STACKS_PER_HOUR * each, 3) for whose, each in grown.items()}
    figures |= {f"more_{what}": number for what, number in more.items()}
    figures |= {"rss_mb": round(warm[-1].rss_mb, 1), "children_mb": round(warm[-1].children_mb, 1)}
    return complaints, figures | {"spread_mb": round(spread, 1), "samples": len(warm)}


def work(lab: Lab, seconds: float, *, leaky: bool = False) -> list[Sample]:
    """Have a daemon restore stacks as fast as it goes for so long; then all that was begun is done."""
    prefix = [sys.executable, "-m", "tests.faults.leaky"] if leaky else []
    samples, made, until = list[Sample](), 0, time.monotonic() + seconds
    settings: dict[str, Any] = {"quiet_s": 0.02, "scan_s": 5.0, "acquiring_s": 0.01}
    with lab.daemon(prefix=prefix, **settings) as daemon:
        while time.monotonic() < until:
            done = lab.counts().get("done", 0)
            if done + _AHEAD > made:
                lab.stacks(_AHEAD, first=made)
                made += _AHEAD
            if not samples or done >= samples[-1].done + 4:
                samples.append(sample(daemon, done))
            time.sleep(0.1)
        lab.wait_done(made, 120.0)
        samples.append(sample(daemon, made))
    return samples


@drill(row=34, title="thousands of stacks", bar=13, quick_s=45, full_s=1950, needs=("linux",))
def soak(lab: Lab) -> Outcome:
    """Small stacks one after the other, as fast as they are done; then the same with a listener that keeps memory."""
    samples = work(lab, 22.0 if lab.quick else 1800.0)
    complaints, figures = verdict(samples)
    complaints += lab.check(done=samples[-1].done)
    leaking = Lab(lab.folder / "leaking", quick=lab.quick)
    leaky = work(leaking, 12.0 if lab.quick else 90.0, leaky=True)
    found, leak = verdict(leaky)
    caught = any("the daemon grow" in words for words in found)
    complaints += [] if caught else [f"a planted leak was not seen: {leak}"]
    hours = samples[-1].done / STACKS_PER_HOUR
    figures |= {"stacks": samples[-1].done, "hour_equivalents": round(hours, 1)}
    figures |= {"leak_mb_per_hour": leak["daemon_mb_per_hour"], "stacks_per_hour": STACKS_PER_HOUR}
    good = f"{samples[-1].done} stacks, {figures['daemon_mb_per_hour']} MB per hour of {STACKS_PER_HOUR} stacks"
    return Outcome(not complaints, figures, "; ".join(complaints[:6]) or f"{good}; a planted leak is seen")


@drill(row=34, title="a ledger of a million rows", bar=13, quick_s=20, full_s=240, needs=("linux",))
def million_rows(lab: Lab) -> Outcome:
    """A ledger of a million done stacks, 100,000 of them in the watched folder; a twentieth of that in a quick run."""
    rows, files = (50_000, 5_000) if lab.quick else (1_000_000, 100_000)
    _fill(lab, rows, files)
    complaints = []
    began = time.monotonic()
    found = len(scan(lab.incoming).files)
    scan_s = time.monotonic() - began
    lab.stacks(1)  # what only a scan can find
    with lab.daemon(observer="off", scan_s=1.0, quiet_s=0.1, wait=False) as daemon, Memory(daemon).watched() as memory:
        start_s = lab.wait(lambda: " event seen 0000.ome.tif" in daemon.log, 120.0)
        lab.wait(lambda: " event done 0000.ome.tif" in daemon.log, 120.0)
        lab.stacks(1, first=1)
        again_s = lab.wait(lambda: " event seen 0001.ome.tif" in daemon.log, 120.0)
        lab.wait(lambda: " event done 0001.ome.tif" in daemon.log, 120.0)
        restored = lab.log.read_text().split()
    complaints += [] if len(restored) == 2 else [f"{len(restored)} were restored, 2 should be"]
    complaints += [f"{start_s:.1f} s until the first scan was taken in"] if start_s > 10 else []
    complaints += [f"{memory.own >> 20} MB"] if memory.own > 500 << 20 else []
    complaints += [f"a scan takes {scan_s:.1f} s, a new file was seen after {again_s:.1f} s"] if again_s > 30 else []
    figures = {
        "rows": rows,
        "files": found,
        "start_s": round(start_s, 2),
        "scan_s": round(scan_s, 2),
        "new_file_seen_s": round(again_s, 2),
        "daemon_mb": memory.own >> 20,
        "ledger_mb": lab.ledger.stat().st_size >> 20,
    }
    good = f"first scan taken in after {start_s:.1f} s, {memory.own >> 20} MB, {found} known files in {scan_s:.1f} s"
    return Outcome(not complaints, figures, "; ".join(complaints) or good)


def _fill(lab: Lab, rows: int, files: int) -> None:
    """Write a ledger of done stacks; the last of them are there, and their results too (both of no size)."""
    lab.ledger.parent.mkdir(parents=True, exist_ok=True)
    recipe = QuickRecipe(lab.log)
    database = open_database(lab.ledger)
    columns = "id, path, shown, bundle, parameters, state, device, inode, size, mtime_ns, ctime_ns, content, seen_at, "
    insert = f"INSERT INTO stacks ({columns}updated_at) VALUES ({', '.join('?' * 14)})"
    database.execute("BEGIN")
    for row in range(1, rows + 1):
        name = f"day{row // 1000:04d}/stack{row:07d}.tif"
        path, result = lab.incoming / name, lab.out / f"{name[:-4]}_iso.ome.tif"
        device, inode, size, mtime_ns, ctime_ns = 1, row, 1000, 10**18, 10**18
        if row > rows - files:
            for made in (path, result):
                made.parent.mkdir(parents=True, exist_ok=True)
                os.close(os.open(made, os.O_CREAT | os.O_WRONLY))
            found = identity(path)
            device, inode, size, mtime_ns, ctime_ns = (
                *(found.device, found.inode, found.size),
                *(found.mtime_ns, found.ctime_ns),
            )
        content = f"{row:064x}"
        values = (os.fsencode(path), str(path), recipe.bundle_id, recipe.parameters, "done", device, str(inode), size)
        database.execute(insert, (row, *values, mtime_ns, ctime_ns, content, 1e9, 1e9))
        database.execute("INSERT INTO results VALUES (?, ?, ?, ?, ?)", (os.fsencode(result), row, b"gone", content, 0))
    database.execute("COMMIT")
    database.close()
