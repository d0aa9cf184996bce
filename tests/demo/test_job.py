from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import numpy as np
import pytest

from ssai3d_rt.demo.daemon import RunningWatch
from ssai3d_rt.demo.job import MARK, OURS, OURS_FILES, Plan, prepare, run_demo
from ssai3d_rt.demo.microscope import Microscope
from ssai3d_rt.errors import ConfigError, IncompleteError
from ssai3d_rt.export.bundle import Bundle
from ssai3d_rt.imaging.read import read_stack
from ssai3d_rt.runtime.status import summary

if TYPE_CHECKING:
    from pathlib import Path

SMALL = Plan(stacks=2, size_px=32, iterations=2, engine=False)


@pytest.mark.timeout(180)
def test_small_demo_does_the_whole_job(tmp_path: Path) -> None:
    source = "simulation" if Microscope().why_not() else "microscope"
    told: list[str] = []
    out = tmp_path / "demo-out"

    result = run_demo(out, source=source, plan=SMALL, progress=lambda label, _done, _total: told.append(label))

    assert [stack.name for stack in result.stacks] == ["stack_01", "stack_02"]
    for stack in result.stacks:
        raw = read_stack(out / "incoming" / f"{stack.name}.ome.tif")
        restored = read_stack(out / "isotropic" / f"{stack.name}_iso.ome.tif")
        assert restored.data.dtype == raw.data.dtype == np.uint16
        assert restored.data.shape == (raw.isotropic_planes, *raw.data.shape[1:])
        assert restored.voxel_um == pytest.approx((raw.lateral_um,) * 3)
        assert restored.data.mean() == pytest.approx(raw.data.mean(), rel=0.01)
        assert read_stack(out / "truth" / f"{stack.name}.ome.tif").data.shape == restored.data.shape
        assert stack.raw
        assert stack.restored
        assert stack.seconds < SMALL.patience_s
    assert Bundle.open(out / "cells.ssai3d").manifest.tile == 32
    assert (out / "rig.toml").is_file()
    assert (out / "model" / "loss.png").is_file()
    assert (out / "slices.png").read_bytes().startswith(b"\x89PNG")
    assert {"acquire", "calibrate", "finetune", "export", "watch", "report"} <= set(result.steps)
    assert {"acquire the first stack", "watch restores the next stacks", "measure the results"} <= set(told)
    ended = summary(out / "isotropic")
    assert (ended["running"], ended["counts"]["done"], ended["failed"]) == (False, 2, [])
    report = json.loads((out / "report.json").read_text())
    assert report["stacks_restored"] == 2
    assert len(report["stacks"]) == 2
    assert {path.name for path in out.iterdir()} <= {*OURS, *OURS_FILES}


def test_readme_names_every_file_of_the_demo(tmp_path: Path) -> None:
    prepare(tmp_path / "out")
    text = (tmp_path / "out" / "README.txt").read_text()
    for name in (*OURS, *OURS_FILES):
        if name != "README.txt":
            assert re.search(rf"\b{re.escape(name)}\b", text), name


def test_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.docx").write_text("years of work")
    (tmp_path / "incoming").mkdir()
    with pytest.raises(ConfigError, match="holds files that no demo wrote; name another folder with -o"):
        prepare(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["incoming", "thesis.docx"]


def test_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    with pytest.raises(ConfigError, match="is a file; name a folder"):
        prepare(tmp_path / "out")


def test_earlier_demo_is_replaced_and_what_was_added_stays(tmp_path: Path) -> None:
    prepare(tmp_path)
    (tmp_path / "isotropic" / "old.ome.tif").write_text("old")
    (tmp_path / "slices.png").write_text("old")
    (tmp_path / "notes.txt").write_text("mine")
    prepare(tmp_path)
    assert not (tmp_path / "slices.png").exists()
    assert not list((tmp_path / "isotropic").iterdir())
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "README.txt").read_text().startswith(MARK)


def test_link_in_an_earlier_demo_is_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "data.tif").write_text("data")
    out = tmp_path / "out"
    prepare(out)
    (out / "isotropic").rmdir()
    (out / "isotropic").symlink_to(elsewhere)
    prepare(out)
    assert (elsewhere / "data.tif").read_text() == "data"
    assert not (out / "isotropic").is_symlink()


def test_watch_that_cannot_start_is_quoted(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with (
        RunningWatch(tmp_path / "in", tmp_path / "out", tmp_path / "no.ssai3d", tmp_path / "watch.log") as watch,
        pytest.raises(
            IncompleteError, match=r"watch ended with exit code \d before it was watching; its last line: .*no\.ssai3d"
        ),
    ):
        watch.wait_until_watching(60)
