"""A daemon on a folder into which NDTiff, OME-Zarr and separate images are written: one right result each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ssai3d_rt.runtime.ledger import State
from tests.imaging.folders import close, ndtiff, ome_zarr, separate, volume
from tests.runtime.daemon import Rig, is_right

if TYPE_CHECKING:
    from pathlib import Path

DATA = volume(1, 1, 6, 24, 24)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    (tmp_path / "incoming").mkdir()
    return Rig(tmp_path / "incoming", tmp_path / "out", tmp_path / "log.txt")


def test_data_sets_that_are_folders_are_restored_when_they_are_finished(rig: Rig) -> None:
    writer = ndtiff(rig.incoming / "ndtiff", DATA)
    separate(rig.incoming / "separate", DATA, finished=False)
    ome_zarr(rig.incoming / "zarr.ome.zarr", DATA[0, 0], "zyx")
    chunk = rig.incoming / "zarr.ome.zarr" / "0" / "c" / "5" / "0" / "0"
    held = chunk.rename(rig.incoming.parent / "held")
    try:
        with rig.running():
            rig.wait_for(ndtiff=State.FAILED, separate=State.FAILED, zarr=State.FAILED)  # incomplete, as they are held
            assert "incomplete: its index is empty" in rig.reason("ndtiff")
            assert "incomplete: its metadata.txt is not finished" in rig.reason("separate")
            assert "plane (t=0, c=0, z=5) (5 of 6 planes are there)" in rig.reason("zarr.ome.zarr")
            assert rig.results() == []
            close(writer)
            separate(rig.incoming / "separate", DATA)
            held.rename(chunk)
            rig.wait_for(ndtiff=State.DONE, separate=State.DONE, zarr=State.DONE)
    finally:
        if writer.current_writer is not None:
            close(writer)
    assert sorted(rig.restored()) == ["ndtiff", "separate", "zarr.ome.zarr"]
    results = [name for name in rig.results() if name.endswith(".ome.tif")]
    assert len(results) == 3
    for name in results:
        source = rig.incoming / name.replace("_iso.ome.tif", "")
        assert is_right(rig.out / name, source if source.exists() else source.with_name("zarr.ome.zarr"))
