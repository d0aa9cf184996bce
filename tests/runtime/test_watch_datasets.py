"""Data sets that are folders, through the daemon: one result each, none before its writer is through."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zarr

from ssai3d_rt.imaging.read import read_stack
from ssai3d_rt.imaging.write import read_provenance
from ssai3d_rt.runtime.ledger import State
from ssai3d_rt.runtime.scan import files_of
from ssai3d_rt.runtime.source import content_hash
from ssai3d_rt.runtime.submit import submit
from tests.imaging.folders import close, ndtiff, separate, volume, zarr_threads
from tests.runtime.daemon import Rig, is_right

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DONE, WAITING, FAILED = State.DONE, State.WAITING, State.FAILED


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    return Rig(incoming, tmp_path / "isotropic", tmp_path / "restored.log").with_settings(incomplete_after_s=30.0)


@pytest.fixture
def _zarr() -> Iterator[None]:
    with zarr_threads():
        yield


def begin_zarr(path: Path, shape: tuple[int, ...]) -> Any:
    group = zarr.open_group(path, mode="w", zarr_format=3)
    array = group.create_array("0", shape=shape, chunks=(1, 24, 24), dtype="uint16", dimension_names=("z", "y", "x"))
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
    scale = [{"type": "scale", "scale": [0.2, 0.1, 0.1]}]
    datasets = [{"path": "0", "coordinateTransformations": scale}]
    multiscales: Any = [{"name": "a", "axes": axes, "datasets": datasets}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": multiscales}
    return array


def test_an_ndtiff_data_set_is_restored_once_its_index_is_closed(rig: Rig) -> None:
    folder = rig.incoming / "run_1"
    with rig.running():
        writer = ndtiff(folder, volume(1, 1, 5, 24, 24))
        rig.wait(lambda: rig.states().get("run_1") is WAITING)
        assert rig.results() == []
        close(writer)
        rig.wait(lambda: rig.states()["run_1"] is DONE)
    assert rig.results() == ["run_1_iso.ome.tif"]
    assert is_right(rig.out / "run_1_iso.ome.tif", folder)
    content = content_hash(files_of(folder), below=folder)
    assert read_provenance(rig.out / "run_1_iso.ome.tif")["source_sha256"] == content


@pytest.mark.usefixtures("_zarr")
def test_an_ome_zarr_is_restored_once_every_chunk_is_there(rig: Rig) -> None:
    path = rig.incoming / "day" / "cells.ome.zarr"
    planes = volume(5, 24, 24)
    with rig.running():
        array = begin_zarr(path, planes.shape)
        for number in range(4):
            array[number] = planes[number]
        rig.wait(lambda: rig.states().get("cells.ome.zarr") is WAITING)
        assert rig.results() == []
        array[4] = planes[4]
        rig.wait(lambda: rig.states()["cells.ome.zarr"] is DONE)
    assert rig.results() == ["day/cells_iso.ome.tif"]
    assert is_right(rig.out / "day" / "cells_iso.ome.tif", path)
    np.testing.assert_array_equal(read_stack(path).data, planes)
    with rig.running():  # known again after a restart
        rig.wait(lambda: not rig.events)
        array[2] = planes[3]  # and noticed when it changes
        rig.wait(lambda: rig.states().get("cells.ome.zarr") is DONE)
    assert rig.restored() == ["cells.ome.zarr", "cells.ome.zarr"]


@pytest.mark.usefixtures("_zarr")
def test_a_killed_writers_zarr_is_listed(rig: Rig) -> None:
    rig = rig.with_settings(incomplete_after_s=0.5)
    array = begin_zarr(rig.incoming / "cut.zarr", (5, 24, 24))
    array[:2] = 7
    with rig.running():
        rig.wait(lambda: rig.states().get("cut.zarr") is FAILED)
    assert rig.reason("cut.zarr").startswith("incomplete: ")
    assert rig.results() == []


def test_separate_images_and_a_word_about_their_folder(rig: Rig) -> None:
    rig = rig.with_settings(quiet_s=20.0, acquiring_s=0.1)
    folder = rig.incoming / "Pos0"
    separate(folder, volume(1, 1, 4, 24, 24))
    with rig.running():
        rig.wait(lambda: rig.states().get("Pos0") is State.SEEN)
        submit(folder, rig.out)
        rig.wait(lambda: rig.states()["Pos0"] is DONE)
    assert rig.results() == ["Pos0_iso.ome.tif"]
    assert is_right(rig.out / "Pos0_iso.ome.tif", folder)
