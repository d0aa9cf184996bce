"""Attacks on the health server of a real daemon: forged requests, hostile names, slow and many clients, nonsense."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import resource
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from ssai3d_rt.runtime.probe import note_of
from ssai3d_rt.runtime.publish import STATE_FOLDER
from tests.faults.drill import Outcome, drill
from tests.faults.lab import Daemon, Lab, percentile
from tests.faults.serving import gaps
from tests.runtime.client import place, raw, request, silent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TOKEN = "correct-horse-battery"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
AS_JSON = {"Content-Type": "application/json"}
HOSTILE = (
    b"<script>alert(1).tif",
    b'"><img src=x onerror=alert(1)>.tif',
    b"line\nbreak.tif",
    b"\xff\xfe\x80.tif",
    "\u202etxt.tif".encode(),
    b"{{7*7}}${7*7}.tif",
)
_UNESCAPED = re.compile(rb"<script>alert|<img|onerror=alert\(1\)>|\xff|\n|\xe2\x80\xae")
_LONGEST_GAP_S = 5.0
"""The loop may take so long for one round, on a busy machine; it is called dead after 30 s."""


class Attack:
    """One daemon under attack, and what was seen."""

    def __init__(self, lab: Lab, daemon: Daemon, address: str) -> None:
        self.lab, self.daemon, self.address = lab, daemon, address
        self.complaints: list[str] = []
        self.figures: dict[str, Any] = {}
        self.before = state(lab)

    def expect(self, what: str, ok: object) -> None:
        """Complain where something does not hold."""
        if not ok:
            self.complaints.append(what)

    def unchanged(self, after: str) -> None:
        """Complain where anything but the daemon's own vital signs changed."""
        self.expect(f"state changed by {after}", state(self.lab) == self.before)
        self.expect(f"the daemon died of {after}", self.daemon.alive)


def state(lab: Lab) -> tuple[object, ...]:
    """Everything that a request could change: ledger, submissions, results, raw data."""
    inbox = lab.out / STATE_FOLDER / "inbox"
    words = sorted(path.name for path in inbox.iterdir()) if inbox.is_dir() else []
    return lab.entries(), words, lab.finals(), lab.tree_hash(lab.incoming), lab.paused()


@contextlib.contextmanager
def attacked(lab: Lab) -> Iterator[Attack]:
    """Run a daemon that serves its health and has nothing left to do; what has a hostile name has failed."""
    token = lab.folder / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    lab.stacks(3)
    for number, name in enumerate(HOSTILE):
        path = os.path.join(os.fsencode(lab.incoming), name)
        with open(path, "wb") as file:
            file.write(b"no image, %d" % number)
    prefix: list[str | Path] = [sys.executable, "-m", "tests.faults.serving", token]
    with lab.daemon(prefix=prefix) as daemon:
        lab.wait(lambda: lab.counts() == {"done": 3, "failed": len(HOSTILE)})
        address = json.loads(note_of(lab.out).read_text())["address"]
        lab.wait(lambda: request(address, "/ready").status == 200)
        yield Attack(lab, daemon, address)


@drill(
    row=45, title="HTTP: forged requests and hostile names", bar=14, quick_s=10, full_s=12, needs=("linux", "status")
)
def forged_requests(lab: Lab) -> Outcome:
    """Rebinding Host, foreign Origin, no or a wrong token, paths outside, huge headers, smuggling; markup in names."""
    with attacked(lab) as attack:
        failed = next(entry.path for entry in lab.entries() if entry.state.value == "failed")
        refused = _forge(attack, failed)
        attack.unchanged("forged requests")
        escaped = _names(attack)
        attack.unchanged("questions about names")
        # The control: the same submission, proper and with the token, is seen to change something.
        proper = request(attack.address, "/submit", "POST", _word(failed), BEARER | AS_JSON)
        attack.expect(f"a proper submission was answered {proper.status}", proper.status == 202)
        lab.wait(lambda: state(lab) != attack.before)
        lab.wait(lambda: lab.counts() == {"done": 3, "failed": len(HOSTILE)})
    complaints = attack.complaints + lab.check(done=3)
    figures = {"forged": refused, "names": escaped, "state_changes": 0 if not complaints else None}
    good = f"{refused} forged requests refused, 0 state changes; {escaped} answers with hostile names, 0 unescaped"
    return Outcome(not complaints, figures, "; ".join(complaints[:5]) or good)


