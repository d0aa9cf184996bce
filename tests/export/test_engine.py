from __future__ import annotations

import os
import random
import shutil
import stat
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from ssai3d_rt.errors import BackendError, BundleError, MissingPackageError, StorageError
from ssai3d_rt.export.cache import cache_folder, private_folder
from ssai3d_rt.export.engine import (
    AMPERE_ON,
    RTX_CAPABILITIES,
    TURING,
    BatchRange,
    engine_from_bundle,
    engines_from_bundle,
    import_trt,
    load_engine,
    rtx_targets,
)
from ssai3d_rt.export.enginecache import cached_engines
from ssai3d_rt.export.gpu import Gpu
from tests.tiny import with_onnx

if TYPE_CHECKING:
    from pathlib import Path

    from ssai3d_rt.export.bundle import Bundle

needs_rtx = pytest.mark.skipif(
    __import__("importlib.util").util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed"
)
posix = pytest.mark.skipif(sys.platform == "win32", reason="file modes are POSIX")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines-cache")


@pytest.fixture(scope="module")
def engine(tiny_bundle: Bundle, cache: Path) -> Path:
    return engine_from_bundle(tiny_bundle, "tensorrt-rtx", cache)


@needs_rtx
def test_an_engine_is_built_without_a_gpu_and_without_a_warning_about_layernorm(
    engine: Path, tiny_bundle: Bundle
) -> None:
    data, note = load_engine(engine)
    assert len(data) > 10_000
    assert note.onnx_sha256 == tiny_bundle.onnx_sha256
    assert note.targets == AMPERE_ON
    assert (note.tile, note.batches) == (64, (1, 8, 16))
    assert note.version == import_trt("tensorrt-rtx").__version__
    assert not [warning for warning in note.warnings if "layernorm" in warning.lower()], note.warnings


