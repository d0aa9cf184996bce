"""What this machine can do, and the next step where it cannot: Python, packages, backends, cores, memory, disk.

It only looks; it installs and changes nothing. Whether a backend's package loads is found out in a process of its own,
so that a broken one is a line of the report and never a failure of it.

>>> report = examine()
>>> sorted({check.group for check in report.checks})
['backends', 'machine', 'packages']
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import re
import shutil
import sys
from dataclasses import asdict, dataclass
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssai3d_rt.runtime import backends
from ssai3d_rt.runtime.loads import why_not_loaded

if TYPE_CHECKING:
    from collections.abc import Iterator

DISTRIBUTION = "ssai3d-rt"
HIDDEN_EXTRAS = ("test", "dev")
LOW_MEMORY_GIB = 4.0
LOW_DISK_GIB = 10.0
GIB = 1024**3
FEW_NAMES = 8
"""A complete extra of more packages than this is counted, not listed."""

PROBED = {
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt-rtx"),
    "tensorrt": ("tensorrt", "tensorrt"),
    "onnxruntime-cuda": ("onnxruntime", "gpu"),
    "onnxruntime": ("onnxruntime", "cpu"),
    "openvino": ("openvino", "cpu"),
}
"""Backends, by how their names begin -> the package that is loaded to see whether it is whole, and its extra.

Torch is left out: loading it takes seconds, and where a rig needs it, it says itself what is wrong.
"""

_REQUIREMENT = re.compile(
    r"""^(?P<name>[A-Za-z0-9._-]+)(\[(?P<extras>[^]]*)\])?.*?(extra == ['"](?P<extra>[^'"]+)['"])?$"""
)


class State(str, Enum):
    """How a check came out."""

    OK = "ok"
    ABSENT = "absent"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Parameters
    ----------
    group
        ``machine``, ``packages`` or ``backends``.
    name, detail
        What was looked at and what was seen.
    state
        ``absent`` is no fault: something optional is not installed. ``problem`` needs a hand.
    next_step
        What to do about it; empty when nothing is to be done.
    """

    group: str
    name: str
    state: State
    detail: str
    next_step: str = ""


@dataclass(frozen=True)
class Report:
    """All checks of one look at the machine."""

    checks: tuple[Check, ...]

    @property
    def can_restore(self) -> bool:
        """Whether at least one backend runs here."""
        return any(c.group == "backends" and c.state is State.OK for c in self.checks)

    def record(self) -> dict[str, Any]:
        """Return the report as plain values for JSON."""
        return {"can_restore": self.can_restore, "checks": [asdict(c) | {"state": c.state.value} for c in self.checks]}


def examine(folder: Path | None = None) -> Report:
    """Look at this machine.

    Parameters
    ----------
    folder
        Where results would go; its disk is measured. The current folder by default.
    """
    return Report((*_machine(folder or Path.cwd()), *_packages(), *_backends()))


def _machine(folder: Path) -> Iterator[Check]:
    """Check Python, cores, memory and disk."""
    old = sys.version_info < (3, 10)
    yield Check(
        "machine",
        "python",
        State.PROBLEM if old else State.OK,
        f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "install Python 3.10 or newer" if old else "",
    )
    yield Check("machine", "cores", State.OK, f"{usable_cores()} of {os.cpu_count()} usable")
    memory = memory_bytes()
    if memory is None:
        yield Check("machine", "memory", State.ABSENT, "this system does not say")
    else:
        low = memory < LOW_MEMORY_GIB * GIB
        step = f"close other programs; below {LOW_MEMORY_GIB:g} GiB large stacks may not fit" if low else ""
        yield Check("machine", "memory", State.PROBLEM if low else State.OK, f"{memory / GIB:.1f} GiB available", step)
    free = shutil.disk_usage(folder).free
    low = free < LOW_DISK_GIB * GIB
    step = "free some space; an isotropic stack is larger than the raw one by its anisotropy" if low else ""
    yield Check("machine", "disk", State.PROBLEM if low else State.OK, f"{free / GIB:.1f} GiB free at {folder}", step)


