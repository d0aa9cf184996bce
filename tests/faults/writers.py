"""Writers that stall, die, lose frames, or change a file while it is read; each with the package that a rig uses."""

from __future__ import annotations

import contextlib
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ssai3d_rt.errors import Ssai3dError
from ssai3d_rt.imaging.read import open_acquisition, read_stack
from ssai3d_rt.imaging.stack import Stack
from ssai3d_rt.runtime.ledger import Fault, State
from tests.faults.drill import Outcome, drill
from tests.faults.lab import ROOT, Lab
from tests.faults.process import words
from tests.faults.writer_real import PLANES, UNDECLARED, WRITERS, planes
from tests.runtime import quick
from tests.runtime.daemon import is_right

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.faults.lab import Daemon

_TIFF = ("plain", "pages", "imagej", "ome")
_FOLDERS = ("ndtiff", "zarr2", "zarr3", "sharded", "separate")
_RIGS = ("ome-writers-tiff", "ome-writers-zarr", "pymmcore-tiff", "pymmcore-zarr")
_QUIET: dict[str, Any] = {"quiet_s": 0.3, "incomplete_after_s": 1.0, "voxel_z_um": 0.2, "voxel_xy_um": 0.1}
_STALL_S = 3.2
"""More than three times every patience above."""
_SETTLED = (State.DONE, State.FAILED, State.SKIPPED)
_MOST_BYTES = 64 << 20
"""What the daemon may read of a data set of a few kilobytes in a file of 4 GiB."""


@dataclass(frozen=True)
class VoxelRecipe(quick.QuickRecipe):
    """The quick restorer, told the voxel size that a plain TIFF does not have."""

    def open(self, most_tiles: int | None = None) -> quick.QuickRestorer:
        """Open it, in the restoring process."""
        vars(quick)["open_acquisition"] = lambda path: open_acquisition(path, 0.2, 0.1)
        return super().open(most_tiles)


class Writer:
    """A real writer in a process of its own, writing one stack into the watched folder."""

    def __init__(self, lab: Lab, kind: str, number: int, *, pause_s: float = 0.05, order: Sequence[int] = ()) -> None:
        self.kind, self.seed = kind, number
        self.path = lab.incoming / f"{kind}-{number}{WRITERS[kind][1]}"
        self._said = lab.folder / f"said-{kind}-{number}"
        line = [sys.executable, "-m", "tests.faults.writer_real", kind, str(self.path), str(number), str(pause_s)]
        with open(self._said, "wb") as said, open(lab.folder / "writers.log", "ab") as log:
            self.process = subprocess.Popen(
                [*line, *([",".join(map(str, order))] if order else [])], cwd=ROOT, stdout=said, stderr=log
            )

    @property
    def frames(self) -> int:
        """How many frames were handed over."""
        return self._said.read_text().count("frame ")

    def at(self, word: str) -> float | None:
        """When it said a word, seconds since 1970."""
        found = re.search(rf"^{word} (\S+)$", self._said.read_text(), re.MULTILINE)
        return float(found[1]) if found else None

    @property
    def closed(self) -> bool:
        """Whether it said that it is finished; fails where it ended without."""
        if self.process.poll() and not self.at("closed"):
            raise RuntimeError(f"the writer of {self.path.name} ended with {self.process.returncode}")
        return self.at("closed") is not None

    def end(self, number: int = signal.SIGKILL) -> None:
        """End it, at once by default."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        self.process.wait(30)

    def is_right(self, result: Path) -> bool:
        """Whether a result is the restoration of all frames that it meant to write."""
        if self.kind.startswith("pymmcore"):  # the camera decides what is on the frames
            return read_stack(self.path).data.shape[0] == PLANES and is_right(result, self.path)
        wanted = quick.expected(Stack(planes(self.seed), (0.2, 0.1, 0.1)))
        return bool(np.array_equal(read_stack(result).data, wanted))


@drill(row=25, title="TIFF writers stall", bar=7, quick_s=15, full_s=120, needs=("linux",))
def tiff_stalls(lab: Lab) -> Outcome:
    """tifffile (one call, page by page, ImageJ, OME) gets SIGSTOP in mid-stack for 3x every patience, then SIGCONT."""
    return _stalled(lab, _TIFF)


@drill(row=25, title="writers of data sets stall", bar=7, quick_s=25, full_s=160, needs=("linux", "ndstorage", "zarr"))
def data_set_stalls(lab: Lab) -> Outcome:
    """ndstorage, zarr (0.4, 0.5, sharded) and separate files: SIGSTOP in mid-stack for 3x every patience, SIGCONT."""
    return _stalled(lab, _FOLDERS)


@drill(
    row=25, title="microscope programs stall", bar=7, quick_s=25, full_s=160, needs=("linux", "ome-writers", "pymmcore")
)
def microscope_stalls(lab: Lab) -> Outcome:
    """ome-writers, and pymmcore-plus with MMCore's DemoCamera: SIGSTOP in mid-stack for 3x every patience, SIGCONT."""
    return _stalled(lab, _RIGS)


