"""NDTiff data sets: written by the real writer, read by their index."""

from __future__ import annotations

import json
import os
import struct
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssai3d_rt.errors import IncompleteError, InputError
from ssai3d_rt.imaging import ndindex
from ssai3d_rt.imaging.layout import SourcePool
from ssai3d_rt.imaging.ndindex import IndexEnd, parse
from ssai3d_rt.imaging.ndtiff import ndtiff_positions
from ssai3d_rt.imaging.read import open_acquisition, read_stack, read_stacks
from tests.imaging.folders import SUMMARY, close, ndtiff, ndtiff_of, volume

if TYPE_CHECKING:
    from pathlib import Path


def entry(axes: object = None, *, name: str = "a_NDTiffStack.tif", numbers: tuple[int, ...] = ()) -> bytes:
    text = axes if isinstance(axes, bytes) else json.dumps({"z": 0} if axes is None else axes).encode()
    values = struct.pack("<8I", *(numbers or (206, 40, 32, 1, 0, 2766, 2, 0)))
    return struct.pack("<I", len(text)) + text + struct.pack("<I", len(name)) + name.encode() + values


def test_it_reads_what_was_written(tmp_path: Path) -> None:
    data = volume(2, 2, 4, 32, 40)
    close(ndtiff(tmp_path / "run_1", data, names=("DAPI", "GFP")))
    with open_acquisition(tmp_path / "run_1") as acquisition:
        assert [(k.time, k.channel_name) for k in acquisition.keys] == [
            (0, "DAPI"),
            (0, "GFP"),
            (1, "DAPI"),
            (1, "GFP"),
        ]
        assert acquisition.voxel_um == (0.4, 0.1, 0.1)
        for key in acquisition.keys:
            np.testing.assert_array_equal(acquisition.read(key).data, data[key.time, key.channel])
        assert "NDTiff, 1 position, 2 time points, 2 channels (DAPI, GFP), 4 planes" in acquisition.describe()


def test_eight_bits(tmp_path: Path) -> None:
    data = (volume(1, 1, 3, 32, 40) % 251 + 1).astype("uint8")
    close(ndtiff(tmp_path / "run", data))
    np.testing.assert_array_equal(read_stack(tmp_path / "run").data, data[0, 0])


def test_positions_rows_and_columns_are_positions(tmp_path: Path) -> None:
    data = volume(2, 2, 3, 32, 40)
    images = (({"row": r, "column": c, "z": z}, data[r, c, z]) for r, c, z in np.ndindex(2, 2, 3))
    close(ndtiff_of(tmp_path / "run", images, SUMMARY))
    stacks = list(read_stacks(tmp_path / "run"))
    assert [stack.position for stack in stacks] == ["", "0-1", "1-0", "1-1"]
    for stack, expected in zip(stacks, data.reshape(4, 3, 32, 40), strict=True):
        np.testing.assert_array_equal(stack.data, expected)


def test_the_plane_spacing_is_found_between_two_planes(tmp_path: Path) -> None:
    close(ndtiff(tmp_path / "run", volume(1, 1, 3, 32, 40), summary={}))
    assert read_stack(tmp_path / "run").voxel_um == (0.3, 0.1, 0.1)


def test_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ndstorage.ndtiff_file.MAX_FILE_SIZE", 5_000_000 + 5 * 3000)
    data = volume(1, 1, 9, 32, 40)
    close(ndtiff(tmp_path / "run", data))
    assert len(list((tmp_path / "run").glob("*.tif"))) > 1
    np.testing.assert_array_equal(read_stack(tmp_path / "run").data, data[0, 0])


def test_a_plane_that_is_not_there_is_named(tmp_path: Path) -> None:
    close(ndtiff(tmp_path / "run", volume(2, 1, 3, 32, 40), skip=((1, 0, 1),)))
    with open_acquisition(tmp_path / "run") as acquisition:
        first, second = acquisition.keys
        acquisition.read(first)
        with pytest.raises(IncompleteError, match=r"run: plane \(t=1, c=0, z=1\) is declared but not there \(5 of 6"):
            acquisition.read(second)


