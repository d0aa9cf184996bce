"""The restoring process: real processes that answer, crash, hang, are refused, and end with their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ssai3d_rt.errors import BackendError
from ssai3d_rt.runtime.messages import (
    Ended,
    Examine,
    Examined,
    Failed,
    Kind,
    Message,
    NotReady,
    Progressed,
    Ready,
    Restore,
    Restored,
)
from ssai3d_rt.runtime.source import content_hash
from ssai3d_rt.runtime.worker import Worker
from tests.runtime.daemon import QUICK, is_right, stack_file
from tests.runtime.quick import QuickRecipe

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    made = Worker(QuickRecipe(tmp_path / "log"), QUICK.model_copy(update={"stall_s": 1.0, "threads": 1, "nice": 3}))
    yield made
    made.close()


def hear(worker: Worker, kind: type[Message], timeout_s: float = 15.0) -> list[Message]:
    """Poll until a message of a kind comes; all messages until then."""
    heard: list[Message] = []
    deadline = time.monotonic() + timeout_s
    while not any(isinstance(message, kind) for message in heard):
        assert time.monotonic() < deadline, heard
        heard += worker.poll()
        time.sleep(0.01)
    return heard


def test_it_hashes_restores_and_goes_on(worker: Worker, tmp_path: Path) -> None:
    source = stack_file(tmp_path / "a.ome.tif")
    hear(worker, Ready)
    assert worker.idle
    assert worker.name == "quick"
    worker.order(Examine(source, (source,), None, None))
    assert not worker.idle
    with pytest.raises(RuntimeError, match="not idle"):
        worker.order(Examine(source, (source,), None, None))
    content = content_hash([source])
    assert hear(worker, Examined)[-1] == Examined(content)
    for _ in range(2):
        worker.order(Restore(source, content, tmp_path))
        heard = hear(worker, Restored)
        assert isinstance(heard[0], Progressed)
        assert isinstance(heard[-1], Restored)
        (sealed,) = heard[-1].parts.values()
        assert content_hash([sealed.path]) == sealed.sha256
        assert is_right(sealed.path, source)
    if worker.process_id and sys.platform == "linux":
        assert os.getpriority(os.PRIO_PROCESS, worker.process_id) == os.getpriority(os.PRIO_PROCESS, 0) + 3


CASES = {
    "bug": ("bug.ome.tif", Failed(Kind.WORKER, "ZeroDivisionError: division by zero")),
    "crash": ("crash.ome.tif", Ended("the restoring process ended with exit status 9")),
    "killed": ("once.ome.tif", Ended("the restoring process ended by signal 9")),
    "hang": ("hang.ome.tif", Ended("the restoring process said nothing for 1 s and was ended")),
}


@pytest.mark.parametrize(("name", "message"), CASES.values(), ids=CASES)
def test_it_is_replaced_after(worker: Worker, tmp_path: Path, name: str, message: Message) -> None:
    source = stack_file(tmp_path / name)
    hear(worker, Ready)
    before = worker.process_id
    worker.order(Restore(source, "c" * 64, tmp_path))
    assert hear(worker, type(message))[-1] == message
    if isinstance(message, Failed):
        assert worker.idle
        worker.restart(failed=True)
    hear(worker, Ready)
    assert worker.process_id != before


def test_a_file_that_cannot_be_used_is_no_fault_of_the_process(worker: Worker, tmp_path: Path) -> None:
    text = tmp_path / "a.tif"
    text.write_text("not an image")
    hear(worker, Ready)
    before = worker.process_id
    worker.order(Restore(text, "c" * 64, tmp_path))
    (failed,) = hear(worker, Failed)
    assert isinstance(failed, Failed)
    assert failed.kind is Kind.INPUT
    gone = tmp_path / "gone.tif"
    worker.order(Examine(gone, (gone,), None, None))
    (failed,) = hear(worker, Failed)
    assert isinstance(failed, Failed)
    assert failed.kind is Kind.INCOMPLETE
    assert worker.process_id == before


def test_a_recipe_that_cannot_be_opened_says_so(tmp_path: Path) -> None:
    worker = Worker(QuickRecipe(tmp_path / "log", refuse="no GPU here"), QUICK)
    try:
        (message,) = hear(worker, NotReady)
        assert isinstance(message, NotReady)
        assert isinstance(message.error, BackendError)
        assert message.reason == "no GPU here"
    finally:
        worker.close()


PARENT = """
import sys, time
from pathlib import Path
from ssai3d_rt.runtime.messages import Restore
from ssai3d_rt.runtime.worker import Worker
from tests.runtime.daemon import QUICK
from tests.runtime.quick import QuickRecipe
folder = Path(sys.argv[1])
worker = Worker(QuickRecipe(folder / "log"), QUICK)
while not worker.idle:
    worker.poll()
    time.sleep(0.01)
worker.order(Restore(folder / "hang.ome.tif", "c" * 64, folder))
print(worker.process_id, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_with_its_parent_in_the_middle_of_work(tmp_path: Path, number: signal.Signals) -> None:
    stack_file(tmp_path / "hang.ome.tif")
    with subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.send_signal(number)
    deadline = time.monotonic() + 5
    while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[-1]:
        assert time.monotonic() < deadline, "the restoring process lives on"
        time.sleep(0.02)
