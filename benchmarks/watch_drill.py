"""The daemon's drill: twenty stacks into a watched folder, some in halves, some bad, and a `kill -9` in the middle.

Ten stacks are copied in halves with a pause between them, eight at once, one is cut off for good and one is no image.
In the middle the daemon is killed and started again. Afterwards there must be 18 correct results and two failures with
reasons; nothing may be missing, and nothing that was published before the kill may have been touched again.

    python benchmarks/watch_drill.py cells.ssai3d

prints a table, and one line of JSON. The same drill runs with a quick restorer in the tests.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ssai3d_rt.imaging.stack import Stack
from ssai3d_rt.imaging.write import write_ome_tiff
from ssai3d_rt.runtime.status import summary

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HALVES, WHOLE = 10, 8
CUT, TEXT = "cut.ome.tif", "text.tif"


@dataclass
class Outcome:
    """What the drill saw; `results` by the source's name."""

    results: dict[str, Path] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    before_kill: int = 0
    touched_again: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    stop_status: int = -1
    seconds: float = 0.0

    def faults(self) -> list[str]:
        """Say in words what is not as it must be."""
        wanted = {f"half{n:02d}.ome.tif" for n in range(HALVES)} | {f"whole{n:02d}.ome.tif" for n in range(WHOLE)}
        return [
            *(f"no result of {name}" for name in sorted(wanted - set(self.results))),
            *(f"{name} was published again after the restart" for name in self.touched_again),
            *(f"{name} is in the output folder and nobody's result" for name in self.extra),
            *([] if set(self.failed) == {CUT, TEXT} else [f"failed are {sorted(self.failed)}"]),
            *([] if all(self.failed.values()) else ["a failure has no reason"]),
            *([] if self.before_kill else ["the kill came before the first result"]),
            *([] if self.before_kill < HALVES + WHOLE else ["the kill came after the last result"]),
            *([] if self.stop_status == 0 else [f"asked to stop, the daemon ended with status {self.stop_status}"]),
        ]


def make_stacks(folder: Path, shape: tuple[int, int, int] = (6, 32, 32)) -> list[Path]:
    """Write the stacks to be copied: noise on a ramp, each one different."""
    folder.mkdir(parents=True)
    paths = []
    names = [f"half{n:02d}" for n in range(HALVES)] + [f"whole{n:02d}" for n in range(WHOLE)]
    for seed, name in enumerate(names):
        data = np.random.default_rng(seed).integers(100, 4000, shape, dtype=np.uint16)
        paths.append(folder / f"{name}.ome.tif")
        write_ome_tiff(paths[-1], Stack(data, (0.2, 0.1, 0.1), channel="DAPI"))
    return paths


def drill(
    command: Sequence[str], sources: Sequence[Path], incoming: Path, out: Path, *, pause_s: float, kill_after: int
) -> Outcome:
    """Run it.

    Parameters
    ----------
    command
        Starts the daemon on `incoming` and `out`.
    sources
        From `make_stacks`.
    incoming, out
        The watched folder, empty, and the output folder.
    pause_s
        Between the halves.
    kill_after
        Number of results after which the daemon is killed.
    """
    outcome, began = Outcome(), time.monotonic()
    copying = threading.Thread(target=_copy, args=(sources, incoming, pause_s))
    daemon = subprocess.Popen(command)
    _wait(daemon, lambda: running(out))
    copying.start()
    _wait(daemon, lambda: len(_published(out)) >= kill_after)
    daemon.kill()
    daemon.wait()
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in _published(out)}
    outcome.before_kill = len(before)
    daemon = subprocess.Popen(command)
    copying.join()
    _wait(daemon, lambda: _settled(out, len(sources) + 2))
    daemon.send_signal(signal.SIGTERM)
    outcome.stop_status = daemon.wait(60)
    outcome.seconds = time.monotonic() - began
    found = summary(out, most=100)
    outcome.results = {Path(entry["path"]).name: Path(entry["results"][0]) for entry in found["done"]}
    outcome.failed = {Path(entry["path"]).name: entry["reason"] for entry in found["failed"]}
    after = _published(out)
    outcome.extra = sorted(path.name for path in set(after) - set(outcome.results.values()))
    outcome.touched_again = [
        path.name
        for path, mark in before.items()
        if path not in after or (path.stat().st_ino, path.stat().st_mtime_ns) != mark
    ]
    return outcome


def _copy(sources: Sequence[Path], incoming: Path, pause_s: float) -> None:
    half = [path for path in sources if path.name.startswith("half")]
    contents = {path.name: path.read_bytes() for path in sources}
    for path in half:
        (incoming / path.name).write_bytes(contents[path.name][: len(contents[path.name]) // 2])
    (incoming / CUT).write_bytes(contents[half[0].name][:-2000])
    (incoming / TEXT).write_text("this is no image, whatever its name says\n" * 20)
    for path in sources:
        if path not in half:
            (incoming / path.name).write_bytes(contents[path.name])
    time.sleep(pause_s)
    for path in half:
        with open(incoming / path.name, "ab") as file:
            file.write(contents[path.name][len(contents[path.name]) // 2 :])
            file.flush()
            os.fsync(file.fileno())


def _published(out: Path) -> list[Path]:
    return sorted(path for path in out.rglob("*_iso.ome.tif") if not path.name.startswith("."))


def running(out: Path) -> bool:
    """Whether a daemon works into this output folder."""
    try:
        return bool(summary(out)["running"])
    except ValueError:
        return False


def _settled(out: Path, files: int) -> bool:
    try:
        counts = summary(out)["counts"]
    except ValueError:
        return False
    return sum(counts.values()) == files and set(counts) <= {"done", "failed"} and counts.get("failed", 0) <= 2


def _wait(daemon: subprocess.Popen[bytes], done: Callable[[], bool], timeout_s: float = 600.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not done():
        if daemon.poll() is not None:
            raise RuntimeError(f"the daemon ended by itself with status {daemon.returncode}")
        if time.monotonic() > deadline:
            daemon.kill()
            raise TimeoutError("the daemon does not get on")
        time.sleep(0.05)


def main() -> None:
    """Run the drill with a real bundle and the real command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--size", type=int, default=64, help="pixels across")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        incoming, out, config = folder / "incoming", folder / "isotropic", folder / "rig.toml"
        incoming.mkdir()
        config.write_text("[watch]\nincomplete_after_s = 6.0\n")
        sources = make_stacks(folder / "sources", (12, arguments.size, arguments.size))
        command = [sys.executable, "-m", "ssai3d_rt.cli", "watch", str(incoming), "-o", str(out)]
        command += ["--bundle", str(arguments.bundle), "--config", str(config)]
        outcome = drill(command, sources, incoming, out, pause_s=3.0, kill_after=4)
    faults = outcome.faults()
    print(f"{len(outcome.results)} results, {outcome.before_kill} of them before the kill, {outcome.seconds:.1f} s")
    for failed, reason in outcome.failed.items():
        print(f"failed {failed}: {reason}")
    for fault in faults:
        print(f"WRONG: {fault}")
    record = {"results": len(outcome.results), "failed": len(outcome.failed), "before_kill": outcome.before_kill}
    print(json.dumps(record | {"faults": faults, "seconds": round(outcome.seconds, 1)}))
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
