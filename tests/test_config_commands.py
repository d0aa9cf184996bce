"""The commands about a rig's file of settings, and a watch that has all of its settings in one."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from ssai3d_rt import cli
from tests.runtime.daemon import stack_file

if TYPE_CHECKING:
    from pathlib import Path

    from ssai3d_rt.export.bundle import Bundle


@pytest.fixture
def rig(tmp_path: Path, tiny_bundle: Bundle) -> Path:
    (tmp_path / "raw").mkdir()
    (tmp_path / "cells.ssai3d").symlink_to(tiny_bundle.folder, target_is_directory=True)
    file = tmp_path / "rig.toml"
    text = """
        [watch]
        folders = ["raw"]
        out = "iso"
        bundle = "cells.ssai3d"
        backend = "onnxruntime"
        quiet_s = 0.1
        scan_s = 0.2
        threads = 1
        reserve_bytes = 0
        [log]
        file = "rig.log"
    """
    file.write_text(re.sub(r"(?m)^ +", "", text), encoding="utf-8")
    return file


def test_check(rig: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "check", str(rig)]) == 0
    assert capsys.readouterr().out == f"{rig} is in order\n"
    rig.write_text(rig.read_text().replace("quiet_s", "quite_s").replace("[log]", "[lgo]"))
    assert cli.main(["config", "check", str(rig), "--json"]) == 1
    out, err = capsys.readouterr()
    first, second = json.loads(out)["problems"]
    assert 'line 7: unknown key "watch.quite_s"; did you mean "quiet_s"?' in first
    assert "line 11: unknown table [lgo]; did you mean [log]?" in second
    assert "2 problems" in err
    assert cli.main(["config", "check", str(rig.parent / "none.toml")]) == 1
    assert "does not exist" in capsys.readouterr().err


def test_example_and_show(rig: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "example"]) == 0
    printed = capsys.readouterr().out
    example = ["config", "example", "-o", str(tmp_path / "example.toml")]
    assert cli.main(example) == 0
    assert (tmp_path / "example.toml").read_text() == printed
    assert "config check" in capsys.readouterr().out
    assert cli.main(example) == 1
    assert "exists already" in capsys.readouterr().err
    assert cli.main(["config", "check", str(tmp_path / "example.toml")]) == 1  # its folders are not there
    assert "unknown" not in capsys.readouterr().out
    assert cli.main(["config", "show", str(rig)]) == 0
    out = capsys.readouterr().out
    assert f'out = "{tmp_path / "iso"}"\n' in out
    assert "stop_s = 10.0  # default\n" in out
    assert cli.main(["config", "show", str(rig), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["watch"]["quiet_s"] == 0.1


def test_a_watch_needs_to_know_what_to_watch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rig.toml").write_text('[watch]\nout = "iso"\n')
    assert cli.main(["watch", "--config", str(tmp_path / "rig.toml")]) == 2
    assert "FOLDER, --bundle" in " ".join(capsys.readouterr().err.split())


@pytest.mark.skipif(sys.platform == "win32", reason="ends the process with SIGTERM")
def test_a_watch_from_its_file_alone(rig: Path, tmp_path: Path) -> None:
    stack_file(tmp_path / "raw" / "cells.ome.tif")
    log = tmp_path / "rig.log"
    command = [sys.executable, "-m", "ssai3d_rt.cli", "watch", "--config", str(rig)]
    environment = os.environ | {"SSAI3D_RT_HOME": str(tmp_path), "SSAI3D_RT_CACHE": str(tmp_path / "cache")}
    environment |= {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "300000"}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        with subprocess.Popen(command, cwd="/", env=environment, stdout=subprocess.PIPE, text=True) as process:
            try:
                heard: list[bytes] = []
                deadline = time.monotonic() + 60
                while b"STATUS=1 done" not in heard and time.monotonic() < deadline:
                    assert process.poll() is None
                    heard.append(manager.recv(4096))
                assert b"WATCHDOG=1" in heard
                assert sum(message.startswith(b"READY=1\nSTATUS=") for message in heard) == 1
                process.send_signal(signal.SIGTERM)
                while heard[-1] != b"STOPPING=1":
                    heard.append(manager.recv(4096))
                out, _ = process.communicate(timeout=30)
            finally:
                process.kill()
    assert process.returncode == 0
    assert "stopped; 1 done" in out
    assert len(list((tmp_path / "iso").glob("cells*.tif"))) == 1
    lines = log.read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT[\d:.]+Z (info|warning) ssai3d_rt\.", line) for line in lines)
    assert "watching" in lines[0]
    assert any(" done " in line for line in lines)
    assert lines[-1].endswith("stopped; 1 done")
