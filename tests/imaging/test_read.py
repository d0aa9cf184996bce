from __future__ import annotations

import contextlib
import gzip
import logging
import os
import shutil
import socket
import struct
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from ssai3d_rt.errors import IncompleteError, InputError, NotAStackError, VoxelSizeError
from ssai3d_rt.imaging import open_acquisition, read_stack, read_stacks
from tests.imaging.mmfile import write_mmstack

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy.typing as npt

    Array = npt.NDArray[Any]

XY_UM = 0.1
RESOLUTION = (10.0, 10.0)  # pixels per um
IMAGEJ_UM = {"axes": "ZYX", "spacing": 0.5, "unit": "um"}


def counts(*shape: int, dtype: str = "uint16") -> Array:
    """Every voxel another number, so that a plane in the wrong place shows."""
    return np.arange(1, np.prod(shape) + 1, dtype="int64").reshape(shape).astype(dtype)


# --- real files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "voxel_um", "channels"),
    [
        ("xyz_16bit__spots.tif", (17, 88, 89), "uint16", (0.4, 0.0941), 1),
        ("xyzc_16bit__spots.tif", (17, 88, 89), "uint16", (0.4, 0.0941), 2),
        ("xyzc_16bit__dna_conf_wf.tif", (45, 130, 133), "uint16", (0.4994, 0.5119), 2),
        ("xyz_8bit__mitotic_plate_calibrated.tif", (6, 263, 263), "uint8", (3.0, 0.0852), 1),
        ("Bead_Image1_crop.tif", (41, 150, 150), "uint8", (0.125, 0.0225), 1),
    ],
)
def test_real_imagej_files(
    shared_data: Path,
    name: str,
    shape: tuple[int, int, int],
    dtype: str,
    voxel_um: tuple[float, float],
    channels: int,
) -> None:
    path = shared_data / "stacks" / name
    stacks = list(read_stacks(path))
    assert len(stacks) == channels
    reference = tifffile.imread(path).reshape(shape[0], channels, *shape[1:])  # files are ZCYX
    for channel, stack in enumerate(stacks):
        assert stack.data.shape == shape
        assert stack.data.dtype == dtype
        assert stack.voxel_um == pytest.approx((voxel_um[0], voxel_um[1], voxel_um[1]), abs=5e-5)
        assert stack.source == path
        np.testing.assert_array_equal(stack.data, reference[:, channel])


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("xyz_8bit__mitotic_plate_badZcalibrated.tif", "--voxel-z"),
        ("xyz_nuclear_envelope_drosophila.tif", "--voxel-z"),
        ("bars-25pct_data.tif", r"--voxel-z.*--voxel-xy"),
    ],
)
def test_real_files_without_voxel_size_ask_for_it_in_one_line(shared_data: Path, name: str, option: str) -> None:
    with pytest.raises(VoxelSizeError, match=option) as caught:
        read_stack(shared_data / "stacks" / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_given_plane_spacing_completes_a_real_file(shared_data: Path) -> None:
    stack = read_stack(shared_data / "stacks" / "xyz_8bit__mitotic_plate_badZcalibrated.tif", voxel_z=3.0)
    assert stack.voxel_um == pytest.approx((3.0, 0.0852, 0.0852), abs=5e-5)


def test_real_float_stack_with_given_voxel_size(shared_data: Path) -> None:
    path = shared_data / "stacks" / "bars-25pct_data.tif"
    stack = read_stack(path, voxel_z=0.25, voxel_xy=0.1)
    assert stack.voxel_um == (0.25, 0.1, 0.1)
    np.testing.assert_array_equal(stack.data, tifffile.imread(path))


@pytest.fixture
def micro_manager_1_4(shared_data: Path, tmp_path: Path) -> Path:
    """Folder with two of the four positions of a real Micro-Manager 1.4 acquisition."""
    for packed in (shared_data / "mmstack").glob("*.gz"):
        with gzip.open(packed) as source, (tmp_path / packed.stem).open("wb") as target:
            shutil.copyfileobj(source, target)
    return tmp_path


def test_real_micro_manager_folder_gives_every_position_that_is_there(micro_manager_1_4: Path) -> None:
    with open_acquisition(micro_manager_1_4) as acquisition:
        assert acquisition.shape == (2, 64, 64)
        assert acquisition.voxel_um == (5.0, 1.0, 1.0)
        assert [key.position for key in acquisition.keys] == [0] * 4 + [3] * 4
        assert [(key.time, key.channel_name) for key in acquisition.keys[:4]] == [
            (0, "Cy5"),
            (0, "DAPI"),
            (1, "Cy5"),
            (1, "DAPI"),
        ]
        assert len(acquisition.files) == 2
        for key in acquisition.keys:
            stack = acquisition.read(key)
            file = micro_manager_1_4 / f"1.4compatTest_3_MMStack_{key.position_name}.ome.tif"
            with tifffile.TiffFile(file, is_mmstack=False, is_ome=False) as tiff:  # order in the file: TCZ
                pages = [tiff.pages[4 * key.time + 2 * key.channel + z].asarray() for z in range(2)]
            np.testing.assert_array_equal(stack.data, pages)
            assert stack.position == key.position_name


@pytest.mark.parametrize("sibling", ["there", "gone"])
def test_real_micro_manager_position_alone(micro_manager_1_4: Path, sibling: str) -> None:
    path = micro_manager_1_4 / "1.4compatTest_3_MMStack_1-Pos_000_001.ome.tif"
    if sibling == "gone":
        (micro_manager_1_4 / "1.4compatTest_3_MMStack_1-Pos_000_000.ome.tif").unlink()
    with open_acquisition(path) as acquisition:
        assert {key.position_name for key in acquisition.keys} == {"1-Pos_000_001"}
        assert len(acquisition.keys) == 4
        assert acquisition.files == (path,)
        assert acquisition.read(acquisition.keys[3]).data.mean() == pytest.approx(13746.17, abs=0.01)


def test_real_micro_manager_file_with_a_zeroed_tail_is_not_finished(micro_manager_1_4: Path) -> None:
    path = micro_manager_1_4 / "1.4compatTest_3_MMStack_1-Pos_000_000.ome.tif"
    with tifffile.TiffFile(path, is_mmstack=False, is_ome=False) as tiff:
        fourth = tiff.pages[3].offset
    content = bytearray(path.read_bytes())
    content[fourth:] = bytes(len(content) - fourth)  # size kept, as when space is preallocated
    path.write_bytes(content)
    with pytest.raises(IncompleteError, match=r"_000_000\.ome\.tif: not finished or cut off, page 3"):
        open_acquisition(path)


# --- layouts ------------------------------------------------------------------------------------------------------


def test_tifffile_imagej_hyperstack_with_time_and_channels(tmp_path: Path) -> None:
    data = counts(3, 5, 2, 6, 7)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, data, imagej=True, resolution=RESOLUTION, metadata={**IMAGEJ_UM, "axes": "TZCYX"})
    with open_acquisition(path) as acquisition:
        assert acquisition.describe() == (
            "a.tif: ImageJ hyperstack, 1 position, 3 time points, 2 channels, 5 planes of 6 x 7 uint16, "
            "voxel 0.5 x 0.1 x 0.1 um"
        )
        for key in acquisition.keys:
            np.testing.assert_array_equal(acquisition.read(key).data, data[key.time, :, key.channel])


