"""Isotropic 3D microscopy on the acquisition rig: adapt, export and run axial restoration.

The names below are the public API. Each is imported on first use, so that importing the package costs nothing and a rig
that only restores needs neither PyTorch nor ONNX.

>>> import ssai3d_rt as rt
>>> import numpy as np
>>> rt.Stack(np.zeros((5, 8, 8), np.uint16), voxel_um=(0.4, 0.1, 0.1)).isotropic_planes
17
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssai3d_rt.adapt.model import AdaptedModel
    from ssai3d_rt.api import finetune, follow, restore
    from ssai3d_rt.calibration import calibrate
    from ssai3d_rt.calibration.profile import RigProfile
    from ssai3d_rt.export.bundle import Bundle
    from ssai3d_rt.imaging.read import read_stack, read_stacks
    from ssai3d_rt.imaging.stack import Stack
    from ssai3d_rt.runtime.watch import watch

    __version__: str

__all__ = [
    "AdaptedModel",
    "Bundle",
    "RigProfile",
    "Stack",
    "__version__",
    "calibrate",
    "export",
    "finetune",
    "follow",
    "read_stack",
    "read_stacks",
    "restore",
    "watch",
]

_WHERE = {
    "AdaptedModel": "ssai3d_rt.adapt.model",
    "Bundle": "ssai3d_rt.export.bundle",
    "RigProfile": "ssai3d_rt.calibration.profile",
    "Stack": "ssai3d_rt.imaging.stack",
    "calibrate": "ssai3d_rt.calibration",
    "finetune": "ssai3d_rt.api",
    "follow": "ssai3d_rt.api",
    "read_stack": "ssai3d_rt.imaging.read",
    "read_stacks": "ssai3d_rt.imaging.read",
    "restore": "ssai3d_rt.api",
    "watch": "ssai3d_rt.runtime.watch",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name == "__version__":
        from importlib.metadata import version

        return version("ssai3d-rt")
    if name == "export":
        return importlib.import_module("ssai3d_rt.export")
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'ssai3d_rt' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names beside what is loaded."""
    return sorted({*globals(), *__all__})
