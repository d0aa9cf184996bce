"""Watched folders that go away, come back, hang; and how far the work steps back for an acquisition."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from ssai3d_rt.runtime.ledger import State
from ssai3d_rt.runtime.scan import scan
from ssai3d_rt.runtime.watch import watch
from tests.runtime.daemon import QUICK, Rig, stack_file
from tests.runtime.quick import QuickRecipe

if TYPE_CHECKING:
    from pathlib import Path

DONE, FAILED, GONE = State.DONE, State.FAILED, State.GONE


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    return Rig(incoming, tmp_path / "isotropic", tmp_path / "restored.log")


def test_an_empty_folder_in_place_of_a_disk_is_not_taken_for_deleted_files(
    rig: Rig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stack_file(rig.incoming / "a.ome.tif")
    (rig.incoming / "bad.tif").write_text("not an image")
    with rig.running():
        rig.wait_for(a=DONE, bad=FAILED)
        rig.incoming.rename(tmp_path / "disk")
        rig.incoming.mkdir()
        rig.wait(lambda: "is empty, and another folder than before" in caplog.text)
        time.sleep(3 * QUICK.scan_s)
        rig.incoming.rmdir()
        stack_file(tmp_path / "disk" / "b.ome.tif", 1)
        (tmp_path / "disk").rename(rig.incoming)
        rig.wait_for(b=DONE)
        assert "is back" in caplog.text
    assert rig.counts == {"done": 2, "failed": 1}
    assert GONE not in {event.state for event in rig.events}


def test_another_disk_in_its_place_is_watched_and_nothing_of_the_first_is_forgotten(rig: Rig, tmp_path: Path) -> None:
    (rig.incoming / "bad.tif").write_text("not an image")
    with rig.running():
        rig.wait_for(bad=FAILED)
        rig.incoming.rename(tmp_path / "first")
        (tmp_path / "second").mkdir()
        stack_file(tmp_path / "second" / "new.ome.tif")
        (tmp_path / "second").rename(rig.incoming)
        rig.wait_for(new=DONE)
    assert rig.counts == {"done": 1, "failed": 1}


def test_a_folder_that_does_not_answer_holds_no_other_up(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    share, answers, real = tmp_path / "share", threading.Event(), scan
    share.mkdir()

    def held(root: Path) -> Any:
        if root == share:
            answers.wait(60)
        return real(root)

    monkeypatch.setattr("ssai3d_rt.runtime.scanner.scan", held)
    monkeypatch.setattr("ssai3d_rt.runtime.intake._SLOW_S", 0.2)
    stop = threading.Event()
    settings = QUICK.model_copy(update={"observer": "off"})
    stack_file(share / "late.ome.tif", 1)
    stack_file(rig.incoming / "a.ome.tif")

    def listen(event: Any) -> None:
        rig.events.append(event)

    def run() -> None:
        watch([share, rig.incoming], QuickRecipe(rig.log), rig.out, settings=settings, stop=stop, listener=listen)

    thread = threading.Thread(target=run, name="daemon under test")
    thread.start()
    try:
        rig.wait_for(a=DONE)
        rig.wait(lambda: "does not answer" in caplog.text)
        assert "late.ome.tif" not in rig.states()
        answers.set()
        rig.wait_for(late=DONE)
    finally:
        answers.set()
        stop.set()
        thread.join()


@pytest.mark.parametrize(("policy", "waits"), [("pause", True), ("full", False)])
def test_it_steps_back_while_a_folder_is_written_to(rig: Rig, policy: str, waits: bool) -> None:
    rig = rig.with_settings(while_acquiring=policy, acquiring_s=1.0, incomplete_after_s=60.0)
    growing, over = rig.incoming / "growing.ome.tif", threading.Event()
    whole = stack_file(rig.incoming.parent / "whole.ome.tif", 1).read_bytes()

    def acquire() -> None:
        with open(growing, "wb") as file:
            while not over.wait(0.1):
                file.write(whole[:16])
                file.flush()

    writer = threading.Thread(target=acquire, name="acquisition")
    writer.start()
    try:
        with rig.running():
            rig.wait(lambda: "growing.ome.tif" in rig.states())
            stack_file(rig.incoming / "a.ome.tif")
            if waits:
                rig.wait_for(a=State.RUNNING)
                time.sleep(1.5)
                assert rig.states()["a.ome.tif"] is State.RUNNING
                over.set()
            rig.wait_for(a=DONE)
    finally:
        over.set()
        writer.join()
