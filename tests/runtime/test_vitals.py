"""Vital signs: what makes the daemon alive and ready, what does not, and what is told to whom."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from ssai3d_rt.runtime.ledger import Fault, State
from ssai3d_rt.runtime.vitals import BUCKETS_S, WAITING_TO_BE_DONE, Vitals, WorkerState

if TYPE_CHECKING:
    from collections.abc import Callable

SECRET = "/data/secret/run7"


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def healthy(clock: Clock, *roots: str, scan_s: float = 5.0) -> Vitals:
    vitals = Vitals(roots or (SECRET,), scan_s=scan_s, clock=clock)
    vitals.beat()
    for root in roots or (SECRET,):
        vitals.root(root)
    vitals.ledger()
    vitals.disk(10_000, 1_000)
    vitals.canary(True)
    vitals.worker(WorkerState.IDLE)
    return vitals


def test_at_first_it_lives_and_is_not_ready() -> None:
    vitals = Vitals([SECRET], scan_s=5.0)
    assert vitals.live().ok
    assert len(vitals.ready().reasons) == 4  # ledger, folder, disk, canary
    assert not vitals.ready().ok


def test_alive_is_a_loop_that_went_round_within_half_a_minute() -> None:
    clock = Clock()
    vitals = healthy(clock)
    clock.now += 29.9
    vitals.root(SECRET)
    assert (vitals.live().ok, vitals.ready().ok) == (True, True)
    clock.now += 0.1
    assert (vitals.live().ok, vitals.ready().ok) == (False, False)
    assert vitals.live().reasons == ("the daemon has not gone round its loop for 30 s; restart it",)
    vitals.beat()
    assert vitals.live().ok


TROUBLES: dict[str, tuple[Callable[[Vitals], None], Callable[[Vitals], None], str]] = {
    "ledger": (lambda v: v.ledger("disk I/O error"), lambda v: v.ledger(), "ledger cannot be written"),
    "root": (lambda v: v.root(SECRET, problem="gone"), lambda v: v.root(SECRET), "folder 0 cannot be read"),
    "disk": (lambda v: v.disk(999, 1_000), lambda v: v.disk(1_000, 1_000), "below the reserve"),
    "fsync": (lambda v: v.disk(9_000, 1_000, problem="fsync failed"), lambda v: v.disk(9_000, 1_000), "refuses"),
    "canary": (lambda v: v.canary(False, "0.3 off"), lambda v: v.canary(True), "did not reproduce"),
    "crash loop": (
        lambda v: v.worker(WorkerState.BACKING_OFF, restarts=9, failures=3),
        lambda v: v.worker(WorkerState.IDLE, restarts=9, failures=0),
        "failed 3 times in a row",
    ),
}


@pytest.mark.parametrize("name", TROUBLES)
def test_each_trouble_clears_ready_alone_and_passes(name: str) -> None:
    begin, end, words = TROUBLES[name]
    vitals = healthy(Clock())
    begin(vitals)
    assert [words in reason for reason in vitals.ready().reasons] == [True]
    assert vitals.live().ok
    end(vitals)
    assert vitals.ready().ok


def test_what_is_no_trouble_of_the_daemon_leaves_it_ready() -> None:
    vitals = healthy(Clock())
    for fault in (Fault.INPUT, Fault.WORKER, Fault.INCOMPLETE):
        vitals.failed(fault)
    vitals.counts({"failed": 3})
    vitals.paused("an acquisition runs")
    vitals.worker(WorkerState.BACKING_OFF, restarts=7, failures=2)
    assert vitals.ready().ok


@pytest.mark.parametrize(
    ("scan_s", "took_s", "late_s"), [(5.0, 0.1, 10.0), (60.0, 0.1, 120.0), (5.0, 40.0, 80.0), (0.1, 0.0, 5.0)]
)
def test_a_folder_must_be_scanned_within_two_intervals(scan_s: float, took_s: float, late_s: float) -> None:
    clock = Clock()
    vitals = healthy(clock, scan_s=scan_s)
    vitals.root(SECRET, took_s=took_s)
    clock.now += late_s
    vitals.beat()
    assert vitals.ready().ok
    clock.now += 0.1
    assert "was not scanned for" in vitals.ready().reasons[0]


def test_one_folder_of_several_is_told_by_its_number() -> None:
    vitals = healthy(Clock(), "/a", "/b", "/c")
    vitals.root("/b", problem="Stale file handle")
    assert vitals.ready().reasons == ("watched folder 1 cannot be read; is its disk or share there?",)
    assert [root["ok"] for root in vitals.snapshot()["roots"]] == [True, False, True]
    with pytest.raises(KeyError):
        vitals.root("/d")


def test_a_recipe_without_golden_tiles_needs_none() -> None:
    vitals = Vitals([], scan_s=1.0, canary=False)
    vitals.ledger()
    vitals.disk(1, 0)
    assert vitals.ready().ok
    vitals.canary(False)
    assert not vitals.ready().ok


def test_names_are_told_only_when_asked_for() -> None:
    vitals = healthy(Clock())
    vitals.root(SECRET, problem=f"{SECRET}: Input/output error")
    vitals.ledger(f"{SECRET}/ledger.sqlite is read-only")
    vitals.disk(1, 0, problem=f"{SECRET} failed")
    vitals.canary(False, SECRET)
    vitals.paused(f"the disk of {SECRET} is full")
    told = json.dumps([vitals.snapshot(), vitals.ready().reasons])
    assert SECRET not in told
    asked = vitals.snapshot(names=True)
    assert json.loads(json.dumps(asked)) == asked
    assert asked["roots"][0]["path"] == SECRET
    assert [SECRET in problem for problem in asked["problems"]] == [True] * 4
    assert asked["paused_why"] == f"the disk of {SECRET} is full"


def test_durations_fall_into_their_buckets() -> None:
    vitals = healthy(Clock())
    for seconds in (0.0, 0.5, 0.6, 3600.0, 3601.0):
        vitals.done(seconds, 2 * seconds)
    found = vitals.snapshot()["seconds"]
    assert (found["count"], found["sum_s"]) == (5, 7202.1)
    assert [found["buckets"][i] for i in (0, 1, -2, -1)] == [2, 1, 1, 1]
    assert len(found["buckets"]) == len(BUCKETS_S) + 1
    assert vitals.snapshot()["latency"]["sum_s"] == 14404.2


def test_the_queue_is_made_of_real_states() -> None:
    assert set(WAITING_TO_BE_DONE) <= {state.value for state in State}
    vitals = healthy(Clock())
    vitals.counts({"waiting": 9, "ready": 3, "running": 1, "publishing": 1, "done": 100})
    assert vitals.snapshot()["queue"] == 5


def test_many_threads_tell_and_ask_at_once() -> None:
    vitals = healthy(Clock())

    def tell() -> None:
        for _ in range(500):
            vitals.beat()
            vitals.failed("input")
            vitals.done(1.0, 1.0)
            vitals.snapshot()

    threads = [threading.Thread(target=tell) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = vitals.snapshot()
    assert (found["beats"], found["faults"], found["seconds"]["count"]) == (2001, {"input": 2000}, 2000)
