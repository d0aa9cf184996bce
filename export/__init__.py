"""Export: a typed ONNX in a bundle, compared with its reference, and engines made from it.

The package is callable: ``ssai3d_rt.export(model, "cells.ssai3d")`` is `export_bundle`.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssai3d_rt.export.bundle import Bundle, Manifest
    from ssai3d_rt.export.engine import engine_from_bundle, load_engine
    from ssai3d_rt.export.from_model import export_bundle
    from ssai3d_rt.export.parity import Limits, Parity, ParityReport

__all__ = [
    "Bundle",
    "Limits",
    "Manifest",
    "Parity",
    "ParityReport",
    "engine_from_bundle",
    "export_bundle",
    "load_engine",
]

_WHERE = {
    "Bundle": "bundle",
    "Limits": "parity",
    "Manifest": "bundle",
    "Parity": "parity",
    "ParityReport": "parity",
    "engine_from_bundle": "engine",
    "export_bundle": "from_model",
    "load_engine": "engine",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name in _WHERE:
        return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _Callable(ModuleType):
    """The package as a function: the stage and its one job share the name that users type."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """See `export_bundle`."""
        return self.export_bundle(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
