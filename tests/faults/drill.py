"""What a drill is: a function that does harm to a real daemon and says, with figures, whether it held.

```python
@drill(row=1, title="kill -9 at random times", bar=1, quick_s=40, full_s=420, needs=("linux",))
def random_kills(lab: Lab) -> Outcome:
    '''SIGKILL at random moments of a hundred stacks.'''
```

`row` is the row of the fault matrix. The docstring's first paragraph says how the fault is injected; it is printed in
the table. A drill whose `needs` this machine lacks is skipped with the reason; it never counts as passed.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import pkgutil
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.faults.lab import Lab

ROWS = range(1, 49)
"""Rows of the fault matrix."""

_FRAMEWORK = ("__main__", "drill", "lab", "mounts", "table", "trace")
_PACKAGES = {
    "ndstorage": ("ndstorage",),
    "zarr": ("zarr",),
    "pymmcore": ("pymmcore_plus",),
    "ome-writers": ("ome_writers",),
    "bundle": ("torch", "onnx", "onnxscript", "onnxruntime", "safetensors"),
    "tensorrt-rtx": ("tensorrt_rtx",),
    "status": ("starlette", "uvicorn", "prometheus_client"),
}
_COMMANDS = ("strace", "gcc", "chattr", "systemd-analyze", "unshare")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a drill: one line for people, and the figures behind it."""

    ok: bool
    figures: dict[str, Any] = field(default_factory=dict)
    summary: str = ""


@dataclass(frozen=True, slots=True)
class Drill:
    """A registered drill; `rows` of the matrix, `bar` of the acceptance list or None, seconds it may take."""

    name: str
    module: str
    run: Callable[[Lab], Outcome]
    rows: tuple[int, ...]
    title: str
    injection: str
    bar: int | None
    quick_s: float | None
    full_s: float
    needs: tuple[str, ...]
    alone: bool


@dataclass(frozen=True, slots=True)
class Record:
    """What is kept of one run of a drill: `result` is passed, failed or skipped."""

    name: str
    result: str
    summary: str
    figures: dict[str, Any]
    seconds: float
    quick: bool


REGISTRY: dict[str, Drill] = {}


def drill(
    *,
    row: int | tuple[int, ...],
    title: str,
    full_s: float,
    bar: int | None = None,
    quick_s: float | None = None,
    needs: tuple[str, ...] = (),
    alone: bool = False,
    registry: dict[str, Drill] | None = None,
) -> Callable[[Callable[[Lab], Outcome]], Callable[[Lab], Outcome]]:
    """Register a drill under its function's name.

    Parameters
    ----------
    row
        Row or rows of the matrix.
    title
        The fault, in words.
    full_s, quick_s
        Seconds that it may take; `quick_s` is None where it is not part of the quick suite.
    bar
        Number of the acceptance bar that it proves.
    needs
        What the machine must have, see `missing`.
    alone
        Whether nothing else may run beside it: it measures time, or changes the whole machine.
    registry
        Where to; the suite's.
    """
    known = REGISTRY if registry is None else registry
    rows = (row,) if isinstance(row, int) else row

    def register(function: Callable[[Lab], Outcome]) -> Callable[[Lab], Outcome]:
        name = getattr(function, "__name__", "")
        words = " ".join((function.__doc__ or "").split("\n\n")[0].split())
        if not words:
            raise ValueError(f"{name}: its docstring must say how the fault is injected")
        if name in known:
            raise ValueError(f"{name}: there is a drill of this name in {known[name].module}")
        if not rows or not all(number in ROWS for number in rows):
            raise ValueError(f"{name}: rows {rows} are not in the matrix")
        unknown = [need for need in needs if need not in needs_known()]
        if unknown:
            raise ValueError(f"{name}: nobody knows how to look for {unknown}")
        by_itself = alone or "inotify-sysctl" in needs
        module = function.__module__.rpartition(".")[2]
        known[name] = Drill(name, module, function, rows, title, words, bar, quick_s, full_s, needs, by_itself)
        return function

    return register


def needs_known() -> tuple[str, ...]:
    """Names that a drill may ask for."""
    return ("linux", "root", "mount", "loop", "inotify-sysctl", *_COMMANDS, *_PACKAGES)


def missing(needs: tuple[str, ...]) -> str:
    """Say what this machine lacks of what a drill needs; empty where it has all."""
    return "; ".join(dict.fromkeys(reason for need in needs if (reason := _lacks(need))))


@cache
def _lacks(need: str) -> str:
    if need in _PACKAGES:
        absent = [name for name in _PACKAGES[need] if importlib.util.find_spec(name) is None]
        return f"not installed: {', '.join(absent)}" if absent else ""
    if need == "linux":
        return "" if sys.platform.startswith("linux") else f"this is {sys.platform}, not Linux"
    if need in _COMMANDS:
        if shutil.which(need) is None:
            return f"there is no {need} on this machine"
        works = need != "strace" or _runs("strace", "-qq", "-e", "trace=none", "-o", os.devnull, "true")
        return "" if works else "strace may not trace here"
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "needs root"
    if need == "mount":
        return "" if _mounts("-t", "tmpfs", "-o", "size=64k", "tmpfs") else "mounting is not allowed here"
    if need == "loop":
        return _lacks_loop()
    if need == "inotify-sysctl":
        writable = os.access("/proc/sys/fs/inotify/max_queued_events", os.W_OK)
        return "" if writable else "the limits of inotify cannot be changed here"
    return ""


def _lacks_loop() -> str:
    if shutil.which("mkfs.ext4") is None:
        return "there is no mkfs.ext4 on this machine"
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder, "disk.img")
        with open(image, "wb") as file:
            file.truncate(8 << 20)
        works = _runs("mkfs.ext4", "-q", "-F", str(image)) and _mounts("-o", "loop", str(image))
        return "" if works else "loop devices cannot be mounted here"


def _mounts(*arguments: str) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        if not _runs("mount", *arguments, folder):
            return False
        return _runs("umount", folder)


def _runs(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def load() -> dict[str, str]:
    """Import every module of drills; return the traceback of each that cannot be imported, by name."""
    import tests.faults

    broken = {}
    for module in sorted(info.name for info in pkgutil.iter_modules(tests.faults.__path__)):
        if module in _FRAMEWORK:
            continue
        try:
            importlib.import_module(f"tests.faults.{module}")
        except Exception:
            broken[module] = traceback.format_exc()
    return broken


def perform(drill: Drill, lab: Lab) -> Record:
    """Run one drill; whatever it raises is a failure, and its traceback the summary."""
    began = time.monotonic()
    reason = missing(drill.needs)
    if reason:
        return Record(drill.name, "skipped", reason, {}, 0.0, lab.quick)
    try:
        with lab:
            outcome = drill.run(lab)
    except Exception:
        outcome = Outcome(False, {}, f"crashed\n{traceback.format_exc()}")
    result = "passed" if outcome.ok else "failed"
    return Record(drill.name, result, outcome.summary, outcome.figures, round(time.monotonic() - began, 1), lab.quick)
