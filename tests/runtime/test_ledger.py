"""The ledger: legal moves only, durable at once, one daemon, odd names, damage."""

from __future__ import annotations

import itertools
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ssai3d_rt.errors import StorageError
from ssai3d_rt.runtime.ledger import LEGAL, Entry, Fault, Job, Ledger, Result, State
from ssai3d_rt.runtime.source import Identity

if TYPE_CHECKING:
    from collections.abc import Iterator

JOB = Job("b" * 64, "{}")
FILE = Identity(1, 2, 300, 4)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "state" / "ledger.sqlite", JOB) as opened:
        yield opened


def row_in(ledger: Ledger, state: State, name: str = "a.tif") -> Entry:
    """A row brought to a state by legal moves."""
    ways: dict[State, list[State]] = {State.SEEN: []}
    while state not in ways:
        for known in list(ways):
            for following in LEGAL[known]:
                ways.setdefault(following, [*ways[known], following])
    entry = ledger.see(Path("/raw") / name, FILE)
    for step in ways[state]:
        entry = ledger.move(entry, step)
    return entry


@pytest.mark.parametrize(("before", "after"), list(itertools.permutations(State, 2)))
def test_only_legal_moves_are_possible(ledger: Ledger, before: State, after: State) -> None:
    entry = row_in(ledger, before)
    if after in LEGAL[before]:
        assert ledger.move(entry, after).state is after
    else:
        with pytest.raises(ValueError, match=f"no way from {before.value} to {after.value}"):
            ledger.move(entry, after)
    assert [e.state for e in ledger.entries()] == [after if after in LEGAL[before] else before]


def test_a_row_keeps_all_it_was_told(ledger: Ledger) -> None:
    result = Result(Path("/iso/a_iso.ome.tif"), Path("/iso/.x.tmp"), "f" * 64, 12)
    entry = row_in(ledger, State.RUNNING)
    entry = ledger.move(entry, State.PUBLISHING, content="c" * 64, results=(result,), attempts=2)
    entry = ledger.move(entry, State.DONE, seconds=1.5, nudge="7", identity=Identity(1, 2**64 - 1, 5, 6))
    assert list(ledger.entries()) == [entry]
    assert (entry.results, entry.attempts, entry.content, entry.seconds) == ((result,), 2, "c" * 64, 1.5)
    assert ledger.claims(result.path)
    assert not ledger.claims(Path("/iso/b_iso.ome.tif"))
    assert ledger.with_content("c" * 64) == [entry]


def test_reason_and_fault_end_with_the_state(ledger: Ledger) -> None:
    entry = ledger.move(row_in(ledger, State.SEEN), State.FAILED, fault=Fault.INPUT, reason="no image")
    assert (entry.fault, entry.reason) == (Fault.INPUT, "no image")
    entry = ledger.move(entry, State.WAITING)
    assert (entry.fault, entry.reason) == (Fault.NONE, "")


def test_two_rows_cannot_have_one_result(ledger: Ledger) -> None:
    result = Result(Path("/iso/a_iso.ome.tif"), Path("/iso/.x.tmp"), "f" * 64, 12)
    first, second = row_in(ledger, State.RUNNING), row_in(ledger, State.RUNNING, "a.tiff")
    ledger.move(first, State.PUBLISHING, results=(result,))
    with pytest.raises(StorageError, match="could not be written"):
        ledger.move(second, State.PUBLISHING, results=(result,))
    assert [e.state for e in ledger.entries()] == [State.PUBLISHING, State.RUNNING]


NAMES = [
    b"plain.tif",
    b"no\xffutf8.tif",
    b"line\nfeed\x1b.tif",
    "é.tif".encode(),
    "e\u0301.tif".encode(),
    b"n" * 251 + b".tif",
]


