"""Files that grow while they are read: every plane once, in order, only when whole, and a clear end."""

from __future__ import annotations

import multiprocessing
import struct
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tifffile

from ssai3d_rt.errors import IncompleteError, InputError, VoxelSizeError
from ssai3d_rt.imaging.growing import Following, GrowingStack
from ssai3d_rt.imaging.read import read_stack
from tests.imaging.mmfile import write_mmstack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy.typing as npt

PLANES = 7
DATA = np.random.default_rng(0).integers(100, 4000, (PLANES, 40, 48), dtype="uint16")
PAUSE_S = 0.06
QUICK = Following(poll_s=0.02, patience_s=3.0, quiet_s=0.5)
GIVEN = Following(poll_s=0.02, patience_s=3.0, quiet_s=0.5, voxel_z=0.4, voxel_xy=0.1)
OME = {"axes": "ZYX", "PhysicalSizeX": 0.1, "PhysicalSizeY": 0.1, "PhysicalSizeZ": 0.4}


def slowly() -> Iterator[npt.NDArray[np.uint16]]:
    for plane in DATA:
        yield plane
        time.sleep(PAUSE_S)


def ome_writers(path: Path, *, upto: int = PLANES) -> None:
    """Write as pymmcore-plus does: one page of tags, pixels behind it, the other tags when it is closed."""
    import ome_writers as ow

    axes = [("z", PLANES, 0.4), ("y", 40, 0.1), ("x", 48, 0.1)]
    dimensions = [ow.Dimension(name=n, count=c, type="space", scale=s, unit="micrometer") for n, c, s in axes]
    settings = ow.AcquisitionSettings.model_validate(
        {"root_path": str(path), "dimensions": dimensions, "dtype": "uint16", "format": "ome-tiff"}
    )
    with ow.create_stream(settings) as stream:
        for plane, _ in zip(slowly(), range(upto), strict=False):
            stream.append(plane)


def pages(path: Path) -> None:
    with tifffile.TiffWriter(path) as writer:
        for plane in slowly():
            writer.write(plane, contiguous=False, metadata=None, photometric="minisblack")


def appended(path: Path) -> None:
    for plane in slowly():
        tifffile.imwrite(path, plane, append=path.exists(), metadata=None, photometric="minisblack")


def contiguous(path: Path) -> None:
    with tifffile.TiffWriter(path) as writer:
        for plane in slowly():
            writer.write(plane, contiguous=True, metadata=None, photometric="minisblack")


def late_ome(path: Path) -> None:
    """Write pages as they come, and the OME-XML when the file is closed."""
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(slowly(), shape=DATA.shape, dtype=DATA.dtype, compression="zlib", metadata=OME)


def imagej(path: Path) -> None:
    with tifffile.TiffWriter(path, imagej=True) as writer:
        writer.write(
            slowly(),
            shape=DATA.shape,
            dtype=DATA.dtype,
            resolution=(10, 10),
            metadata={"axes": "ZYX", "spacing": 0.4, "unit": "um"},
        )


def mmstack(path: Path, *, upto: int = PLANES) -> None:
    """Write as Micro-Manager does: into a file that has more than its size from the start, tags before pixels."""
    summary = {"Slices": PLANES, "Channels": 1, "Frames": 1, "Positions": 1, "z-step_um": 0.4, "PixelSize_um": 0.1}
    whole = path.with_name("whole")
    write_mmstack(whole, {(0, 0, 0, z): plane for z, plane in enumerate(DATA)}, summary)
    raw = whole.read_bytes()
    with tifffile.TiffFile(whole, is_mmstack=False) as tiff:
        offsets = [page.offset for page in tiff.pages]
        starts = [page.dataoffsets[0] for page in tiff.pages]
    whole.unlink()
    with path.open("wb", buffering=0) as file:
        file.truncate(2 * len(raw))
        file.write(raw[: offsets[0]])
        for z in range(upto):
            end = offsets[z + 1] if z + 1 < PLANES else len(raw)
            file.seek(offsets[z])
            file.write(raw[offsets[z] : starts[z]])
            if z + 1 == PLANES:  # not closed yet: the last page leads to where another would be
                file.seek(offsets[z] + 2 + 12 * struct.unpack_from("<H", raw, offsets[z])[0])
                file.write(struct.pack("<I", len(raw)))
                file.seek(starts[z])
            time.sleep(PAUSE_S)
            file.write(raw[starts[z] : end])
        if upto == PLANES:
            file.seek(0)
            file.write(raw)
            file.truncate(len(raw))


@contextmanager
def being_written(write: Callable[..., Any], path: Path, **options: Any) -> Iterator[threading.Thread]:
    thread = threading.Thread(target=write, args=(path,), kwargs=options)
    thread.start()
    try:
        yield thread
    finally:
        thread.join()


