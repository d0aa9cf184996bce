r"""The daemon as a unit of systemd: its text, and a running unit's state in words.

The unit steps back for everything else on the machine, may write to its own folders only, and is started again whatever
ends it, more slowly each time. What is left open is left open for a reason: no private devices and no ban on writable
code, because a GPU's driver needs both; the files of a home or of the temporary folder only where the daemon's own
lie there. It knows text alone: what is written where, and run, is for `ssai3d_rt.runtime.service`.

>>> word("/data/50% of \"raw\"")
'"/data/50%% of \\"raw\\""'
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from ssai3d_rt.errors import ConfigError
from ssai3d_rt.imaging.openfile import shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import PurePath

    from ssai3d_rt.runtime.serviceplan import Plan

MARKER = "# Written by `ssai3d-rt service install`; what is changed here is lost by the next one."
"""First line of every unit that may be replaced or removed."""

WATCHDOG_S = 120
"""A daemon that did not say for so long that its loop goes round is killed and started again."""

START_S = 900
"""So long it may take to look through its ledger and earlier results before it says that it is ready."""

STOP_MARGIN_S = 60
STEPS_SINCE = 254
"""The version of systemd that learnt to wait longer after each failure (`RestartSteps`)."""

PROPERTIES = (
    *("LoadState", "UnitFileState", "ActiveState", "SubState", "Result", "ExecMainCode", "ExecMainStatus"),
    *("ExecMainExitTimestamp", "ActiveEnterTimestamp", "NRestarts", "MainPID", "StatusText"),
)
"""What `words_of` reads of `systemctl show`."""

_HOMES = ("/home", "/root", "/run/user")
_TEMPORARY = ("/tmp", "/var/tmp")
_PLAIN = re.compile(r"[A-Za-z0-9_@:=,./+-]+")


def unit_of(plan: Plan, version: int = STEPS_SINCE) -> str:
    """Write the unit.

    Parameters
    ----------
    plan
        What runs, and which folders it reads and writes.
    version
        Of systemd: an older one is not told what it does not know.

    Raises
    ------
    ConfigError
        A path holds characters that a unit cannot.
    """
    parts = (("Unit", _about(plan)), ("Service", _service(plan, version)), ("Install", _wanted(plan)))
    lines = [line for name, part in parts for line in ("", f"[{name}]", *part)]
    return "\n".join([MARKER, *lines]) + "\n"


def word(text: str | PurePath) -> str:
    """Write a text as one word of a unit: quotes, backslashes and blanks kept, ``%`` no specifier.

    Raises
    ------
    ConfigError
        It holds control or undecodable characters.
    """
    plain = str(text)
    if not plain.isprintable():
        raise ConfigError(f"{shown(plain)} cannot stand in a systemd unit; rename it without control characters")
    plain = plain.replace("%", "%%")
    if _PLAIN.fullmatch(plain):
        return plain
    return '"' + plain.replace("\\", "\\\\").replace('"', '\\"') + '"'


def words_of(properties: Mapping[str, str], name: str) -> list[str]:
    """Say in words how a unit is, from what `systemctl show` says of `PROPERTIES`; the first line tells the most."""
    state = properties.get("ActiveState", "")
    if properties.get("LoadState") == "not-found":
        return [f"{name} is not installed"]
    enabled = properties.get("UnitFileState", "")
    start = "starts with the machine" if enabled.startswith("enabled") else "does not start by itself"
    now = {
        "active": f"running since {properties.get('ActiveEnterTimestamp')}, process {properties.get('MainPID')}",
        "activating": "starting" if properties.get("SubState") != "auto-restart" else "waiting to be started again",
        "deactivating": "stopping",
        "failed": "failed",
        "inactive": "stopped",
    }.get(state, state or "in an unknown state")
    lines = [f"{name} is installed, {start}, and is {now}"]
    if properties.get("LoadState") not in ("loaded", ""):
        lines.append(f"systemd cannot use its file ({properties['LoadState']}); install it again")
    if properties.get("StatusText"):
        lines.append(f"it says: {shown(properties['StatusText'])}")
    if properties.get("NRestarts", "0") not in ("", "0"):
        lines.append(f"started again {properties['NRestarts']} times since the machine or the service was started")
    lines += _last_end(properties)
    return lines


def _last_end(properties: Mapping[str, str]) -> Iterator[str]:
    moment = properties.get("ExecMainExitTimestamp", "")
    if moment in ("", "n/a"):
        return
    code, status = properties.get("ExecMainCode", ""), properties.get("ExecMainStatus", "?")
    how = f"with status {status}" if code == "1" else f"by signal {status}"
    why = {
        "watchdog": "; it had said nothing for too long and was killed",
        "timeout": "; it took too long to start or stop and was killed",
        "oom-kill": "; the system was out of memory",
    }.get(properties.get("Result", ""), "")
    yield f"it last ended {how} at {moment}{why}"


def _about(plan: Plan) -> Iterator[str]:
    yield f"Description=ssai3d-rt restores stacks as they are acquired, as {_escaped(plan.config)} says"
    yield "After=local-fs.target remote-fs.target"
    yield "# Never give up: the disk, the share or the driver that it misses may come back."
    yield "StartLimitIntervalSec=0"


def _service(plan: Plan, version: int) -> Iterator[str]:
    yield "Type=notify"
    yield "NotifyAccess=main"
    # The colon: a $ in a path is no variable.
    yield f"ExecStart={word(f':{plan.python}')} -m ssai3d_rt.cli watch --config {word(plan.config)}"
    yield "WorkingDirectory=/"
    yield f"Environment={word('PYTHONUNBUFFERED=1')}"
    for variable, value in (
        ("SSAI3D_RT_HOME", f"%S/{plan.name}"),
        ("SSAI3D_RT_CACHE", f"%C/{plan.name}"),
        ("XDG_CACHE_HOME", f"%C/{plan.name}/other"),
        ("CUDA_CACHE_PATH", f"%C/{plan.name}/cuda"),
    ):
        yield f"Environment={variable}={value}"
    yield f"StateDirectory={plan.name}"
    yield f"CacheDirectory={plan.name}"
    yield "CacheDirectoryMode=0700"
    if not plan.user:
        yield f"User={word(plan.account)}"
        if plan.groups:
            yield f"SupplementaryGroups={' '.join(map(word, plan.groups))}"
    yield "UMask=0027"
    yield from _life(plan, version)
    yield from _modesty()
    yield from _walls()
    if not plan.user:
        yield from _strong_walls(plan)


def _life(plan: Plan, version: int) -> Iterator[str]:
    yield "\n# Its life"
    yield f"TimeoutStartSec={START_S}"
    yield f"TimeoutStopSec={int(plan.stop_s) + STOP_MARGIN_S}"
    yield f"WatchdogSec={WATCHDOG_S}"
    yield "Restart=always"
    if version >= STEPS_SINCE:
        yield from ("RestartSec=2", "RestartSteps=8", "RestartMaxDelaySec=300")
    else:
        yield "RestartSec=30"
    yield "# A wrong command line stays wrong."
    yield "RestartPreventExitStatus=2"
    yield "KillMode=mixed"
    yield "# The restoring process may be sacrificed; the daemon starts another one."
    yield "OOMPolicy=continue"


def _modesty() -> Iterator[str]:
    yield "\n# It steps back for the acquisition"
    yield from ("Nice=10", "IOSchedulingClass=idle", "CPUWeight=20", "IOWeight=20")
    yield from ("MemoryHigh=70%", "MemoryMax=80%", "TasksMax=1024", "OOMScoreAdjust=500")


def _walls() -> Iterator[str]:
    """Yield what a user's own service manager can keep too."""
    yield "\n# What it may not do"
    for key in ("NoNewPrivileges", "LockPersonality", "RestrictNamespaces", "RestrictRealtime", "RestrictSUIDSGID"):
        yield f"{key}=yes"
    yield "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6"
    yield "SystemCallArchitectures=native"
    yield "SystemCallFilter=@system-service"
    yield "# Lowering its own priority and placing its memory stay allowed."
    yield "SystemCallFilter=~@privileged @keyring @pkey"
    yield "SystemCallErrorNumber=EPERM"


