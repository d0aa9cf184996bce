"""Clocks that lie: a wall clock that jumps while the daemon runs, and modification times that tell nothing."""

from __future__ import annotations

import os
import shutil
import struct
import time
import zlib
from typing import TYPE_CHECKING, Any

from ssai3d_rt.runtime.ledger import State
from tests.faults.drill import Outcome, drill
from tests.faults.lab import Lab, built
from tests.faults.mounts import command
from tests.faults.process import words
from tests.faults.watching import state_of
from tests.runtime.daemon import is_right, stack_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.faults.lab import Daemon

_DAY_S, _YEAR_S = 86_400, 31_557_600
_JUMPS = {"a day back": -_DAY_S, "ten years on": 10 * _YEAR_S, "an hour on": 3600, "an hour back": -3600}
_PATIENT: dict[str, Any] = {"observer": "off", "quiet_s": 1.5, "incomplete_after_s": 4.0, "stall_s": 6.0}
_SIZE = 1 << 15
"""Bytes of every file, which a stack does not fill."""
_LATE_S = 2.0
"""Two scans, a stack before, and a busy machine."""


@drill(row=30, title="the wall clock jumps", quick_s=25, full_s=80, needs=("linux", "gcc"))
def clock_jumps(lab: Lab) -> Outcome:
    """CLOCK_REALTIME jumps (LD_PRELOAD) while stacks wait, are incomplete, are restored; file times 10 years off."""
    library, complaints, figures = built("clock", lab.folder), list[str](), dict[str, Any]()
    jumps = dict(list(_JUMPS.items())[: 1 if lab.quick else None])
    for name, jump in jumps.items():
        place = Lab(lab.folder / name.replace(" ", "-"), quick=lab.quick)
        found, measured = _jumped(place, library, jump)
        complaints += [f"{name}: {text}" for text in found]
        for key, seconds in measured.items():
            figures[key] = [*figures.get(key, []), round(seconds, 1)]
    figures |= {"jumps_s": list(jumps.values()), "quiet_s": _PATIENT["quiet_s"]}
    figures["incomplete_after_s"] = _PATIENT["incomplete_after_s"]
    good = f"{len(jumps)} jumps: no patience ran out early or late, nothing is restored again"
    return Outcome(not complaints, figures, words(complaints, good))


