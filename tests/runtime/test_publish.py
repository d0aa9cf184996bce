"""Publishing: whole or not at all, never over something else, whatever the name or the disk does."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from ssai3d_rt.errors import StorageError
from ssai3d_rt.runtime import publish
from ssai3d_rt.runtime.publish import (
    Sealed,
    hash_of,
    make_folder,
    place,
    remove_stale,
    require_space,
    result_folder,
    result_name,
    seal,
    temporary_name,
)


def sealed(folder: Path, data: bytes = b"result") -> Sealed:
    temporary = temporary_name(folder)
    temporary.write_bytes(data)
    return seal(temporary, lambda path: None)


def test_a_result_gets_its_name_and_nothing_else_is_left(tmp_path: Path) -> None:
    final = tmp_path / "a_iso.ome.tif"
    ready = sealed(tmp_path)
    assert (ready.size, ready.sha256) == (6, hash_of(ready.path))
    place(ready, final)
    assert final.read_bytes() == b"result"
    assert os.listdir(tmp_path) == [final.name]


def test_the_same_bytes_again_are_no_conflict(tmp_path: Path) -> None:
    final = tmp_path / "a_iso.ome.tif"
    place(sealed(tmp_path), final)
    place(sealed(tmp_path), final)
    assert os.listdir(tmp_path) == [final.name]


@pytest.mark.parametrize("there", ["file", "folder", "link"])
def test_something_else_under_the_name_is_never_overwritten(tmp_path: Path, there: str) -> None:
    final, other = tmp_path / "a_iso.ome.tif", tmp_path / "raw.tif"
    other.write_bytes(b"result")
    if there == "file":
        final.write_bytes(b"precious")
    elif there == "folder":
        final.mkdir()
    else:
        final.symlink_to(other)
    with pytest.raises(StorageError, match="is already there and is something else; it is not overwritten"):
        place(sealed(tmp_path), final)
    assert other.read_bytes() == b"result"
    assert not final.is_file() or final.read_bytes() in (b"precious", b"result")
    assert final.is_symlink() is (there == "link")


def test_without_hard_links_the_name_is_given_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    final = tmp_path / "a_iso.ome.tif"
    place(sealed(tmp_path), final)
    with pytest.raises(StorageError, match="not overwritten"):
        place(sealed(tmp_path, b"other"), final)
    assert final.read_bytes() == b"result"


def test_file_and_folder_are_synced_in_the_right_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    real_sync, real_link = os.fsync, os.link

    def sync(descriptor: int) -> None:
        calls.append("sync folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "sync file")
        real_sync(descriptor)

    def link(*args: Any, **options: Any) -> None:
        calls.append("name")
        real_link(*args, **options)

    if sys.platform == "win32":
        pytest.skip("Windows has no folder descriptors")
    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "link", link)
    place(sealed(tmp_path), tmp_path / "a_iso.ome.tif")
    assert calls == ["sync file", "name", "sync folder"]


def test_a_sync_that_fails_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[int] = []

    def fail(descriptor: int) -> None:
        tries.append(descriptor)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match=r"cannot write .* to the disk: Input/output error"):
        sealed(tmp_path)
    assert len(tries) == 1


def test_what_the_check_finds_passes_through(tmp_path: Path) -> None:
    temporary = temporary_name(tmp_path)
    temporary.write_bytes(b"half")

    def check(path: Path) -> None:
        raise StorageError(f"{path.name}: 3 planes read back, 6 written")

    with pytest.raises(StorageError, match="3 planes read back"):
        seal(temporary, check)


def test_a_disk_that_is_full_is_said_before_the_work(tmp_path: Path) -> None:
    require_space(tmp_path, 1, 0)
    with pytest.raises(StorageError, match=r"GB free, .* GB are needed .*make room"):
        require_space(tmp_path, 1, 1 << 60)


def test_stale_files_go_and_all_others_stay(tmp_path: Path) -> None:
    (tmp_path / "day").mkdir()
    stale = [temporary_name(tmp_path), temporary_name(tmp_path / "day")]
    kept = [tmp_path / "a_iso.ome.tif", tmp_path / ".ssai3d-x.tmp", tmp_path / "day" / ".other.tmp"]
    for path in [*stale, *kept]:
        path.touch()
    assert remove_stale(tmp_path, below=False) == 1
    assert remove_stale(tmp_path) == 1
    assert [path.exists() for path in [*stale, *kept]] == [False, False, True, True, True]


def test_folders_are_made_or_the_reason_is_said(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b" / "c")
    make_folder(tmp_path / "a" / "b" / "c")
    assert (tmp_path / "a" / "b" / "c").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot make the folder"):
        make_folder(tmp_path / "file" / "d")


CASES = {
    "cells.tif": "cells_iso.ome.tif",
    "cells.ome.TIF": "cells_iso.ome.tif",
    "a.b.c.tiff": "a.b.c_iso.ome.tif",
    "x_MMStack_Pos0.ome.tif": "x_MMStack_Pos0_iso.ome.tif",
    "con.tif": "con_iso.ome.tif",
    "-rf.tif": "-rf_iso.ome.tif",
}


@pytest.mark.parametrize(("source", "result"), CASES.items(), ids=CASES)
def test_result_names(source: str, result: str) -> None:
    assert result_name(source) == result


def test_a_long_name_is_cut_stays_distinct_and_keeps_its_suffix() -> None:
    names = {result_name("é" * 120 + end + ".tif") for end in ("a", "b")}
    assert len(names) == 2
    for name in names:
        assert len(os.fsencode(name)) <= 240
        assert name.endswith("_iso.ome.tif")
    assert result_name("x.tif", label="Pos 1/2", tag="ab") == "x_Pos-1-2_ab_iso.ome.tif"


def test_reserved_folder_names_are_changed() -> None:
    assert result_folder(Path("day/con/LPT1.x/ok")) == Path("day/con_/LPT1.x_/ok")


def test_the_module_knows_its_own_temporary_names() -> None:
    assert publish._TEMPORARY.fullmatch(temporary_name(Path("/x")).name)
