"""Fine-tune on a stack while it is being acquired: give the planes as they come, have the model soon after the last.

`Follower` trains in a thread of its own; `add` returns at once. `finetune_stream` takes the planes from anything that
can be iterated, or from a queue that ends with None. How it learns is in `stream`.

An interrupted stream cannot be gone on with, as its planes do not come twice: fine-tune on the finished stack instead.
"""

from __future__ import annotations

import threading
from queue import Empty, Queue
from typing import TYPE_CHECKING

from ssai3d_rt.adapt.arrivals import Arrivals, Geometry, StoppedError
from ssai3d_rt.adapt.finetune import keep
from ssai3d_rt.adapt.settings import FinetuneSettings
from ssai3d_rt.adapt.stream import learn
from ssai3d_rt.errors import ConfigError
from ssai3d_rt.progress import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path
    from types import TracebackType

    from ssai3d_rt.adapt.model import AdaptedModel
    from ssai3d_rt.calibration.profile import RigProfile
    from ssai3d_rt.imaging.stack import Array, Stack

READY_WITHIN_S = 60.0


class Follower:
    """A fine-tuning that goes on while planes arrive; a context manager.

    Leaving the block with an exception ends the training; leaving it otherwise waits for the model.

    Parameters
    ----------
    geometry
        What is known of the stack.
    rig, settings
        As for `finetune`. The time before the last plane is bounded by ``minutes``; with ``iterations`` set that many
        steps are taken in all, half of them before it, and the result does not depend on when planes come.
    ready_within_s
        Time from the last plane to the model.
    folder
        Where to save the model.
    progress
        Told planes and training, from two threads but one at a time.

    Raises
    ------
    ConfigError
        `ready_within_s` is not above 0.
    InputError, VoxelSizeError
        A geometry that no stack has.
    """

    def __init__(
        self,
        geometry: Geometry,
        rig: RigProfile | None = None,
        *,
        settings: FinetuneSettings | None = None,
        ready_within_s: float = READY_WITHIN_S,
        folder: Path | None = None,
        progress: Progress = silent,
    ) -> None:
        if not ready_within_s > 0:
            raise ConfigError(f"the time from the last plane to the model must be above 0 s, got {ready_within_s}")
        self._arrivals = Arrivals(geometry)
        self._rig, self._settings = rig, settings or FinetuneSettings()
        self._ready_within_s, self._folder, self._progress = ready_within_s, folder, progress
        self._one_at_a_time = threading.Lock()
        self._model: AdaptedModel | None = None
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="ssai3d-follow", daemon=True)
        self._thread.start()

    def __enter__(self) -> Follower:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.result()
        else:
            self.stop()

    @property
    def count(self) -> int:
        """Planes so far."""
        return self._arrivals.count

    def add(self, plane: Array) -> None:
        """Take the next plane, ``(Y, X)`` uint8, uint16 or float32 counts; copies it and returns at once.

        Raises
        ------
        InputError
            The plane does not fit.
        Exception
            What ended the training, if it ended.
        """
        self.check()
        self._arrivals.add(plane)
        count, declared = self._arrivals.count, self._arrivals.geometry.shape[0]
        self._report("planes arrived", count, declared or count + 1)

    def check(self) -> None:
        """Raise what ended the training, if it ended."""
        if self._error is not None:
            raise self._error

    def stack(self) -> Stack:
        """Return the planes so far as a stack."""
        return self._arrivals.stack()

    def result(self, *, stopped_early: bool = False) -> AdaptedModel:
        """Say that the last plane came, and wait for the model.

        Parameters
        ----------
        stopped_early
            Take fewer planes than were declared for the whole stack: the acquisition was stopped.

        Raises
        ------
        IncompleteError
            Fewer planes came than were declared; the training was ended.
        InputError, WeightsError
            As `finetune`.
        """
        try:
            self.check()
            self._arrivals.end(stopped_early=stopped_early or self._arrivals.ended)
            while self._thread.is_alive():
                self._thread.join(0.2)  # in short turns, so that Ctrl-C is heard on Windows
        except BaseException:
            self.stop()
            raise
        self.check()
        if self._model is None:
            raise ConfigError("the training was stopped; there is no model")
        return self._model

    def stop(self) -> None:
        """End the training without a model."""
        self._arrivals.stop()
        self._thread.join()

    def _run(self) -> None:
        try:
            model = learn(self._arrivals, self._rig, self._settings, self._ready_within_s, self._report)
            if self._folder is not None:
                keep(model, self._folder)
            self._model = model
        except StoppedError:
            pass
        except Exception as error:  # belongs to whoever adds planes or waits for the model
            self._error = error

    def _report(self, label: str, done: int, total: int, /) -> None:
        with self._one_at_a_time:
            self._progress(label, done, total)


def finetune_stream(
    planes: Iterable[Array] | Queue[Array | None],
    *,
    geometry: Geometry,
    rig: RigProfile | None = None,
    settings: FinetuneSettings | None = None,
    ready_within_s: float = READY_WITHIN_S,
    folder: Path | None = None,
    progress: Progress = silent,
) -> AdaptedModel:
    """Fine-tune on planes while they come.

    Parameters
    ----------
    planes
        ``(Y, X)`` planes in order of z, or a queue of them with None after the last.
    geometry, rig, settings, ready_within_s, folder, progress
        See `Follower`.

    Returns
    -------
    The adapted model; ``record.kept`` says whether tuning was better than the base network.

    Raises
    ------
    InputError
        A plane that does not fit, or a stack that nothing can be learnt from.
    IncompleteError
        Fewer planes came than `geometry` declares.
    """
    follower = Follower(
        geometry, rig, settings=settings, ready_within_s=ready_within_s, folder=folder, progress=progress
    )
    with follower:
        for plane in _taken(planes, follower) if isinstance(planes, Queue) else planes:
            follower.add(plane)
        return follower.result()


def _taken(planes: Queue[Array | None], follower: Follower) -> Iterator[Array]:
    """Take planes from a queue until None, and notice between them when the training has ended."""
    while True:
        follower.check()
        try:
            plane = planes.get(timeout=0.2)
        except Empty:
            continue
        if plane is None:
            return
        yield plane
