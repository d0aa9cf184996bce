"""Files that change while they are read: replaced, rewritten, cut off or grown, at many moments of a stack's way."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import re
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ssai3d_rt.errors import Ssai3dError
from ssai3d_rt.imaging.read import read_stack
from ssai3d_rt.imaging.stack import Stack
from ssai3d_rt.imaging.write import read_provenance, write_ome_tiff
from ssai3d_rt.runtime.ledger import State
from tests.faults.drill import Outcome, drill
from tests.faults.lab import Lab, built
from tests.faults.process import words
from tests.runtime.quick import expected

if TYPE_CHECKING:
    import numpy.typing as npt

    from tests.faults.lab import Daemon

_SIZE = 640 << 10
"""Bytes of each version of a file, which a stack does not fill: a change of the contents does not show in the size."""
_SHAPE = (10, 160, 160)
_MOMENTS = ("seen", "seen, open", "ready", "ready, open", "running", "running, open", "done")
_CUT = ("truncated",)
"""Changes after which there is no whole stack."""


@dataclass(slots=True)
class _Victim:
    """One file, how it is changed, and when: so many seconds after the daemon came to a moment with it."""

    path: Path
    first: int
    second: int
    change: str
    moment: str
    after_s: float
    versions: dict[str, npt.NDArray[np.uint16]]
    """What the quick restorer makes of each whole version, by the SHA-256 of the version's bytes."""


@drill(row=28, title="changed while it is read", bar=8, quick_s=25, full_s=420, needs=("linux", "gcc"))
def changed_while_read(lab: Lab) -> Outcome:
    """Replaced by rename, rewritten in place (also with its old time), truncated, grown; opens slowed by 80 ms."""
    changes = ("replaced", "rewritten", "rewritten, old time", "truncated", "grown")
    rounds, rng = (3, random.Random(28)) if lab.quick else (25, random.Random(28))
    env = {"LD_PRELOAD": str(built("slow", lab.folder)), "SLOW_PATH": str(lab.incoming), "SLOW_OPEN_MS": "80"}
    complaints, hit, requeued, mixed = list[str](), Counter[str](), 0, 0
    with lab.daemon(env=env, delay_s=0.1, quiet_s=0.2, incomplete_after_s=0.6) as daemon:
        lab.wait(lambda: "restoring with" in daemon.log)
        for number in range(rounds):
            victims = []
            for index, change in enumerate(rng.sample(changes, len(changes))):
                victims.append(_victim(lab, 10 * number + index, change, rng))
                _change(lab, daemon, victims[-1], hit)
            try:
                lab.wait(lambda: not _wrong(lab, victims), 30.0, poll_s=0.2)  # noqa: B023
            except TimeoutError:
                complaints += _wrong(lab, victims)
            found, checked = _mixtures(lab, victims)
            complaints += found
            mixed += len(found)
            if not checked:
                complaints.append("there are no results to look at")
        replaced = daemon.log.count("restoring with ") - 1
        requeued = len(re.findall(r"event waiting \S+ it changed", daemon.log))
        crashes = len(re.findall(r"SIGBUS|process ended|Traceback|was ended|by signal", daemon.log))
    complaints += [f"{crashes} crashes in the log"] if crashes else []
    ours = ("nobody's result", "raw changed")
    complaints += [text for text in lab.check() if not text.startswith(ours)]
    figures: dict[str, Any] = {"changes": rounds * len(changes), "requeued": requeued, "mixtures": mixed}
    figures |= {"crashes": crashes, "children_replaced": replaced, "changed_at": dict(sorted(hit.items()))}
    opened = sum(count for moment, count in hit.items() if "open" in moment)
    few = [moment for moment in ("ready", "running") if not sum(hit[name] for name in (moment, f"{moment}, open"))]
    complaints += [f"nothing was changed while {moment}" for moment in few]
    complaints += [] if opened else ["nothing was changed while it was open"]
    good = f"{rounds * len(changes)} changes ({opened} while it was open for reading), 0 mixtures, 0 crashes"
    return Outcome(not complaints, figures, words(complaints, good))


