"""Watching that fails: events lost, repeated and out of order, limits reached, files that move about."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssai3d_rt.runtime.ledger import State
from tests.faults.drill import Outcome, drill
from tests.faults.lab import Lab, percentile
from tests.faults.process import words
from tests.runtime.daemon import is_right, stack_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.faults.lab import Daemon

_RIG: dict[str, Any] = {"scan_s": 5.0}
"""Of `WatchSettings`: what a rig has."""
_LIVE_S = 30.0
"""A loop that is not gone round for so long is not alive."""
_NEVER: dict[str, Any] = {"scan_s": 3600.0}
"""Scans that never come: the control, which must miss what events miss."""


@drill(row=18, title="inotify's queue overflows", bar=5, full_s=150, needs=("linux", "inotify-sysctl"))
def queue_overflows(lab: Lab) -> Outcome:
    """fs.inotify.max_queued_events=128, then a burst of files, some of them stacks; once more without any scan."""
    number, stacks = 5_000, 100
    with _sysctl("max_queued_events", 128):
        blind = Lab(lab.folder / "without-scans", quick=lab.quick)
        with blind.daemon(**_NEVER) as daemon:
            lost = _lost(blind, number, daemon)
        return _burst(lab, number, stacks, {"lost_by_events_alone": lost}, "a queue of 128")


@drill(row=18, title="100,000 files at once", bar=5, full_s=1200, needs=("linux",))
def hundred_thousand(lab: Lab) -> Outcome:
    """100,000 files as fast as one process makes them, 200 of them stacks, with the limits as they are."""
    return _burst(lab, 100_000, 200, {}, "the system's limits")


def _burst(lab: Lab, number: int, stacks: int, figures: dict[str, Any], limit: str) -> Outcome:
    """Make files, see that every one is listed, each stack restored, and how soon."""
    sources = lab.stacks(stacks, folder=lab.folder / "sources")
    counted = lab.folder / "counted.json"
    prefix: list[str | Path] = [sys.executable, "-m", "tests.faults.events", "0", counted]
    with lab.daemon(prefix=prefix, **_RIG) as daemon:
        lab.wait(lambda: "restoring with" in daemon.log)
        began = time.time()
        made_at = _make(lab, number, sources)
        burst_s = time.time() - began
        listed_s = lab.wait(lambda: sum(lab.counts().values()) >= number, 600.0, poll_s=0.25)
        settled = {"done": stacks, "failed": number - stacks}
        settled_s = listed_s + lab.wait(lambda: lab.counts() == settled, 3000.0, poll_s=0.5)
        overflows = daemon.log.count("queue overflowed")
        seen = _first(daemon.log, "seen")
    longest_s = json.loads(counted.read_text())["longest_round_s"]
    late = [seen[name] - at for name, at in made_at.items() if name in seen]
    missed = number - len(late)
    complaints = lab.check(done=stacks)
    complaints += [f"{missed} files were never seen"] if missed else []
    complaints += [f"the loop stood still for {longest_s:.0f} s"] if longest_s >= _LIVE_S else []
    figures |= {"files": number, "stacks": stacks, "missed": missed, "burst_s": round(burst_s, 1)}
    figures |= {"overflows_logged": overflows, "listed_s": round(listed_s, 1), "settled_s": round(settled_s, 1)}
    figures["longest_round_s"] = longest_s
    figures |= {f"seen_after_p{int(100 * share)}_s": percentile(late, share) for share in (0.5, 0.95, 1.0)}
    if figures.get("lost_by_events_alone") == 0:
        complaints.append("nothing was lost without scans: the drill cannot see anything")
    good = f"missed 0 of {number} with {limit}; all listed {listed_s:.1f} s after the burst of {burst_s:.1f} s"
    return Outcome(not complaints, figures, words(complaints, good))


def _make(lab: Lab, number: int, sources: Sequence[Path]) -> dict[str, float]:
    """Make so many files, the stacks among them; return when each was there, seconds since 1970, by name."""
    every = number // len(sources) if sources else number + 1
    waiting, made = list(sources), {}
    for index in range(number):
        if waiting and index % every == 0:
            path = lab.incoming / waiting[0].name
            lab.forget(waiting[0])
            os.rename(waiting.pop(0), path)
            lab.remember(path)
        else:
            path = lab.incoming / f"no-stack-{index:06d}.tif"
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            os.write(descriptor, b"not an image")
            os.close(descriptor)
        made[path.name] = time.time()
    return made


def _lost(lab: Lab, number: int, daemon: Daemon) -> int:
    """How many files a daemon without scans never hears of."""
    lab.wait(lambda: "restoring with" in daemon.log)
    _make(lab, number, [])
    listed, since = -1, time.monotonic()
    while time.monotonic() - since < 4.0:
        if (now := sum(lab.counts().values())) != listed:
            listed, since = now, time.monotonic()
        time.sleep(0.1)
    return number - listed


@drill(row=19, title="too few watches", bar=5, quick_s=20, full_s=40, needs=("linux", "unshare"))
def too_few_watches(lab: Lab) -> Outcome:
    """The daemon may have 20 watches (a user namespace of its own); 25 folders from the start, 25 made meanwhile."""
    limited = 'echo 20 > /proc/sys/user/max_inotify_watches && exec "$@"'
    prefix = ["unshare", "--user", "--map-root-user", "sh", "-c", limited, "sh"]
    folders = [lab.incoming / f"well{number:02d}" for number in range(50)]
    for folder in folders[:25]:
        folder.mkdir()
    with lab.daemon(prefix=prefix, **_RIG) as daemon:
        lab.wait(lambda: "restoring with" in daemon.log)
        for number, folder in enumerate(folders):
            lab.stacks(1, first=number, folder=folder)
        last = time.time()
        lab.wait_done(50)
        said = [line for line in daemon.log.splitlines() if "no events from" in line or "watch limit" in line]
        seen, held = _first(daemon.log, "seen"), _watches(daemon)
    complaints = lab.check(done=50)
    complaints += [] if held <= 20 else [f"{held} watches were given: nothing was too few"]
    complaints += [] if said else ["nothing was said about the watches that are missing"]
    late = max(seen.values()) - last
    figures = {"folders": 50, "watches": held, "warnings": len(said), "last_seen_after_s": round(late, 1)}
    return Outcome(not complaints, figures, words(complaints, f"50 of 50, the last seen after {late:.1f} s"))


@drill(row=23, title="events dropped, repeated, reordered", quick_s=20, full_s=600, needs=("linux",))
def unreliable_events(lab: Lab) -> Outcome:
    """Random changes of files; a third of the events is dropped, a third repeated, all come late and out of order."""
    rounds, steps = (1, 300) if lab.quick else (20, 500)
    counted, complaints = lab.folder / "counted.json", list[str]()
    play = _Play(lab)
    prefix: list[str | Path] = [sys.executable, "-m", "tests.faults.events", "23", counted]
    with lab.daemon(prefix=prefix, quiet_s=0.2, incomplete_after_s=0.5):
        for number in range(rounds):
            for _ in range(steps):
                play.step()
            try:
                lab.wait(lambda: not play.wrong(), 60.0, poll_s=0.3)
            except TimeoutError:
                complaints += [f"round {number}: {complaint}" for complaint in play.wrong()]
                break
    complaints += [text for text in lab.check() if not text.startswith("nobody's result")]
    figures = {"steps": play.steps, "rounds": rounds, **json.loads(counted.read_text())}
    return Outcome(not complaints, figures, words(complaints, f"{play.steps} steps, the ledger was right each time"))


class _Play:
    """Random changes of a few files, and what the ledger must say of them in the end."""

    def __init__(self, lab: Lab) -> None:
        self._lab, self._rng, self.steps = lab, random.Random(23), 0
        self._folders = [lab.incoming, lab.incoming / "day1", lab.incoming / "day1" / "well"]
        for folder in self._folders:
            folder.mkdir(exist_ok=True)
        stacks = lab.folder / "stacks"
        stacks.mkdir()
        self._whole = [stack_file(stacks / f"{seed}.ome.tif", seed).read_bytes() for seed in range(40)]
        self._files: dict[Path, bytes | None] = {}
        """What is there: a whole stack's bytes, or None for anything else."""

    def step(self) -> None:
        """Change one thing."""
        self.steps += 1
        rng = self._rng
        path = rng.choice(self._folders) / f"{rng.choice('abcdefgh')}.ome.tif"
        content = rng.choice(self._whole)
        match rng.randrange(8):
            case 0 | 1:
                hidden = path.with_name(f".{path.name}.part")
                hidden.write_bytes(content)
                os.replace(hidden, path)
                self._files[path] = content
            case 2:
                path.write_bytes(content)
                self._files[path] = content
            case 3:
                path.write_bytes(content[: rng.randrange(len(content))])
                self._files[path] = None
            case 4 if path in self._files:
                path.unlink()
                del self._files[path]
            case 5 | 6 if path in self._files:
                other = rng.choice(self._folders) / f"{rng.choice('abcdefgh')}.ome.tif"
                os.replace(path, other)
                self._files[other] = self._files.pop(path)
            case 7 if path in self._files:
                os.utime(path)
        time.sleep(rng.uniform(0.0, 0.004))

    def wrong(self) -> list[str]:
        """Say what the ledger has wrong just now."""
        rows = {entry.path: entry for entry in self._lab.entries()}
        found = []
        for path, content in self._files.items():
            row = rows.get(path)
            if row is None:
                found.append(f"{path.name} is not known")
            elif content is None and row.state not in (State.FAILED, State.WAITING):
                found.append(f"{path.name} is no whole stack, and {row.state.value}")
            elif content is not None and row.state is not State.DONE:
                found.append(f"{path.name} is {row.state.value}: {row.reason}")
            elif content is not None and not is_right(row.results[0].path, path):
                found.append(f"{path.name} has a result of something else")
        open_ = (State.SEEN, State.WAITING, State.READY, State.RUNNING, State.PUBLISHING)
        return found + [
            f"{path.name} is not there, and {row.state.value}"
            for path, row in rows.items()
            if path not in self._files and row.state in open_
        ]