def _stalled(lab: Lab, kinds: Sequence[str]) -> Outcome:
    rounds, stops, rng = (1, 1, random.Random(25)) if lab.quick else (3, 4, random.Random(25))
    early, complaints, stalls = dict.fromkeys(kinds, 0), list[str](), 0
    with lab.daemon(recipe=VoxelRecipe(lab.log), **_QUIET) as daemon:
        lab.wait(lambda: "restoring with" in daemon.log)
        for number in range(rounds):
            writers = [Writer(lab, kind, number) for kind in kinds]
            try:
                stalls += _stall(lab, writers, stops, rng)
                lab.wait(lambda: all(writer.closed for writer in writers), 60.0)  # noqa: B023
                lab.wait(lambda: all(_is_done(lab, writer) for writer in writers), 40.0)  # noqa: B023
            except TimeoutError:
                complaints += [text for writer in writers if (text := _not_done(lab, writer))]
            finally:
                for writer in writers:
                    writer.end()
            for writer in writers:
                early[writer.kind] += len(_results_before(daemon, writer, writer.at("last") or time.time()))
    forgiven = {kind: early.pop(kind) for kind in UNDECLARED if kind in early}
    complaints += [f"{kind}: {number} premature results" for kind, number in early.items() if number]
    complaints += _check(lab, forgiven)
    figures: dict[str, Any] = {"stalls": stalls, "stall_s": _STALL_S, "premature": sum(early.values())}
    figures |= {"stacks": rounds * len(kinds), "formats": ", ".join(kinds)}
    good = f"{figures['stacks']} stacks of {len(kinds)} writers, {stalls} stalls: no result before the last frame"
    if forgiven:
        figures["premature_undeclared"] = sum(forgiven.values())
        good += f" (but {sum(forgiven.values())} of pages that declare nothing, each replaced when more came)"
    return Outcome(not complaints, figures, words(complaints, good))


def _stall(lab: Lab, writers: Sequence[Writer], stops: int, rng: random.Random) -> int:
    """Stop each writer at random frames, all of them side by side; return how many stops there were."""
    plans = {id(writer): sorted(rng.sample(range(1, PLANES), stops)) for writer in writers}
    until: dict[int, float] = {}
    done, deadline = 0, time.monotonic() + 60.0 + stops * _STALL_S
    while any(plans.values()) or until:
        if time.monotonic() > deadline:
            raise TimeoutError("the writers do not get on")
        for writer in writers:
            key = id(writer)
            if until.get(key, float("inf")) < time.monotonic():
                del until[key]
                writer.process.send_signal(signal.SIGCONT)
            elif key not in until and plans[key] and writer.frames >= plans[key][0]:
                plans[key].pop(0)
                time.sleep(rng.uniform(0.0, 0.01))
                if not writer.closed:
                    writer.process.send_signal(signal.SIGSTOP)
                    until[key] = time.monotonic() + _STALL_S
                    done += 1
        time.sleep(0.005)
    return done


@drill(row=26, title="TIFF writers are killed", bar=7, full_s=120, needs=("linux",))
def tiff_killed(lab: Lab) -> Outcome:
    """tifffile (one call, page by page, ImageJ, OME) gets SIGKILL in mid-stack."""
    return _killed(lab, _TIFF)


