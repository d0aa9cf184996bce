"""How much memory a process, and a GPU, held at most.

The operating system and the driver are asked; nothing is sampled inside the process that is measured.

>>> resident_peak_bytes() > 1 << 20
True
"""

from __future__ import annotations

import ctypes
import sys
import threading
from pathlib import Path
from typing import Any, cast

INTERVAL_S = 0.02


def resident_peak_bytes() -> int:
    """Return the most memory that this process held at once (resident, all its libraries included)."""
    if sys.platform == "win32":
        return _windows_peak_bytes()
    try:
        # Not getrusage: what it calls the peak is inherited from the process that started this one.
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _windows_peak_bytes() -> int:
    """Ask GetProcessMemoryInfo (PROCESS_MEMORY_COUNTERS of psapi.h)."""

    class Counters(ctypes.Structure):
        _fields_ = (
            ("size", ctypes.c_uint32),
            ("page_faults", ctypes.c_uint32),
            ("peak_working_set", ctypes.c_size_t),
            ("working_set", ctypes.c_size_t),
            ("others", ctypes.c_size_t * 6),
        )

    counters = Counters(size=ctypes.sizeof(Counters))
    if sys.platform == "win32":
        kernel = ctypes.windll.kernel32
        kernel.GetCurrentProcess.restype = ctypes.c_void_p
        kernel.K32GetProcessMemoryInfo.argtypes = [ctypes.c_void_p, ctypes.POINTER(Counters), ctypes.c_uint32]
        kernel.K32GetProcessMemoryInfo(kernel.GetCurrentProcess(), ctypes.byref(counters), counters.size)
    return int(counters.peak_working_set)


class DeviceWatch:
    """Watch the first GPU's memory from outside the measured process; a context manager.

    What other processes take meanwhile counts too: measure on a quiet machine. Without an NVIDIA driver, or where it
    does not tell, `peak_bytes` stays None.
    """

    def __init__(self) -> None:
        self.peak_bytes: int | None = None
        self._driver, self._device = _management()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> DeviceWatch:
        before = self._used_bytes()
        if before is not None:
            self.peak_bytes = 0
            self._thread = threading.Thread(target=self._watch, args=(before,), name="device-memory")
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self, before: int) -> None:
        while not self._stop.wait(INTERVAL_S):
            self.peak_bytes = max(self.peak_bytes or 0, (self._used_bytes() or 0) - before)

    def _used_bytes(self) -> int | None:
        if self._driver is None:
            return None
        memory = (ctypes.c_uint64 * 3)()  # nvmlMemory_t: total, free, used
        if self._driver.nvmlDeviceGetMemoryInfo(self._device, ctypes.byref(memory)) != 0:
            return None
        return int(memory[2])


def _management() -> tuple[Any, ctypes.c_void_p]:
    """Load the driver's management library and find the first GPU in it; None where there is none."""
    device = ctypes.c_void_p()
    try:
        driver = cast("Any", ctypes.CDLL("nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"))
    except OSError:
        return None, device
    if driver.nvmlInit_v2() != 0 or driver.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(device)) != 0:
        return None, device
    return driver, device
