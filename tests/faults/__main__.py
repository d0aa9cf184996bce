"""Run the fault suite: every drill, one after the other, a line each; exit 1 when one failed.

python -m tests.faults                    everything that this machine can do
python -m tests.faults --quick            the part that fits into ten minutes, with smaller numbers
python -m tests.faults --only random_kills power
python -m tests.faults --list
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tests.faults.drill import REGISTRY, Drill, Record, load, missing, perform
from tests.faults.lab import Lab
from tests.faults.mounts import unmount_below
from tests.faults.table import Setting, this_machine, write

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_MARK = {"passed": "ok     ", "failed": "FAILED ", "skipped": "skipped"}
_PATIENCE = 4
"""A drill that takes so many times longer than it may, and a minute, is stopped and has failed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the quick part of the suite")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="names of drills or of modules; * works")
    parser.add_argument("--list", action="store_true", help="list the drills and what this machine lacks for them")
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="drills at a time; some run alone all the same"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the table of this document")
    given = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that daemons end and disks are unmounted
    began, broken = time.monotonic(), load()
    chosen = choose(REGISTRY, given.only, quick=given.quick)
    if given.list:
        for drill in chosen:
            lacks = missing(drill.needs)
            times = f"{drill.full_s:5.0f} s" + (f", quick {drill.quick_s:3.0f} s" if drill.quick_s else " " * 14)
            say(f"{_rows(drill):>7}  {drill.name:32} {times}  {drill.title}{f'  [skipped: {lacks}]' if lacks else ''}")
        return 1 if broken else 0
    if not chosen and not broken:
        parser.error(f"there is no drill {' '.join(given.only)}; --list shows them")
    records = [
        Record(name, "failed", f"cannot be imported\n{why}", {}, 0.0, given.quick) for name, why in broken.items()
    ]
    records = [record for record in records if not given.only or record.name in given.only]
    for record in records:
        report(record, "")
    records += run_all(chosen, quick=given.quick, jobs=given.jobs)
    status = finish(records, given.json, given.table)
    if len(records) > 1:
        say(f"all of it took {time.monotonic() - began:.0f} s")
    return status


def choose(drills: Mapping[str, Drill], only: Sequence[str], *, quick: bool) -> list[Drill]:
    """Pick drills, in the order of the matrix."""
    picked = [
        drill
        for drill in drills.values()
        if (not only or any(_is_meant(drill, name, drills) for name in only))
        and (not quick or drill.quick_s is not None)
    ]
    return sorted(picked, key=lambda drill: (drill.rows, drill.name))


def _is_meant(drill: Drill, name: str, drills: Mapping[str, Drill]) -> bool:
    """Whether a name means this drill; where a drill and its module have one name, it is the drill's."""
    return fnmatch(drill.name, name) or (drill.module == name and name not in drills)


def run_all(drills: Sequence[Drill], *, quick: bool, jobs: int) -> list[Record]:
    """Run drills and return what came of them, in their order; with several jobs each in a process of its own."""
    if jobs == 1 or len(drills) == 1:
        records = []
        for drill in drills:
            say(f"        {_rows(drill):>7}  {drill.name}: {drill.title} ...")
            records.append(run(drill, quick=quick))
        return records
    together = [drill for drill in drills if not drill.alone]
    running: set[subprocess.Popen[str]] = set()
    with ThreadPoolExecutor(jobs) as pool:
        try:
            done = list(pool.map(partial(_apart, quick, running), together))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in set(running):
                process.terminate()
            raise
    found = {record.name: record for record in done}
    found |= {drill.name: _apart(quick, running, drill) for drill in drills if drill.alone}
    return [found[drill.name] for drill in drills]


def _apart(quick: bool, running: set[subprocess.Popen[str]], drill: Drill) -> Record:
    """Run one drill in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "record.json")
        command = [sys.executable, "-m", "tests.faults", "--only", drill.name, "--json", str(file)]
        process = subprocess.Popen(
            [*command, *(["--quick"] if quick else [])], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        running.add(process)
        with process:
            try:
                said, _ = process.communicate()
            except BaseException:
                process.terminate()
                raise
        running.discard(process)
        if not file.is_file():
            record = Record(
                drill.name, "failed", f"its process ended with {process.returncode}\n{said}", {}, 0.0, quick
            )
            report(record, "")
            return record
        say("\n".join(said.splitlines()[1:-1]))
        (found,) = json.loads(file.read_text(encoding="utf-8"))["drills"]
        return Record(**found)


def run(drill: Drill, *, quick: bool) -> Record:
    """Run one drill in a fresh folder; it is removed after a pass and named after a failure."""
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    allowed_s = drill.quick_s if quick and drill.quick_s else drill.full_s
    try:
        with _Alarm(_PATIENCE * allowed_s + 60):
            record = perform(drill, Lab(folder, quick=quick))
    finally:
        left = unmount_below(folder)
    kept = ""
    if record.result == "failed":
        kept = f"everything is in {folder}"
    elif left:
        kept = f"still mounted after the drill: {left}"
    if record.result != "failed" and not unmount_below(folder):
        shutil.rmtree(folder, ignore_errors=True)
    report(record, kept)
    return record


def finish(records: Sequence[Record], json_file: Path | None, table: Path | None) -> int:
    """Write what was asked for, sum up, and return the exit status."""
    setting = Setting(datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"), this_machine())
    if json_file is not None:
        content = asdict(setting) | {"drills": [asdict(record) for record in records]}
        json_file.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    if table is not None:
        write(table, records, REGISTRY, setting)
    results = [record.result for record in records]
    counted = ", ".join(f"{results.count(result)} {result}" for result in _MARK)
    say(f"{counted}; {sum(record.seconds for record in records):.0f} s")
    return 1 if "failed" in results else 0


def report(record: Record, kept: str) -> None:
    """Say in a line what came of a drill."""
    say(f"{_MARK[record.result]} {record.seconds:6.1f} s  {record.name}: {record.summary}")
    if record.figures:
        say(f"                  {json.dumps(record.figures, sort_keys=True)}")
    if kept:
        say(f"                  {kept}")


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)  # noqa: T201


def _rows(drill: Drill) -> str:
    return ",".join(map(str, drill.rows))


class _Alarm:
    """Raise TimeoutError in the drill after so many seconds (where there is SIGALRM)."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __enter__(self) -> None:
        if hasattr(signal, "SIGALRM"):
            signal.signal(signal.SIGALRM, self._ring)
            signal.setitimer(signal.ITIMER_REAL, self._seconds)

    def __exit__(self, *exc: object) -> None:
        if hasattr(signal, "SIGALRM"):
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)

    def _ring(self, *_: object) -> None:
        raise TimeoutError(f"the drill did not end within {self._seconds:.0f} s")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
