from __future__ import annotations

import contextlib
import logging
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tifffile

from ssai3d_rt.errors import BackendError, BundleError, InputError, StorageError, VoxelSizeError
from ssai3d_rt.export.bundle import AdaptationEntry
from ssai3d_rt.imaging.read import open_acquisition, read_stack, read_stacks
from ssai3d_rt.imaging.stack import Stack
from ssai3d_rt.imaging.write import read_provenance, write_ome_tiff
from ssai3d_rt.runtime.backends import open_runner, why_not
from ssai3d_rt.runtime.restore import restore, restore_file, restore_position
from tests.tiny import tiny_stack

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ssai3d_rt.export.bundle import Bundle
    from ssai3d_rt.runtime.backends import Runner

NAME = next((name for name in ("onnxruntime", "openvino") if why_not(name) is None), "")
pytestmark = pytest.mark.skipif(not NAME, reason="needs onnxruntime or openvino")


@pytest.fixture
def runner(tiny_bundle: Bundle) -> Iterator[Runner]:
    with contextlib.closing(open_runner(tiny_bundle, NAME)) as opened:
        yield opened


def movie(times: int = 2, channels: tuple[str, ...] = ("DAPI", "GFP")) -> list[Stack]:
    stacks = []
    for time in range(times):
        for number, channel in enumerate(channels):
            raw = tiny_stack(seed=10 * time + number)
            stacks.append(Stack(raw.data, raw.voxel_um, channel, time))
    return stacks


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_a_restored_stack_keeps_type_size_and_intensity(runner: Runner, dtype: str) -> None:
    raw = tiny_stack()
    top = 250 if dtype == "uint8" else 60_000
    data = (raw.data / raw.data.max() * top).astype(dtype)
    stack = Stack(data, raw.voxel_um, "GFP", 3, "Pos2")
    done = restore(stack, runner)
    assert done.stack.data.dtype == dtype
    assert done.stack.data.shape == (stack.isotropic_planes, *stack.data.shape[1:])
    assert done.stack.voxel_um == pytest.approx((stack.lateral_um,) * 3)
    assert (done.stack.channel, done.stack.time, done.stack.position) == ("GFP", 3, "Pos2")
    assert done.stack.data.mean() == pytest.approx(stack.data.mean(), rel=0.01)
    assert done.trust is None


def test_the_report_says_what_was_done(runner: Runner, tiny_bundle: Bundle) -> None:
    seen: list[int] = []
    report = restore(tiny_stack(), runner, progress=lambda label, done, total: seen.append(done)).report
    assert report["backend"] == NAME
    assert report["bundle_id"] == tiny_bundle.bundle_id
    assert (report["shape"], report["restored_shape"]) == ([10, 36, 32], [37, 36, 32])
    assert report["scale"] > 0
    assert 0.5 < report["mean_ratio"] < 2
    assert report["seconds"] > 0
    assert report["warnings"] == []
    assert seen[-1] == max(seen) > 0


def test_what_lies_outside_the_methods_limits_is_restored_with_a_warning(runner: Runner) -> None:
    stack = tiny_stack()
    flat = Stack(stack.data[:4], (2.0, 0.1, 0.1))
    warnings = restore(flat, runner).report["warnings"]
    assert "20x anisotropy is outside the method's limits" in warnings[0]
    assert "4 planes are outside" in warnings[1]
    with pytest.raises(InputError, match="a stack of 2 planes cannot be restored"):
        restore(Stack(stack.data[:2], stack.voxel_um), runner)


def test_a_stack_that_the_model_was_not_adapted_to_is_restored_with_a_warning(
    tiny_bundle: Bundle, tmp_path: Path, runner: Runner, caplog: pytest.LogCaptureFixture
) -> None:
    entry = {"voxel_um": [0.4, 0.1, 0.1], "scale": 4000.0, "std": 400.0}
    adaptation = AdaptationEntry(record={"stacks": [entry]})
    raw = tiny_stack()
    write_ome_tiff(tmp_path / "other.ome.tif", Stack(raw.data, (0.8, 0.2, 0.2)))
    with open_acquisition(tmp_path / "other.ome.tif") as acquisition, caplog.at_level(logging.WARNING):
        done = restore_position(acquisition, 0, tmp_path / "iso.ome.tif", runner, adaptation=adaptation)
    (sentence,) = done.reports[0]["warnings"]
    assert "adapted to another kind of stack: the pixel is 0.2 um, it was 0.1" in sentence
    assert caplog.text.count(sentence) == 1
    assert read_provenance(tmp_path / "iso.ome.tif")["normalisation"][0]["warnings"] == [sentence]


