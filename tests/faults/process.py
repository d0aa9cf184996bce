"""Death and arrest of the daemon's processes: kills, polite ends, stops, a second daemon, a crash loop."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import time
from collections import Counter
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from ssai3d_rt.runtime.ledger import State
from tests.faults.drill import Outcome, drill
from tests.faults.lab import Lab, built, percentile, process_state
from tests.faults.trace import CHANGES, attached, points, ready_pid
from tests.runtime.quick import QuickRecipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.faults.lab import Daemon

PHASES = ("reading", "restoring", "writing", "publishing")
"""What a stack is at: it is hashed; it is in memory; its result has a temporary name; its result gets its name."""


@drill(row=1, title="kill -9 at random times", bar=1, quick_s=35, full_s=480, needs=("linux", "gcc"))
def random_kills(lab: Lab) -> Outcome:
    """SIGKILL, half at random moments, half in the phase that was hit least; syncs and opens slowed to widen phases."""
    number, kills = (10, 16) if lab.quick else (100, 200)
    sources = lab.stacks(number, folder=lab.folder / "sources")
    calm = undisturbed(lab, sources)
    slow = {"LD_PRELOAD": str(built("slow", lab.folder)), "SLOW_PATH": str(lab.incoming)}
    slow |= {"SLOW_SYNC_MS": "25", "SLOW_OPEN_MS": "60"}
    rng, hit, marks, complaints = random.Random(1), Counter[str](), dict[Path, tuple[int, int]](), list[str]()
    for kill in range(kills):
        feed(lab, sources[: min(number, lab.counts().get("done", 0) + 3, 3 + kill * number // kills)])
        with lab.daemon(delay_s=0.05, env=slow, quiet_s=0.05) as daemon:
            wanted = min(PHASES, key=lambda phase: hit[phase]) if kill % 2 else ""
            if wanted:
                with contextlib.suppress(TimeoutError):
                    lab.wait(partial(_is_in, lab, daemon, wanted), 4.0, poll_s=0.002)
                time.sleep(rng.uniform(0.0, 0.03))
            else:
                time.sleep(rng.uniform(0.0, 2.0))
            hit[_killed(lab, daemon, both=rng.random() < 0.5)] += 1
        complaints += changed(lab, marks)
    feed(lab, sources)
    with lab.daemon(quiet_s=0.05):
        lab.wait_done(number)
    complaints += [*changed(lab, marks), *lab.check(done=number)]
    made = {path.name: path for path in lab.finals()}
    same = [name for name, path in calm.items() if name in made and made[name].read_bytes() == path.read_bytes()]
    few = [phase for phase in PHASES if hit[phase] < (1 if lab.quick else 20)]
    complaints += [f"only {hit[phase]} kills while {phase}" for phase in few]
    complaints += [] if len(same) == number else [f"{number - len(same)} results differ from the undisturbed run"]
    figures = {"stacks": number, "kills": kills, **{f"kills_{phase}": hit[phase] for phase in (*PHASES, "between")}}
    figures |= {"bit_identical": len(same)}
    good = f"{len(same)} of {number} bit-identical to the undisturbed run, {kills} kills"
    return Outcome(not complaints, figures, words(complaints, good))


@drill(
    row=2, title="kill -9 at every system call of a publish", bar=2, quick_s=60, full_s=600, needs=("linux", "strace")
)
def kill_at_every_call(lab: Lab) -> Outcome:
    """strace sends SIGKILL at the Nth call of each kind that changes something, in the daemon and in its child."""
    complaints, figures, fired = list[str](), dict[str, int](), 0
    for whom in ("daemon", "child"):
        plan = reference(lab, whom, CHANGES)
        figures[f"calls_{whom}"] = len(plan)
        for call, which in plan[:: max(1, len(plan) // 4)] if lab.quick else plan:
            point = Lab(lab.folder / f"{whom}-{call}-{which}", quick=lab.quick)
            struck = _strike(point, whom, f"{call}:signal=SIGKILL:when={which}")
            fired += struck
            complaints += [f"{whom} {call} {which}: {complaint}" for complaint in point.check(done=1)]
            if not complaints:
                shutil.rmtree(point.folder)
    figures["kills"] = fired
    complaints += [] if fired else ["no kill came through"]
    return Outcome(not complaints, figures, words(complaints, f"{fired} of {fired} recover"))


def _strike(lab: Lab, whom: str, inject: str) -> bool:
    """Restore one stack with an injected death; return whether it came. Afterwards the stack is done."""
    with lab.daemon(quiet_s=0.05) as daemon:
        pid, daemon.may_end = ready_pid(lab, daemon, whom), True
        with attached(pid, lab.folder / "calls", CHANGES, inject):
            lab.stacks(1)
            lab.wait(lambda: not daemon.alive or lab.counts() == {"done": 1})
        struck = process_state(pid) in ("", "Z")
    if lab.counts() != {"done": 1}:
        with lab.daemon(quiet_s=0.05):
            lab.wait_done(1)
    return struck


@drill(row=3, title="SIGTERM while busy", quick_s=10, full_s=150, needs=("linux",))
def polite_stops(lab: Lab) -> Outcome:
    """SIGTERM at random moments while stacks are restored; then the next start."""
    stops, rng = (4 if lab.quick else 50), random.Random(3)
    sources = lab.stacks(stops)
    statuses, seconds = [], []
    for _ in range(stops):
        with lab.daemon(delay_s=0.1, quiet_s=0.05, stop_s=2.0) as daemon:
            time.sleep(rng.uniform(0.0, 1.2))
            began = time.monotonic()
            statuses.append(daemon.terminate())
            seconds.append(time.monotonic() - began)
    before = lab.finals()
    with lab.daemon(quiet_s=0.05):
        lab.wait_done(len(sources))
    again = [path.name for path, mark in before.items() if lab.finals().get(path) != mark]
    complaints = [*lab.check(done=len(sources)), *(f"published again: {name}" for name in again)]
    complaints += [f"a stop ended with status {status}" for status in statuses if status]
    figures = {"stops": stops, "done_before_last": len(before), "stop_p95_s": percentile(seconds, 0.95)}
    return Outcome(not complaints, figures, words(complaints, f"{stops} of {stops} ended with status 0, none twice"))


@drill(row=4, title="the restoring process is killed", bar=9, quick_s=25, full_s=200, needs=("linux",))
def child_kills(lab: Lab) -> Outcome:
    """SIGKILL to the child alone at random moments."""
    kills, rng, seconds = (6 if lab.quick else 100), random.Random(4), list[float]()
    sources = lab.stacks(kills, folder=lab.folder / "sources")
    with lab.daemon(delay_s=0.1, quiet_s=0.05, attempts=1000) as daemon:
        for kill in range(kills):
            feed(lab, sources[: kill + 1])
            ready = partial(_children_ready, daemon)
            lab.wait(lambda: ready() > kill)  # noqa: B023
            time.sleep(rng.uniform(0.0, 0.6))
            os.kill(daemon.restorer(), signal.SIGKILL)
            seconds.append(lab.wait(lambda: ready() > kill + 1, poll_s=0.005))  # noqa: B023
        lab.wait_done(kills)
        replaced = ready() - 1
    complaints = lab.check(done=kills)
    complaints += [] if replaced >= kills else [f"only {replaced} replacements"]
    figures = {"kills": kills, "recovery_p50_s": percentile(seconds, 0.5), "recovery_p95_s": percentile(seconds, 0.95)}
    good = f"{kills} of {kills} stacks, next process ready after {figures['recovery_p95_s']} s (p95)"
    return Outcome(not complaints, figures, words(complaints, good))


@drill(row=5, title="the daemon is stopped and goes on", quick_s=25, full_s=150, needs=("linux",))
def arrested(lab: Lab) -> Outcome:
    """SIGSTOP for longer than a stall may last, then SIGCONT: the daemon alone, then with its child."""
    pause_s, complaints, replaced = (4.0 if lab.quick else 60.0), list[str](), 0
    for round_ in range(2):
        lab.stacks(4, first=8 * round_)
        with lab.daemon(delay_s=0.2, stall_s=3.0) as daemon:
            lab.wait(lambda: any(entry.state is State.RUNNING for entry in lab.entries()))
            daemon.send(signal.SIGSTOP, whole_family=round_ == 1)
            lab.stacks(4, first=8 * round_ + 4)
            time.sleep(pause_s)
            daemon.send(signal.SIGCONT, whole_family=round_ == 1)
            lab.wait_done(8 * (round_ + 1))
            replaced += _children_ready(daemon) - 1
        complaints += lab.check(done=8 * (round_ + 1))
    figures = {"stopped_s": pause_s, "stacks": 16, "children_replaced": replaced}
    return Outcome(not complaints, figures, words(complaints, "the backlog of 16 is done"))


@drill(row=6, title="two daemons on one ledger", quick_s=6, full_s=10, needs=("linux",))
def two_daemons(lab: Lab) -> Outcome:
    """The same command line is started a second time while the first one works."""
    lab.stacks(5)
    with lab.daemon(delay_s=0.1) as first:
        with lab.daemon(delay_s=0.1, wait=False) as second:
            status = second.process.wait(30)
            said = second.log
        lab.wait_done(5)
        assert first.alive
    refused = status != 0 and "another watch (process " in said
    complaints = [*lab.check(done=5), *([] if refused else [f"the second ended with {status}: {said[-300:]}"])]
    restored = lab.log.read_text().split()
    complaints += [] if len(restored) == len(set(restored)) else ["a stack was restored twice"]
    return Outcome(not complaints, {"status": status}, words(complaints, "the second one ends with a clear message"))


@drill(row=7, title="crash loop: the restorer cannot be opened", quick_s=20, full_s=40, needs=("linux",))
def crash_loop(lab: Lab) -> Outcome:
    """The restorer refuses to open: at some starts of the daemon; then after its process was killed."""
    away, complaints, seconds = lab.folder / "away", list[str](), list[float]()
    recipe, starts = QuickRecipe(lab.log, refuse_while=away), 2 if lab.quick else 5
    lab.stacks(3)
    with lab.daemon(recipe=recipe):
        lab.wait_done(3)
    before, finals = lab.entries(), lab.finals()
    away.touch()
    for _ in range(starts):
        with lab.daemon(recipe=recipe, wait=False) as daemon:
            began = time.monotonic()
            status = daemon.process.wait(60)
            seconds.append(time.monotonic() - began)
            if not status or "the device is away" not in daemon.log:
                complaints.append(f"ended with {status}: {daemon.log[-300:]}")
    complaints += [] if lab.entries() == before else ["the ledger was changed by starts that failed"]
    away.unlink()
    with lab.daemon(recipe=recipe, back_off_s=[0.5, 1.0, 2.0]) as daemon:
        ready_pid(lab, daemon, "child")
        away.touch()
        os.kill(daemon.restorer(), signal.SIGKILL)
        lab.stacks(2, first=3)
        lab.wait(lambda: daemon.log.count("cannot start, it is tried again") >= 3)
        said = [line for line in daemon.log.splitlines() if "cannot start, it is tried again" in line]
        waiting = lab.counts()
        away.unlink()
        lab.wait_done(5)
    gaps = [round(after - at, 1) for at, after in pairwise(float(line.split()[0]) for line in said)]
    complaints += [] if all(gap >= 0.9 for gap in gaps) else [f"no back-off: {gaps} s between starts"]
    complaints += [] if waiting.get("done") == 3 and not waiting.get("failed") else [f"stacks were blamed: {waiting}"]
    complaints += [*lab.check(done=5), *changed(lab, finals)]
    figures = {"starts_refused": starts, "end_p95_s": percentile(seconds, 0.95), "seconds_between_tries": gaps}
    good = "it ends with the reason at the start, tries again with growing pauses later; no stack is blamed"
    return Outcome(not complaints, figures, words(complaints, good))


def undisturbed(lab: Lab, sources: Sequence[Path]) -> dict[str, Path]:
    """Results of the same files, by name, made by a daemon that nobody disturbs."""
    calm = Lab(lab.folder / "undisturbed", quick=lab.quick)
    feed(calm, sources)
    with calm.daemon(quiet_s=0.05):
        calm.wait_done(len(sources))
    return {path.name: path for path in calm.finals()}


def feed(lab: Lab, sources: Sequence[Path]) -> None:
    """Put those files into the watched folder that are not there yet, each whole."""
    for source in sources:
        if not (there := lab.incoming / source.name).exists():
            hidden = Path(shutil.copy2(source, lab.incoming / f".{source.name}.tmp"))
            os.rename(hidden, there)
            lab.remember(there)


def changed(lab: Lab, marks: dict[Path, tuple[int, int]]) -> list[str]:
    """Say which results were published again since the last call with the same `marks`."""
    found = lab.finals()
    again = [f"published again or gone: {path.name}" for path, mark in marks.items() if found.get(path) != mark]
    marks.update(found)
    return again


def reference(lab: Lab, whom: str, calls: str) -> list[tuple[str, int]]:
    """Calls that the restoration of one stack makes in the daemon or its child, see `trace.points`."""
    calm = Lab(lab.folder / f"reference-{whom}")
    with calm.daemon(quiet_s=0.05) as daemon, attached(ready_pid(calm, daemon, whom), calm.folder / "calls", calls):
        calm.stacks(1)
        calm.wait_done(1)
    return points(calm.folder / "calls")


def words(complaints: Sequence[str], good: str) -> str:
    """Return what to say: the first complaints, or what is good."""
    return "; ".join(complaints[:5]) + (f" and {len(complaints) - 5} more" if complaints[5:] else "") or good


def _children_ready(daemon: Daemon) -> int:
    return daemon.log.count("restoring with ")


def _killed(lab: Lab, daemon: Daemon, *, both: bool) -> str:
    """Hold daemon and child, look what they are at, kill; the child is let go, unless it is killed too."""
    family = daemon.hold()
    phase = _phase(lab, family)
    for pid in family[1:]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL if both else signal.SIGCONT)
    daemon.kill()
    return phase


def _is_in(lab: Lab, daemon: Daemon, phase: str) -> bool:
    return _phase(lab, daemon.family()) == phase


def _phase(lab: Lab, family: list[int]) -> str:
    states = {entry.state for entry in lab.entries()}
    if State.PUBLISHING in states:
        return "publishing"
    if State.RUNNING in states:
        return "writing" if lab.leftovers() else "restoring"
    return "reading" if any(_reads(lab.incoming, pid) for pid in family[1:]) else "between"


def _reads(folder: Path, pid: int) -> bool:
    """Whether a process has a file of a folder open."""
    for entry in Path(f"/proc/{pid}/fd").glob("*"):
        with contextlib.suppress(OSError):
            if Path(os.readlink(entry)).is_relative_to(folder) and Path(os.readlink(entry)) != folder:
                return True
    return False
