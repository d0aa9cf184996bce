"""TensorRT and TensorRT for RTX on a real GPU: what is kept between loads, and CUDA graphs."""

from __future__ import annotations

import contextlib
import logging
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest

from ssai3d_rt.export.engine import BatchRange
from ssai3d_rt.export.gpu import Gpu
from ssai3d_rt.runtime.backends import self_test, trt
from ssai3d_rt.runtime.backends.trt import RTX, TENSORRT, TensorRtRunner, caution, why_not

if TYPE_CHECKING:
    from pathlib import Path

    from ssai3d_rt.export.bundle import Bundle


def test_turing_is_used_with_a_warning_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trt, "find_spec", lambda _: True)
    monkeypatch.setattr(trt, "why_no_cuda", lambda: None)
    monkeypatch.setattr(trt, "gpu", lambda: Gpu("NVIDIA GeForce RTX 2080", (7, 5)))
    assert why_not(RTX) is None
    assert "returned zeros without an error on Turing cards such as NVIDIA GeForce RTX 2080" in str(caution(RTX))
    assert caution(TENSORRT) is None
    monkeypatch.setattr(trt, "gpu", lambda: Gpu("NVIDIA GeForce RTX 4070", (8, 9)))
    assert caution(RTX) is None


@pytest.mark.gpu
@pytest.mark.parametrize("graph", [False, True], ids=["launched", "graph"])
@pytest.mark.parametrize("name", [TENSORRT, RTX])
def test_it_runs_in_any_thread_and_batch(tiny_bundle: Bundle, private_cache: Path, name: str, graph: bool) -> None:
    if reason := why_not(name):
        pytest.skip(reason)
    tiles, reference = tiny_bundle.golden
    many = np.resize(tiles, (37, 1, 64, 64))
    wanted = np.resize(reference, many.shape)
    with contextlib.closing(TensorRtRunner(tiny_bundle, name, batches=BatchRange(1, 4, 4), graph=graph)) as runner:
        self_test(runner, tiny_bundle)
        answers = []
        for _ in range(2):
            thread = threading.Thread(target=lambda: answers.append(runner.run(many)))
            thread.start()
            thread.join()
        assert all(np.abs(answer - wanted).max() < 0.5 for answer in answers)
        assert np.array_equal(answers[0], answers[1])


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "kept"), [(TENSORRT, "timing/tensorrt-*.cache"), (RTX, "engines/*/jit-*.cache")])
def test_what_was_measured_or_compiled_is_kept_and_made_anew_when_damaged(
    tiny_bundle: Bundle, private_cache: Path, name: str, kept: str, caplog: pytest.LogCaptureFixture
) -> None:
    if reason := why_not(name):
        pytest.skip(reason)
    TensorRtRunner(tiny_bundle, name).close()
    (path,) = private_cache.glob(kept)
    whole = path.read_bytes()
    assert len(whole) > 65
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    batches = BatchRange(1, 4, 4) if name == TENSORRT else None  # another engine is built, the same one is loaded
    with (
        caplog.at_level(logging.WARNING),
        contextlib.closing(TensorRtRunner(tiny_bundle, name, batches=batches)) as runner,
    ):
        self_test(runner, tiny_bundle)
    assert "starting with an empty one" in caplog.text
    caplog.clear()
    TensorRtRunner(tiny_bundle, name).close()
    assert "starting with an empty one" not in caplog.text