def _jumped(lab: Lab, library: Path, jump: int) -> tuple[list[str], dict[str, float]]:
    """Let the clock jump while one stack waits, one is incomplete and one is restored."""
    clock, complaints = lab.folder / "clock", list[str]()
    clock.write_bytes(struct.pack("<q", 0))
    env = {"LD_PRELOAD": str(library), "CLOCK_FILE": str(clock)}
    future, past = lab.stacks(2)
    os.utime(future, (time.time() + 10 * _YEAR_S,) * 2)
    os.utime(past, (315_532_800,) * 2)
    lab.remember(future, past)
    with lab.daemon(delay_s=1.0, env=env, **_PATIENT) as daemon:
        lab.wait(lambda: any(entry.state is State.RUNNING for entry in lab.entries()))
        (waiting,) = lab.stacks(1, first=2)
        cut = stack_file(lab.incoming / ".cut", 3)
        os.truncate(cut, cut.stat().st_size // 2)
        unfinished = cut.rename(lab.incoming / "cut.ome.tif")
        began = time.monotonic()
        lab.wait(lambda: state_of(lab, waiting) and state_of(lab, unfinished), poll_s=0.005)
        with open(clock, "r+b") as file:
            file.write(struct.pack("<q", jump))
        lab.wait(lambda: state_of(lab, waiting) not in (State.SEEN, State.WAITING), 20.0, poll_s=0.01)
        quiet_s = time.monotonic() - began
        lab.wait(lambda: state_of(lab, unfinished) is State.FAILED, 20.0, poll_s=0.01)
        incomplete_s = time.monotonic() - began
        lab.stacks(1, first=4)
        lab.wait(lambda: lab.counts() == {"done": 4, "failed": 1}, 40.0)
        told = float(daemon.log.strip().splitlines()[-1].split()[0])
        replaced = daemon.log.count("restoring with ") - 1
    complaints += [] if abs(told - time.time() - jump) < 30 else ["the clock did not jump: nothing was tried"]
    for what, took_s, patience in (("quiet", quiet_s, "quiet_s"), ("incomplete", incomplete_s, "incomplete_after_s")):
        if not -0.1 <= took_s - _PATIENT[patience] <= _LATE_S + 0.6:
            complaints.append(f"{what} after {took_s:.1f} s instead of {_PATIENT[patience]:g} s")
    complaints += [f"the restoring process was replaced {replaced} times"] if replaced else []
    finals = lab.finals()
    with lab.daemon(env=env, **_PATIENT) as daemon:  # the clock is as wrong as it was
        lab.stacks(1, first=5)
        lab.wait(lambda: lab.counts() == {"done": 5, "failed": 1}, 40.0)
    complaints += [f"published again: {path.name}" for path, mark in finals.items() if lab.finals().get(path) != mark]
    restored = lab.log.read_text().split()
    complaints += [] if len(restored) == 5 else [f"{len(restored)} restorations of 5 stacks"]
    return complaints + lab.check(done=5), {"ready_after_s": quiet_s, "failed_after_s": incomplete_s}


@drill(row=31, title="modification times tell nothing", quick_s=30, full_s=200, needs=("linux",))
def times_tell_nothing(lab: Lab) -> Outcome:
    """New contents, same size, old time (2 s granularity, cp -p, mv), before, at, after restoration, and while off."""
    changes: dict[str, Callable[[Path, Path], None]] = {"coarse": _coarse, "cp -p": _copy, "mv": _move}
    moments = ("running", "done") if lab.quick else ("waiting", "running", "done", "away")
    complaints, noticed, stamp = list[str](), 0, 2 * (time.time_ns() // 2_000_000_000) * 10**9 - 60 * 10**9
    for number in range(1 if lab.quick else 4):
        for moment in moments:
            paths = [lab.incoming / f"{moment}-{name.replace(' ', '')}-{number}.ome.tif" for name in changes]
            for seed, path in enumerate(paths):
                _put(lab, path, 1000 * number + seed, stamp)
            with lab.daemon(delay_s=0.6, quiet_s=0.6) as daemon:
                if moment in ("waiting", "running"):
                    wanted = State[moment.upper()]
                    for path, change in zip(paths, changes.values(), strict=True):
                        _reach(lab, path, (State.SEEN, State.WAITING) if moment == "waiting" else (wanted,))
                        _change(lab, path, change, stamp)
                else:
                    lab.wait(lambda: all(state_of(lab, path) is State.DONE for path in paths))  # noqa: B023
                if moment == "away":
                    daemon.terminate()
                if moment in ("done", "away"):
                    for path, change in zip(paths, changes.values(), strict=True):
                        _change(lab, path, change, stamp)
                if moment != "away":
                    noticed += _settle(lab, daemon, paths, complaints)
            if moment == "away":
                with lab.daemon(quiet_s=0.6) as daemon:
                    noticed += _settle(lab, daemon, paths, complaints)
    complaints += _touched(lab)
    complaints += [text for text in lab.check() if not text.startswith("nobody's result")]
    figures = {"changes": (1 if lab.quick else 4) * len(moments) * len(changes), "noticed": noticed}
    good = f"{noticed} of {figures['changes']} noticed; a file whose times alone change is not restored again"
    return Outcome(not complaints, figures, words(complaints, good))


def _put(lab: Lab, path: Path, seed: int, stamp: int) -> None:
    hidden = stack_file(lab.folder / "making.ome.tif", seed)
    os.truncate(hidden, _SIZE)
    os.utime(hidden, ns=(stamp, stamp))
    os.rename(hidden, path)


def _reach(lab: Lab, path: Path, states: tuple[State, ...]) -> None:
    lab.wait(lambda: state_of(lab, path) in (*states, State.DONE), poll_s=0.002)


def _change(lab: Lab, path: Path, change: Callable[[Path, Path], None], stamp: int) -> None:
    """Give a file other contents of the same size, and its old time."""
    other = lab.folder / "other.ome.tif"
    other.unlink(missing_ok=True)
    stack_file(other, zlib.crc32(path.name.encode()))
    os.truncate(other, _SIZE)
    os.utime(other, ns=(stamp, stamp))
    before = path.stat()
    if other.stat().st_size != before.st_size:
        raise RuntimeError("the new contents have another size: this would prove nothing")
    change(other, path)
    after = path.stat()
    if after.st_mtime_ns != before.st_mtime_ns:
        raise RuntimeError("the modification time is another one: this would prove nothing")
    lab.remember(path)


def _coarse(other: Path, path: Path) -> None:
    """Rewrite in place, on a file system that counts in steps of two seconds."""
    content = other.read_bytes()
    stamp = path.stat().st_mtime_ns
    with open(path, "r+b") as file:
        file.write(content)
        file.flush()
        os.utime(file.fileno(), ns=(stamp, stamp))


def _copy(other: Path, path: Path) -> None:
    command("cp", "-p", other, path)


def _move(other: Path, path: Path) -> None:
    shutil.move(other, path)


def _settle(lab: Lab, daemon: Daemon, paths: list[Path], complaints: list[str]) -> int:
    """Count the files whose row says done with the right result; complain of the others."""

    def right(path: Path) -> bool:
        row = next(entry for entry in lab.entries() if entry.path == path)
        return row.state is State.DONE and bool(row.results) and is_right(row.results[0].path, path)

    try:
        lab.wait(lambda: all(right(path) for path in paths), 20.0, poll_s=0.2)
    except TimeoutError:
        complaints += [f"{path.name}: the change was not noticed" for path in paths if not right(path)]
    return sum(right(path) for path in paths)


def _touched(lab: Lab) -> list[str]:
    """Change only the times of files that are done; nothing may be restored or published again."""
    done = [entry.path for entry in lab.entries() if entry.state is State.DONE]
    with lab.daemon() as daemon:
        lab.wait(lambda: "restoring with" in daemon.log)
        restored, finals = len(lab.log.read_text().split()), lab.finals()
        for index, path in enumerate(done):
            os.utime(path, (1e9, 1e9)) if index % 2 else path.chmod(0o640)
            lab.remember(path)
        lab.wait(lambda: daemon.log.count("its content did not change") >= len(done), 30.0)
        again = len(lab.log.read_text().split()) - restored
    complaints = [f"{again} were restored again though only their times changed"] if again else []
    return complaints + (["something was published again"] if lab.finals() != finals else [])
