"""`doctor` where things are missing or broken: real folders of packages, in a process of its own."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from ssai3d_rt import doctor
from ssai3d_rt.runtime import backends, cuda
from ssai3d_rt.runtime.loads import why_not_loaded

ROOT = Path(__file__).resolve().parent.parent
TENSORRT = "tensorrt is installed but cannot be loaded (OSError: libnvinfer.so.11: cannot open shared object file)"

no_gpu = pytest.mark.skipif(cuda.gpu() is not None, reason="this machine has a GPU")
linked = pytest.mark.skipif(sys.platform == "win32", reason="needs the right to make links")


def requirements(name: str, found: set[str]) -> None:
    """Collect an installed distribution and all that it needs, by their distributions' names."""
    if name in found:
        return
    found.add(name)
    for text in importlib.metadata.requires(name) or []:
        match = re.match(r"[A-Za-z0-9._-]+", text)
        if match and "extra ==" not in text:
            try:
                importlib.metadata.distribution(match[0])
            except importlib.metadata.PackageNotFoundError:
                continue  # for another system or Python
            requirements(match[0], found)


def environment_of(folder: Path, *names: str) -> Path:
    """Make a folder of links to these distributions, what they need, and this project's own."""
    distributions = {"ssai3d-rt"}
    for name in names:
        requirements(name, distributions)
    site = folder / "site"
    site.mkdir()
    for name in distributions:
        found = importlib.metadata.distribution(name)
        files = [] if name == "ssai3d-rt" else found.files or []
        tops = {
            Path(str(found.locate_file(file.parts[0]))) for file in files if file.parts[0] not in ("..", "__pycache__")
        }
        tops.add(Path(str(found._path)))  # type: ignore[attr-defined]  # its metadata
        for top in tops:
            if top.exists() and not (site / top.name).exists():
                (site / top.name).symlink_to(top)
    (site / "ssai3d_rt").symlink_to(ROOT / "ssai3d_rt")
    return site


CORE = ("numpy", "tifffile", "imagecodecs", "pydantic", "typer", "rich", "watchdog")


def run_doctor(site: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run `doctor` with the packages of `site` alone."""
    code = "import sys; from ssai3d_rt.cli import main; sys.exit(main(sys.argv[1:]))"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"PYTHONPATH": os.fspath(site), "SSAI3D_RT_HOME": os.fspath(folder / "home"), "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-S", "-c", code, "doctor", *options],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def backend_lines(done: subprocess.CompletedProcess[str]) -> dict[str, tuple[str, str, str]]:
    """Return state, detail and next step of each backend."""
    checks = json.loads(done.stdout.splitlines()[-1])["checks"]
    return {c["name"]: (c["state"], c["detail"], c["next_step"]) for c in checks if c["group"] == "backends"}


@linked
@no_gpu
def test_without_any_backend_it_fails_with_one_line(tmp_path: Path) -> None:
    done = run_doctor(environment_of(tmp_path, *CORE), tmp_path, "--json")
    assert done.returncode == 1, done.stderr
    assert done.stderr == 'ssai3d-rt: no backend runs here; run: pip install "ssai3d-rt[cpu]"\n'
    lines = backend_lines(done)
    assert set(lines) == set(backends.BACKENDS)
    for name, (state, detail, step) in lines.items():
        assert state == "absent", name
        assert detail.endswith("is not installed")
        assert step.startswith('pip install "ssai3d-rt[')


@linked
@no_gpu
@pytest.mark.skipif(find_spec("onnxruntime") is None, reason="onnxruntime is not installed")
def test_with_onnxruntime_alone_it_can_restore(tmp_path: Path) -> None:
    done = run_doctor(environment_of(tmp_path, *CORE, "onnxruntime"), tmp_path, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    lines = backend_lines(done)
    assert lines["onnxruntime"] == ("ok", "runs here", "")
    assert lines["onnxruntime-cuda"][0] == "absent"
    assert {name for name, (state, _, _) in lines.items() if state != "absent"} == {"onnxruntime"}
    assert all(step for name, (_, _, step) in lines.items() if name != "onnxruntime")


@linked
@no_gpu
@pytest.mark.skipif(find_spec("onnxruntime") is None, reason="onnxruntime is not installed")
def test_a_broken_install_is_one_line_and_harms_nothing_else(tmp_path: Path) -> None:
    site = environment_of(tmp_path, *CORE, "onnxruntime")
    broken = {
        "tensorrt": "raise OSError('libnvinfer.so.11: cannot open shared object file')",
        "tensorrt_rtx": "import os\nos.abort()",
    }
    for name, text in broken.items():
        (site / name).mkdir()
        (site / name / "__init__.py").write_text(text, encoding="utf-8")
    (site / "openvino").mkdir()  # what an uninstall leaves behind
    done = run_doctor(site, tmp_path, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    lines = backend_lines(done)
    assert lines["tensorrt"] == ("problem", TENSORRT, 'pip install --force-reinstall "ssai3d-rt[tensorrt]"')
    assert lines["tensorrt-rtx"][0] == "problem"
    assert "cannot be loaded (loading it ends Python with -" in lines["tensorrt-rtx"][1]
    assert lines["openvino"][0] == "problem"
    assert "only a folder without modules is left of it" in lines["openvino"][1]
    assert lines["onnxruntime"][0] == "ok"

    told = run_doctor(site, tmp_path)
    assert told.returncode == 0
    assert "Traceback" not in told.stdout + told.stderr
    assert [line for line in told.stdout.splitlines() if TENSORRT in line] == [f"  !!  tensorrt          {TENSORRT}"]


def test_every_backend_but_torch_is_loaded_to_see_whether_it_is_whole() -> None:
    unknown = {name for name in backends.BACKENDS if doctor._package_of(name) is None}
    assert all(name.startswith("torch") for name in unknown)


def test_modules_are_imported_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "noisy_and_broken.py").write_text(
        "print('hello')\nraise ValueError('first\\nsecond')", encoding="utf-8"
    )
    (tmp_path / "silent_exit.py").write_text("import sys\nsys.exit(3)", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    found = why_not_loaded(["noisy_and_broken", "silent_exit", "json", "not_here"])
    assert found == {
        "noisy_and_broken": "ValueError: first",
        "silent_exit": "SystemExit: 3",
        "json": None,
        "not_here": "ModuleNotFoundError: No module named 'not_here'",
    }
    assert "noisy_and_broken" not in sys.modules
