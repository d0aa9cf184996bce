from __future__ import annotations

import threading
import time

import pytest

from ssai3d_rt.export.buildwatch import BuildWatch


def test_nested_phases_become_one_figure_that_only_grows() -> None:
    watch = BuildWatch()
    seen: list[int] = []

    def work() -> str:
        watch.start("build", None, 2)
        watch.step("build")  # 50
        watch.start("optimise", "build", 2)
        watch.start("time", "optimise", 4)
        for _ in range(4):
            watch.step("time")  # 56, 62, 68, 75
        watch.finish("time")
        watch.step("optimise")  # 75 again
        watch.start("orphan", "nobody", 1)
        watch.step("orphan")
        watch.step("unknown")
        watch.finish("optimise")
        watch.step("build")
        return "done"

    def progress(label: str, done: int, total: int, /) -> None:
        assert (label, total) == ("engine", 100)
        assert threading.current_thread() is threading.main_thread()
        seen.append(done)

    assert watch.run(work, "engine", progress) == "done"
    assert seen == [0, 50, 56, 62, 68, 75, 100, 100]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_exception_in_the_callers_thread_stops_the_work_and_is_raised(error: type[BaseException]) -> None:
    watch = BuildWatch()
    ended = threading.Event()

    def work() -> None:
        watch.start("build", None, 1000)
        deadline = time.monotonic() + 10
        while watch.step("build") and time.monotonic() < deadline:
            time.sleep(0.001)
        if time.monotonic() < deadline:
            ended.set()

    def progress(label: str, done: int, total: int, /) -> None:
        if done:
            raise error

    with pytest.raises(error):
        watch.run(work, "engine", progress)
    assert ended.is_set()
    assert watch.cancelled


def test_what_the_work_raises_is_raised_and_an_event_cancels_it() -> None:
    cancel = threading.Event()
    watch = BuildWatch(cancel)

    def work() -> None:
        assert watch.step("build")
        cancel.set()
        assert not watch.step("build")
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        watch.run(work, "engine")
    assert watch.cancelled
