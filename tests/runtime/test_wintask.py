"""The scheduled task of Windows: what its XML and scripts say; they run on Windows only."""

from __future__ import annotations

import base64
import shlex
from dataclasses import replace
from pathlib import Path, PureWindowsPath
from typing import Any
from xml.etree import ElementTree

import pytest

from ssai3d_rt.errors import ConfigError
from ssai3d_rt.runtime.serviceplan import LOCAL_SERVICE, Plan
from ssai3d_rt.runtime.wintask import (
    INSTALL,
    MARKER,
    UNINSTALL,
    command_of,
    files_of,
    install_script,
    quoted,
    task_of,
    uninstall_script,
    words_of,
)

SPACE = "{http://schemas.microsoft.com/windows/2004/02/mit/task}"


def windows(text: str) -> Any:
    return PureWindowsPath(text)


class Place(PureWindowsPath):
    """A folder or file of Windows that is asked what it is."""

    def is_dir(self) -> bool:
        return not self.suffix


PLAN = Plan(
    name="rig-1",
    config=windows(r"D:\rig & co\it's rig.toml"),
    python=windows(r"C:\Program Files\Python311\python.exe"),
    reads=(Place(r"D:\raw <1>"),),  # type: ignore[arg-type]
    writes=(Place(r"D:\iso"),),  # type: ignore[arg-type]
    needs=(Place(r"D:\rig & co\it's rig.toml"),),  # type: ignore[arg-type]
    account=LOCAL_SERVICE,
)


def tree(plan: Plan) -> ElementTree.Element:
    return ElementTree.fromstring(task_of(plan).encode("utf-16"))


def text(root: ElementTree.Element, path: str) -> str | None:
    return root.findtext("/".join(SPACE + part for part in path.split("/")))


def test_the_task_starts_with_the_machine_and_again_and_steps_back() -> None:
    root = tree(PLAN)
    assert root.tag == f"{SPACE}Task"
    for path, expected in {
        "Triggers/BootTrigger/Repetition/Interval": "PT5M",
        "Settings/MultipleInstancesPolicy": "IgnoreNew",
        "Settings/DisallowStartIfOnBatteries": "false",
        "Settings/StopIfGoingOnBatteries": "false",
        "Settings/ExecutionTimeLimit": "PT0S",
        "Settings/Priority": "7",
        "Settings/RestartOnFailure/Interval": "PT1M",
        "Settings/RestartOnFailure/Count": "255",
        "Principals/Principal/UserId": LOCAL_SERVICE,
        "Principals/Principal/RunLevel": "LeastPrivilege",
    }.items():
        assert text(root, path) == expected, path
    assert text(root, "Principals/Principal/LogonType") is None
    assert str(text(root, "RegistrationInfo/Description")).startswith(MARKER)


def test_names_reach_the_program_as_they_are() -> None:
    root = tree(PLAN)
    assert text(root, "Actions/Exec/Command") == r"C:\Program Files\Python311\python.exe"
    arguments = str(text(root, "Actions/Exec/Arguments"))
    # Windows' rules for quotes are those of a shell here, but for the backslash.
    assert shlex.split(arguments.replace("\\", "/"))[-1] == "D:/rig & co/it's rig.toml"
    assert text(root, "Actions/Exec/WorkingDirectory") == r"C:\Program Files\Python311"


def test_a_users_own_task_starts_when_he_logs_in() -> None:
    root = tree(replace(PLAN, user=True, account="RIG\\me"))
    assert text(root, "Triggers/LogonTrigger/UserId") == "RIG\\me"
    assert text(root, "Principals/Principal/LogonType") == "InteractiveToken"
    assert "Grant '" not in install_script(replace(PLAN, user=True, account="RIG\\me"))


def test_another_account_logs_in_with_its_password() -> None:
    assert text(tree(replace(PLAN, account="LAB\\rig$")), "Principals/Principal/LogonType") == "Password"


def test_the_scripts_give_the_rights_that_are_needed_and_touch_only_what_is_ours() -> None:
    script = install_script(PLAN)
    assert r"Grant 'D:\raw <1>' '(OI)(CI)RX'" in script
    assert r"Grant 'D:\iso' '(OI)(CI)M'" in script
    assert r"Grant 'D:\rig & co\it''s rig.toml' 'RX'" in script
    assert f"'*{LOCAL_SERVICE}'" in script
    for each in (script, uninstall_script(PLAN.name)):
        assert f"StartsWith('{MARKER}')" in each
        assert "$Name = 'rig-1'" in each
        assert each.count("{") == each.count("}")
        assert "{{" not in each
    assert set(files_of(PLAN)) == {"rig-1.xml", INSTALL, UNINSTALL}


@pytest.mark.parametrize("name", ["a'; Remove-Item C:\\ -Recurse; '", "a’b", "‘x‛y‚"])  # noqa: RUF001
def test_a_name_cannot_end_its_quotes(name: str) -> None:
    literal = quoted(name)
    inside = literal[1:-1]
    for quote in "'‘’‚‛":  # noqa: RUF001
        assert quote not in inside.replace(quote * 2, "")


def test_control_characters_are_refused() -> None:
    with pytest.raises(ConfigError, match="cannot stand in a scheduled task"):
        files_of(replace(PLAN, reads=(Path("D:/raw\n1"),)))


def test_a_script_is_handed_over_whole() -> None:
    command = command_of("Write-Output 'µ'\n")
    assert base64.b64decode(command[-1]).decode("utf-16-le") == "Write-Output 'µ'\n"


@pytest.mark.parametrize(
    ("said", "running", "lines"),
    [
        ("{}", False, ["rig is not installed"]),
        ('{"state":4,"result":267009,"ran":"x"}', True, ["rig is installed and is running"]),
        (
            '{"state":3,"result":1,"ran":"2026-01-02T03:04:05"}',
            False,
            [
                "rig is installed and is stopped",
                "it last ended with status 0x1, having been started at 2026-01-02T03:04:05",
            ],
        ),
        (
            '{"state":9,"result":-1073741510,"ran":"x"}',
            False,
            [
                "rig is installed and is in an unknown state",
                "it last ended with status 0xc000013a, having been started at x",
            ],
        ),
    ],
    ids=["absent", "running", "stopped", "killed"],
)
def test_the_state_in_words(said: str, running: bool, lines: list[str]) -> None:
    assert words_of(said, "rig") == (running, lines)


@pytest.mark.parametrize("said", ["", "access denied", "[1]", '{"state":"x"}'])
def test_no_answer_is_said(said: str) -> None:
    with pytest.raises(ConfigError, match="gave no answer"):
        words_of(said, "rig")
