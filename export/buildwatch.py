"""A build that can be followed and stopped: the builder works in a thread of its own, the caller's thread listens.

So Ctrl-C and whatever the caller's progress raises arrive in the caller's thread, never inside the builder, which could
only abort the process. The builder's nested phases become one figure.

>>> watch = BuildWatch()
>>> watch.start("Building engine", None, 2), watch.start("Optimizing", "Building engine", 4)
(None, None)
>>> watch.step("Optimizing"), watch.percent
(True, 12)
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Event, Lock
from typing import TYPE_CHECKING, Any, TypeVar

from ssai3d_rt.progress import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Callable

Result = TypeVar("Result")

_POLL_S = 0.1


@dataclass(slots=True)
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class BuildWatch:
    """Counts the builder's steps and says whether it is to go on; called from the builder's threads."""

    def __init__(self, cancel: Event | None = None) -> None:
        self._cancel = cancel
        self._stopped = Event()
        self._lock = Lock()
        self._phases: dict[str, _Phase] = {}
        self._reports: SimpleQueue[int | None] = SimpleQueue()
        self.percent = 0

    @property
    def cancelled(self) -> bool:
        """Whether the build is to stop."""
        return self._stopped.is_set() or (self._cancel is not None and self._cancel.is_set())

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """Begin a phase, inside another one or at the top."""
        with self._lock:
            self._phases[name] = _Phase(parent, max(steps, 1))

    def step(self, name: str) -> bool:
        """Count a step of a phase; False stops the build."""
        with self._lock:
            if (phase := self._phases.get(name)) is not None:
                phase.done = min(phase.done + 1, phase.steps)
            self._report()
        return not self.cancelled

    def finish(self, name: str) -> None:
        """End a phase."""
        with self._lock:
            self._phases.pop(name, None)

    def _report(self) -> None:
        percent = int(100 * max(self._reached(name) for name in self._phases)) if self._phases else 0
        if percent > self.percent:
            self.percent = percent
            self._reports.put(percent)

    def _reached(self, name: str | None) -> float:
        """Say how far the whole build is, by one phase: it is a part of its parent's current step, and so on up."""
        part = 0.0
        while name is not None:
            phase = self._phases.get(name)
            if phase is None:  # its parent ended before it
                return 0.0
            part = min((phase.done + part) / phase.steps, 1.0)
            name = phase.parent
        return part

    def run(self, work: Callable[[], Result], label: str, progress: Progress = silent) -> Result:
        """Do the work in a thread; report and wait in this one.

        Raises
        ------
        BaseException
            What `work` raises; what `progress` raises, or Ctrl-C, after the work has stopped.
        """
        with ThreadPoolExecutor(1, thread_name_prefix="engine-build") as pool:
            future = pool.submit(work)
            future.add_done_callback(lambda _: self._reports.put(None))
            try:
                progress(label, 0, 100)
                while True:
                    try:
                        percent = self._reports.get(timeout=_POLL_S)
                    except Empty:  # a chance for Ctrl-C to be heard, where waiting cannot be interrupted
                        continue
                    if percent is None:
                        break
                    progress(label, percent, 100)
            except BaseException:
                self._stopped.set()
                raise
            result = future.result()
            progress(label, 100, 100)
            return result


def monitor(trt: Any, watch: BuildWatch) -> Any:
    """Make the vendor's progress monitor over a watch; it must outlive the build."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the base comes at run time
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            watch.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, _step: int) -> bool:
            return watch.step(phase_name)

        def phase_finish(self, phase_name: str) -> None:
            watch.finish(phase_name)

    return Monitor()
