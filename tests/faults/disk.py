"""Disks that are full, out of inodes, read-only, slow or broken: the daemon waits, says so, and goes on by itself."""

from __future__ import annotations

import re
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.faults.drill import Outcome, drill
from tests.faults.lab import Lab, built
from tests.faults.mounts import command, mounted, remount, tmpfs
from tests.faults.process import words
from tests.faults.trace import attached, calls_of, ready_pid

if TYPE_CHECKING:
    from collections.abc import Callable

_RESUMED_S = 2.0
"""One stack's time, added to a scan interval."""

_DEFAULTS: dict[str, Any] = {"scan_s": 5.0, "back_off_s": [1.0, 5.0, 30.0, 60.0]}
"""Of `WatchSettings`: how soon a rig's daemon goes on is measured with what a rig has."""

_FAILING = {
    "daemon": "pread64,pwrite64,fsync,fdatasync,ftruncate,link,linkat,unlink,unlinkat,mkdir,read",
    "child": "read,pread64,write,fsync,link,linkat,unlink,unlinkat",
}
_SAID = re.compile(r"input/output error|disk i/o error|cannot be read|could not be", re.IGNORECASE)


@drill(row=11, title="no room for results", bar=4, quick_s=20, full_s=180, needs=("linux", "mount"))
def no_room_for_results(lab: Lab) -> Outcome:
    """The results' disk is a tmpfs of 256 KiB; when the daemon waits, it is enlarged by a remount."""
    return _starved(lab, lab.out, {"size": "256k"}, {"size": "64m"}, "No space left|GB free")


@drill(row=12, title="no room for the ledger", bar=4, quick_s=20, full_s=180, needs=("linux", "mount"))
def no_room_for_the_ledger(lab: Lab) -> Outcome:
    """The ledger's disk is a tmpfs of 256 KiB; when the daemon complains, it is enlarged by a remount."""
    return _starved(lab, lab.folder / "ledger", {"size": "256k"}, {"size": "64m"}, "could not be written|cannot be")


@drill(row=13, title="no inodes for results", bar=4, quick_s=None, full_s=180, needs=("linux", "mount"))
def no_inodes(lab: Lab) -> Outcome:
    """The results' disk is a tmpfs of 9 inodes; when the daemon waits, it is enlarged by a remount."""
    return _starved(lab, lab.out, {"size": "64m", "nr_inodes": 9}, {"nr_inodes": 4000}, "No space left")


def _starved(
    lab: Lab, small: Path, before: dict[str, str | int], after: dict[str, str | int], complaint: str
) -> Outcome:
    """Restore stacks while one folder is on a disk that is too small; make room; see how soon it goes on."""
    number, hold_s = (10, 7.0) if lab.quick else (50, 40.0)
    with tmpfs(small, **before):
        ledger = lab.folder / "ledger" / "ledger.sqlite"
        sources = lab.stacks(number, z_um=0.8)
        with lab.daemon(ledger=ledger, **_DEFAULTS) as daemon:
            lab.wait(lambda: re.search(complaint, lab.paused() + daemon.log), 120.0)
            time.sleep(hold_s)
            full = lab.counts()
            finals = lab.finals()
            said = re.findall(rf".*(?:{complaint}).*", f"{daemon.log}\n{lab.paused()}")[-1]
            remount(small, **after)
            resumed_s = lab.wait(lambda: lab.counts().get("done", 0) > full.get("done", 0), poll_s=0.05)
            lab.wait_done(number)
        complaints = lab.check(done=number)
        kept = lab.finals()
    complaints += [f"{path.name} was published again" for path, mark in finals.items() if kept.get(path) != mark]
    complaints += [f"stacks were blamed: {full}"] if full.get("failed") else []
    if resumed_s > _DEFAULTS["scan_s"] + _RESUMED_S:
        complaints.append(f"resumed {resumed_s:.1f} s after there was room again, not within a scan interval (5 s)")
    figures = {"stacks": len(sources), "done_when_full": full.get("done", 0), "resumed_s": round(resumed_s, 1)}
    figures |= {"full_for_s": hold_s}
    good = f"{number} of {number} in the end, resumed {resumed_s:.1f} s after there was room; said: {said[-120:]}"
    return Outcome(not complaints, figures, words(complaints, good))


