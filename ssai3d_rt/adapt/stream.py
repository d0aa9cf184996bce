"""Learn from a stack while its planes arrive: train on what is there, go on for a set time, judge on the whole.

While planes arrive the learning rate stays, and the pairs are made anew, targets included, whenever the stack has grown
by half. After the last plane the pairs are made from the whole stack and `train` takes over: the learning rate falls to
zero within the time that is left, and the held-out pairs decide, the base network being a candidate as ever. Planes are
learnt from in groups of `GROUP`, and one plane of each group is held out from the start: training never sees it, early
or late.

With `iterations` set, what is learnt from which planes depends on their numbers alone, not on when they came.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ssai3d_rt.adapt.finetune import (
    adapted,
    judged_by,
    open_chosen,
    require_usable,
)
from ssai3d_rt.adapt.lesson import blur_of, draw_rehearsal, prepare
from ssai3d_rt.adapt.psf import psf_bank
from ssai3d_rt.adapt.settings import FinetuneSettings, Targets
from ssai3d_rt.adapt.train import step, train
from ssai3d_rt.imaging.normalise import Normalisation
from ssai3d_rt.network.weights import load_network, network_from

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

    from ssai3d_rt.adapt.arrivals import Arrivals
    from ssai3d_rt.adapt.lesson import Lesson
    from ssai3d_rt.adapt.mask import Selection
    from ssai3d_rt.adapt.model import AdaptedModel
    from ssai3d_rt.adapt.pairs import PairSource
    from ssai3d_rt.calibration.profile import RigProfile
    from ssai3d_rt.imaging.stack import Stack
    from ssai3d_rt.progress import Progress

_log = logging.getLogger(__name__)

GROUP = 8
"""Planes that are learnt from together; training starts when there are more than these."""
GROWTH = 1.5
"""Pairs are made anew when there are so many times the planes that they were made from."""
FIRST_VOXELS = 1_000_000
"""Isotropic voxels to make the first pairs from: the time that this takes says how many more there may be."""
PREPARE_S = 10.0
"""Time that making the pairs may take while planes arrive."""
PREPARE_SHARE = 0.4
"""Share that it may take of the time after the last plane."""
EARLY_SHARE = 0.5
"""Share of a set number of steps that are taken while planes arrive."""
EARLY_STEPS_PER_PLANE = 4
"""Such steps, where nobody knows how many planes there will be."""
LOOKED_AT = 4_000_000
"""Voxels that tell whether there is something."""
SIGNAL = 12.0
"""Counts between background and brightest voxels, over the noise's std, from which on there is something to learn."""


def held_out_planes(stack: Stack) -> list[int]:
    """Return the planes that training never sees: of each group, and of what is left, the one of most usual contrast.

    Those of the groups stay the same however many planes follow.
    """
    contrast = np.array([float(plane.std(dtype=np.float64)) for plane in stack.data])
    groups = [range(z, min(z + GROUP, len(contrast))) for z in range(0, len(contrast), GROUP)]
    return [
        group[int(np.argmin(np.abs(contrast[group] - contrast[group].mean())))]
        for group in groups
        if 2 * len(group) >= GROUP
    ]


