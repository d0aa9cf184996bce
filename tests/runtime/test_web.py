"""The health server: a real one, on a real port, asked by real clients, proper and not."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import socket
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ssai3d_rt.errors import ConfigError, MissingPackageError
from ssai3d_rt.imaging.openfile import shown
from ssai3d_rt.runtime import pages, web
from ssai3d_rt.runtime.ledger import Fault, Job, Ledger, State
from ssai3d_rt.runtime.probe import note_of
from ssai3d_rt.runtime.source import Identity
from ssai3d_rt.runtime.status import ledger_of
from ssai3d_rt.runtime.submit import pending
from ssai3d_rt.runtime.vitals import Vitals
from ssai3d_rt.runtime.web import HealthSettings, serve
from tests.runtime.client import place, raw, request, silent

if TYPE_CHECKING:
    from collections.abc import Iterator

TOKEN = "correct-horse-battery"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
AS_JSON = {"Content-Type": "application/json"}
HOSTILE = [
    "<script>alert(1).tif",
    "line\nbreak.tif",
    os.fsdecode(b"\xff\xfe.tif"),
    '"><img src=x onerror=1>.tif',
]
posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")


@pytest.fixture(autouse=True)
def _needs() -> None:
    pytest.importorskip("uvicorn", reason="the extra status is not installed")


@dataclass
class Place:
    folder: Path
    vitals: Vitals

    @property
    def raw(self) -> Path:
        return self.folder / "raw"

    @property
    def out(self) -> Path:
        return self.folder / "iso"

    @contextlib.contextmanager
    def serving(self, **settings: Any) -> Iterator[str]:
        values = settings if "token_file" in settings else settings | {"token_file": self.token_file()}
        with serve(
            self.vitals,
            HealthSettings(**values),
            out=self.out,
            ledger=ledger_of(self.out),
            roots=[self.raw],
            port=0,
        ) as address:
            yield address

    def token_file(self, text: str = TOKEN + "\n", mode: int = 0o600) -> Path:
        path = self.folder / "token"
        path.unlink(missing_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return path


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path, Vitals([tmp_path / "raw"], scan_s=5.0))
    made.raw.mkdir()
    with Ledger(ledger_of(made.out), Job("b", "{}")) as ledger:
        for number, name in enumerate(HOSTILE):
            entry = ledger.see(made.raw / name, Identity(1, number, 3, 4))
            ledger.move(entry, State.FAILED, fault=Fault.INPUT, reason=f"{shown(name)}: no image")
        yield made


def ready(vitals: Vitals, root: Path) -> None:
    vitals.root(root)
    vitals.ledger()
    vitals.disk(10, 1)
    vitals.canary(True)


def test_live_and_ready_say_why_not(here: Place) -> None:
    with here.serving() as address:
        assert request(address, "/live").json == {"live": True, "reasons": []}
        not_yet = request(address, "/ready")
        assert (not_yet.status, not_yet.json["ready"], len(not_yet.json["reasons"])) == (503, False, 4)
        ready(here.vitals, here.raw)
        assert (request(address, "/ready").status, request(address, "/ready").json["reasons"]) == (200, [])
        assert request(address, "/ready", "HEAD").body == b""


def test_names_come_only_with_the_token_and_never_as_markup(here: Place) -> None:
    with here.serving() as address:
        plain, full = request(address, "/status.json"), request(address, "/status.json", headers=BEARER)
    assert plain.json["counts"] == full.json["counts"] == {"failed": len(HOSTILE)}
    assert "alert" not in plain.body.decode()
    assert str(here.folder) not in plain.body.decode()
    assert [set(one) for one in plain.json["failed"]] == [{"state", "fault", "seconds", "attempts", "updated_at"}] * 4
    told = [one["path"] for one in full.json["failed"]]
    assert told == [
        str(here.raw / n) for n in ('"><img src=x onerror=1>.tif', "\\udcff\\udcfe.tif", "line\\nbreak.tif", HOSTILE[0])
    ]
    assert full.json["vitals"]["roots"][0]["path"] == str(here.raw)
    for answer in (plain, full):
        assert not set(b"<>&\n") & set(answer.body)
        assert answer.body.isascii()
        assert answer.headers["content-type"] == "application/json"


def test_every_answer_forbids_what_a_browser_could_do_with_it(here: Place) -> None:
    with here.serving() as address:
        answers = [
            request(address, path) for path in ("/", "/page.js", "/page.css", "/live", "/status.json", "/nothing")
        ]
        answers.append(request(address, "/live", headers={"Host": "evil.example"}))
        answers.append(request(address, "/submit", "POST", b"{}", BEARER))
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; ")
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["connection"] == "close"
        assert "access-control-allow-origin" not in answer.headers
        assert "server" not in answer.headers
    assert [answer.status for answer in answers] == [200, 200, 200, 200, 200, 404, 421, 415]


def test_the_page_puts_everything_in_as_text() -> None:
    page = Path(pages.__file__).parent / "page"
    html, script = (page / "index.html").read_text(), (page / "page.js").read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|Function\(|srcdoc", script)
    assert re.findall(r"<script[^>]*>([^<]*)</script>", html) == [""]
    assert not re.search(r"\son\w+=|style=|javascript:|https?:", html)
    wanted = set(re.findall(r'at\("(\w+)"\)|rows\("(\w+)"|sign\("(\w+)"', script))
    assert {name for names in wanted for name in names if name} <= set(re.findall(r'id="(\w+)"', html))


def test_a_submission_is_left_for_the_daemon(here: Place) -> None:
    path = here.raw / HOSTILE[0]
    path.write_bytes(b"II*")
    with here.serving() as address:
        answer = request(address, "/submit", "POST", json.dumps({"path": str(path)}).encode(), AS_JSON | BEARER)
    assert answer.status == 202
    assert [(word.name, target) for word, target in pending(here.out)] == [(answer.json["word"], path)]


REFUSED: dict[str, tuple[bytes, int]] = {
    "not JSON": (b"{", 400),
    "nothing": (b"", 400),
    "no object": (b"[]", 400),
    "deep": (b"[" * 60_000, 400),
    "other key": (b'{"path": "RAW/a.tif", "out": "/x"}', 400),
    "number": (b'{"path": 7}', 400),
    "relative": (b'{"path": "a.tif"}', 400),
    "NUL": (b'{"path": "RAW/a\\u0000.tif"}', 400),
    "half a surrogate": (b'{"path": "RAW/\\ud800"}', 403),
    "absent": (b'{"path": "RAW/absent.tif"}', 400),
    "elsewhere": (b'{"path": "ABOVE/token"}', 403),
    "elsewhere and absent": (b'{"path": "ABOVE/absent"}', 403),
    "dots": (b'{"path": "RAW/../token"}', 403),
    "parent": (b'{"path": "RAW/.."}', 403),
    "a link that leads out": (b'{"path": "RAW/link.tif"}', 403),
    "below a link that leads out": (b'{"path": "RAW/away/token"}', 403),
    "too large": (b'{"path": "' + b"x" * 65536 + b'"}', 413),
}


@posix
def test_submissions_that_are_refused_change_nothing(here: Place) -> None:
    (here.raw / "link.tif").symlink_to(here.token_file())
    (here.raw / "away").symlink_to(here.folder)
    got = {}
    with here.serving() as address:
        for name, (body, _) in REFUSED.items():
            sent = body.replace(b"RAW", os.fsencode(here.raw)).replace(b"ABOVE", os.fsencode(here.folder))
            got[name] = request(address, "/submit", "POST", sent, AS_JSON | BEARER).status
        chunked = b"POST /submit HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
        chunked += f"Content-Type: application/json\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
        chunked += b"ffff\r\n" + b"x" * 0xFFFF + b"\r\n" + b"ff\r\n" + b"x" * 0xFF + b"\r\n0\r\n\r\n"
        assert raw(address, chunked).startswith(b"HTTP/1.1 413")
        form = request(address, "/submit", "POST", b"path=/x", {**BEARER, "Content-Type": "text/plain"})
        assert form.status == 415
        packed = request(address, "/submit", "POST", b"x", {**AS_JSON, **BEARER, "Content-Encoding": "gzip"})
        assert packed.status == 415
        assert request(address, "/submit", "POST", b"{}", AS_JSON).status == 401
        assert (
            request(address, "/submit", "POST", b"{}", {**AS_JSON, **BEARER, "Origin": "http://evil.example"}).status
            == 403
        )
    assert got == {name: status for name, (_, status) in REFUSED.items()}
    assert pending(here.out) == []


NONSENSE = {
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "huge header": b"GET /live HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
    "endless line": b"GET /" + b"x" * 100_000,
    "two hosts": b"GET /live HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
    "no host": b"GET /live HTTP/1.1\r\n\r\n",
    "old and no host": b"GET /live HTTP/1.0\r\n\r\n",
    "two tokens": b"GET /status.json HTTP/1.1\r\nHost: localhost\r\nAuthorization: a\r\nAuthorization: b\r\n\r\n",
    "smuggled": b"POST /submit HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "nonsense behind a good head": b"POST /submit HTTP/1.1\r\nHost: localhost\r\n"
    b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    "folded": b"GET /live HTTP/1.1\r\nHost: localhost\r\n evil.example\r\n\r\n",
    "connect": b"CONNECT evil.example:443 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "absolute": b"GET http://evil.example/live HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_is_answered_shortly_and_leaves_the_server_well(here: Place, name: str, caplog: Any) -> None:
    with here.serving() as address:
        answer = raw(address, NONSENSE[name])
        assert re.match(rb"HTTP/1\.1 4\d\d |$", answer)
        assert b"evil" not in answer
        assert len(answer) < 1500
        assert request(address, "/live").status == 200
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []


def test_pipelined_requests_get_one_answer(here: Place) -> None:
    one = b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with here.serving() as address:
        assert raw(address, 50 * one).count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"GET /li",
        b"POST /submit HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\nAuthorization: Bearer %s\r\n\r\nx",
    ],
    ids=["silent", "half a head", "half a body"],
)
def test_a_slow_client_is_cut_off(here: Place, said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "LIFE_S", 0.4)
    with here.serving() as address, contextlib.closing(socket.create_connection(place(address), timeout=10)) as slow:
        slow.sendall(said.replace(b"%s", TOKEN.encode()))
        began = time.monotonic()
        with contextlib.suppress(ConnectionError):
            assert slow.recv(100) == b""
        assert 0.2 < time.monotonic() - began < 5
        assert request(address, "/live").status == 200


def test_a_crowd_of_silent_clients_keeps_nobody_out(here: Place) -> None:
    with here.serving() as address:
        crowd = silent(address, 5 * web.MOST_CONNECTIONS, b"GET /live HT")
        try:
            assert request(address, "/live").status == 200
            assert request(address, "/status.json").status == 200
            descriptors = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
            assert descriptors < 6 * web.MOST_CONNECTIONS + 100
        finally:
            for one in crowd:
                one.close()


def test_a_disk_that_hangs_does_not_stop_what_needs_none(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    let_go = threading.Event()
    monkeypatch.setattr(pages, "PATIENCE_S", 0.2)
    monkeypatch.setattr(pages, "summary", lambda _: let_go.wait(30) and {})
    with here.serving() as address:
        for _ in range(3):
            status = request(address, "/status.json")
            assert status.json["ledger_problem"] == "the ledger did not answer within 0.2 s"
            assert status.json["vitals"]["live"] is True
            assert request(address, "/live").status == 200
        assert sum(thread.name == "health: disk" for thread in threading.enumerate()) == 1
        let_go.set()


def test_a_ledger_that_cannot_be_read_is_said(here: Place, tmp_path: Path) -> None:
    with serve(here.vitals, HealthSettings(), out=here.out, ledger=tmp_path / "none", roots=[], port=0) as address:
        answer = request(address, "/status.json")
    assert (answer.status, answer.json["ledger_problem"]) == (200, "the ledger cannot be read")


def test_it_starts_and_ends_again_and_again_and_leaves_its_address(here: Place) -> None:
    before = threading.active_count()
    for _ in range(3):
        with here.serving() as address:
            assert json.loads(note_of(here.out).read_text()) == {"address": address, "process": os.getpid()}
        assert not note_of(here.out).exists()
        with pytest.raises(ConnectionError):
            request(address, "/live")
    assert threading.active_count() == before


def test_port_0_serves_nothing_and_takes_an_old_address_away(here: Place) -> None:
    note_of(here.out).write_text('{"address": "http://127.0.0.1:1"}')
    before = threading.active_count()
    with serve(here.vitals, HealthSettings(), out=here.out, ledger=ledger_of(here.out), roots=[]) as address:
        assert (address, threading.active_count()) == ("", before)
        assert not note_of(here.out).exists()


def starts(here: Place, **settings: Any) -> None:
    with here.serving(**settings):
        pass


def test_a_port_that_is_taken_is_named(here: Place) -> None:
    with here.serving() as address:
        port = place(address)[1]
        with (
            pytest.raises(ConfigError, match=rf"127.0.0.1 port {port}: .*; stop what uses the port, or set another"),
            serve(here.vitals, HealthSettings(port=port), out=here.out, ledger=here.out, roots=[]),
        ):
            pass
        assert request(address, "/live").status == 200


@pytest.mark.parametrize("settings", [{"address": "0.0.0.0"}, {"address": "rig7.lab"}, {"hosts": ("rig7.lab",)}])
def test_other_machines_need_a_token(here: Place, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"other machines could ask .*; give a token_file"):
        starts(here, token_file=None, **settings)


def test_an_address_that_is_none_is_named(here: Place) -> None:
    with pytest.raises(ConfigError, match=r"no\.such\.host\.invalid is no address"):
        starts(here, address="no.such.host.invalid")
    with pytest.raises(ConfigError, match=r"cannot listen at 192\.0\.2\.1"):
        starts(here, address="192.0.2.1")


@posix
@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [
        (TOKEN, 0o640, "others may read the token_file .*; run: chmod 600"),
        (TOKEN, 0o604, "others may read"),
        ("short", 0o600, "must hold one line of 16 to 512 characters"),
        ("two words are not one token", 0o600, "must hold one line"),
        ("x" * 600, 0o600, "must hold one line"),
        ("", 0o600, "must hold one line"),
    ],
)
def test_a_token_file_that_is_not_safe_is_refused(here: Place, text: str, mode: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        starts(here, token_file=here.token_file(text, mode))


@posix
def test_what_is_no_token_file_is_refused(here: Place) -> None:
    with pytest.raises(ConfigError, match="cannot read the token_file"):
        starts(here, token_file=here.folder / "absent")
    os.mkfifo(here.folder / "pipe", 0o600)
    for name in ("pipe", "raw"):
        with pytest.raises(ConfigError, match="is not a file"):
            starts(here, token_file=here.folder / name)


def test_without_the_packages_their_extra_is_named(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "uvicorn" else find(name, *more)
    )
    with pytest.raises(MissingPackageError, match=r'uvicorn is not installed; run: pip install "ssai3d-rt\[status\]"'):
        starts(here)


def test_the_loop_goes_round_whatever_clients_do(here: Place) -> None:
    """The gaps between beats under a storm of requests, against the same loop beside a server that nobody asks."""
    with here.serving() as address:
        stop = threading.Event()

        def storm() -> None:
            while not stop.is_set():
                raw(address, NONSENSE["huge header"])
                request(address, "/status.json")

        clients = [threading.Thread(target=storm) for _ in range(3)]
        for client in clients:
            client.start()
        longest, last, end = 0.0, time.monotonic(), time.monotonic() + 1.5
        while time.monotonic() < end:
            time.sleep(0.01)
            here.vitals.beat()
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
        stop.set()
        for client in clients:
            client.join()
    assert longest < 1.0
