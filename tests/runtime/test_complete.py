"""When a file is a finished stack: every format whole, cut anywhere, pre-allocated, half written, hostile."""

from __future__ import annotations

import gzip
import io
import os
import struct
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from ssai3d_rt.runtime.complete import Judgement, completeness
from ssai3d_rt.runtime.formats.tiffwalk import MAX_PAGES, walk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PLANES = 6
DATA = np.random.default_rng(0).integers(0, 4000, (PLANES, 32, 40), dtype="uint16")


def pages(path: Path) -> None:
    with tifffile.TiffWriter(path) as writer:
        for plane in DATA:
            writer.write(plane, contiguous=False, metadata=None, photometric="minisblack")


WRITERS: dict[str, tuple[str, str, int | None, Callable[[Path], object]]] = {
    # id: (name, format, planes declared, writer)
    "shaped": ("a.tif", "plain", PLANES, lambda p: tifffile.imwrite(p, DATA, photometric="minisblack")),
    "pages": ("a.tif", "plain", None, pages),
    "imagej": ("a.tif", "imagej", PLANES, lambda p: tifffile.imwrite(p, DATA, imagej=True)),
    "ome": ("a.ome.tif", "ome", PLANES, lambda p: tifffile.imwrite(p, DATA, ome=True, metadata={"axes": "ZYX"})),
    "ome-channels": (
        "a.ome.tiff",
        "ome",
        PLANES,
        lambda p: tifffile.imwrite(p, DATA.reshape(3, 2, 32, 40), ome=True, metadata={"axes": "ZCYX"}),
    ),
    "ome-zlib-tiles": (
        "a.ome.tif",
        "ome",
        PLANES,
        lambda p: tifffile.imwrite(p, DATA, ome=True, compression="zlib", tile=(16, 16), metadata={"axes": "ZYX"}),
    ),
    "bigtiff": ("a.tif", "plain", PLANES, lambda p: tifffile.imwrite(p, DATA, bigtiff=True, photometric="minisblack")),
    "big-endian": ("a.tif", "plain", PLANES, lambda p: tifffile.imwrite(p, DATA, byteorder=">", rowsperstrip=5)),
}


@pytest.fixture(params=WRITERS)
def written(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str, int | None]:
    name, kind, declared, write = WRITERS[request.param]
    write(tmp_path / name)
    return tmp_path / name, kind, declared


def test_a_whole_file_is_complete(written: tuple[Path, str, int | None]) -> None:
    path, kind, declared = written
    found = completeness(path)
    assert (found.state, found.reason) == (Judgement.COMPLETE, "")
    assert (found.format, found.planes_expected, found.planes_found) == (kind, declared, PLANES)
    assert found.declared is (declared is not None)


def test_a_file_cut_anywhere_is_growing(written: tuple[Path, str, int | None]) -> None:
    path, _, _ = written
    whole = path.read_bytes()
    needed = last_byte_needed(path)
    for cut in [*range(0, needed, 97), needed - 1]:
        path.write_bytes(whole[:cut])
        found = completeness(path)
        assert found.state is Judgement.GROWING, f"cut at {cut} of {needed}: {found}"
        assert found.reason


def last_byte_needed(path: Path) -> int:
    """Where the last directory or pixel ends: bytes after it (padding, values only shown to people) may be missing."""
    with tifffile.TiffFile(path) as tif:
        entry, pointer = (20, 16) if tif.is_bigtiff else (12, 6)
        ends = [page.offset + len(page.aspage().tags) * entry + pointer for page in tif.pages]
        ends += [s + n for page in tif.pages for s, n in zip(page.dataoffsets, page.databytecounts, strict=True)]
    return max(ends)


