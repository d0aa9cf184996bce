"""A ledger that is cut, overwritten, lost, older or newer: taken anew from what is on the disk, or refused in words."""

from __future__ import annotations

import random
import shutil
import sqlite3
from typing import TYPE_CHECKING

from tests.faults.drill import Outcome, drill
from tests.faults.process import changed, words

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.faults.lab import Lab

    Damage = Callable[[Path, random.Random], object]


@drill(row=47, title="damaged ledger", quick_s=20, full_s=150, needs=("linux",))
def damaged_ledgers(lab: Lab) -> Outcome:
    """The ledger's file or its log is truncated, overwritten, removed or of another version; then the next start."""
    lab.stacks(5)
    with lab.daemon(quiet_s=0.05) as daemon:
        lab.wait_done(5)
        daemon.kill()
    folder, kept = lab.ledger.parent, lab.folder / "kept"
    shutil.copytree(folder, kept)
    marks = lab.finals()
    complaints, rng, done, again, aside = list[str](), random.Random(47), 5, 0, 0
    cases = dict(list(_CASES.items())[::2] if lab.quick else _CASES)
    if not lab.quick:
        cases |= {f"64 random bytes, {number}": _scribbled for number in range(20)}
    for name, damage in cases.items():
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)  # as a kill left it; the results of later cases are then known to no ledger
        _rest(lab, whole=not name.startswith("log"))
        damage(lab.ledger, rng)
        lab.stacks(1, first=done)
        done += 1
        before = len(lab.log.read_text().split())
        try:
            with lab.daemon(quiet_s=0.05):
                lab.wait_done(done, 60.0)
        except (RuntimeError, TimeoutError) as error:
            complaints.append(f"{name}: {str(error).strip().splitlines()[-1]}")
        else:
            complaints += [f"{name}: {complaint}" for complaint in lab.check(done=done)]
        complaints += [f"{name}: {complaint}" for complaint in changed(lab, marks)]
        again += len(lab.log.read_text().split()) - before - 1
        aside += len(list(folder.glob("*.damaged-*")))
    complaints += _newer(lab)
    figures = {"cases": len(cases) + 1, "taken_anew": aside, "restored_again": again}
    good = f"{len(cases)} damaged ones: all stacks stay done, none is published again; a newer one is refused in words"
    return Outcome(not complaints, figures, words(complaints, good))


def _rest(lab: Lab, *, whole: bool) -> None:
    """Fold the log into the ledger's file, as the end of a daemon does, where the case is about that file."""
    if whole:
        with sqlite3.connect(lab.ledger) as database:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        database.close()


def _newer(lab: Lab) -> list[str]:
    with sqlite3.connect(lab.ledger) as database:
        database.execute("UPDATE meta SET value='99' WHERE key='schema'")
    database.close()
    before = lab.ledger.read_bytes()
    with lab.daemon(wait=False) as daemon:
        status = daemon.process.wait(60)
        said = daemon.log
    complaints = [] if status and "schema version 99" in said else [f"newer: ended with {status}: {said[-200:]}"]
    return complaints if lab.ledger.read_bytes() == before else [*complaints, "newer: the ledger was written"]


def _older(ledger: Path, _: random.Random) -> None:
    with sqlite3.connect(ledger) as database:
        database.execute("ALTER TABLE stacks DROP COLUMN ctime_ns")
        database.execute("UPDATE meta SET value='1' WHERE key='schema'")
    database.close()


def _cut(share: float, suffix: str = "") -> Damage:
    def cut(ledger: Path, _: random.Random) -> None:
        path = ledger.with_name(ledger.name + suffix)
        with open(path, "r+b") as file:
            file.truncate(int(path.stat().st_size * share))

    return cut


def _overwritten(begin: float, length: int, suffix: str = "") -> Damage:
    def overwrite(ledger: Path, rng: random.Random) -> None:
        path = ledger.with_name(ledger.name + suffix)
        with open(path, "r+b") as file:
            file.seek(int(path.stat().st_size * begin))
            file.write(rng.randbytes(length))

    return overwrite


def _scribbled(ledger: Path, rng: random.Random) -> None:
    _overwritten(rng.random(), 64)(ledger, rng)


def _removed(*suffixes: str) -> Damage:
    def remove(ledger: Path, _: random.Random) -> None:
        for suffix in suffixes:
            ledger.with_name(ledger.name + suffix).unlink(missing_ok=True)

    return remove


_CASES: dict[str, Damage] = {
    "empty": _cut(0.0),
    "cut to half": _cut(0.5),
    "last page cut": _cut(0.93),
    "random head": _overwritten(0.0, 100),
    "random middle": _overwritten(0.4, 5000),
    "no ledger but text": lambda ledger, _: ledger.write_text("this is no ledger\n" * 500),
    "removed": _removed("", "-wal", "-shm"),
    "log removed": _removed("-wal", "-shm"),
    "log cut": _cut(0.5, "-wal"),
    "log overwritten": _overwritten(0.3, 5000, "-wal"),
    "older version": _older,
}
