"""The daemon's parts, step by step, against a model of what must hold: a Hypothesis state machine.

Real files, a real ledger, the real book, intake, line, publishing and recovery, in this process and with a clock that
the machine turns. What is not real: the other processes (their work is done here, by the same code), the threads of
scans and events, and the ends: a kill is an exception that nothing catches, before or after any commit or rename.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ssai3d_rt.errors import StorageError
from ssai3d_rt.imaging.read import read_stack
from ssai3d_rt.imaging.stack import Stack
from ssai3d_rt.imaging.write import read_provenance, write_ome_tiff
from ssai3d_rt.progress import silent
from ssai3d_rt.runtime import child, intake, line, publish, recovery
from ssai3d_rt.runtime.book import Book
from ssai3d_rt.runtime.complete import completeness
from ssai3d_rt.runtime.database import LedgerError
from ssai3d_rt.runtime.intake import Intake
from ssai3d_rt.runtime.ledger import LEGAL, Fault, Job, Ledger, State
from ssai3d_rt.runtime.line import Line
from ssai3d_rt.runtime.publish import STATE_FOLDER, hash_of
from ssai3d_rt.runtime.recovery import Patrol, is_there, recover
from ssai3d_rt.runtime.roots import Roots
from ssai3d_rt.runtime.scanner import looked
from ssai3d_rt.runtime.settings import WatchSettings
from ssai3d_rt.runtime.status import ledger_of
from ssai3d_rt.runtime.submit import submit
from tests.runtime.quick import QuickRecipe, expected
from tests.runtime.standins import Events, Fuse, Here, Inline, Killed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SETTINGS = WatchSettings(
    quiet_s=1.0,
    scan_s=2.0,
    incomplete_after_s=6.0,
    observer="off",
    attempts=50,
    back_off_s=(0.5,),
    reserve_bytes=0,
    acquiring_s=0.5,
)
NAMES = tuple(f"{folder}{name}.tif" for folder in ("", "day/") for name in ("a", "b", "c"))
SEEDS = 4
_SETTLED_S = 40


class Machine(RuleBasedStateMachine):
    """Everything that may happen to a watched folder and to the daemon."""

    steps = 0
    """Rules run so far, in all machines."""

    kills = 0

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(os.path.realpath(tempfile.mkdtemp(prefix="machine-")))
        self.incoming, self.out = self.folder / "incoming", self.folder / "isotropic"
        (self.incoming / "day").mkdir(parents=True)
        self.contents = [self._content(seed) for seed in range(SEEDS)]
        self.restored = [expected(_stack(seed)) for seed in range(SEEDS)]
        self.files: dict[Path, tuple[int, bool]] = {}
        """Model: seed and whether it is whole, by path."""
        self.held: dict[int, set[Path]] = {seed: set() for seed in range(SEEDS)}
        """Paths that ever held all of a content."""
        self.published: dict[Path, tuple[int, int]] = {}
        self.now, self.times, self.lags = 1000.0, itertools.count(10**18), itertools.cycle((0, 1, 0, 2, 0, 0, 3))
        self.fuse, self.full, self.away = Fuse(), False, False
        self.events = Events()
        self.last: dict[Path, State] = {}
        self.alive = False
        self._patches = contextlib.ExitStack()
        clock = SimpleNamespace(monotonic=lambda: self.now, time=time.time, sleep=time.sleep)
        for target, name, replacement in (
            (intake, "time", clock),
            (line, "time", clock),
            (line, "place", self.fuse.around(publish.place)),
            (recovery, "place", self.fuse.around(publish.place)),
            (line, "require_space", self._require_space),
            (child, "seal", self._sealing(publish.seal)),
            (Ledger, "_commit", self._committing(Ledger._commit)),
        ):
            self._patches.enter_context(patch.object(target, name, replacement))
        self._patches.callback(shutil.rmtree, self.folder, ignore_errors=True)

    def _content(self, seed: int) -> bytes:
        path = self.folder / "content.ome.tif"
        write_ome_tiff(path, _stack(seed))
        data = path.read_bytes()
        path.unlink()
        return data

    def _require_space(self, *_: Any) -> None:
        if self.full:
            raise StorageError("the disk has 0.00 GB free, 1.00 GB are needed; make room")

    def _sealing(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def seal(*args: Any) -> Any:
            if self.full:
                raise StorageError("cannot write to the disk: No space left on device")
            return real(*args)

        return seal

    def _committing(self, real: Callable[..., Any]) -> Callable[..., Any]:
        burn = self.fuse.burn

        def commit(ledger: Ledger, *args: Any) -> Any:
            burn()
            made = real(ledger, *args)
            burn()
            return made

        return commit

    # --- the daemon -------------------------------------------------------------------------------------------------

    @initialize()
    def begin(self) -> None:
        """Start for the first time."""
        self.start()

    def start(self) -> None:
        """Start the daemon; where it ends at once, again."""
        while not self.alive:
            with self._mortal():
                self.ledger = Ledger(ledger_of(self.out), Job("quick", "{}"))
                self.alive = True
                recover(self.ledger, self.out)
                self._assemble()

    def _assemble(self) -> None:
        recipe = QuickRecipe(self.folder / "restored.log")
        self.book = Book(self.ledger, self._listen)
        self.last = {entry.path: entry.state for entry in self.ledger.entries()}
        roots = Roots([self.incoming], self.out)
        inspector = SimpleNamespace(judge=completeness, look=looked)
        more: Any = (self.book, roots, self.events, inspector, SETTINGS)
        self.intake = Intake(*more)
        self.intake._scanner = Inline(roots.folders, self.events.supervise)
        self.line = Line(self.book, roots, self.intake, inspector, SETTINGS, recipe, silent)  # type: ignore[arg-type]
        self.line.examiner = Here(None, self.lags)  # type: ignore[assignment]
        self.line.worker = self.worker = Here(recipe.open(), self.lags)  # type: ignore[assignment]
        self.patrol = Patrol(self.book)

    def _listen(self, event: Any) -> None:
        before = self.last.get(event.path)
        if before is not None and before is not event.state:
            assert event.state in LEGAL[before], f"{event.path.name}: from {before} to {event.state}"
        self.last[event.path] = event.state

    @contextlib.contextmanager
    def _mortal(self) -> Iterator[None]:
        """Let the daemon be killed inside; let it begin again where its ledger failed."""
        try:
            yield
        except Killed:
            type(self).kills += 1
            self._drop()
        except LedgerError:
            self._drop()
            self.fuse.left = None

    def _drop(self) -> None:
        """Leave everything as it lies."""
        if self.alive:
            self.ledger.close()
        self.alive = False

    def _step(self, seconds: float) -> None:
        """One round of the daemon's loop, as `watch` goes."""
        self.now += seconds
        if not self.alive:
            self.start()
        with self._mortal():
            self.intake.step(self.now)
            self.line.step(self.now)
            self.patrol.step()

    @rule(rounds=st.integers(1, 6), seconds=st.sampled_from((0.1, 0.6, 1.1, 2.5)))
    def run(self, rounds: int, seconds: float) -> None:
        """Let the daemon work."""
        for _ in range(rounds):
            self._step(seconds)

    @rule(changes=st.integers(0, 12), rounds=st.integers(1, 5))
    def kill(self, changes: int, rounds: int) -> None:
        """Kill it at one of the next changes, or after some rounds."""
        self.fuse.left, self.fuse.error = changes, Killed()
        for _ in range(rounds):
            if self.alive:
                self._step(1.1)
        self.fuse.left = None
        self._drop()
        self.start()

    @rule(changes=st.integers(0, 12))
    def fail_ledger(self, changes: int) -> None:
        """One of the next commits fails: the daemon begins again from the ledger."""
        self.fuse.left, self.fuse.error = changes, LedgerError("the ledger could not be written: disk full")
        for _ in range(3):
            self._step(1.1)
        self.fuse.left = None

    @rule()
    def stop(self) -> None:
        """Stop politely, and start again."""
        with self._mortal():
            self.line.abandon()
        self._drop()
        self.start()

    @rule()
    def crash_worker(self) -> None:
        """The next restoration ends with its process."""
        self.worker.crash = True

    @rule(full=st.booleans())
    def disk(self, full: bool) -> None:
        """Fill the disk, or make room."""
        self.full = full

    # --- the rig ----------------------------------------------------------------------------------------------------

    def _write(self, path: Path, data: bytes) -> None:
        with open(path, "wb") as file:
            file.write(data)
        self._stamp(path)

    def _stamp(self, path: Path) -> None:
        """Give each change a time of its own: the kernel's clock ticks too slowly for this machine."""
        os.utime(path, ns=((at := next(self.times)), at))

    def _tell(self, path: Path, told: int) -> None:
        """Hint at a change: not at all, as modified, as closed."""
        if told:
            self.events.paths[path] = told > 1

    def _set(self, path: Path, seed: int, whole: bool) -> None:
        self.files[path] = (seed, whole)
        if whole:
            self.held[seed].add(path)

    @precondition(lambda self: not self.away)
    @rule(name=st.sampled_from(NAMES), seed=st.integers(0, SEEDS - 1), whole=st.booleans(), told=st.integers(0, 2))
    def write(self, name: str, seed: int, whole: bool, told: int) -> None:
        """Write or rewrite a file in place, wholly or the first half of it."""
        path = self.incoming / name
        self._write(path, self.contents[seed] if whole else self.contents[seed][: len(self.contents[seed]) // 2])
        self._set(path, seed, whole)
        self._tell(path, told)

    @precondition(lambda self: not self.away)
    @rule(name=st.sampled_from(NAMES), seed=st.integers(0, SEEDS - 1), told=st.integers(0, 2))
    def replace(self, name: str, seed: int, told: int) -> None:
        """Write a file under a temporary name, and give it its name."""
        path = self.incoming / name
        hidden = path.with_name(f".{path.name}.tmp")
        self._write(hidden, self.contents[seed])
        os.rename(hidden, path)
        self._set(path, seed, True)
        self._tell(path, told)

    @precondition(lambda self: not self.away and any(not whole for _, whole in self.files.values()))
    @rule(told=st.integers(0, 2))
    def grow(self, told: int) -> None:
        """Write the rest of a file."""
        path, seed = next((path, seed) for path, (seed, whole) in self.files.items() if not whole)
        with open(path, "ab") as file:
            file.write(self.contents[seed][path.stat().st_size :])
        self._stamp(path)
        self._set(path, seed, True)
        self._tell(path, told)

    @precondition(lambda self: not self.away and self.files)
    @rule(which=st.integers(0, 5), name=st.sampled_from(NAMES), told=st.integers(0, 2))
    def rename(self, which: int, name: str, told: int) -> None:
        """Give a file another name that is free."""
        old, new = list(self.files)[which % len(self.files)], self.incoming / name
        if new not in self.files:
            os.rename(old, new)
            seed, whole = self.files.pop(old)
            self._set(new, seed, whole)
            self._tell(new, told)

    @precondition(lambda self: not self.away and self.files)
    @rule(which=st.integers(0, 5))
    def delete(self, which: int) -> None:
        """Delete a file."""
        path = list(self.files)[which % len(self.files)]
        path.unlink()
        del self.files[path]

    @precondition(lambda self: not self.away and self.files)
    @rule(which=st.integers(0, 5), told=st.integers(0, 2))
    def touch(self, which: int, told: int) -> None:
        """Give a file another time."""
        path = list(self.files)[which % len(self.files)]
        self._stamp(path)
        self._tell(path, told)

    @precondition(lambda self: not self.away and self.files)
    @rule(which=st.integers(0, 5), marker=st.booleans())
    def submitted(self, which: int, marker: bool) -> None:
        """Say that a file is finished, whether it is or not: in the inbox, or by a marker beside it."""
        path = list(self.files)[which % len(self.files)]
        marks = submit(path, None if marker else self.out)
        if marker:
            self._stamp(marks)

    @rule(name=st.sampled_from(NAMES), closed=st.booleans())
    def false_event(self, name: str, closed: bool) -> None:
        """Hint at a change that was not, twice, or of a file that is not there."""
        self.events.paths[self.incoming / name] = closed

    @rule()
    def lost_events(self) -> None:
        """Nothing that was hinted at is heard."""
        self.events.paths.clear()

    @rule(empty=st.booleans())
    def unmount(self, empty: bool) -> None:
        """Take the watched folder away; its mount point stays behind, or does not. Next time: bring it back."""
        aside = self.folder / "away"
        if self.away:
            self._mount()
            return
        os.rename(self.incoming, aside)
        self.away = True
        if empty:
            self.incoming.mkdir()

    def _mount(self) -> None:
        if self.incoming.exists():
            self.incoming.rmdir()
        os.rename(self.folder / "away", self.incoming)
        self.away = False

    # --- what must hold ---------------------------------------------------------------------------------------------

    @invariant()
    def raw_is_as_it_was(self) -> None:
        """Nothing in the watched folder was touched."""
        type(self).steps += 1
        root = self.folder / "away" if self.away else self.incoming
        found = {path for path in root.rglob("*.tif") if not path.name.startswith(".")}
        wanted = {root / path.relative_to(self.incoming) for path in self.files}
        assert found == wanted
        for path, (seed, whole) in self.files.items():
            data = (root / path.relative_to(self.incoming)).read_bytes()
            assert data == (self.contents[seed] if whole else self.contents[seed][: len(self.contents[seed]) // 2])

    @invariant()
    def results_are_right_and_stay(self) -> None:
        """Whatever is visible is whole and right, and never published again."""
        for path in self.finals():
            status = path.stat()
            mark = (status.st_ino, status.st_mtime_ns)
            if path not in self.published:
                self.seed_of(path)
                self.published[path] = mark
            assert self.published[path] == mark, f"{path.name} was published again"
        assert set(self.published) <= set(self.finals()), "a result vanished"
        for seed, paths in self.held.items():
            made = [path for path in self.finals() if self.seed_of(path) == seed]
            assert len(made) <= len(paths), f"{len(made)} results of a content that {len(paths)} files held"

    @invariant()
    def what_is_done_is_there(self) -> None:
        """No row is done without its file."""
        if self.alive:
            for entry in self.ledger.entries():
                assert entry.state is not State.DONE or is_there(entry), f"{entry.path.name} is done, without a result"

    def finals(self) -> list[Path]:
        """Every visible file below the output folder."""
        return [
            path
            for path in sorted(self.out.rglob("*.tif"))
            if STATE_FOLDER not in path.parts and not path.name.startswith(".ssai3d-")
        ]

    def seed_of(self, result: Path) -> int:
        """Which content a result was made of; it must be the right result."""
        known = _SEEDS_OF.get(result)
        if known is None:
            digest = read_provenance(result)["source_sha256"]
            hashes = [_sha(content) for content in self.contents]
            known = hashes.index(digest)
            assert np.array_equal(read_stack(result).data, self.restored[known]), f"{result.name} is wrong"
            _SEEDS_OF[result] = known
        return known

    @rule()
    def settle(self) -> None:
        """Let all faults end, and wait: then every whole file has its result, and every other is listed."""
        if self.away:
            self._mount()
        self.full, self.fuse.left, self.worker.crash = False, None, False
        for _ in range(_SETTLED_S):
            self._step(1.0)
            if self._is_settled():
                break
        rows = {entry.path: entry for entry in self.ledger.entries()}
        taken: dict[Path, Path] = {}
        for path, (seed, whole) in self.files.items():
            entry = rows.get(path)
            assert entry is not None, f"{path.name} was never seen"
            if not whole:
                listed = (entry.state, entry.fault) == (State.FAILED, Fault.INCOMPLETE)
                assert listed, f"{path.name} is cut and {entry.state.value}: {entry.reason}"
                continue
            assert entry.state is State.DONE, f"{path.name} is {entry.state.value}: {entry.reason}"
            (result,) = entry.results
            assert hash_of(result.path) == result.sha256
            assert self.seed_of(result.path) == seed, f"the result of {path.name} is of what it held before"
            assert taken.setdefault(result.path, path) == path, f"{result.path.name} is the result of two files"
        for path, entry in rows.items():
            assert path in self.files or entry.state in (State.DONE, State.GONE), f"{path.name}: {entry.state.value}"
        left = [path for path in self.out.rglob(".ssai3d-*") if path.is_file()]
        assert not left, f"left over: {left}"

    def _is_settled(self) -> bool:
        """Whether nothing more can come: a file that is gone is noticed by a scan, so one has to pass."""
        rows = {entry.path: entry for entry in self.ledger.entries()} if self.alive else {}
        whole = all(
            path in rows
            and (rows[path].state is State.DONE if whole else rows[path].fault is Fault.INCOMPLETE)
            and rows[path].identity.mtime_ns == path.stat().st_mtime_ns
            for path, (_, whole) in self.files.items()
        )
        others = all(e.state in (State.DONE, State.GONE) for path, e in rows.items() if path not in self.files)
        return self.alive and whole and others

    def teardown(self) -> None:
        """Settle once more, and clean up."""
        try:
            if self.alive or hasattr(self, "ledger"):
                self.settle()
        finally:
            self._drop()
            for path in [path for path in _SEEDS_OF if path.is_relative_to(self.folder)]:
                del _SEEDS_OF[path]
            self._patches.close()


_SEEDS_OF: dict[Path, int] = {}


def _sha(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()


def _stack(seed: int) -> Stack:
    data = np.random.default_rng(seed).integers(0, 4000, (3, 8, 8), dtype=np.uint16)
    return Stack(data, (0.2, 0.1, 0.1))
