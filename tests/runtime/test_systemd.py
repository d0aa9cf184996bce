"""The unit of systemd, judged by systemd's own tools where they are installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest

from ssai3d_rt.errors import ConfigError
from ssai3d_rt.runtime.serviceplan import Plan
from ssai3d_rt.runtime.systemd import MARKER, unit_of, word, words_of

ANALYZE = shutil.which("systemd-analyze")
needs_analyze = pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed")


def plan(**changes: object) -> Plan:
    values: dict[str, object] = {
        "name": "ssai3d-rt",
        "config": Path("/etc/ssai3d-rt/rig.toml"),
        "python": Path(sys.executable),
        "reads": (Path("/data/raw"),),
        "fixed": (Path("/data/raw"),),
        "writes": (Path("/data/isotropic"),),
        "account": "microscope",
    }
    return Plan(**(values | changes))  # type: ignore[arg-type]


def keys(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key, value in re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE):
        found.setdefault(key, []).append(value)
    return found


def written(folder: Path, what: Plan, version: int = 252) -> Path:
    file = folder / f"{what.name}.service"
    file.write_text(unit_of(what, version), encoding="utf-8")
    return file


def exposure(file: Path) -> float:
    assert ANALYZE
    done = subprocess.run(
        [ANALYZE, "security", "--offline=true", "--no-pager", str(file)], capture_output=True, text=True, check=False
    )
    found = re.search(r"Overall exposure level for .*: ([\d.]+)", done.stdout)
    assert found, done.stderr
    return float(found[1])


CASES = {
    "plain": plan(),
    "groups": plan(groups=("video", "render")),
    "in a home": plan(config=Path("/home/me/rig.toml"), needs=(Path("/home/me/rig.toml"),)),
    "health page for others": plan(open_network=True),
}


@needs_analyze
@pytest.mark.parametrize("case", CASES)
def test_systemd_finds_it_well_protected(case: str, tmp_path: Path) -> None:
    assert exposure(written(tmp_path, CASES[case])) <= 2.0


@needs_analyze
def test_the_measure_can_fail(tmp_path: Path) -> None:
    file = tmp_path / "open.service"
    file.write_text("[Service]\nExecStart=/bin/true\n")
    assert exposure(file) > 9.0


@needs_analyze
@pytest.mark.parametrize("user", [False, True], ids=["of the machine", "of a user"])
def test_systemd_understands_every_line(user: bool, tmp_path: Path) -> None:
    assert ANALYZE
    what = plan(user=user, config=tmp_path / 'r "i" %g.toml', writes=(Path("/data/50% of it"), Path("/data/i s o")))
    file = written(tmp_path, what)
    command = [ANALYZE, "verify", *(["--user"] if user else []), str(file)]
    environment = os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert file.name not in done.stderr
    file.write_text(file.read_text() + "[Service]\nNonsense=yes\n")
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert "Nonsense" in done.stderr


SYSTEMD = Path("/usr/lib/systemd/systemd")
ODD = r"""/etc/a b/r%i"g\$HOME ${x} 'x'µ;.toml"""


@pytest.mark.skipif(
    not SYSTEMD.exists() or not hasattr(os, "geteuid") or os.geteuid() != 0 or not shutil.which("setpriv"),
    reason="needs systemd itself, and root to run it as nobody",
)
def test_odd_names_reach_the_program_as_they_are(tmp_path: Path) -> None:
    import tempfile

    odd = (Path('/data/50% of "raw" \\ $x'), Path("/data/-;#"))
    with tempfile.TemporaryDirectory() as place:  # nobody may look into tmp_path
        folder = Path(place)
        folder.chmod(0o755)
        (folder / "run").mkdir()
        os.chown(folder / "run", 65534, 65534)
        written(folder, plan(name="odd", config=Path(ODD), python=Path("/bin/sh"), reads=odd, fixed=odd)).chmod(0o644)
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        environment = {"SYSTEMD_UNIT_PATH": f"{folder}:", "XDG_RUNTIME_DIR": str(folder / "run"), "LC_ALL": "C.UTF-8"}
        done = subprocess.run(
            [*command, str(SYSTEMD), "--test", "--system", "--unit=odd.service"],
            capture_output=True,
            text=True,
            env=environment | {"PATH": os.environ["PATH"]},
            check=False,
        )
    unit = done.stdout[done.stdout.index("Unit odd.service") :]
    assert f"ReadOnlyPaths: -{odd[0]} -{odd[1]}\n" in unit
    line = next(line for line in unit.splitlines() if "Command Line: /bin/sh -m ssai3d_rt.cli" in line)
    shown_there = line.partition("--config ")[2]  # as a shell would want it
    heard = subprocess.run(["/bin/sh", "-c", f"printf %s {shown_there}"], capture_output=True, text=True, check=True)
    assert heard.stdout == ODD