@drill(row=24, title="files that move", quick_s=15, full_s=120, needs=("linux",))
def files_that_move(lab: Lab) -> Outcome:
    """Renamed after closing, copied under a temporary name, moved between roots before, at and after restoration."""
    number, second = (3 if lab.quick else 12), lab.folder / "incoming2"
    second.mkdir()
    stacks = lab.stacks(6 * number, folder=lab.folder / "sources")
    for path in stacks:
        lab.forget(path)
    groups = [stacks[kind * number : (kind + 1) * number] for kind in range(6)]
    roots, rng = [lab.incoming, second], random.Random(24)
    with lab.daemon(folders=roots, delay_s=0.1):
        for index in range(number):
            # Written under its visible name, closed, renamed at once or later.
            path = Path(shutil.copyfile(groups[0][index], lab.incoming / f"closed{index}.ome.tif"))
            time.sleep(rng.uniform(0.0, 0.6))
            path.rename(path.with_name(f"renamed{index}.ome.tif"))
            # Copied under a temporary name in pieces, as copy programs and rsync do, then renamed.
            for group, hidden in ((1, "copied{}.ome.tif.part"), (2, ".synced{}.ome.tif.Xk3f9Q")):
                path = lab.incoming / hidden.format(index)
                _in_pieces(groups[group][index], path)
                path.rename(path.with_name(path.name.lstrip(".").partition(".ome")[0] + ".ome.tif"))
            # From one root into the other: at once, while it is at work or waits, and when it is done.
            moved = [
                Path(shutil.copyfile(groups[3 + kind][index], lab.incoming / f"moved{kind}-{index}.ome.tif"))
                for kind in range(3)
            ]
            moved[0].rename(second / moved[0].name)
            with contextlib.suppress(TimeoutError):
                lab.wait(lambda: state_of(lab, moved[1]) in (State.READY, State.RUNNING), 5.0, poll_s=0.005)  # noqa: B023
            moved[1].rename(second / moved[1].name)
            lab.wait(lambda: state_of(lab, moved[2]) is State.DONE)  # noqa: B023
            moved[2].rename(second / moved[2].name)
        there = [*lab.incoming.iterdir(), *second.iterdir()]
        lab.wait(lambda: are_done(lab, there))
        lab.wait(lambda: not set(lab.counts()) - {"done", "gone"})
    complaints = lab.check(done=6 * number)
    finals = lab.finals()
    complaints += [] if len(finals) == 6 * number else [f"{len(finals)} results of {6 * number} stacks"]
    restored = lab.log.read_text().split()
    figures = {"stacks": 6 * number, "results": len(finals), "restored_again": len(restored) - 6 * number}
    return Outcome(not complaints, figures, words(complaints, f"{len(finals)} stacks, one result each"))


