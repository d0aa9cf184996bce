"""When an OME-Zarr is finished: while it is written by ome-writers, killed, cut, with chunks that are not there."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from ssai3d_rt.runtime.complete import Judgement, completeness
from tests.imaging.folders import in_a_process, kill, ome_zarr, volume

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytest.importorskip("zarr")

DATA = volume(2, 2, 4, 32, 40)
PLANES = 16

WRITE = """
import sys, numpy as np
from ome_writers import AcquisitionSettings, Dimension, OmeZarrFormat, Position, create_stream
path, backend, frames, places = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
dimensions = [
    Dimension(name="p", type="position", coords=[Position(name=f"P{i}") for i in range(places)]),
    Dimension(name="z", count=4, type="space", scale=0.4, unit="micrometer"),
    Dimension(name="y", count=32, type="space", scale=0.1, unit="micrometer"),
    Dimension(name="x", count=40, type="space", scale=0.1, unit="micrometer"),
]
dimensions = dimensions[places < 2:]
form = OmeZarrFormat(backend=backend)
stream = create_stream(AcquisitionSettings(root_path=path, dimensions=dimensions, dtype="uint16", format=form))
for number in range(frames):
    stream.append(np.full((32, 40), number + 1, "uint16"))
print("there", flush=True)
sys.stdin.readline()
stream.close()
print("closed", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(
    "how",
    [{}, {"version": 2}, {"chunks": (1, 1, 1, 16, 40), "shards": (1, 1, 4, 32, 40)}, {"compressors": None}],
    ids=["0.5", "0.4", "sharded", "plain"],
)
def test_a_whole_one_is_complete_and_declares_nothing(tmp_path: Path, how: dict[str, Any]) -> None:
    ome_zarr(tmp_path / "a.zarr", DATA, **how)
    found = completeness(tmp_path / "a.zarr")
    assert (found.state, found.reason, found.format) == (Judgement.COMPLETE, "", "ome-zarr")
    assert (found.planes_expected, found.planes_found, found.declared) == (PLANES, PLANES, False)


@pytest.mark.parametrize(
    ("backend", "frames", "places"), [("tensorstore", 3, 1), ("zarr-python", 5, 2)], ids=["tensorstore", "zarr-python"]
)
def test_a_writer_that_stalls_or_is_killed_leaves_one_that_is_growing(
    tmp_path: Path, backend: str, frames: int, places: int
) -> None:
    path = tmp_path / "a.ome.zarr"
    process = in_a_process(WRITE, path, backend, frames, places)
    try:
        found = completeness(path)
        assert found.state is Judgement.GROWING
        assert found.planes_expected == 4 * places
        assert found.planes_found <= frames
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"go on\n")
        process.stdin.flush()
        assert process.stdout.readline().strip() == b"closed"  # an acquisition that was stopped early
        found = completeness(path)
        assert (found.state, found.planes_found) == (Judgement.GROWING, frames)
        assert "is not there, plane (t=0, c=0, z=" in found.reason
    finally:
        kill(process)
    assert completeness(path).state is Judgement.GROWING


def first_chunk(folder: Path) -> Path:
    return folder / "0" / "c" / "0" / "0" / "2" / "0" / "0"