@drill(row=14, title="input/output error at every call", quick_s=40, full_s=900, needs=("linux", "strace"))
def errors_at_every_call(lab: Lab) -> Outcome:
    """strace returns EIO at the Nth read, write, sync, link and so on of one stack, in the daemon and in its child."""
    complaints, figures = list[str](), dict[str, int]()
    ends: Counter[str] = Counter()
    for whom, calls in _FAILING.items():
        plan = _points_on_disk(lab, whom, calls)
        figures[f"calls_{whom}"] = len(plan)
        for call, which in plan[1 :: max(1, len(plan) // 2)] if lab.quick else plan:
            point = Lab(lab.folder / f"{whom}-{call}-{which}", quick=lab.quick)
            end, found = _with_error(point, whom, calls, f"{call}:error=EIO:when={which}")
            ends[end] += 1
            complaints += [f"{whom} {call} {which}: {complaint}" for complaint in found]
            if not found:
                shutil.rmtree(point.folder)
    figures |= dict(ends)
    good = f"{sum(ends.values())} errors: the result is right in the end, no sync is tried again"
    return Outcome(not complaints, figures, words(complaints, good))


@drill(row=15, title="read-only disks", bar=4, quick_s=40, full_s=60, needs=("linux", "mount"))
def read_only(lab: Lab) -> Outcome:
    """The raw folder is mounted read-only from the start; the results' disk is remounted read-only in the middle."""
    number, raw = 8, lab.incoming.with_name("raw")
    ledger = lab.folder / "ledger" / "ledger.sqlite"
    lab.stacks(number, folder=raw)
    with mounted("--bind", raw, at=lab.incoming), tmpfs(lab.out, size="64m"):
        command("mount", "-o", "remount,bind,ro", lab.incoming)
        with lab.daemon(ledger=ledger, delay_s=0.2, **_DEFAULTS):
            lab.wait(lambda: lab.counts().get("done", 0) >= 2)
            lab.wait(lambda: _became_read_only(lab.out), poll_s=0.001)
            lab.wait(lab.paused)
            said, before = lab.paused(), lab.counts().get("done", 0)
            remount(lab.out, rw="")
            resumed_s = lab.wait(lambda: lab.counts().get("done", 0) > before)
            lab.wait_done(number)
        complaints = lab.check(done=number)
    complaints += [] if "Read-only file system" in said and str(lab.out) in said else [f"unclear: {said}"]
    figures = {"stacks": number, "resumed_s": round(resumed_s, 1)}
    return Outcome(not complaints, figures, words(complaints, f"paused, and resumed after {resumed_s:.1f} s by itself"))


@drill(row=16, title="slow disk", quick_s=40, full_s=60, needs=("linux", "gcc"))
def slow_disk(lab: Lab) -> Outcome:
    """Every sync takes 300 ms longer (LD_PRELOAD), with a patience of 3 s for the restoring process."""
    number = 5 if lab.quick else 15
    lab.stacks(number)
    env = {"LD_PRELOAD": str(built("slow", lab.folder)), "SLOW_SYNC_MS": "300"}
    with lab.daemon(env=env, stall_s=3.0, start_s=20.0) as daemon:
        took_s = lab.wait_done(number)
        replaced = daemon.log.count("restoring with ") - 1
    complaints = lab.check(done=number)
    complaints += [f"the restoring process was replaced {replaced} times"] if replaced else []
    figures = {"stacks": number, "seconds_per_stack": round(took_s / number, 2), "children_replaced": replaced}
    return Outcome(not complaints, figures, words(complaints, "no patience ran out"))


@drill(row=17, title="output folder refuses", bar=4, quick_s=30, full_s=40, needs=("linux", "root", "chattr", "strace"))
def folder_refuses(lab: Lab) -> Outcome:
    """The result's folder is made immutable (EPERM, chattr +i); then a sync of the child says EDQUOT (strace)."""
    day = lab.out / "day1"
    day.mkdir(parents=True)
    lab.stacks(2, folder=lab.incoming / "day1")
    with _immutable(day), lab.daemon(**_DEFAULTS):
        lab.wait(lab.paused)
        said = [lab.paused()]
        command("chattr", "-i", day)
        resumed_s = lab.wait_done(2)
    with lab.daemon(**_DEFAULTS) as daemon:
        with attached(ready_pid(lab, daemon, "child"), lab.folder / "calls", "fsync", "fsync:error=EDQUOT:when=1"):
            lab.stacks(1, first=2)
            lab.wait(lab.paused)
            said.append(lab.paused())
        lab.wait_done(3)
    complaints = lab.check(done=3)
    complaints += [] if "not permitted" in said[0] and str(day) in said[0] else [f"unclear: {said[0]}"]
    complaints += [] if "quota" in said[1].lower() and str(lab.out) in said[1] else [f"unclear: {said[1]}"]
    figures = {"resumed_s": round(resumed_s, 1)}
    return Outcome(not complaints, figures, words(complaints, "paused with the path and the reason, resumed by itself"))


class _immutable:  # noqa: N801 - used like a function
    """A folder that nothing can be made in while inside."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> None:
        command("chattr", "+i", self._folder)

    def __exit__(self, *exc: object) -> None:
        command("chattr", "-i", self._folder)


def _became_read_only(folder: Path) -> bool:
    """Try to make a disk read-only; it refuses while a file on it is open for writing."""
    try:
        remount(folder, ro="")
    except RuntimeError:
        return False
    return True


def _points_on_disk(lab: Lab, whom: str, calls: str) -> list[tuple[str, int]]:
    """Calls of one restoration that concern a file or folder, as (call, which of its kind)."""
    calm = Lab(lab.folder / f"reference-{whom}")
    with calm.daemon(quiet_s=0.05) as daemon, attached(ready_pid(calm, daemon, whom), calm.folder / "calls", calls):
        calm.stacks(1)
        calm.wait_done(1)
    seen: Counter[str] = Counter()
    found = []
    for name, rest in calls_of(calm.folder / "calls"):
        seen[name] += 1
        if f"<{calm.folder}" in rest or f'"{calm.folder}' in rest:
            found.append((name, seen[name]))
    return found


def _with_error(lab: Lab, whom: str, calls: str, inject: str) -> tuple[str, list[str]]:
    """Restore one stack while one call fails; return how that ended and what is wrong."""
    found: list[str] = []
    settled: Callable[[], bool] = lambda: not daemon.alive or lab.counts() in ({"done": 1}, {"failed": 1})  # noqa: E731
    with lab.daemon(quiet_s=0.05) as daemon:
        pid, daemon.may_end = ready_pid(lab, daemon, whom), True
        with attached(pid, lab.folder / "calls", calls, inject):
            lab.stacks(1)
            lab.wait(settled)
        text = (lab.folder / "calls").read_text(errors="replace")
        end = "done_all_the_same" if lab.counts() == {"done": 1} else "listed_as_failed"
        struck = [line for line in text.splitlines() if "(INJECTED)" in line]
        if not any(str(lab.folder) in line for line in struck):
            end = "hit_a_library" if struck else "not_reached"
        elif not daemon.alive:
            end, found = "daemon_ended", [f"the daemon ended: {daemon.log.strip().splitlines()[-1]}"]
        elif end == "listed_as_failed":
            found += [] if _SAID.search(_reason(lab)) else [f"unclear: {_reason(lab)}"]
        if lab.counts() == {"failed": 1}:
            (lab.incoming / "0000.ome.tif.done").touch()
            try:
                lab.wait_done(1, 20.0)
            except TimeoutError:
                found.append(f"submitted again it fails again, while nothing is wrong any more: {_reason(lab)}")
    if lab.counts() != {"done": 1}:
        with lab.daemon(quiet_s=0.05):
            (lab.incoming / "0000.ome.tif.done").touch()
            lab.wait_done(1)
    return end, [*found, *_synced_again(text), *lab.check(done=1)]


def _reason(lab: Lab) -> str:
    return lab.entries()[0].reason


def _synced_again(log: str) -> list[str]:
    """Say which result was synced again after a sync of it had failed.

    SQLite syncs the ledger's log once more as it folds it into the ledger's file and begins a new log.
    """
    failed: set[str] = set()
    found = []
    for line in log.splitlines():
        if match := re.match(r"(?:\d+ +)?f(?:data)?sync\(\d+<([^>]*)>\) *= (.*)", line):
            if match[1] in failed and not Path(match[1]).is_dir() and ".sqlite" not in match[1]:
                found.append(f"{Path(match[1]).name} was synced again")
            if "(INJECTED)" in match[2]:
                failed.add(match[1])
    return found