def _word(path: Path) -> bytes:
    return json.dumps({"path": str(path)}).encode()


def _forge(attack: Attack, failed: Path) -> int:
    """Send what must be refused; return how many."""
    word, ours = _word(failed), attack.address
    evil, bad = {"Origin": "http://evil.example"}, {"Authorization": "Bearer wrong-wrong-wrong-wrong"}
    cases: list[tuple[str, str, bytes | None, dict[str, str], set[int]]] = [
        ("/submit", "POST", word, AS_JSON, {401}),
        ("/submit", "POST", word, AS_JSON | bad, {401}),
        ("/submit", "POST", word, AS_JSON | {"Authorization": TOKEN}, {401}),
        ("/submit", "POST", word, AS_JSON | BEARER | evil, {403}),
        ("/submit", "POST", word, AS_JSON | BEARER | {"Origin": "null"}, {403}),
        ("/submit", "POST", word, AS_JSON | BEARER | {"Sec-Fetch-Site": "cross-site"}, {403}),
        ("/submit", "POST", word, AS_JSON | BEARER | {"Host": "evil.example"}, {421}),
        ("/submit", "POST", word, BEARER | {"Content-Type": "text/plain"}, {415}),
        ("/submit", "POST", word + b" " * 70_000, AS_JSON | BEARER, {413}),
        ("/submit", "POST", _word(attack.lab.folder / "token"), AS_JSON | BEARER, {403}),
        ("/submit", "POST", _word(attack.lab.incoming / ".." / "token"), AS_JSON | BEARER, {403}),
        (
            f"/submit?path={failed.name!r}".encode("ascii", "ignore").decode().replace(" ", ""),
            "GET",
            None,
            BEARER,
            {405},
        ),
        ("/submit", "GET", None, BEARER, {405}),
        ("/status.json", "GET", None, evil, {403}),
        ("/status.json", "GET", None, bad, {401}),
        ("/status.json", "GET", None, {"Sec-Fetch-Site": "same-site"}, {403}),
        ("/status.json", "DELETE", None, BEARER, {405}),
        ("/status.json", "GET", None, BEARER | {"X": "x" * 60_000}, {400, 431}),
        ("/../../etc/passwd", "GET", None, BEARER, {404}),
        ("/%2e%2e/%2e%2e/etc/passwd", "GET", None, BEARER, {404}),
    ]
    cases += [
        (path, "GET", None, {"Host": host}, {421})
        for path in ("/live", "/ready", "/metrics", "/status.json", "/", "/page.js")
        for host in ("evil.example", "127.0.0.1.evil.example", "localhost@evil.example", "evil.example:9108", "[::2]")
    ]
    for path, method, body, headers, statuses in cases:
        with contextlib.suppress(ConnectionError):  # it hung up on what is too large
            got = request(ours, path, method, body, headers).status
            attack.expect(f"{method} {path} with {sorted(headers)} was answered {got}", got in statuses)
    smuggled = b"POST /submit HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n"
    smuggled += f"Authorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n\r\n".encode()
    smuggled += b"%x\r\n%s\r\n0\r\n\r\n" % (len(word), word)
    inner = b"POST /submit HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + TOKEN.encode()
    inner += b"\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(word), word)
    behind = b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n" + inner
    for data in (smuggled, behind):
        answer = raw(ours, data)
        attack.expect(f"answered {answer[:60]!r} to a smuggled request", b"202" not in answer.split(b"\r\n")[0])
        attack.expect("two answers on one connection", answer.count(b"HTTP/1.1 ") <= 1)
    return len(cases) + 2