def imagej_in_one_piece(path: Path, data: Array, planes: int) -> None:
    """As ImageJ writes large hyperstacks: one page of tags, the pixels of all planes behind it, big-endian."""
    height, width = data.shape[-2:]
    text = f"ImageJ=1.54f\nimages={planes}\nslices={planes}\nunit=um\nspacing=0.5\n".encode() + b"\0"
    tags = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 1, 16 << 16),
        (262, 3, 1, 1 << 16),
        (270, 2, len(text), 200),
        (273, 4, 1, 500),
        (277, 3, 1, 1 << 16),
        (278, 4, 1, height),
        (279, 4, 1, height * width * 2),
        (282, 5, 1, 180),
        (283, 5, 1, 180),
        (296, 3, 1, 1 << 16),
    ]
    head = struct.pack(">2sHIH", b"MM", 42, 8, len(tags)) + b"".join(struct.pack(">HHII", *tag) for tag in tags)
    head = (head + bytes(4)).ljust(180, b"\0") + struct.pack(">II", 10_000_000, 1_000_000)
    path.write_bytes((head.ljust(200, b"\0") + text).ljust(500, b"\0") + data.astype(">u2").tobytes())


def test_imagej_hyperstack_in_one_piece(tmp_path: Path) -> None:
    data = counts(6, 20, 21)
    imagej_in_one_piece(tmp_path / "a.tif", data, planes=6)
    stack = read_stack(tmp_path / "a.tif")
    assert stack.voxel_um == (0.5, XY_UM, XY_UM)
    np.testing.assert_array_equal(stack.data, data)


def test_imagej_hyperstack_in_one_piece_cut_off(tmp_path: Path) -> None:
    imagej_in_one_piece(tmp_path / "a.tif", counts(4, 20, 21), planes=6)
    with pytest.raises(IncompleteError, match=r"a\.tif: plane \(t=0, c=0, z=4\) is declared but not there \(4 of 6"):
        open_acquisition(tmp_path / "a.tif")


@pytest.mark.parametrize("order", ["XYCZT", "XYCTZ", "XYZCT", "XYZTC", "XYTCZ", "XYTZC"])
def test_ome_tiff_in_any_dimension_order(tmp_path: Path, order: str) -> None:
    path = tmp_path / "a.ome.tif"
    axes = order[::-1]  # slowest first
    data = counts(2, 3, 4, 6, 7)  # T, C, Z, Y, X
    shuffled = data.transpose(["TCZYX".index(axis) for axis in axes])
    sizes = {"PhysicalSizeX": 100, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 1e-4, "PhysicalSizeYUnit": "mm"}
    metadata = {"axes": axes, **sizes, "PhysicalSizeZ": 0.5, "Channel": {"Name": ["a", "b", "c"]}}
    tifffile.imwrite(path, shuffled, metadata=metadata, photometric="minisblack")
    with open_acquisition(path) as acquisition:
        assert acquisition.voxel_um == pytest.approx((0.5, 0.1, 0.1))
        assert [key.channel_name for key in acquisition.keys] == ["a", "b", "c"] * 2
        for key in acquisition.keys:
            np.testing.assert_array_equal(acquisition.read(key).data, data[key.time, key.channel])


def ome_xml(blocks: str, *, size: str = 'SizeZ="4" SizeC="1" SizeT="1"', root: str = "", before: str = "") -> str:
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>{before}'
        f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" {root}><Image ID="Image:0" Name="well A1">'
        f'<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="7" SizeY="6" {size} '
        'PhysicalSizeX="0.1" PhysicalSizeY="0.1" PhysicalSizeZ="0.5">'
        f"{blocks}</Pixels></Image></OME>"
    )


def write_pages(path: Path, planes: Array, description: str | None = None, **options: Any) -> None:
    """Write page by page, without tifffile's own metadata; the description goes to the first page."""
    with tifffile.TiffWriter(path) as writer:
        for i, plane in enumerate(planes):
            text = description.encode() if description and i == 0 else None
            writer.write(plane, contiguous=False, metadata=None, description=text, photometric="minisblack", **options)


def ome_files(folder: Path) -> tuple[Path, Array]:
    """Write one image whose planes lie in two files, two in each."""
    data = counts(4, 6, 7)
    blocks = "".join(
        f'<TiffData FirstZ="{z}" IFD="{z % 2}">'
        f'<UUID FileName="{"ab"[z // 2]}.ome.tif">urn:uuid:{z // 2}</UUID></TiffData>'
        for z in range(4)
    )
    write_pages(folder / "a.ome.tif", data[:2], ome_xml(blocks, root='UUID="urn:uuid:0"'))
    write_pages(folder / "b.ome.tif", data[2:], ome_xml(blocks, root='UUID="urn:uuid:1"'))
    return folder / "a.ome.tif", data


