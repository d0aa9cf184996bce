"""The command line's promises: help with an example, exit codes, one line on stderr, JSON as the last line."""

from __future__ import annotations

import io
import json
import logging
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import pytest

import ssai3d_rt
from ssai3d_rt import cli, console
from ssai3d_rt.commands import house
from ssai3d_rt.errors import InputError
from tests.command_lines import parse

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[..., tuple[int, str, str]]

ALL = (
    "demo",
    "calibrate",
    "finetune",
    "export",
    "restore",
    "watch",
    "compare",
    "bench",
    "submit",
    "status",
    "doctor",
    "weights list",
    "weights import",
    "weights pretrain",
    "engine list",
    "engine build",
    "engine clear",
    "surgeon rank",
    "surgeon train",
    "config check",
    "config example",
    "config show",
    "service install",
    "service uninstall",
    "service status",
    "version",
)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command line in this process: (exit status, stdout, stderr)."""
    monkeypatch.setenv("SSAI3D_RT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "120")

    def call(*arguments: str) -> tuple[int, str, str]:
        status = cli.main(list(arguments))
        out, err = capsys.readouterr()
        return status, out, err

    return call


def test_the_commands_are_those_documented() -> None:
    assert sorted(cli.EXAMPLES) == sorted(ALL)


@pytest.mark.parametrize("command", ALL)
def test_help_has_an_example_of_itself(command: str, run: Run) -> None:
    status, out, err = run(*command.split(), "--help")
    assert (status, err) == (0, "")
    text = " ".join(out.split())
    assert f"Example: ssai3d-rt {command}" in text
    assert "--debug" in text


@pytest.mark.parametrize("command", ALL)
def test_the_example_parses(command: str) -> None:
    program, *arguments = shlex.split(cli.EXAMPLES[command])
    assert program == "ssai3d-rt"
    assert parse(arguments) == command


def test_version(run: Run) -> None:
    status, out, err = run("--version")
    assert (status, out, err) == (0, f"ssai3d-rt {ssai3d_rt.__version__}\n", "")
    status, out, _ = run("version", "--json")
    assert json.loads(out) == {"version": ssai3d_rt.__version__}


def test_doctor(run: Run) -> None:
    status, out, err = run("doctor", "--json")
    report = json.loads(out.splitlines()[-1])
    assert status == (0 if report["can_restore"] else 1)
    assert len(err.splitlines()) == status
    checks = {(c["group"], c["name"]): c for c in report["checks"]}
    assert checks["packages", "core"]["state"] == "ok"
    assert {"cpu", "train", "tensorrt", "tensorrt-rtx", "demo"} <= {
        name for group, name in checks if group == "packages"
    }
    for check in report["checks"]:
        assert (check["state"] == "ok") <= (check["next_step"] == "")
    status, out, _ = run("doctor")
    assert "machine" in out
    assert "backends" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["restor"], "restore"),
        (["restore"], "STACK"),
        (["calibrate", "cells.tif", "--voxelz", "3"], "--voxel-z"),
        (["finetune", "cells.tif", "-o", "m", "--layers", "most"], "most"),
        (["export", "model", "-o", "x.ssai3d", "--engine", "cuda"], "cuda"),
    ],
    ids=["command", "argument", "option", "layers", "engine"],
)
def test_wrong_usage_exits_with_2_and_says_what(arguments: list[str], said: str, run: Run) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert said in err
    assert "Traceback" not in err


def test_an_expected_failure_is_one_line(run: Run, tmp_path: Path) -> None:
    missing = tmp_path / "nothing.tif"
    status, out, err = run("calibrate", str(missing), "-o", str(tmp_path / "rig.toml"))
    assert (status, out) == (1, "")
    assert len(err.splitlines()) == 1
    assert str(missing) in err
    assert not (tmp_path / "rig.toml").exists()


def test_an_unexpected_failure_is_one_line_and_its_traceback_is_saved(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(record: object, **options: object) -> None:
        raise ZeroDivisionError("planted\nhere")

    monkeypatch.setattr(console, "emit", broken)
    status, out, err = run("version")
    assert (status, out) == (1, "")
    assert len(err.splitlines()) == 1
    saved = re.search(r"its traceback is in (\S+)", err)
    assert saved is not None
    assert saved[1].startswith(str(tmp_path / "home"))
    assert "ZeroDivisionError: planted" in Path(saved[1]).read_text(encoding="utf-8")
    status, _, err = run("version", "--debug")
    assert status == 1
    assert "Traceback (most recent call last)" in err


def test_a_file_that_the_system_refuses_is_an_expected_failure(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(record: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / "x"))

    monkeypatch.setattr(console, "emit", refused)
    assert run("version") == (1, "", f"ssai3d-rt: Permission denied: {tmp_path / 'x'}\n")


def test_a_message_of_several_lines_becomes_one(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(record: object, **options: object) -> None:
        raise InputError("first\n   second")

    monkeypatch.setattr(console, "emit", broken)
    assert run("version") == (1, "", "ssai3d-rt: first second\n")


def test_ctrl_c_exits_with_130_and_a_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(record: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(console, "emit", interrupted)
    assert run("version") == (130, "", "ssai3d-rt: interrupted\n")


def test_the_demo_offers_every_source() -> None:
    from ssai3d_rt.demo.microscope import SOURCES

    assert sorted(get_args(house.Source)) == sorted(SOURCES)


def test_logs_are_lines_on_stderr_and_leave_nothing_behind(capsys: pytest.CaptureFixture[str]) -> None:
    package = logging.getLogger("ssai3d_rt")
    before = (list(package.handlers), package.level, package.propagate)
    log = logging.getLogger("ssai3d_rt.runtime.backends")
    with console.logs_to_stderr(logging.WARNING):
        log.warning("%s is passed over:\n %s", "openvino", "no numbers")
        log.info("not shown")
        with console.logs_to_stderr(logging.INFO, timed=True):
            log.info("shown")
    out, err = capsys.readouterr()
    assert out == ""
    first, second = err.splitlines()
    assert first == "warning: openvino is passed over: no numbers"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d shown", second)
    assert (list(package.handlers), package.level, package.propagate) == before


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_progress_is_lines_without_a_terminal() -> None:
    stream = io.StringIO()
    with console.progress_to(stream) as progress:
        for done in range(1, 101):
            progress(f"fine-tune, loss {-done / 10:.1f} dB", done, 100)
    assert stream.getvalue().splitlines() == ["fine-tune, loss -0.1 dB: 1/100", "fine-tune, loss -10.0 dB: 100/100"]


def test_progress_is_a_bar_per_stage_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with console.progress_to(stream) as progress:
        progress("restore", 1, 4)
        progress("publish", 0, 1)
        progress("restore", 4, 4)
    assert "restore" in stream.getvalue()
    assert "4/4" in stream.getvalue()
    assert "publish" in stream.getvalue()


def test_json_keeps_stdout_for_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress_bar(as_json=True) as progress:
        progress("restore", 1, 1)
    console.emit({"stacks": 1, "path": Path("a")}, as_json=True)
    out, err = capsys.readouterr()
    assert (json.loads(out), err) == ({"stacks": 1, "path": "a"}, "")


@pytest.fixture(scope="module")
def spots(shared_data: Path) -> Path:
    """A real stack of spots."""
    return shared_data / "stacks" / "xyz_16bit__spots.tif"


def test_calibrate_writes_a_profile_and_a_picture(run: Run, spots: Path, tmp_path: Path) -> None:
    status, out, err = run("calibrate", str(spots), "-o", str(tmp_path / "new" / "rig.toml"), "--json")
    assert (status, err) == (0, "")
    result = json.loads(out)
    assert result["profile"]["voxel_um"][0] == pytest.approx(0.4)
    assert result["profile"]["axial_um"] > result["profile"]["lateral_um"]
    assert Path(result["rig"]).read_text(encoding="utf-8").startswith("#")
    assert Path(result["picture"]).stat().st_size > 10_000


@pytest.mark.parametrize("command", ["calibrate", "restore", "finetune"])
def test_a_stack_without_spacing_is_refused_with_its_name_and_the_option(
    command: str, run: Run, shared_data: Path, tmp_path: Path
) -> None:
    stack = shared_data / "stacks" / "xyz_8bit__mitotic_plate_badZcalibrated.tif"
    pytest.importorskip("torch", reason="without a bundle restore needs the base network")
    status, out, err = run(command, str(stack), "-o", str(tmp_path / "out"))
    assert (status, out) == (1, "")
    assert len(err.splitlines()) == 1
    assert str(stack) in err
    assert "--voxel-z" in err
    assert not (tmp_path / "out").exists()


def test_far_planes_are_calibrated_with_a_warning(run: Run, shared_data: Path, tmp_path: Path) -> None:
    stack = shared_data / "stacks" / "xyz_8bit__mitotic_plate_badZcalibrated.tif"
    status, out, err = run("calibrate", str(stack), "-o", str(tmp_path / "rig.toml"), "--voxel-z", "3.0")
    assert status == 0
    assert "35x anisotropy" in err
    assert all(line.startswith("warning: ") for line in err.splitlines())
    assert "rig.toml" in out


def test_a_channel_that_is_not_there_is_refused(run: Run, shared_data: Path, tmp_path: Path) -> None:
    stack = shared_data / "stacks" / "xyzc_16bit__spots.tif"
    status, _, err = run("calibrate", str(stack), "-o", str(tmp_path / "rig.toml"), "--channel", "7")
    assert status == 1
    assert "2 channels" in err


def test_the_job_by_its_commands(run: Run, spots: Path, tmp_path: Path) -> None:
    """Fine-tune, export, restore, submit and status: each hands the next what it needs."""
    pytest.importorskip("torch", reason="fine-tuning needs it")
    model, bundle, out = tmp_path / "model", tmp_path / "spots.ssai3d", tmp_path / "iso"
    status, text, err = run("finetune", str(spots), "-o", str(model), "--iterations", "2", "--targets", "raw", "--json")
    assert (status, err.replace("\n", "")) == (0, "") or "base network" in err
    tuned = json.loads(text)
    assert tuned["iterations"] == 2
    assert 0 < tuned["trained_parameters"] < tuned["total_parameters"]

    status, text, err = run("export", str(model), "-o", str(bundle), "--tile", "96")
    assert (status, err) == (0, "")
    assert f"bundle: {bundle}" in text
    assert re.search(r"^precision: 0 of 239 tensors stay FP32; the highest value is \d+", text, re.MULTILINE)
    assert str(bundle / "precision.png") in text.replace("\n", "")
    status, _, err = run("export", str(model), "-o", str(bundle))
    assert status == 1
    assert "--overwrite" in err

    status, text, err = run("restore", str(spots), "-o", str(out), "--bundle", str(bundle), "--trust", "--json")
    assert (status, err) == (0, "")
    (report,) = json.loads(text.splitlines()[-1])["stacks"]
    restored = ssai3d_rt.read_stack(report["result"])
    raw = ssai3d_rt.read_stack(spots)
    assert restored.data.dtype == raw.data.dtype
    assert restored.data.shape == (raw.isotropic_planes, *raw.data.shape[1:])
    assert restored.voxel_um == pytest.approx((raw.lateral_um,) * 3)
    assert Path(report["trust"]).is_file()
    status, _, err = run("restore", str(spots), "-o", str(out), "--bundle", str(bundle))
    assert status == 1
    assert "exists already" in err

    status, _, err = run("status", str(out))
    assert status == 1
    assert "ledger" in err
    status, text, _ = run("submit", str(spots), "-o", str(out), "--json")
    assert status == 0
    assert Path(json.loads(text)["word"]).is_file()


@pytest.mark.parametrize(
    ("settings", "said"),
    [("[watch]\nquiet = 1\n", "quiet_s"), ("[wach]\nquiet_s = 1\n", "[watch]"), ("[watch\n", "not valid TOML")],
    ids=["key", "table", "syntax"],
)
def test_watch_refuses_wrong_settings(settings: str, said: str, run: Run, tmp_path: Path) -> None:
    config = tmp_path / "watch.toml"
    config.write_text(settings, encoding="utf-8")
    arguments = ["watch", str(tmp_path), "-o", str(tmp_path / "iso"), "--bundle", "x.ssai3d", "--config", str(config)]
    status, out, err = run(*arguments)
    assert (status, out) == (1, "")
    assert said in err
    assert str(config) in err


def test_finetune_never_goes_on_or_begins_anew_unasked(run: Run, spots: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="fine-tuning needs it")
    status, _, err = run("finetune", str(spots), "-o", str(tmp_path), "--resume")
    assert status == 1
    assert "--resume" in err
    (tmp_path / "checkpoint.pt").write_bytes(b"")
    status, _, err = run("finetune", str(spots), "-o", str(tmp_path))
    assert status == 1
    assert "--resume" in err


def test_a_backend_without_a_bundle_is_refused(run: Run, spots: Path, tmp_path: Path) -> None:
    status, out, err = run("restore", str(spots), "-o", str(tmp_path / "iso"), "--backend", "openvino")
    assert (status, out) == (1, "")
    assert "--bundle" in err


def test_weights_are_listed_and_imported(run: Run, shared_data: Path) -> None:
    pytest.importorskip("safetensors", reason="weights are kept in it")
    status, out, _ = run("weights", "list", "--json")
    assert status == 0
    base = json.loads(out)["bases"][0]
    assert (base["name"], base["shipped"]) == ("base", True)
    status, out, err = run("weights", "import", base["path"], "--name", "mine")
    assert (status, err) == (0, "")
    assert "--base mine" in out
    status, out, _ = run("weights", "list")
    assert "mine" in out
    status, _, err = run("weights", "import", str(shared_data / "README.md"))
    assert status == 1
    assert "README.md" in err