def test_a_bundle_will_do_in_place_of_a_runner(tiny_bundle: Bundle, private_cache: Path) -> None:
    done = restore(tiny_stack(), tiny_bundle)
    assert done.report["bundle_id"] == tiny_bundle.bundle_id


def test_a_file_becomes_one_isotropic_ome_tiff(tiny_bundle: Bundle, tmp_path: Path, runner: Runner) -> None:
    source = tmp_path / "cells.ome.tif"
    write_ome_tiff(source, movie())
    before = source.read_bytes()
    reports = restore_file(source, tmp_path / "out", runner)
    result = tmp_path / "out" / "cells_iso.ome.tif"
    assert [report["result"] for report in reports] == [str(result)] * 4
    assert [(report["time"], report["channel"]) for report in reports] == [
        (0, "DAPI"),
        (0, "GFP"),
        (1, "DAPI"),
        (1, "GFP"),
    ]
    stacks = list(read_stacks(result))
    assert [(stack.channel, stack.time) for stack in stacks] == [(raw.channel, raw.time) for raw in movie()]
    expected = restore(movie()[3], runner).stack
    assert np.array_equal(stacks[3].data, expected.data)
    assert stacks[3].voxel_um == pytest.approx(expected.voxel_um)
    provenance = read_provenance(result)
    assert provenance["bundle_id"] == tiny_bundle.bundle_id
    assert provenance["source"] == "cells.ome.tif"
    assert [note["scale"] for note in provenance["normalisation"]] == [report["scale"] for report in reports]
    assert source.read_bytes() == before
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["cells_iso.ome.tif"]


def test_the_same_input_gives_the_same_pixels_and_provenance(tmp_path: Path, runner: Runner) -> None:
    write_ome_tiff(tmp_path / "cells.ome.tif", tiny_stack())
    results = [tmp_path / "a.ome.tif", tmp_path / "b.ome.tif"]
    for result in results:
        restore_file(tmp_path / "cells.ome.tif", result, runner)
    first, second = (read_stack(result) for result in results)
    assert np.array_equal(first.data, second.data)
    assert read_provenance(results[0]) == read_provenance(results[1])


def test_trust_is_written_beside_the_result(tmp_path: Path, runner: Runner) -> None:
    write_ome_tiff(tmp_path / "cells.ome.tif", movie(1))
    (report, _) = restore_file(tmp_path / "cells.ome.tif", tmp_path / "out" / "iso.ome.tif", runner, trust=True)
    result, trust = (read_stack(report[key], channel="GFP") for key in ("result", "trust"))
    assert report["trust"] == str(tmp_path / "out" / "iso_trust.ome.tif")
    assert trust.data.dtype == np.float32
    assert (trust.data.shape, trust.voxel_um, trust.channel) == (result.data.shape, result.voxel_um, "GFP")
    assert trust.data.min() >= 0
    assert trust.data.max() > 0
    assert 0 <= report["doubtful"] <= 1
    assert report["mean_doubt"] == pytest.approx(read_stack(report["trust"], channel="DAPI").data.mean(), rel=1e-3)
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_an_existing_result_is_never_replaced(tmp_path: Path, runner: Runner) -> None:
    write_ome_tiff(tmp_path / "cells.ome.tif", tiny_stack())
    taken = tmp_path / "cells_iso.ome.tif"
    taken.write_bytes(b"mine")
    with pytest.raises(StorageError, match=r"cells_iso.ome.tif exists already"):
        restore_file(tmp_path / "cells.ome.tif", tmp_path, runner)
    assert taken.read_bytes() == b"mine"


