from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pytest
import tifffile

from ssai3d_rt import cli
from ssai3d_rt.compare import METHODS, Budget, Fit
from ssai3d_rt.compare.picture import Panel, draw, liveliest_place
from ssai3d_rt.compare.run import PICTURE, RECORD, TABLE, compare
from ssai3d_rt.compare.table import columns
from ssai3d_rt.errors import BackendError, ConfigError
from ssai3d_rt.imaging import read_stack
from ssai3d_rt.imaging.axial import resample_z
from ssai3d_rt.imaging.simulate import acquire, strands
from ssai3d_rt.imaging.stack import Stack
from ssai3d_rt.imaging.write import read_provenance, write_ome_tiff
from ssai3d_rt.progress import Progress, silent

if TYPE_CHECKING:
    from pathlib import Path

    from ssai3d_rt.calibration.profile import RigProfile

pytest.importorskip("matplotlib")

TRUTH = strands((33, 40, 44), 12, seed=3)
STACK = acquire(TRUTH, 2, seed=1)
BUDGET = Budget(iterations=1)


@dataclass(frozen=True)
class Shifted:
    """A method that gives back the raw stack with something done to it."""

    add: float
    planes: int = 0
    name: str = "sparse:shifted"
    summary: str = "for this test"

    def fit(self, stack: Stack, rig: RigProfile | None, budget: Budget, *, progress: Progress = silent) -> Fit:
        def restore(raw: Stack) -> npt.NDArray[np.float32]:
            return resample_z(raw.data.astype(np.float32), raw.anisotropy)[self.planes :] + np.float32(self.add)

        progress("work", 1, 1)
        return Fit(restore, 1.5, 1200, {"lateral_psnr_db": 30.0})


def test_a_comparison_leaves_stacks_a_table_and_a_picture(tmp_path: Path) -> None:
    told: list[str] = []
    found = compare(
        STACK,
        [METHODS["raw"], Shifted(50.4)],
        tmp_path,
        budget=BUDGET,
        truth=Stack((60000 * TRUTH).astype(np.uint16), (0.1, 0.1, 0.1)),
        progress=lambda label, done, total, /: told.append(label),
    )
    raw, shifted = found.rows
    assert shifted.file == "sparse-shifted.ome.tif"
    assert shifted.figures.psnr_db == pytest.approx(raw.figures.psnr_db)  # an offset is fitted away
    assert shifted.figures.residual > raw.figures.residual
    assert "sparse:shifted: work" in told
    restored = read_stack(tmp_path / shifted.file)
    assert restored.voxel_um == pytest.approx((0.1, 0.1, 0.1))
    assert restored.data.dtype == np.uint16
    volume = resample_z(STACK.data.astype(np.float32), STACK.anisotropy) + np.float32(50.4)
    assert np.array_equal(restored.data, np.rint(np.clip(volume, 0, 65535)).astype(np.uint16))
    assert read_provenance(tmp_path / shifted.file)["method"] == "sparse:shifted"
    record = json.loads((tmp_path / RECORD).read_text(encoding="utf-8"))
    assert [row["method"] for row in record["rows"]] == ["raw", "sparse:shifted"]
    assert record["rows"][1]["trained_parameters"] == 1200
    text = (tmp_path / TABLE).read_text(encoding="utf-8")
    assert "| sparse:shifted |" in text
    assert "1.2 k" in text
    assert (tmp_path / PICTURE).read_bytes().startswith(b"\x89PNG")


def test_without_a_truth_the_table_has_no_column_for_it(tmp_path: Path) -> None:
    found = compare(STACK, [METHODS["raw"]], tmp_path, budget=BUDGET)
    heads = list(columns(found.rows))
    assert heads == ["method", "axial um", "lateral um", "isotropy", "residual %", "restore s"]
    with pytest.raises(ConfigError, match="holds a comparison; replace it with --overwrite"):
        compare(STACK, [METHODS["raw"]], tmp_path, budget=BUDGET)
    again = compare(STACK, [METHODS["raw"]], tmp_path, budget=BUDGET, overwrite=True)
    assert again.rows[0].figures == found.rows[0].figures


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no method"):
        compare(STACK, [], tmp_path, budget=BUDGET)
    with pytest.raises(ConfigError, match="raw is named twice"):
        compare(STACK, [METHODS["raw"]] * 2, tmp_path, budget=BUDGET)
    with pytest.raises(BackendError, match="sparse:shifted returned shape"):
        compare(STACK, [Shifted(0.0, planes=1)], tmp_path, budget=BUDGET)
    with pytest.raises(BackendError, match="not finite"):
        compare(STACK, [Shifted(float("nan"))], tmp_path, budget=BUDGET)


def test_the_place_that_is_shown_is_the_liveliest() -> None:
    volume = np.zeros((10, 50, 400), np.float32)
    volume[5, 30, 300:330] = 1.0
    place = liveliest_place(volume)
    assert place.y == 30
    assert 300 <= place.x < 330
    assert place.columns.stop - place.columns.start == 96
    assert place.columns.start <= 300
    assert place.columns.stop >= 330
    assert place.rows == slice(0, 50)


def test_rows_share_one_grey_scale_that_the_truth_sets(tmp_path: Path) -> None:
    slices = np.random.default_rng(0).random((12, 30), np.float32)
    dim = slices * np.float32(0.1)
    draw([Panel("dim", ("PSNR 1.0 dB",), dim, dim), Panel("truth", (), slices, slices)],
         tmp_path / "a.png", title="t", voxel_um=0.1)  # fmt: skip
    image = grey_values(tmp_path / "a.png")
    rows = image.shape[0]
    assert image[rows // 4 : rows // 2 - 20, -100:-30].mean() < 0.35 * image[-rows // 3 : -rows // 6, -100:-30].mean()


def grey_values(path: Path) -> npt.NDArray[np.float32]:
    """Read a PNG as grey values."""
    from matplotlib.image import imread

    return np.asarray(imread(path)[..., :3].mean(2))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("skimage")
    monkeypatch.chdir(tmp_path)
    write_ome_tiff("cells.ome.tif", STACK, {})
    tifffile.imwrite("truth.tif", TRUTH)  # without a voxel size
    status = cli.main(
        ["compare", "cells.ome.tif", "-o", "out", "--methods", "raw, richardson-lucy", "--truth", "truth.tif", "--json"]
    )
    out, err = capsys.readouterr()
    assert (status, err) == (0, "")
    rows = json.loads(out.splitlines()[-1])["rows"]
    assert rows[1]["figures"]["psnr_db"] > rows[0]["figures"]["psnr_db"] + 1
    assert cli.main(["compare", "cells.ome.tif", "-o", "more", "--methods", "base,sai3d"]) == 1
    assert 'unknown method "sai3d"; did you mean "ssai3d"' in capsys.readouterr().err
