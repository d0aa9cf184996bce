"""Probes from outside: they ask the daemon that runs, believe nothing that lies around, and say why not."""

from __future__ import annotations

import json
import os
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from ssai3d_rt.cli import main
from ssai3d_rt.errors import InputError
from ssai3d_rt.runtime.ledger import Job, Ledger
from ssai3d_rt.runtime.probe import ask, leave_note, note_of
from ssai3d_rt.runtime.status import ledger_of
from ssai3d_rt.runtime.vitals import Vitals
from ssai3d_rt.runtime.web import HealthSettings, serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    with Ledger(ledger_of(tmp_path), Job("b", "{}")):
        yield tmp_path


def test_a_daemon_is_asked_where_it_serves(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("uvicorn", reason="the extra status is not installed")
    vitals = Vitals([], scan_s=5.0, canary=False)
    with serve(vitals, HealthSettings(), out=out, ledger=ledger_of(out), roots=[], port=0):
        assert ask(out, "live").ok
        assert main(["status", str(out), "--live"]) == 0
        assert main(["status", str(out), "--ready"]) == 1
        assert main(["status", str(out), "--ready", "--json"]) == 1
        vitals.ledger()
        vitals.disk(1, 1)
        assert main(["status", str(out), "--ready"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "live",
        "not ready: the ledger is not open yet",
        "not ready: the results' disk was not looked at yet",
    ]
    assert json.loads(lines[3])["ready"] is False
    assert lines[4] == "ready"


def test_where_no_daemon_runs_an_address_left_behind_is_not_asked(tmp_path: Path) -> None:
    with Ledger(ledger_of(tmp_path), Job("b", "{}")):
        pass
    leave_note(tmp_path, "http://127.0.0.1:1")
    assert "no daemon runs on" in ask(tmp_path, "live").reasons[0]
    with pytest.raises(InputError, match="holds no ledger"):
        ask(tmp_path / "nowhere", "live")


def test_a_daemon_without_a_health_server_is_not_taken_for_live(out: Path) -> None:
    verdict = ask(out, "live")
    assert (verdict.ok, "give it a port" in verdict.reasons[0]) == (False, True)


def test_the_address_of_a_daemon_that_was_killed_is_not_asked_for_another(out: Path) -> None:
    note_of(out).write_text(json.dumps({"address": "http://127.0.0.1:1", "process": os.getpid() + 1}))
    assert "give it a port" in ask(out, "live").reasons[0]
    leave_note(out, "http://127.0.0.1:1")
    assert "does not answer at" in ask(out, "live").reasons[0]


@pytest.mark.parametrize("note", [b"", b"{", b"[]", b"{}", b"\xff", b'{"address": 7}', b'{"address": "http://[::1"}'])
def test_a_damaged_address_is_said(out: Path, note: bytes) -> None:
    note_of(out).write_bytes(note)
    assert not ask(out, "live").ok


@pytest.mark.parametrize(
    "said", [b"", b"HTTP/1.1 200 OK\r\n\r\nhello", b'HTTP/1.1 200 OK\r\n\r\n{"live": 1, "reasons": []}', b"SSH-2.0\r\n"]
)
def test_another_program_at_the_port_is_not_taken_for_live(out: Path, said: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:

        def answer() -> None:
            connection, _ = other.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(said)

        thread = threading.Thread(target=answer)
        thread.start()
        leave_note(out, f"http://127.0.0.1:{other.getsockname()[1]}")
        assert not ask(out, "live").ok
        thread.join()