@pytest.mark.skipif(sys.platform == "win32", reason="such names are possible on Linux only")
def test_any_file_name_is_kept_exactly(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger(path, JOB) as ledger:
        for name in NAMES:
            ledger.see(Path(os.fsdecode(b"/raw/" + name)), FILE)
    with Ledger(path, JOB) as ledger:
        assert [os.fsencode(entry.path) for entry in ledger.entries()] == [b"/raw/" + name for name in NAMES]
    shown = [row[0] for row in sqlite3.connect(path).execute("SELECT shown FROM stacks")]
    assert shown[2] == "/raw/line\\nfeed\\x1b.tif"
    assert all(text.isprintable() for text in shown)


def test_rows_of_another_bundle_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger(path, JOB) as ledger:
        row_in(ledger, State.RUNNING)
    with Ledger(path, Job("other", "{}")) as ledger:
        assert list(ledger.entries()) == []
        assert ledger.resume() == []
        row_in(ledger, State.READY)
        assert ledger.counts() == {"ready": 1}
    with Ledger(path, JOB) as ledger:
        assert ledger.counts() == {"running": 1}


def test_resume_gives_back_what_ran_and_blames_nobody(ledger: Ledger) -> None:
    entry = ledger.move(row_in(ledger, State.READY), State.RUNNING, attempts=2)
    publishing = row_in(ledger, State.PUBLISHING, "b.tif")
    assert ledger.resume() == [publishing]
    resumed = next(ledger.entries())
    assert (resumed.path, resumed.state, resumed.attempts) == (entry.path, State.READY, 1)


def test_a_batch_is_kept_whole_or_not_at_all(ledger: Ledger) -> None:
    def half() -> None:
        with ledger.batch():
            ledger.see(Path("/raw/a.tif"), FILE)
            raise KeyError

    with pytest.raises(KeyError):
        half()
    assert list(ledger.entries()) == []
    with ledger.batch():
        entry = ledger.see(Path("/raw/a.tif"), FILE)
        ledger.move(entry, State.READY)
    assert ledger.counts() == {"ready": 1}


HOLD = """
import sys, time
from pathlib import Path
from ssai3d_rt.runtime.ledger import Job, Ledger, State
from ssai3d_rt.runtime.source import Identity
ledger = Ledger(Path(sys.argv[1]), Job("b" * 64, "{}"))
entry = ledger.see(Path("/raw/a.tif"), Identity(1, 2, 3, 4))
ledger.move(entry, State.READY)
print("held", flush=True)
time.sleep(60)
"""


def test_a_second_daemon_is_refused_until_the_first_ends_in_any_way(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        assert first.stdout.readline().strip() == b"held"
        with pytest.raises(StorageError, match=rf"another watch \(process {first.pid}\) already runs on .*; stop it"):
            Ledger(path, JOB)
        first.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    with Ledger(path, JOB) as ledger:
        assert ledger.counts() == {"ready": 1}


def damage_text(path: Path) -> None:
    path.write_bytes(b"this is not a database, whatever its name says" * 100)


def damage_schema(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("UPDATE meta SET value='99' WHERE key='schema'")
    database.commit()
    database.close()


def damage_pages(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096:] = bytes(len(data) - 4096)
    path.write_bytes(data)


@pytest.fixture
def used(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.sqlite"
    with Ledger(path, JOB) as ledger, ledger.batch():
        for number in range(200):
            ledger.see(Path(f"/raw/{number}.tif"), FILE)
    return path


@pytest.mark.parametrize("damage", [damage_text, damage_pages])
def test_a_damaged_ledger_is_moved_aside(used: Path, damage: Any, caplog: pytest.LogCaptureFixture) -> None:
    damage(used)
    with Ledger(used, JOB) as ledger:
        assert ledger.counts() == {}
        row_in(ledger, State.READY)
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "is damaged" in caplog.text
    assert "\n" not in caplog.records[0].getMessage()
    assert len(list(used.parent.glob("ledger.sqlite.damaged-*"))) >= 1
    with Ledger(used, JOB) as ledger:
        assert ledger.counts() == {"ready": 1}


def test_a_newer_ledger_is_refused_and_kept(used: Path) -> None:
    damage_schema(used)
    before = used.read_bytes()
    with pytest.raises(StorageError, match=r"schema version 99, this ssai3d-rt writes 2; use the version that made it"):
        Ledger(used, JOB)
    assert used.read_bytes() == before


def test_it_is_written_through_to_the_disk(ledger: Ledger) -> None:
    pragma = {
        name: ledger._database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")
    }
    assert pragma == {"journal_mode": "wal", "synchronous": 2}


class LedgerMachine(RuleBasedStateMachine):
    """Random moves and restarts: the ledger always says what a dictionary says."""

    @initialize(folder=st.uuids())
    def open(self, folder: Any) -> None:
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.model: dict[Path, State] = {}
        self.ledger = Ledger(Path(self.folder.name) / "ledger.sqlite", JOB)

    @rule(number=st.integers(0, 5))
    def see(self, number: int) -> None:
        path = Path(f"/raw/{number}.tif")
        if path not in self.model:
            self.ledger.see(path, FILE)
            self.model[path] = State.SEEN

    @rule(number=st.integers(0, 5), state=st.sampled_from(State))
    def move(self, number: int, state: State) -> None:
        path = Path(f"/raw/{number}.tif")
        before = self.model.get(path)
        if before is not None and (state in LEGAL[before] or state is before):
            entry = next(entry for entry in self.ledger.entries() if entry.path == path)
            self.ledger.move(entry, state)
            self.model[path] = state

    @rule()
    def restart(self) -> None:
        self.ledger.close()
        self.ledger = Ledger(self.ledger.path, JOB)
        left = {entry.path for entry in self.ledger.resume()}
        self.model = {p: State.READY if s is State.RUNNING else s for p, s in self.model.items()}
        assert left == {p for p, s in self.model.items() if s is State.PUBLISHING}

    @invariant()
    def agrees(self) -> None:
        if hasattr(self, "ledger"):
            assert {entry.path: entry.state for entry in self.ledger.entries()} == self.model

    def teardown(self) -> None:
        if hasattr(self, "ledger"):
            self.ledger.close()
            self.folder.cleanup()


LedgerMachine.TestCase.settings = settings(max_examples=8, stateful_step_count=25, deadline=None)
TestLedgerMachine = LedgerMachine.TestCase


def test_a_ledger_of_schema_1_is_taken_over(used: Path) -> None:
    database = sqlite3.connect(used)
    database.execute("ALTER TABLE stacks DROP COLUMN ctime_ns")
    database.execute("UPDATE meta SET value='1' WHERE key='schema'")
    database.commit()
    database.close()
    for _ in range(2):
        with Ledger(used, JOB) as ledger:
            entries = list(ledger.entries())
            assert len(entries) == 200
            assert {entry.identity.ctime_ns for entry in entries} == {0}
