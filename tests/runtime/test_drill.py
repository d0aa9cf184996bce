"""The drill with real processes and real kills: nothing lost, nothing twice."""

from __future__ import annotations

import importlib.util
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ssai3d_rt.runtime.status import summary
from tests.runtime.daemon import is_right, stack_file
from tests.runtime.quick import QuickRecipe
from tests.runtime.quick_watch import Plan

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("watch_drill", ROOT / "benchmarks" / "watch_drill.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def command(folder: Path, *, delay_s: float, incomplete_after_s: float) -> list[str]:
    recipe = QuickRecipe(folder / "restored.log", delay_s=delay_s)
    plan = Plan.of([folder / "incoming"], folder / "isotropic", recipe, incomplete_after_s=incomplete_after_s)
    return plan.command()


def wait(done: Callable[[], object], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def from_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.usefixtures("from_root")
@pytest.mark.skipif(sys.platform == "win32", reason="SIGTERM asks politely on Linux only")
def test_twenty_stacks_and_a_kill(tmp_path: Path) -> None:
    drill = benchmark()
    (tmp_path / "incoming").mkdir()
    sources = drill.make_stacks(tmp_path / "sources")
    outcome: Any = drill.drill(
        command(tmp_path, delay_s=0.15, incomplete_after_s=4.0),
        sources,
        tmp_path / "incoming",
        tmp_path / "isotropic",
        pause_s=3.0,
        kill_after=4,
    )
    assert outcome.faults() == []
    assert len(outcome.results) == 18
    assert outcome.failed["cut.ome.tif"].startswith("incomplete: ")
    assert outcome.failed["text.tif"].startswith("it is not a TIFF file")
    for source in sources:
        assert is_right(outcome.results[source.name], source), source.name
    restored = (tmp_path / "restored.log").read_text().split()
    assert len(restored) - len(set(restored)) <= 1  # only what was at work when the kill came
    assert [path.name for path in (tmp_path / "isotropic").rglob(".ssai3d-*.tmp")] == []


@pytest.mark.usefixtures("from_root")
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_kills_at_random_times_lose_and_repeat_nothing(tmp_path: Path) -> None:
    incoming, out = tmp_path / "incoming", tmp_path / "isotropic"
    incoming.mkdir()
    sources = [stack_file(incoming / f"{number}.ome.tif", number) for number in range(8)]
    rng, drill = random.Random(1), benchmark()
    marks: dict[Path, tuple[int, int]] = {}
    for _ in range(3):
        with subprocess.Popen(command(tmp_path, delay_s=0.1, incomplete_after_s=9)) as daemon:
            wait(lambda: drill.running(out))
            time.sleep(rng.uniform(0.3, 1.5))
            assert daemon.poll() is None
            daemon.kill()
        for path in out.rglob("*_iso.ome.tif"):
            mark = (path.stat().st_ino, path.stat().st_mtime_ns)
            assert marks.setdefault(path, mark) == mark, f"{path.name} was published twice"
    with subprocess.Popen(command(tmp_path, delay_s=0, incomplete_after_s=9)) as daemon:
        wait(lambda: drill.running(out) and summary(out)["counts"] == {"done": len(sources)})
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(10) == 0
    results = sorted(path.name for path in out.rglob("*.tif"))
    assert results == [f"{number}_iso.ome.tif" for number in range(8)]
    for source in sources:
        assert is_right(out / source.name.replace(".ome.tif", "_iso.ome.tif"), source)