def _names(attack: Attack) -> int:
    """Ask for everything, with and without the token; return the number of answers looked at."""
    told = 0
    for path in ("/", "/page.js", "/page.css", "/live", "/ready", "/metrics", "/status.json", "/<script>alert(1)"):
        for headers in ({}, BEARER):
            answer = request(attack.address, path, headers=headers)
            told += 1
            body = answer.body.replace(b"\n", b"") if path not in ("/status.json", "/live", "/ready") else answer.body
            attack.expect(f"unescaped in {path}", not _UNESCAPED.search(body))
            attack.expect(f"{path} may be sniffed", answer.headers.get("x-content-type-options") == "nosniff")
            policy = answer.headers.get("content-security-policy", "")
            attack.expect(f"{path} lacks its policy", policy.startswith("default-src 'none'"))
            named = b"alert" in answer.body or os.fsencode(attack.lab.incoming) in answer.body
            attack.expect(f"names in {path} without need", named == (path == "/status.json" and bool(headers)))
    full = request(attack.address, "/status.json", headers=BEARER).json
    attack.expect("a hostile name is missing", len(full["failed"]) == len(HOSTILE))
    attack.expect("a name breaks its line", all(one["path"].isprintable() for one in full["failed"]))
    return told


@drill(row=45, title="HTTP: slow and many clients", bar=14, quick_s=25, full_s=50, needs=("linux", "status"))
def slow_clients(lab: Lab) -> Outcome:
    """1,000 connections that say nothing, others that drip a byte at a time, while /live is asked and stacks arrive."""
    seconds = 10.0 if lab.quick else 30.0
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 4096), hard), hard))
    with attacked(lab) as attack:
        time.sleep(3.0)
        calm = list(gaps(lab.folder))
        stop = threading.Event()
        drips: list[int] = []
        dripping = [
            threading.Thread(target=_drip, args=(attack.address, stop, drips, number), name="drip")
            for number in range(24)
        ]
        crowd = silent(attack.address, 1000, b"GET /live HT")
        for thread in dripping:
            thread.start()
        lab.stacks(3, first=10)
        waited, end = [], time.monotonic() + seconds
        while time.monotonic() < end:
            began = time.monotonic()
            with contextlib.suppress(OSError):
                answer = request(attack.address, "/live")
                attack.expect(f"/live was answered {answer.status}", answer.status == 200)
                waited.append(time.monotonic() - began)
            crowd += silent(attack.address, 20)
            time.sleep(0.05)
        descriptors = len(os.listdir(f"/proc/{attack.daemon.pid}/fd"))
        stop.set()
        for thread in dripping:
            thread.join()
        for connection in crowd:
            connection.close()
        lab.wait(lambda: lab.counts() == {"done": 6, "failed": len(HOSTILE)})
        attack.expect("the daemon died", attack.daemon.alive)
        seen = list(gaps(lab.folder))[len(calm) :]
    attack.expect("/live was hardly answered", len(waited) > 2 * seconds)
    attack.expect(f"{descriptors} descriptors are open in the daemon", descriptors < 250)
    attack.expect(f"the loop stood still for {max(seen)} s", max(seen) < _LONGEST_GAP_S)
    attack.expect("a dripping client was never cut off", len(drips) > 24)
    complaints = attack.complaints + lab.check(done=6)
    figures = {
        "connections": len(crowd) + len(drips),
        "live_asked": len(waited),
        "live_p99_s": percentile(waited, 0.99),
        "loop_gap_calm_s": max(calm, default=0.0),
        "loop_gap_s": max(seen),
        "descriptors": descriptors,
    }
    answered = (
        f"/live answered {len(waited)} times beside {len(crowd)} silent clients, p99 {figures['live_p99_s']:.3f} s"
    )
    good = f"{answered}; longest gap of the loop {max(seen):.2f} s"
    return Outcome(not complaints, figures, "; ".join(complaints[:5]) or good)


def _drip(address: str, stop: threading.Event, ended: list[int], number: int) -> None:
    """Send a request a byte at a time, for ever; begin again when cut off."""
    said = b"POST /submit HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n\r\n" + b"x" * 9999
    while not stop.is_set():
        with contextlib.suppress(OSError), socket.create_connection(place(address), timeout=5) as connection:
            for byte in said:
                connection.send(bytes([byte]))
                if stop.wait(0.05 + number / 500):
                    return
        ended.append(number)


