"""The article's benchmark runs, takes up where it was left, and computes its bars rightly."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the benchmark in its smallest size, with results and page in a folder."""
    command = [sys.executable, "benchmarks/article.py", "--smoke", "--workers", "0", "--out", str(folder), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that imports one module of the benchmark."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return lambda name: importlib.import_module(f"suite.{name}")


@pytest.mark.timeout(300)
def test_it_restores_compares_and_goes_on_where_it_was(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the base network restores")
    done = run("--rows", "spheres", "--methods", "raw", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "article-smoke.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"row": "spheres", "met')  # a run that was killed while it wrote
    done = run("--rows", "spheres", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 of 2 jobs to do" in done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert (last["jobs"], last["left"]) == (2, 0)
    lines = (tmp_path / "article-smoke.jsonl").read_text(encoding="utf-8").splitlines()
    results = {r["method"]: r for r in (json.loads(line) for line in lines if line.endswith("}"))}
    assert results["base"]["psnr_db"] > results["raw"]["psnr_db"] + 1
    assert results["base"]["ssim"] > results["raw"]["ssim"]
    page = (tmp_path / "benchmark.md").read_text(encoding="utf-8")
    assert f"| base | {results['base']['psnr_db']:.2f} |" in page


@pytest.mark.timeout(300)
def test_unknown_rows_are_named(tmp_path: Path) -> None:
    done = run("--rows", "sphere", folder=tmp_path)
    assert done.returncode == 2
    assert "spheres" in done.stderr


def test_results_of_another_definition_of_a_row_are_not_used(suite: Any) -> None:
    rows, running = suite("rows"), suite("run")
    row = next(r for r in rows.rows(rows.QUICK) if r.name == "cylinders")
    (job,) = [j for j in running.jobs_of([row], rows.QUICK, ["base"]) if j.seed == 1]
    result = {"row": row.name, "method": "base", "seed": 1, "test": row.name, "digest": job.digest, "psnr_db": 1.0}
    assert running.missing([job], [result]) == []
    assert running.missing([job], [result | {"error": "out of memory"}]) == [job]
    longer = type(job)(rows.rows(rows.FULL)[3], "base", 1, job.crop)
    assert longer.row.name == row.name
    assert running.missing([longer], [result]) == [longer]


def gathered(suite: Any, values: dict[tuple[str, str, int], float], group: str = "kinds") -> Any:
    """Make results from PSNR by row, method and seed."""
    return suite("results").Results(
        [
            {"group": group, "row": row, "test": row, "method": method, "seed": seed, "psnr_db": value}
            for (row, method, seed), value in values.items()
        ]
    )


def test_bars_of_the_shipped_recipe(suite: Any) -> None:
    kinds = suite("rows").KINDS
    values = {(kind, "base", seed): 25.0 + seed for kind in kinds for seed in (1, 2)}
    values |= {(kind, "ssai3d", seed): 27.0 + seed for kind in kinds for seed in (1, 2)}
    values |= {(kind, "article", 1): 27.5 for kind in kinds}
    bar = suite("bars").shipped(gathered(suite, values))
    assert bar["mean_gain_over_base_db"] == pytest.approx(2)
    assert (bar["never_below_base"], bar["better_than_article"], bar["mean_gain_reached"]) == (True, True, True)
    values |= {(kinds[0], "ssai3d", seed): 24.8 + seed for seed in (1, 2)}
    bar = suite("bars").shipped(gathered(suite, values))
    assert bar["ssai3d_minus_base_db"][kinds[0]] == pytest.approx(-0.2)
    assert (bar["never_below_base"], bar["better_than_article"], bar["mean_gain_reached"]) == (False, False, False)
    del values[kinds[1], "base", 1], values[kinds[1], "base", 2]
    assert suite("bars").shipped(gathered(suite, values))["never_below_base"] is None


def test_bars_of_few_layers(suite: Any) -> None:
    psnr = {"care": 24.0, "full": 25.5, "article": 25.4, "sparse:first-last": 26.0}
    values = {(kind, m, 1): v for kind in suite("rows").DISSIMILAR for m, v in psnr.items()}
    bar = suite("bars").sparse(gathered(suite, values))
    assert bar["best_mode"] == "sparse:first-last"
    assert bar["at_least_full"] == {"article": False, "sparse:first-last": True}
    assert bar["above_care"] == {"article": True, "sparse:first-last": True, "full": True}


def test_bar_of_the_mismatch(suite: Any) -> None:
    levels = suite("rows").MISMATCH_PX
    falls = {"care": (20, 22, 24, 22, 19), "article": (26, 26, 25, 25, 24), "ssai3d": (28, 27, 26, 25, 24.5)}
    found = [
        {"group": "mismatch", "row": "mismatch", "test": f"flat strands: std {px} px", "seed": 1, "psnr_db": value}
        | {"method": method}
        for method, values in falls.items()
        for px, value in zip(levels, values, strict=True)
    ]
    bar = suite("bars").mismatch(suite("results").Results(found))
    assert (bar["care"]["fall_db"], bar["article"]["fall_db"], bar["ssai3d"]["fall_db"]) == (5, 2, 3.5)
    assert bar["below_half_of_care"] == {"article": True, "ssai3d": False}


def test_beads_are_measured_in_nanometres(suite: Any) -> None:
    from ssai3d_rt.imaging.simulate import beads, gaussian_psf_blur

    truth = beads((48, 64, 64), 5, seed=2)
    widths = suite("job").bead_widths(gaussian_psf_blur(truth, (2.0, 0, 0)), truth)
    assert widths["beads"] == widths["beads_true"] == 5
    assert widths["true_lateral_nm"] == pytest.approx(471, rel=0.01)
    assert widths["lateral_nm"] == pytest.approx(471, rel=0.01)
    assert widths["axial_nm"] == pytest.approx(471 * 2**0.5, rel=0.02)
    assert widths["axial_sd_nm"] < 10
