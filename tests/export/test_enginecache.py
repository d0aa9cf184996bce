from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import stat
import sys
import time
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import pytest

from ssai3d_rt.errors import BundleError, StorageError
from ssai3d_rt.export.enginecache import (
    ENGINE,
    EngineKey,
    EngineNote,
    cached_engines,
    clear_engines,
    jit_cache_path,
    keep_blob,
    keep_engine,
    load_blob,
    load_engine,
    timing_cache_path,
)

if TYPE_CHECKING:
    from pathlib import Path

KEY = EngineKey("a" * 64, "tensorrt", "10.16.1.11", ("NVIDIA H200 9.0 driver 13",), "Linux x86_64", 64, (1, 8, 16), "")
OTHER: dict[str, Any] = {
    "onnx_sha256": "b" * 64,
    "backend": "tensorrt-rtx",
    "version": "10.16.1.12",
    "targets": ("NVIDIA H200 9.0 driver 14",),
    "system": "Windows AMD64",
    "tile": 128,
    "batches": (1, 8, 17),
    "options": "workspace 1",
}


def note(engine: bytes, **values: Any) -> EngineNote:
    defaults: dict[str, Any] = {
        "key": KEY.digest,
        "sha256": hashlib.sha256(engine).hexdigest(),
        "bundle": "cells.ssai3d",
        "onnx_sha256": KEY.onnx_sha256,
        "backend": KEY.backend,
        "version": KEY.version,
        "targets": KEY.targets,
        "tile": KEY.tile,
        "batches": KEY.batches,
        "built": "2026-01-31T12:00:00Z",
        "seconds": 1.5,
        "warnings": (),
    }
    return EngineNote(**(defaults | values))


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    (tmp_path / "engines").mkdir()
    keep_engine(tmp_path / "engines" / KEY.folder, b"engine", note(b"engine"))
    return tmp_path / "engines" / KEY.folder / ENGINE


@pytest.mark.parametrize("field", [f.name for f in fields(EngineKey)])
def test_another_value_of_anything_is_another_engine(field: str) -> None:
    other = replace(KEY, **{field: OTHER[field]})
    assert other.digest != KEY.digest
    assert other.folder != KEY.folder


def test_what_is_kept_comes_back(kept: Path) -> None:
    assert load_engine(kept) == (b"engine", note(b"engine"))
    assert [p.name for p in kept.parent.parent.iterdir()] == [KEY.folder]
    keep_engine(kept.parent, b"better", note(b"better"))
    assert load_engine(kept)[0] == b"better"


@pytest.mark.parametrize("damage", ["{", "{}", "[]", '{"targets": 1}'])
def test_a_damaged_note_is_no_note(kept: Path, damage: str) -> None:
    (kept.parent / "engine.json").write_text(damage)
    with pytest.raises(BundleError, match="is not an engine that was built here"):
        load_engine(kept)
    assert list(cached_engines(kept.parents[2])) == []


def test_a_note_of_another_version_is_no_note(kept: Path) -> None:
    path = kept.parent / "engine.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"colour": "red"}))
    with pytest.raises(BundleError, match="colour"):
        load_engine(kept)


def test_the_list_says_which_engines_are_still_what_was_built(kept: Path) -> None:
    cache = kept.parents[2]
    (found,) = cached_engines(cache)
    assert (found.path, found.size_bytes, found.whole, found.note.bundle) == (kept, 6, True, "cells.ssai3d")
    kept.write_bytes(b"Engine")
    (found,) = cached_engines(cache)
    assert not found.whole
    assert list(cached_engines(cache / "nowhere")) == []


def test_clearing_removes_engines_kernels_timings_and_old_left_overs(kept: Path) -> None:
    cache = kept.parents[2]
    keep_blob(jit_cache_path(kept, "card"), b"kernels")
    timing = timing_cache_path("tensorrt", "11.0", "card", cache)
    keep_blob(timing, b"timings")
    begun, left = (cache / "engines" / f".{name}.tmp" for name in ("begun", "left"))
    for folder in (begun, left):
        folder.mkdir()
        (folder / ENGINE).write_bytes(b"half")
    os.utime(left, (time.time() - 7200,) * 2)
    (cache / "speeds").mkdir()
    removed = clear_engines(cache)
    assert {path for path, _ in removed} == {kept.parent, left, timing}
    sizes = {path.name: size for path, size in removed}
    assert (sizes[".left.tmp"], sizes[timing.name]) == (4, 65 + 7)
    assert sizes[KEY.folder] > 6 + 65 + 7  # the engine, its kernels and its note
    assert {path.name for path in cache.rglob("*")} == {"engines", ".begun.tmp", ENGINE, "timing", "speeds"}
    assert clear_engines(cache) == []


def test_blobs_are_whole_private_or_empty(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "timing.cache"
    assert load_blob(path) == b""
    for blob in (b"measured", b"", bytes(1000)):
        keep_blob(path, blob)
        assert load_blob(path) == blob
    assert caplog.text == ""
    if sys.platform != "win32":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["timing.cache"]
    stored = path.read_bytes()
    for _ in range(100):
        at = random.randrange(len(stored))
        path.write_bytes(stored[:at] + bytes([stored[at] ^ random.randrange(1, 256)]) + stored[at + 1 :])
        if at != 64:  # the line's end between hash and bytes
            assert load_blob(path) == b""
    assert "was changed after it was written" in caplog.text
    for cut in (0, 10, 64, 200):
        path.write_bytes(stored[:cut])
        assert load_blob(path) == b""


def test_a_blob_that_cannot_be_kept_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        keep_blob(tmp_path / "nowhere" / "timing.cache", b"measured")
    assert "timing.cache is not kept: No such file" in caplog.text


def test_timings_are_of_one_exact_version_on_one_card(tmp_path: Path) -> None:
    paths = {timing_cache_path("tensorrt", v, card, tmp_path) for v in ("10.16", "11.0") for card in ("one", "two")}
    assert len(paths) == 4
    assert {p.parent for p in paths} == {tmp_path / "timing"}
    assert jit_cache_path(tmp_path / ENGINE, "one") != jit_cache_path(tmp_path / ENGINE, "two")


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="needs a folder that cannot be written")
def test_a_cache_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="cannot keep the engine"):
        keep_engine(tmp_path / "one", b"engine", note(b"engine"))