def test_ome_image_over_two_files(tmp_path: Path) -> None:
    path, data = ome_files(tmp_path)
    with open_acquisition(path) as acquisition:
        stack = acquisition.read(acquisition.keys[0])
        assert acquisition.files == (path, tmp_path / "b.ome.tif")
    assert stack.position == "well A1"
    np.testing.assert_array_equal(stack.data, data)


def test_ome_image_with_a_missing_file_is_incomplete(tmp_path: Path) -> None:
    path, _ = ome_files(tmp_path)
    (tmp_path / "b.ome.tif").unlink()
    with pytest.raises(IncompleteError, match=r"a\.ome\.tif: plane \(t=0, c=0, z=2\) is declared but not there"):
        open_acquisition(path)


def test_renamed_ome_file_is_recognised_by_its_uuid(tmp_path: Path) -> None:
    blocks = '<TiffData PlaneCount="4"><UUID FileName="old.ome.tif">urn:uuid:7</UUID></TiffData>'
    data = counts(4, 6, 7)
    write_pages(tmp_path / "new.ome.tif", data, ome_xml(blocks, root='UUID="urn:uuid:7"'))
    np.testing.assert_array_equal(read_stack(tmp_path / "new.ome.tif").data, data)
    write_pages(tmp_path / "lost.ome.tif", data, ome_xml(blocks))
    with pytest.raises(
        InputError, match=r"lost\.ome\.tif: its OME-XML describes no image in this file; was it renamed"
    ):
        read_stack(tmp_path / "lost.ome.tif")


@pytest.mark.parametrize("master", ["master.companion.ome", "master.ome.tif"])
def test_ome_metadata_in_a_sibling(tmp_path: Path, master: str) -> None:
    xml = ome_xml('<TiffData IFD="0" PlaneCount="4"><UUID FileName="a.ome.tif">urn:uuid:0</UUID></TiffData>')
    pointer = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:0">'
        f'<BinaryOnly MetadataFile="{master}" UUID="urn:uuid:1"/></OME>'
    )
    data = counts(4, 6, 7)
    write_pages(tmp_path / "a.ome.tif", data, pointer)
    if master.endswith(".tif"):
        write_pages(tmp_path / master, data, xml)
    else:
        (tmp_path / master).write_text(xml, encoding="utf-8")
    np.testing.assert_array_equal(read_stack(tmp_path / "a.ome.tif").data, data)


def test_a_stopped_acquisition_gives_its_whole_stacks(tmp_path: Path) -> None:
    blocks = '<TiffData IFD="0" PlaneCount="12"/>'
    data = counts(10, 6, 7)  # the third time point was stopped after two of four planes
    write_pages(tmp_path / "a.ome.tif", data, ome_xml(blocks, size='SizeZ="4" SizeC="1" SizeT="3"'))
    with open_acquisition(tmp_path / "a.ome.tif") as acquisition:
        assert [acquisition.is_whole(key) for key in acquisition.keys] == [True, True, False]
        np.testing.assert_array_equal(acquisition.read(acquisition.keys[1]).data, data[4:8])
        with pytest.raises(IncompleteError, match=r"plane \(t=2, c=0, z=2\) is declared but not there \(10 of 12"):
            acquisition.read(acquisition.keys[2])


@pytest.mark.parametrize(
    ("compression", "predictor"), [(None, False), ("zlib", True), ("lzw", True), ("zstd", False), ("zlib", False)]
)
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_plain_pages_compressed_tiled_and_in_either_byte_order(
    tmp_path: Path, compression: str | None, predictor: bool, byteorder: str
) -> None:
    data = counts(4, 40, 50)
    for name, tile in (("strips.tif", None), ("tiles.tif", (16, 16))):
        with tifffile.TiffWriter(tmp_path / name, byteorder=byteorder) as writer:  # type: ignore[arg-type]
            for plane in data:
                writer.write(plane, contiguous=False, compression=compression, predictor=predictor, tile=tile)
        stack = read_stack(tmp_path / name, voxel_z=1.0, voxel_xy=0.5)
        assert stack.data.dtype.isnative
        np.testing.assert_array_equal(stack.data, data)


def test_bigtiff(tmp_path: Path) -> None:
    data = counts(4, 6, 7)
    tifffile.imwrite(tmp_path / "a.tif", data, bigtiff=True, photometric="minisblack")
    np.testing.assert_array_equal(read_stack(tmp_path / "a.tif", 1.0, 0.5).data, data)


def test_shaped_axes_tell_channels_from_planes(tmp_path: Path) -> None:
    data = counts(3, 4, 6, 7)
    tifffile.imwrite(tmp_path / "a.tif", data, metadata={"axes": "CZYX"}, photometric="minisblack")
    np.testing.assert_array_equal(read_stack(tmp_path / "a.tif", 1.0, 0.5, channel=2).data, data[2])


# --- Micro-Manager 2.0 and rolled over files ------------------------------------------------------------------------

SUMMARY_2_0: dict[str, Any] = {
    "z-step_um": 0.75,
    "ChNames": ["GFP", "RFP"],
    "IntendedDimensions": {"time": 2, "channel": 2, "z": 3, "position": 2},
    "StagePositions": [{"Label": "left"}, {"Label": "right"}],
    "MicroManagerVersion": "2.0.3",
    "Positions": 2,
}


def mm_planes(positions: int = 1) -> dict[tuple[int, int, int, int], Array]:
    keys = [(p, t, c, z) for p in range(positions) for t in range(2) for z in range(3) for c in range(2)]
    return {key: counts(6, 7) + 100 * i for i, key in enumerate(keys)}