def _strong_walls(plan: Plan) -> Iterator[str]:
    """Yield what takes the system's own service manager."""
    paths = (*plan.reads, *plan.writes, *plan.needs, *plan.code)
    at_home, temporary = _any_in(paths, _HOMES), _any_in(paths, _TEMPORARY)
    for key in ("ControlGroups", "KernelTunables", "KernelModules", "KernelLogs", "Clock", "Hostname"):
        yield f"Protect{key}=yes"
    yield "ProtectProc=invisible"
    yield "PrivateMounts=yes"
    yield "CapabilityBoundingSet="
    yield "AmbientCapabilities="
    if not plan.open_network:
        yield "IPAddressDeny=any"
        yield "IPAddressAllow=localhost"
    yield "\n# Which files and devices it sees: all but its own folders read-only, of devices NVIDIA's"
    yield "ProtectSystem=strict"
    yield f"ProtectHome={'read-only' if at_home else 'yes'}"
    yield f"PrivateTmp={'no' if temporary else 'yes'}"
    for path in plan.reads:
        if path in plan.fixed:
            yield f"ReadOnlyPaths={word(f'-{path}')}"
        else:
            # systemd would mount the folder onto itself, and a share that is unmounted and mounted again stay hidden.
            yield f"# {_escaped(path)} is not named, so that it is seen again after its disk or share was away."
    yield from (f"ReadWritePaths={word(path)}" for path in plan.writes)
    yield "DevicePolicy=closed"
    yield "DeviceAllow=char-nvidia* rw"


def _wanted(plan: Plan) -> Iterator[str]:
    yield f"WantedBy={'default' if plan.user else 'multi-user'}.target"


def _any_in(paths: tuple[PurePath, ...], folders: tuple[str, ...]) -> bool:
    return any(PurePosixPath(path).is_relative_to(folder) for path in paths for folder in folders)


def _escaped(text: str | PurePath) -> str:
    return shown(str(text)).replace("%", "%%")