LIVE: dict[str, tuple[Callable[..., Any], str, Following, int | None]] = {
    # how: (writer, file, following, planes known from the start)
    "ome-writers": (ome_writers, "a.ome.tif", QUICK, PLANES),
    "micro-manager": (mmstack, "a_MMStack_Pos0.ome.tif", QUICK, PLANES),
    "pages": (pages, "a.tif", GIVEN, None),
    "appended": (appended, "a.tif", GIVEN, None),
    "contiguous, planes given": (contiguous, "a.tif", replace(GIVEN, planes=PLANES), PLANES),
    "late OME-XML, voxel given": (late_ome, "a.ome.tif", GIVEN, None),
}
AT_THE_END = {
    "late OME-XML": (late_ome, "a.ome.tif", QUICK),
    "imagej in one piece": (imagej, "a.tif", QUICK),
    "contiguous": (contiguous, "a.tif", GIVEN),
}


@pytest.mark.parametrize("how", LIVE)
def test_planes_are_taken_whole_while_the_file_grows(how: str, tmp_path: Path) -> None:
    write, name, following, declared = LIVE[how]
    early = 0
    with being_written(write, tmp_path / name) as writer:
        growing = GrowingStack(tmp_path / name, following)
        header = growing.header()
        assert header.shape == (declared, 40, 48)
        assert header.voxel_um == pytest.approx((0.4, 0.1, 0.1))
        taken: list[Any] = []
        for z, plane in growing:
            assert z == len(taken)
            np.testing.assert_array_equal(plane, DATA[z])
            taken.append(plane)
            early += writer.is_alive()
    assert len(taken) == PLANES
    assert early >= 3
    finished = read_stack(tmp_path / name, voxel_z=0.4, voxel_xy=0.1)
    np.testing.assert_array_equal(finished.data, np.stack(taken))


@pytest.mark.parametrize("how", AT_THE_END)
def test_a_file_that_tells_nothing_while_it_grows_is_taken_when_it_is_closed(how: str, tmp_path: Path) -> None:
    write, name, following = AT_THE_END[how]
    with being_written(write, tmp_path / name):
        taken = [plane for _, plane in GrowingStack(tmp_path / name, following)]
    np.testing.assert_array_equal(np.stack(taken), DATA)


def test_a_writer_in_another_process_and_a_folder_that_is_empty_at_first(tmp_path: Path) -> None:
    writer = multiprocessing.get_context("spawn").Process(target=ome_writers, args=(tmp_path / "a.ome.tif",))
    writer.start()
    try:
        taken = [plane for _, plane in GrowingStack(tmp_path, replace(QUICK, patience_s=20.0))]
    finally:
        writer.join()
    np.testing.assert_array_equal(np.stack(taken), DATA)


def test_an_acquisition_that_was_stopped_ends_with_what_it_has(tmp_path: Path) -> None:
    with being_written(ome_writers, tmp_path / "a.ome.tif", upto=5):
        growing = GrowingStack(tmp_path / "a.ome.tif", QUICK)
        assert growing.header().shape[0] == PLANES
        taken = [plane for _, plane in growing]
    assert growing.header().shape[0] == 5
    np.testing.assert_array_equal(np.stack(taken), DATA[:5])


def test_the_tags_that_a_writer_adds_at_the_end_are_not_taken_for_pixels(tmp_path: Path) -> None:
    """Planes so small that the tags fill more than one, and a look before the first page leads to them."""
    whole, path = tmp_path / "whole", tmp_path / "a.tif"
    small = DATA[:5, :4, :4]
    with tifffile.TiffWriter(whole) as writer:
        for plane in small:
            writer.write(plane, contiguous=True, metadata=None, photometric="minisblack")
    raw = whole.read_bytes()
    with tifffile.TiffFile(whole) as tiff:
        at = tiff.pages[0].offset + 2 + 12 * len(tiff.pages.first.tags)
        tags_at = tiff.pages[1].offset
    open_ended = raw[:at] + bytes(4) + raw[at + 4 :]
    steps = [open_ended[:tags_at], open_ended[:tags_at], open_ended, raw]

    def write() -> None:
        if steps:
            path.write_bytes(steps.pop(0))

    growing = GrowingStack(path, replace(GIVEN, planes=PLANES, patience_s=0.3), on_look=write)
    taken: list[Any] = []
    with pytest.raises(IncompleteError, match="5 of 7 planes are there"):
        take(growing, taken)
    np.testing.assert_array_equal(np.stack(taken), small)


def take(growing: GrowingStack, taken: list[Any]) -> None:
    """Take planes one by one, so that those before an error are known."""
    for _, plane in growing:
        taken.append(plane)