def test_micro_manager_2_positions_in_one_file(tmp_path: Path) -> None:
    path = tmp_path / "run_MMStack.ome.tif"
    planes = mm_planes(positions=2)
    write_mmstack(path, planes, SUMMARY_2_0)
    with open_acquisition(path) as acquisition:
        assert acquisition.voxel_um == (0.75, 0.25, 0.25)
        assert [key.position_name for key in acquisition.keys] == ["left"] * 4 + ["right"] * 4
        for key in acquisition.keys:
            expected = [planes[key.position, key.time, key.channel, z] for z in range(3)]
            np.testing.assert_array_equal(acquisition.read(key).data, expected)


@pytest.mark.parametrize("opened", ["run_MMStack_Pos0.ome.tif", "run_MMStack_Pos0_1.ome.tif", ""])
def test_micro_manager_file_that_rolled_over(tmp_path: Path, opened: str) -> None:
    planes = mm_planes()
    items = list(planes.items())
    for name, part in (("Pos0", items[:5]), ("Pos0_1", items[5:9]), ("Pos0_2", items[9:])):
        write_mmstack(tmp_path / f"run_MMStack_{name}.ome.tif", dict(part), SUMMARY_2_0 | {"Positions": 1})
    with open_acquisition(tmp_path / opened) as acquisition:
        assert len(acquisition.keys) == 4
        for key in acquisition.keys:
            expected = [planes[0, key.time, key.channel, z] for z in range(3)]
            np.testing.assert_array_equal(acquisition.read(key).data, expected)


def test_micro_manager_position_called_like_a_continuation(tmp_path: Path) -> None:
    planes = mm_planes(positions=2)
    for p, name in enumerate(("A", "A_1")):
        own = {key: plane for key, plane in planes.items() if key[0] == p}
        write_mmstack(tmp_path / f"run_MMStack_{name}.ome.tif", own, SUMMARY_2_0)
    with open_acquisition(tmp_path / "run_MMStack_A.ome.tif") as acquisition:
        assert {key.position for key in acquisition.keys} == {0}
    with open_acquisition(tmp_path / "run_MMStack_A_1.ome.tif") as acquisition:
        assert {key.position for key in acquisition.keys} == {1}
    with open_acquisition(tmp_path) as acquisition:
        assert {key.position for key in acquisition.keys} == {0, 1}


def test_micro_manager_continuation_missing(tmp_path: Path) -> None:
    path = tmp_path / "run_MMStack_Pos0.ome.tif"
    write_mmstack(path, dict(list(mm_planes().items())[:7]), SUMMARY_2_0)
    with open_acquisition(path) as acquisition:
        assert [acquisition.is_whole(key) for key in acquisition.keys] == [True, True, False, False]
        with pytest.raises(IncompleteError, match=r"Pos0\.ome\.tif: plane \(t=1, c=0, z=1\) is declared but not there"):
            acquisition.read(acquisition.keys[2])


def test_micro_manager_index_that_lists_pages_which_are_not_there(tmp_path: Path) -> None:
    path = tmp_path / "run_MMStack_Pos0.ome.tif"
    write_mmstack(path, mm_planes(), SUMMARY_2_0, omit_pages=9)
    with pytest.raises(IncompleteError, match=r"plane \(t=0, c=0, z=2\) is declared but not there \(3 of 12"):
        open_acquisition(path)


def test_micro_manager_still_writing(tmp_path: Path) -> None:
    path = tmp_path / "run_MMStack_Pos0.ome.tif"
    write_mmstack(path, mm_planes(), SUMMARY_2_0, finished=False)
    with pytest.raises(IncompleteError, match="not finished or cut off, page 12 is announced"):
        open_acquisition(path)


@pytest.mark.parametrize("step", [0, None, float("nan")])
def test_micro_manager_without_plane_spacing(tmp_path: Path, step: float | None) -> None:
    path = tmp_path / "run_MMStack_Pos0.ome.tif"
    write_mmstack(path, mm_planes(), SUMMARY_2_0 | {"z-step_um": step})
    with pytest.raises(VoxelSizeError, match=r"Pos0\.ome\.tif: the plane spacing \(z\) is not in the file.*--voxel-z"):
        open_acquisition(path)
    assert read_stack(path, voxel_z=0.3, time=0, channel="GFP").voxel_um == (0.3, 0.25, 0.25)


# --- a real acquisition engine ------------------------------------------------------------------------------------


def test_real_acquisitions_with_pymmcore_plus(tmp_path: Path) -> None:
    pymmcore_plus = pytest.importorskip("pymmcore_plus", reason="pymmcore-plus is not installed")
    useq = pytest.importorskip("useq")
    core = pymmcore_plus.CMMCorePlus()
    try:
        core.loadSystemConfiguration()
    except Exception as exc:
        pytest.skip(f"no Micro-Manager devices on this machine: {exc}")
    core.setProperty("Camera", "Mode", "Fluorescent Beads")
    core.setProperty("Camera", "PixelType", "16bit")
    core.setROI(0, 0, 64, 48)
    frames: dict[tuple[int, ...], Array] = {}

    def keep(image: Array, event: Any) -> None:
        frames[tuple(event.index.get(axis, 0) for axis in "ptcz")] = image.copy()

    core.mda.events.frameReady.connect(keep)
    channels = [{"config": name, "exposure": 1} for name in ("FITC", "DAPI")]
    core.mda.run(
        useq.MDASequence(
            axis_order="tpzc",  # not the order in which they are stored
            z_plan={"range": 2, "step": 0.5},
            channels=channels,
            time_plan={"interval": 0, "loops": 2},
            stage_positions=[(0, 0, 0), {"x": 1, "y": 1, "z": 0, "name": "B"}],
        ),
        output=tmp_path / "run.ome.tif",
    )
    core.reset()
    with open_acquisition(tmp_path / "run") as acquisition:
        assert acquisition.voxel_um == (0.5, 1.0, 1.0)
        assert [key.channel_name for key in acquisition.keys[:2]] == ["FITC", "DAPI"]
        assert [key.position_name for key in acquisition.keys] == [""] * 4 + ["B"] * 4
        for key in acquisition.keys:
            expected = [frames[key.position, key.time, key.channel, z] for z in range(5)]
            np.testing.assert_array_equal(acquisition.read(key).data, expected)
    with open_acquisition(tmp_path / "run" / "run_p001.ome.tif") as acquisition:
        assert {key.position for key in acquisition.keys} == {1}