@pytest.mark.parametrize("name", ["shaped", "pages", "ome", "ome-zlib-tiles"])
def test_a_pre_allocated_file_is_growing_until_its_chain_is_whole(name: str, tmp_path: Path) -> None:
    file, _, _, write = WRITERS[name]
    path = tmp_path / file
    write(path)
    whole = path.read_bytes()
    with tifffile.TiffFile(path) as tif:
        last = tif.pages[-1].offset
    for cut in [0, 8, len(whole) // 2, last]:
        path.write_bytes(whole[:cut] + bytes(len(whole) - cut))
        assert completeness(path).state is Judgement.GROWING, f"zeros from {cut}"


def test_an_ome_tiff_is_growing_until_its_writer_closes_it(tmp_path: Path) -> None:
    path = tmp_path / "live.ome.tif"
    seen = []

    def planes() -> Iterator[Any]:
        for plane in DATA:
            seen.append(completeness(path).state)
            yield plane

    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(planes(), shape=DATA.shape, dtype=DATA.dtype, compression="zlib", metadata={"axes": "ZYX"})
        seen.append(completeness(path).state)
    assert seen == [Judgement.GROWING] * (PLANES + 1)
    assert completeness(path).state is Judgement.COMPLETE


def test_fewer_planes_than_declared_are_growing(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, DATA, ome=True, metadata={"axes": "ZYX"})
    more = path.read_bytes().replace(b'SizeZ="6"', b'SizeZ="9"')
    path.write_bytes(more)
    found = completeness(path)
    assert (found.state, found.planes_expected, found.planes_found) == (Judgement.GROWING, 9, 6)


@given(st.binary(max_size=400), st.integers(0, 600))
@settings(max_examples=150, deadline=None)
def test_any_damage_is_judged_not_raised(tmp_path_factory: pytest.TempPathFactory, damage: bytes, at: int) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.ome.tif"
    path.unlink(missing_ok=True)
    tifffile.imwrite(path, DATA[:2], ome=True, metadata={"axes": "ZYX"})
    data = bytearray(path.read_bytes())
    data[at : at + len(damage)] = damage
    path.write_bytes(data)
    assert isinstance(completeness(path).state, Judgement)


# Micro-Manager's own files.


@pytest.fixture
def mmstack(shared_data: Path, tmp_path: Path) -> list[Path]:
    for packed in (shared_data / "mmstack").glob("*.gz"):
        (tmp_path / packed.name.removesuffix(".gz")).write_bytes(gzip.decompress(packed.read_bytes()))
    return sorted(tmp_path.glob("*.ome.tif"))


def test_real_stacks_are_complete(shared_data: Path) -> None:
    found = {path.name: completeness(path) for path in (shared_data / "stacks").glob("*.tif")}
    assert {judged.state for judged in found.values()} == {Judgement.COMPLETE}
    assert found["xyzc_16bit__dna_conf_wf.tif"].planes_found == 90
    assert found["xyz_16bit__spots.tif"].format == "imagej"


def test_finished_micro_manager_stacks_are_complete_each_by_itself(mmstack: list[Path]) -> None:
    for path in mmstack:
        found = completeness(path)
        assert (found.state, found.format, found.planes_found) == (Judgement.COMPLETE, "micro-manager", 8)
        assert found.also == ()


def test_a_micro_manager_stack_is_growing_while_its_planes_are_zeros(mmstack: list[Path]) -> None:
    path = mmstack[0]
    whole = path.read_bytes()
    with tifffile.TiffFile(path) as tif:
        offsets = [page.offset for page in tif.pages]
    for offset in offsets[1:]:
        path.write_bytes(whole[:offset] + bytes(len(whole) - offset))
        assert completeness(path).state is Judgement.GROWING


def blank_index_map(data: bytearray, path: Path) -> None:
    data[12:16] = bytes(4)


def blank_description(data: bytearray, path: Path) -> None:
    with tifffile.TiffFile(path) as tif:
        at = tif.pages.first.tags[270].offset
    data[at + 4 : at + 12] = bytes(8)


def cut_index_map(data: bytearray, path: Path) -> None:
    place = struct.unpack_from("<I", data, 12)[0]
    data[place : place + 8] = bytes(8)


@pytest.mark.parametrize("blank", [blank_index_map, blank_description, cut_index_map])
def test_a_micro_manager_stack_is_growing_until_it_is_closed(
    mmstack: list[Path], blank: Callable[[bytearray, Path], None]
) -> None:
    data = bytearray(mmstack[0].read_bytes())
    blank(data, mmstack[0])
    mmstack[0].write_bytes(data)
    found = completeness(mmstack[0])
    assert found.state is Judgement.GROWING
    assert "has not closed it" in found.reason


def test_micro_managers_metadata_file_must_be_closed(mmstack: list[Path]) -> None:
    notes = mmstack[0].with_name(mmstack[0].name.replace(".ome.tif", "_metadata.txt"))
    notes.write_bytes(notes.read_bytes().rstrip().removesuffix(b"}"))
    found = completeness(mmstack[0])
    assert (found.state, found.reason) == (Judgement.GROWING, f"Micro-Manager has not closed {notes.name}")


def test_a_later_position_waits_for_the_file_with_the_xml(mmstack: list[Path]) -> None:
    first, second = mmstack
    first.rename(first.with_suffix(".away"))
    found = completeness(second)
    assert found.state is Judgement.GROWING
    assert first.name in found.reason


# OME-TIFF over several files.


def split_ome(folder: Path) -> tuple[Path, Path]:
    first, second = folder / "a.ome.tif", folder / "b.ome.tif"
    blocks = "".join(
        f'<TiffData IFD="{z % 3}" FirstZ="{z}" PlaneCount="1"><UUID FileName="{(first, second)[z // 3].name}">'
        f"urn:uuid:{z // 3}</UUID></TiffData>"
        for z in range(PLANES)
    )
    for path, part, number in ((first, DATA[:3], 0), (second, DATA[3:], 1)):
        with tifffile.TiffWriter(path) as writer:
            for plane in part:
                writer.write(plane, contiguous=False, description=ome_xml(blocks, number), metadata=None)
    return first, second


def ome_xml(blocks: str, uuid: int = 0, planes: int = PLANES) -> str:
    return (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
        f'UUID="urn:uuid:{uuid}"><Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" '
        f'SizeX="40" SizeY="32" SizeZ="{planes}" SizeC="1" SizeT="1">{blocks}</Pixels></Image></OME>'
    )


def test_an_image_over_two_files_is_complete_with_both(tmp_path: Path) -> None:
    first, second = split_ome(tmp_path)
    found = completeness(first)
    assert (found.state, found.planes_expected, found.also) == (Judgement.COMPLETE, PLANES, (second.name,))
    follower = completeness(second)
    assert (follower.state, follower.reason) == (Judgement.NOT_OURS, f"it continues {first.name}")


@pytest.mark.parametrize("damage", [lambda p: p.unlink(), lambda p: os.truncate(p, 4000)], ids=["absent", "cut"])
def test_an_image_over_two_files_waits_for_the_other(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    first, second = split_ome(tmp_path)
    damage(second)
    found = completeness(first)
    assert found.state is Judgement.GROWING
    assert second.name in found.reason


def test_a_renamed_single_file_is_complete(tmp_path: Path) -> None:
    blocks = '<TiffData IFD="0" PlaneCount="6"><UUID FileName="before.ome.tif">urn:uuid:7</UUID></TiffData>'
    path = tmp_path / "after.ome.tif"
    with tifffile.TiffWriter(path) as writer:
        for plane in DATA:
            writer.write(plane, contiguous=False, description=ome_xml(blocks), metadata=None)
    assert completeness(path).state is Judgement.COMPLETE


# Bad inputs.


def directory(width: int = 8, length: int = 8, *, following: int = 0, data: int = 200, count: int = 128) -> bytes:
    tags = [(256, 4, width), (257, 4, length), (258, 3, 16), (259, 3, 1), (273, 4, data), (278, 4, length)]
    packed = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in [*tags, (279, 4, count)])
    return struct.pack("<H", 7) + packed + struct.pack("<I", following)


def tiff(*directories: bytes, at: int = 8) -> bytes:
    body = b"II*\0" + struct.pack("<I", at) + b"".join(part.ljust(192, b"\0") for part in directories)
    return body.ljust(600, b"\1")


def described(xml: str) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, DATA[0], description=xml, metadata=None)
    return file.getvalue()


