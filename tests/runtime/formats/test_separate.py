"""When a folder of separate image files is finished."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from ssai3d_rt.runtime.complete import Judgement, completeness
from tests.imaging.folders import separate, volume

if TYPE_CHECKING:
    from pathlib import Path

DATA = volume(2, 1, 3, 32, 40)
PLANES = 6
PLANE = "img_channel000_position000_time000000001_z002.tif"


@pytest.mark.parametrize("old", [False, True], ids=["2.0", "1.4"])
def test_a_whole_one_is_complete_and_says_so(tmp_path: Path, old: bool) -> None:
    separate(tmp_path / "Pos0", DATA, old=old)
    found = completeness(tmp_path / "Pos0")
    assert (found.state, found.reason, found.format) == (Judgement.COMPLETE, "", "separate")
    assert (found.planes_expected, found.planes_found, found.declared) == (PLANES, PLANES, True)


def test_metadata_cut_anywhere_are_growing(tmp_path: Path) -> None:
    separate(tmp_path / "Pos0", DATA)
    file = tmp_path / "Pos0" / "metadata.txt"
    raw = file.read_bytes()
    for cut in range(0, len(raw), 53):
        file.write_bytes(raw[:cut])
        found = completeness(tmp_path / "Pos0")
        assert (found.state, found.reason) == (Judgement.GROWING, "its metadata.txt is not finished")
    file.unlink()
    assert completeness(tmp_path / "Pos0").reason == "its metadata.txt is not there yet"


def test_a_plane_without_a_file_is_named(tmp_path: Path) -> None:
    separate(tmp_path / "Pos0", DATA, skip=((1, 0, 0),))
    found = completeness(tmp_path / "Pos0")
    assert (found.state, found.planes_expected, found.planes_found) == (Judgement.GROWING, 6, 5)
    assert found.reason == "plane (t=1, c=0, z=0) has no file (5 of 6 planes are there)"


def test_a_plane_cut_anywhere_is_growing(tmp_path: Path) -> None:
    separate(tmp_path / "Pos0", DATA)
    size = (tmp_path / "Pos0" / PLANE).stat().st_size
    for cut in [*range(size - 1, 0, -301), 3, 0]:
        os.truncate(tmp_path / "Pos0" / PLANE, cut)
        found = completeness(tmp_path / "Pos0")
        assert found.state is Judgement.GROWING
        assert found.reason.startswith(f"{PLANE}: ")


def test_what_can_never_be_a_stack_is_broken(tmp_path: Path) -> None:
    separate(tmp_path / "Pos0", DATA)
    (tmp_path / "Pos0" / PLANE).write_text("not an image")
    found = completeness(tmp_path / "Pos0")
    assert (found.state, found.reason) == (Judgement.BROKEN, f"{PLANE}: it is not a TIFF file")


def test_a_link_is_refused(tmp_path: Path) -> None:
    separate(tmp_path / "Pos0", DATA)
    path = tmp_path / "Pos0" / PLANE
    path.symlink_to(path.rename(tmp_path / "elsewhere.tif"))
    found = completeness(tmp_path / "Pos0")
    assert found.state is Judgement.BROKEN
    assert "is not a regular file" in found.reason


def test_sizes_that_no_acquisition_has_are_broken(tmp_path: Path) -> None:
    separate(tmp_path / "Pos0", DATA)
    file = tmp_path / "Pos0" / "metadata.txt"
    file.write_text(file.read_text().replace('"Channels": 1,', f'"Channels": {2**70},'))
    found = completeness(tmp_path / "Pos0")
    assert found.state is Judgement.BROKEN
    assert "not plausible" in found.reason
