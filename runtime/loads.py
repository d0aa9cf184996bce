"""Whether installed packages really load, found out in processes of their own.

A vendor's package can be found and still be broken: its import raises, a library is missing, or loading it takes the
whole process down. None of that may happen to who only wants to know. It does not know what the packages are for.

>>> why_not_loaded(["json"])
{'json': None}
"""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

TIMEOUT_S = 60.0

_PROBE = """
import importlib, os, sys
sys.path[:] = sys.argv[2:]
fault = ""
try:
    if getattr(importlib.import_module(sys.argv[1]), "__file__", None) is None:
        fault = "only a folder without modules is left of it"
except BaseException as error:
    fault = ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])
print(fault, flush=True)
os._exit(bool(fault))  # without what the package does when Python ends
"""


def why_not_loaded(modules: Iterable[str]) -> dict[str, str | None]:
    """Import each module in a process of its own, all at once.

    Returns
    -------
    dict
        For each module None where it loads, else why it does not, in a few words.
    """
    command = [sys.executable, "-W", "ignore", "-c", _PROBE]
    begun = {
        module: subprocess.Popen(
            [*command, module, *sys.path],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
        )
        for module in modules
    }
    return {module: _outcome(process) for module, process in begun.items()}


def _outcome(process: subprocess.Popen[str]) -> str | None:
    with process:
        try:
            said, _ = process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return f"loading it took longer than {TIMEOUT_S:.0f} s"
    if process.returncode == 0:
        return None
    lines = said.strip().splitlines()  # the module may have printed, too: the reason comes last
    if process.returncode == 1 and lines:
        return lines[-1]
    return f"loading it ends Python with {process.returncode}"
