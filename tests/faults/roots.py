"""Watched folders that vanish, change or hang: a disk goes and comes, a root is renamed or replaced, a share dies."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from typing import TYPE_CHECKING, Any

from ssai3d_rt.runtime.ledger import State
from tests.faults.drill import Outcome, drill
from tests.faults.hung import share
from tests.faults.lab import Lab, percentile
from tests.faults.mounts import command, mounted, tmpfs, unmount
from tests.faults.process import words
from tests.faults.serving import gaps
from tests.faults.watching import are_done
from tests.runtime.daemon import stack_file

if TYPE_CHECKING:
    from pathlib import Path

    from tests.faults.lab import Daemon

_LIVE_S = 30.0
"""A loop that is not gone round for so long is not alive."""


@drill(row=(20, 21), title="a disk goes and comes back", bar=6, quick_s=25, full_s=150, needs=("linux", "mount"))
def disk_goes_and_comes(lab: Lab) -> Outcome:
    """The root is a mount: unmounted at work, mounted again; unmounted, restart on the empty mount point, mounted."""
    complaints, seconds, rounds = list[str](), list[float](), 1 if lab.quick else 4
    with tmpfs(lab.folder / "disk", size="64m") as disk:
        for number in range(rounds):
            done, first = 12 * number, 100 * number
            with mounted("--bind", disk, at=lab.incoming):
                lab.stacks(6, first=first, folder=disk)
                _unfinished(disk / f"unfinished{number}.ome.tif")
                with lab.daemon(delay_s=0.5, incomplete_after_s=600.0) as daemon:
                    lab.wait(lambda: any(entry.state is State.RUNNING for entry in lab.entries()))
                    lab.wait(lambda: lab.counts().get("waiting"))
                    time.sleep(0.2 * number)
                    unmount(lab.incoming)
                    lab.wait(lambda: "is empty, and another folder" in daemon.log)
                    time.sleep(1.5)
                    lab.stacks(3, first=first + 10, folder=disk)
                    command("mount", "--bind", disk, lab.incoming)
                    complaints += _return(lab, daemon, done + 9, seconds, f"unmounted {number}")
                    unmount(lab.incoming)
                with lab.daemon(incomplete_after_s=600.0) as daemon:
                    lab.wait(lambda: "is empty, and another folder" in daemon.log)
                    time.sleep(1.5)
                    lab.stacks(3, first=first + 20, folder=disk)
                    command("mount", "--bind", disk, lab.incoming)
                    complaints += _return(lab, daemon, done + 12, seconds, f"restarted without its disk {number}")
                complaints += lab.check(done=done + 12)
                if complaints:
                    break
    figures = {"returns": len(seconds), "stacks": 12 * rounds, "back_to_done_p95_s": percentile(seconds, 0.95)}
    return Outcome(not complaints, figures, words(complaints, "nothing marked gone, all picked up after each return"))


@drill(row=20, title="a root is renamed away, replaced, and back", bar=6, quick_s=25, full_s=120, needs=("linux",))
def root_renamed(lab: Lab) -> Outcome:
    """The root is renamed away and back: nothing, an empty folder, then one with another stack stands in its place."""
    complaints, seconds, rounds = list[str](), list[float](), 1 if lab.quick else 4
    aside, done = lab.folder / "aside", 0
    with lab.daemon(delay_s=0.3, incomplete_after_s=600.0) as daemon:
        for number in range(rounds):
            for index, (instead, sign) in enumerate(
                ((0, "cannot be read"), (1, "is empty, and another folder"), (2, f"{number}-instead.ome.tif"))
            ):
                first = 100 * number + 10 * index
                lab.stacks(3, first=first)
                _unfinished(lab.incoming / f"unfinished{first}.ome.tif")
                lab.wait(lambda: any(entry.state is State.RUNNING for entry in lab.entries()))
                before = len(daemon.log)
                lab.incoming.rename(aside)
                if instead:
                    lab.incoming.mkdir()
                if instead == 2:
                    other = stack_file(lab.folder / f"{number}-instead.ome.tif", 5000 + number)
                    os.rename(other, lab.incoming / other.name)
                    done += 1
                lab.wait(lambda: sign in daemon.log[before:])  # noqa: B023
                time.sleep(1.5)
                lab.stacks(2, first=first + 5, folder=aside)
                if instead == 2:
                    lab.wait(lambda: any("instead" in path.name for path in lab.finals()))
                if instead:
                    lab.incoming.rename(lab.folder / f"was-instead-{number}-{index}")
                aside.rename(lab.incoming)
                lab.forget(*(aside / path.name for path in lab.incoming.iterdir()))
                done += 5
                complaints += _return(lab, daemon, done, seconds, f"renamed {number}, {sign!r}")
            if complaints:
                break
    complaints += lab.check(done=done)
    figures = {"returns": len(seconds), "stacks": done, "back_to_done_p95_s": percentile(seconds, 0.95)}
    return Outcome(not complaints, figures, words(complaints, "nothing marked gone, all picked up after each return"))


@drill(row=22, title="a share hangs", quick_s=30, full_s=150, needs=("linux", "root", "mount"))
def share_hangs(lab: Lab) -> Outcome:
    """One of two roots is served through FUSE by a process that is stopped, idle and at work; then it goes on."""
    complaints, figures, hold_s = list[str](), dict[str, Any](), 16.0 if lab.quick else 40.0
    real, at, token = lab.folder / "real", lab.folder / "share", lab.folder / "token"
    token.write_text("a-token-of-this-drill")
    token.chmod(0o600)
    lab.stacks(2, folder=real)
    prefix: list[str | Path] = [sys.executable, "-m", "tests.faults.serving", token]
    with share(real, at) as shared, lab.daemon(prefix=prefix, folders=[at, lab.incoming], delay_s=0.5) as daemon:
        lab.wait_done(2)
        for number, idle in enumerate((True, False)):
            first, rounds = 100 * (number + 1), len(list(gaps(lab.folder)))
            if not idle:
                lab.stacks(4, first=first + 50, folder=real)
                lab.wait(lambda: any(entry.state is State.RUNNING for entry in lab.entries()))
            shared.stop()
            try:
                lab.stacks(5, first=first)
                began = time.monotonic()
                other = [lab.incoming / f"{seed:04d}.ome.tif" for seed in range(first, first + 5)]
                with contextlib.suppress(TimeoutError):
                    lab.wait(lambda: are_done(lab, other), hold_s)  # noqa: B023
                figures[f"other_root_done_s_{number}"] = round(time.monotonic() - began, 1)
                if not are_done(lab, other):
                    complaints.append(f"the other root stood still for {hold_s:g} s while the share hung ({idle=})")
                time.sleep(max(0.0, hold_s - (time.monotonic() - began)))
                beats = list(gaps(lab.folder))[rounds:]
                figures[f"loop_rounds_s_{number}"] = len(beats)
                if len(beats) < hold_s / 3:
                    complaints.append(f"the loop stood still: {len(beats)} of {hold_s:g} s were gone round ({idle=})")
                if "does not answer" not in daemon.log:
                    complaints.append("nobody was told that the share does not answer")
            finally:
                shared.go_on()
            lab.wait_done(7 if idle else 16)
        longest = max(gaps(lab.folder), default=0.0)
        complaints += _taken_for_gone(daemon, "hung")
    complaints += lab.check(done=16)
    complaints += [] if longest < _LIVE_S else [f"the loop stood still for {longest:.0f} s"]
    figures |= {"hung_s": hold_s, "longest_round_s": round(longest, 1)}
    return Outcome(not complaints, figures, words(complaints, "the other root went on, the loop too"))


def _unfinished(path: Path) -> None:
    """Write a stack of which the end is missing."""
    hidden = stack_file(path.with_name(f".{path.name}"), 9999)
    os.truncate(hidden, hidden.stat().st_size * 2 // 3)
    hidden.rename(path)


def _return(lab: Lab, daemon: Daemon, done: int, seconds: list[float], when: str) -> list[str]:
    """Wait until so many are done after a root came back; say what is wrong, and note the seconds."""
    complaints = []
    try:
        seconds.append(lab.wait(lambda: lab.counts().get("done", 0) == done, 30.0))
    except TimeoutError:
        complaints.append(f"{when}: {lab.counts()} 30 s after the return, {done} should be done")
    return complaints + _taken_for_gone(daemon, when)


def _taken_for_gone(daemon: Daemon, when: str) -> list[str]:
    gone = re.findall(r"event gone (.*)", daemon.log)
    return [f"{when}: {len(gone)} marked gone, such as {gone[0]}"] if gone else []
