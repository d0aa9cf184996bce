"""The first NVIDIA GPU, as its own driver describes it.

The driver is asked directly, so that nothing needs to be installed to find out. It knows nothing of engines.

>>> first = gpu()
>>> first is None or first.capability >= (3, 0)
True
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Callable


_NO_GPU = (34, 100)
"""What a driver's library answers where there is only the library, and where there is no GPU."""
_MISMATCH = 803


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU.

    Parameters
    ----------
    name
        As the vendor calls it.
    capability
        Compute capability, (major, minor).
    cuda
        Newest CUDA that the driver runs, (major, minor).
    """

    name: str
    capability: tuple[int, int]
    cuda: tuple[int, int] = (0, 0)

    @property
    def identity(self) -> str:
        """What compiled code is bound to: name, compute capability and the driver's major version."""
        return f"{self.name} {self.capability[0]}.{self.capability[1]} driver {self.cuda[0]}"


def driver_fault() -> str | None:
    """Say what is wrong with a driver that is there and does not answer; None where nothing is, or there is none."""
    driver = _driver()
    code = 0 if driver is None else int(driver.cuInit(0))
    if code in (0, *_NO_GPU):
        return None
    why = "its parts do not match, as after an update" if code == _MISMATCH else f"CUDA error {code}"
    return f"the NVIDIA driver does not answer ({why}); restart the computer, or install the driver again"


@cache
def gpu() -> Gpu | None:
    """Ask the driver for the first GPU; None where there is no driver or no GPU, or the driver does not answer."""
    driver = _driver()
    if driver is None:
        return None
    device, major, minor, version = ctypes.c_int(), ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(128)
    # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR is 75, _MINOR is 76.
    steps: list[Callable[[], int]] = [
        lambda: driver.cuInit(0),
        lambda: driver.cuDeviceGet(ctypes.byref(device), 0),
        lambda: driver.cuDeviceGetName(name, len(name), device),
        lambda: driver.cuDeviceGetAttribute(ctypes.byref(major), 75, device),
        lambda: driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, device),
        lambda: driver.cuDriverGetVersion(ctypes.byref(version)),
    ]
    if any(step() != 0 for step in steps):
        return None
    cuda = (version.value // 1000, version.value % 1000 // 10)  # 13020 is CUDA 13.2
    return Gpu(name.value.decode(errors="replace"), (major.value, minor.value), cuda)


def _driver() -> Any:
    """Load the driver's library; None where there is none."""
    try:
        return cast("Any", ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"))
    except OSError:
        return None
