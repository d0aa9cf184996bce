r"""The daemon as a scheduled task of Windows: its XML, and the PowerShell scripts that install and remove it.

A task needs no wrapper program as a Windows service would: it starts with the machine, without anybody logged in, is
started again when it ends, and runs below normal priority under an account without rights of its own. It knows text
alone; the scripts are run by `ssai3d_rt.runtime.service`, or by an administrator who read them first.

>>> quoted("it's D:\\raw")
"'it''s D:\\raw'"
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
from pathlib import PureWindowsPath
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from ssai3d_rt.errors import ConfigError
from ssai3d_rt.imaging.openfile import shown
from ssai3d_rt.runtime.serviceplan import LOCAL_SERVICE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ssai3d_rt.runtime.serviceplan import Plan

MARKER = "Written by ssai3d-rt service install."
"""Begins the description of every task that may be replaced or removed."""

INSTALL, UNINSTALL = "install-service.ps1", "uninstall-service.ps1"

POWERSHELL = ("powershell.exe", "-NoProfile", "-ExecutionPolicy", "Bypass")

RUNNING = 0x41301
"""A task's last result while it runs (SCHED_S_TASK_RUNNING)."""

_NEVER_RAN = 0x41303
_STATES = ("in an unknown state", "disabled", "queued", "stopped", "running")
_SINGLE_QUOTES = "'‘’‚‛"  # noqa: RUF001


def files_of(plan: Plan) -> dict[str, str]:
    """Write all files of a task: its XML and both scripts, by file name.

    Raises
    ------
    ConfigError
        A path holds control characters.
    """
    for path in (plan.python, *plan.needs, *plan.reads, *plan.writes):
        if not str(path).isprintable():
            raise ConfigError(f"{shown(path)} cannot stand in a scheduled task; rename it without control characters")
    return {f"{plan.name}.xml": task_of(plan), INSTALL: install_script(plan), UNINSTALL: uninstall_script(plan.name)}


def task_of(plan: Plan) -> str:
    """Write a task's XML (Task Scheduler schema 1.2)."""
    arguments = subprocess.list2cmdline(["-m", "ssai3d_rt.cli", "watch", "--config", str(plan.config)])
    trigger = (
        f"<LogonTrigger><Enabled>true</Enabled>{_AGAIN}<UserId>{escape(plan.account)}</UserId></LogonTrigger>"
        if plan.user
        else f"<BootTrigger><Enabled>true</Enabled>{_AGAIN}<Delay>PT30S</Delay></BootTrigger>"
    )
    logon = "InteractiveToken" if plan.user else "ServiceAccount" if plan.account == LOCAL_SERVICE else "Password"
    # A service account of Windows' own has no logon type in the XML; Windows refuses one.
    logon_type = "" if logon == "ServiceAccount" else f"<LogonType>{logon}</LogonType>"
    return f"""<?xml version="1.0" encoding="UTF-16"?>
<Task version="1.2" xmlns="http://schemas.microsoft.com/windows/2004/02/mit/task">
  <RegistrationInfo>
    <Description>{MARKER} Restores stacks as they are acquired, as {escape(str(plan.config))} says.</Description>
  </RegistrationInfo>
  <Triggers>
    {trigger}
  </Triggers>
  <Principals>
    <Principal id="Author">
      <UserId>{escape(plan.account)}</UserId>
      {logon_type}<RunLevel>LeastPrivilege</RunLevel>
    </Principal>
  </Principals>
  <Settings>
    <MultipleInstancesPolicy>IgnoreNew</MultipleInstancesPolicy>
    <DisallowStartIfOnBatteries>false</DisallowStartIfOnBatteries>
    <StopIfGoingOnBatteries>false</StopIfGoingOnBatteries>
    <AllowHardTerminate>true</AllowHardTerminate>
    <StartWhenAvailable>true</StartWhenAvailable>
    <RunOnlyIfNetworkAvailable>false</RunOnlyIfNetworkAvailable>
    <IdleSettings>
      <StopOnIdleEnd>false</StopOnIdleEnd>
      <RestartOnIdle>false</RestartOnIdle>
    </IdleSettings>
    <AllowStartOnDemand>true</AllowStartOnDemand>
    <Enabled>true</Enabled>
    <Hidden>false</Hidden>
    <RunOnlyIfIdle>false</RunOnlyIfIdle>
    <WakeToRun>false</WakeToRun>
    <ExecutionTimeLimit>PT0S</ExecutionTimeLimit>
    <Priority>7</Priority>
    <RestartOnFailure>
      <Interval>PT1M</Interval>
      <Count>255</Count>
    </RestartOnFailure>
  </Settings>
  <Actions Context="Author">
    <Exec>
      <Command>{escape(str(plan.python))}</Command>
      <Arguments>{escape(arguments)}</Arguments>
      <WorkingDirectory>{escape(str(PureWindowsPath(plan.python).parent))}</WorkingDirectory>
    </Exec>
  </Actions>
</Task>
"""


_AGAIN = "<Repetition><Interval>PT5M</Interval><StopAtDurationEnd>false</StopAtDurationEnd></Repetition>"
"""Started again every five minutes where it does not run: retries after a failure end with the 255th."""