def _packages() -> Iterator[Check]:
    """Check each extra: what it needs, what of it is installed."""
    for extra, names in requirements_by_extra().items():
        found = {name: _version(name) for name in names}
        missing = [name for name, version in found.items() if version is None]
        detail = ", ".join(f"{name} {version}" for name, version in found.items() if version)
        if not missing and len(names) > FEW_NAMES:
            detail = f"all {len(names)} packages"
        elif missing:
            detail = f"{detail}; " * bool(detail) + "not installed: " + ", ".join(missing)
        core = extra == "core"
        step = f'pip install "{DISTRIBUTION}{"" if core else f"[{extra}]"}"' if missing else ""
        state = State.OK if not missing else State.PROBLEM if core else State.ABSENT
        yield Check("packages", extra, state, detail, step)


def _backends() -> Iterator[Check]:
    """Check each backend in order of priority: does its package load; then, its own reason why it cannot run."""
    packages = {name: _package_of(name) for name in backends.BACKENDS}
    installed = {package[0]: None for package in packages.values() if package and find_spec(package[0]) is not None}
    broken = why_not_loaded(installed)
    for name, package in packages.items():
        fault = broken.get(package[0]) if package else None
        if package and fault:
            detail = f"{package[0]} is installed but cannot be loaded ({fault})"
            step = f'pip install --force-reinstall "{DISTRIBUTION}[{package[1]}]"'
            yield Check("backends", name, State.PROBLEM, detail, step)
            continue
        reason = backends.why_not(name)
        if reason is None:
            yield Check("backends", name, State.OK, "runs here")
        else:
            detail, _, step = reason.partition("; ")
            yield Check("backends", name, State.ABSENT, detail, step.removeprefix("run: "))


def _package_of(backend: str) -> tuple[str, str] | None:
    """Return the package that a backend needs, and its extra."""
    return next((package for start, package in PROBED.items() if backend.startswith(start)), None)


def requirements_by_extra() -> dict[str, list[str]]:
    """Return what the installed project declares: extra -> names of packages, other extras of its own resolved.

    The always installed packages stand under ``core``.
    """
    direct: dict[str, list[str]] = {"core": []}
    nested: dict[str, list[str]] = {}
    for text in importlib.metadata.requires(DISTRIBUTION) or []:
        if "python_version <" in text:
            continue
        match = _REQUIREMENT.match(text.strip())
        if match is None:
            continue
        extra = match["extra"] or "core"
        direct.setdefault(extra, [])
        if match["name"].replace("_", "-") == DISTRIBUTION:
            nested.setdefault(extra, []).extend((match["extras"] or "").split(","))
        else:
            direct[extra].append(match["name"])
    for extra, others in nested.items():
        direct[extra] = [*(name for other in others for name in direct[other.strip()]), *direct[extra]]
    return {extra: names for extra, names in direct.items() if extra not in HIDDEN_EXTRAS}


def _version(distribution: str) -> str | None:
    """Return the installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int | None:
    """Return the memory that can still be taken without swapping, in bytes; None where the system does not say."""
    if sys.platform == "win32":
        return _windows_memory_bytes()
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _windows_memory_bytes() -> int | None:
    """Ask GlobalMemoryStatusEx (MEMORYSTATUSEX of sysinfoapi.h)."""

    class MemoryStatus(ctypes.Structure):
        _fields_ = (
            ("length", ctypes.c_uint32),
            ("load", ctypes.c_uint32),
            ("total", ctypes.c_uint64),
            ("available", ctypes.c_uint64),
            ("page_total", ctypes.c_uint64),
            ("page_free", ctypes.c_uint64),
            ("virtual_total", ctypes.c_uint64),
            ("virtual_free", ctypes.c_uint64),
            ("virtual_extended", ctypes.c_uint64),
        )

    status = MemoryStatus(length=ctypes.sizeof(MemoryStatus))
    if sys.platform == "win32" and ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        return int(status.available)
    return None