class Breaks:
    """A runner that fails in the middle, as a GPU does that is unplugged."""

    name, detail, bundle_id, tile, batch = "breaks", "", "x", 64, 8
    left = 5

    def run(self, tiles: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise BackendError("the device is gone")
        return tiles

    def close(self) -> None: ...


def test_a_failure_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    write_ome_tiff(tmp_path / "cells.ome.tif", movie())
    with pytest.raises(BackendError, match="the device is gone"):
        restore_file(tmp_path / "cells.ome.tif", tmp_path / "out", Breaks(), trust=True)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_voxel_size_that_is_not_in_the_file_is_asked_for(tmp_path: Path, runner: Runner) -> None:
    tifffile.imwrite(tmp_path / "plain.tif", tiny_stack().data)
    with pytest.raises(VoxelSizeError, match=r"plain.tif.*--voxel-z"):
        restore_file(tmp_path / "plain.tif", tmp_path / "out", runner)
    (report,) = restore_file(tmp_path / "plain.tif", tmp_path / "out", runner, voxel_z=0.4, voxel_xy=0.1)
    assert report["restored_voxel_um"] == [0.1, 0.1, 0.1]


def test_a_folder_that_is_not_a_bundle_is_refused(tmp_path: Path) -> None:
    write_ome_tiff(tmp_path / "cells.ome.tif", tiny_stack())
    with pytest.raises(BundleError, match=r"manifest.json is missing"):
        restore_file(tmp_path / "cells.ome.tif", tmp_path / "out", tmp_path)
    assert not (tmp_path / "out").exists()


def test_several_positions_get_a_file_each(tmp_path: Path, runner: Runner) -> None:
    for position in range(2):
        raw = tiny_stack(seed=position)
        named = Stack(raw.data, raw.voxel_um, position=f"well A{position}")
        write_ome_tiff(tmp_path / f"run_p{position:03d}.ome.tif", named)
    reports = restore_file(tmp_path, tmp_path / "out", runner)
    assert [report["position"] for report in reports] == ["well A0", "well A1"]
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert len(names) == 2
    assert [name[-len("_well-A0_iso.ome.tif") :] for name in names] == ["_well-A0_iso.ome.tif", "_well-A1_iso.ome.tif"]


def test_time_points_that_lack_planes_are_left_out(
    tmp_path: Path, runner: Runner, caplog: pytest.LogCaptureFixture
) -> None:
    class Stopped:
        """An acquisition whose second time point was not finished."""

        def __init__(self, real: Any) -> None:
            self._real = real

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

        def is_whole(self, key: Any) -> bool:
            return not (key.time == 1 and key.channel == 1)

    write_ome_tiff(tmp_path / "cells.ome.tif", movie(3))
    with open_acquisition(tmp_path / "cells.ome.tif") as acquisition, caplog.at_level(logging.WARNING):
        stopped: Any = Stopped(acquisition)
        done = restore_position(stopped, 0, tmp_path / "iso.ome.tif", runner)
    assert [report["time"] for report in done.reports] == [0, 0, 2, 2]
    assert done.written.shape[:2] == (2, 2)
    assert "1 of 3 time points lack planes" in caplog.text


def test_real_spots_are_restored_without_torch(
    tiny_bundle: Bundle, tmp_path: Path, shared_data: Path, private_cache: Path
) -> None:
    import subprocess
    import sys

    code = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['onnx'] = sys.modules['safetensors'] = sys.modules['scipy'] = None\n"
        "from ssai3d_rt.runtime.restore import restore_file\n"
        "restore_file(sys.argv[1], sys.argv[2], sys.argv[3])\n"
    )
    source = shared_data / "stacks" / "xyz_16bit__spots.tif"
    command = [sys.executable, "-c", code, str(source), str(tmp_path), str(tiny_bundle.folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    raw, restored = read_stack(source), read_stack(tmp_path / "xyz_16bit__spots_iso.ome.tif")
    assert restored.data.dtype == np.uint16
    assert restored.data.shape == (raw.isotropic_planes, *raw.data.shape[1:])
    assert restored.voxel_um == pytest.approx((0.0941,) * 3, abs=1e-4)
