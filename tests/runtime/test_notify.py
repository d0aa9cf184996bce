"""What systemd hears from the daemon, over real sockets."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from ssai3d_rt.runtime.notify import Notifier

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="this system has no Unix sockets")


@contextmanager
def listening(address: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind("\0" + address[1:] if address.startswith("@") else address)
        heard.settimeout(5)
        yield heard


def addresses(tmp_path: Path) -> list[str]:
    abstract = [f"@ssai3d-rt-test-{os.getpid()}"] if sys.platform == "linux" else []
    return [str(tmp_path / "notify"), *abstract]


def test_messages_arrive_in_the_words_of_the_protocol(tmp_path: Path) -> None:
    for address in addresses(tmp_path):
        with listening(address) as heard:
            notifier = Notifier.from_environment({"NOTIFY_SOCKET": address})
            assert notifier.wanted
            assert notifier.ready("watching 2 folders")
            assert notifier.status("cells\nREADY=1\x1b.tif")
            assert notifier.stopping()
            assert [heard.recv(4096) for _ in range(3)] == [
                b"READY=1\nSTATUS=watching 2 folders",
                b"STATUS=cells\\nREADY=1\\x1b.tif",
                b"STOPPING=1",
            ]


def test_a_beat_leaves_three_times_per_interval(tmp_path: Path) -> None:
    with listening(str(tmp_path / "notify")) as heard:
        notifier = Notifier.from_environment({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "30000000"})
        assert notifier.watchdog_s == 30.0
        sent = [now for now in range(100, 131) if notifier.beat(float(now))]
        assert sent == [100, 110, 120, 130]
        assert {heard.recv(64) for _ in sent} == {b"WATCHDOG=1"}


@pytest.mark.parametrize(
    "environment",
    [
        {"NOTIFY_SOCKET": "/x"},
        {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"},
        {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "soon"},
        {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "30000000"},
    ],
    ids=["none", "of another process", "no number", "zero", "no socket"],
)
def test_no_watchdog_no_beat(environment: dict[str, str]) -> None:
    notifier = Notifier.from_environment(environment)
    assert (notifier.watchdog_s, notifier.beat(1.0)) == (None, False)


def test_nobody_there_is_said_once_and_harms_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    address = str(tmp_path / "gone")
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": address})
    with caplog.at_level(logging.WARNING):
        assert not notifier.ready()
        assert not notifier.status("still there")
    assert [address in record.getMessage() for record in caplog.records] == [True]
    with listening(address):
        assert notifier.ready()


def test_other_kinds_of_address_are_refused_in_words(caplog: pytest.LogCaptureFixture) -> None:
    assert not Notifier.from_environment({"NOTIFY_SOCKET": "vsock:2:1234"}).wanted
    assert "vsock:2:1234" in caplog.text


def test_a_full_receiver_does_not_hang_the_daemon(tmp_path: Path) -> None:
    with listening(str(tmp_path / "notify")):
        notifier = Notifier(str(tmp_path / "notify"))
        outcomes = [notifier.status("x" * 500)]
        while outcomes[-1] and len(outcomes) < 10_000:
            outcomes.append(notifier.status("x" * 500))
        assert not outcomes[-1]


def test_a_process_of_its_own_is_heard(tmp_path: Path) -> None:
    program = "from ssai3d_rt.runtime.notify import Notifier; Notifier.from_environment().ready()"
    with listening(str(tmp_path / "notify")) as heard:
        environment = os.environ | {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        subprocess.run([sys.executable, "-c", program], env=environment, check=True)
        assert heard.recv(64) == b"READY=1"
