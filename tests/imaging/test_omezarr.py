"""OME-Zarr: written by zarr and ome-writers, whole, damaged, and with chunks that are not there."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from ssai3d_rt.errors import IncompleteError, InputError, MissingPackageError, VoxelSizeError
from ssai3d_rt.imaging.read import open_acquisition, read_stack, read_stacks
from tests.imaging.folders import ome_zarr, volume, zarr_threads

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.imaging.folders import Volume

pytest.importorskip("zarr")

KINDS: dict[str, dict[str, Any]] = {
    "0.5": {},
    "0.5 plain": {"compressors": None},
    "0.5 sharded": {"chunks": (1, 1, 1, 16, 40), "shards": (1, 1, 4, 32, 40)},
    "0.5 shards beyond the edge": {"chunks": (1, 1, 1, 32, 40), "shards": (1, 2, 3, 32, 40)},
    "0.5 tiles": {"chunks": (1, 1, 1, 20, 24)},
    "0.5 several planes": {"chunks": (1, 1, 3, 32, 40)},
    "0.5 keys of 2": {"chunk_key_encoding": {"name": "v2", "separator": "."}},
    "0.4": {"version": 2},
    "0.4 nested": {"version": 2, "chunk_key_encoding": {"name": "v2", "separator": "/"}},
    "0.4 plain": {"version": 2, "compressors": None},
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_reads_what_was_written(tmp_path: Path, kind: str) -> None:
    data = volume(2, 2, 4, 32, 40)
    ome_zarr(tmp_path / "a.zarr", data, **KINDS[kind])
    with open_acquisition(tmp_path / "a.zarr") as acquisition:
        assert [(k.time, k.channel_name) for k in acquisition.keys] == [
            (0, "DAPI"),
            (0, "GFP"),
            (1, "DAPI"),
            (1, "GFP"),
        ]
        assert acquisition.voxel_um == (0.4, 0.1, 0.1)
        assert f"OME-Zarr {kind[:3]}, 1 position" in acquisition.describe()
        for key in acquisition.keys:
            np.testing.assert_array_equal(acquisition.read(key).data, data[key.time, key.channel])


@pytest.mark.parametrize("axes", ["zyx", "czyx", "tzyx", "zcyx"])
def test_axes_in_any_order(tmp_path: Path, axes: str) -> None:
    data = volume(*({"t": 2, "c": 2, "z": 4}[axis] for axis in axes[:-2]), 32, 40)
    ome_zarr(tmp_path / "a.zarr", data, axes)
    first = read_stack(tmp_path / "a.zarr", channel=0, time=0)
    rest = tuple(slice(None) if a == "z" else 0 for a in axes[:-2])
    np.testing.assert_array_equal(first.data, data[rest])


@pytest.mark.parametrize("version", [2, 3])
def test_several_images_are_positions(tmp_path: Path, version: int) -> None:
    data = volume(2, 4, 32, 40)
    for i, stack in enumerate(data):
        ome_zarr(tmp_path / "a.zarr", stack, "zyx", version=version, inside=str(i))
    stacks = list(read_stacks(tmp_path / "a.zarr"))
    assert [stack.position for stack in stacks] == ["0", "1"]
    for stack, expected in zip(stacks, data, strict=True):
        np.testing.assert_array_equal(stack.data, expected)


@pytest.mark.parametrize("backend", ["tensorstore", "zarr-python"])
def test_ome_writers(tmp_path: Path, backend: Any) -> None:
    data = volume(2, 4, 32, 40)
    with zarr_threads():
        write_stream(tmp_path / "a.ome.zarr", data, backend)
    stacks = list(read_stacks(tmp_path / "a.ome.zarr"))
    assert [(s.position, s.channel, s.voxel_um) for s in stacks] == [
        ("P0", "DAPI", (0.4, 0.1, 0.1)),
        ("P1", "DAPI", (0.4, 0.1, 0.1)),
    ]
    for stack, expected in zip(stacks, data, strict=True):
        np.testing.assert_array_equal(stack.data, expected)


def write_stream(path: Path, data: Volume, backend: Any) -> None:
    """Write ``(P, Z, Y, X)`` as pymmcore-plus does."""
    from ome_writers import (
        AcquisitionSettings,
        Channel,
        Dimension,
        OmeZarrFormat,
        Position,
        create_stream,
    )

    positions, planes, height, width = data.shape
    dimensions = (
        Dimension(name="p", type="position", coords=[Position(name=f"P{i}") for i in range(positions)]),
        Dimension(name="c", count=1, type="channel", coords=[Channel(name="DAPI")]),
        Dimension(name="z", count=planes, type="space", scale=0.4, unit="micrometer"),
        Dimension(name="y", count=height, type="space", scale=0.1, unit="micrometer"),
        Dimension(name="x", count=width, type="space", scale=0.1, unit="micrometer"),
    )
    settings = AcquisitionSettings(
        root_path=str(path), dimensions=dimensions, dtype="uint16", format=OmeZarrFormat(backend=backend)
    )
    with create_stream(settings) as stream:
        for plane in data.reshape(-1, height, width):
            stream.append(plane)


def chunk(folder: Path, z: int) -> Path:
    return folder / "0" / "c" / str(z) / "0" / "0"


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replace_by_link(path: Path) -> None:
    path.symlink_to(path.rename(path.with_name("elsewhere")))


DAMAGE: dict[str, tuple[Callable[[Path], object], type[InputError], str]] = {
    "missing": (os.unlink, IncompleteError, r"plane \(t=0, c=0, z=2\) is declared but not there \(3 of 4"),
    "empty": (lambda p: os.truncate(p, 0), IncompleteError, r"plane \(t=0, c=0, z=2\) is declared but not there"),
    "half": (cut, InputError, r"a\.zarr: chunk 0/c/2/0/0 cannot be decoded"),
    "link": (replace_by_link, InputError, r"a\.zarr: it holds 0/c/2/0/0, a link or special file"),
    "pipe": (replace_by_pipe, InputError, r"a\.zarr: it holds 0/c/2/0/0, a link or special file"),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_chunk_is_named(tmp_path: Path, how: str) -> None:
    ome_zarr(tmp_path / "a.zarr", volume(4, 32, 40), "zyx")
    damage, error, reason = DAMAGE[how]
    damage(chunk(tmp_path / "a.zarr", 2))
    with pytest.raises(error, match=reason):
        read_stack(tmp_path / "a.zarr")


def test_a_plane_of_a_shared_chunk_that_was_not_written_is_missing(tmp_path: Path) -> None:
    data = volume(6, 32, 40)
    data[5] = 0
    ome_zarr(tmp_path / "a.zarr", data, "zyx", chunks=(3, 32, 40))
    with pytest.raises(IncompleteError, match=r"plane \(t=0, c=0, z=5\) holds nothing but the fill value"):
        read_stack(tmp_path / "a.zarr")


def test_a_chunk_that_changes_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    ome_zarr(tmp_path / "a.zarr", volume(2, 4, 32, 40), "czyx")
    with open_acquisition(tmp_path / "a.zarr") as acquisition:
        acquisition.read(acquisition.keys[0])
        source, page = acquisition._positions[0].planes[0, 1, 0]
        source.read(page)
        os.utime(tmp_path / "a.zarr" / "0" / "c" / "1" / "0" / "0" / "0", ns=(5, 5))
        with pytest.raises(IncompleteError, match=r"changed while it was being read"):
            source.require_unchanged()
        with pytest.raises(IncompleteError, match=r"changed while it was being read"):
            acquisition.read(acquisition.keys[1])


def edited(folder: Path, inside: str, change: Callable[[dict[str, Any]], object]) -> None:
    meta = json.loads((folder / inside).read_text())
    change(meta)
    (folder / inside).write_text(json.dumps(meta))


def scale_of(meta: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = meta["attributes"]["ome"]["multiscales"][0]
    return found


METADATA: dict[str, tuple[str, Callable[[dict[str, Any]], object], str]] = {
    "huge": ("0/zarr.json", lambda m: m.update(shape=[10**9, 10**5, 10**5]), "not plausible"),
    "many chunks": ("0/zarr.json", lambda m: m.update(shape=[10**9, 32, 40]), "not plausible"),
    "wide": ("0/zarr.json", lambda m: m.update(shape=[4, 10**5, 40]), "claims planes of 100000 x 40"),
    "bomb": (
        "0/zarr.json",
        lambda m: (
            m.update(shape=[4, 20000, 20000]),
            m["chunk_grid"]["configuration"].update(chunk_shape=[1, 20000, 20000]),
        ),
        "claims 800000000 bytes from",
    ),
    "zero": ("0/zarr.json", lambda m: m.update(shape=[0, 32, 40]), r"has shape \(0, 32, 40\)"),
    "negative": ("0/zarr.json", lambda m: m.update(shape=[-4, 32, 40]), "give a shape of"),
    "codec": (
        "0/zarr.json",
        lambda m: m["codecs"].append({"name": "secret"}),
        "stored with secret, a codec that is not",
    ),
    "complex": ("0/zarr.json", lambda m: m.update(data_type="complex64"), "sample type complex64"),
    "grid": ("0/zarr.json", lambda m: m["chunk_grid"].update(name="spiral"), "a chunk grid that is not known"),
    "no codecs": ("0/zarr.json", lambda m: m.pop("codecs"), "0 has damaged metadata: KeyError"),
    "parent": ("zarr.json", lambda m: scale_of(m)["datasets"][0].update(path="../b/0"), "lead out of the data set"),
    "root": ("zarr.json", lambda m: scale_of(m)["datasets"][0].update(path="/etc"), "lead out of the data set"),
    "axis": ("zarr.json", lambda m: scale_of(m)["axes"][0].update(name="angle"), "its axes are angle, y, x"),
    "channels": (
        "zarr.json",
        lambda m: m["attributes"]["ome"].update(omero={"channels": 3}),
        "multiscales are damaged",
    ),
    "order": ("zarr.json", lambda m: scale_of(m)["axes"].reverse(), "the last two must be y and x"),
    "scales": ("zarr.json", lambda m: m["attributes"]["ome"].update(multiscales=[]), "its multiscales are damaged"),
    "plate": ("zarr.json", lambda m: m["attributes"].update(ome={"plate": {}}), "it is a plate"),
}


@pytest.mark.parametrize("how", METADATA)
def test_metadata_that_cannot_be_are_refused(tmp_path: Path, how: str) -> None:
    ome_zarr(tmp_path / "a.zarr", volume(4, 32, 40), "zyx")
    inside, change, reason = METADATA[how]
    edited(tmp_path / "a.zarr", inside, change)
    with pytest.raises(InputError, match=reason) as caught:
        read_stack(tmp_path / "a.zarr")
    assert not isinstance(caught.value, IncompleteError)
    assert str(caught.value).startswith(str(tmp_path / "a.zarr"))


@pytest.mark.parametrize(
    "change", [lambda text: text[: len(text) // 2], lambda text: text + "trailing}"], ids=["cut", "tail"]
)
@pytest.mark.parametrize("inside", ["zarr.json", "0/zarr.json"])
def test_metadata_that_are_not_whole_are_incomplete(tmp_path: Path, inside: str, change: Callable[[str], str]) -> None:
    ome_zarr(tmp_path / "a.zarr", volume(4, 32, 40), "zyx")
    file = tmp_path / "a.zarr" / inside
    file.write_text(change(file.read_text()))
    with pytest.raises(IncompleteError, match=f"{inside} is not whole"):
        read_stack(tmp_path / "a.zarr")


def test_without_zarr_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ome_zarr(tmp_path / "a.zarr", volume(4, 32, 40), "zyx")
    monkeypatch.setitem(sys.modules, "zarr.api.asynchronous", None)
    with pytest.raises(MissingPackageError, match=r'pip install "ssai3d-rt\[zarr\]"'):
        read_stack(tmp_path / "a.zarr")


def test_a_unit_that_is_no_text_is_none(tmp_path: Path) -> None:
    ome_zarr(tmp_path / "a.zarr", volume(4, 32, 40), "zyx")
    edited(tmp_path / "a.zarr", "zarr.json", lambda m: scale_of(m)["axes"][0].update(unit=True))
    with pytest.raises(VoxelSizeError, match=r"the plane spacing \(z\) is not in the file"):
        read_stack(tmp_path / "a.zarr")


def test_a_bare_array_is_not_enough(tmp_path: Path) -> None:
    import zarr

    with zarr_threads():
        zarr.create_array(tmp_path / "a.zarr", shape=(4, 32, 40), dtype="uint16")
    with pytest.raises(InputError, match=r"a\.zarr: it is a bare array, not OME-Zarr"):
        read_stack(tmp_path / "a.zarr")