@drill(row=45, title="HTTP: nonsense", bar=14, quick_s=25, full_s=90, needs=("linux", "status"))
def http_nonsense(lab: Lab) -> Outcome:
    """Real requests with bytes flipped, cut, doubled, spliced or inserted at random, with no token that may write."""
    number, rng = (1500 if lab.quick else 6000), random.Random(45)
    with attacked(lab) as attack:
        path = next(entry.path for entry in lab.entries() if entry.state.value == "failed")
        cases = list(_mutated(rng, number, path))
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda data: raw(attack.address, data, 0.15), cases))
        attack.unchanged("nonsense")
        attack.expect("/live is not answered", request(attack.address, "/live").status == 200)
        seen = list(gaps(lab.folder))
        log = attack.daemon.log
    statuses: dict[str, int] = {}
    for data, answer in zip(cases, answers, strict=True):
        status = match[1].decode() if (match := re.match(rb"HTTP/1\.1 (\d{3}) ", answer)) else "none"
        statuses[status] = statuses.get(status, 0) + 1
        attack.expect(f"answered {status} to {data[:80]!r}", status in {"none", "200", "503"} or status.startswith("4"))
        attack.expect(f"unescaped in the answer to {data[:80]!r}", b"<script>alert" not in answer)
    attack.expect(f"the loop stood still for {max(seen)} s", max(seen) < _LONGEST_GAP_S)
    attack.expect(
        f"the log has {log.count('Traceback')} tracebacks, {log.count('uvicorn')} lines of the server",
        "Traceback" not in log and "uvicorn" not in log,
    )
    attack.expect("all were refused: the nonsense is too wild to reach anything", statuses.get("200", 0) > number / 50)
    complaints = attack.complaints + lab.check(done=3)
    figures = {"requests": number, "statuses": statuses, "loop_gap_s": max(seen), "log_bytes": len(log)}
    good = f"{number} requests, 0 state changes, 0 errors of the server; longest gap of the loop {max(seen):.2f} s"
    return Outcome(not complaints, figures, "; ".join(complaints[:5]) or good)


def _mutated(rng: random.Random, number: int, path: Path) -> Iterator[bytes]:
    word = _word(path)
    head = b" HTTP/1.1\r\nHost: localhost\r\n"
    seeds = [
        b"GET " + target + head + b"\r\n" for target in (b"/live", b"/ready", b"/metrics", b"/", b"/<script>alert")
    ]
    seeds.append(b"GET /status.json" + head + f"Authorization: Bearer {TOKEN}\r\n\r\n".encode())
    seeds.append(b"GET /status.json" + head + b"Origin: http://localhost\r\nSec-Fetch-Site: same-origin\r\n\r\n")
    wrong = b"Authorization: Bearer wrong-wrong-wrong\r\nContent-Type: application/json\r\n"
    seeds.append(b"POST /submit" + head + wrong + b"Content-Length: %d\r\n\r\n%s" % (len(word), word))
    chunks = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(word), word)
    seeds.append(b"POST /submit" + head + wrong + chunks)
    pieces = [
        b"\r\n",
        b"\0",
        b"\xff" * 9,
        b"<script>alert(1)</script>",
        b"%00",
        b"../" * 40,
        b"A" * 3000,
        b": ",
        b"Host: x\r\n",
    ]
    for _ in range(number):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.randint(1, 4)):
            at, to = sorted(rng.randrange(len(data) + 1) for _ in range(2))
            match rng.randrange(6):
                case 0:
                    data[at : at + 1] = rng.randbytes(1)
                case 1:
                    data[at:at] = rng.choice(pieces)
                case 2:
                    del data[at : min(to, at + 20)]
                case 3:
                    data[at:at] = data[at:to]
                case 4:
                    data[at:] = rng.choice(seeds)[at:]
                case _:
                    data = data[: max(4, to)]
        yield bytes(data)
