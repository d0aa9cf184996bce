"""Submitting: works with and without a daemon, spares the wait, tries again, never breaks the daemon."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from ssai3d_rt.errors import InputError, StorageError
from ssai3d_rt.runtime.ledger import State
from ssai3d_rt.runtime.publish import STATE_FOLDER
from ssai3d_rt.runtime.submit import pending, submit
from tests.runtime.daemon import Rig, stack_file


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    made = Rig(incoming, tmp_path / "isotropic", tmp_path / "restored.log")
    return made.with_settings(quiet_s=60.0, observer="off")  # nothing happens soon unless it is submitted


def test_while_the_daemon_is_down_the_word_waits(rig: Rig) -> None:
    path = stack_file(rig.incoming / "a.ome.tif")
    word = submit(path, rig.out)
    assert pending(rig.out) == [(word, path)]
    with rig.running():
        rig.wait_for(a=State.DONE)
    assert pending(rig.out) == []


@pytest.mark.parametrize("marker", [False, True])
def test_a_submitted_folder_is_taken_at_once_and_other_files_wait(rig: Rig, marker: bool) -> None:
    (rig.incoming / "day").mkdir()
    stack_file(rig.incoming / "day" / "a.ome.tif")
    stack_file(rig.incoming / "b.ome.tif", 1)
    with rig.running():
        rig.wait_for(a=State.SEEN, b=State.SEEN)
        submit(rig.incoming / "day", None if marker else rig.out)
        rig.wait_for(a=State.DONE)
        assert rig.states()["b.ome.tif"] is State.SEEN
    assert (rig.incoming / "day.done").exists() is marker


def test_what_is_submitted_must_still_be_complete(rig: Rig, tmp_path: Path) -> None:
    whole = stack_file(tmp_path / "whole.ome.tif").read_bytes()
    path = rig.incoming / "a.ome.tif"
    path.write_bytes(whole[:-900])
    with rig.running():
        submit(path, rig.out)
        rig.wait(lambda: pending(rig.out) == [] and rig.states())
        assert rig.states()["a.ome.tif"] is State.SEEN
        path.write_bytes(whole)
        rig.wait(lambda: rig.states()["a.ome.tif"] is State.SEEN)
        submit(path, rig.out)
        rig.wait_for(a=State.DONE)


@pytest.mark.parametrize("marker", [False, True])
def test_a_failed_stack_is_tried_again_once_per_submission(rig: Rig, marker: bool) -> None:
    rig = rig.with_settings(attempts=1, quiet_s=0.2)
    path = stack_file(rig.incoming / "bug.ome.tif")
    with rig.running():
        rig.wait_for(bug=State.FAILED)
        submit(path, None if marker else rig.out)
        rig.wait(lambda: [event.state for event in rig.events].count(State.FAILED) == 2)
    assert any(event.reason == "it was submitted again" for event in rig.events)
    with rig.running():  # the marker stays, and is not taken for a new one
        rig.wait(lambda: rig.out.exists())
        stack_file(rig.incoming / "other.ome.tif", 1)
        rig.wait_for(other=State.DONE)
    assert "bug.ome.tif" not in rig.states()


def test_words_that_make_no_sense_are_dropped(rig: Rig, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    outside = stack_file(tmp_path / "outside.ome.tif")
    inbox = submit(outside, rig.out).parent
    for number, text in enumerate(["", "{}", "[1]", '{"path": 3}', "\0" * 99, '{"path": "' + "x" * 99_999]):
        (inbox / f"{number}.json").write_text(text)
    with rig.running():
        rig.wait(lambda: pending(rig.out) == [])
    assert caplog.text.count("not a stack in a watched folder") == 7
    assert rig.events == []


@pytest.mark.skipif(sys.platform == "win32", reason="such names are possible on Linux only")
def test_any_name_can_be_submitted(rig: Rig) -> None:
    path = Path(os.fsdecode(os.fsencode(rig.incoming) + b"/\xff\n.ome.tif"))
    path.touch()
    submit(path, rig.out)
    assert [found for _, found in pending(rig.out)] == [path]


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone.tif does not exist; give the finished file"):
        submit(tmp_path / "gone.tif")


def test_a_word_that_cannot_be_left_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.touch()
    (tmp_path / STATE_FOLDER).touch()
    with pytest.raises(StorageError, match="cannot leave word about"):
        submit(path, tmp_path)


NONSENSE = {
    "no JSON": b"{",
    "no path": b"{}",
    "a number": b'{"path": 3}',
    "a nul": b'{"path": "/a\\u0000b"}',
    "half a character": b'{"path": "/\\ud800"}',
    "deep": b"[" * 60_000,
}


@pytest.mark.parametrize("text", NONSENSE.values(), ids=NONSENSE)
def test_nonsense_in_the_inbox_is_passed_over(rig: Rig, text: bytes) -> None:
    path = stack_file(rig.incoming / "a.ome.tif")
    inbox = submit(path, rig.out).parent
    (inbox / "0.json").write_bytes(text)
    assert pending(rig.out)[0] == (inbox / "0.json", None)
    with rig.running():
        rig.wait_for(a=State.DONE)
        rig.wait(lambda: list(inbox.iterdir()) == [])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_what_is_no_word_in_the_inbox_is_left_alone(rig: Rig, tmp_path: Path) -> None:
    path = stack_file(rig.incoming / "a.ome.tif")
    inbox = submit(path, rig.out).parent
    (inbox / "0.json").mkdir()
    os.mkfifo(inbox / "1.json")
    (inbox / "2.json").symlink_to(tmp_path / "elsewhere.json")
    with rig.running():
        rig.wait_for(a=State.DONE)
    assert sorted(word.name for word in inbox.iterdir()) == ["0.json", "1.json", "2.json"]