@needs_rtx
def test_the_builder_does_warn_of_a_layernorm_in_fp16(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    from ssai3d_rt.export import typed
    from tests.tiny import TILE, tiny_state

    def without_island(x: Any) -> Any:
        centred = x - x.mean(1, keepdim=True)
        return centred * torch.rsqrt((centred * centred).mean(1, keepdim=True) + 1e-6)

    monkeypatch.setattr(typed, "_normalised", without_island)
    spoilt = with_onnx(tiny_bundle, typed.onnx_from_model(tiny_state(), tile=TILE), tmp_path)
    _, note = load_engine(engine_from_bundle(spoilt, "tensorrt-rtx", tmp_path))
    assert [warning for warning in note.warnings if "layernorm nodes in FP16" in warning], note.warnings


@needs_rtx
def test_a_second_call_takes_the_engine_from_the_cache(engine: Path, tiny_bundle: Bundle, cache: Path) -> None:
    before = engine.stat().st_mtime_ns
    assert engine_from_bundle(tiny_bundle, "tensorrt-rtx", cache) == engine
    assert engine.stat().st_mtime_ns == before
    assert [found.path for found in cached_engines(cache)] == [engine]


@needs_rtx
def test_one_call_builds_for_turing_to_blackwell_without_a_gpu(engine: Path, tiny_bundle: Bundle, cache: Path) -> None:
    paths = engines_from_bundle(tiny_bundle, "tensorrt-rtx", cache)
    assert paths[0] == engine
    notes = [load_engine(path)[1] for path in paths]
    assert {target for note in notes for target in note.targets} == {"SM75", "SM80", "SM86", "SM89", "SM120"}
    assert {note.onnx_sha256 for note in notes} == {tiny_bundle.onnx_sha256}
    assert len({note.sha256 for note in notes}) == len({note.key for note in notes}) == 2
    assert not [w for note in notes for w in note.warnings if "layernorm" in w.lower()]


def test_each_card_gets_the_engine_that_runs_on_it() -> None:
    by_capability = {(7, 5): TURING, (8, 0): AMPERE_ON, (8, 6): AMPERE_ON, (8, 9): AMPERE_ON, (12, 0): AMPERE_ON}
    assert {capability: rtx_targets(Gpu("card", capability)) for capability in RTX_CAPABILITIES} == by_capability
    assert rtx_targets(None) == AMPERE_ON


@needs_rtx
def test_a_flipped_byte_anywhere_is_refused_before_anything_is_deserialised(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorrt_rtx

    from ssai3d_rt.runtime.backends.trt import TensorRtRunner

    path = engine_from_bundle(tiny_bundle, "tensorrt-rtx", tmp_path)
    good = path.read_bytes()
    monkeypatch.setattr(tensorrt_rtx, "Runtime", lambda *_: pytest.fail("an engine was about to be deserialised"))
    monkeypatch.setattr("ssai3d_rt.runtime.backends.trt.engine_from_bundle", lambda *_, **__: path)
    with path.open("r+b", buffering=0) as file:
        for _ in range(100):
            at = random.randrange(len(good))
            file.seek(at)
            file.write(bytes([good[at] ^ random.randrange(1, 256)]))
            with pytest.raises(BundleError, match="was changed after it was built"):
                TensorRtRunner(tiny_bundle, "tensorrt-rtx")
            file.seek(at)
            file.write(good[at : at + 1])
    assert load_engine(path)[0] == good


@needs_rtx
def test_an_engine_under_another_engines_name_is_built_again(tiny_bundle: Bundle, tmp_path: Path) -> None:
    few, one = BatchRange(1, 2, 2), BatchRange(1, 1, 1)
    right = engine_from_bundle(tiny_bundle, "tensorrt-rtx", tmp_path, batches=few)
    other = engine_from_bundle(tiny_bundle, "tensorrt-rtx", tmp_path, batches=one)
    shutil.rmtree(right.parent)
    shutil.copytree(other.parent, right.parent)
    assert load_engine(right)[1].batches == (1, 1, 1)
    assert engine_from_bundle(tiny_bundle, "tensorrt-rtx", tmp_path, batches=few) == right
    assert load_engine(right)[1].batches == (1, 2, 2)


@needs_rtx
@posix
def test_the_cache_is_private(engine: Path) -> None:
    for folder in (engine.parent, engine.parent.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@needs_rtx
def test_a_changed_engine_is_never_loaded_but_built_again(tiny_bundle: Bundle, tmp_path: Path) -> None:
    few = BatchRange(1, 2, 2)
    path = engine_from_bundle(tiny_bundle, "tensorrt-rtx", tmp_path, batches=few)
    good, _ = load_engine(path)
    path.write_bytes(b"evil" + good[4:])
    with pytest.raises(BundleError, match="was changed after it was built"):
        load_engine(path)
    assert engine_from_bundle(tiny_bundle, "tensorrt-rtx", tmp_path, batches=few) == path
    assert load_engine(path)[0][:4] == good[:4]
    (path.parent / "engine.json").unlink()
    with pytest.raises(BundleError, match="is not an engine that was built here"):
        load_engine(path)


@needs_rtx
def test_other_batches_get_another_engine(tiny_bundle: Bundle, engine: Path, cache: Path) -> None:
    other = engine_from_bundle(tiny_bundle, "tensorrt-rtx", cache, batches=BatchRange(1, 1, 1))
    assert other != engine
    assert load_engine(other)[1].batches == (1, 1, 1)


@needs_rtx
def test_a_build_tells_its_progress_and_can_be_cancelled(tiny_bundle: Bundle, tmp_path: Path) -> None:
    cancel = threading.Event()
    seen: list[tuple[str, int, int]] = []

    def progress(label: str, done: int, total: int, /) -> None:
        seen.append((label, done, total))
        cancel.set()

    with pytest.raises(BackendError, match=r"built no engine .*: cancelled"):
        engine_from_bundle(tiny_bundle, "tensorrt-rtx", tmp_path, progress=progress, cancel=cancel)
    assert seen[0] == ("engine (Ampere to Blackwell)", 0, 100)
    assert list((tmp_path / "engines").iterdir()) == []

    seen.clear()
    engine_from_bundle(tiny_bundle, "tensorrt-rtx", tmp_path, progress=lambda *step: seen.append(step))
    percents = [done for _, done, _ in seen]
    assert percents == sorted(percents)
    assert (percents[0], percents[-1]) == (0, 100)
    assert len(percents) > 10


@needs_rtx
def test_an_exception_of_the_caller_stops_the_build_and_is_raised(tiny_bundle: Bundle, tmp_path: Path) -> None:
    def interrupt(label: str, done: int, total: int, /) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine_from_bundle(tiny_bundle, "tensorrt-rtx", tmp_path, progress=interrupt)
    assert list((tmp_path / "engines").iterdir()) == []


@needs_rtx
def test_an_onnx_that_the_parser_cannot_read_is_a_clear_error(tiny_bundle: Bundle, tmp_path: Path) -> None:
    broken = with_onnx(tiny_bundle, tiny_bundle.onnx[:200], tmp_path)
    with pytest.raises(BackendError, match=r"tensorrt_rtx cannot read .*"):
        engine_from_bundle(broken, "tensorrt-rtx", tmp_path)


@needs_rtx
def test_a_builder_that_finds_no_gpu_is_a_clear_error(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What TensorRT does without a driver; TensorRT for RTX builds without one, so here it is imitated.
    import tensorrt_rtx

    class NoGpu:
        def __init__(self, logger: Any) -> None:
            logger.log(tensorrt_rtx.ILogger.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(tensorrt_rtx, "Builder", NoGpu)
    with pytest.raises(BackendError, match=r"no NVIDIA GPU or driver \(CUDA init.*: 35\); build on the rig"):
        engine_from_bundle(tiny_bundle, "tensorrt-rtx", tmp_path)


@needs_rtx
def test_a_package_that_cannot_be_loaded_is_told_from_one_that_is_absent(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensorrt").mkdir()
    (tmp_path / "tensorrt" / "__init__.py").write_text("import tensorrt_libs_that_are_not_here\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(BackendError, match=r"tensorrt is installed but cannot be loaded \(ModuleNotFoundError: .*pip"):
        engine_from_bundle(tiny_bundle, "tensorrt", tmp_path)


def test_a_missing_package_and_an_unknown_backend_are_named(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingPackageError, match=r'pip install "ssai3d-rt\[tensorrt\]"'):
        engine_from_bundle(tiny_bundle, "tensorrt", tmp_path)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(MissingPackageError, match=r'pip install "ssai3d-rt\[tensorrt-rtx\]"'):
        engine_from_bundle(tiny_bundle, "tensorrt-rtx", tmp_path)
    with pytest.raises(BackendError, match="no engines for backend 'openvino'; choose from tensorrt, tensorrt-rtx"):
        engine_from_bundle(tiny_bundle, "openvino", tmp_path)


@posix
def test_a_cache_that_others_could_write_is_closed_and_refused_once(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(StorageError, match="was open to other users"):
        private_folder(folder)
    assert stat.S_IMODE(private_folder(folder).stat().st_mode) == 0o700
    link = tmp_path / "link"
    link.symlink_to(folder)
    with pytest.raises(StorageError, match="is not a folder of this user"):
        private_folder(link)


def test_the_cache_lies_where_the_system_keeps_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSAI3D_RT_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("SSAI3D_RT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    if sys.platform != "darwin":
        assert cache_folder() == tmp_path / "ssai3d-rt"
    assert os.fspath(cache_folder()).endswith("ssai3d-rt")
