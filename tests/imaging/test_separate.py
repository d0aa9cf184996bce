"""Separate image files: Micro-Manager's names and metadata, new and old."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pytest
import tifffile

from ssai3d_rt.errors import IncompleteError, InputError
from ssai3d_rt.imaging.folder import plane_axes
from ssai3d_rt.imaging.read import open_acquisition, read_stack
from tests.imaging.folders import separate, volume

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("old", [False, True], ids=["2.0", "1.4"])
def test_it_reads_what_was_written(tmp_path: Path, old: bool) -> None:
    data = volume(2, 2, 4, 32, 40)
    separate(tmp_path / "Pos0", data, old=old)
    with open_acquisition(tmp_path / "Pos0") as acquisition:
        assert [(k.time, k.channel_name) for k in acquisition.keys] == [
            (0, "DAPI"),
            (0, "GFP"),
            (1, "DAPI"),
            (1, "GFP"),
        ]
        assert acquisition.voxel_um == (0.4, 0.1, 0.1)
        assert "Pos0: separate image files, 1 position" in acquisition.describe()
        for key in acquisition.keys:
            np.testing.assert_array_equal(acquisition.read(key).data, data[key.time, key.channel])


def test_a_plane_without_a_file_is_named(tmp_path: Path) -> None:
    separate(tmp_path / "Pos0", volume(1, 1, 4, 32, 40), skip=((0, 0, 3),))
    with pytest.raises(IncompleteError, match=r"Pos0: plane \(t=0, c=0, z=3\) is declared but not there \(3 of 4"):
        read_stack(tmp_path / "Pos0")


def test_metadata_that_are_not_closed_are_incomplete(tmp_path: Path) -> None:
    separate(tmp_path / "Pos0", volume(1, 1, 4, 32, 40), finished=False)
    with pytest.raises(IncompleteError, match=r"Pos0: its metadata\.txt is not finished"):
        read_stack(tmp_path / "Pos0")


def test_a_plane_that_is_not_like_the_others_is_refused(tmp_path: Path) -> None:
    separate(tmp_path / "Pos0", volume(1, 1, 4, 32, 40))
    path = tmp_path / "Pos0" / "img_channel000_position000_time000000000_z002.tif"
    tifffile.imwrite(path, volume(16, 40), metadata=None)
    with pytest.raises(InputError, match=r"z002\.tif: is 16 x 40 uint16, other planes are 32 x 40"):
        read_stack(tmp_path / "Pos0")
    tifffile.imwrite(path, volume(2, 32, 40), metadata=None, photometric="minisblack")
    with pytest.raises(InputError, match=r"z002\.tif: holds 2 images, not one plane"):
        read_stack(tmp_path / "Pos0")


def test_a_plane_that_changes_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    separate(tmp_path / "Pos0", volume(1, 1, 4, 32, 40))
    with open_acquisition(tmp_path / "Pos0") as acquisition:
        os.utime(tmp_path / "Pos0" / "img_channel000_position000_time000000000_z000.tif", ns=(5, 5))
        with pytest.raises(IncompleteError, match=r"z000\.tif: changed while it was being read"):
            acquisition.read(acquisition.keys[0])


def test_a_link_is_refused(tmp_path: Path) -> None:
    separate(tmp_path / "Pos0", volume(1, 1, 4, 32, 40))
    path = tmp_path / "Pos0" / "img_channel000_position000_time000000000_z001.tif"
    path.symlink_to(path.rename(tmp_path / "elsewhere.tif"))
    with pytest.raises(InputError, match=r"z001\.tif: is a symbolic link"):
        read_stack(tmp_path / "Pos0")


@pytest.mark.parametrize(
    ("name", "axes"),
    [
        ("img_channel001_position002_time000000003_z004.tif", {"channel": 1, "position": 2, "time": 3, "z": 4}),
        ("img_z004.tif", {"z": 4}),
        ("img_000000003_Cy 5_x_004.tif", {"time": 3, "channel": "Cy 5_x", "z": 4}),
        ("img_000000003__004.tif", {"time": 3, "channel": "", "z": 4}),
        ("image_z004.tif", None),
        ("img_4.tif", None),
        ("img_channel001_cells.tif", None),
    ],
)
def test_names(name: str, axes: object) -> None:
    assert plane_axes(name) == axes
