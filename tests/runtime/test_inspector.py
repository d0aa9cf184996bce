"""Judging and examining sources in processes of their own: slow, dead and too large ones are put in words."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
import tifffile

from ssai3d_rt.runtime.complete import Judgement
from ssai3d_rt.runtime.inspector import Inspector
from ssai3d_rt.runtime.messages import Examine, Examined, Failed, Kind, Message
from ssai3d_rt.runtime.source import content_hash
from ssai3d_rt.runtime.worker import Worker
from tests.runtime.daemon import QUICK, stack_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs signals")


@pytest.fixture
def inspector() -> Iterator[Inspector]:
    made = Inspector(QUICK.model_copy(update={"judge_s": 0.5}))
    yield made
    made.close()


@pytest.fixture
def examiner() -> Iterator[Worker]:
    made = Worker(None, QUICK.model_copy(update={"examine_bytes": 1 << 29}))
    yield made
    made.close()


def test_it_judges_one_after_the_other(inspector: Inspector, tmp_path: Path) -> None:
    good = stack_file(tmp_path / "a.ome.tif")
    text = tmp_path / "b.tif"
    text.write_text("not an image")
    for _ in range(2):
        assert inspector.judge(good).state is Judgement.COMPLETE
        assert inspector.judge(text).state is Judgement.BROKEN
        assert inspector.judge(tmp_path / "gone.tif").state is Judgement.GROWING


@posix
def test_a_source_that_takes_too_long_is_looked_at_again(inspector: Inspector, tmp_path: Path) -> None:
    good = stack_file(tmp_path / "a.ome.tif")
    inspector.judge(good)
    assert inspector._worker.process_id is not None
    os.kill(inspector._worker.process_id, signal.SIGSTOP)
    late = inspector.judge(good)
    assert (late.state, late.reason) == (Judgement.GROWING, "looking at it: it took longer than 0.5 s")
    assert inspector.judge(good) is late, "others must not wait for it again at once"
    assert inspector.judge(stack_file(tmp_path / "b.ome.tif")).state is Judgement.COMPLETE
    until, wait_s, _ = inspector._late[good]
    assert until - time.monotonic() > 5
    assert wait_s == 12.0
    inspector._late[good] = (0.0, wait_s, late)
    assert inspector.judge(good).state is Judgement.COMPLETE


@posix
def test_a_source_that_ends_the_process_is_broken(inspector: Inspector, tmp_path: Path) -> None:
    good = stack_file(tmp_path / "a.ome.tif")
    inspector.judge(good)
    process = inspector._worker.process_id
    assert process is not None
    os.kill(process, signal.SIGSTOP)
    killer = threading.Timer(0.1, os.kill, (process, signal.SIGKILL))
    killer.start()
    dead = inspector.judge(good)
    killer.join()
    words = "looking at it: the examining process ended by signal 9"
    assert (dead.state, dead.reason) == (Judgement.BROKEN, words)
    assert inspector.judge(good).state is Judgement.COMPLETE


def examined(examiner: Worker, path: Path) -> Message:
    def heard(timeout_s: float = 30.0) -> Message:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for message in examiner.poll():
                if isinstance(message, Examined | Failed):
                    return message
            if examiner.idle:
                examiner.order(Examine(path, (path,), 0.4, 0.1))
            time.sleep(0.01)
        raise AssertionError("nothing was heard")

    return heard()


def nan_stack(path: Path) -> None:
    data = np.ones((4, 8, 8), np.float32)
    data[2, 1, :3] = np.nan
    tifffile.imwrite(path, data, imagej=True, metadata={"axes": "ZYX"})


def large(path: Path) -> None:
    """Planes of 600 MB in all, which take no room on the disk."""
    tifffile.imwrite(path, shape=(3, 14_000, 14_000), dtype=np.uint8, photometric="minisblack")


def single(path: Path) -> None:
    tifffile.imwrite(path, np.ones((8, 8), np.uint8))


CASES = {
    "not finite": (nan_stack, Kind.INPUT, "3 NaN or infinite samples"),
    "too large": (large, Kind.INPUT, "memory"),
    "one image": (single, Kind.NOT_OURS, "holds a single image, not a z-stack"),
}


@pytest.mark.parametrize(("make", "kind", "words"), CASES.values(), ids=CASES)
@posix
def test_what_cannot_be_read_is_refused_in_words(
    examiner: Worker, tmp_path: Path, make: object, kind: Kind, words: str
) -> None:
    path = tmp_path / "a.tif"
    assert callable(make)
    make(path)
    message = examined(examiner, path)
    assert isinstance(message, Failed)
    assert message.kind is kind
    assert words in message.reason
    before = examiner.process_id
    good = stack_file(tmp_path / "good.ome.tif")
    assert examined(examiner, good) == Examined(content_hash([good]))
    assert examiner.process_id == before
