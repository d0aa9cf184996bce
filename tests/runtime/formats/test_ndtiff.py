"""When an NDTiff data set is finished: at every moment of the real writer, killed, copied, damaged."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path

import pytest

from ssai3d_rt.imaging.ndindex import PREALLOCATED_BYTES
from ssai3d_rt.runtime.complete import Judgement, completeness
from tests.imaging.folders import SUMMARY, close, in_a_process, kill, let_go, ndtiff, volume

DATA = volume(2, 1, 3, 32, 40)
PLANES = 6

WRITE = """
import sys, numpy as np
from ndstorage import NDTiffDataset
writer = NDTiffDataset(sys.argv[1], summary_metadata={"z-step_um": 0.4, "PixelSize_um": 0.1}, writable=True)
for z in range(int(sys.argv[2])):
    writer.put_image({"z": z}, np.full((32, 40), z + 1, "uint16"), {})
print("there", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    close(ndtiff(tmp_path / "run_1", DATA))
    return tmp_path / "run_1"


def read_bytes() -> int:
    """Bytes that this process has read from files."""
    return int(Path("/proc/self/io").read_text().split()[1])


def test_a_finished_one_is_complete(finished: Path) -> None:
    found = completeness(finished)
    assert (found.state, found.reason, found.format) == (Judgement.COMPLETE, "", "ndtiff")
    assert (found.planes_expected, found.planes_found, found.declared) == (PLANES, PLANES, True)


def test_at_no_moment_before_the_end_is_it_complete(tmp_path: Path) -> None:
    for written in range(1, PLANES + 1):
        skip = [key for number, key in enumerate([(t, 0, z) for t in range(2) for z in range(3)]) if number >= written]
        writer = ndtiff(tmp_path / str(written), DATA, skip=skip)
        try:
            assert completeness(tmp_path / str(written)).state is Judgement.GROWING
            writer._index_file.flush()
            found = completeness(tmp_path / str(written))
            assert found.state is Judgement.GROWING
            assert found.planes_found == written
            writer.current_writer.finished_writing()  # the pixels are closed first, the index last
            writer.current_writer = None
        finally:
            close(writer)
        expected = Judgement.COMPLETE if written in (1, 2, 3, 6) else Judgement.GROWING  # else the grid has a gap
        assert completeness(tmp_path / str(written)).state is expected


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="only Linux tells what a process has read")
def test_a_killed_writer_leaves_one_that_is_growing_and_4_gib_are_not_read(tmp_path: Path) -> None:
    process = in_a_process(WRITE, tmp_path / "run", 4)
    kill(process)
    assert (tmp_path / "run" / "NDTiffStack.tif").stat().st_size == 1 << 32
    before = read_bytes()
    found = completeness(tmp_path / "run")
    assert (found.state, found.reason) == (Judgement.GROWING, "its index is empty")
    assert read_bytes() - before < 100_000