def install_script(plan: Plan) -> str:
    """Write the script that registers the task, gives its account the rights it needs, and starts it."""
    rights = [(path, "(OI)(CI)RX" if path.is_dir() else "RX") for path in (*plan.reads, *plan.needs)]
    rights += [(path, "(OI)(CI)M") for path in plan.writes]
    grants = [] if plan.user else [f"Grant {quoted(path)} '{right}'" for path, right in rights]
    listed = "\n".join(grants) or "# The task runs as you; you have the rights that it needs."
    return f"""# {MARKER} Read it, then run it{"" if plan.user else " as an administrator"}:
#   powershell -ExecutionPolicy Bypass -File {INSTALL}
# It may be run again at any time. -RunAs 'DOMAIN\\account' runs the task as another account, for network shares;
# a group-managed service account ends with a $ and has no password to ask for.
param([string]$RunAs = '')
$ErrorActionPreference = 'Stop'
$Name = {quoted(plan.name)}
$Xml = Get-Content -Raw -Encoding Unicode -LiteralPath (Join-Path $PSScriptRoot ($Name + '.xml'))
$Old = Get-ScheduledTask -TaskName $Name -TaskPath '\\' -ErrorAction SilentlyContinue
if ($Old -and -not "$($Old.Description)".StartsWith({quoted(MARKER)})) {{
    throw "There is a task $Name that was not written by ssai3d-rt; it is left alone. Choose another --name."
}}
$Who = {quoted(_trustee(plan.account))}
if ($RunAs) {{ $Who = $RunAs }}
function Grant($Path, $Right) {{
    & icacls $Path /grant ($Who + ':' + $Right) | Out-Null
    if ($LASTEXITCODE) {{ throw "The right to use $Path cannot be given to $Who." }}
}}

# Raw data may be read, results and ledger changed, nothing else is granted.
{listed}

if ($Old) {{ Stop-ScheduledTask -TaskName $Name -TaskPath '\\' }}
if (-not $RunAs) {{
    Register-ScheduledTask -TaskName $Name -Xml $Xml -Force | Out-Null
}} elseif ($RunAs.EndsWith('$')) {{
    Register-ScheduledTask -TaskName $Name -Xml $Xml -Force | Out-Null
    $Principal = New-ScheduledTaskPrincipal -UserId $RunAs -LogonType Password -RunLevel Limited
    Set-ScheduledTask -TaskName $Name -Principal $Principal | Out-Null
}} else {{
    $Known = Get-Credential -UserName $RunAs -Message "Account that $Name runs as"
    $Secret = $Known.GetNetworkCredential().Password
    Register-ScheduledTask -TaskName $Name -Xml $Xml -User $RunAs -Password $Secret -Force | Out-Null
}}
Start-ScheduledTask -TaskName $Name -TaskPath '\\'
Write-Output "$Name is installed and starts now; see: ssai3d-rt service status"
"""


def uninstall_script(name: str) -> str:
    """Write the script that stops and removes the task; data, settings and granted rights stay."""
    return f"""# {MARKER}
$ErrorActionPreference = 'Stop'
$Name = {quoted(name)}
$Old = Get-ScheduledTask -TaskName $Name -TaskPath '\\' -ErrorAction SilentlyContinue
if (-not $Old) {{ Write-Output "$Name is not installed"; exit 0 }}
if (-not "$($Old.Description)".StartsWith({quoted(MARKER)})) {{
    throw "The task $Name was not written by ssai3d-rt; it is left alone."
}}
Stop-ScheduledTask -TaskName $Name -TaskPath '\\'
Unregister-ScheduledTask -TaskName $Name -TaskPath '\\' -Confirm:$false
Write-Output "$Name is stopped and removed; results, ledger, settings and logs stay"
"""


def status_script(name: str) -> str:
    """Write the script that prints a task's state as JSON, for `words_of`."""
    return (
        f"$t = Get-ScheduledTask -TaskName {quoted(name)} -TaskPath '\\' -ErrorAction SilentlyContinue; "
        "if ($t) { $i = $t | Get-ScheduledTaskInfo; @{state = [int]$t.State; result = $i.LastTaskResult; "
        "ran = $i.LastRunTime.ToString('s')} | ConvertTo-Json -Compress } else { '{}' }"
    )


def command_of(script: str) -> list[str]:
    """Return the command that runs a script, whatever characters are in it."""
    return [*POWERSHELL, "-EncodedCommand", base64.b64encode(script.encode("utf-16-le")).decode("ascii")]


def words_of(said: str, name: str) -> tuple[bool, list[str]]:
    """Return whether a task runs, and in words how it is, from what `status_script` printed.

    Raises
    ------
    ConfigError
        It printed something else.
    """
    try:
        found: Mapping[str, Any] = json.loads(said)
        state, result = int(found.get("state", 0)), int(found.get("result", 0))
    except (ValueError, AttributeError, TypeError):
        raise ConfigError(f"the task scheduler gave no answer about {name}: {shown(said[:200])!r}") from None
    if not found:
        return False, [f"{name} is not installed"]
    lines = [f"{name} is installed and is {_STATES[state] if state < len(_STATES) else _STATES[0]}"]
    if result not in (0, RUNNING, _NEVER_RAN):
        lines.append(f"it last ended with status {result & 0xFFFFFFFF:#x}, having been started at {found.get('ran')}")
    return state == _STATES.index("running"), lines


def quoted(text: object) -> str:
    """Write a text as a literal of PowerShell, which takes typographic quotes for quotes too."""
    return "'" + re.sub(f"([{_SINGLE_QUOTES}])", r"\1\1", str(text)) + "'"


def _trustee(account: str) -> str:
    """Name an account as icacls wants it: a security identifier begins with a star."""
    return f"*{account}" if re.fullmatch(r"S-1-[0-9-]+", account) else account
