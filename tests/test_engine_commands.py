"""`engine list | build | clear`, and what Ctrl-C leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

from ssai3d_rt import cli

if TYPE_CHECKING:
    from pathlib import Path

    from ssai3d_rt.export.bundle import Bundle

pytestmark = pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run a command line in this process: (exit status, stdout, stderr)."""
    status = cli.main(["engine", *arguments])
    out, err = capsys.readouterr()
    return status, out, err


def test_engines_are_built_listed_and_cleared(
    tiny_bundle: Bundle, private_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(capsys, "list")
    assert (status, err) == (0, "")
    assert f"no engine was built yet; they would lie in {private_cache}" in out

    name = str(tiny_bundle.folder)
    status, out, err = run(capsys, "build", name, "--backend", "tensorrt-rtx")
    assert (status, err) == (0, "")
    assert "engine (Turing): 100/100" in out
    assert out.count("built in ") == 2
    assert "MB for SM80, SM86, SM89, SM120: " in out

    status, out, err = run(capsys, "build", name, "--json")
    built = json.loads(out)["engines"]
    assert [engine["new"] for engine in built] == [False, False]
    assert {target for engine in built for target in engine["targets"]} == {"SM75", "SM80", "SM86", "SM89", "SM120"}

    status, out, err = run(capsys, "list")
    assert (status, err) == (0, "")
    for word in ("tiny.ssai3d", tiny_bundle.onnx_sha256[:8], "tensorrt-rtx", "SM75", "64 px", "8 (1-16)", "ok"):
        assert word in out
    status, out, err = run(capsys, "list", "--json")
    listed = json.loads(out)["engines"]
    assert [engine | {"new": False} for engine in listed] == built
    assert all(engine["whole"] and engine["bytes"] > 100_000 for engine in listed)

    with open(listed[0]["path"], "r+b") as file:
        file.write(b"evil")
    status, out, err = run(capsys, "list")
    assert "changed: will be built again" in out

    status, out, err = run(capsys, "clear", "--json")
    cleared = json.loads(out)
    assert (status, err, len(cleared["removed"])) == (0, "", 2)
    assert cleared["bytes"] > sum(engine["bytes"] for engine in listed)
    assert run(capsys, "clear") == (0, "there was nothing to remove\n", "")
    assert json.loads(run(capsys, "list", "--json")[1]) == {"engines": []}


def test_what_is_no_bundle_or_cannot_be_built_for_is_one_line(
    tiny_bundle: Bundle, private_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(capsys, "build", str(tmp_path))
    assert (status, out, len(err.splitlines())) == (1, "", 1)
    if find_spec("tensorrt") is None:
        status, out, err = run(capsys, "build", str(tiny_bundle.folder), "--backend", "tensorrt")
        assert (status, out) == (1, "")
        assert err == 'ssai3d-rt: tensorrt is not installed; run: pip install "ssai3d-rt[tensorrt]"\n'
    status, out, err = run(capsys, "build", str(tiny_bundle.folder), "--backend", "openvino")
    assert (status, out) == (2, "")
    assert not (private_cache / "engines").exists() or not list((private_cache / "engines").iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="a process cannot be sent Ctrl-C alone")
def test_ctrl_c_stops_the_build_and_leaves_nothing(tiny_bundle: Bundle, private_cache: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "ssai3d_rt.cli", "engine", "build", os.fspath(tiny_bundle.folder)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "engine (Ampere to Blackwell): 0/100\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    assert err == "ssai3d-rt: interrupted\n"
    left = [path for path in (private_cache / "engines").iterdir() if path.name.startswith(".")]
    assert left == []
    assert "Turing" not in out