def _victim(lab: Lab, number: int, change: str, rng: random.Random) -> _Victim:
    """Put a first version into the watched folder."""
    made: dict[str, npt.NDArray[np.uint16]] = {}
    path = lab.incoming / f"{number:04d}.ome.tif"
    victim = _Victim(path, 2 * number, 2 * number + 1, change, rng.choice(_MOMENTS), rng.uniform(0.0, 0.2), made)
    first = _version(lab, victim.first, made)
    if change == "grown":
        made[hashlib.sha256(first.read_bytes() + b"more").hexdigest()] = next(iter(made.values()))
    os.rename(first, path)
    return victim


def _version(lab: Lab, seed: int, made: dict[str, npt.NDArray[np.uint16]]) -> Path:
    path = lab.folder / f"version-{seed}.ome.tif"
    data = np.random.default_rng(seed).integers(1, 4000, _SHAPE, dtype=np.uint16)
    stack = Stack(data, (0.2, 0.1, 0.1), channel="DAPI")
    write_ome_tiff(path, stack)
    if path.stat().st_size > _SIZE:
        raise RuntimeError(f"a version has {path.stat().st_size} bytes, more than it may")
    os.truncate(path, _SIZE)
    made[hashlib.sha256(path.read_bytes()).hexdigest()] = expected(stack)
    return path


def _change(lab: Lab, daemon: Daemon, victim: _Victim, hit: Counter[str]) -> None:
    """Change a file at its moment, and count what the daemon was at with it."""
    second = None if victim.change in (*_CUT, "grown") else _version(lab, victim.second, victim.versions)
    with contextlib.suppress(TimeoutError):
        lab.wait(lambda: _at(lab, daemon, victim.path) in (victim.moment, "done", "failed"), 8.0, poll_s=0.001)
    time.sleep(victim.after_s)
    hit[_at(lab, daemon, victim.path)] += 1
    if second is None and victim.change == "grown":
        with open(victim.path, "ab") as file:
            file.write(b"more")
    elif second is None:
        os.truncate(victim.path, _SIZE // 3)
    elif victim.change == "replaced":
        os.replace(second, victim.path)
    else:
        stamp, content = victim.path.stat().st_mtime_ns, second.read_bytes()
        with open(victim.path, "r+b", buffering=0) as file:
            for start in range(0, _SIZE, _SIZE // 4):
                file.write(content[start : start + _SIZE // 4])
                time.sleep(0.02)
        if victim.change.endswith("old time"):
            os.utime(victim.path, ns=(stamp, stamp))


def _at(lab: Lab, daemon: Daemon, path: Path) -> str:
    """What the daemon is at with a file: its state, and whether one of its processes has it open."""
    state = next((entry.state.value for entry in lab.entries() if entry.path == path), "")
    for pid in daemon.family():
        with contextlib.suppress(OSError):
            if any(os.readlink(entry) == str(path) for entry in Path(f"/proc/{pid}/fd").iterdir()):
                return f"{state}, open"
    return state


def _wrong(lab: Lab, victims: list[_Victim]) -> list[str]:
    """Say which files are not what they must come to."""
    rows = {entry.path: entry for entry in lab.entries()}
    found = []
    for victim in victims:
        row = rows.get(victim.path)
        if row is None:
            found.append(f"{victim.path.name} is not known")
        elif victim.change in _CUT:
            if row.state is not State.FAILED:
                found.append(f"{victim.path.name}, {victim.change}, is {row.state.value}: {row.reason}")
        elif row.state is not State.DONE:
            found.append(f"{victim.path.name}, {victim.change}, is {row.state.value}: {row.reason}")
        elif row.content != hashlib.sha256(victim.path.read_bytes()).hexdigest():
            found.append(f"{victim.path.name}, {victim.change}, is done with what it was before")
    return found


def _mixtures(lab: Lab, victims: list[_Victim]) -> tuple[list[str], int]:
    """Say which published files are not the restoration of exactly the version that they name."""
    versions = {key: data for victim in victims for key, data in victim.versions.items()}
    names = {victim.path.name.partition(".")[0] for victim in victims}
    found, checked = [], 0
    for path in lab.finals():
        if path.name[:4] not in names:
            continue
        try:
            named = str(read_provenance(path).get("source_sha256"))
            if named not in versions:
                found.append(f"{path.name} is made of bytes that never were a whole version")
            elif not np.array_equal(read_stack(path).data, versions[named]):
                found.append(f"{path.name} is not the restoration of the version that it names")
        except (OSError, Ssai3dError) as error:
            found.append(f"{path.name}: {error}")
        checked += 1
    return found, checked
