"""Bad inputs dropped into a watched folder between good stacks: what becomes of each, how soon, at what price."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from ssai3d_rt.imaging.openfile import shown
from ssai3d_rt.imaging.stack import Stack
from ssai3d_rt.imaging.write import write_ome_tiff
from ssai3d_rt.runtime.ledger import State
from tests.faults.badfiles import CASES
from tests.faults.drill import Outcome, drill
from tests.faults.lab import Daemon, Lab, percentile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.faults.badfiles import Bad

SECONDS = 5.0
"""Within so many seconds after it could first be judged, the daemon must have done with an input."""

PATIENCE_S = 0.5
SETTLED = ("done", "failed", "skipped")
EXAMINE_BYTES = 1 << 30
DAEMON_BYTES = 300 << 20


class Memory:
    """The largest resident memory of a daemon, and of any of the processes below it, in bytes."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon, self._stop = daemon, threading.Event()
        self.own = self.child = 0

    @contextlib.contextmanager
    def watched(self) -> Iterator[Memory]:
        """Look all the time while inside."""
        thread = threading.Thread(target=self._look, name="memory")
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join()

    def _look(self) -> None:
        while not self._stop.wait(0.02):
            for pid in self._daemon.family():
                with contextlib.suppress(psutil.Error):
                    rss = psutil.Process(pid).memory_info().rss
                    if pid == self._daemon.pid:
                        self.own = max(self.own, rss)
                    else:
                        self.child = max(self.child, rss)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one input."""

    bad: Bad
    path: Path
    state: str
    reason: str
    seconds: float


@drill(row=42, title="the 32 bad inputs", bar=10, quick_s=60, full_s=120, needs=("linux", "zarr", "ndstorage"))
def bad_inputs(lab: Lab) -> Outcome:
    """Each is made for real and dropped into the watched folder, a good stack after each one."""
    cases = [bad for bad in CASES if not bad.needs_root or os.geteuid() == 0]
    if lab.quick:  # one of each kind
        cases = list({bad.number: bad for bad in cases}.values())
    verdicts, complaints = list[Verdict](), list[str]()
    settings: dict[str, Any] = {"quiet_s": 0.05, "scan_s": 0.2, "incomplete_after_s": PATIENCE_S}
    settings |= {"examine_bytes": EXAMINE_BYTES, "voxel_z_um": 0.4, "voxel_xy_um": 0.1}  # so that no input lacks them
    with lab.daemon(**settings) as daemon, Memory(daemon).watched() as memory:
        lab.stacks(1)
        lab.wait_done(1)
        for number, bad in enumerate(cases, 1):
            path = bad.make(lab.incoming)
            lab.remember(path)
            wait_s, (after,) = _wait(lab, bad, path), lab.stacks(1, first=number)
            took_s = lab.wait(partial(_is_in, lab, after, "done"), 120.0)
            state, reason = _state(lab, path)
            verdicts.append(Verdict(bad, path, state, reason, round(wait_s, 2)))
            complaints += _complaints(verdicts[-1])
            complaints += [f"{bad.what}: the next good stack took {took_s:.1f} s"] if took_s > SECONDS else []
            if wait_s > SECONDS:  # it would go on to hold up the others
                lab.forget(path)
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        log = daemon.log
    twins = [entry.state for entry in lab.entries() if entry.path.name.startswith("20-")]
    complaints += [] if twins == [State.DONE] * 2 else [f"20 two names that look alike: {twins}"]
    complaints += lab.check()
    complaints += [f"{daemon.log.count('Traceback')} tracebacks in the log"] if "Traceback" in log else []
    seconds = [verdict.seconds for verdict in verdicts]
    figures = {
        "kinds": len({bad.number for bad in cases}),
        "inputs": len(cases),
        "longest_s": round(max(seconds), 2),
        "p95_s": percentile(seconds, 0.95),
        "daemon_mb": memory.own >> 20,
        "largest_child_mb": memory.child >> 20,
        "verdicts": {f"{v.bad.number} {v.bad.what}": f"{v.state}: {v.reason}".strip(": ") for v in verdicts},
    }
    complaints += [f"the daemon took {memory.own >> 20} MB"] if memory.own > DAEMON_BYTES else []
    complaints += [f"a child took {memory.child >> 20} MB"] if memory.child > EXAMINE_BYTES else []
    good = f"{len(cases)} inputs of {figures['kinds']} kinds, each settled within {figures['longest_s']} s"
    return Outcome(not complaints, figures, "; ".join(complaints[:12]) or f"{good}, the next stack never held up")


def _wait(lab: Lab, bad: Bad, path: Path) -> float:
    """Wait until the daemon has done with an input; return the seconds beyond its usual patience."""
    if "none" in bad.wanted:
        return 0.0  # nothing tells that a file is left alone, but that the next one is done
    try:
        took_s = lab.wait(partial(_is_in, lab, path, *SETTLED), 4 * SECONDS)
    except TimeoutError:
        return 4 * SECONDS
    return max(0.0, took_s - (PATIENCE_S if _state(lab, path)[1].startswith("incomplete") else 0.0))


def _is_in(lab: Lab, path: Path, *states: str) -> bool:
    return _state(lab, path)[0] in states


def _complaints(verdict: Verdict) -> list[str]:
    bad = verdict.bad
    complaints = []
    if verdict.state not in bad.wanted:
        complaints.append(f"{bad.number} {bad.what}: {verdict.state} ({verdict.reason}), not {' or '.join(bad.wanted)}")
    if verdict.state == "failed" and (len(verdict.reason) < 10 or "voxel" in verdict.reason):
        complaints.append(f"{bad.number} {bad.what}: not for what it is ({verdict.reason})")
    if not verdict.reason.isprintable():
        complaints.append(f"{bad.number} {bad.what}: the reason holds control characters")
    if verdict.seconds > SECONDS:
        complaints.append(f"{bad.number} {bad.what}: took {verdict.seconds} s")
    return complaints


def _state(lab: Lab, path: Path) -> tuple[str, str]:
    return next(((e.state.value, e.reason) for e in lab.entries() if e.path == path), ("none", ""))


def _large(path: Path, seed: int) -> None:
    """Write a stack that takes a while to be read, ``(40, 256, 256)``, every plane of one number."""
    data = np.full((40, 256, 256), 100 + seed, np.uint16)
    data[:, :, 128:] += 1
    write_ome_tiff(path, Stack(data, (0.2, 0.1, 0.1)))


@drill(row=(28, 42), title="a source changes while it is read", bar=8, quick_s=25, full_s=60, needs=("linux",))
def changing_sources(lab: Lab) -> Outcome:
    """While it is judged, examined and restored: replaced by a rename, rewritten in place, cut and completed again."""
    rounds = 12 if lab.quick else 60
    versions = [lab.folder / f"version{seed}.ome.tif" for seed in range(2)]
    for seed, path in enumerate(versions):
        _large(path, seed)
    contents = [path.read_bytes() for path in versions]
    changes: dict[str, Callable[[Path, int], None]] = {
        "replaced": lambda path, seed: _replace(path, contents[seed]),
        "rewritten": lambda path, seed: _rewrite(path, contents[seed]),
        "cut": lambda path, seed: _cut_and_mend(path, contents[seed]),
    }
    paths = {what: lab.incoming / f"{what}.ome.tif" for what in changes}
    rng, seeds = np.random.default_rng(28), dict.fromkeys(changes, 0)
    for path in paths.values():
        _replace(path, contents[0])
    with lab.daemon(quiet_s=0.02, scan_s=0.2, delay_s=0.1, incomplete_after_s=1.0, acquiring_s=0.1) as daemon:
        for _ in range(rounds):
            for what, change in changes.items():
                seeds[what] = int(rng.integers(2))
                change(paths[what], seeds[what])
            time.sleep(float(rng.uniform(0.0, 0.9)))
        lab.wait(lambda: lab.counts() == {"done": len(paths)}, 120.0, poll_s=0.05)
        lab.wait(lambda: all(_is_last(lab, path) for path in paths.values()), 60.0, poll_s=0.1)
        again = daemon.log.count("it changed")
        tracebacks = daemon.log.count("Traceback")
    complaints = [f"{tracebacks} tracebacks in the log"] if tracebacks else []
    complaints += [complaint for complaint in lab.check() if "nobody's result" not in complaint]
    mixed = [path for path in lab.finals() if not _is_of_one_version(path)]
    complaints += [f"{path.name} is a mixture" for path in mixed]
    figures = {"changes": rounds * len(changes), "taken_up_again": again, "results": len(lab.finals())}
    good = f"{figures['changes']} changes under the reader, {again} times taken up again, 0 mixtures, 0 crashes"
    return Outcome(not complaints, figures, "; ".join(complaints[:8]) or good)


def _is_last(lab: Lab, path: Path) -> bool:
    """Whether a row is done and what it was read from is what lies there now."""
    entry = next((entry for entry in lab.entries() if entry.path == path), None)
    status = os.stat(path)
    wanted = (status.st_ino, status.st_size, status.st_mtime_ns)
    return (
        entry is not None
        and entry.state is State.DONE
        and (entry.identity.inode, entry.identity.size, entry.identity.mtime_ns) == wanted
    )


def _replace(path: Path, data: bytes) -> None:
    hidden = path.with_name(f".{shown(path.name)}.tmp")
    hidden.write_bytes(data)
    os.rename(hidden, path)


def _rewrite(path: Path, data: bytes) -> None:
    with open(path, "r+b") as file:
        for at in range(0, len(data), 1 << 18):
            file.write(data[at : at + (1 << 18)])
            file.flush()
        file.truncate()


def _cut_and_mend(path: Path, data: bytes) -> None:
    os.truncate(path, len(data) // 3)
    time.sleep(0.05)
    _rewrite(path, data)


def _is_of_one_version(result: Path) -> bool:
    """Whether a result holds the numbers of one version of its source only."""
    from ssai3d_rt.imaging.read import read_stack

    found: set[int] = set(np.unique(read_stack(result).data).tolist())
    return found <= {100, 101} or found <= {101, 102}