ENTITIES = '<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "aaaa">]>' + ome_xml("<TiffData/>", planes=1)[21:]
OUTSIDE = ome_xml('<TiffData IFD="0"><UUID FileName="../secret/other.tif">urn:uuid:9</UUID></TiffData>', planes=1)

BAD: dict[str, tuple[str, Any, Judgement, str]] = {
    "empty": ("a.tif", b"", Judgement.GROWING, "empty"),
    "zeros": ("a.tif", bytes(4096), Judgement.GROWING, "header is not written"),
    "two bytes": ("a.tif", b"II", Judgement.GROWING, "2 bytes"),
    "header only": ("a.tif", b"II*\0\x08\0\0\0", Judgement.GROWING, "8 bytes"),
    "text": ("a.tif", b"hello, this is not a TIFF\n" * 9, Judgement.BROKEN, "not a TIFF"),
    "circle of one": ("a.tif", tiff(directory(following=8)), Judgement.BROKEN, "circle"),
    "circle of two": (
        "a.tif",
        tiff(directory(following=200, data=400), directory(following=8, data=400)),
        Judgement.BROKEN,
        "circle",
    ),
    "huge": ("a.tif", tiff(directory(400_000, 400_000)), Judgement.BROKEN, "400000 x 400000"),
    "no pixels": ("a.tif", tiff(directory(0, 0)), Judgement.BROKEN, "0 x 0"),
    "short plane": ("a.tif", tiff(directory(64, 64)), Judgement.BROKEN, "128 bytes for 8192"),
    "data outside": ("a.tif", tiff(directory(data=580)), Judgement.GROWING, "end at byte 708"),
    "no data yet": ("a.tif", tiff(directory(data=0)), Judgement.GROWING, "not written yet"),
    "a million planes": ("a.ome.tif", lambda: described(ome_xml("<TiffData/>", planes=10**6)), Judgement.GROWING, ""),
    "entities": ("a.ome.tif", lambda: described(ENTITIES), Judgement.BROKEN, "entities"),
    "points outside": ("a.ome.tif", lambda: described(OUTSIDE), Judgement.BROKEN, "outside its folder"),
    "no pixels element": ("a.ome.tif", lambda: described("<OME></OME>"), Judgement.BROKEN, "no pixels"),
    "half the XML": ("a.ome.tif", lambda: described(ome_xml("")[:200]), Judgement.GROWING, "not whole"),
    "no XML yet": ("a.ome.tif", lambda: described(""), Judgement.GROWING, "not written yet"),
    "temporary": ("a.tif.part", tiff(directory()), Judgement.NOT_OURS, "temporary"),
    "hidden": (".a.tif", tiff(directory()), Judgement.NOT_OURS, "hidden"),
    "other suffix": ("notes.txt", b"hello", Judgement.NOT_OURS, ".tif"),
    "ndtiff": ("x_NDTiffStack.tif", tiff(directory()), Judgement.NOT_OURS, "NDTiff"),
    "one plane of many": ("img_000000000_DAPI_003.tif", tiff(directory()), Judgement.NOT_OURS, "one plane"),
}


