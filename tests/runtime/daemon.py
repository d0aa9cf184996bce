"""A running daemon for tests: in a thread of this process, or as a process that can be killed."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ssai3d_rt.imaging.read import read_stack
from ssai3d_rt.imaging.stack import Stack
from ssai3d_rt.imaging.write import write_ome_tiff
from ssai3d_rt.runtime.watch import WatchEvent, WatchSettings, watch
from tests.runtime.quick import QuickRecipe, expected

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from ssai3d_rt.runtime.ledger import State
    from ssai3d_rt.runtime.messages import Recipe

QUICK = WatchSettings(
    quiet_s=0.3, scan_s=0.3, incomplete_after_s=1.0, reserve_bytes=0, stop_s=5.0, nice=0, back_off_s=(0.1,)
)


def stack_file(path: Path, seed: int = 0, z_um: float = 0.2) -> Path:
    """Write a small anisotropic stack; each seed gives other samples. A larger `z_um` gives a larger result."""
    data = np.random.default_rng(seed).integers(0, 4000, (5, 24, 24), dtype=np.uint16)
    write_ome_tiff(path, Stack(data, (z_um, 0.1, 0.1), channel="DAPI"))
    return path


def is_right(result: Path, source: Path) -> bool:
    """Whether a result is what the quick restorer makes of a source."""
    return bool(np.array_equal(read_stack(result).data, expected(read_stack(source))))


@dataclass
class Rig:
    """A watched folder, an output folder, and what happened."""

    incoming: Path
    out: Path
    log: Path
    settings: WatchSettings = QUICK
    events: list[WatchEvent] = field(default_factory=list)
    error: BaseException | None = None
    counts: dict[str, int] = field(default_factory=dict)

    def with_settings(self, **changes: Any) -> Rig:
        return replace(self, settings=self.settings.model_copy(update=changes))

    def running(self, **recipe: Any) -> AbstractContextManager[threading.Event]:
        """Run the daemon, with the quick restorer, in a thread while inside."""
        return self.running_with(QuickRecipe(self.log, **recipe))

    @contextmanager
    def running_with(self, recipe: Recipe) -> Iterator[threading.Event]:
        """Run the daemon in a thread while inside."""
        stop = threading.Event()
        self.events.clear()

        def run() -> None:
            try:
                options: dict[str, Any] = {"settings": self.settings, "stop": stop, "listener": self.events.append}
                self.counts = watch(self.incoming, recipe, self.out, **options)
            except BaseException as error:
                self.error = error

        thread = threading.Thread(target=run, name="daemon under test")
        thread.start()
        try:
            yield stop
        finally:
            stop.set()
            thread.join()
        if self.error is not None:
            raise self.error

    def states(self) -> dict[str, State]:
        """The last state of each file, by name."""
        return {event.path.name: event.state for event in list(self.events)}

    def reason(self, name: str) -> str:
        """The last reason of a file."""
        return [event.reason for event in list(self.events) if event.path.name == name][-1]

    def wait(self, done: Callable[[], object], timeout_s: float = 60.0) -> None:
        """Wait until something holds; say what happened where it never does."""
        deadline = time.monotonic() + timeout_s
        while not done():
            if self.error is not None:
                raise self.error
            assert time.monotonic() < deadline, "\n".join(map(str, self.events))
            time.sleep(0.02)

    def wait_for(self, **wanted: State) -> None:
        """Wait until files, named without their suffix, are in these states."""
        self.wait(lambda: {k.split(".")[0]: v for k, v in self.states().items()}.items() >= wanted.items())

    def results(self) -> list[str]:
        """Every visible file below the output folder."""
        files = (path.relative_to(self.out) for path in self.out.rglob("*") if path.is_file())
        return sorted(path.as_posix() for path in files if not path.parts[0].startswith(".ssai3d-rt"))

    def restored(self) -> list[str]:
        """Names of the files that the worker restored, in order, repeats included."""
        return self.log.read_text().split() if self.log.exists() else []
