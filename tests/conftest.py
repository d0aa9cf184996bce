"""What every test gets: real data where it is there, and guards against leaked threads, open files and luck."""

from __future__ import annotations

import gc
import os
import random
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest_plugins = ["tests.tiny"]

os.environ.setdefault("PYMM_SIGNALS_BACKEND", "psygnal")  # no Qt in a headless run
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does: torch beside other work

PROJECT = Path(__file__).resolve().parents[1]
SHARED_DATA = PROJECT.parent / "shared" / "data"
FD_FOLDER = Path("/proc/self/fd")
LIVING_THREADS = ("pytest", "QueueFeederThread", "TMonitor", "MainThread")
"""Name prefixes of threads that third-party packages keep for the whole process on purpose."""
WATCHED = tuple(str(folder) for folder in (Path(tempfile.gettempdir()).resolve(), PROJECT, SHARED_DATA))
UNWATCHED = tuple(str(folder) for folder in (sys.prefix, PROJECT / ".venv", PROJECT / ".hypothesis"))
"""Open files are looked for where tests work; packages may keep their own logs and libraries open."""


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with the real stacks; the test is skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"real data are not on this machine ({SHARED_DATA})")
    return SHARED_DATA


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Make every test's random numbers the same in each run and each order."""
    random.seed(0)
    np.random.seed(0)
    if (torch := sys.modules.get("torch")) is not None and hasattr(torch, "manual_seed"):
        torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_leaked_threads() -> Iterator[None]:
    """Fail when a test leaves a thread running a second after it ended."""
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 1.0
    while (left := _new_threads(before)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left, f"threads left running: {left}"


@pytest.fixture(autouse=True)
def _no_open_files() -> Iterator[None]:
    """Fail when a test leaves a data file open (Linux only: elsewhere open files cannot be listed cheaply)."""
    if not FD_FOLDER.is_dir():
        yield
        return
    before = _open_files()
    yield
    if left := _open_files() - before:
        gc.collect()  # a reference cycle is not a leak
        left &= _open_files()
    assert not left, f"files left open: {sorted(left)}"


def _new_threads(before: set[threading.Thread]) -> list[str]:
    return [
        thread.name
        for thread in threading.enumerate()
        if thread not in before
        and thread.is_alive()
        and not isinstance(thread, threading._DummyThread)  # made by C++ callbacks, never ends
        and not thread.name.startswith(LIVING_THREADS)
    ]


def _open_files() -> set[str]:
    names = set()
    for entry in FD_FOLDER.iterdir():
        try:
            name = os.readlink(entry)
        except OSError:  # the descriptor that lists the folder
            continue
        if name.startswith(WATCHED) and not name.startswith(UNWATCHED) and not name.endswith(" (deleted)"):
            names.add(name)
    return {name for name in names if Path(name).is_file()}
