"""The daemon as a service of the machine: install, uninstall, status; started with the machine and looked after.

On Linux a unit of systemd, on Windows a scheduled task. Nothing is replaced or removed that was not written from here.
What is to run says `ssai3d_rt.runtime.serviceplan`; the texts come from `ssai3d_rt.runtime.systemd` and
`ssai3d_rt.runtime.wintask`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from ssai3d_rt.errors import Ssai3dError
from ssai3d_rt.imaging.openfile import shown
from ssai3d_rt.runtime import systemd, wintask
from ssai3d_rt.runtime.serviceplan import LOCAL_SERVICE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ssai3d_rt.runtime.serviceplan import Plan


class ServiceError(Ssai3dError):
    """The service manager refused, is not there, or holds something of the same name that is not ours."""


class Systemd:
    """The services of systemd.

    Parameters
    ----------
    user
        The user's own, or the machine's.
    folder
        Where units lie; by default where systemd looks for those of an administrator or user.
    control
        The command that controls systemd.
    root
        Where the file system begins, to find out whether systemd runs.
    """

    def __init__(
        self,
        *,
        user: bool = False,
        folder: Path | None = None,
        control: Sequence[str] = ("systemctl",),
        root: Path = Path("/"),
    ) -> None:
        own = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "systemd" / "user"
        self._folder = folder or (own if user else Path("/etc/systemd/system"))
        self._control = [*control, *(["--user"] if user else [])]
        self._root = root

    def install(self, plan: Plan, *, dry_run: bool = False) -> list[str]:
        """Write a plan's unit, start it, and have it started with the machine; say what was done.

        Doing it again changes nothing; after a change of the settings the service is started anew.

        Raises
        ------
        ServiceError
            systemd does not run here or refuses, or a unit of that name was not written from here.
        """
        file = self._file(plan.name)
        text = systemd.unit_of(plan, self._version())
        before = self._ours(file)
        unit = file.name
        steps = [
            ["daemon-reload"],
            ["enable", unit],
            ["start" if before in (None, text) else "restart", "--no-block", unit],
        ]
        shown_unit = [f"{shown(file)}:", "", *text.splitlines(), ""]
        if dry_run:
            return [*shown_unit, *(f"then: {' '.join([*self._control, *step])}" for step in steps)]
        self._require()
        if before != text:
            _write(file, text)
        for step in steps if before != text else steps[1:]:
            self._run(*step)
        if before == text:
            return [f"{plan.name} was installed already, unchanged ({shown(file)})"]
        return [*shown_unit, f"{plan.name} is installed and starts now; see: ssai3d-rt service status"]

    def uninstall(self, name: str, *, dry_run: bool = False) -> list[str]:
        """Stop a service and remove its unit; results, ledger, settings and logs stay.

        Raises
        ------
        ServiceError
            As `install`.
        """
        file = self._file(name)
        if self._ours(file) is None:
            return [f"{name} is not installed ({shown(file)} does not exist)"]
        if dry_run:
            return [f"would stop {name} and remove {shown(file)}"]
        self._require()
        self._run("disable", "--now", file.name)
        try:
            file.unlink()
        except OSError as error:
            raise ServiceError(f"{shown(file)} cannot be removed: {error.strerror or error}") from None
        self._run("daemon-reload")
        return [f"{name} is stopped and removed; results, ledger, settings and logs stay"]

    def status(self, name: str) -> tuple[bool, list[str]]:
        """Return whether a service runs, and in words how it is.

        Raises
        ------
        ServiceError
            systemd does not run here.
        """
        self._require()
        said = self._run("show", "--property", ",".join(systemd.PROPERTIES), f"{name}.service")
        properties = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
        return properties.get("ActiveState") == "active", systemd.words_of(properties, name)

    def _file(self, name: str) -> Path:
        return self._folder / f"{name}.service"

    def _ours(self, file: Path) -> str | None:
        """Return the text of a unit that was written from here, None where there is none."""
        try:
            text = file.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise ServiceError(f"{shown(file)} cannot be read: {error}") from None
        if not text.startswith(systemd.MARKER):
            raise ServiceError(
                f"{shown(file)} was not written by `ssai3d-rt service install` and is left alone; choose another --name"
            )
        return text

    def _require(self) -> None:
        if not (self._root / "run" / "systemd" / "system").is_dir():
            first = self._root / "proc" / "1" / "comm"
            who = f" (process 1 is {shown(first.read_text().strip())})" if first.is_file() else ""
            raise ServiceError(
                f"systemd does not run on this machine{who}, so nothing was done; --dry-run shows the unit, and any"
                " other supervisor can run `ssai3d-rt watch` with the same --config"
            )

    def _version(self) -> int:
        """Return systemd's version; where it cannot be asked, one that knows all that is written."""
        try:
            said = subprocess.run([*self._control, "--version"], capture_output=True, text=True, check=False).stdout
        except OSError:
            return systemd.STEPS_SINCE
        number = re.match(r"systemd (\d+)", said)
        return int(number[1]) if number else systemd.STEPS_SINCE

    def _run(self, *arguments: str) -> str:
        command = [*self._control, *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise ServiceError(f"cannot run {command[0]}: {error.strerror or error}") from None
        if done.returncode:
            said = " ".join(done.stderr.split()) or f"status {done.returncode}"
            raise ServiceError(f"`{' '.join(command)}` failed: {said}")
        return done.stdout


class ScheduledTasks:
    """The scheduled tasks of Windows; on any other system their files can be looked at only.

    Parameters
    ----------
    run
        Runs a command, and returns its exit status and what it said.
    """

    def __init__(self, run: Callable[[Sequence[str]], tuple[int, str]] | None = None) -> None:
        self._run_command = run or _said

    def install(self, plan: Plan, *, dry_run: bool = False) -> list[str]:
        """Write a task's files beside the file of settings, and run the script that installs it; say what was done.

        Raises
        ------
        ServiceError
            The script failed, or a file cannot be written.
        """
        folder = task_folder(plan)
        files = wintask.files_of(plan)
        if dry_run:
            return [
                line for name, text in files.items() for line in (f"{shown(folder / name)}:", "", *text.splitlines())
            ]
        for name, text in files.items():
            _write(folder / name, text, encoding="utf-16" if name.endswith(".xml") else "utf-8-sig")
        run_as = [] if plan.user or plan.account == LOCAL_SERVICE else ["-RunAs", plan.account]
        said = self._run([*wintask.POWERSHELL, "-File", str(folder / wintask.INSTALL), *run_as])
        warning = [] if plan.logs else ["it has no log file: nothing is kept of what it says; set `file` in [log]"]
        return [f"wrote {shown(folder)}", *said.splitlines(), *warning]

    def uninstall(self, name: str, *, dry_run: bool = False) -> list[str]:
        """Run the script that stops and removes the task.

        Raises
        ------
        ServiceError
            The script failed.
        """
        script = wintask.uninstall_script(name)
        if dry_run:
            return script.splitlines()
        return self._run(wintask.command_of(script)).splitlines()

    def status(self, name: str) -> tuple[bool, list[str]]:
        """Return whether a task runs, and in words how it is.

        Raises
        ------
        ServiceError
            The task scheduler did not answer.
        """
        return wintask.words_of(self._run(wintask.command_of(wintask.status_script(name))), name)

    def _run(self, command: Sequence[str]) -> str:
        status, said = self._run_command(command)
        if status:
            raise ServiceError(f"the task scheduler refused: {shown(' '.join(said.split())) or f'status {status}'}")
        return said


def manager(*, user: bool = False) -> Systemd | ScheduledTasks:
    """Return what manages services on this system.

    Raises
    ------
    ServiceError
        This system has nothing that is known here.
    """
    if sys.platform == "win32":
        return ScheduledTasks()
    if sys.platform.startswith("linux"):
        return Systemd(user=user)
    raise ServiceError(f"services are known on Linux and Windows only, this is {sys.platform}; run `ssai3d-rt watch`")


def task_folder(plan: Plan) -> Path:
    """Return where the files of a scheduled task are kept: beside its settings."""
    return plan.config.parent / f"{plan.name}-service"


def _said(command: Sequence[str]) -> tuple[int, str]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return 1, f"cannot run {command[0]}: {error.strerror or error}"
    return done.returncode, done.stdout if done.returncode == 0 else done.stderr or done.stdout


def _write(file: Path, text: str, encoding: str = "utf-8") -> None:
    """Put a file in its place whole."""
    temporary = file.with_name(f".{file.name}.{uuid4().hex[:8]}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding=encoding)
        temporary.chmod(0o644)
        temporary.replace(file)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        hint = "; run it as root (sudo), or with --user" if isinstance(error, PermissionError) else ""
        raise ServiceError(f"{shown(file)} cannot be written: {error.strerror or error}{hint}") from None