@pytest.mark.parametrize("planes", [0, 3, PLANES])
def test_an_index_that_was_given_its_size_beforehand_is_growing(finished: Path, planes: int) -> None:
    """As Micro-Manager's own writer has it."""
    index = finished / "NDTiff.index"
    raw = index.read_bytes()
    index.write_bytes(raw[: len(raw) * planes // PLANES])
    os.truncate(index, PREALLOCATED_BYTES)
    os.truncate(finished / "NDTiffStack.tif", 1 << 32)
    found = completeness(finished)
    assert (found.state, found.planes_found) == (Judgement.GROWING, planes)
    assert found.reason == f"its index is not closed ({planes} images are listed)"


def test_an_index_cut_anywhere_is_growing(finished: Path) -> None:
    index = finished / "NDTiff.index"
    raw = index.read_bytes()
    for cut in range(len(raw)):
        index.write_bytes(raw[:cut])
        assert completeness(finished).state is Judgement.GROWING, cut


def test_pixels_cut_anywhere_are_growing(finished: Path) -> None:
    file = finished / "NDTiffStack.tif"
    raw = file.read_bytes()
    for cut in [*range(0, len(raw), 501), len(raw) - 1]:
        os.truncate(file, cut)
        found = completeness(finished)
        assert found.state is Judgement.GROWING, found
        file.write_bytes(raw)


def test_without_its_index_or_its_pixels_it_is_growing(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "copy")
    (finished / "NDTiff.index").unlink()
    assert completeness(finished).reason == "its index is not there yet"
    (tmp_path / "copy" / "NDTiffStack.tif").unlink()
    found = completeness(tmp_path / "copy")
    assert (found.state, found.reason) == (Judgement.GROWING, "NDTiffStack.tif, which its index names, is not there")


def test_a_second_file_is_needed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ndstorage.ndtiff_file.MAX_FILE_SIZE", 5_000_000 + 3 * 3000)
    writer = ndtiff(tmp_path / "run", DATA)
    writer._index_file.flush()
    assert (
        completeness(tmp_path / "run").reason
        == "NDTiffStack_1.tif is not closed, or holds images that the index does not list"
    )
    close(writer)
    assert completeness(tmp_path / "run").state is Judgement.COMPLETE
    (tmp_path / "run" / "NDTiffStack_1.tif").rename(tmp_path / "elsewhere.tif")
    assert completeness(tmp_path / "run").reason == "NDTiffStack_1.tif, which its index names, is not there"


def test_a_gap_is_named(tmp_path: Path) -> None:
    close(ndtiff(tmp_path / "run", DATA, skip=((1, 0, 1),)))
    found = completeness(tmp_path / "run")
    assert (found.state, found.planes_expected, found.planes_found) == (Judgement.GROWING, 6, 5)
    assert found.reason == "plane (t=1, c=0, z=1) is missing (5 of 6 planes are there)"


@pytest.mark.parametrize(
    ("more", "gap"),
    [
        ({"Slices": 4}, "plane (t=0, c=0, z=3) is missing"),
        ({"IntendedDimensions": {"time": 3}}, "plane (t=2, c=0, z=0) is missing"),
        ({"Positions": 2}, "position 1 is missing"),
        ({"ChNames": ["DAPI", "GFP"]}, "plane (t=0, c=1, z=0) is missing"),
    ],
    ids=["slices", "times", "positions", "channels"],
)
def test_planes_that_the_summary_promises_are_waited_for(tmp_path: Path, more: dict[str, object], gap: str) -> None:
    close(ndtiff(tmp_path / "run", DATA, summary=SUMMARY | more))
    found = completeness(tmp_path / "run")
    assert (found.state, found.reason.split(" (6")[0]) == (Judgement.GROWING, gap)


def test_sizes_that_no_acquisition_has_are_broken(tmp_path: Path) -> None:
    close(ndtiff(tmp_path / "run", DATA, summary=SUMMARY | {"Channels": 2**70}))
    found = completeness(tmp_path / "run")
    assert found.state is Judgement.BROKEN
    assert "not plausible" in found.reason


def entry(axes: object, name: str = "NDTiffStack.tif", kind: int = 1) -> bytes:
    text = json.dumps(axes).encode()
    return (
        struct.pack("<I", len(text))
        + text
        + struct.pack("<I", len(name))
        + name.encode()
        + struct.pack("<8I", 300, 40, 32, kind, 0, 2860, 2, 0)
    )


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        (entry({"z": 0}, "../x.tif"), "outside its own folder"),
        (entry({"z": 0}, kind=2), "colour"),
        (entry({"z": 0, "laser": 1}) + entry({"z": 0, "laser": 2}), "along the axis 'laser'"),
        (entry({"z": 0}) + entry({"z": 10**9}), "not plausible"),
        (entry({"z": 0}) + entry({"z": "top"}), "by number and by name"),
        (b"no index at all, but a text", "damaged at byte 0"),
    ],
    ids=["parent", "colour", "axis", "far", "mixed", "text"],
)
def test_what_can_never_be_a_stack_is_broken(finished: Path, index: bytes, reason: str) -> None:
    (finished / "NDTiff.index").write_bytes(index)
    found = completeness(finished)
    assert found.state is Judgement.BROKEN
    assert reason in found.reason


def test_links_are_refused(finished: Path, tmp_path: Path) -> None:
    file = finished / "NDTiffStack.tif"
    file.symlink_to(file.rename(tmp_path / "elsewhere.tif"))
    found = completeness(finished)
    assert (found.state, found.reason) == (
        Judgement.BROKEN,
        "NDTiffStack.tif is a symbolic link; inside a data set they are refused",
    )


def test_smaller_copies_are_left_alone(finished: Path) -> None:
    smaller = finished.rename(finished.with_name("Downsampled_x2"))
    assert completeness(smaller).state is Judgement.NOT_OURS


def test_the_writer_of_nothing_leaves_one_that_is_growing(tmp_path: Path) -> None:
    writer = ndtiff(tmp_path / "run", DATA[:1, :, :1])
    try:
        os.truncate(tmp_path / "run" / "NDTiffStack.tif", 0)
        writer._index_file.flush()
        assert completeness(tmp_path / "run").state is Judgement.GROWING
    finally:
        writer._index_file.close()
        writer.current_writer.file.close()
        let_go(writer)
