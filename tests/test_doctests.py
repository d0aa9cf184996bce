"""The examples in the docstrings run, and a module that has one shows what it says."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def modules_with_examples() -> list[str]:
    """Return the dotted names of the modules that hold an example."""
    names = []
    for top, prefix in (("ssai3d_rt", []), *((s, [s]) for s in ("calibration", "export", "runtime"))):
        for path in sorted((ROOT / top).rglob("*.py")):
            inside = path.relative_to(ROOT / top)
            if (top == "ssai3d_rt" and inside.parts[0] in ("calibration", "export", "runtime")) or (
                ">>> " not in path.read_text(encoding="utf-8")
            ):
                continue
            names.append(".".join(["ssai3d_rt", *prefix, *inside.with_suffix("").parts]).removesuffix(".__init__"))
    return names


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_in_docstrings(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SSAI3D_RT_HOME", str(tmp_path / "home"))
    module = importlib.import_module(name)
    failed, tried = doctest.testmod(module, optionflags=FLAGS)
    assert tried > 0
    assert failed == 0, capsys.readouterr().out