@pytest.mark.parametrize(("write", "name"), [(ome_writers, "a.ome.tif"), (mmstack, "a_MMStack_Pos0.ome.tif")])
def test_an_abandoned_file_is_incomplete_and_says_what_was_there(
    write: Callable[..., Any], name: str, tmp_path: Path
) -> None:
    write(tmp_path / "whole.ome.tif")
    cut = tmp_path / name
    if write is mmstack:
        mmstack(cut, upto=4)
        there = 3  # the last one may not be whole
    else:
        raw = (tmp_path / "whole.ome.tif").read_bytes()
        with tifffile.TiffFile(tmp_path / "whole.ome.tif") as tiff:
            cut_at, next_at = tiff.pages[3].dataoffsets[0] + 100, 24 + 20 * 14
        live = bytearray(raw[:cut_at])
        live[next_at : next_at + 8] = bytes(8)  # while it is written, there is one page
        cut.write_bytes(live)
        there = 3
    before = cut.read_bytes()
    growing = GrowingStack(cut, replace(QUICK, patience_s=0.4))
    taken: list[Any] = []
    with pytest.raises(IncompleteError, match=f"nothing new for 0.4 s, and {there} of {PLANES} planes are there"):
        take(growing, taken)
    assert len(taken) == there
    assert cut.read_bytes() == before


def test_a_file_that_never_comes(tmp_path: Path) -> None:
    with pytest.raises(IncompleteError, match=r"a\.tif: no such file; nothing new for 0.1 s"):
        GrowingStack(tmp_path / "a.tif", replace(QUICK, patience_s=0.1)).header()
    with pytest.raises(IncompleteError, match="no TIFF file in it yet; nothing new"):
        GrowingStack(tmp_path, replace(QUICK, patience_s=0.1)).header()


@pytest.mark.parametrize(
    ("write", "match", "error"),
    [
        (lambda p: p.write_bytes(b"not an image at all"), "not a TIFF", InputError),
        (lambda p: tifffile.imwrite(p, DATA, metadata={"axes": "ZYX"}), "voxel size", VoxelSizeError),
        (lambda p: tifffile.imwrite(p, np.zeros((3, 8, 8, 3), "uint8"), photometric="rgb"), "colour", InputError),
        (
            lambda p: tifffile.imwrite(
                p, DATA[:6].reshape(3, 2, 40, 48), imagej=True, metadata={"axes": "ZCYX", "spacing": 1, "unit": "um"}
            ),
            r"holds 2 channels; choose one with --channel: 0, 1",
            InputError,
        ),
    ],
    ids=["text", "no voxel", "rgb", "channels"],
)
def test_what_will_not_get_better_is_said_soon(
    write: Callable[[Path], Any], match: str, error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssai3d_rt.imaging.growing.SETTLE_S", 0.1)
    write(tmp_path / "a.tif")
    started = time.monotonic()
    with pytest.raises(error, match=match):
        GrowingStack(tmp_path / "a.tif", replace(QUICK, patience_s=30.0)).header()
    assert time.monotonic() - started < 5


def test_one_channel_of_a_hyperstack(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, DATA[:6].reshape(3, 2, 40, 48), ome=True, metadata=OME | {"axes": "ZCYX"})
    growing = GrowingStack(path, replace(QUICK, channel=1))
    np.testing.assert_array_equal(np.stack([p for _, p in growing]), DATA[1:6:2])


def test_a_writer_that_fills_planes_in_place_is_found_out(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros_like(DATA), photometric="minisblack", metadata={"axes": "ZYX"})
    with tifffile.TiffFile(path) as tiff:
        at = tiff.pages[2].dataoffsets[0]

    def fill(z: int) -> None:
        if z == 4:
            with path.open("r+b") as file:
                file.seek(at)
                file.write(DATA[2].tobytes())

    planes = iter(GrowingStack(path, GIVEN))
    for _ in range(PLANES):
        fill(next(planes)[0])
    with pytest.raises(IncompleteError, match="plane 2 changed after it was taken"):
        next(planes)


def test_a_header_that_comes_late_and_contradicts_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages seemed to be planes of one stack, and were channels in turn."""
    monkeypatch.setattr("ssai3d_rt.imaging.growing.SETTLE_S", 0.1)

    def write(path: Path) -> None:
        with tifffile.TiffWriter(path, ome=True) as writer:
            writer.write(
                slowly(),
                shape=(1, PLANES, 40, 48),
                dtype=DATA.dtype,
                compression="zlib",
                metadata={"axes": "ZCYX"},
            )

    with being_written(write, tmp_path / "a.ome.tif"), pytest.raises(InputError, match=r"one plane each|7 channels"):
        list(GrowingStack(tmp_path / "a.ome.tif", GIVEN))


def test_the_caller_can_end_it(tmp_path: Path) -> None:
    def stop() -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        GrowingStack(tmp_path / "a.tif", QUICK, on_look=stop).header()
