"""A restorer that goes wrong on purpose, once for each fault of its plan, in the real process.

It takes the way of a bundle's restorer: `ssai3d_rt.runtime.onestack.restore`, with a runner that changes nothing, so
that a right result is what the quick restorer makes (`tests.runtime.quick.expected`). What it did wrong, when and in
which process, it notes in a file.
"""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ssai3d_rt.errors import BackendError, DeviceError
from ssai3d_rt.imaging.openfile import shown
from ssai3d_rt.imaging.read import open_acquisition
from ssai3d_rt.imaging.write import verify_ome_tiff, write_ome_tiff
from ssai3d_rt.runtime.messages import Part, Restore
from ssai3d_rt.runtime.onestack import restore
from ssai3d_rt.runtime.publish import temporary_name
from tests.runtime.quick import QuickRecipe

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import numpy.typing as npt

    from ssai3d_rt.progress import Progress

    Float = npt.NDArray[np.float32]

BATCH = 16
_FOREVER_S = 3600.0

GARBAGE: dict[str, Callable[[Float, np.random.Generator], Float]] = {
    "zeros": lambda tiles, _: np.zeros_like(tiles),
    "nan": lambda tiles, _: np.full_like(tiles, np.nan),
    "a few nan": lambda tiles, _: np.where(np.arange(tiles.shape[-1]) == 32, np.float32(np.nan), tiles),
    "constant": lambda tiles, _: np.full_like(tiles, 0.5),
    "noise": lambda tiles, rng: rng.random(tiles.shape, np.float32),
    "shifted": lambda tiles, _: np.roll(tiles, tiles.shape[-1] // 2, (-1, -2)),
    "shifted by an eighth": lambda tiles, _: np.roll(tiles, tiles.shape[-1] // 8, (-1, -2)),
    "inverted": lambda tiles, _: 1 - tiles,
    "pixels mixed": lambda tiles, rng: rng.permutation(tiles.reshape(-1)).reshape(tiles.shape),
    "tiles mixed": lambda tiles, rng: tiles[rng.permutation(len(tiles))],
    "half zeros": lambda tiles, _: np.where(np.arange(len(tiles))[:, None, None, None] % 2, tiles, np.float32(0)),
    "five percent off": lambda tiles, _: tiles * np.linspace(1, 1.1, tiles.shape[-1], dtype=np.float32),
}
"""What a device that went wrong answers, and calls a success; beside these there is ``previous``, see `_Runner`."""

WORDS_OF_MEMORY = (
    "CUDA out of memory. Tried to allocate 2.00 GiB",
    "CUDA_ERROR_OUT_OF_MEMORY: out of memory",
    "std::bad_alloc",
    "Failed to allocate memory for requested buffer of size 1073741824",
)


@dataclass(frozen=True, slots=True)
class Fault:
    """What is to go wrong with one source.

    Parameters
    ----------
    kind
        ``memory``, ``memory-words``, ``sticky``, ``hang``, ``kill``, ``exit``, ``bug``, ``check``, ``previous``, or a
        name of `GARBAGE`.
    call
        At which call of the network it begins, from 1.
    fits
        Tiles at once for which the memory is large enough (``memory``): with so many it does not happen.
    noticed
        Garbage goes on until the process ends, and `check` sees it; else it is of this stack alone and nobody is told.
    times
        How often.
    """

    kind: str
    call: int = 1
    fits: int = 0
    noticed: bool = False
    times: int = 1


@dataclass(frozen=True, slots=True)
class BadRecipe(QuickRecipe):
    """Restores as `QuickRecipe` does, but for the faults of a plan, by the name of the source."""

    faults: Mapping[str, Fault] = field(default_factory=dict)

    @property
    def noted(self) -> Path:
        """Where it is noted what went wrong, and what was restored: one JSON object a line."""
        return self.log.with_name("faults.jsonl")

    def open(self, most_tiles: int | None = None) -> BadRestorer:  # type: ignore[override]
        """Make the restorer."""
        if self.refuse_while is not None and self.refuse_while.exists():
            raise BackendError(self.refuse_while.read_text())
        self.note("opened", "")
        return BadRestorer(self, most_tiles)

    def note(self, event: str, name: str, **more: Any) -> None:
        """Add a line to what is noted."""
        line = {"at": time.time(), "pid": os.getpid(), "event": event, "name": name, **more}
        with open(self.noted, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def events(self) -> list[dict[str, Any]]:
        """Everything noted so far."""
        if not self.noted.exists():
            return []
        return [json.loads(line) for line in self.noted.read_text(encoding="utf-8").splitlines()]


class BadRestorer:
    """Restores with `_Runner`."""

    name = "bad"

    def __init__(self, recipe: BadRecipe, most_tiles: int | None) -> None:
        self._recipe = recipe
        self._runner = _Runner(recipe, min(BATCH, most_tiles or BATCH))

    def restore(self, order: Restore, progress: Progress) -> list[Part]:
        """Restore one source, or go wrong."""
        self._runner.begin(order.source.name)
        stacks = []
        with open_acquisition(order.source) as acquisition:
            for key in acquisition.keys:
                raw = acquisition.read(key)
                stacks.append(restore(raw, self._runner, denoise="off", warnings=(), progress=progress).stack)
        self._recipe.note("restored", order.source.name)
        with open(self._recipe.log, "a", encoding="utf-8") as log:
            log.write(shown(order.source.name) + "\n")
        provenance = {"source_sha256": order.content, "bundle_id": self._recipe.bundle_id}
        temporary = temporary_name(order.folder)
        written = write_ome_tiff(temporary, stacks, provenance)
        return [Part(temporary, partial(verify_ome_tiff, expected=written))]

    def check(self) -> None:
        """Say whether the device is known to be sick."""
        self._runner.check()

    def close(self) -> None:
        """Do nothing."""


class _Runner:
    """A runner that changes nothing, unless it is its turn to go wrong."""

    name, detail, bundle_id, tile = "bad", "on purpose", "bad", 64

    def __init__(self, recipe: BadRecipe, batch: int) -> None:
        self.batch = batch
        self._recipe = recipe
        self._rng = np.random.default_rng(0)
        self._source, self._calls = "", 0
        self._fault: Fault | None = None
        self._garbage = ""
        self._sick: Fault | None = None
        self._before: list[Float] = []
        self._now: list[Float] = []

    def begin(self, source: str) -> None:
        """Take up a source."""
        self._source, self._calls = source, 0
        self._before, self._now = self._now or self._before, []
        self._garbage = self._sick.kind if self._sick else ""
        self._fault = self._recipe.faults.get(source)
        if self._fault is not None:
            had = [event for event in self._recipe.events() if (event["event"], event["name"]) == ("fault", source)]
            self._fault = self._fault if len(had) < self._fault.times else None

    def run(self, tiles: Float) -> Float:
        """Answer with the tiles, or with something else, or never."""
        self._calls += 1
        fault = self._fault
        due = fault is not None and fault.kind != "check" and self._calls == fault.call
        if fault is not None and due and not (fault.fits and len(tiles) <= fault.fits):
            self._go_wrong(fault)
        answer = tiles.copy()
        if self._garbage == "previous":
            return np.resize(self._before[min(self._calls, len(self._before)) - 1], tiles.shape)
        if self._garbage:
            return GARBAGE[self._garbage](answer, self._rng).astype(np.float32)
        self._now.append(answer)
        return answer

    def check(self) -> None:
        """Raise where the device is known to be sick."""
        if self._fault is not None and self._fault.kind == "check":
            fault, self._fault = self._fault, None
            self._recipe.note("fault", self._source, **asdict(fault))
            raise BackendError("CUDA error 719: unspecified launch failure")
        if self._sick is not None and self._sick.noticed:
            raise DeviceError(f"the golden tiles come out as {self._sick.kind}")

    def close(self) -> None:
        """Do nothing."""

    def _go_wrong(self, fault: Fault) -> None:
        if fault.kind == "previous" and not self._before:
            return  # nothing was computed yet; another time
        self._recipe.note("fault", self._source, **asdict(fault))
        self._fault = None
        if fault.kind in ("memory", "memory-words", "sticky", "bug"):
            # What came once comes again: from now on this process answers with something subtly wrong, and its check
            # sees nothing. Only its end helps.
            self._sick = Fault("five percent off")
        if fault.kind == "memory":
            raise MemoryError
        if fault.kind == "memory-words":
            raise BackendError(WORDS_OF_MEMORY[self._rng.integers(len(WORDS_OF_MEMORY))])
        if fault.kind == "sticky":
            raise BackendError("CUDA error 700: an illegal memory access was encountered")
        if fault.kind == "bug":
            raise ZeroDivisionError("division by zero")
        if fault.kind == "hang":
            time.sleep(_FOREVER_S)
        if fault.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault.kind == "exit":
            os._exit(0)
        self._garbage = fault.kind
        if fault.noticed:
            self._sick = fault


def plan_of(sources: list[Path], faults: list[Fault | None]) -> dict[str, Fault]:
    """Plan of faults by the name of the source; sources without one stay out."""
    return {path.name: fault for path, fault in zip(sources, faults, strict=True) if fault is not None}