@drill(
    row=26, title="writers of data sets are killed", bar=7, quick_s=20, full_s=200, needs=("linux", "ndstorage", "zarr")
)
def data_set_killed(lab: Lab) -> Outcome:
    """ndstorage, zarr (0.4, 0.5, sharded) and separate image files: SIGKILL in mid-stack."""
    return _killed(lab, _FOLDERS)


@drill(
    row=26,
    title="microscope programs are killed",
    bar=7,
    full_s=200,
    needs=("linux", "ome-writers", "pymmcore"),
)
def microscope_killed(lab: Lab) -> Outcome:
    """ome-writers, and pymmcore-plus with MMCore's DemoCamera: SIGKILL in mid-stack."""
    return _killed(lab, _RIGS)


def _killed(lab: Lab, kinds: Sequence[str]) -> Outcome:
    rounds, rng = (1 if lab.quick else 6), random.Random(26)
    complaints, listed, whole, undeclared = list[str](), 0, 0, 0
    with lab.daemon(recipe=VoxelRecipe(lab.log), **_QUIET) as daemon:
        lab.wait(lambda: "restoring with" in daemon.log)
        for number in range(rounds):
            writers = [Writer(lab, kind, number) for kind in kinds]
            plans = {id(writer): rng.randrange(1, PLANES) for writer in writers}
            while any(writer.process.poll() is None for writer in writers):
                for writer in writers:
                    if writer.process.poll() is None and writer.frames >= plans[id(writer)]:
                        time.sleep(rng.uniform(0.0, 0.03))
                        writer.end()
                time.sleep(0.005)
            there = [writer for writer in writers if writer.path.exists()]
            with contextlib.suppress(TimeoutError):
                lab.wait(lambda: all(_is_settled(lab, writer.path) for writer in there), 20.0)  # noqa: B023
            for writer in there:
                row = next((entry for entry in lab.entries() if entry.path == writer.path), None)
                if row is not None and row.fault is Fault.INCOMPLETE and row.reason:
                    listed += 1
                elif writer.at("closed") and row is not None and row.state is State.DONE:
                    whole += 1
                elif writer.kind in UNDECLARED and row is not None and row.state in (State.DONE, State.SKIPPED):
                    undeclared += 1
                else:
                    complaints.append(f"{writer.path.name} is {row and row.state.value}: {row and row.reason}")
    complaints += _check(lab, ())
    names = [path.name for path in lab.finals() if path.name.rpartition("-")[0] not in UNDECLARED]
    complaints += [] if len(names) == whole else [f"results of unfinished stacks: {names}"]
    figures: dict[str, Any] = {"killed": rounds * len(kinds), "listed_incomplete": listed, "was_finished": whole}
    figures["formats"] = ", ".join(kinds)
    good = f"{listed} of {rounds * len(kinds)} are listed as incomplete, none is published"
    if undeclared:
        figures["taken_as_they_are"] = undeclared
        good += f" (but {undeclared} of pages that declare nothing, which are whole, shorter stacks or single images)"
    return Outcome(not complaints, figures, words(complaints, good))


@drill(row=27, title="a pre-allocated NDTiff", bar=7, quick_s=20, full_s=40, needs=("linux", "ndstorage"))
def preallocated(lab: Lab) -> Outcome:
    """ndstorage's file has 4 GiB from the first frame on; it is stopped in mid-stack; bytes read: /proc/PID/io."""
    hold_s = 2.0 if lab.quick else 20.0
    with lab.daemon(recipe=VoxelRecipe(lab.log), **_QUIET) as daemon:
        lab.wait(lambda: "restoring with" in daemon.log)
        writer = Writer(lab, "ndtiff", 0, pause_s=0.2)
        try:
            lab.wait(lambda: writer.frames >= 3)
            before = _bytes_read(daemon)
            writer.process.send_signal(signal.SIGSTOP)
            size = max(path.stat().st_size for path in writer.path.iterdir())
            lab.wait(lambda: _is_settled(lab, writer.path), 20.0)
            time.sleep(hold_s)
            read = sum(_bytes_read(daemon).values()) - sum(before.values())
            reason = next(entry.reason for entry in lab.entries() if entry.path == writer.path)
            writer.process.send_signal(signal.SIGCONT)
            lab.wait(lambda: writer.closed)
            lab.wait(lambda: _is_done(lab, writer), 40.0)
        finally:
            writer.end()
        early = _results_before(daemon, writer, writer.at("last") or 0.0)
    complaints = lab.check(done=1) + ["it was published before its last frame"] * bool(early)
    complaints += [] if size == 1 << 32 else [f"the file has {size} bytes: nothing was pre-allocated"]
    complaints += [f"{read} bytes were read while it was unfinished"] if read > _MOST_BYTES else []
    figures = {"file_bytes": size, "bytes_read": read, "held_s": hold_s}
    good = f"not taken for complete ({reason}); {read / 1e6:.1f} MB read while it stood at 4 GiB"
    return Outcome(not complaints, figures, words(complaints, good))


