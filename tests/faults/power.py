"""Power cuts: a disk that keeps only what was synced, cut off at random moments, and what the next start makes of it.

The disk is an ext4 file system in a file that commits by itself only every ten minutes. While daemon and child stand
still the file is copied: the copy is what a disk would hold after a cut at that moment. A run is over before the
system begins to write out old data by itself.
"""

from __future__ import annotations

import contextlib
import random
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ssai3d_rt.errors import Ssai3dError
from ssai3d_rt.runtime.ledger import State
from ssai3d_rt.runtime.publish import holds
from tests.faults.drill import Outcome, drill
from tests.faults.lab import Lab, built
from tests.faults.mounts import command, mounted
from tests.faults.process import feed, words
from tests.runtime.daemon import is_right

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_DISK_BYTES = 48 << 20
_UNDISTURBED_S = 25.0
"""Younger data are not written out by the system itself (dirty_expire_centisecs is 30 s)."""


@dataclass(frozen=True, slots=True)
class Cut:
    """What a disk held when the power went, and which stacks the daemon had called done by then."""

    image: Path
    promised: frozenset[str]


@drill(row=8, title="power cut at random", bar=3, quick_s=20, full_s=900, needs=("linux", "loop"))
def power_cuts(lab: Lab) -> Outcome:
    """A mounted disk's image (loop, ext4, commit=600) is copied while the daemon works; it then starts on the copy."""
    rounds, cuts, stacks = (1, 4, 6) if lab.quick else (5, 20, 20)
    complaints, promised, made, rng = list[str](), 0, 0, random.Random(8)
    for number in range(3 * rounds):
        if made == rounds * cuts:
            break
        run = Lab(lab.folder / f"round{number}", quick=lab.quick)
        for index, cut in enumerate(_cut(run, min(cuts, rounds * cuts - made), stacks, rng)):
            promised, made = promised + len(cut.promised), made + 1
            with mounted("-o", "loop", cut.image, at=run.folder / "disk"):
                found = _wrong(run, cut)
                with run.daemon(out=run.out, quiet_s=0.05):
                    run.wait_done(stacks)
                found += run.check(done=stacks)
            complaints += [f"round {number} cut {index}: {complaint}" for complaint in found]
            if not found:
                cut.image.unlink()
    figures = {"cuts": made, "stacks": stacks, "done_before_cuts": promised}
    complaints += [] if made == rounds * cuts else ["the runs were too slow to make all the cuts"]
    complaints += [] if promised else ["every cut came before the first result"]
    good = f"{rounds * cuts} of {rounds * cuts} cuts: nothing torn, nothing done is lost, all finish after the restart"
    return Outcome(not complaints, figures, words(complaints, good))


@drill(row=9, title="power cut, negative control", bar=3, quick_s=10, full_s=60, needs=("linux", "loop", "gcc"))
def power_cuts_without_sync(lab: Lab) -> Outcome:
    """The same with fsync as a no-op (LD_PRELOAD): of everything, then of all but the ledger. It must be noticed."""
    shim, figures, unseen = built("nosync", lab.folder), dict[str, int](), list[str]()
    for name, spares in (("nothing_synced", ""), ("only_ledger_synced", "sqlite")):
        run = Lab(lab.folder / name, quick=lab.quick)
        env = {"LD_PRELOAD": str(shim), "NOSYNC_SPARES": spares}
        figures[name] = 0
        for cut in _cut(run, 3, 6, random.Random(9), env):
            with mounted("-o", "loop", cut.image, at=run.folder / "disk"):
                figures[name] += len(_wrong(run, cut))
        if not figures[name]:
            unseen.append(f"{name}: the drill saw no damage, so it proves nothing")
    return Outcome(not unseen, figures, words(unseen, "without syncs the same drill fails, as it must"))


@drill(row=10, title="order of syncs and names", bar=3, quick_s=10, full_s=40, needs=("linux", "strace", "gcc"))
def sync_audit(lab: Lab) -> Outcome:
    """strace of daemon and child: the syncs before and after each name; with fsync as a no-op it must complain."""
    number = 3 if lab.quick else 20
    lab.stacks(number)
    given, complaints = _audited(lab, number, {})
    complaints += lab.check(done=number)
    complaints += [] if given == number else [f"{given} names were given to {number} results"]
    control = Lab(lab.folder / "control")
    control.stacks(2)
    _, seen = _audited(control, 2, {"LD_PRELOAD": str(built("nosync", lab.folder))})
    complaints += [] if len(seen) >= 4 else ["the audit does not notice that nothing was synced"]
    figures = {"names_given": given, "complaints_without_sync": len(seen)}
    good = f"{given} names, {given} synced before, {given} folders synced after; no raw file opened for writing"
    return Outcome(not complaints, figures, words(complaints, good))


