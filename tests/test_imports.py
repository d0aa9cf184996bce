"""Every module imports where only the core packages are installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCKED = (
    "torch",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "tensorrt_rtx",
    "pycuda",
    "cuda",
    "pymmcore_plus",
    "pymmcore",
    "mm_test_adapters",
    "useq",
    "scipy",
    "skimage",
    "matplotlib",
    "safetensors",
)

PROBE = """
import importlib, importlib.abc, json, sys

class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)
        return None

BLOCKED, names = json.loads(sys.stdin.read())
sys.meta_path.insert(0, Block())
failed = {}
for name in BLOCKED:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        continue
    failed[name] = "not blocked: this test would prove nothing"
for name in names:
    try:
        importlib.import_module(name)
    except BaseException as error:
        failed[name] = f"{type(error).__name__}: {error}"
print(json.dumps(failed))
"""


def test_every_module_imports_with_the_heavy_packages_blocked() -> None:
    files = [path.relative_to(ROOT / "ssai3d_rt") for path in (ROOT / "ssai3d_rt").rglob("*.py")]
    for stage in ("calibration", "export", "runtime"):
        files += [Path(stage) / path.relative_to(ROOT / stage) for path in (ROOT / stage).rglob("*.py")]
    names = sorted({".".join(["ssai3d_rt", *f.with_suffix("").parts]).removesuffix(".__init__") for f in files})
    assert {"ssai3d_rt", "ssai3d_rt.cli", "ssai3d_rt.runtime.backends"} <= set(names)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROBE],
        input=json.dumps([BLOCKED, names]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {}


def test_the_public_names_cost_nothing_until_used_and_restoring_needs_no_torch() -> None:
    code = (
        "import sys, ssai3d_rt as rt; "
        "assert not {'numpy', 'torch', 'pydantic'} & set(sys.modules), sorted(sys.modules); "
        "rt.read_stack, rt.restore, rt.watch, rt.Bundle, rt.calibrate; "
        "import ssai3d_rt.runtime.restore, ssai3d_rt.runtime.watch, ssai3d_rt.runtime.recipe; "
        "assert 'torch' not in sys.modules; "
        "assert all(getattr(rt, name) is not None for name in rt.__all__); "
        "assert set(rt.__all__) <= set(dir(rt)); "
        "assert callable(rt.export)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
