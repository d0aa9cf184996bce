"""Installing, removing and asking a service: what is written where, what is left alone, and what systemd is told."""

from __future__ import annotations

import getpass
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ssai3d_rt import cli
from ssai3d_rt.errors import ConfigError
from ssai3d_rt.runtime import service, systemd
from ssai3d_rt.runtime.service import ScheduledTasks, ServiceError, Systemd, task_folder
from ssai3d_rt.runtime.serviceplan import Plan, plan_of

if TYPE_CHECKING:
    from ssai3d_rt.export.bundle import Bundle

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="stands in for systemctl with a shell script")

PLAN = Plan("rig", Path("/etc/rig.toml"), Path(sys.executable), (Path("/raw"),), (Path("/iso"),), account="microscope")


class Rig:
    """A machine on which systemd runs, told by what its systemctl was called with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.units = folder / "units"
        self.calls = folder / "calls"
        self.answer = folder / "answer"
        (folder / "run" / "systemd" / "system").mkdir(parents=True)
        self.control = folder / "systemctl"
        self.control.write_text(
            f'#!/bin/sh\necho "$@" >> "{self.calls}"\n'
            f'case "$1" in --version) echo "systemd 252 (252.1)";; show) cat "{self.answer}";; esac\n'
            f'if [ -f "{folder}/broken" ] && [ "$1" = enable ]; then echo "no  such\nunit" >&2; exit 4; fi\n'
        )
        self.control.chmod(0o755)

    def systemd(self) -> Systemd:
        return Systemd(folder=self.units, control=(str(self.control),), root=self.folder)

    def told(self) -> list[str]:
        lines = self.calls.read_text().splitlines() if self.calls.exists() else []
        self.calls.unlink(missing_ok=True)
        return [line for line in lines if line != "--version"]


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_install_again_change_and_uninstall(rig: Rig) -> None:
    lines = rig.systemd().install(PLAN)
    unit = rig.units / "rig.service"
    text = unit.read_text()
    assert text == systemd.unit_of(PLAN, 252)
    assert set(text.splitlines()) <= set(lines)
    assert rig.told() == ["daemon-reload", "enable rig.service", "start --no-block rig.service"]
    assert unit.stat().st_mode & 0o777 == 0o644

    before = unit.stat().st_mtime_ns
    assert "installed already, unchanged" in rig.systemd().install(PLAN)[0]
    assert unit.stat().st_mtime_ns == before
    assert "restart" not in " ".join(rig.told())

    rig.systemd().install(Plan("rig", Path("/etc/other.toml"), *(PLAN.python, PLAN.reads, PLAN.writes), account="me"))
    assert "/etc/other.toml" in unit.read_text()
    assert rig.told()[-1] == "restart --no-block rig.service"

    assert "removed" in rig.systemd().uninstall("rig")[0]
    assert rig.told() == ["disable --now rig.service", "daemon-reload"]
    assert list(rig.units.iterdir()) == []
    assert "is not installed" in rig.systemd().uninstall("rig")[0]


def test_a_dry_run_writes_and_runs_nothing(rig: Rig) -> None:
    lines = rig.systemd().install(PLAN, dry_run=True)
    assert "ExecStart" in "\n".join(lines)
    assert lines[-3].endswith("systemctl daemon-reload")
    assert not rig.units.exists()
    rig.systemd().install(PLAN)
    rig.told()
    assert "would stop" in rig.systemd().uninstall("rig", dry_run=True)[0]
    assert (rig.units / "rig.service").exists()
    assert rig.told() == []


@pytest.mark.parametrize("content", ["[Service]\nExecStart=/bin/true\n", "", b"\xff\xfe"])
def test_what_others_wrote_is_left_alone(content: str | bytes, rig: Rig) -> None:
    rig.units.mkdir()
    unit = rig.units / "rig.service"
    unit.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = unit.read_bytes()
    with pytest.raises(ServiceError, match=r"rig\.service"):
        rig.systemd().install(PLAN)
    with pytest.raises(ServiceError, match=r"rig\.service"):
        rig.systemd().uninstall("rig")
    assert unit.read_bytes() == before
    assert rig.told() == []


def test_without_systemd_it_says_so_and_does_nothing(rig: Rig) -> None:
    (rig.folder / "run" / "systemd" / "system").rmdir()
    (rig.folder / "proc" / "1").mkdir(parents=True)
    (rig.folder / "proc" / "1" / "comm").write_text("init-of-a-container\n")
    words = r"systemd does not run on this machine \(process 1 is init-of-a-container\), so nothing was done"
    with pytest.raises(ServiceError, match=words):
        rig.systemd().install(PLAN)
    with pytest.raises(ServiceError, match=words):
        rig.systemd().status("rig")
    assert not rig.units.exists()
    assert "ExecStart" in "\n".join(rig.systemd().install(PLAN, dry_run=True))


def test_what_systemctl_refuses_is_told(rig: Rig) -> None:
    (rig.folder / "broken").touch()
    with pytest.raises(ServiceError, match=r"systemctl enable rig\.service` failed: no such unit"):
        rig.systemd().install(PLAN)
    with pytest.raises(ServiceError, match="cannot run /none/systemctl"):
        Systemd(folder=rig.units, control=("/none/systemctl",), root=rig.folder).status("rig")


def test_a_folder_that_cannot_be_written_is_told(rig: Rig) -> None:
    rig.units.write_text("")
    with pytest.raises(ServiceError, match=r"rig\.service cannot be"):
        rig.systemd().install(PLAN)


def test_status(rig: Rig) -> None:
    rig.answer.write_text("LoadState=loaded\nUnitFileState=enabled\nActiveState=active\nStatusText=a=b\nMainPID=7\n")
    running, lines = rig.systemd().status("rig")
    assert running
    assert lines[1] == "it says: a=b"
    rig.answer.write_text("LoadState=not-found\nActiveState=inactive\n")
    assert rig.systemd().status("rig") == (False, ["rig is not installed"])


def settings_file(folder: Path, bundle: Bundle, more: str = "") -> Path:
    (folder / "raw").mkdir()
    (folder / "iso").mkdir()
    file = folder / "rig.toml"
    text = f'[watch]\nfolders = ["raw"]\nout = "iso"\nbundle = "{bundle.folder}"\nreserve_bytes = 0\nstop_s = 20\n'
    file.write_text(text + more)
    return file


def test_the_plan_of_a_file(tmp_path: Path, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    more = 'ledger = "local/rig.sqlite"\n[log]\nfile = "iso/rig.log"\n'
    (tmp_path / "local").mkdir()
    settings_file(tmp_path, tiny_bundle, more)
    monkeypatch.chdir(tmp_path)
    plan = plan_of("rig.toml", account="nobody")
    assert plan.config == tmp_path / "rig.toml"
    assert (plan.reads, plan.writes) == ((tmp_path / "raw",), (tmp_path / "iso", tmp_path / "local"))
    assert {tmp_path / "rig.toml", tiny_bundle.folder} == set(plan.needs)
    assert set(plan.fixed) <= set(plan.reads)
    assert Path(sys.prefix) in plan.code
    assert (plan.account, plan.stop_s, plan.open_network, plan.logs) == ("nobody", 20.0, False, True)
    own = plan_of("rig.toml", user=True)
    assert (own.account, own.groups, own.user) == (getpass.getuser(), (), True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "../evil"}, "cannot be a service's name"),
        ({"name": "a b"}, "cannot be a service's name"),
        ({"account": "root"}, "shall not run as root"),
        ({"account": "no-such-account"}, "there is no account 'no-such-account'"),
    ],
    ids=["path", "blank", "root", "unknown account"],
)
def test_a_plan_is_refused(options: dict[str, str], words: str, tmp_path: Path, tiny_bundle: Bundle) -> None:
    file = settings_file(tmp_path, tiny_bundle)
    with pytest.raises(ConfigError, match=words):
        plan_of(file, **({"account": "nobody"} | options))  # type: ignore[arg-type]


def test_a_file_that_is_not_in_order_installs_nothing(tmp_path: Path, tiny_bundle: Bundle) -> None:
    file = settings_file(tmp_path, tiny_bundle, "scna_s = 1\ntrsut = true\n")
    with pytest.raises(ConfigError, match=r'line 7: unknown key "watch.scna_s".*and 1 more'):
        plan_of(file, account="nobody")
    (tmp_path / "iso").rmdir()
    file.write_text(file.read_text().replace("scna_s = 1\ntrsut = true\n", ""))
    with pytest.raises(ConfigError, match="iso does not exist"):
        plan_of(file, account="nobody")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may give a folder away")
def test_it_runs_as_who_the_results_belong_to(tmp_path: Path, tiny_bundle: Bundle) -> None:
    import pwd

    file = settings_file(tmp_path, tiny_bundle)
    with pytest.raises(ConfigError, match="shall not run as root"):
        plan_of(file)
    daemon = pwd.getpwnam("daemon")
    os.chown(tmp_path / "iso", daemon.pw_uid, daemon.pw_gid)
    assert plan_of(file).account == "daemon"
    os.chown(tmp_path / "iso", 54321, 54321)
    with pytest.raises(ConfigError, match="belongs to no account"):
        plan_of(file)


def test_the_commands(
    tmp_path: Path, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rig = Rig(tmp_path / "machine")
    monkeypatch.setattr(service, "manager", lambda user: rig.systemd())
    file = settings_file(tmp_path, tiny_bundle)
    install = ["service", "install", "--config", str(file), "--run-as", "nobody", "--name", "rig"]
    assert cli.main([*install, "--dry-run"]) == 0
    assert f"ExecStart=:{sys.executable} -m ssai3d_rt.cli watch --config {file}" in capsys.readouterr().out
    assert cli.main([*install, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["done"] is True
    rig.answer.write_text("LoadState=loaded\nActiveState=inactive\n")
    assert cli.main(["service", "status", "--name", "rig", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["running"] is False
    assert cli.main(["service", "uninstall", "--name", "rig"]) == 0
    assert not list(rig.units.iterdir())
    assert cli.main(["service", "uninstall", "--name", "../x"]) == 1
    assert "cannot be a service's name" in capsys.readouterr().err


def test_the_files_of_a_scheduled_task(tmp_path: Path) -> None:
    commands: list[list[str]] = []

    def run(command: object) -> tuple[int, str]:
        commands.append(list(command))  # type: ignore[call-overload]
        return (0, "rig is installed\n") if len(commands) < 3 else (1, "Access is\ndenied")

    tasks = ScheduledTasks(run)
    plan = Plan("rig", tmp_path / "rig.toml", Path("python.exe"), (), (), account="LAB\\rig", logs=False)
    assert not task_folder(plan).exists()
    assert "<Task " in "\n".join(tasks.install(plan, dry_run=True))
    assert not task_folder(plan).exists()
    lines = tasks.install(plan)
    assert commands[0][-3:] == [str(task_folder(plan) / "install-service.ps1"), "-RunAs", "LAB\\rig"]
    assert "no log file" in lines[-1]
    assert (task_folder(plan) / "rig.xml").read_bytes()[:2] in (b"\xff\xfe", b"\xfe\xff")
    assert (task_folder(plan) / "install-service.ps1").read_bytes().startswith(b"\xef\xbb\xbf# Written by")
    assert "Unregister" in "\n".join(tasks.uninstall("rig", dry_run=True))
    assert tasks.uninstall("rig") == ["rig is installed"]
    with pytest.raises(ServiceError, match="refused: Access is denied"):
        tasks.status("rig")