def _watches(daemon: Daemon) -> int:
    """How many folders inotify watches for a daemon."""
    found = 0
    for entry in Path(f"/proc/{daemon.pid}/fdinfo").iterdir():
        with contextlib.suppress(OSError):
            found += entry.read_text().count("inotify wd:")
    return found


def _in_pieces(source: Path, path: Path) -> None:
    content = source.read_bytes()
    with open(path, "wb") as file:
        for start in range(0, len(content), 1 + len(content) // 4):
            file.write(content[start : start + 1 + len(content) // 4])
            file.flush()
            time.sleep(0.15)


def are_done(lab: Lab, paths: Sequence[Path]) -> bool:
    """Whether each of these is done."""
    done = {entry.path for entry in lab.entries() if entry.state is State.DONE}
    return done.issuperset(paths)


def state_of(lab: Lab, path: Path) -> State | None:
    """State of one file; None where it is not known."""
    return next((entry.state for entry in lab.entries() if entry.path == path), None)


def _first(log: str, state: str) -> dict[str, float]:
    """When each file came into a state for the first time, seconds since 1970, by name."""
    found: dict[str, float] = {}
    for at, name in re.findall(rf"^(\d+\.\d+) event {state} (\S+)", log, re.MULTILINE):
        found.setdefault(name, float(at))
    return found


@contextlib.contextmanager
def _sysctl(name: str, value: int) -> Iterator[None]:
    """Set a limit of inotify while inside."""
    path = Path("/proc/sys/fs/inotify", name)
    before = path.read_text()
    path.write_text(str(value))
    try:
        yield
    finally:
        path.write_text(before)