def test_an_unfinished_one_is_for_followers_only(tmp_path: Path) -> None:
    data = volume(1, 1, 3, 32, 40)
    writer = ndtiff(tmp_path / "run", data)
    writer._index_file.flush()
    try:
        with pytest.raises(IncompleteError, match=r"run: NDTiffStack\.tif is not closed"):
            open_acquisition(tmp_path / "run")
        pool = SourcePool(growing=True)
        (position,) = ndtiff_positions(tmp_path / "run", pool)
        for (_, _, z), (source, page) in position.planes.items():
            np.testing.assert_array_equal(source.read(page), data[0, 0, z])
        assert len(position.planes) == 3
        pool.close()
    finally:
        close(writer)


def test_a_change_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    close(ndtiff(tmp_path / "run", volume(1, 1, 3, 32, 40)))
    file = tmp_path / "run" / "NDTiffStack.tif"
    with open_acquisition(tmp_path / "run") as acquisition:
        with open(file, "r+b") as changed:
            changed.seek(-1, os.SEEK_END)
            changed.write(b"x")
        os.utime(file, ns=(1, 1))
        with pytest.raises(IncompleteError, match="changed while it was being read"):
            acquisition.read(acquisition.keys[0])


def test_a_link_in_it_is_refused(tmp_path: Path) -> None:
    close(ndtiff(tmp_path / "run", volume(1, 1, 3, 32, 40)))
    file = tmp_path / "run" / "NDTiffStack.tif"
    file.symlink_to(file.rename(tmp_path / "elsewhere.tif"))
    with pytest.raises(InputError, match="is a symbolic link"):
        open_acquisition(tmp_path / "run")


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        (entry(name="../a_NDTiffStack.tif"), "outside its own folder"),
        (entry(name=".."), "outside its own folder"),
        (entry(numbers=(206, 40, 32, 2, 0, 2766, 2, 0)), "colour"),
        (entry(numbers=(206, 40, 32, 9, 0, 2766, 2, 0)), "unknown pixel type 9"),
        (entry(numbers=(206, 0, 32, 1, 0, 2766, 2, 0)) + entry(), "0 x 32 pixels"),
        (entry(numbers=(206, 1 << 31, 32, 1, 0, 2766, 2, 0)), "2147483648 x 32 pixels"),
        (entry(b"[" * 9999), "damaged at byte 0"),
        (entry({"z": 1.5}), "damaged at byte 0: the axes are"),
        (entry() + b"\xff\xff\xff\xffxxxx", "a text of 4294967295 bytes"),
    ],
    ids=["dots", "parent", "colour", "type", "no width", "huge", "deep json", "axis 1.5", "long text"],
)
def test_a_damaged_index_is_refused(index: bytes, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        parse(index)


def test_an_index_may_end_anywhere() -> None:
    whole = entry({"z": 0}) + entry({"z": 1})
    first = len(entry({"z": 0}))
    for cut in range(len(whole) + 1):
        found = parse(whole[:cut])
        assert len(found.entries) == (cut >= first) + (cut == len(whole))
        assert found.end is (IndexEnd.ENTRY if cut in (0, first, len(whole)) else IndexEnd.INSIDE)
        zeros = parse(whole[:cut] + bytes(500))
        assert zeros.end is not IndexEnd.ENTRY
        assert len(zeros.entries) <= 2


def test_a_long_index_is_read_in_parts_and_no_further_than_its_zeros(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ndindex, "_BLOCK_BYTES", 1000)
    raw = b"".join(entry({"z": z}) for z in range(200))
    path = tmp_path / "NDTiff.index"
    path.write_bytes(raw)
    os.truncate(path, ndindex.PREALLOCATED_BYTES)
    with open(path, "rb", buffering=0) as file:
        found = ndindex.read_index(file, ndindex.PREALLOCATED_BYTES)
        assert file.tell() < len(raw) + 2000
        assert [e.axes["z"] for e in found.entries] == list(range(200))
        assert (found.end, found.parsed_bytes) == (IndexEnd.ZEROS, len(raw))
        later = ndindex.read_index(file, ndindex.PREALLOCATED_BYTES, found.parsed_bytes)
        assert later.entries == []


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 200))
def test_any_damage_is_refused_or_read(damage: bytes, at: int) -> None:
    raw = bytearray(entry({"z": 0}) + entry({"z": 1}))
    raw[at : at + len(damage)] = damage
    try:
        found = parse(bytes(raw))
    except InputError:
        return
    assert found.parsed_bytes <= len(raw)