@pytest.mark.parametrize(("name", "data", "state", "reason"), BAD.values(), ids=BAD)
def test_bad_inputs(tmp_path: Path, name: str, data: Any, state: Judgement, reason: str) -> None:
    path = tmp_path / name
    path.write_bytes(data() if callable(data) else data)
    found = completeness(path)
    assert found.state is state, found
    assert reason in found.reason


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes and links")
@pytest.mark.parametrize("make", ["pipe", "link", "loop", "folder", "gone"])
def test_only_regular_files_are_opened(tmp_path: Path, make: str) -> None:
    path, real = tmp_path / "x.tif", tmp_path / "real.tif"
    pages(real)
    if make == "pipe":
        os.mkfifo(path)
    elif make == "folder":
        path.mkdir()
    elif make != "gone":
        path.symlink_to(real if make == "link" else path)
    began = time.monotonic()
    found = completeness(path)
    assert time.monotonic() - began < 1
    assert found.state is (Judgement.GROWING if make == "gone" else Judgement.NOT_OURS)


def test_a_file_that_changes_while_it_is_checked_is_growing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.tif"
    pages(path)
    real = walk

    def walk_slowly(*args: Any) -> Any:
        found = real(*args)
        with open(path, "ab") as file:
            file.write(b"more")
        return found

    monkeypatch.setattr("ssai3d_rt.runtime.formats.tiff.walk", walk_slowly)
    found = completeness(path)
    assert (found.state, found.reason) == (Judgement.GROWING, "it changed while it was checked")


def test_many_planes_cost_little_and_too_many_are_refused(tmp_path: Path) -> None:
    one = directory(1, 1, count=2, data=8)
    step = len(one)
    path = tmp_path / "a.tif"
    body = bytearray(b"II*\0" + struct.pack("<I", 8))
    count = 20_000
    for number in range(count):
        body += directory(1, 1, count=2, data=8, following=8 + (number + 1) * step if number < count - 1 else 0)
    path.write_bytes(body)
    began = time.monotonic()
    assert completeness(path).planes_found == count
    assert time.monotonic() - began < 5
    assert count < MAX_PAGES < 10**6