def audit(log: str, out: Path, raw: Path) -> tuple[int, list[str]]:
    """Read a log of `strace -f -y`: number of names given below `out`, and what was not in order."""
    synced, open_names, complaints, names = set[str](), list[str](), list[str](), 0
    for name, rest in _finished(log):
        if name in ("fsync", "fdatasync") and (path := re.match(r"\d+<([^>]*)>", rest)) and rest.endswith("= 0"):
            synced.add(path[1])
            open_names = [final for final in open_names if Path(final).parent != Path(path[1])]
        elif name.startswith(("link", "rename")) and rest.endswith("= 0"):
            temporary, final = re.findall(r'"([^"]*)"', rest)
            if Path(final).is_relative_to(out) and ".sqlite" not in final:
                names += 1
                open_names.append(final)
                if temporary not in synced:
                    complaints.append(f"{Path(final).name} got its name before it was synced")
        elif name in ("open", "openat") and re.search(r"O_(WRONLY|RDWR|CREAT|TRUNC)", rest):
            paths = re.findall(r'"([^"]*)"', rest)
            if paths and Path(paths[0]).is_relative_to(raw):
                complaints.append(f"{Path(paths[0]).name} was opened for writing")
    return names, [*complaints, *(f"the folder of {Path(final).name} was not synced after" for final in open_names)]


def _finished(log: str) -> Iterator[tuple[str, str]]:
    """Calls in the order in which they ended, as (name, arguments and result)."""
    begun: dict[str, str] = {}
    for line in log.splitlines():
        pid, _, call = line.partition(" ")
        call = call.strip()
        if call.endswith("<unfinished ...>"):
            begun[pid] = call.removesuffix("<unfinished ...>").strip()
            continue
        if resumed := re.match(r"<\.\.\. \w+ resumed>(.*)", call):
            call = begun.pop(pid, "") + resumed[1]
        name, bracket, rest = call.partition("(")
        if bracket:
            yield name, rest


def _audited(lab: Lab, number: int, env: Mapping[str, str]) -> tuple[int, list[str]]:
    log = lab.folder / "calls"
    calls = "trace=open,openat,link,linkat,rename,renameat,renameat2,fsync,fdatasync"
    with lab.daemon(
        prefix=["strace", "-f", "-qq", "-y", "-s", "4096", "-o", log, "-e", calls], env=env, quiet_s=0.05
    ) as it:
        lab.wait_done(number)
        it.terminate()
    return audit(log.read_text(errors="replace"), lab.out, lab.incoming)


def _cut(lab: Lab, cuts: int, stacks: int, rng: random.Random, env: Mapping[str, str] | None = None) -> list[Cut]:
    """Restore stacks onto a disk of its own and cut the power so often on the way, or less often where that is slow."""
    image, disk, made = lab.folder / "disk.img", lab.folder / "disk", list[Cut]()
    lab.out = disk / "isotropic"
    with open(image, "wb") as file:
        file.truncate(_DISK_BYTES)
    command("mkfs.ext4", "-q", "-F", image)
    sources = lab.stacks(stacks, folder=lab.folder / "sources")
    with mounted("-o", "loop,commit=600", image, at=disk):
        began = time.monotonic()
        feed(lab, sources)
        with lab.daemon(out=lab.out, quiet_s=0.05, env=env) as daemon:
            for number in range(cuts):
                lab.wait(lambda: lab.counts().get("done", 0) >= stacks * number // cuts, poll_s=0.01)  # noqa: B023
                time.sleep(rng.uniform(0.0, 0.35))
                if time.monotonic() - began > _UNDISTURBED_S:
                    break
                daemon.hold()
                promised = frozenset(entry.path.name for entry in lab.entries() if entry.state is State.DONE)
                made.append(Cut(lab.folder / f"cut{number}.img", promised))
                command("cp", "--sparse=always", image, made[-1].image)
                daemon.send(signal.SIGCONT, whole_family=True)
    image.unlink()
    return made


def _wrong(lab: Lab, cut: Cut) -> list[str]:
    """Say what a cut broke, before any daemon repairs it: torn results, and promises that were not kept."""
    rows = {entry.path.name: entry for entry in lab.entries()}
    done = {name for name, entry in rows.items() if entry.state is State.DONE}
    found = [f"{name} was done and is not any more" for name in sorted(cut.promised - done)]
    found += [
        f"{name} is done and its result is not whole"
        for name in sorted(done)
        if not all(holds(result.path, result.sha256, result.size) for result in rows[name].results)
    ]
    for path in lab.finals() if lab.out.is_dir() else ():
        whole = False
        with contextlib.suppress(Ssai3dError, OSError):
            whole = is_right(path, lab.incoming / path.name.replace("_iso.ome.tif", ".ome.tif"))
        if not whole:
            found.append(f"{path.name} is torn ({path.stat().st_size} bytes)")
    return found
