"""What a pass through a watched folder finds: files, data sets that are folders, markers; and whose a file is."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from ssai3d_rt.runtime.complete import Judgement, completeness
from ssai3d_rt.runtime.scan import candidate, files_of, is_data_set, owner_of, scan
from ssai3d_rt.runtime.source import content_hash, identity
from tests.imaging.folders import close, ndtiff, separate, volume

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def touch(path: Path, data: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.fixture
def rig(tmp_path: Path) -> Path:
    """A folder with one of each: a file, four data sets, a folder of files, and what is to be left alone."""
    root = tmp_path / "today"
    touch(root / "a.tif")
    touch(root / "deep" / "er" / "b.ome.tif")
    touch(root / "run_1" / "NDTiff.index")
    touch(root / "run_1" / "run_NDTiffStack.tif")
    touch(root / "run_2" / "run_NDTiffStack.tif")
    touch(root / "c.ome.zarr" / "0" / "c" / "0" / "0")
    touch(root / "old" / ".zgroup")
    touch(root / "old" / "0" / "0.0")
    touch(root / "acq" / "Pos0" / "img_channel000_position000_time000000000_z000.tif")
    touch(root / "acq" / "Pos1" / "img_000000000_DAPI_000.tif")
    touch(root / "acq" / "Pos1" / "metadata.txt")
    touch(root / "acq" / "Pos1" / "projection.tif")
    touch(root / "mixed" / "img_000000000_DAPI_000.tif")
    touch(root / "mixed" / "other.tif")
    touch(root / ".hidden" / "x.tif")
    touch(root / "coming.zarr.partial" / "zarr.json")
    touch(root / "coming.tmp" / "x.tif")
    return root


CANDIDATES = {
    "a.tif",
    "deep/er/b.ome.tif",
    "run_1",
    "run_2",
    "c.ome.zarr",
    "old",
    "acq/Pos0",
    "acq/Pos1",
    "mixed/img_000000000_DAPI_000.tif",
    "mixed/other.tif",
}


def test_a_data_set_is_one_candidate_and_is_not_looked_into(rig: Path) -> None:
    found = scan(rig)
    assert {path.relative_to(rig).as_posix() for path in found.files} == CANDIDATES
    assert found.whole
    for path, known in found.files.items():
        assert candidate(path) == known
        assert is_data_set(path) == path.is_dir()


def test_the_watched_folder_itself_is_none(rig: Path) -> None:
    touch(rig / "zarr.json")
    assert rig / "a.tif" in scan(rig).files


def test_what_is_left_alone_is_no_candidate(rig: Path) -> None:
    assert candidate(rig / "deep") is None
    assert candidate(rig / "coming.zarr.partial") is None
    assert candidate(rig / "nothing.tif") is None
    assert completeness(rig / "coming.zarr.partial").state is Judgement.NOT_OURS
    (rig / "link.zarr").symlink_to(rig / "c.ome.zarr")
    assert candidate(rig / "link.zarr") is None
    assert rig / "link.zarr" not in scan(rig).files


@pytest.mark.parametrize(
    ("path", "owner"),
    [
        ("a.tif", "a.tif"),
        ("deep/er/b.ome.tif", "deep/er/b.ome.tif"),
        ("run_1/run_NDTiffStack.tif", "run_1"),
        ("run_1/display_settings.txt", "run_1"),
        ("c.ome.zarr/0/c/0/0", "c.ome.zarr"),
        ("old/0/0.0", "old"),
        ("acq/Pos0/img_channel000_position000_time000000000_z000.tif", "acq/Pos0"),
        ("acq/Pos1/projection.tif", "acq/Pos1"),
        ("mixed/img_000000000_DAPI_000.tif", "mixed/img_000000000_DAPI_000.tif"),
        ("c.ome.zarr", "c.ome.zarr"),
        ("coming.tmp/x.tif", "coming.tmp"),
    ],
)
def test_whose_a_file_is(rig: Path, path: str, owner: str) -> None:
    assert owner_of(rig / path, rig) == rig / owner


def test_a_path_outside_belongs_to_itself(rig: Path, tmp_path: Path) -> None:
    assert owner_of(tmp_path / "x.zarr" / "y.tif", rig) == tmp_path / "x.zarr" / "y.tif"


def test_a_marker_beside_a_data_set(rig: Path) -> None:
    touch(rig / "run_1.done", b"")
    touch(rig / "c.ome.zarr.done", b"")
    assert set(scan(rig).markers) == {rig / "run_1", rig / "c.ome.zarr"}


def test_the_files_of_a_data_set_come_in_one_order(rig: Path) -> None:
    assert files_of(rig / "a.tif") == [rig / "a.tif"]
    (rig / "old" / "link").symlink_to(rig / "a.tif")
    assert files_of(rig / "old") == [rig / "old" / ".zgroup", rig / "old" / "0" / "0.0"]
    before = content_hash(files_of(rig / "old"))
    (rig / "old" / "0" / "0.0").write_bytes(b"y")
    assert content_hash(files_of(rig / "old")) != before


CHANGES: dict[str, Callable[[Path], object]] = {
    "added": lambda folder: touch(folder / "0" / "1.0"),
    "added below": lambda folder: touch(folder / "1" / "0" / "0.0"),
    "removed": lambda folder: (folder / "0" / "0.0").unlink(),
    "grown": lambda folder: touch(folder / "0" / "0.0", b"xy"),
    "rewritten": lambda folder: touch(folder / "0" / "0.0", b"z"),
    "replaced": lambda folder: os.replace(touch(folder / "0" / "new", b"z"), folder / "0" / "0.0"),
    "renamed": lambda folder: (folder / "0" / "0.0").rename(folder / "0" / "0.1"),
    "empty folder": lambda folder: (folder / "2").mkdir(),
}


@pytest.mark.parametrize("future", [False, True], ids=["now", "clock was ahead"])
@pytest.mark.parametrize("how", CHANGES)
def test_the_identity_of_a_data_set_changes_with_anything_in_it(rig: Path, how: str, *, future: bool) -> None:
    folder = rig / "old"
    if future:
        ahead = time.time_ns() + 10**15
        os.utime(touch(folder / "0" / "9.9"), ns=(ahead, ahead))
    before = candidate(folder)
    assert candidate(folder) == before
    tick = rig.parent / "tick"
    while (
        touch(tick).stat().st_ctime_ns == identity(folder / "0" / "0.0").ctime_ns
    ):  # the file system's clock is coarse
        pass
    CHANGES[how](folder)
    assert candidate(folder) != before


def test_a_rewrite_with_the_old_time_changes_the_identity(rig: Path) -> None:
    file = rig / "old" / "0" / "0.0"
    before, known = candidate(rig / "old"), identity(file)
    while touch(rig.parent / "tick").stat().st_ctime_ns <= known.ctime_ns:
        pass
    file.write_bytes(b"z")
    os.utime(file, ns=(known.mtime_ns, known.mtime_ns))
    assert candidate(rig / "old") != before


def test_a_data_set_of_4_gib_that_are_not_there_is_small(tmp_path: Path) -> None:
    writer = ndtiff(tmp_path / "today" / "run", volume(1, 1, 2, 32, 40))
    try:
        found = candidate(tmp_path / "today" / "run")
        assert found is not None
        assert found.size < 1 << 20
    finally:
        close(writer)


def test_each_plane_of_a_series_changes_it(tmp_path: Path) -> None:
    data = volume(1, 1, 3, 32, 40)
    seen = set()
    for written in range(1, 4):
        separate(tmp_path / "today" / "Pos0", data[:, :, :written])
        seen.add(candidate(tmp_path / "today" / "Pos0"))
    assert len(seen) == 3
    assert list(scan(tmp_path / "today").files) == [tmp_path / "today" / "Pos0"]