@drill(row=29, title="frames missing, twice, out of order", full_s=60, needs=("linux", "ndstorage", "zarr"))
def odd_frames(lab: Lab) -> Outcome:
    """ndstorage, zarr and separate files are given frames out of order, one twice, or without plane z=3."""
    kinds, complaints, named = ("ndtiff", "zarr2", "zarr3", "sharded", "separate"), list[str](), 0
    orders = [[7, 3, 0, 1, 6, 5, 2, 4], [0, 1, 2, 2, 3, 4, 5, 6, 7, 0], [0, 1, 2, 4, 5, 6, 7]]
    with lab.daemon(recipe=VoxelRecipe(lab.log), **_QUIET):
        for number, order in enumerate(orders):
            writers = [Writer(lab, kind, number, pause_s=0.01, order=order) for kind in kinds]
            for writer in writers:
                writer.process.wait(120)
            with contextlib.suppress(TimeoutError):
                lab.wait(lambda: all(_is_settled(lab, writer.path) for writer in writers), 40.0)  # noqa: B023
            for writer in writers:
                row = next(entry for entry in lab.entries() if entry.path == writer.path)
                if number < 2:
                    complaints += [text] if (text := _not_done(lab, writer)) else []
                elif row.fault is Fault.INCOMPLETE and re.search(r"\bz ?= ?3\b", row.reason):
                    named += 1
                else:
                    complaints.append(f"{writer.path.name} lacks z=3 and is {row.state.value}: {row.reason}")
    complaints += _check(lab, ())
    figures = {"writers": len(kinds), "orders": len(orders), "gaps_named": named}
    good = f"{named} of {len(kinds)} gaps are named; out of order and twice are restored right"
    return Outcome(not complaints, figures, words(complaints, good))


def _is_done(lab: Lab, writer: Writer) -> bool:
    return not _not_done(lab, writer)


def _not_done(lab: Lab, writer: Writer) -> str:
    """Say why a writer's stack is not done and right; empty where it is."""
    row = next((entry for entry in lab.entries() if entry.path == writer.path), None)
    if row is None or row.state is not State.DONE:
        return f"{writer.path.name} is {row and row.state.value}: {row and row.reason}"
    try:
        right = writer.is_right(row.results[0].path)
    except (OSError, Ssai3dError) as error:
        return f"{writer.path.name}: {error}"
    return "" if right else f"the result of {writer.path.name} is not that of all its frames"


def _is_settled(lab: Lab, path: Path) -> bool:
    return any(entry.path == path and entry.state in _SETTLED for entry in lab.entries())


def _results_before(daemon: Daemon, writer: Writer, moment: float) -> list[float]:
    """When results of a stack were published before a moment, seconds since 1970."""
    found = re.findall(rf"^(\d+\.\d+) event done {re.escape(writer.path.name)} ", daemon.log, re.MULTILINE)
    return [float(at) for at in found if float(at) < moment]


def _bytes_read(daemon: Daemon) -> dict[int, int]:
    """Bytes that each process of a daemon has read, whatever they came from."""
    found = {}
    for pid in daemon.family():
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{pid}/io").read_text()
            found[pid] = int(re.findall(r"rchar: (\d+)", text)[0])
    return found


def _check(lab: Lab, replaced: object) -> list[str]:
    """Complain as `Lab.check` does, but not of plain files without a voxel size, or of results that were replaced."""
    found = [text for text in lab.check() if "voxel size" not in text]
    return [text for text in found if not (replaced and text.startswith("nobody's result: pages"))]