def test_what_the_unit_says() -> None:
    found = keys(unit_of(plan(groups=("render",), stop_s=30), 254))
    assert found["ExecStart"] == [f":{sys.executable} -m ssai3d_rt.cli watch --config /etc/ssai3d-rt/rig.toml"]
    assert (found["Type"], found["Restart"], found["StartLimitIntervalSec"]) == (["notify"], ["always"], ["0"])
    assert (found["RestartSteps"], found["RestartMaxDelaySec"]) == (["8"], ["300"])
    assert found["TimeoutStopSec"] == ["90"]
    assert (found["ReadOnlyPaths"], found["ReadWritePaths"]) == (["-/data/raw"], ["/data/isotropic"])
    assert (found["User"], found["SupplementaryGroups"]) == (["microscope"], ["render"])
    assert found["DeviceAllow"] == ["char-nvidia* rw"]
    assert found["IPAddressAllow"] == ["localhost"]
    assert found["WantedBy"] == ["multi-user.target"]
    # A GPU's driver and compiler need these; RemoveIPC would take what others of the same account share.
    assert not {"PrivateDevices", "MemoryDenyWriteExecute", "RemoveIPC", "ProcSubset"} & found.keys()


def test_an_older_systemd_is_not_told_what_it_does_not_know() -> None:
    found = keys(unit_of(plan(), 252))
    assert "RestartSteps" not in found
    assert found["RestartSec"] == ["30"]


def test_a_users_own_unit_asks_for_nothing_that_takes_root() -> None:
    found = keys(unit_of(plan(user=True)))
    assert found["WantedBy"] == ["default.target"]
    assert not {
        "User",
        "CapabilityBoundingSet",
        "ProtectSystem",
        "DevicePolicy",
        "ProtectClock",
        "ReadOnlyPaths",
    } & set(found)
    assert {"NoNewPrivileges", "SystemCallFilter", "MemoryMax", "Nice"} <= set(found)


@pytest.mark.parametrize(
    ("changes", "home", "temporary"),
    [
        ({}, "yes", "yes"),
        ({"writes": (Path("/home/me/iso"),)}, "read-only", "yes"),
        ({"code": (Path("/root/.venv"),)}, "read-only", "yes"),
        ({"needs": (Path("/tmp/x/rig.toml"),)}, "yes", "no"),
        ({"reads": (Path("/homes/me"), Path("/tmpfs"))}, "yes", "yes"),
    ],
    ids=["elsewhere", "home", "root", "tmp", "only alike"],
)
def test_folders_of_its_own_stay_visible(changes: dict[str, object], home: str, temporary: str) -> None:
    found = keys(unit_of(plan(**changes)))
    assert (found["ProtectHome"], found["PrivateTmp"]) == ([home], [temporary])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/data/raw-1.2", "/data/raw-1.2"),
        ("/data/a b", '"/data/a b"'),
        ("/100%", '"/100%%"'),
        ("C:\\x", '"C:\\\\x"'),
        ("", '""'),
        (PurePosixPath("/µ"), '"/µ"'),
    ],
)
def test_words(text: str | PurePosixPath, expected: str) -> None:
    assert word(text) == expected


@pytest.mark.parametrize("text", ["/a\nExecStartPre=/bin/evil", "/a\x1b", "/a\udc80"])
def test_a_name_cannot_add_a_line(text: str) -> None:
    with pytest.raises(ConfigError, match="cannot stand in a systemd unit"):
        unit_of(plan(writes=(Path(text),)))


def test_a_folder_whose_share_may_go_away_is_not_pinned() -> None:
    text = unit_of(plan(reads=(Path("/data/raw"), Path("/mnt/share/a\nb")), fixed=(Path("/data/raw"),)))
    assert keys(text)["ReadOnlyPaths"] == ["-/data/raw"]
    assert "# /mnt/share/a\\nb is not named" in text


def test_it_begins_with_the_marker() -> None:
    assert unit_of(plan()).startswith(MARKER)


SAID = {
    "not there": ({"LoadState": "not-found"}, ["rig is not installed"]),
    "running": (
        {
            "LoadState": "loaded",
            "UnitFileState": "enabled",
            "ActiveState": "active",
            "SubState": "running",
            "MainPID": "77",
            "ActiveEnterTimestamp": "Mon 10:00",
            "StatusText": "3 done\x1b",
            "NRestarts": "2",
            "ExecMainExitTimestamp": "Mon 09:59",
            "ExecMainCode": "2",
            "ExecMainStatus": "9",
            "Result": "success",
        },
        [
            "rig is installed, starts with the machine, and is running since Mon 10:00, process 77",
            "it says: 3 done\\x1b",
            "started again 2 times since the machine or the service was started",
            "it last ended by signal 9 at Mon 09:59",
        ],
    ),
    "killed by the watchdog": (
        {
            "LoadState": "loaded",
            "UnitFileState": "disabled",
            "ActiveState": "activating",
            "SubState": "auto-restart",
            "NRestarts": "0",
            "ExecMainExitTimestamp": "Mon 09:59",
            "ExecMainCode": "2",
            "ExecMainStatus": "6",
            "Result": "watchdog",
        },
        [
            "rig is installed, does not start by itself, and is waiting to be started again",
            "it last ended by signal 6 at Mon 09:59; it had said nothing for too long and was killed",
        ],
    ),
    "broken": (
        {"LoadState": "bad-setting", "ActiveState": "inactive", "ExecMainExitTimestamp": "n/a"},
        [
            "rig is installed, does not start by itself, and is stopped",
            "systemd cannot use its file (bad-setting); install it again",
        ],
    ),
}


@pytest.mark.parametrize("case", SAID)
def test_the_state_in_words(case: str) -> None:
    properties, lines = SAID[case]
    assert words_of(properties, "rig") == lines
