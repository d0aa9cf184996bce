from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest

from ssai3d_rt.demo.picture import best_slice, draw
from ssai3d_rt.demo.report import DemoResult, Views, measure
from ssai3d_rt.demo.sample import Sample
from ssai3d_rt.imaging.axial import resample_z
from ssai3d_rt.imaging.simulate import gaussian_psf_blur


@pytest.fixture(scope="module")
def views() -> Views:
    """A stack whose "restored" volume is less blurred than its raw one."""
    sample = Sample.strands(seed=5, size_px=48)
    raw = resample_z(sample.on_truth_scale(sample.counts[::2]), 2.0)
    truth = sample.truth[: raw.shape[0]]
    base = gaussian_psf_blur(truth, (3.0, 0.5, 0.5))
    return Views("stack_01", 0.1, raw, base, gaussian_psf_blur(truth, (1.0, 0.5, 0.5)), truth)


def result(views: Views, *more: Views) -> DemoResult:
    stacks = tuple(measure(each, 2.0 + number) for number, each in enumerate((views, *more)))
    out = Path("demo-out")
    return DemoResult("simulation", out, stacks, 99.04, {"acquire": 1.25}, out / "slices.png", out / "b", "none", True)


def printed(result: DemoResult, width: int = 120) -> str:
    from rich.console import Console

    stream = io.StringIO()
    Console(file=stream, width=width).print(result.table())
    return stream.getvalue()


def test_less_blur_is_better_in_every_figure(views: Views) -> None:
    figures = measure(views, 2.0)
    assert figures.raw
    assert figures.base
    assert figures.restored
    assert figures.raw.psnr_db < figures.base.psnr_db < figures.restored.psnr_db
    assert figures.raw.ssim < figures.base.ssim < figures.restored.ssim < 1
    assert figures.lateral_um < figures.restored_axial_um < figures.raw_axial_um


def test_psnr_is_on_the_scale_of_the_truth(views: Views) -> None:
    assert views.truth is not None
    off_by_a_tenth = Views("x", 0.1, views.raw, views.base, views.truth + np.float32(0.1), views.truth)
    figures = measure(off_by_a_tenth, 0.0)
    assert figures.restored
    assert figures.restored.psnr_db == pytest.approx(20.0, abs=0.01)


def test_summary_is_json_with_the_mean_over_the_stacks(views: Views) -> None:
    both = result(views, Views("stack_02", 0.1, views.raw, views.base, views.base, views.truth))
    summary = json.loads(json.dumps(both.summary(), allow_nan=False))
    first, second = both.stacks
    assert first.restored
    assert second.restored
    assert summary["stacks_restored"] == 2
    assert summary["restored_psnr_db"] == pytest.approx(
        (first.restored.psnr_db + second.restored.psnr_db) / 2, abs=1e-3
    )
    assert summary["restored_axial_um"] == pytest.approx(
        (first.restored_axial_um + second.restored_axial_um) / 2, abs=1e-3
    )
    assert (summary["source"], summary["out"], summary["seconds"]) == ("simulation", "demo-out", 99.0)


def test_summary_without_truth_is_null_where_only_the_truth_could_tell(views: Views) -> None:
    summary = result(Views("beads", 0.1, views.raw, views.base, views.restored)).summary()
    assert [summary[f"{kind}_psnr_db"] for kind in ("raw", "base", "restored")] == [None] * 3
    assert summary["raw_axial_um"] > summary["restored_axial_um"] > 0


def test_perfect_result_is_still_json(views: Views) -> None:
    assert views.truth is not None
    summary = result(Views("x", 0.1, views.raw, views.base, views.truth, views.truth)).summary()
    assert summary["restored_psnr_db"] is None
    assert json.dumps(summary, allow_nan=False)


def test_stack_without_structure_has_no_resolution(views: Views) -> None:
    flat = np.full_like(views.raw, 100)
    summary = result(Views("x", 0.1, views.raw, views.base, flat)).summary()
    assert summary["restored_axial_um"] is None
    assert "n/a" in printed(result(Views("x", 0.1, views.raw, views.base, flat)))


def test_table_shows_each_stack_and_their_mean(views: Views) -> None:
    text = printed(result(views, views))
    assert text.count("stack_01") == 2
    for word in ("mean", "PSNR", "SSIM", "axial", "raw -> base -> restored"):
        assert word in text


def test_table_without_truth_claims_none(views: Views) -> None:
    text = printed(result(Views("beads", 0.1, views.raw, views.base, views.restored)))
    assert "dB" not in text
    assert "truth of this source is not known" in text


def test_picture_shows_four_panels_side_by_side(views: Views, tmp_path: Path) -> None:
    from matplotlib.image import imread

    draw(views, measure(views, 1.0), tmp_path / "four.png")
    blind = Views("beads", 0.1, views.raw, views.base, views.restored)
    draw(blind, measure(blind, 1.0), tmp_path / "three.png")
    four, three = imread(tmp_path / "four.png"), imread(tmp_path / "three.png")
    assert four.shape[1] * 3 == three.shape[1] * 4
    dark = (four[..., :3].mean(-1) < 0.3).mean(axis=0)  # the panels' background
    panels = np.flatnonzero(np.diff((dark > 0.2).astype(int)) == 1)
    assert len(panels) == 4


def test_slice_is_picked_where_the_structure_is() -> None:
    raw = np.zeros((20, 30, 30), np.float32)
    raw[8:12, 17, 9:21:3] = 1
    row, column = best_slice(Views("x", 0.1, raw, raw, raw))
    assert row == 17
    assert column in range(9, 21, 3)
