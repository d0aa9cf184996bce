from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from ssai3d_rt.demo.microscope import (
    SOURCES,
    DemoCamera,
    Microscope,
    Simulation,
    covered_planes,
    open_source,
    sample_core,
)
from ssai3d_rt.demo.sample import Sample
from ssai3d_rt.errors import ConfigError, IncompleteError
from ssai3d_rt.imaging.read import read_stack

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

needs_core = pytest.mark.skipif(bool(Microscope().why_not()), reason=str(Microscope().why_not()))
needs_demo_camera = pytest.mark.skipif(bool(DemoCamera().why_not()), reason=str(DemoCamera().why_not()))


@pytest.fixture(scope="module")
def sample() -> Sample:
    return Sample.strands(seed=3, size_px=40)


@needs_core
@pytest.mark.parametrize("z_step", [1, 3])
def test_microscope_writes_what_its_camera_saw(tmp_path: Path, sample: Sample, z_step: int) -> None:
    path = tmp_path / "cells.ome.tif"
    truth = Microscope(z_step=z_step, exposure_ms=0).acquire(path, sample)
    stack = read_stack(path)
    assert stack.data.dtype == np.uint16
    np.testing.assert_array_equal(stack.data, sample.counts[::z_step])
    assert stack.voxel_um == pytest.approx((z_step * 0.1, 0.1, 0.1))
    assert truth is not None
    assert truth.shape[0] == stack.isotropic_planes


@needs_core
def test_camera_shows_the_plane_nearest_to_the_stage(sample: Sample) -> None:
    with sample_core(sample) as core:
        for height_um, plane in ((0.0, 0), (0.32, 3), (1.0, 10), (99.0, 39), (-5.0, 0)):
            core.setPosition(height_um)
            np.testing.assert_array_equal(core.snap(), sample.counts[plane])


@needs_core
def test_cancelled_acquisition_is_not_taken_for_a_stack(
    tmp_path: Path, sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pymmcore_plus.mda import MDARunner

    monkeypatch.setattr(MDARunner, "run", _run_cancelled(MDARunner.run))
    with pytest.raises(IncompleteError, match=r"acquisition of cells\.ome\.tif was canceled"):
        Microscope(exposure_ms=0).acquire(tmp_path / "cells.ome.tif", sample)


def _run_cancelled(run: Callable[..., None]) -> Callable[..., None]:
    def cancelled(runner: Any, events: Any, **options: Any) -> None:
        runner.events.frameReady.connect(lambda *_: runner.cancel())
        run(runner, events, **options)

    return cancelled


@needs_core
def test_process_that_used_the_microscope_ends_well(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib\n"
        "from ssai3d_rt.demo.microscope import Microscope\n"
        "from ssai3d_rt.demo.sample import Sample\n"
        "Microscope(exposure_ms=0).acquire(pathlib.Path(sys.argv[1]), Sample.strands(0, size_px=24))\n"
    )
    for attempt in range(3):  # without the orderly end about two in three processes abort
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / f"{attempt}.ome.tif")], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr


@needs_demo_camera
def test_demo_camera_acquires_beads(tmp_path: Path, sample: Sample) -> None:
    stacks = []
    for seed in (0, 1):
        path = tmp_path / f"beads_{seed}.ome.tif"
        here = Sample(sample.truth, sample.counts, sample.camera, seed)
        assert DemoCamera(frame_px=64, planes=9).acquire(path, here) is None
        stacks.append(read_stack(path))
    for stack in stacks:
        assert stack.data.shape == (9, 64, 64)
        assert stack.voxel_um == pytest.approx((0.5, 0.25, 0.25))
        lit = (stack.data > 0.3 * stack.data.max()).mean((1, 2))
        assert lit[0] > 1.3 * lit[4]
        assert lit[8] > 1.3 * lit[4]
    assert (stacks[0].data != stacks[1].data).any()


def test_simulation_writes_the_same_stack_as_the_microscope(tmp_path: Path, sample: Sample) -> None:
    truth = Simulation(z_step=2).acquire(tmp_path / "cells.ome.tif", sample)
    stack = read_stack(tmp_path / "cells.ome.tif")
    np.testing.assert_array_equal(stack.data, sample.counts[::2])
    assert stack.voxel_um == pytest.approx((0.2, 0.1, 0.1))
    assert truth is not None
    assert truth.shape[0] == stack.isotropic_planes == covered_planes(sample, 2) == 39


def test_sample_is_seeded_and_blurred_along_z(sample: Sample) -> None:
    again, other = (Sample.strands(seed, size_px=40) for seed in (3, 4))
    np.testing.assert_array_equal(sample.counts, again.counts)
    assert (sample.counts != other.counts).mean() > 0.5
    seen = sample.on_truth_scale(sample.counts)
    assert seen.mean() == pytest.approx(sample.truth.mean(), rel=0.05)
    steepness = [float(np.abs(np.diff(seen, axis=axis)).mean()) for axis in (0, 1, 2)]
    assert steepness[0] < 0.6 * min(steepness[1:])


def test_default_source_is_the_microscope() -> None:
    assert next(iter(SOURCES)) == "microscope"


def test_unknown_source_is_refused_with_the_choices() -> None:
    with pytest.raises(
        ConfigError, match="unknown source 'microscpe'; choose one of microscope, demo-camera, simulation"
    ):
        open_source("microscpe")


def test_source_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymmcore_plus", None)
    with pytest.raises(ConfigError, match=r'"ssai3d-rt\[micromanager\]".*--source simulation'):
        open_source("microscope")
