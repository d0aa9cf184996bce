"""The stacks that benefits are measured on: simulated ones of six kinds with their truth, and windows of real ones.

It does not know what is measured on them: see `benefit`.

>>> case = simulated_case("beads", 0)
>>> case.name, case.stack.data.dtype.name, case.truth.shape == (case.stack.isotropic_planes, 96, 96)
('beads-0', 'uint16', True)
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ssai3d_rt.errors import ConfigError
from ssai3d_rt.imaging import simulate
from ssai3d_rt.imaging.fourier import richest_window

if TYPE_CHECKING:
    from ssai3d_rt.imaging.stack import Stack

Float = npt.NDArray[np.float32]

KINDS = ("strands", "flat-strands", "spheres", "cylinders", "tubes", "beads")
SHAPE = (64, 96, 96)
WAYS: tuple[tuple[float, float, float | None], ...] = (
    *((3.0, 1.0, None), (4.0, 2.0, 500.0), (5.0, 1.0, 100.0)),
    *((4.0, 3.0, None), (6.0, 2.0, 500.0), (3.5, 1.0, 100.0)),
)
"""Blur's std along Z in px, plane spacing in px, photons at intensity 1 (None: no noise) of simulated stacks."""


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A stack to measure on.

    Parameters
    ----------
    name, kind
        A file name for it, and what it shows: stacks of one kind are held out together.
    stack
        The stack as acquired.
    blur_px
        Range of the blur's std along Z in isotropic px.
    truth
        ``(Zi, Y, X)`` float32 on the stack's counts scale, isotropic; None for a real stack.
    """

    name: str
    kind: str
    stack: Stack
    blur_px: tuple[float, float]
    truth: Float | None = None


def simulated_case(kind: str, number: int) -> Case:
    """Simulate stack `number` of a kind of `KINDS`: blur, spacing, noise and contents differ from number to number.

    Raises
    ------
    ConfigError
        No such kind.
    """
    if kind not in KINDS:
        raise ConfigError(f"no simulated kind {kind!r}; there are {', '.join(KINDS)}")
    seed = 1000 + 100 * KINDS.index(kind) + number
    density = (0.7, 1.0, 1.5)[number % 3]
    counts = {"strands": 40, "flat-strands": 30, "spheres": 24, "cylinders": 18, "tubes": 16, "beads": 50}
    count = max(3, round(density * counts[kind]))
    if kind in ("strands", "flat-strands"):
        sharp = simulate.strands(SHAPE, count, flat=kind == "flat-strands", seed=seed)
    elif kind == "spheres":
        sharp = simulate.spheres(SHAPE, count, seed=seed)
    elif kind == "cylinders":
        sharp = simulate.cylinders(SHAPE, count, seed=seed)
    elif kind == "tubes":
        sharp = simulate.tubes(SHAPE, count, seed=seed)
    else:
        sharp = simulate.beads(SHAPE, count, seed=seed)
    std_px, step, photons = WAYS[(number + KINDS.index(kind)) % len(WAYS)]
    camera = simulate.Camera(photons=photons)
    stack = simulate.acquire(sharp, step, std_px=(std_px, 0.5, 0.5), camera=camera, seed=seed)
    truth = sharp[: stack.isotropic_planes] * np.float32(camera.full_scale) + np.float32(camera.offset)
    return Case(f"{kind}-{number}", kind, stack, (0.75 * std_px, 1.25 * std_px), truth)


def real_case(stack: Stack, name: str, blur_px: tuple[float, float]) -> Case:
    """Take the liveliest `SHAPE`-wide window of a stack that was acquired; its kind is its name.

    Parameters
    ----------
    stack
        At least 5 planes.
    name
        A file name for it.
    blur_px
        Range of the blur's std along Z in isotropic px: a rig profile's ``blur_px_min`` and ``blur_px_max``.
    """
    window = np.ascontiguousarray(richest_window(stack.data, SHAPE[1])[:, : SHAPE[1], : SHAPE[2]])
    return Case(name, name, dataclasses.replace(stack, data=window), blur_px)