def shows_something(stack: Stack) -> bool:
    """Whether there is more than background and noise in the planes so far."""
    data = stack.data[:, :: max(1, stack.data.size // LOOKED_AT)].astype(np.float32)
    if data.min() == data.max():
        return False
    noise = 1.4826 * float(np.median(np.abs(np.diff(data, axis=2)))) / 2**0.5
    return Normalisation.of(stack.data).scale > SIGNAL * noise


def learn(
    arrivals: Arrivals, rig: RigProfile | None, settings: FinetuneSettings, ready_within_s: float, progress: Progress
) -> AdaptedModel:
    """Learn from a stack from its first planes to `ready_within_s` after its last.

    Parameters
    ----------
    arrivals
        The planes; this waits for them.
    rig, settings
        As for `finetune`; ``minutes`` bounds the training before the last plane, ``iterations`` all of it, and then
        time plays no part.
    ready_within_s
        Time from the last plane to the model.
    progress
        Told the training.

    Raises
    ------
    StoppedError
        `Arrivals.stop` was called.
    InputError, WeightsError
        As `finetune`.
    """
    learner = _Learner(arrivals, rig, settings, ready_within_s, progress)
    learner.while_planes_arrive()
    return learner.after_the_last_plane()


class _OutdatedError(Exception):
    """The last plane came while pairs were being made from a part of the stack."""


class _Learner:
    """The training of one stack: its networks, and how far it came."""

    def __init__(
        self,
        arrivals: Arrivals,
        rig: RigProfile | None,
        settings: FinetuneSettings,
        ready_within_s: float,
        progress: Progress,
    ) -> None:
        self.arrivals, self.rig, self.settings = arrivals, rig, settings
        self.ready_within_s = ready_within_s
        self._report = progress
        self.preparing_early = False
        self.base = load_network(settings.base)
        self.network = network_from(self.base.state)
        self.restorer = network_from(self.base.state)
        self.synthetic = self._draw()
        self.voxels_per_s: float | None = None
        self.opened: tuple[Selection, int] | None = None
        self.steps, self.seconds = 0, 0.0
        self.started_s = time.monotonic()

    def progress(self, label: str, done: int, total: int, /) -> None:
        """Report, unless nobody waits any more."""
        self.arrivals.check()
        if self.preparing_early and self.arrivals.ended:
            raise _OutdatedError
        self._report(label, done, total)

    def while_planes_arrive(self) -> None:
        """Train on growing parts of the stack until it is whole."""
        self.arrivals.wait(1)
        self.started_s = time.monotonic()
        timed, most_s = self.settings.iterations is None, self.settings.minutes * 60
        size, optimiser = GROUP, None
        while self.arrivals.wait(size + 1) > size:  # more than size: whether this part is used is no matter of luck
            if timed and (self.arrivals.ended or self.seconds >= most_s):
                break
            count = self.arrivals.count // GROUP * GROUP if timed else size
            size = -(-int(count * GROWTH) // GROUP) * GROUP
            part = self.arrivals.stack(count)
            if not shows_something(part):
                continue
            try:
                self.preparing_early = timed
                lesson = self.lesson(part, PREPARE_S)
            except _OutdatedError:  # the time is better spent on the whole stack
                break
            finally:
                self.preparing_early = False
            if self.opened is None:
                self.opened = open_chosen(self.network, lesson, self.settings)
                optimiser = self._optimiser()
            if optimiser is None:
                continue
            last = self.steps + self._steps(count, size)
            while self._time_is_left(size, most_s) if timed else self.steps < last:
                self._step(lesson, optimiser, round(most_s))
        self.arrivals.wait_for_end()

    def after_the_last_plane(self) -> AdaptedModel:
        """Learn from the whole stack in the time that is left, and judge."""
        whole = self.arrivals.stack()
        require_usable([whole])
        deadline_s = (self.arrivals.ended_s or time.monotonic()) + self.ready_within_s
        lesson = self.lesson(whole, PREPARE_SHARE * self.ready_within_s)
        chosen, trained = self.opened or open_chosen(self.network, lesson, self.settings)
        pairs, base = _After(lesson.pairs, self.steps), self.base.state
        settings = judged_by(lesson, self._late_settings(deadline_s))
        course = train(self.network, pairs, settings, identity="", progress=self.progress, base=base)
        checks = [
            check.model_copy(
                update={"iteration": check.iteration + self.steps, "seconds": round(check.seconds + self.seconds, 1)}
            )
            for check in course.checks[1:]
        ]
        course = replace(course, checks=(course.checks[0], *checks), iterations=course.iterations + self.steps)
        took_s = time.monotonic() - self.started_s
        return adapted(lesson, self.settings, self.base, course, chosen=chosen, trained=trained, seconds=took_s)

    def _optimiser(self) -> torch.optim.Optimizer | None:
        """Make the optimiser of the time before the last plane; None where no layer is open."""
        import torch

        parameters = [p for p in self.network.parameters() if p.requires_grad]
        if not parameters:
            return None
        return torch.optim.AdamW(parameters, lr=self.settings.lr, weight_decay=self.settings.weight_decay)

    def _steps(self, count: int, following: int) -> int:
        """Return the steps to take on the first `count` planes, where the number of steps is set."""
        if self.settings.iterations is None:
            return 0
        most = round(EARLY_SHARE * self.settings.iterations)
        declared = self.arrivals.geometry.shape[0]
        grown = min(following, declared or following) - count
        wanted = EARLY_STEPS_PER_PLANE * grown if declared is None else round(most * grown / (declared - GROUP))
        return min(wanted, most - self.steps)

    def _time_is_left(self, until: int, most_s: float) -> bool:
        """Whether the stack has not grown beyond `until` planes or ended, and training may go on."""
        return self.seconds < most_s and self.arrivals.count <= until and not self.arrivals.ended

    def _step(self, lesson: Lesson, optimiser: torch.optim.Optimizer, most_s: int) -> None:
        began_s = time.monotonic()
        self.network.train()
        psnr_db = step(self.network, optimiser, lesson.pairs.batch(self.steps, self.settings.batch))
        self.steps += 1
        self.seconds += time.monotonic() - began_s
        told = f"learn while planes arrive, PSNR of pairs {psnr_db:.1f} dB"
        if self.settings.iterations is None:
            self.progress(told, min(round(self.seconds), most_s), most_s)
        else:
            self.progress(told, self.steps, round(EARLY_SHARE * self.settings.iterations))

    def _late_settings(self, deadline_s: float) -> FinetuneSettings:
        """Return the settings of the training that is left: its steps, or the time but for two looks at the pairs."""
        if self.settings.iterations is not None:
            return self.settings.model_copy(update={"iterations": max(1, self.settings.iterations - self.steps)})
        step_s = self.seconds / self.steps if self.steps else 0.02 * self.ready_within_s
        left_s = deadline_s - time.monotonic() - 5 * step_s
        _log.info("%d steps while planes arrived; %.0f s are left", self.steps, left_s)
        return self.settings.model_copy(update={"minutes": max(left_s, 0.01) / 60})

    def lesson(self, stack: Stack, within_s: float) -> Lesson:
        """Make the pairs of the planes so far; of a large stack no more than can be restored in time."""
        most = self.settings.max_voxels
        if self.settings.iterations is None:
            most = min(most, FIRST_VOXELS if self.voxels_per_s is None else round(self.voxels_per_s * within_s))
        settings = self.settings.model_copy(update={"max_voxels": most})
        began_s = time.monotonic()
        lesson = prepare(
            [stack],
            self.rig,
            settings,
            self.base,
            self.restorer,
            progress=self.progress,
            held_out=held_out_planes(stack),
            synthetic=self.synthetic,
        )
        voxels = lesson.parts[0].raw[0].size * stack.isotropic_planes
        self.voxels_per_s = voxels / max(time.monotonic() - began_s, 1e-3)
        return lesson

    def _draw(self) -> npt.NDArray[np.float32] | None:
        """Draw the images to rehearse on, while the first planes are taken."""
        if not self.settings.rehearsal and self.settings.targets not in (Targets.AUTO, Targets.SYNTHETIC):
            return None
        bank_px, angles_deg = blur_of(self.rig, self.settings)
        bank = psf_bank(*bank_px, angles_deg=angles_deg)
        crop = max(16, min(self.settings.crop, min(self.arrivals.geometry.shape[1:]) // 16 * 16))
        return draw_rehearsal(bank, crop, self.settings.seed, self.progress)


class _After:
    """Pairs whose batches go on from those that were drawn before."""

    def __init__(self, pairs: PairSource, drawn: int) -> None:
        self._pairs, self._drawn = pairs, drawn

    def batch(self, number: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """See `PairSource`."""
        return self._pairs.batch(number + self._drawn, size)

    def validation(self, size: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
        """See `PairSource`."""
        return self._pairs.validation(size)
