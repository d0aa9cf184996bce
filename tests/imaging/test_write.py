from __future__ import annotations

import errno
import re
import uuid
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from ssai3d_rt.errors import InputError, StorageError
from ssai3d_rt.imaging import (
    Stack,
    open_acquisition,
    read_provenance,
    read_stack,
    read_stacks,
    verify_ome_tiff,
    write,
    write_ome_tiff,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ISO = (0.0941, 0.0941, 0.0941)
SHAPE = (6, 20, 21)


def stack_of(time: int = 0, channel: str = "", *, dtype: str = "uint16", position: str = "", seed: int = 0) -> Stack:
    rng = np.random.default_rng((seed, time, len(channel)))
    data = rng.normal(500, 100, SHAPE).clip(0, 65535).astype(dtype)
    return Stack(data, ISO, channel=channel, time=time, position=position)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_one_stack_comes_back_as_it_was(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "iso.ome.tif"
    stack = stack_of(channel="GFP <1>", dtype=dtype, position='well "A&B"')
    written = write_ome_tiff(path, stack, {"bundle": "b"})
    verify_ome_tiff(path, written)
    back = read_stack(path)
    np.testing.assert_array_equal(back.data, stack.data)
    assert back.voxel_um == pytest.approx(ISO)
    assert (back.data.dtype.name, back.channel, back.position) == (dtype, stack.channel, stack.position)
    np.testing.assert_array_equal(tifffile.imread(path), stack.data)


def test_file_is_valid_ome_for_other_readers(tmp_path: Path) -> None:
    ome_types = pytest.importorskip("ome_types", reason="ome-types is not installed")
    path = tmp_path / "iso.ome.tif"
    stacks = [stack_of(time, channel, position="left") for time in range(2) for channel in ("GFP", "RFP")]
    write_ome_tiff(path, stacks, {"bundle": "cells.ssai3d", "settings": {"tile": 256}})
    with tifffile.TiffFile(path) as tiff:
        assert tiff.series[0].axes == "TCZYX"
        assert tiff.pages.first.compression == tifffile.COMPRESSION.ADOBE_DEFLATE
        assert tiff.pages.first.predictor == tifffile.PREDICTOR.HORIZONTAL
        assert not tiff.is_bigtiff
        xml = tiff.ome_metadata
    ome = ome_types.from_xml(xml)  # validates against the OME schema
    pixels = ome.images[0].pixels
    assert ome.images[0].name == "left"
    assert [channel.name for channel in pixels.channels] == ["GFP", "RFP"]
    sizes = (pixels.physical_size_z, pixels.physical_size_y, pixels.physical_size_x)
    assert sizes == pytest.approx(ISO)
    assert pixels.physical_size_z_unit.value == "µm"
    annotation = ome.structured_annotations[0]
    assert annotation.namespace == "ssai3d-rt/provenance"
    assert dict(annotation.value) == {"bundle": "cells.ssai3d", "settings": '{"tile": 256}'}


def test_times_and_channels_in_order(tmp_path: Path) -> None:
    path = tmp_path / "iso.ome.tif"
    stacks = [stack_of(time, channel) for time in range(3) for channel in ("GFP", "Cherry")]
    written = write_ome_tiff(path, stacks)
    assert written.shape == (3, 2, *SHAPE)
    assert len(set(written.sha256)) == 6
    verify_ome_tiff(path, written)
    for stack, back in zip(stacks, read_stacks(path), strict=True):
        assert (back.time, back.channel) == (stack.time, stack.channel)
        np.testing.assert_array_equal(back.data, stack.data)


def test_stacks_may_come_one_by_one_and_only_one_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "iso.ome.tif"
    alive: list[weakref.ref[Any]] = []

    def produce() -> Iterator[Stack]:
        for time in range(4):
            assert not [ref for ref in alive if ref() is not None]  # the one before is gone
            data = np.full(SHAPE, time, np.uint16)
            alive.append(weakref.ref(data))
            stack = Stack(data, ISO, channel="GFP", time=time)
            del data
            yield stack
            del stack

    written = write_ome_tiff(path, produce(), times=4, channels=["GFP"])
    assert len(alive) == 4
    verify_ome_tiff(path, written)


@pytest.mark.parametrize(
    ("stacks", "options", "words"),
    [
        ([], {}, "0 stacks are not"),
        (iter([]), {"times": 1}, "there is no stack to write"),
        (iter([stack_of()]), {"times": 2}, "1 stacks came, 2 were announced"),
        (iter([stack_of(0), stack_of(1), stack_of(2)]), {"times": 2}, "more stacks came than the 2"),
        ([stack_of(0), stack_of(1)], {"times": 3}, "2 stacks are not 3 times"),
        ([stack_of(), stack_of(1, dtype="uint8")], {}, "stack 1 is .*uint8.*first one .*uint16"),
        (
            [stack_of(), Stack(stack_of().data, (0.1, 0.1, 0.1), time=1)],
            {},
            r"stack 1 is .*0\.1, 0\.1.*the first one .*0\.0941",
        ),
        ([stack_of(0, "a"), stack_of(0, "b"), stack_of(1, "b"), stack_of(1, "a")], {}, "of channel 'b', expected 'a'"),
        (iter([stack_of(0, "a")]), {"channels": ["b"]}, "of channel 'a', expected 'b'"),
    ],
)
def test_stacks_that_do_not_belong_together_leave_no_file(
    tmp_path: Path, stacks: Any, options: dict[str, Any], words: str
) -> None:
    path = tmp_path / "iso.ome.tif"
    with pytest.raises(InputError, match=words):
        write_ome_tiff(path, stacks, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_failing_producer_leaves_no_file(tmp_path: Path) -> None:
    def produce() -> Iterator[Stack]:
        yield stack_of(0)
        raise RuntimeError("the network failed")

    with pytest.raises(RuntimeError, match="the network failed"):
        write_ome_tiff(tmp_path / "iso.ome.tif", produce(), times=2)
    assert list(tmp_path.iterdir()) == []


def test_existing_files_are_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "iso.ome.tif"
    path.write_bytes(b"precious")
    with pytest.raises(InputError, match=r"iso\.ome\.tif: exists already; give another name"):
        write_ome_tiff(path, stack_of())
    assert path.read_bytes() == b"precious"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"iso\.ome\.tif: cannot be created: No such file"):
        write_ome_tiff(tmp_path / "none" / "iso.ome.tif", stack_of())


def test_a_full_disk(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="file size limits need a POSIX system")
    signal = pytest.importorskip("signal")
    path = tmp_path / "iso.ome.tif"
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(StorageError, match=r"iso\.ome\.tif: could not be written: ") as caught:
            write_ome_tiff(path, stack_of())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.EFBIG
    assert list(tmp_path.iterdir()) == []


def test_bigtiff_when_classic_tiff_could_not_address_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert write.BIGTIFF_FROM_BYTES < 2**32
    monkeypatch.setattr(write, "BIGTIFF_FROM_BYTES", stack_of().data.nbytes)
    written = write_ome_tiff(tmp_path / "big.ome.tif", stack_of())
    with tifffile.TiffFile(tmp_path / "big.ome.tif") as tiff:
        assert tiff.is_bigtiff
    verify_ome_tiff(tmp_path / "big.ome.tif", written)


PROVENANCE: dict[str, Any] = {
    "bundle": "zellen µm ä.ssai3d",
    "text that is a number": "12",
    "number": 12,
    "ratio": 0.1,
    "flag": True,
    "nothing": None,
    "versions": {"ssai3d-rt": "0.1.0", "list": [1, 2]},
    "markup": "<b> & \"quotes\" 'single'",
    "empty": "",
}


def test_provenance_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "iso.ome.tif"
    verify_ome_tiff(path, write_ome_tiff(path, stack_of(), PROVENANCE))
    assert read_provenance(path) == PROVENANCE


def test_files_of_others_have_no_provenance(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.ome.tif", stack_of().data, metadata={"MapAnnotation": {"key": "value"}})
    tifffile.imwrite(tmp_path / "b.tif", stack_of().data)
    write_ome_tiff(tmp_path / "c.ome.tif", stack_of())
    assert [read_provenance(tmp_path / name) for name in ("a.ome.tif", "b.tif", "c.ome.tif")] == [{}, {}, {}]


def test_verification_sees_a_changed_pixel(tmp_path: Path) -> None:
    path = tmp_path / "iso.ome.tif"
    written = write_ome_tiff(path, stack_of())
    changed = stack_of().data.copy()
    changed[3, 4, 5] += 1
    path.unlink()
    write_ome_tiff(path, Stack(changed, ISO))
    with pytest.raises(StorageError, match=r"iso\.ome\.tif: pixels of position 0, time 0, channel 0 read back as"):
        verify_ome_tiff(path, written)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (Stack(stack_of().data, (0.1, 0.1, 0.1)), "voxel size read back as"),
        (stack_of(channel="GFP"), "channel read back as GFP"),
        (Stack(stack_of().data[:5], ISO), "shape read back as"),
        (stack_of(dtype="float32"), "sample type read back as float32"),
        ([stack_of(0), stack_of(1)], "number of stacks read back as 2"),
    ],
)
def test_verification_sees_other_differences(tmp_path: Path, other: Stack | list[Stack], words: str) -> None:
    written = write_ome_tiff(tmp_path / "a.ome.tif", stack_of())
    write_ome_tiff(tmp_path / "b.ome.tif", other)
    with pytest.raises(StorageError, match=words):
        verify_ome_tiff(tmp_path / "b.ome.tif", written)


def test_verification_sees_lost_provenance_and_a_cut_off_file(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    written = write_ome_tiff(path, stack_of(), {"bundle": "x"})
    write_ome_tiff(tmp_path / "b.ome.tif", stack_of())
    with pytest.raises(StorageError, match=r"provenance read back as \{\}"):
        verify_ome_tiff(tmp_path / "b.ome.tif", written)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(StorageError, match=r"read back after writing: .*a\.ome\.tif"):
        verify_ome_tiff(path, written)


def test_the_written_file_may_be_renamed(tmp_path: Path) -> None:
    written = write_ome_tiff(tmp_path / ".iso.partial", stack_of(), {"bundle": "x"})
    (tmp_path / ".iso.partial").rename(tmp_path / "iso.ome.tif")
    verify_ome_tiff(tmp_path / "iso.ome.tif", written)


@settings(max_examples=30, deadline=None)
@given(
    times=st.integers(1, 3),
    channels=st.lists(st.text("abc µ<&\"'", max_size=4), min_size=1, max_size=3),
    shape=st.tuples(st.integers(2, 5), st.integers(1, 40), st.integers(1, 40)),
    dtype=st.sampled_from(["uint8", "uint16", "float32"]),
    voxel_um=st.tuples(st.floats(0.01, 50), st.floats(0.01, 5)),
    seed=st.integers(0, 2**32 - 1),
)
def test_anything_written_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    times: int,
    channels: list[str],
    shape: tuple[int, int, int],
    dtype: str,
    voxel_um: tuple[float, float],
    seed: int,
) -> None:
    path = tmp_path_factory.mktemp("w") / "a.ome.tif"
    rng = np.random.default_rng(seed)
    size = (voxel_um[0], voxel_um[1], voxel_um[1])
    data = [rng.integers(0, 256, shape).astype(dtype) for _ in range(times * len(channels))]
    stacks = (Stack(d, size, channels[i % len(channels)], i // len(channels)) for i, d in enumerate(data))
    verify_ome_tiff(path, write_ome_tiff(path, stacks, {"seed": seed}, times=times, channels=channels))
    with open_acquisition(path) as acquisition:
        assert acquisition.voxel_um == pytest.approx(size, rel=1e-6)
        for expected, key in zip(data, acquisition.keys, strict=True):
            np.testing.assert_array_equal(acquisition.read(key).data, expected)


def test_the_same_content_and_provenance_give_the_same_bytes(tmp_path: Path) -> None:
    stack = Stack(np.arange(4 * 8 * 8, dtype=np.uint16).reshape(4, 8, 8), (0.1, 0.1, 0.1), position="A1")
    files = [tmp_path / f"{number}.ome.tif" for number in range(4)]
    for path, provenance in zip(files, ({"tile": 64}, {"tile": 64}, {"tile": 32}, {}), strict=True):
        write_ome_tiff(path, stack, provenance)
    same, again, other, without = (path.read_bytes() for path in files)
    assert same == again
    ids = [re.findall(rb'UUID="urn:uuid:([^"]+)"', data) for data in (same, other, without)]
    assert len({name for found in ids for name in found}) == 3
    assert {uuid.UUID(found[0].decode()).version for found in ids} == {4, 5}
