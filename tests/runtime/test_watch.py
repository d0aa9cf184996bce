"""The daemon: what comes in comes out once, whatever happens to a stack, to events, or to the daemon."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ssai3d_rt.errors import BackendError, ConfigError, StorageError
from ssai3d_rt.imaging.write import read_provenance
from ssai3d_rt.runtime import watch as watch_module
from ssai3d_rt.runtime.database import LedgerError
from ssai3d_rt.runtime.hints import Hints, file_system_type
from ssai3d_rt.runtime.ledger import Ledger, State
from ssai3d_rt.runtime.roots import Roots
from ssai3d_rt.runtime.status import ledger_of, summary
from ssai3d_rt.runtime.watch import WatchSettings, stop_on_signals, watch
from tests.runtime.daemon import QUICK, Rig, is_right, stack_file
from tests.runtime.quick import QuickRecipe

if TYPE_CHECKING:
    from ssai3d_rt.runtime.book import WatchEvent

DONE, FAILED, WAITING, READY, GONE = State.DONE, State.FAILED, State.WAITING, State.READY, State.GONE


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    return Rig(incoming, tmp_path / "isotropic", tmp_path / "restored.log")


def test_stacks_there_before_and_coming_later_are_restored(rig: Rig) -> None:
    first = stack_file(rig.incoming / "first.ome.tif")
    raw = {first: hashlib.sha256(first.read_bytes()).hexdigest()}
    with rig.running():
        rig.wait_for(first=DONE)
        (rig.incoming / "day 1" / "pos").mkdir(parents=True)
        later = stack_file(rig.incoming / "day 1" / "pos" / "later.ome.tif", 1)
        raw[later] = hashlib.sha256(later.read_bytes()).hexdigest()
        rig.wait_for(later=DONE)
    assert rig.results() == ["day 1/pos/later_iso.ome.tif", "first_iso.ome.tif"]
    assert is_right(rig.out / "first_iso.ome.tif", first)
    assert is_right(rig.out / "day 1" / "pos" / "later_iso.ome.tif", later)
    assert read_provenance(rig.out / "first_iso.ome.tif")["source_sha256"] == raw[first]
    assert {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in raw} == raw
    assert rig.counts == {"done": 2}
    done = next(event for event in rig.events if event.state is DONE)
    assert done.results == (rig.out / "first_iso.ome.tif",)
    assert str(done).startswith(f"done       {first} -> {rig.out / 'first_iso.ome.tif'} (")


def test_a_bad_stack_never_stops_the_others(rig: Rig) -> None:
    rig = rig.with_settings(attempts=2)
    for number, name in enumerate(["a_crash", "c_bug", "d_once", "e_good"]):
        stack_file(rig.incoming / f"{name}.ome.tif", number)
    (rig.incoming / "text.tif").write_text("not an image")
    with rig.running():
        rig.wait_for(a_crash=FAILED, c_bug=FAILED, d_once=DONE, e_good=DONE, text=FAILED)
    assert rig.reason("a_crash.ome.tif") == "failed 2 times, last: the restoring process ended with exit status 9"
    assert rig.reason("c_bug.ome.tif") == "failed 2 times, last: ZeroDivisionError: division by zero"
    assert "not a TIFF" in rig.reason("text.tif")
    assert rig.results() == ["d_once_iso.ome.tif", "e_good_iso.ome.tif"]
    failed = summary(rig.out)["failed"]
    assert {Path(entry["path"]).name: entry["attempts"] for entry in failed}["a_crash.ome.tif"] == 2


def test_a_half_copied_file_waits_is_listed_and_is_taken_up_when_it_is_whole(rig: Rig, tmp_path: Path) -> None:
    whole = stack_file(tmp_path / "whole.ome.tif").read_bytes()
    late, never = rig.incoming / "late.ome.tif", rig.incoming / "never.ome.tif"
    for path in (late, never):
        path.write_bytes(whole[: len(whole) // 2])
    with rig.running():
        rig.wait_for(late=FAILED, never=FAILED)
        assert rig.reason("late.ome.tif").startswith("incomplete: ")
        with open(late, "ab") as file:
            file.write(whole[len(whole) // 2 :])
        rig.wait_for(late=DONE)
    assert rig.results() == ["late_iso.ome.tif"]
    assert rig.states()["never.ome.tif"] is FAILED
    with rig.running():  # still listed after a restart, and taken up again
        time.sleep(1.5)
        assert rig.events == []
        never.write_bytes(whole)
        rig.wait_for(never=DONE)
    assert rig.restored() == ["late.ome.tif", "never.ome.tif"]


def test_a_file_that_changes_while_it_is_read_is_restored_again(rig: Rig) -> None:
    path = stack_file(rig.incoming / "slow.ome.tif")
    with rig.running():
        rig.wait_for(slow=DONE)
    assert rig.restored() == ["slow.ome.tif", "slow.ome.tif"]
    assert any(event.reason == "it changed while it was read" for event in rig.events)
    assert rig.results() == ["slow_iso.ome.tif"]
    content = hashlib.sha256(path.read_bytes()).hexdigest()
    assert read_provenance(rig.out / "slow_iso.ome.tif")["source_sha256"] == content


def test_touched_and_renamed_files_are_not_restored_again(rig: Rig) -> None:
    path = stack_file(rig.incoming / "a.ome.tif")
    with rig.running():
        rig.wait_for(a=DONE)
        os.utime(path, (1, 1))
        rig.wait(lambda: rig.reason("a.ome.tif") == "its content did not change")
        path.rename(rig.incoming / "b.ome.tif")
        rig.wait_for(b=DONE, a=GONE)
    assert rig.restored() == ["a.ome.tif"]
    assert rig.results() == ["a_iso.ome.tif"]


def test_new_content_and_like_names_get_results_of_their_own(rig: Rig) -> None:
    path = stack_file(rig.incoming / "a.ome.tif")
    with rig.running():
        rig.wait_for(a=DONE)
        before = (rig.out / "a_iso.ome.tif").read_bytes()
        os.replace(stack_file(rig.incoming / "new.part", 1), path)
        rig.wait(lambda: rig.restored() == ["a.ome.tif"] * 2)
        stack_file(rig.incoming / "a.tif", 2)
        rig.wait(lambda: rig.states().get("a.tif") is DONE)
    assert (rig.out / "a_iso.ome.tif").read_bytes() == before
    tagged = [name for name in rig.results() if name != "a_iso.ome.tif"]
    assert len(tagged) == 2
    entries = {Path(entry["path"]).name: Path(entry["results"][0]) for entry in summary(rig.out)["done"]}
    assert all(is_right(result, rig.incoming / name) for name, result in entries.items())


def test_a_strangers_file_under_the_results_name_is_left_alone(rig: Rig) -> None:
    rig.out.mkdir()
    (rig.out / "a_iso.ome.tif").write_text("precious")
    path = stack_file(rig.incoming / "a.ome.tif")
    with rig.running():
        rig.wait_for(a=DONE)
    assert (rig.out / "a_iso.ome.tif").read_text() == "precious"
    (other,) = (name for name in rig.results() if name != "a_iso.ome.tif")
    assert is_right(rig.out / other, path)


def test_a_result_that_was_lost_is_made_again_at_the_next_start(rig: Rig) -> None:
    stack_file(rig.incoming / "a.ome.tif")
    stack_file(rig.incoming / "b.ome.tif", 1)
    with rig.running():
        rig.wait_for(a=DONE, b=DONE)
    (rig.out / "a_iso.ome.tif").unlink()
    with rig.running():
        rig.wait_for(a=DONE)
    assert rig.results() == ["a_iso.ome.tif", "b_iso.ome.tif"]
    assert sorted(rig.restored()) == ["a.ome.tif", "a.ome.tif", "b.ome.tif"]


def test_without_its_ledger_the_daemon_takes_over_the_results_on_disk(rig: Rig) -> None:
    stack_file(rig.incoming / "a.ome.tif")
    with rig.running():
        rig.wait_for(a=DONE)
    shutil.rmtree(rig.out / ".ssai3d-rt")
    with rig.running():
        rig.wait_for(a=DONE)
    assert rig.reason("a.ome.tif") == "its result was already there"
    assert rig.restored() == ["a.ome.tif"]
    assert rig.results() == ["a_iso.ome.tif"]


def test_another_bundle_gives_another_result(rig: Rig) -> None:
    stack_file(rig.incoming / "a.ome.tif")
    made: list[str] = []
    for bundle_id in ("one", "two", "one"):
        with rig.running(bundle_id=bundle_id):
            if bundle_id not in made:
                rig.wait_for(a=DONE)
            made.append(bundle_id)
            time.sleep(0.5)
    assert len(rig.results()) == 2
    assert {read_provenance(rig.out / name)["bundle_id"] for name in rig.results()} == {"one", "two"}
    assert rig.restored() == ["a.ome.tif", "a.ome.tif"]


@pytest.mark.parametrize("observer", ["off", "polling"])
def test_no_event_is_needed(rig: Rig, observer: str) -> None:
    rig = rig.with_settings(observer=observer, poll_s=0.2)
    with rig.running():
        stack_file(rig.incoming / "a.ome.tif")
        rig.wait_for(a=DONE)
    assert rig.results() == ["a_iso.ome.tif"]


@pytest.mark.skipif(sys.platform == "win32", reason="such files are possible on Linux only")
def test_what_is_no_stack_file_is_not_touched(rig: Rig, tmp_path: Path) -> None:
    outside = stack_file(tmp_path / "outside.ome.tif")
    os.mkfifo(rig.incoming / "pipe.tif")
    (rig.incoming / "link.tif").symlink_to(outside)
    (rig.incoming / "loop").symlink_to(rig.incoming)
    (rig.incoming / "folder.tif").mkdir()
    stack_file(rig.incoming / "copying.ome.tif.part")
    (rig.incoming / ".hidden.tif").write_text("x")
    odd = stack_file(Path(os.fsdecode(os.fsencode(rig.incoming) + b"/odd\n\xff.ome.tif")), 3)
    with rig.running():
        rig.wait(lambda: rig.states().get(odd.name) is DONE)
        time.sleep(0.5)
    assert set(rig.states()) == {odd.name}
    assert len(rig.results()) == 1


def test_a_full_disk_pauses_and_goes_on_by_itself(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    real, full = shutil.disk_usage, threading.Event()
    full.set()
    usage = type(real("/"))

    def disk(path: Any) -> Any:
        return usage(100, 100, 0) if full.is_set() else real(path)

    monkeypatch.setattr(shutil, "disk_usage", disk)
    stack_file(rig.incoming / "a.ome.tif")
    with rig.running():
        rig.wait_for(a=READY)
        rig.wait(lambda: "make room" in summary(rig.out)["paused"])
        full.clear()
        rig.wait_for(a=DONE)
        assert summary(rig.out)["paused"] == ""
    assert rig.restored() == ["a.ome.tif"]


def test_a_ledger_that_cannot_be_written_is_opened_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    real, failures = Ledger.move, iter([1])

    def move(self: Ledger, entry: Any, state: State, **changes: Any) -> Any:
        if state is State.PUBLISHING and next(failures, None):
            raise LedgerError("disk I/O error")
        return real(self, entry, state, **changes)

    monkeypatch.setattr(Ledger, "move", move)
    monkeypatch.setattr(watch_module, "_REOPEN_S", 0.1)
    stack_file(rig.incoming / "a.ome.tif")
    with rig.running():
        rig.wait_for(a=DONE)
    assert rig.results() == ["a_iso.ome.tif"]
    assert rig.restored() == ["a.ome.tif"] * 2


def test_a_folder_that_vanishes_and_comes_back_loses_nothing(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    stack_file(rig.incoming / "a.ome.tif")
    away = rig.incoming.with_name("away")
    with rig.running():
        rig.wait_for(a=DONE)
        rig.incoming.rename(away)
        rig.wait(lambda: "nothing is taken for deleted" in caplog.text)
        stack_file(away / "b.ome.tif", 1)
        away.rename(rig.incoming)
        rig.wait_for(b=DONE)
        stack_file(rig.incoming / "c.ome.tif", 2)
        rig.wait_for(c=DONE)
    assert rig.restored() == ["a.ome.tif", "b.ome.tif", "c.ome.tif"]
    assert rig.counts == {"done": 3}


def test_a_dead_observer_is_started_again(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    hints = Hints([rig.incoming], QUICK)
    try:
        hints.supervise(rig.incoming)
        observer, _ = hints._observers[rig.incoming] or (None, None)
        assert observer is not None
        for emitter in observer.emitters:
            emitter.stop()
            emitter.join()
        hints.supervise(rig.incoming)
        (rig.incoming / "a.tif").touch()
        rig.wait(lambda: rig.incoming / "a.tif" in hints.take()[0])
    finally:
        hints.stop()
    assert "it is started again" in caplog.text


def test_a_listener_that_fails_does_not_stop_the_daemon(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    stack_file(rig.incoming / "a.ome.tif")
    stop = threading.Event()

    def listener(event: WatchEvent) -> None:
        if event.state is DONE:
            stop.set()
        raise ValueError("no")

    counts = watch(rig.incoming, QuickRecipe(rig.log), rig.out, settings=QUICK, stop=stop, listener=listener)
    assert counts == {"done": 1}
    assert "a listener failed" in caplog.text


def test_a_stop_gives_the_stack_at_work_back(rig: Rig) -> None:
    rig = rig.with_settings(stop_s=0.0)
    stack_file(rig.incoming / "a.ome.tif")
    with rig.running(delay_s=30) as stop:
        rig.wait_for(a=State.RUNNING)
        began = time.monotonic()
        stop.set()
    assert time.monotonic() - began < 5
    assert rig.counts == {"ready": 1}
    assert rig.results() == []
    with rig.running():
        rig.wait_for(a=DONE)


def test_a_second_daemon_is_refused(rig: Rig) -> None:
    with rig.running():
        rig.wait(lambda: ledger_of(rig.out).exists())
        with pytest.raises(StorageError, match=r"another watch .* already runs"):
            watch(rig.incoming, QuickRecipe(rig.log), rig.out, settings=QUICK, stop=threading.Event())


def test_a_recipe_that_cannot_be_opened_ends_the_daemon(rig: Rig) -> None:
    with pytest.raises(BackendError, match="no GPU here"), rig.running(refuse="no GPU here"):
        rig.wait(lambda: False)


LIE = {
    "out inside": (["raw"], "raw/iso", "lie in each other"),
    "out is it": (["raw"], "raw", "lie in each other"),
    "out around": (["raw/day"], "raw", "lie in each other"),
    "through a link": (["link"], "raw/iso", "lie in each other"),
    "nested": (["raw", "raw/day"], "iso", "is watched as a whole"),
    "none": ([], "iso", "no folder to watch"),
    "file": (["file"], "iso", "is a file"),
    "out is a file": (["raw"], "file", "is a file"),
}


@pytest.mark.parametrize(("folders", "out", "words"), LIE.values(), ids=LIE)
def test_folders_that_contradict_are_refused(tmp_path: Path, folders: list[str], out: str, words: str) -> None:
    (tmp_path / "raw" / "day").mkdir(parents=True)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "raw")
    with pytest.raises(ConfigError, match=words):
        watch([tmp_path / folder for folder in folders], QuickRecipe(tmp_path / "log"), tmp_path / out)


def test_several_folders_get_folders_of_their_own(tmp_path: Path) -> None:
    folders = [tmp_path / "left" / "raw", tmp_path / "right" / "raw", tmp_path / "other"]
    roots = Roots(folders, tmp_path / "iso")
    places = [roots.folder_of(folder / "day" / "a.tif") for folder in folders]
    assert len(set(places)) == 3
    assert places[2] == tmp_path / "iso" / "other" / "day"
    assert roots.root_of(tmp_path / "elsewhere" / "a.tif") is None


def test_a_ledger_on_a_network_file_system_is_refused(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "is_network", lambda folder: True)
    with pytest.raises(ConfigError, match="network file system; set `ledger`"):
        watch(rig.incoming, QuickRecipe(rig.log), rig.out, settings=QUICK, stop=threading.Event())


def test_file_system_types_are_found_by_the_longest_mount(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text("/dev/sda1 / ext4 rw 0 0\nserver:/x /data nfs4 rw 0 0\n//s/y /data/my\\040share cifs rw 0 0\n")
    kinds = [file_system_type(Path(p), str(mounts)) for p in ("/home/a", "/data/raw", "/data/my share/b", "/database")]
    assert kinds == ["ext4", "nfs4", "cifs", "ext4"]


def test_signals_ask_to_stop(caplog: pytest.LogCaptureFixture) -> None:
    import signal

    before = signal.getsignal(signal.SIGINT)
    with stop_on_signals() as stop:
        assert not stop.is_set()
        signal.raise_signal(signal.SIGINT)
        assert stop.is_set()
    assert signal.getsignal(signal.SIGINT) is before
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_settings_refuse_unknown_keys_and_wrong_values() -> None:
    with pytest.raises(ConfigError, match='unknown key "quite_s"; did you mean "quiet_s"'):
        WatchSettings.of({"quite_s": 1})
    with pytest.raises(ConfigError, match="attempts"):
        WatchSettings.of({"attempts": 0})


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights on Windows")
def test_results_are_written_through_no_link(rig: Rig, tmp_path: Path) -> None:
    for folder in (rig.incoming / "day", rig.out, tmp_path / "elsewhere"):
        folder.mkdir()
    (rig.out / "day").symlink_to(tmp_path / "elsewhere")
    stack_file(rig.incoming / "day" / "a.ome.tif")
    stack_file(rig.incoming / "b.ome.tif", 1)
    with rig.running():
        rig.wait_for(a=FAILED, b=DONE)
    assert "leads elsewhere (a link)" in rig.reason("a.ome.tif")
    assert list((tmp_path / "elsewhere").iterdir()) == []