DAMAGE: dict[str, tuple[dict[str, Any], Callable[[Path], object], str]] = {
    "missing": ({}, os.unlink, "chunk 0/c/0/0/2/0/0 is not there"),
    "empty": ({}, lambda p: os.truncate(p, 0), "chunk 0/c/0/0/2/0/0 is empty"),
    "cut": ({"compressors": None}, lambda p: os.truncate(p, 100), "chunk 0/c/0/0/2/0/0 has 100 of 2560 bytes"),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_chunk_that_is_not_whole_is_named(tmp_path: Path, how: str) -> None:
    array, damage, reason = DAMAGE[how]
    ome_zarr(tmp_path / "a.zarr", DATA, **array)
    damage(first_chunk(tmp_path / "a.zarr"))
    found = completeness(tmp_path / "a.zarr")
    assert (found.state, found.planes_found) == (Judgement.GROWING, PLANES - 1)
    assert found.reason == f"{reason}, plane (t=0, c=0, z=2) (15 of 16 planes are there)"


def test_a_shard_lacks_a_chunk_or_is_cut(tmp_path: Path) -> None:
    ome_zarr(tmp_path / "a.zarr", DATA, chunks=(1, 1, 1, 32, 40), shards=(1, 1, 4, 32, 40), fill_value=7)
    shard = tmp_path / "a.zarr" / "0" / "c" / "0" / "1" / "0" / "0" / "0"
    raw = shard.read_bytes()
    index = len(raw) - 4 - 4 * 16
    shard.write_bytes(raw[: index + 16] + b"\xff" * 16 + raw[index + 32 :])
    found = completeness(tmp_path / "a.zarr")
    assert (found.state, found.planes_found) == (Judgement.GROWING, PLANES - 1)
    assert found.reason.startswith("chunk 0/0/1/0/0 of shard 0/c/0/1/0/0/0 is not there, plane (t=0, c=1, z=1)")
    for cut in (len(raw) - 1, len(raw) // 2, 30, 1):
        shard.write_bytes(raw[:cut])
        found = completeness(tmp_path / "a.zarr")
        assert found.state is Judgement.GROWING, cut
        assert found.planes_found < PLANES


@pytest.mark.parametrize("inside", ["zarr.json", "0/zarr.json"])
def test_metadata_cut_anywhere_or_with_a_tail_are_growing(tmp_path: Path, inside: str) -> None:
    ome_zarr(tmp_path / "a.zarr", DATA)
    file = tmp_path / "a.zarr" / inside
    raw = file.read_bytes()
    for cut in range(0, len(raw) - 1, 37):
        file.write_bytes(raw[:cut])
        assert completeness(tmp_path / "a.zarr").state is Judgement.GROWING, cut
    file.write_bytes(raw + b"trailing}")
    assert completeness(tmp_path / "a.zarr").reason == f"{inside} is not whole: JSONDecodeError"
    file.unlink()
    assert completeness(tmp_path / "a.zarr").state is Judgement.GROWING


def test_a_folder_of_several_images_needs_all_of_them(tmp_path: Path) -> None:
    for i in range(2):
        ome_zarr(tmp_path / "a.zarr", DATA[0, 0], "zyx", inside=str(i))
    found = completeness(tmp_path / "a.zarr")
    assert (found.state, found.planes_expected) == (Judgement.COMPLETE, 8)
    (tmp_path / "a.zarr" / "1" / "0" / "c" / "3" / "0" / "0").unlink()
    found = completeness(tmp_path / "a.zarr")
    assert found.state is Judgement.GROWING
    assert found.reason == "chunk 1/0/c/3/0/0 is not there, plane (t=0, c=0, z=3) of 1 (7 of 8 planes are there)"


def with_series(folder: Path, series: list[str]) -> None:
    (folder / "OME").mkdir()
    meta = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": {"version": "0.5", "series": series}}}
    (folder / "OME" / "zarr.json").write_text(json.dumps(meta))


def test_series_that_are_listed_are_waited_for(tmp_path: Path) -> None:
    ome_zarr(tmp_path / "a.zarr", DATA[0, 0], "zyx", inside="A0")
    with_series(tmp_path / "a.zarr", ["A0", "A1"])
    found = completeness(tmp_path / "a.zarr")
    assert (found.state, found.reason) == (Judgement.GROWING, "A1/zarr.json is not there")


def test_images_that_the_xml_describes_are_waited_for(tmp_path: Path) -> None:
    ome_zarr(tmp_path / "a.zarr", DATA[0, 0], "zyx", inside="0", version=2)
    (tmp_path / "a.zarr" / "OME").mkdir()
    (tmp_path / "a.zarr" / "OME" / "METADATA.ome.xml").write_text(
        '<OME><Image ID="Image:0"/><Image ID="Image:1"/></OME>'
    )
    found = completeness(tmp_path / "a.zarr")
    assert (found.state, found.reason) == (Judgement.GROWING, "1/zarr.json or 1/.zattrs is not there")


def test_series_that_lead_out_are_refused(tmp_path: Path) -> None:
    ome_zarr(tmp_path / "b.zarr", DATA[0, 0], "zyx")
    ome_zarr(tmp_path / "a.zarr", DATA[0, 0], "zyx", inside="A0")
    with_series(tmp_path / "a.zarr", ["../b.zarr"])
    found = completeness(tmp_path / "a.zarr")
    assert found.state is Judgement.BROKEN
    assert "lead out of the data set ('../b.zarr')" in found.reason


def test_a_link_in_it_is_refused(tmp_path: Path) -> None:
    ome_zarr(tmp_path / "a.zarr", DATA)
    path = first_chunk(tmp_path / "a.zarr")
    path.symlink_to(path.rename(tmp_path / "elsewhere"))
    found = completeness(tmp_path / "a.zarr")
    assert (found.state, found.reason) == (
        Judgement.BROKEN,
        "it holds 0/c/0/0/2/0/0, a link or special file; inside a data set they are refused",
    )


def test_a_codec_that_is_not_known_is_named(tmp_path: Path) -> None:
    ome_zarr(tmp_path / "a.zarr", DATA)
    file = tmp_path / "a.zarr" / "0" / "zarr.json"
    meta = json.loads(file.read_text())
    meta["codecs"].append({"name": "secret"})
    file.write_text(json.dumps(meta))
    found = completeness(tmp_path / "a.zarr")
    assert (found.state, found.reason) == (Judgement.BROKEN, "0 is stored with secret, a codec that is not known")


def test_an_empty_folder_that_is_called_zarr_is_growing(tmp_path: Path) -> None:
    (tmp_path / "a.ome.zarr").mkdir()
    assert completeness(tmp_path / "a.ome.zarr").state is Judgement.GROWING
