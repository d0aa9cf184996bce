"""Status: read from the ledger, with and without a daemon, as JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ssai3d_rt.errors import InputError, StorageError
from ssai3d_rt.runtime.ledger import Fault, Job, Ledger, Result, State
from ssai3d_rt.runtime.source import Identity
from ssai3d_rt.runtime.status import ledger_of, remember_ledger, summary


@pytest.fixture
def out(tmp_path: Path) -> Path:
    with Ledger(ledger_of(tmp_path), Job("b", "{}")) as ledger:
        fill(ledger)
    return tmp_path


def fill(ledger: Ledger) -> None:
    for number in range(3):
        entry = ledger.see(Path(f"/raw/bad{number}.tif"), Identity(1, number, 3, 4))
        ledger.move(entry, State.FAILED, fault=Fault.INPUT, reason=f"reason {number}")
    entry = ledger.move(ledger.see(Path("/raw/good.tif"), Identity(1, 9, 3, 4)), State.READY)
    entry = ledger.move(entry, State.RUNNING, attempts=1)
    result = Result(Path("/iso/good_iso.ome.tif"), Path("/iso/x"), "f" * 64, 1)
    ledger.move(ledger.move(entry, State.PUBLISHING, results=(result,)), State.DONE, seconds=2.5)
    ledger.move(ledger.move(ledger.see(Path("/raw/now.tif"), Identity(1, 8, 3, 4)), State.READY), State.RUNNING)


def test_it_counts_and_lists_the_latest(out: Path) -> None:
    found = summary(out, most=2)
    assert json.loads(json.dumps(found)) == found
    assert found["counts"] == {"running": 1, "done": 1, "failed": 3}
    assert [(entry["path"], entry["reason"]) for entry in found["failed"]] == [
        ("/raw/bad2.tif", "reason 2"),
        ("/raw/bad1.tif", "reason 1"),
    ]
    assert (found["done"][0]["results"], found["done"][0]["seconds"]) == (["/iso/good_iso.ome.tif"], 2.5)
    assert [entry["path"] for entry in found["working"]] == ["/raw/now.tif"]
    assert found["running"] is False
    assert summary(ledger_of(out)) == summary(out)


def test_it_tells_whether_a_daemon_runs_and_does_not_disturb_it(out: Path) -> None:
    with Ledger(ledger_of(out), Job("b", "{}")) as ledger:
        assert summary(out)["running"] is True
        ledger.note("paused", "disk full")
        ledger.see(Path("/raw/more.tif"), Identity(1, 7, 3, 4))
        assert (summary(out)["paused"], summary(out)["counts"]["seen"]) == ("disk full", 1)
    assert summary(out)["running"] is False


def test_a_ledger_elsewhere_is_found(tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "local" / "rig.sqlite"
    (out / ".ssai3d-rt").mkdir(parents=True)
    with Ledger(elsewhere, Job("b", "{}")) as ledger:
        fill(ledger)
    remember_ledger(out, elsewhere)
    assert summary(out)["ledger"] == str(elsewhere)
    remember_ledger(out, ledger_of(out))
    with pytest.raises(InputError, match="holds no ledger"):
        summary(out)


def test_what_is_no_ledger_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no ledger; give the output folder"):
        summary(tmp_path)
    (tmp_path / "x.sqlite").write_text("this is no database" * 99)
    with pytest.raises(StorageError, match="cannot be read"):
        summary(tmp_path / "x.sqlite")


def test_it_needs_no_torch(out: Path) -> None:
    code = (
        "import sys; from ssai3d_rt.runtime.status import summary; summary(sys.argv[1]); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(out)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