# --- what is refused ----------------------------------------------------------------------------------------------


def plain(path: Path, data: Array | None = None) -> bytes:
    write_pages(path, counts(4, 6, 7) if data is None else data)
    return path.read_bytes()


def cut(part: float) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        content = plain(path, counts(8, 32, 32))
        path.write_bytes(content[: int(len(content) * part)])

    return make


def zero_tail(path: Path) -> None:
    content = plain(path, counts(8, 32, 32))
    path.write_bytes(content[: len(content) * 5 // 8] + bytes(len(content) * 3 // 8))


def contiguous_cut(name: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        whole = path.with_name(name)
        tifffile.imwrite(whole, counts(8, 32, 32), photometric="minisblack")
        path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])

    return make


def last_strip_past_the_end(path: Path) -> None:
    content = bytearray(plain(path))
    with tifffile.TiffFile(path) as tiff:
        tag = tiff.pages[3].tags["StripOffsets"]  # type: ignore[union-attr]
        at = tag.valueoffset
    content[at : at + 4] = struct.pack("<I", len(content) - 10)
    path.write_bytes(content)


def unwritten_tile(path: Path) -> None:
    write_pages(path, counts(4, 32, 32), tile=(16, 16), compression="zlib")
    with tifffile.TiffFile(path) as tiff:
        tags = tiff.pages[2].tags  # type: ignore[union-attr]
        spots = [tags["TileOffsets"].valueoffset, tags["TileByteCounts"].valueoffset]
    content = bytearray(path.read_bytes())
    for spot in spots:
        content[spot : spot + 4] = bytes(4)
    path.write_bytes(content)


def circular(path: Path) -> None:
    content = bytearray(plain(path))
    with tifffile.TiffFile(path) as tiff:
        first, last = tiff.pages[0].offset, tiff.pages[3].offset
    (tags,) = struct.unpack_from("<H", content, last)
    struct.pack_into("<I", content, last + 2 + 12 * tags, first)
    path.write_bytes(content)


def bad_codec_data(path: Path) -> None:
    write_pages(path, counts(4, 32, 32), compression="zlib")
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[1]
        start, count = page.dataoffsets[0], page.databytecounts[0]
    content = bytearray(path.read_bytes())
    content[start : start + count] = b"\xff" * count
    path.write_bytes(content)


def bomb(path: Path) -> None:
    plane = np.zeros((17_000, 17_000), "uint8")
    tifffile.imwrite(path, plane, compression="zlib", compressionargs={"level": 1}, rowsperstrip=17_000)


def with_ome(blocks: str, **options: str) -> Callable[[Path], None]:
    return lambda path: write_pages(path, counts(4, 6, 7), ome_xml(blocks, **options))


def imagej(description: str) -> Callable[[Path], None]:
    return lambda path: write_pages(path, counts(4, 6, 7), f"ImageJ=1.54f\n{description}")


def of_type(data: Array, **options: Any) -> Callable[[Path], object]:
    return lambda path: tifffile.imwrite(path, data, **{"photometric": "minisblack"} | options)


def pages_of(*planes: Array) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with tifffile.TiffWriter(path) as writer:
            for plane in planes:
                writer.write(plane, contiguous=False, metadata=None, photometric="minisblack")

    return make


def nan_stack() -> Array:
    data = np.ones((4, 6, 7), "float32")
    data[0, 0, 0], data[1, 2, 3], data[3, 1, 1] = np.nan, np.inf, -np.inf
    return data


TRAVERSAL = '<TiffData PlaneCount="2"/><TiffData FirstZ="2"><UUID FileName="../b.tif">urn:uuid:2</UUID></TiffData>'

BAD: list[Any] = [
    pytest.param(lambda path: path.touch(), IncompleteError, "only 0 bytes", id="empty"),
    pytest.param(lambda path: path.write_bytes(b"II*\0"), IncompleteError, "only 4 bytes", id="4-byte header"),
    pytest.param(
        lambda path: path.write_bytes(b"II*\0\x08\0\0\0"), IncompleteError, "page 0 is announced", id="header"
    ),
    pytest.param(lambda path: path.write_bytes(b"II*\0" + bytes(9)), IncompleteError, "without an image", id="no page"),
    pytest.param(lambda path: path.write_bytes(b"hello, " * 99), InputError, "not a TIFF file.*b'hell'", id="text"),
    pytest.param(cut(0.6), IncompleteError, "page 5 is announced at byte", id="cut off page by page"),
    pytest.param(zero_tail, IncompleteError, "page 5 is announced at byte", id="zero tail"),
    pytest.param(contiguous_cut("b.tif"), IncompleteError, "page 1 is announced", id="cut off in one piece"),
    pytest.param(contiguous_cut("b.ome.tif"), IncompleteError, "page 1 is announced", id="cut off OME"),
    pytest.param(last_strip_past_the_end, IncompleteError, "page 3 is cut off: its pixels end", id="pixels past end"),
    pytest.param(unwritten_tile, IncompleteError, "page 2 has no pixels", id="unwritten tile"),
    pytest.param(circular, InputError, "page 4 leads back to an earlier page", id="circular"),
    pytest.param(bad_codec_data, InputError, "page 1 cannot be decoded", id="damaged compressed data"),
    pytest.param(bomb, InputError, "page 0 claims 289000000 bytes from", id="bomb"),
    pytest.param(of_type(counts(6, 7)), NotAStackError, "single image, not a z-stack", id="2D"),
    pytest.param(of_type(counts(6, 7, 3, dtype="uint8"), photometric="rgb"), InputError, r"colour \(RGB\)", id="RGB"),
    pytest.param(of_type(counts(4, 6, 7, dtype="complex64")), InputError, "sample type complex64", id="complex"),
    pytest.param(of_type(counts(4, 6, 7, dtype="int8")), InputError, "sample type int8", id="int8"),
    pytest.param(of_type(counts(4, 6, 7) > 5), InputError, "sample type bool", id="bool"),
    pytest.param(of_type(counts(4, 6, 7, dtype="uint8"), photometric="miniswhite"), InputError, "inverted", id="white"),
    pytest.param(of_type(nan_stack()), InputError, "3 NaN or infinite samples", id="NaN"),
    pytest.param(of_type(np.full((4, 6, 7), 1e300)), InputError, "168 NaN or infinite samples", id="float64 too large"),
    pytest.param(of_type(-counts(4, 6, 7, dtype="int16")), InputError, "int16 values from -42 to -1", id="negative"),
    pytest.param(
        of_type(counts(4, 6, 7, dtype="uint32") * 999), InputError, "uint32 values from 42957 to 83916", id="uint32"
    ),
    pytest.param(of_type(counts(2, 3, 6, 7)), InputError, "does not say which axis is z", id="4D without axes"),
    pytest.param(pages_of(counts(6, 7), counts(6, 8)), InputError, "6 x 7 uint16 and 6 x 8 uint16", id="mixed sizes"),
    pytest.param(
        pages_of(counts(6, 7), counts(6, 7, dtype="uint8")), InputError, "differ in size or type", id="mixed types"
    ),
    pytest.param(
        imagej("images=4\nframes=4\n"),
        InputError,
        "4 time points of one plane each; if these are planes, save",
        id="time only",
    ),
    pytest.param(imagej("images=4\nslices=3\n"), InputError, "declares 3 planes but it holds 4", id="too many pages"),
    pytest.param(imagej("images=6\nslices=6\n"), IncompleteError, "z=4.*4 of 6", id="too few pages"),
    pytest.param(imagej("images=4\nslices=0\n"), InputError, "slices or frames below 1", id="no slices"),
    pytest.param(imagej("images=4\nslices=4\norder=xyz\n"), InputError, "dimension order 'XYZ'", id="ImageJ order"),
    pytest.param(
        with_ome('<TiffData IFD="0" PlaneCount="4"/>', size='SizeZ="1000000" SizeC="1" SizeT="1"'),
        IncompleteError,
        "z=4.*4 of 1000000 planes",
        id="OME claims a million planes",
    ),
    pytest.param(
        with_ome("<TiffData/>", size='SizeZ="9999999" SizeC="1" SizeT="9999999"'),
        InputError,
        "not plausible",
        id="OME huge",
    ),
    pytest.param(with_ome(TRAVERSAL), InputError, r"'\.\./b\.tif' outside its own folder", id="OME leads outside"),
    pytest.param(
        with_ome("<TiffData/>", before='<!DOCTYPE x [<!ENTITY a "b">]>'), InputError, "declares entities", id="entities"
    ),
    pytest.param(with_ome("<TiffData>"), InputError, "OME-XML is damaged", id="XML not well-formed"),
    pytest.param(with_ome('<TiffData IFD="-1"/>'), InputError, "IFD='-1'", id="OME negative"),
    pytest.param(
        with_ome('<TiffData IFD="0" FirstZ="0"/><TiffData IFD="1" FirstZ="0"/>'), InputError, "twice", id="OME twice"
    ),
    pytest.param(
        lambda path: write_pages(path, counts(4, 6, 8), ome_xml("<TiffData/>")),
        InputError,
        "page 0 is 6 x 8, its OME-XML says 6 x 7",
        id="OME contradicts pages",
    ),
]


@pytest.mark.parametrize(("make", "error", "words"), BAD)
def test_bad_files_are_refused_by_name_in_one_line(
    tmp_path: Path, make: Callable[[Path], object], error: type[InputError], words: str
) -> None:
    path = tmp_path / "bad.tif"
    make(path)
    with pytest.raises(InputError, match=words) as caught:
        list(read_stacks(path, voxel_z=1.0, voxel_xy=1.0))
    assert type(caught.value) is error
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_special_files_are_refused_without_blocking(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.tif")
    (tmp_path / "loop.tif").symlink_to("loop.tif")
    (tmp_path / "zero.tif").symlink_to("/dev/zero")
    (tmp_path / "gone.tif").symlink_to("nowhere.tif")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(tmp_path / "socket.tif"))
        cases = {
            "pipe.tif": "is a named pipe",
            "loop.tif": "leads back to itself",
            "zero.tif": "is a device",
            "socket.tif": "is a socket",
            "gone.tif": "no such file",
            "never.tif": "no such file",
            "x" * 300: "the name is too long",
        }
        for name, words in cases.items():
            with pytest.raises(InputError, match=words):
                open_acquisition(tmp_path / name)


def test_a_complaint_of_tifffile_is_a_refusal(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    content = bytearray(plain(path))
    with tifffile.TiffFile(path) as tiff:
        at = tiff.pages[0].tags["Software"].offset  # type: ignore[union-attr]
    struct.pack_into("<I", content, at + 4, 1000)  # a text of 1000 characters ...
    struct.pack_into("<I", content, at + 8, len(content) - 5)  # ... five bytes before the end
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.tif: (cannot be trusted|not a readable TIFF): .*305"):
        open_acquisition(path, 1.0, 1.0)


def test_complaints_of_another_thread_are_not_ours(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    plain(path)
    stop = threading.Event()

    def complain() -> None:
        while not stop.is_set():
            logging.getLogger("tifffile").warning("something else is wrong")

    other = threading.Thread(target=complain)
    handler = logging.NullHandler()
    logger = logging.getLogger("tifffile")
    logger.addHandler(handler)
    propagate, logger.propagate = logger.propagate, False
    other.start()
    try:
        for _ in range(20):
            assert read_stack(path, 1.0, 1.0).data.shape == (4, 6, 7)
    finally:
        stop.set()
        other.join()
        logger.propagate = propagate
        logger.removeHandler(handler)


def test_a_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    content = plain(path)
    with open_acquisition(path, 1.0, 1.0) as acquisition:
        acquisition.read(acquisition.keys[0])
        path.write_bytes(content + b"more")
        with pytest.raises(IncompleteError, match=r"a\.tif: changed while it was being read"):
            acquisition.read(acquisition.keys[0])


def test_more_files_than_may_be_open_at_once(tmp_path: Path) -> None:
    data = counts(20, 4, 6, 7)
    for i, stack in enumerate(data):
        write_pages(tmp_path / f"run_p{i:03}.ome.tif", stack, ome_xml("<TiffData/>"))
    with open_acquisition(tmp_path) as acquisition:
        assert [key.position for key in acquisition.keys] == list(range(20))
        for key in reversed(acquisition.keys):
            np.testing.assert_array_equal(acquisition.read(key).data, data[key.position])


def test_folders_must_hold_one_acquisition(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a folder without a TIFF file"):
        open_acquisition(tmp_path)
    plain(tmp_path / "a.tif")
    (tmp_path / "notes.txt").touch()
    (tmp_path / "._a.tif").touch()  # what macOS leaves on shared disks
    assert read_stack(tmp_path, 1.0, 1.0).data.shape == (4, 6, 7)
    plain(tmp_path / "b.tif")
    with pytest.raises(InputError, match=r"a folder with 2 data sets; name one of its files, e\.g\. a\.tif"):
        open_acquisition(tmp_path)


def test_names_with_control_characters_stay_on_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a\nb\x1b[31m.tif"
    path.touch()
    with pytest.raises(InputError, match=r"a\\nb\\x1b\[31m\.tif: only 0 bytes"):
        open_acquisition(path)


# --- sample types, voxel sizes, choosing ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "read"),
    [
        ("uint8", "uint8"),
        ("uint16", "uint16"),
        ("int16", "uint16"),
        ("uint32", "uint16"),
        ("int32", "uint16"),
        ("float16", "float32"),
        ("float32", "float32"),
        ("float64", "float32"),
    ],
)
def test_sample_types(tmp_path: Path, stored: str, read: str) -> None:
    data = (counts(4, 6, 7) % 200).astype(stored)
    tifffile.imwrite(tmp_path / "a.tif", data, photometric="minisblack")
    stack = read_stack(tmp_path / "a.tif", 1.0, 1.0)
    assert stack.data.dtype == read
    np.testing.assert_array_equal(stack.data, data)


@pytest.mark.parametrize(
    ("options", "voxel_um"),
    [
        ({"imagej": True, "resolution": (10, 10), "metadata": {"spacing": 0.5, "unit": "um"}}, (0.5, 0.1)),
        ({"imagej": True, "resolution": (10, 10), "metadata": {"spacing": 0.5, "unit": "\\u00B5m"}}, (0.5, 0.1)),
        ({"imagej": True, "resolution": (0.01, 0.01), "metadata": {"spacing": 500, "unit": "nm"}}, (0.5, 0.1)),
        ({"imagej": True, "resolution": (10, 10), "metadata": {"spacing": -0.5, "unit": "micron"}}, (0.5, 0.1)),
        ({"imagej": True, "resolution": (10, 10), "metadata": {"spacing": 0.0, "unit": "um"}}, (None, 0.1)),
        ({"imagej": True, "resolution": (10, 10), "metadata": {"unit": "um"}}, (None, 0.1)),
        ({"imagej": True, "resolution": (10, 10), "metadata": {"spacing": 0.5}}, (None, None)),
        ({"imagej": True, "resolution": (10, 10), "metadata": {"spacing": 0.5, "unit": "pixel"}}, (None, None)),
        ({"imagej": True, "metadata": {"spacing": 0.5, "unit": "um"}}, (0.5, None)),
        ({"resolution": (10, 10), "metadata": {"spacing": 0.5, "unit": "um"}}, (0.5, 0.1)),
        ({"resolution": (100_000, 100_000), "resolutionunit": "CENTIMETER"}, (None, 0.1)),
        ({"resolution": (72, 72), "resolutionunit": "INCH"}, (None, None)),
        ({"resolution": (300, 300), "resolutionunit": "INCH"}, (None, None)),
        ({"resolution": (254_000, 254_000), "resolutionunit": "INCH"}, (None, 0.1)),
        ({"resolution": (10, 10), "resolutionunit": "NONE"}, (None, None)),
        ({"ome": True, "metadata": {"PhysicalSizeZ": 0, "PhysicalSizeX": 0.1, "PhysicalSizeY": 0.1}}, (None, 0.1)),
        ({"ome": True, "metadata": {"PhysicalSizeZ": 0.5}}, (0.5, None)),
        (
            {"ome": True, "metadata": {"PhysicalSizeZ": 0.5, "PhysicalSizeX": 1.0, "PhysicalSizeXUnit": "pixel"}},
            (0.5, None),
        ),
        ({}, (None, None)),
    ],
)
def test_voxel_size_is_what_the_file_says_or_asked_for(
    tmp_path: Path, options: dict[str, Any], voxel_um: tuple[float | None, float | None]
) -> None:
    path = tmp_path / "a.tif"
    options["metadata"] = {"axes": "ZYX"} | options.get("metadata", {})
    tifffile.imwrite(path, counts(4, 6, 7), photometric="minisblack", **options)
    z_um, xy_um = voxel_um
    if z_um is not None and xy_um is not None:
        assert read_stack(path).voxel_um == pytest.approx((z_um, xy_um, xy_um))
        return
    missing = {"--voxel-z": z_um is None, "--voxel-xy": xy_um is None}
    with pytest.raises(VoxelSizeError, match="is not in the file") as caught:
        read_stack(path)
    assert {option: option in str(caught.value) for option in missing} == missing
    completed = read_stack(path, voxel_z=z_um or 0.7, voxel_xy=xy_um or 0.2)
    assert completed.voxel_um == pytest.approx((z_um or 0.7, xy_um or 0.2, xy_um or 0.2))


def test_given_voxel_size_overrides_the_file_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, counts(4, 6, 7), imagej=True, resolution=RESOLUTION, metadata=IMAGEJ_UM)
    with caplog.at_level(logging.INFO, "ssai3d_rt"):
        assert read_stack(path, voxel_z=0.5).voxel_um == (0.5, 0.1, 0.1)
        assert not caplog.records
        assert read_stack(path, voxel_z=0.75).voxel_um == (0.75, 0.1, 0.1)
    assert [record.message for record in caplog.records] == [
        f"{path}: voxel_z is 0.75 um as given, the file says 0.5 um"
    ]


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_senseless_given_voxel_sizes_are_refused(tmp_path: Path, value: float) -> None:
    plain(tmp_path / "a.tif")
    with pytest.raises(VoxelSizeError, match="--voxel-z must be a positive number"):
        read_stack(tmp_path / "a.tif", voxel_z=value, voxel_xy=1.0)
    with pytest.raises(VoxelSizeError, match="--voxel-xy must be a positive number"):
        read_stack(tmp_path / "a.tif", voxel_z=1.0, voxel_xy=value)


def test_pixels_that_are_not_square_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", counts(4, 6, 7), imagej=True, resolution=(10.0, 8.0), metadata=IMAGEJ_UM)
    with pytest.raises(VoxelSizeError, match=r"a\.tif: pixels are not square \(y 0\.125 um, x 0\.1 um\)"):
        read_stack(tmp_path / "a.tif")


def test_read_stack_asks_which_one(tmp_path: Path) -> None:
    path = tmp_path / "run_MMStack.ome.tif"
    planes = mm_planes(positions=2)
    write_mmstack(path, planes, SUMMARY_2_0)
    with pytest.raises(InputError, match=r"holds 8 stacks; choose .* position 0 \(left\), time 0, channel 0 \(GFP\)"):
        read_stack(path)
    with pytest.raises(InputError, match="holds 2 stacks"):
        read_stack(path, channel="RFP", position="right")
    with pytest.raises(InputError, match=r"has no such stack; it holds .* and 2 more"):
        read_stack(path, channel="CFP")
    stack = read_stack(path, channel="RFP", position="right", time=1)
    np.testing.assert_array_equal(stack.data, [planes[1, 1, 1, z] for z in range(3)])
    assert (stack.channel, stack.position, stack.time) == ("RFP", "right", 1)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(*(st.integers(*span) for span in ((1, 3), (2, 5), (1, 3), (2, 9), (2, 9)))),
    dtype=st.sampled_from(["uint8", "uint16", "float32"]),
    compression=st.sampled_from([None, "zlib"]),
)
def test_any_hyperstack_comes_back(
    tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, ...], dtype: str, compression: str | None
) -> None:
    data = counts(*shape).astype(dtype)
    path = tmp_path_factory.mktemp("h") / "a.tif"
    tifffile.imwrite(path, data, imagej=True, compression=compression, metadata={"axes": "TZCYX"})
    for stack, (t, c) in zip(read_stacks(path, 2.0, 0.5), np.ndindex(shape[0], shape[2]), strict=True):
        np.testing.assert_array_equal(stack.data, data[t, :, c])
        assert stack.time == t


def sample_files(folder: Path) -> list[Path]:
    """One small file of each layout."""
    names = ["plain.tif", "imagej.tif", "piece.tif", "ome.ome.tif", "run_MMStack_Pos0.ome.tif", "tiles.tif"]
    paths = [folder / name for name in names]
    write_pages(paths[0], counts(4, 8, 9))
    tifffile.imwrite(paths[1], counts(2, 3, 2, 8, 9), imagej=True, metadata={"axes": "TZCYX"})
    imagej_in_one_piece(paths[2], counts(6, 8, 9), planes=6)
    tifffile.imwrite(paths[3], counts(2, 3, 8, 9), metadata={"axes": "CZYX"}, photometric="minisblack")
    write_mmstack(paths[4], mm_planes(), SUMMARY_2_0)
    write_pages(paths[5], counts(3, 32, 32), tile=(16, 16), compression="zlib")
    return paths


@pytest.mark.parametrize("kind", range(6))
def test_a_file_cut_anywhere_is_refused_or_read_exactly(tmp_path: Path, kind: int) -> None:
    path = sample_files(tmp_path)[kind]
    whole = path.read_bytes()
    reference = [stack.data for stack in read_stacks(path, 1.0, 1.0)]
    refused = 0
    for end in np.random.default_rng(kind).integers(0, len(whole), 60):
        path.write_bytes(whole[:end])
        try:
            found = [stack.data for stack in read_stacks(path, 1.0, 1.0)]
        except InputError:
            refused += 1
            continue
        for stack, expected in zip(found, reference, strict=True):
            np.testing.assert_array_equal(stack, expected)
    assert refused > 40


@pytest.mark.parametrize("kind", range(6))
def test_a_damaged_file_never_ends_in_another_error(tmp_path: Path, kind: int) -> None:
    path = sample_files(tmp_path)[kind]
    whole = path.read_bytes()
    rng = np.random.default_rng(kind)
    for _ in range(100):
        damaged = bytearray(whole)
        for spot in rng.integers(0, len(whole), rng.integers(1, 8)):
            damaged[spot] = rng.integers(0, 256)
        path.write_bytes(damaged)
        with contextlib.suppress(InputError):
            assert all(stack.data.ndim == 3 for stack in read_stacks(path, 1.0, 1.0))
