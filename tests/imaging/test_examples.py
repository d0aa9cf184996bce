from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import ssai3d_rt.imaging

MODULES = sorted(module.name for module in pkgutil.iter_modules(ssai3d_rt.imaging.__path__))


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name: str) -> None:
    module = importlib.import_module(f"ssai3d_rt.imaging.{name}")
    assert doctest.testmod(module).failed == 0
